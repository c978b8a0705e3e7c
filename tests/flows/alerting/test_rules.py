"""Rules end to end in the core: from rows to events, beside published results of Prometheus."""

# ruff: noqa: E501 - tables

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.rules import KNOWN_US, AlertGroup, keep_of
from tailrace_flows.core.alerting.store import Keep, WindowStore
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Transition, time_of
from tailrace_schemas.samples import Series

from tests.data import reference
from tests.flows.alerting.rows import Row, S, batch_of, group_of

START_S = 1_700_000_400
"""A multiple of 10 minutes."""


def rows_of(series: dict[str, str]) -> dict[int, list[Row]]:
    """Rows by window end, in seconds after the start, of series such as `cpu{host=a} gauge` with `0.5 0.9x3 _ 0.1`.

    One value each 10 s from 10 s on; `_` is a window without samples, `1:5` one with two.
    """
    found: dict[int, list[Row]] = {}
    for name, text in series.items():
        metric, attributes, kind = re.fullmatch(r"([\w.]+)(?:\{(.*)\})? (\w+)", name).groups()  # type: ignore[union-attr]  # or fail
        pairs = dict(pair.split("=") for pair in (attributes or "").split(",") if pair)
        service = pairs.pop("service", "web")
        one = Series(metric, kind, "", tuple(sorted(pairs.items())))
        end_s = 0
        for word in text.split():
            value, _, times = word.partition("x")
            for _ in range(int(times or 1)):
                end_s += 10
                if value != "_":
                    samples = tuple(float(part) for part in value.split(":"))
                    cumulative = (samples[0], samples[0]) if kind == "cumulative" else samples
                    found.setdefault(end_s, []).append(Row(service, one, START_S + end_s, cumulative))
    return found


def run(
    rule: str,
    series: dict[str, str],
    *,
    until_s: int = 0,
    interval: str = "10s",
    commands: dict[int, str] | None = None,
) -> list[str]:
    """What happens: `30s active a`, for each event, with the values of its labels."""
    group = AlertGroup(group_of(f"groups: [{{name: g, interval: {interval}, rules: [{{alert: R, {rule}}}]}}]"))
    store = WindowStore(keep_of(group.rules.values()))
    rows = rows_of(series)
    told: list[str] = []
    last: AlertEvent | None = None
    step_s = group.interval_us // S
    for t_s in range(10, (until_s or max(rows)) + 1, 10):
        for service in {row.service for row in rows.get(t_s, [])}:
            store.add("", batch_of([row for row in rows[t_s] if row.service == service]))
        if t_s % step_s:
            continue
        for event in group.evaluate(store, (START_S + t_s) * S):
            last = event
            told.append(f"{t_s}s {_told(event)}")
        if commands and t_s in commands:
            assert last is not None
            assert last.alert is not None
            command = Command(
                id=f"c{t_s}",
                kind=CommandKind(commands[t_s]),
                alert_id=last.alert.id,
                time=time_of((START_S + t_s) * S),
                author="ann",
            )
            told += [f"{t_s}s {_told(event)}" for event in group.command(command) or []]
        store.forget((START_S + t_s) * S)
    return told


def _told(event: AlertEvent) -> str:
    assert event.alert is not None
    labels = ",".join(event.alert.labels.values())
    value = event.alert.current_value
    return f"{event.transition} {labels or '-'}" + ("" if value is None else f" {value:g}")


CPU = "metric: cpu, aggregate: mean, by: [host], op: gt, threshold: 0.8"
RATIO = (
    "queries: {errors: {metric: req, aggregate: increase, where: {code: '=~5..'}}, all: {metric: req, aggregate: increase}},"
    "value: errors / all, op: gt, threshold: 0.1"
)
CASES: dict[str, tuple[str, dict[str, str], list[str]]] = {
    "one label set past the threshold": (
        CPU,
        {"cpu{host=a} gauge": "0.5 0.9 0.9 0.5", "cpu{host=b} gauge": "0.5x4"},
        ["20s active a 0.9", "40s resolved a 0.9"],
    ),
    "`for` takes that long": (
        f"{CPU}, for: 20s",
        {"cpu{host=a} gauge": "0.9 0.9 0.5 0.9x3 0.5"},
        ["60s active a 0.9", "70s resolved a 0.9"],
    ),
    "a clear threshold": (
        f"{CPU}, clear_threshold: 0.7",
        {"cpu{host=a} gauge": "0.75 0.9 0.75 0.75 0.7 0.75"},
        ["20s active a 0.9", "50s resolved a 0.75"],
    ),
    "a window slides": (
        f"{CPU}, window: 30s",
        {"cpu{host=a} gauge": "1 1 0.1 1 1 0"},
        ["10s active a 1", "30s resolved a 1"],
    ),
    "without data it stays as it is": (
        f"{CPU}, no_data: keep",
        {"cpu{host=a} gauge": "0.9 _x60 0.9 0.5", "cpu{host=b} gauge": "0.5x63"},
        ["10s active a 0.9", "630s resolved a 0.9"],
    ),
    "without data it ends": (
        f"{CPU}, no_data: ok",
        {"cpu{host=a} gauge": "0.9 _x3 0.9", "cpu{host=b} gauge": "0.5x5"},
        ["10s active a 0.9", "20s resolved a 0.9", "50s active a 0.9"],
    ),
    "missing data are an alert, however long they are missing": (
        f"{CPU}, no_data: alert",
        {"cpu{host=a} gauge": "0.5 _x100 0.5", "cpu{host=b} gauge": "0.5x102"},
        ["20s active a", "1020s resolved a"],
    ),
    "missing data of everything are an alert": (
        "metric: cpu, aggregate: mean, where: {host: a}, op: gt, threshold: 0.8, no_data: alert",
        {"cpu{host=a} gauge": "_ 0.5 _", "other{host=b} gauge": "0.5x3"},
        ["10s active a", "20s resolved a", "30s active a"],
    ),
    "labels that `where` fixes are labels of the alert": (
        "metric: cpu, aggregate: max, where: {service: db, host: '=~[ab]'}, op: gt, threshold: 0.8",
        {"cpu{host=a,service=db} gauge": "0.9", "cpu{host=b} gauge": "0.95", "cpu{host=c,service=db} gauge": "0.99"},
        ["10s active db 0.9"],
    ),
    "a counter without samples counted nothing": (
        "metric: errors, aggregate: increase, by: [host], op: gt, threshold: 0",
        {"errors{host=a} counter": "3 _ _", "cpu{host=a} gauge": "0.5x3"},
        ["10s active a 3", "20s resolved a 3"],
    ),
    "and so its rate falls below a limit, until nobody knows the counter any more": (
        "metric: req, aggregate: rate, by: [host], op: lt, threshold: 0.5, no_data: ok",
        {"req{host=a} counter": "10x3 _x32", "cpu{host=a} gauge": "0.5x60"},
        ["40s active a 0", "350s resolved a 0"],
    ),
    "a cumulative counter without points is not known": (
        "metric: oom, aggregate: increase, by: [host], op: gt, threshold: 0",
        {"oom{host=a} cumulative": "0 1 _x3 0", "cpu{host=a} gauge": "0.5x6"},
        ["20s active a 1", "60s resolved a 1"],
    ),
    "a ratio; no error at all is a ratio of 0": (
        RATIO,
        {"req{code=200} counter": "10 8 10 _ 10", "req{code=503} counter": "_ 2 _ _ _"},
        ["20s active - 0.2", "30s resolved - 0.2"],
    ),
    "a ratio without traffic is no evidence": (
        RATIO,
        {"req{code=200} counter": "8 _x40 9", "req{code=503} counter": "2 _x40 1"},
        ["10s active - 0.2", "420s resolved - 0.2"],
    ),
    "a further condition": (
        f"{RATIO}, and: [{{value: all, op: gte, threshold: 10}}]",
        {"req{code=200} counter": "1 8 1", "req{code=503} counter": "1 2 1"},
        ["20s active - 0.2", "30s resolved - 0.2"],
    ),
    "queries joined by labels": (
        "queries: {used: {metric: used, aggregate: last}, limit: {metric: limit, aggregate: last}}, by: [host], value: used / limit, op: gt, threshold: 0.9",
        {"used{host=a} gauge": "95 80", "limit{host=a} gauge": "100x2", "used{host=b} gauge": "95 95", "limit{host=c} gauge": "1 1"},
        ["10s active a 0.95", "20s resolved a 0.95"],
    ),
    "quantiles merge the sketches of services": (
        "metric: lat, aggregate: p75, by: [route], op: gt, threshold: 3.9, window: 20s",
        {"lat{service=x,route=/a} distribution": "1:1:1:1 1", "lat{service=y,route=/a} distribution": "_ 4:4:4:4"},
        ["20s active /a 3.97834"],
    ),
    "a share of samples": (
        "metric: lat, aggregate: fraction_above(0.3), op: gt, threshold: 0.4",
        {"lat distribution": "0.1:0.2:1 0.1:1:2 0.1"},
        ["20s active - 0.666667", "30s resolved - 0.666667"],
    ),
    "a line that reaches zero": (
        "metric: free, aggregate: predict_linear(1m), window: 30s, by: [host], op: lt, threshold: 0",
        {"free{host=a} gauge": "90 80 70 60 50 50 50", "free{host=b} gauge": "90x7"},
        ["50s active a -10", "60s resolved a -10"],
    ),
    "absence of everything": (
        "metric: up, where: {service: web}, op: absent, window: 20s",
        {"up gauge": "_ 1 _ _ 1", "up{service=db} gauge": "1x5"},
        ["10s active web", "20s resolved web", "40s active web", "50s resolved web"],
    ),
    "absence of each that was there": (
        "metric: up, by: [host], op: absent, for: 10s",
        {"up{host=a} gauge": "1 _x50 1", "up{host=b} gauge": "1x52"},
        ["30s active a", "520s resolved a"],
    ),
    "a constant is always so": ("value: '1', op: gt, threshold: 0", {"up gauge": "1"}, ["10s active - 1"]),
    "not equal": (
        "metric: state, aggregate: last, by: [host], op: ne, threshold: 1",
        {"state{host=a} gauge": "1 2 1"},
        ["20s active a 2", "30s resolved a 2"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_rule(name: str) -> None:
    rule, series, expected = CASES[name]
    assert run(rule, series) == expected


def test_what_a_person_resolves_is_quiet_while_it_holds_and_is_let_go_with_its_series() -> None:
    for no_data in ("keep", "alert"):
        told = run(f"{CPU}, no_data: {no_data}", {"cpu{host=a} gauge": "0.9x5 0.5 0.9"}, commands={20: "resolve"})
        assert told == ["10s active a 0.9", "20s resolved a 0.9", "70s active a 0.9"]
    absent = "metric: up, by: [host], op: absent"
    told = run(absent, {"up{host=a} gauge": "1 _x60 1 _", "up{host=b} gauge": "1x63"}, commands={40: "resolve"})
    assert told == ["20s active a", "40s resolved a", "630s active a"]
    told = run(
        f"{CPU}, no_data: keep",
        {"cpu{host=a} gauge": "0.9x2 _x60 0.9", "cpu{host=b} gauge": "0x63"},
        commands={20: "resolve"},
    )
    assert told == ["10s active a 0.9", "20s resolved a 0.9", "630s active a 0.9"]


def test_a_group_is_evaluated_at_its_interval() -> None:
    assert run(CPU, {"cpu{host=a} gauge": "0.9 0.5x5 0.9x6"}, interval="1m") == ["120s active a 0.9"]


def test_a_changed_group_keeps_the_alerts_of_rules_that_stay() -> None:
    text = "groups: [{name: g, rules: [{alert: A, value: '1', op: gt, threshold: 0}, {alert: B, value: '1', op: gt, threshold: 0}]}]"
    group = AlertGroup(group_of(text))
    store = WindowStore(keep_of(group.rules.values()))
    active = group.evaluate(store, 10 * S)
    changed, events = group.replaced(
        group_of(
            "groups: [{name: g, rules: [{alert: B, value: '2', op: gt, threshold: 0}, {alert: C, value: '1', op: gt, threshold: 0}]}]"
        ),
        15 * S,
    )
    (gone,) = events
    assert gone.alert is not None
    assert (gone.alert.name, gone.transition, gone.reason) == ("A", Transition.RESOLVED, "the rule was removed")
    assert [event.id for event in changed.republish()] == [active[1].id]
    assert [event.alert and event.alert.name for event in changed.evaluate(store, 20 * S)] == ["C"]


def test_a_command_goes_to_the_rule_whose_alert_it_names() -> None:
    rule = "value: '1', op: gt, threshold: 0"
    group = AlertGroup(group_of(f"groups: [{{name: g, rules: [{{alert: A, {rule}}}, {{alert: B, {rule}}}]}}]"))
    _, second = group.evaluate(WindowStore({}), 10 * S)
    assert second.alert is not None
    command = Command(id="c", kind=CommandKind.MARK, alert_id=second.alert.id, time=time_of(11 * S), author="ann")
    (answer,) = group.command(command) or []
    assert answer.alert is not None
    assert (answer.alert.name, answer.alert.false_positive) == ("B", True)
    assert group.command(command.model_copy(update={"alert_id": "another"})) is None


def test_a_store_keeps_as_much_as_any_rule_looks_back() -> None:
    rules = [
        "{alert: A, metric: m, aggregate: mean, window: 1m, op: gt, threshold: 0}",
        "{alert: B, metric: m, aggregate: p99, window: 30s, op: gt, threshold: 0}",
        "{alert: C, metric: m, op: absent, window: 10s}",
        "{alert: D, metric: n, aggregate: p99, window: 2m, op: gt, threshold: 0}",
    ]
    group = AlertGroup(group_of(f"groups: [{{name: g, interval: 20s, rules: [{', '.join(rules)}]}}]"))
    known_us = KNOWN_US + 20 * S
    assert keep_of(group.rules.values()) == {
        "m": Keep(60 * S + known_us, 30 * S),
        "n": Keep(120 * S + known_us, 120 * S),
    }


# -- published results ---------------------------------------------------------------------------------

VOLUME = """
groups:
- name: kubernetes-storage
  interval: 1m
  rules:
  - alert: critical
    severity: critical
    queries: &queries
      available: {metric: volume.available, aggregate: last, window: 5m}
      capacity: {metric: volume.capacity, aggregate: last, window: 5m}
      used: {metric: volume.used, aggregate: last, window: 5m}
    where: &where {excluded: "", read_only: ""}
    by: [volume]
    value: 100 * available / capacity
    op: lt
    threshold: 3
    and: [{value: used, op: gt, threshold: 0}]
    for: 1m
  - alert: warning
    queries:
      available: {metric: volume.available, aggregate: last, window: 5m}
      capacity: {metric: volume.capacity, aggregate: last, window: 5m}
      used: {metric: volume.used, aggregate: last, window: 5m}
      in_4_days: {metric: volume.available, aggregate: predict_linear(4d), window: 6h}
    where: *where
    by: [volume]
    value: 100 * available / capacity
    op: lt
    threshold: 15
    and: [{value: used, op: gt, threshold: 0}, {value: in_4_days, op: lt, threshold: 0}]
    for: 1h
"""
FLAGS = {"excluded_by_label": ("excluded", "true"), "read_only": ("read_only", "true")}


def rows_at(service: str, series: Series, samples: list[list[Any]]) -> list[Row]:
    """A sample at a time is the row of the window that ends then, since ranges of Prometheus are left-open as well."""
    return [Row(service, series, START_S + int(time), (float(value),)) for time, value in samples]


@pytest.mark.parametrize("case", reference("k8s_volume_filling_up"))
def test_volumes_fill_up_as_in_the_kubernetes_mixin(case: dict[str, Any]) -> None:
    group = AlertGroup(group_of(VOLUME))
    store = WindowStore(keep_of(group.rules.values()))
    attributes = tuple(sorted([("volume", "v"), *(FLAGS[flag] for flag in case["flags"])]))
    for name, samples in case["series"].items():
        series = Series(f"volume.{name}", "gauge", "", attributes)
        store.add("", batch_of(rows_at("kubelet", series, samples)))
    expected = {int(one["at_s"]): one["firing"] for one in case["expected"]}
    for t_s in range(0, max(expected) + 1, 60):
        group.evaluate(store, (START_S + t_s) * S)
        if t_s in expected:
            active = [alert for rule in group.rules.values() for alert in rule.alerts.alerts()]
            found = {alert.name: alert.current_value for alert in active}
            wanted = {one["severity"]: one["percent_free"] for one in expected[t_s]}
            assert found.keys() == wanted.keys(), t_s
            for severity, percent in wanted.items():
                assert round(found[severity] or 0, 3) == pytest.approx(percent, abs=0.0011)


EXPRESSION = re.compile(r"(\w+)\((\w+)(?:\{(.*)\})?(?:\[\w+\])?\)")


def applicable(case: dict[str, Any]) -> str:
    """Why a case cannot be asked of us; empty: it can."""
    found = EXPRESSION.fullmatch(case["expr"])
    if not found:
        return "a selector without a metric's name"
    labels = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", found[3] or "")
    return "a label twice" if len(labels) > len(set(labels)) else ""


ABSENT = reference("promql_absent")


def test_few_of_prometheus_absent_cases_cannot_be_asked() -> None:
    """They have a label twice, or no metric, which the configuration has no way to say."""
    cases: list[Any] = [param.values[0] for param in ABSENT]
    assert [case["id"] for case in cases if case and applicable(case)] in (
        [],
        ["functions:1730", "functions:1736", "functions:1786", "functions:1792", "functions:1842"],
    )


@pytest.mark.parametrize("case", [one for one in ABSENT if not one.values[0] or not applicable(one.values[0])])
def test_absence_is_that_of_prometheus(case: dict[str, Any]) -> None:
    function, metric, matchers = EXPRESSION.fullmatch(case["expr"]).groups()  # type: ignore[union-attr]  # it is applicable
    where = ", ".join(
        f'{name}: "{operator.removeprefix("=")}{value}"' if operator != "=~" else f'{name}: "=~{value}"'
        for name, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers or "")
    )
    window_s = int(case["range_s"] or 300)
    rule = f"{{alert: R, metric: {metric}, where: {{{where}}}, op: absent, window: {window_s}s}}"
    group = AlertGroup(group_of(f"groups: [{{name: g, rules: [{rule}]}}]"))
    store = WindowStore(keep_of(group.rules.values()))
    for one in case["series"]:
        labels = tuple(sorted(one["labels"].items()))
        rows = rows_at("any", Series(one["metric"], "gauge", "", labels), one["samples"])
        store.add("", batch_of(rows))
    events = group.evaluate(store, (START_S + int(case["eval_time_s"])) * S)
    found = [event.alert.labels for event in events if event.alert is not None]
    if function == "present_over_time":
        assert bool(found) == (case["expected"] == [])
    else:
        assert found == [one["labels"] for one in case["expected"]]


# -- properties ----------------------------------------------------------------------------------------

LEVELS = st.lists(st.sampled_from(("0.5", "0.75", "0.9", "_")), min_size=1, max_size=12)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries({"a": LEVELS, "b": LEVELS}),
    st.sampled_from(
        (CPU, f"{CPU}, for: 20s, clear_threshold: 0.7", f"{CPU}, no_data: alert", "metric: cpu, by: [host], op: absent")
    ),
    st.randoms(use_true_random=False),
    st.frozensets(st.integers(1, 12)),
)
def test_any_batches_any_repeats_and_any_restart_give_the_same_events(
    levels: dict[str, list[str]], rule: str, chance: Any, restarts: frozenset[int]
) -> None:
    text = f"groups: [{{name: g, rules: [{{alert: R, {rule}}}]}}]"
    by_end = rows_of({f"cpu{{host={host}}} gauge": " ".join(values) for host, values in levels.items()})
    steps = max(map(len, levels.values()))

    def play(*, disturbed: bool) -> list[str]:
        group = AlertGroup(group_of(text))
        store = WindowStore(keep_of(group.rules.values()))
        seen: list[Row] = []
        ids = []
        for step in range(1, steps + 1):
            rows = by_end.get(step * 10, [])
            if disturbed:
                early = by_end.get(step * 10 + 10, []) if chance.random() < 0.3 else []
                rows = [*rows, *chance.sample(seen, min(len(seen), 2)), *early]
                chance.shuffle(rows)
                if step in restarts:
                    store = WindowStore(store.keep, store.snapshot())
                    group = AlertGroup(group_of(text), group.snapshot())
                for row in rows:
                    store.add("", batch_of([row]))
                seen += rows
            elif rows:
                store.add("", batch_of(rows))
            ids += [event.id for event in group.evaluate(store, (START_S + step * 10) * S)]
            store.forget((START_S + step * 10) * S)
        return ids

    assert play(disturbed=True) == play(disturbed=False)
