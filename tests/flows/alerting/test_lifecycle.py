"""The life of alerts: published cases of Prometheus, scenario tables, and what must hold in any history."""

from collections import defaultdict
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting import lifecycle
from tailrace_flows.core.alerting.dispatch import Dispatcher
from tailrace_flows.core.alerting.evaluator import Findings
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts, describe
from tailrace_flows.core.alerting.responder import Response
from tailrace_flows.outputs import EventsSink, NotificationsSink
from tailrace_schemas.alerts import (
    AlertEvent,
    Command,
    CommandKind,
    Operator,
    Severity,
    Status,
    Threshold,
    Transition,
    time_of,
)
from tailrace_schemas.cloudevents import event_message, notification_message, read_event, read_notification
from tailrace_sinks.kafka import KafkaWriter

from tests.data import reference
from tests.flows.alerting.dispatching import config_of
from tests.flows.alerting.scenario import Player, S, labels_of, play

CONDITIONS = {
    "value < 100": lambda value: value < 100,
    "value > 50": lambda value: value > 50,
    "value == 0": lambda value: value == 0,
}


@pytest.mark.parametrize("case", reference("alert_state"))
def test_states_are_those_of_prometheus(case: dict[str, Any]) -> None:
    spec = AlertSpec(
        "Rule",
        "group/Rule",
        Severity.WARNING,
        for_us=case["for_s"] * S,
        keep_firing_for_us=case["keep_firing_for_s"] * S,
    )
    condition = CONDITIONS[case["condition"]]
    series = {name: dict(points) for name, points in case["series"].items()}
    expected = dict(case["expected"])
    begins = dict(case.get("for_state_start_s", []))
    step = case.get("eval_every_s")
    times = range(0, max(expected) + 1, step) if step else sorted(expected)
    alerts = RuleAlerts(spec)
    for t in times:
        values = {labels_of(name): float(points[t]) for name, points in series.items() if t in points}
        alerts.evaluate(t * S, {labels: value for labels, value in values.items() if condition(value)})
        active = {labels_of(alert.labels["series"]) for alert in alerts.alerts()}
        found = {dict(labels)["series"]: "firing" if labels in active else "pending" for labels in alerts.held()}
        if t in expected:
            assert found == expected[t], t
        if t in begins:
            for alert in alerts.alerts():
                assert alert.labels["series"] != "0" or alert.timestamp == time_of(begins[t] * S)


SCENARIOS = {
    "without `for` it is active at once, and resolved when the condition ends": """
        for 0s
         0s | a=91      | active a
        10s | a=95 b=99 | active b
        20s | b=99      | resolved a
        30s |           | resolved b
        40s | a=91      | active a
    """,
    "a pending alert that ends is dropped without an event, and begins anew": """
        for 1m
         0s  | a=91 |
        30s  |      |
         1m  | a=91 |
         1m59s | a=91 |
         2m  | a=91 | active a
    """,
    "an acknowledged alert stays one alert until it ends by itself": """
        for 0s
         0s | a=91  | active a
         5s | ack a | acknowledged a
        10s | a=91  |
        20s | a=99  |
        30s |       | resolved a
        40s | a=91  | active a
    """,
    "keep_firing_for counts from the first absent evaluation and resets on return": """
        for 0s, keep_firing_for 1m
          0s | a=91 | active a
         30s |      |
         60s |      |
         80s | a=91 |
         90s |      |
        140s |      |
        150s |      | resolved a
    """,
    "between the thresholds an active alert stays, a pending one is dropped": """
        for 1m
         0s  | a=91 b=91 |
        30s  | a=91 b~75 |
         1m  | a=91 b=91 | active a
         2m  | a~75 b=91 | active b
         3m  | b~75      | resolved a
         4m  | a~75 b~75 |
         5m  |           | resolved b
    """,
    "holding ends the countdown of keep_firing_for": """
        for 0s, keep_firing_for 1m
          0s | a=91 | active a
         30s |      |
         60s | a~75 |
         90s |      |
        149s |      |
        150s |      | resolved a
    """,
    "no data freezes: neither begins nor ends anything": """
        for 1m
         0s  | a=91 b=91 |
         1m  | a=91 b=91 | active a, active b
         2m  | a=91 b?   |
        30m  | a=91 b?   |
        31m  | a=91 b=91 |
        32m  | ?         |
        33m  | b=91      | resolved a
    """,
    "`for` counts measured time alone": """
        for 1m
         0s  | a=91 |
        30s  | a=91 |
        10m  | a?   |
        10m10s | a=91 |
        10m29s | a=91 |
        10m30s | a=91 | active a
    """,
    "keep_firing_for counts measured time alone": """
        for 0s, keep_firing_for 1m
          0s | a=91 | active a
         30s |      |
         10m | a?   |
         10m30s |   |
         11m |      | resolved a
    """,
    "resolved by command while the condition holds: quiet until it has been false once": """
        for 0s
         0s | a=91      | active a
         5s | resolve a | resolved a
        10s | a=91      |
        20s | a~75      |
        30s | a=91      |
        40s | a?        |
        50s | a=91      |
        60s |           |
        70s | a=91      | active a
    """,
    "a restart goes on where it was": """
        for 1m
         0s  | a=91 b=91 |
        30s  | restart   |
        60s  | a=91      | active a
        61s  | ack a     | acknowledged a
        62s  | restart   |
        70s  | a=91 b=91 |
        80s  | restart   |
        90s  | resolve a | resolved a
        91s  | restart   |
       100s  | a=91      |
       110s  |           |
       120s  | a=91      |
       180s  | a=91      | active a
    """,
    "what is active is sent again, with its last transition": """
        for 0s
         0s | a=91 b=91 | active a, active b
         5s | ack a     | acknowledged a
         6s | ack a     | rejected a: ann acknowledged it at 1970-01-01 00:00:05 UTC
         7s | republish | acknowledged a, active b
         8s | restart   |
         9s | republish | acknowledged a, active b
        10s | a=91      | resolved b
        11s | republish | acknowledged a
    """,
    "a command is carried out once, or answered with the reason why not": """
        for 0s
         0s | ack a     | unknown
        10s | a=91      | active a
        11s | ack a     | acknowledged a
        12s | again     |
        13s | restart   |
        14s | again     |
        15s | note a    | annotated a
        20s |           | resolved a
        21s | ack a     | rejected a: the alert was resolved at 1970-01-01 00:00:20 UTC
        22s | resolve a | rejected a: the alert was resolved at 1970-01-01 00:00:20 UTC
        23s | unmark a  | rejected a: it is not marked as a false positive
        24s | mark a    | marked a
        25s | mark a    | rejected a: it is marked so already
        26s | unmark a  | marked a
        27s | note a    | annotated a
    """,
    "a command may name an alert of the past while another is active": """
        for 0s
         0s | a=91      | active a
         1s | resolve a | resolved a
         2s | resolve a | rejected a: the alert was resolved by ann at 1970-01-01 00:00:01 UTC
        10s |           |
        20s | a=91      | active a
        21s | ack a     | acknowledged a
    """,
    "alerts can be marked for a week after their end": """
        for 0s
          0s | a=91 | active a
         10s |      | resolved a
          7d |      |
          7d | mark a | marked a
          7d11s |   |
          8d | mark a | unknown
    """,
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str) -> None:
    play(SCENARIOS[name])


# -- what an event says --------------------------------------------------------------------------------


SPEC = AlertSpec(
    name="HostHighCpu",
    source="host/HostHighCpu",
    severity=Severity.WARNING,
    description="CPU of {host.name} is at {value:.0%}",
    metric="system.cpu.utilization",
    threshold=Threshold(operator=Operator.GT, value=0.8, duration=60),
    for_us=60 * S,
    tags=("host",),
)
HOST = (("host.name", "web-1"), ("service", "host"))


def test_an_event_tells_all_that_001_wants_to_know() -> None:
    alerts = RuleAlerts(SPEC)
    alerts.evaluate(0, {HOST: 0.85})
    (active,) = alerts.evaluate(60 * S, {HOST: 0.93})
    assert active.alert is not None
    assert active.model_dump(mode="json") == {
        "id": active.id,
        "transition": "active",
        "time": "1970-01-01T00:01:00Z",
        "cause": "window:60000000",
        "sequence": 0,
        "reason": "",
        "alert": {
            "id": active.alert.id,
            "name": "HostHighCpu",
            "description": "CPU of web-1 is at 93%",
            "severity": "warning",
            "status": "active",
            "source": "host/HostHighCpu",
            "metric": "system.cpu.utilization",
            "labels": {"host.name": "web-1", "service": "host"},
            "threshold": {"operator": "gt", "value": 0.8, "duration": 60},
            "current_value": 0.93,
            "timestamp": "1970-01-01T00:00:00Z",
            "acknowledged_at": None,
            "acknowledged_by": None,
            "resolved_at": None,
            "resolved_by": None,
            "false_positive": None,
            "tags": ["host"],
            "annotations": [],
        },
    }
    acknowledge = Command(
        id="c1",
        kind=CommandKind.ACKNOWLEDGE,
        alert_id=active.alert.id,
        time=time_of(61 * S),
        author="ann",
        message="mine",
    )
    (acknowledged,) = alerts.command(acknowledge) or []
    alerts.evaluate(70 * S, {HOST: 0.99})
    resolve = Command(
        id="c2",
        kind=CommandKind.RESOLVE,
        alert_id=active.alert.id,
        time=time_of(75 * S),
        author="bob",
        message="killed it",
    )
    (resolved,) = alerts.command(resolve) or []
    assert [one.sequence for one in (active, acknowledged, resolved)] == [0, 1, 2]
    assert [one.cause for one in (acknowledged, resolved)] == ["command:c1", "command:c2"]
    assert resolved.alert is not None
    found = resolved.alert
    assert (found.status, found.current_value, found.description) == (Status.RESOLVED, 0.99, "CPU of web-1 is at 99%")
    assert (found.acknowledged_at, found.acknowledged_by) == (time_of(61 * S), "ann")
    assert (found.resolved_at, found.resolved_by) == (time_of(75 * S), "bob")
    assert [(one.id, one.author, one.message, one.type) for one in found.annotations] == [
        ("c1", "ann", "mine", "note"),
        ("c2", "bob", "killed it", "resolution"),
    ]


def test_a_rule_that_is_removed_resolves_its_alerts() -> None:
    alerts = RuleAlerts(SPEC._replace(for_us=0))
    alerts.evaluate(0, {HOST: 0.9})
    (event,) = alerts.close(10 * S, "the rule was removed")
    assert (event.transition, event.reason) == (Transition.RESOLVED, "the rule was removed")


def test_a_changed_rule_keeps_what_is_active() -> None:
    before = RuleAlerts(SPEC._replace(for_us=0))
    (event,) = before.evaluate(0, {HOST: 0.9})
    after = RuleAlerts(SPEC._replace(severity=Severity.CRITICAL, for_us=3600 * S), before.snapshot())
    assert after.evaluate(10 * S, {HOST: 0.9}) == []
    (resolved,) = after.evaluate(20 * S, {})
    assert event.alert is not None
    assert resolved.alert is not None
    assert resolved.alert.id == event.alert.id


def test_time_cannot_go_back() -> None:
    alerts = RuleAlerts(SPEC)
    alerts.evaluate(10 * S, {})
    with pytest.raises(ValueError, match="was evaluated at 10000000 us already, now at 10000000 us"):
        alerts.evaluate(10 * S, {})


def test_state_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="the state of host/HostHighCpu has format 0, this Tailrace reads 1"):
        RuleAlerts(SPEC, (0, None, [], [], ()))


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_value_that_json_cannot_say_is_none(value: float) -> None:
    (event,) = RuleAlerts(SPEC._replace(for_us=0)).evaluate(0, {HOST: value})
    assert event.alert is not None
    assert event.alert.current_value is None
    assert AlertEvent.model_validate_json(event.model_dump_json()) == event


def test_annotations_are_bounded() -> None:
    alerts = RuleAlerts(SPEC._replace(for_us=0))
    (event,) = alerts.evaluate(0, {HOST: 0.9})
    assert event.alert is not None
    for number in range(lifecycle.MAX_ANNOTATIONS + 1):
        note = Command(
            id=f"c{number}",
            kind=CommandKind.ANNOTATE,
            alert_id=event.alert.id,
            time=time_of(S),
            author="a",
            message="x",
        )
        (answer,) = alerts.command(note) or []
    assert answer.transition is Transition.REJECTED
    assert answer.reason == "the alert has 100 annotations, the most it takes"


@pytest.mark.parametrize("char", ["x", "\u65e5", "\U0001f4a3", '"', "\n", "\x01"])
def test_an_alert_fits_into_its_messages_whatever_was_written_on_it(char: str) -> None:
    """With the longest texts that labels and commands take, whatever they become in JSON; it can still be resolved."""
    label = char * (16_000 // len(char.encode()))
    labels = (("a", label), ("service", char * 250))
    template = "{a}" * 500
    alerts = RuleAlerts(SPEC._replace(for_us=0, description=template, tags=(char * 200,) * 10))
    (first,) = alerts.evaluate(0, {labels: 0.9})
    assert first.alert is not None
    command = partial(Command, alert_id=first.alert.id, time=time_of(S), author=char * 200)
    events = [first]
    while events[-1].transition is not Transition.REJECTED:
        note = command(id=f"c{len(events)}", kind=CommandKind.ANNOTATE, message=char * 10_000)
        events += alerts.command(note) or []
    assert "no room for it" in events[-1].reason
    events += alerts.command(command(id="ack", kind=CommandKind.ACKNOWLEDGE)) or []
    events += alerts.command(command(id="end", kind=CommandKind.RESOLVE)) or []
    assert [event.transition for event in events[-3:]] == [
        Transition.REJECTED, Transition.ACKNOWLEDGED, Transition.RESOLVED,
    ]  # fmt: skip
    topic: Any = KafkaWriter({"bootstrap.servers": "127.0.0.1:1", "log_level": 0})  # checks sizes itself
    sink = EventsSink(lambda: topic, "alerts").build_part("alerts", "00", None)
    sink.write_batch([Findings(events)])
    for event in events:
        assert read_event(event_message(event).value) == event
    dispatcher = Dispatcher(config_of("routing: {receiver: mail, group_by: ['...']}"))
    dispatcher.on_event(events[-2], 0)
    (told,) = dispatcher.on_time(30 * S)
    responses = NotificationsSink(lambda: topic, "notifications", "alerts").build_part("responses", "00", None)
    responses.write_batch([Response([told])])
    assert read_notification(notification_message(told).value) == told


def test_an_annotation_without_words_is_rejected() -> None:
    alerts = RuleAlerts(SPEC._replace(for_us=0))
    (event,) = alerts.evaluate(0, {HOST: 0.9})
    assert event.alert is not None
    note = Command(id="c", kind=CommandKind.ANNOTATE, alert_id=event.alert.id, time=time_of(S), author="a")
    (answer,) = alerts.command(note) or []
    assert (answer.transition, answer.reason) == (Transition.REJECTED, "an annotation needs a message")


def test_a_storm_s_resolved_alerts_do_not_pile_up() -> None:
    alerts = RuleAlerts(SPEC._replace(for_us=0))
    many = {(("host.name", f"web-{number}"),): 0.9 for number in range(1000)}
    events = alerts.evaluate(0, many)
    assert len(events) == 1000
    assert len(alerts.evaluate(10 * S, {})) == 1000
    alerts.evaluate(20 * S, {})
    answered = [
        alerts.command(
            Command(id="c", kind=CommandKind.MARK, alert_id=event.alert.id, time=time_of(21 * S), author="a")
        )
        for event in events
        if event.alert is not None
    ]
    assert sum(answer is not None for answer in answered) == lifecycle.RESOLVED_KEPT


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{value}", "0.935"),
        ("{value:.1%} of {host.name}", "93.5% of web-1"),
        ("{{{service}}}", "{host}"),
        ("{host.name:>8}|", "   web-1|"),
        ("[{region}]", "[]"),
    ],
)
def test_descriptions(template: str, text: str) -> None:
    assert describe(template, HOST, 0.935) == text


def test_a_description_of_an_unknown_value_says_so() -> None:
    assert describe("CPU of {host.name}: {value:.0%}", HOST, float("nan")) == "CPU of web-1: no data"


@pytest.mark.parametrize("template", ["{", "}", "{value:q}", "{value!r}", "{service:.0%}"])
def test_a_description_that_cannot_be_filled_in_is_a_value_error(template: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        describe(template, HOST, 0.5)


def test_a_description_reaches_nothing_but_its_names() -> None:
    assert describe("{value.real} {value.__class__} {0}", HOST, 0.5) == "  "


# -- properties ----------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")
STATE = st.sampled_from(("past", "past", "holding", "ended", "silent"))
EVALUATION = st.tuples(st.integers(1, 120), st.fixed_dictionaries(dict.fromkeys(NAMES, STATE)))
COMMAND = st.tuples(st.sampled_from(("ack", "resolve", "note", "mark", "unmark")), st.sampled_from(NAMES))
HISTORY = st.lists(EVALUATION | COMMAND, max_size=40)
SPECS = st.builds(
    lambda wait, keep: AlertSpec("R", "g/R", Severity.ERROR, for_us=wait * S, keep_firing_for_us=keep * S),
    st.sampled_from((0, 0, 60, 300)),
    st.sampled_from((0, 0, 60, 300)),
)


def run(
    spec: AlertSpec,
    history: list[Any],
    *,
    restarts: frozenset[int] = frozenset(),
    repeats: frozenset[int] = frozenset(),
) -> Player:
    """Plays a history; `restarts` are steps before which there is a restart, `repeats` commands delivered again."""
    player = Player(spec)
    t_us = 0
    given: list[Command] = []
    for number, step in enumerate(history):
        if number in restarts:
            player.restart()
        if isinstance(step[0], int):
            t_us += step[0] * S
            states = step[1]
            player.evaluate(
                t_us,
                {name: 1.0 for name in NAMES if states[name] == "past"},
                {name: 0.5 for name in NAMES if states[name] == "holding"},
                {name for name in NAMES if states[name] == "silent"},
            )
        else:
            player.command(t_us, *step)
            assert player.last is not None
            given.append(player.last)
        if number in repeats:
            for command in given[-5:]:
                assert player.alerts.command(command) in ([], None)
    return player


@settings(deadline=None)
@given(SPECS, HISTORY, st.frozensets(st.integers(0, 40)), st.frozensets(st.integers(0, 40)))
def test_restarts_and_repeated_commands_change_nothing(
    spec: AlertSpec, history: list[Any], restarts: frozenset[int], repeats: frozenset[int]
) -> None:
    undisturbed = run(spec, history)
    other = run(spec, history, restarts=restarts, repeats=repeats)
    assert other.events == undisturbed.events
    assert other.alerts.alerts() == undisturbed.alerts.alerts()
    assert other.alerts.republish() == undisturbed.alerts.republish()


@settings(deadline=None)
@given(SPECS, HISTORY)
def test_whatever_happens_an_alert_lives_once_and_ends_only_with_its_condition_or_by_command(
    spec: AlertSpec, history: list[Any]
) -> None:
    lives: dict[str, list[AlertEvent]] = defaultdict(list)
    events = run(spec, history).events
    assert len({event.id for event in events}) == len(events)
    states: dict[int, dict[str, str]] = {}
    t_us = 0
    for step in history:
        if isinstance(step[0], int):
            t_us += step[0] * S
            states[t_us] = step[1]
    live: dict[str, str] = {}  # series -> id of the alert that is active or acknowledged
    quiet: set[str] = set()
    at = iter(sorted(states))
    passed = -1
    for event in events:
        assert event.alert is not None
        series = event.alert.labels["series"]
        now_us = int(event.time.timestamp()) * S
        while passed < now_us:  # the condition ended at some evaluation since: it may fire again
            passed = next(at)
            quiet -= {name for name in quiet if states[passed][name] == "ended" and passed <= now_us}
        lives[event.alert.id].append(event)
        assert [one.sequence for one in lives[event.alert.id]] == list(range(len(lives[event.alert.id])))
        if event.transition is Transition.ACTIVE:
            assert series not in live, "it fires anew while it is active or acknowledged"
            assert series not in quiet, "a person resolved it, and its condition never ended"
            assert states[now_us][series] == "past"
            live[series] = event.alert.id
        elif event.transition is Transition.RESOLVED:
            assert live.pop(series) == event.alert.id
            if event.alert.resolved_by is None:
                assert states[now_us][series] == "ended", "it is resolved while its condition holds, or is not known"
            else:
                quiet.add(series)


@settings(deadline=None)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(NAMES, STATE)), max_size=30))
def test_without_delays_the_active_set_is_what_the_last_known_conditions_say(steps: list[dict[str, str]]) -> None:
    player = Player(AlertSpec("R", "g/R", Severity.ERROR))
    active: set[str] = set()
    for number, states in enumerate(steps):
        player.evaluate(
            number * 10 * S,
            {name: 1.0 for name in NAMES if states[name] == "past"},
            {name: 0.5 for name in NAMES if states[name] == "holding"},
            {name for name in NAMES if states[name] == "silent"},
        )
        active |= {name for name in NAMES if states[name] == "past"}
        active -= {name for name in NAMES if states[name] == "ended"}
        assert {alert.labels["series"] for alert in player.alerts.alerts()} == active


@pytest.mark.parametrize("for_s", [300, 3 * 24 * 3600])
def test_what_vanishes_while_it_is_pending_is_let_go_after_a_day_and_does_not_fill_the_rule(
    monkeypatch: pytest.MonkeyPatch, for_s: int
) -> None:
    monkeypatch.setattr(lifecycle, "MAX_ALERTS", 100)
    alerts = RuleAlerts(AlertSpec("Crashes", "pods/Crashes", Severity.WARNING, for_us=for_s * S))
    kept_s = max(for_s, 24 * 3600)
    pods = 0
    for t_s in range(0, 10 * 24 * 3600, 3600):
        pods += 1
        new = labels_of(f"pod-{pods}")
        assert alerts.evaluate(t_s * S, {new: 1.0}, silent=set(alerts.held())) == []
        assert alerts.refused == 0
        alerts = RuleAlerts(alerts.spec, alerts.snapshot())
    gone_s = kept_s // 3600 + 1  # of each pod there are data once
    assert alerts.held() == [labels_of(f"pod-{number}") for number in range(pods - gone_s + 1, pods + 1)]


def test_what_has_no_data_for_less_than_a_day_is_pending_still_and_what_is_active_stays_so() -> None:
    alerts = RuleAlerts(AlertSpec("Crashes", "pods/Crashes", Severity.WARNING, for_us=60 * S))
    a, b = labels_of("a"), labels_of("b")
    alerts.evaluate(0, {b: 1.0})
    (event,) = alerts.evaluate(60 * S, {b: 1.0})
    alerts.evaluate(100 * S, {a: 1.0}, silent=True)
    day_s = 24 * 3600
    alerts.evaluate(day_s * S, {}, silent=True)
    assert alerts.held() == [b, a]
    (fired,) = alerts.evaluate((day_s + 60) * S, {a: 1.0}, silent=True)
    assert fired.alert is not None
    assert fired.alert.labels["series"] == "a"
    alerts.evaluate(30 * day_s * S, {}, silent=True)
    assert {one.id for one in alerts.alerts()} == {one.alert.id for one in (event, fired) if one.alert}


def test_a_rule_over_too_many_label_sets_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_ALERTS", 3)
    alerts = RuleAlerts(AlertSpec("Rule", "group/Rule", Severity.WARNING))
    many = {labels_of(name): 1.0 for name in "abcde"}
    assert [event.alert.labels["series"] for event in alerts.evaluate(0, many) if event.alert] == ["a", "b", "c"]
    assert alerts.refused == 2
    del many[labels_of("b")]  # makes room
    told = [
        (event.transition.value, event.alert.labels["series"]) for event in alerts.evaluate(10 * S, many) if event.alert
    ]
    assert told == [("resolved", "b"), ("active", "d")]
    assert alerts.refused == 1
    alerts.evaluate(20 * S, {})
    assert alerts.refused == 0
