"""The rows that rules look back at, and aggregates of them, beside a second implementation in plain Python."""

# ruff: noqa: E501 - tables

from math import isclose, isnan
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting import rules, select
from tailrace_flows.core.alerting.rules import AlertGroup, Compared, Comparison, keep_of
from tailrace_flows.core.alerting.select import Selector, joined
from tailrace_flows.core.alerting.store import Keep, MetricRows, WindowStore
from tailrace_schemas.config import ConfigError, parse_duration
from tailrace_schemas.config.aggregate import Aggregate
from tailrace_schemas.config.matcher import matchers_of
from tailrace_schemas.config.rules import RuleGroup
from tailrace_schemas.samples import KINDS, Series

from tests.flows.alerting.rows import Row, S, batch_of, group_of, latest, slow_values

GAUGE = Series("g", "gauge", "", (("host", "a"),))
ALL = frozenset(KINDS)
TIMES = range(60 * S, 81 * S, 10 * S)


def gauge(end_s: int, value: float, version: int = 0, host: str = "a", service: str = "s") -> Row:
    return Row(service, GAUGE._replace(attributes=(("host", host),)), end_s, (value,), version)


def store_of(*rows: Row, keep_s: int = 600, sketches_s: int = 0) -> WindowStore:
    metrics = {row.series.metric for row in rows} | {"g"}
    store = WindowStore(dict.fromkeys(metrics, Keep(keep_s * S, sketches_s * S)))
    for row in rows:
        store.add("", batch_of([row]))
    return store


def values(
    store: WindowStore, how: str, after_s: int, until_s: int, by: tuple[str, ...] = ("host",)
) -> dict[str, float]:
    selector = Selector("g", (), by, ALL)
    found = selector.aggregate(
        store, Aggregate.parse(how), (until_s - after_s) * S, range(until_s * S, until_s * S + 1)
    )[0]
    groups = selector.groups(store)
    return {dict(groups.labels(number)).get("host", ""): value for number, value in enumerate(found.tolist())}


# -- the store -----------------------------------------------------------------------------------------


def test_windows_are_left_open() -> None:
    store = store_of(gauge(10, 1), gauge(20, 2), gauge(30, 4))
    assert values(store, "sum", 10, 30) == {"a": 6}
    assert values(store, "sum", 9, 29) == {"a": 3}
    assert values(store, "sum", 0, 100) == {"a": 7}
    assert isnan(values(store, "sum", 30, 100)["a"])
    assert isnan(values(store, "sum", -1, 9)["a"])
    assert isnan(values(store, "sum", -50, -20)["a"])


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_higher_version_replaces_and_a_lower_or_equal_one_is_ignored(order: tuple[int, int]) -> None:
    store = WindowStore({"g": Keep(600 * S)})
    for version in order:
        store.add("", batch_of([gauge(10, version * 5, version)]))
    assert values(store, "sum", 0, 10) == {"a": 10}
    assert store.add("", batch_of([gauge(10, 99, 2)])) == set()
    assert values(store, "sum", 0, 10) == {"a": 10}
    assert store.add("", batch_of([gauge(10, 99, 3)])) == {("g", 10 * S)}


def test_versions_in_one_batch_may_come_in_any_order() -> None:
    store = WindowStore({"g": Keep(600 * S)})
    store.add("", batch_of([gauge(10, 5, 3), gauge(10, 7, 9), gauge(10, 6, 4)]))
    assert values(store, "sum", 0, 10) == {"a": 7}


def test_only_the_live_stream_and_metrics_that_rules_ask_for_are_kept() -> None:
    store = store_of(gauge(10, 1))
    assert store.add("backfill", batch_of([gauge(20, 1)])) == set()
    other = Row("s", Series("other", "gauge"), 10, (1,))
    assert store.add("", batch_of([other, gauge(20, 1), other])) == {("g", 20 * S)}
    assert store.metric("other") is None


def test_a_revised_row_replaces_its_sketch() -> None:
    series = Series("g", "distribution", "s", (("host", "a"),))
    store = WindowStore({"g": Keep(600 * S, 600 * S)})
    other = series._replace(attributes=(("host", "b"),))
    for rows in (
        [Row("s", series, 10, (1.0,), 1), Row("s", other, 10, (50.0,), 1)],
        [Row("s", series, 10, (1.0, 100.0, 100.0), 3)],
        [Row("s", series, 10, (7.0, 7.0), 2)],
    ):
        store.add("", batch_of(rows))
        store.metric("g").sketches(10 * S)  # type: ignore[union-attr]  # compacted at any time
    found = values(store, "p50", 0, 10)
    assert found["a"] == pytest.approx(100, rel=0.006)
    assert found["b"] == pytest.approx(50, rel=0.006)


def test_sketches_of_different_scales_merge_at_the_coarsest() -> None:
    series = Series("g", "distribution", "s", (("host", "a"),))
    rows = [Row("s", series, 10, (1.0, 2.0, 30.0), scale=6), Row("s", series, 20, (0.1, -5.0), scale=3)]
    store = store_of(*rows, sketches_s=600)
    for how, expected in (
        ("p50", 1.0),
        ("p0", -5.0),
        ("p80", 2.0),
        ("fraction_below(1.5)", 0.6),
        ("fraction_above(1.5)", 0.4),
    ):
        assert values(store, how, 0, 20)["a"] == pytest.approx(expected, rel=0.05), how
    for how, expected in (("min", -5.0), ("max", 30.0), ("count", 5)):
        assert values(store, how, 0, 20)["a"] == expected


def test_rows_and_series_that_nobody_looks_back_at_are_forgotten() -> None:
    store = WindowStore({"g": Keep(60 * S, 30 * S)})
    for end_s in range(10, 2010, 10):
        rows = [Row("s", Series("g", "distribution", "", (("host", f"h{end_s // 100}"),)), end_s, (1.0,))]
        store.add("", batch_of(rows))
        store.forget(end_s * S)
    metric = store.metric("g")
    assert metric is not None
    assert metric.windows <= 16
    assert len(metric.series) <= 3
    assert len(metric._sketches) == 3
    assert len(store.snapshot()) < 10_000
    assert len(store.label("host").values) < 2000
    store.forget(10_000 * S)
    assert (metric.windows, metric.series) == (0, [])
    store.add("", batch_of([gauge(20_000, 1)]))
    assert values(store, "sum", 19_000, 20_000) == {"a": 1}


def test_label_values_that_are_gone_are_forgotten() -> None:
    store = WindowStore({"g": Keep(60 * S), "h": Keep(60 * S)})
    selectors = [Selector(metric, (), ("host",), ALL) for metric in ("g", "h")]
    for turn in range(40):
        end_s = 10 + turn * 100
        rows = [gauge(end_s, 1, host=f"h{turn}-{number}") for number in range(100)]
        store.add("", batch_of(rows))
        store.add("", batch_of([row._replace(series=row.series._replace(metric="h")) for row in rows[:1]]))
        store.forget(end_s * S)
        sets, (first, second) = joined([selector.groups(store) for selector in selectors])
        assert sets.labels(int(second[-1])) in {sets.labels(int(number)) for number in first}
    assert len(store.label("host").values) < 2500


def test_a_clock_that_is_far_off_costs_no_memory_and_is_counted() -> None:
    store = store_of(gauge(1_000_000, 1))
    store.add("", batch_of([gauge(4_000_000_000, 1), gauge(10, 1), gauge(1_000_010, 2)]))
    assert store.refused == 2
    assert values(store, "sum", 0, 2_000_000) == {"a": 3}
    metric = store.metric("g")
    assert metric is not None
    assert metric.windows == 2


def test_a_service_that_is_hours_behind_keeps_its_place() -> None:
    store = store_of(gauge(36_000, 1), gauge(10, 5, service="late"))
    assert values(store, "sum", 0, 10) == {"a": 5}
    assert values(store, "sum", 35_990, 36_000) == {"a": 1}


def test_a_snapshot_is_independent_and_goes_on() -> None:
    store = store_of(gauge(10, 1), gauge(20, 2, host="b"))
    state = store.snapshot()
    store.add("", batch_of([gauge(20, 9, 7)]))
    again = WindowStore(store.keep, state)
    assert values(again, "sum", 0, 20) == {"a": 1, "b": 2}
    again.add("", batch_of([gauge(20, 4, host="a"), gauge(30, 8, host="c"), gauge(10, 7, host="a")]))
    assert values(again, "sum", 0, 30) == {"a": 5, "b": 2, "c": 8}
    with pytest.raises(ValueError, match="has format 0, this Tailrace reads 1"):
        WindowStore({}, b"\x80\x04K\x00\x85\x94.")


def test_what_has_not_changed_is_not_packed_again() -> None:
    store = store_of(gauge(10, 1), Row("s", Series("h", "gauge"), 10, (1,)), keep_s=60)
    kept = {name: store.metric(name).packed() for name in "gh"}  # type: ignore[union-attr]  # both are there
    store.snapshot()
    store.add("", batch_of([gauge(20, 2)]))
    assert store.metric("h").packed() is kept["h"]  # type: ignore[union-attr]
    assert values(WindowStore(store.keep, store.snapshot()), "sum", 0, 20) == {"a": 3}
    for end_s in range(1010, 1110, 10):  # rows are dropped, and none comes
        store.add("", batch_of([gauge(end_s, 1)]))
    state = store.snapshot()
    store.forget(1100 * S)
    assert len(store.snapshot()) < len(state)


def test_a_metric_that_no_rule_asks_for_any_more_is_dropped() -> None:
    store = store_of(gauge(10, 1))
    store.keep = {}
    assert store.metric("g") is None
    store.forget(10 * S)


def test_a_rule_over_a_hundred_thousand_series_makes_objects_of_those_past_the_threshold_alone() -> None:
    many = 100_000
    batch = batch_of([gauge(10, 0.5)])
    columns = {name: batch.column(name).take([0] * many) for name in batch.schema.names}
    hosts = [[("host", str(number))] for number in range(many)]
    columns["series_id"] = pa.array(np.arange(many, dtype=np.uint64))
    columns["attributes"] = pa.array(hosts, batch.schema.field("attributes").type)
    columns["sum"] = pa.array(np.arange(many, dtype=np.float64))
    rule = f"{{alert: R, metric: g, aggregate: mean, by: [host], op: gt, threshold: {many - 3}}}"
    group = AlertGroup(group_of(f"groups: [{{name: g, rules: [{rule}]}}]"))
    store = WindowStore(keep_of(group.rules.values()))
    store.add("", pa.record_batch(columns, schema=batch.schema))
    events = group.evaluate(store, 10 * S)
    assert [event.alert and event.alert.labels for event in events] == [{"host": "99998"}, {"host": "99999"}]


# -- beside the second implementation ------------------------------------------------------------------

ATTRIBUTES = (
    (),
    (("host", "a"),),
    (("host", "b"),),
    (("host", "a"), ("route", "/x")),
    (("route", "/y"),),
    (("host", ""),),
)
NUMBER = st.sampled_from((0.0, 0.25, 1.0, 2.0, 3.0, 100.0, 1e-3, 1e9))
SIGNED = NUMBER | NUMBER.map(lambda value: -value)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    kind = draw(st.sampled_from(KINDS))
    series = Series(draw(st.sampled_from("mn")), kind, "", draw(st.sampled_from(ATTRIBUTES)))
    end_s = draw(st.sampled_from((10, 20, 30, 40, 50, 60, 400, 1000)))
    number = NUMBER if kind in ("counter", "event") else SIGNED
    drawn: tuple[float | None, ...]
    if kind == "cumulative":
        drawn = (draw(st.none() | NUMBER), draw(NUMBER))
    else:
        drawn = tuple(draw(st.lists(number, min_size=1, max_size=4)))
    return Row(
        draw(st.sampled_from(("s", "t"))),
        series,
        end_s,
        drawn,
        draw(st.integers(1, 3)),
        draw(st.sampled_from((6, 6, 4))),
    )


ROWS = st.lists(rows(), max_size=30, unique_by=lambda row: (row.service, row.series, row.end_s, row.version))
AGGREGATES = (
    "count", "sum", "min", "max", "mean", "last", "increase", "rate", "p0", "p50", "p99.9", "p100", "fraction_above(2)",
    "fraction_below(2)", "fraction_above(-2)", "predict_linear(1h)",
)  # fmt: skip
WHERE = st.sampled_from(
    ("", "host: a", "host: '!=a'", "host: '=~[ab]'", "route: '!~/x', host: '=~.*'", "service: s", "host: ''")
)
BY = st.sampled_from(("", "host", "service", "host, service", "route, host"))


def query(aggregate: str, metric: str, where: str, kind: str) -> str:
    return f"{{metric: {metric}, aggregate: '{aggregate}', where: {{{where}}}{kind}}}"


QUERY = st.builds(
    query,
    st.sampled_from(AGGREGATES),
    st.sampled_from("mn"),
    WHERE,
    st.sampled_from(("", "", ", kind: distribution", ", kind: gauge")),
)


@st.composite
def groups(draw: st.DrawFn) -> RuleGroup:
    window = draw(st.sampled_from(("20s", "30s", "1m", "15m")))
    queries = f"a: {draw(QUERY)}" + (f", b: {draw(QUERY)}" if draw(st.booleans()) else "")
    value = "a - 2 * b" if "b: {" in queries else "a"
    rule = f"{{alert: R, queries: {{{queries}}}, value: {value}, window: {window}, where: {{{draw(WHERE)}}}, by: [{draw(BY)}], op: ne, threshold: -7.7}}"
    return group_of(f"groups: [{{name: g, rules: [{rule}]}}]")


def tried(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Without what the configuration refuses: an aggregate of a kind that has none, matchers that contradict."""

    @st.composite
    def drawn(draw: st.DrawFn) -> Any:
        try:
            return draw(strategy)
        except ConfigError:
            reject()

    return drawn()


@settings(max_examples=120, deadline=None)
@given(
    tried(groups()),
    ROWS,
    st.sampled_from((30, 60, 65, 400, 450, 1000)),
    st.randoms(use_true_random=False),
    st.integers(1, 6),
)
def test_values_are_those_of_the_slow_way_however_rows_came(
    group: RuleGroup, given_rows: list[Row], t_s: int, chance: Any, parts: int
) -> None:
    (rule,) = group.rules
    evaluated = AlertGroup(group)
    comparison = evaluated.rules["R"]._comparison
    assert isinstance(comparison, Comparison)
    store = WindowStore(keep_of(evaluated.rules.values()))
    shuffled = [*given_rows, *given_rows[::3]]
    chance.shuffle(shuffled)
    for number in range(parts):
        part = shuffled[number::parts]
        for service in ("s", "t"):
            store.add("", batch_of([row for row in part if row.service == service]))
        if number == parts // 2:
            store = WindowStore(store.keep, store.snapshot())
            comparison.evaluate(store, t_s * S)  # reading changes nothing
        store.forget(min(t_s, 60) * S)
    ((sets, found, _, _, known, *_), _) = comparison.evaluate(store, t_s * S)
    expected = slow_values(rule, int(group.interval_s), latest(given_rows), t_s)
    got = {sets.labels(number): found[0, number] for number in range(len(sets)) if known[0, number]}
    assert set(got) == set(expected)
    for labels, of_queries in expected.items():
        value = of_queries["a"] - 2 * of_queries["b"] if "b" in of_queries else of_queries["a"]
        scale = max(abs(one) for one in of_queries.values())
        assert isclose(value, got[labels], rel_tol=1e-9, abs_tol=1e-6 * scale) or (isnan(value) and isnan(got[labels]))


@settings(max_examples=60, deadline=None)
@given(
    tried(groups()), ROWS, st.sampled_from(("10s", "20s", "1m")), st.integers(1, 40), st.sampled_from((1, 40, 1 << 17))
)
def test_times_that_are_worked_out_together_have_the_values_of_each_alone(
    group: RuleGroup, given_rows: list[Row], interval: str, times: int, cells: int
) -> None:
    """To the last bit: else what an alert says would depend on how rows were cut into batches."""
    group = group.model_copy(update={"interval_s": parse_duration(interval)})
    alone, together = AlertGroup(group), AlertGroup(group)
    store = WindowStore(keep_of(alone.rules.values()))
    store.add("", batch_of(given_rows))
    step_us = alone.interval_us
    until_us = 20 * S // step_us * step_us + times * step_us
    comparisons = [one.rules["R"]._comparison for one in (alone, together)]
    before, rules.CELLS = rules.CELLS, cells
    try:
        for t_us in range(until_us - (times - 1) * step_us, until_us + 1, step_us):
            one, other = (
                comparison.evaluate(store, t_us, until)  # type: ignore[union-attr]  # no rule is about absence
                for comparison, until in zip(comparisons, (0, until_us), strict=True)
            )
            for name in [name for name in Compared._fields[1:] if getattr(one[0], name) is not None]:
                expected, got = (np.asarray(getattr(found, name)[number]) for found, number in (one, other))
                assert np.array_equal(expected, got, equal_nan=name == "value"), (name, t_us)
    finally:
        rules.CELLS = before


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-400, 400)), min_size=1, max_size=60))
def test_buckets_are_numbered_the_same_in_an_array_and_by_sorting(buckets: list[tuple[int, int]]) -> None:
    keys = np.array([group * 801 + code + 400 for group, code in buckets])
    dense = select._distinct(keys, 4 * 801)
    by_sorting = select._distinct(keys, select._DENSE_MAX + 1)
    assert [one.tolist() for one in dense] == [one.tolist() for one in by_sorting]


def test_selectors_of_other_metrics_have_no_groups() -> None:
    store = store_of(gauge(10, 1))
    for selector in (Selector("none", (), ("host",), ALL), Selector("g", matchers_of({"host": "z"}), ("host",), ALL)):
        assert len(selector.groups(store)) == 0
        for how in ("mean", "last", "p50", "increase", "predict_linear(1h)"):
            assert selector.aggregate(store, Aggregate.parse(how), 60 * S, TIMES).shape == (3, 0)
        assert selector.present(store, 60 * S, TIMES).shape == (3, 0)


def test_an_empty_metric_has_nothing() -> None:
    metric = MetricRows()
    assert metric.span(0, 100) == slice(0, 0)
    assert metric.column("count") is None
