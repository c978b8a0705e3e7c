"""One key of the evaluation: cuts, crashes and repetitions do not change what comes of the same rows."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.evaluator import EVALUATORS, STATE_VERSION, Evaluator, Findings
from tailrace_flows.core.alerting.told import standing_of, told_of
from tailrace_flows.core.alerting.units import plan
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.sealed import seal, unseal
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Transition, time_of
from tailrace_schemas.config import ConfigModel, load, record_of
from tailrace_schemas.rows import EVERY_SERVICE, WindowRows
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of

CPU = Series("cpu", "gauge", "1", (("host", "one"),))
RULES = """
groups:
- name: host
  rules:
  - {alert: Busy, metric: cpu, aggregate: mean, by: [service], op: gt, threshold: 0.9, for: 10s}
"""
PLAN = partial(plan, ("rules", "slo", "health"))
NUMBER = crc32(b"rule_group/host") % EVALUATORS
WALL_US = 10_000 * S
"""Wall time; the rows' times are unrelated, as in a backlog."""


def config_of(text: str) -> dict[str, ConfigModel]:
    return {record_of(item).key: item.model for item in load([("rules.yaml", text)]).items}


def block(end_s: int, value: float, service: str = "web", *, closes: bool = True) -> WindowRows:
    """The row of one window, and that the window is closed."""
    watermark_us = end_s * S if closes else UNKNOWN_US
    return WindowRows(service, "", 10, watermark_us, batch_of([Row(service, CPU, end_s, (value,))]))


def history(values: Sequence[float], service: str = "web") -> list[WindowRows]:
    return [block(10 * (number + 1), value, service) for number, value in enumerate(values)]


class World:
    """An evaluator that may crash: what came since its last snapshot comes again."""

    def __init__(self, config: Mapping[str, ConfigModel] | None = None, number: int | None = NUMBER) -> None:
        self.config = config_of(RULES) if config is None else dict(config)
        self.number = number
        self.now_us = WALL_US
        self.evaluator = Evaluator(number, PLAN, self.config, self.now_us)
        self.events: list[AlertEvent] = []
        self._since: list[WindowRows] = []
        self._state: bytes | None = None
        self.counts: dict[str, float] = {}

    def rows(self, blocks: Iterable[WindowRows]) -> None:
        """All that comes at about the same time."""
        for one in blocks:
            self._since.append(one)
            self._take(one)
        self._settle()

    def _settle(self) -> None:
        """While the evaluator listens who else is there, time goes on."""
        while self.evaluator.next_us(self.now_us) - self.now_us <= S:
            self.now_us += S
            self.found(self.evaluator.on_time(self.now_us))

    def found(self, findings: Findings) -> None:
        self.events += findings.events
        if findings.counters is not None:
            self.counts |= {row["name"]: row["value"] for row in findings.counters.to_pylist()}

    def _take(self, one: WindowRows) -> None:
        self.now_us += 1000
        self.found(self.evaluator.on_rows(one, self.now_us))

    def commit(self) -> None:
        self._state = self.evaluator.snapshot()
        self._since.clear()

    def crash(self, config: Mapping[str, ConfigModel] | None = None) -> None:
        if config is not None:
            self.config = dict(config)
        topic = tuple(self.events)
        if self._state is None:
            told = standing_of(topic)
            self.evaluator = Evaluator(self.number, PLAN, self.config, self.now_us, told=lambda _: told)
        else:
            self.evaluator = Evaluator.restored(PLAN, self.config, self.now_us, self._state, lambda _: told_of(topic))
        for one in self._since:
            self._take(one)
        self._settle()

    def lose(self, config: Mapping[str, ConfigModel] | None = None) -> None:
        """The recovery directory is lost, long after what came."""
        self._state = None
        self._since.clear()
        self.crash(config)

    def told(self) -> list[tuple[str, int]]:
        """Transition and time of each event, once by its id."""
        once = {one.id: one for one in self.events}
        return [(one.transition.value, round(one.time.timestamp())) for one in once.values()]


@pytest.mark.parametrize(
    "change", [("by: [service]", "by: [service, host.name]"), ("by: [service]", "by: []")], ids=["more", "fewer"]
)
@pytest.mark.parametrize("no_data", ["keep", "alert"])
def test_alerts_end_whose_rule_has_other_labels_now(change: tuple[str, str], no_data: str) -> None:
    rules = RULES.replace("for: 10s", f"for: 0s, no_data: {no_data}")
    world = World(config_of(rules))
    world.rows(history([0.5, 0.95, 0.95]))
    assert world.told() == [("active", 20)]
    (key,) = world.config
    (changed,) = config_of(rules.replace(*change)).values()
    world.found(world.evaluator.on_change(key, changed, world.now_us))
    assert world.told() == [("active", 20), ("resolved", 30)]
    assert world.events[-1].reason == "its rule has other labels now"
    world.rows([block(40, 0.95)])
    assert world.told()[2:] == [("active", 40)]
    assert world.events[-1].alert is not None
    assert world.events[-1].alert.labels == ({} if "[]" in change[1] else {"service": "web"})


LEFT_OUT = {
    "value": RULES,
    "alert": RULES.replace("for: 10s", "for: 0s, no_data: alert"),
    "absent": """
groups:
- name: host
  rules:
  - {alert: Silent, metric: cpu, op: absent, window: 30s, by: [service]}
""",
}


@pytest.mark.parametrize("rule", LEFT_OUT)
@pytest.mark.parametrize("crashes", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("where", ["!=web", "!~w.*", "=~shop"])
def test_alerts_end_that_their_rule_leaves_out_now(rule: str, where: str, *, crashes: bool) -> None:
    """Whether there are data of them or not; others of the rule stay."""
    world = World(config_of(LEFT_OUT[rule]))
    web, shop = history([0.95] * 40), history([0.95] * 40, "shop")
    if rule == "absent":
        nothing = [WindowRows(one, "", 10, 190 * S, batch_of([])) for one in ("web", "shop")]
        world.rows([*web[:3], *shop[:3], *nothing, *history([0.5] * 19, "other")])
    else:
        world.rows([one for pair in zip(web, shop, strict=True) for one in pair])
    active = {one.alert.labels["service"] for one in world.events if one.alert}
    assert active == {"web", "shop"}
    assert {one.transition for one in world.events} == {Transition.ACTIVE}
    world.commit()
    seen = len(world.events)
    (key,) = world.config
    changed = config_of(LEFT_OUT[rule].replace("by: [", f'where: {{service: "{where}"}}, by: ['))
    if crashes:
        world.crash(changed)
        world.found(world.evaluator.on_time(world.now_us))
    else:
        world.found(world.evaluator.on_change(key, changed[key], world.now_us))
    after = [one for one in world.events[seen:] if one.transition is Transition.RESOLVED]
    assert [one.alert and one.alert.labels["service"] for one in after] == ["web"]
    assert after[0].reason == "its rule leaves it out now"
    world.rows([block(410, 0.95), block(410, 0.95, "shop")])
    assert [one for one in world.events[seen:] if one.alert and one.alert.labels["service"] == "web"][-1] == after[0]


@pytest.mark.parametrize("when", ["while it runs", "while it was down", "killed after it"])
@pytest.mark.parametrize("value", [0.95, 0.5], ids=["goes on", "ends"])
def test_an_alert_takes_its_rule_s_new_severity_by_beginning_anew(value: float, when: str) -> None:
    """At once, since its condition has held; what is pending goes on, and so does what a person resolved."""
    rules = RULES.replace("for: 10s", "for: 30s")
    world = World(config_of(rules))
    web, shop, quiet = history([0.95] * 6), history([0.5] * 4 + [0.95] * 2, "shop"), history([0.95] * 6, "quiet")
    world.rows([one for several in zip(web, shop, quiet, strict=True) for one in several])
    (quiet_id,) = [one.alert.id for one in world.events if one.alert and one.alert.labels == {"service": "quiet"}]
    command = Command(id="1", kind=CommandKind.RESOLVE, alert_id=quiet_id, time=time_of(60 * S), author="ann")
    world.found(world.evaluator.on_command(command, world.now_us))
    world.commit()
    seen = len(world.events)
    changed = config_of(rules.replace("for: 30s", "for: 30s, severity: critical"))
    ((key, model),) = changed.items()
    if when == "while it was down":
        world.crash(changed)
        world.found(world.evaluator.on_time(world.now_us))
    else:
        for one in (model, world.config[key], model):  # as in no time: rolled back, and again
            world.found(world.evaluator.on_change(key, one, world.now_us))
    world.rows([block(end, value, one) for end in (70, 80) for one in ("web", "shop", "quiet")])
    if when == "killed after it":
        world.crash(changed)
        world.rows([block(90, value, one) for one in ("web", "shop", "quiet")])
    known = {one.id for one in world.events[:seen]}
    once = {one.id: one for one in world.events if one.alert and one.id not in known}
    told = [
        (one.alert.labels["service"], one.alert.severity.value, one.transition.value, one.time.timestamp(), one.reason)
        for one in once.values()
        if one.alert
    ]
    goes_on = [("web", "critical", "active", 70, ""), ("shop", "critical", "active", 80, "")]
    assert told == [
        ("web", "warning", "resolved", 60, "its rule has another severity now"),
        *(goes_on if value > 0.9 else []),
    ]
    ids = [one.alert.id for one in world.events if one.alert and one.alert.labels == {"service": "web"}]
    assert len(set(ids)) == (2 if value > 0.9 else 1)


def test_each_window_is_judged_when_all_services_have_closed_it() -> None:
    world = World()
    web, shop = history([0.5, 0.95, 0.95, 0.95]), history([0.5] * 4, "shop")
    world.rows([web[0], shop[0], *web[1:]])
    assert world.told() == []
    world.rows(shop[1:3])
    assert world.told() == [("active", 30)]


def test_a_clock_that_is_days_ahead_keeps_out_no_rows_of_others() -> None:
    world = World()
    start_s = WALL_US // S // 10 * 10
    ahead = block(start_s + 3 * 86_400, 0.5, "ahead")
    world.rows([ahead, *(block(start_s + end_s, 0.95) for end_s in (0, 10, 20, 30))])
    assert [transition for transition, _ in world.told()] == ["active"]
    assert world.counts["rows_of_the_future"] == 1


def test_where_all_clocks_are_days_ahead_of_the_host_s_their_rows_are_judged() -> None:
    world = World()
    first_s = WALL_US // S // 10 * 10 + 3 * 86_400
    for end_s in (0, 10, 20, 30):
        world.rows([block(first_s + end_s, 0.95)])
    assert [transition for transition, _ in world.told()] == ["active"]
    assert world.counts["rows_of_the_future"] == 1, "before anything is judged, the host's clock is all there is"


def test_the_first_rows_are_judged_from_their_first_window_on() -> None:
    """As many windows as one message brings."""
    rows = [Row("web", CPU, end_s, (0.95,)) for end_s in (20, 30, 40)]
    world = World()
    world.rows([WindowRows("web", "", 10, 40 * S, batch_of(rows))])
    assert world.told() == [("active", 30)]


def test_rows_before_the_message_that_closes_their_window_are_not_judged() -> None:
    world = World()
    world.rows([*history([0.95]), block(20, 0.95, closes=False)])
    assert world.told() == []
    world.rows([WindowRows("web", "", 10, 20 * S, batch_of([]))])
    assert world.told() == [("active", 20)]


BEHIND = """
groups:
- name: host
  rules:
  - {alert: Behind, metric: tailrace.evaluation.delay, aggregate: last, op: gt, threshold: 60, no_data: ok}
"""


def test_a_rule_can_tell_that_the_flows_stand_still_while_they_do() -> None:
    world = World(config_of(BEHIND))
    start_s = WALL_US // S
    world.rows([block(start_s - 10, 0.5)])
    for seconds in range(100):
        world.now_us = (start_s + seconds) * S + 500_000
        world.found(world.evaluator.on_time(world.now_us))
        assert world.evaluator.next_us(world.now_us) <= (start_s + seconds + 10) * S
    assert world.told() == [("active", start_s + 50)]
    (alert,) = [one.alert for one in world.events]
    assert alert is not None
    assert alert.current_value == pytest.approx(60.5, abs=0.01)
    world.rows([block(start_s + 90, 0.5)])
    world.found(world.evaluator.on_time(world.now_us + 10 * S))
    assert world.told()[1:] == [("resolved", start_s + 100)]


BUSY = "  - {alert: Busy, metric: cpu, aggregate: last, op: gt, threshold: 0.9, no_data: ok}\n"


def test_a_rule_that_tells_of_delay_goes_by_the_clock_among_others_too() -> None:
    world = World(config_of(BEHIND + BUSY))
    start_s = WALL_US // S
    world.rows([block(start_s + end_s, 0.95) for end_s in (0, 10)])
    for seconds in range(20, 100):
        world.now_us = (start_s + seconds) * S
        world.found(world.evaluator.on_time(world.now_us))
    assert world.told() == [("active", start_s), ("resolved", start_s + 20), ("active", start_s + 80)]


@pytest.mark.parametrize("late_s", [5, 9, 600])
def test_a_group_that_tells_of_delay_may_get_other_rules_and_lose_them_again(late_s: int) -> None:
    world = World(config_of(BEHIND))
    (key,) = world.config
    both, one = config_of(BEHIND + BUSY), config_of(BEHIND)
    swapped = config_of(BEHIND.replace("tailrace.evaluation.delay", "cpu"))
    start_s = WALL_US // S
    for seconds in range(0, 1000, 2):
        world.now_us = (start_s + seconds) * S
        if seconds % 10 == 0:
            world.rows([block(start_s + seconds - late_s, 0.5)])
        if seconds % 50 == 44:
            world.config = (both, swapped, one)[seconds // 50 % 3]
            world.found(world.evaluator.on_change(key, world.config[key], world.now_us))
            world.commit()
            world.crash()
        world.found(world.evaluator.on_time(world.now_us))
    found = [one.alert.status.value for one in world.events if one.alert]
    assert (found[-1:] or ["resolved"]) == (["active"] if late_s > 60 else ["resolved"])


def test_that_the_flows_are_behind_ends_where_the_clock_was_ahead_when_it_was_told() -> None:
    world = World(config_of(BEHIND))
    start_s = WALL_US // S
    world.rows([block(start_s, 0.5)])
    world.now_us += 24 * 3600 * S
    for _ in range(5):
        world.now_us += 10 * S
        world.found(world.evaluator.on_time(world.now_us))
    assert [transition for transition, _ in world.told()] == ["active"]
    world.commit()
    world.now_us = (start_s + 30) * S
    world.crash()
    for seconds in range(30, 80, 5):
        world.now_us = (start_s + seconds) * S
        world.rows([block(start_s + seconds - 5, 0.5)])
    assert [transition for transition, _ in world.told()] == ["active", "resolved"]


@pytest.mark.parametrize("goes_on", [False, True])
def test_who_begins_or_goes_on_is_not_late_with_what_is_still_to_be_read(*, goes_on: bool) -> None:
    world = World(config_of(BEHIND))
    start_s = WALL_US // S
    if goes_on:
        world.now_us -= 600 * S
    world.rows([block(start_s - 600, 0.5), block(start_s - 590, 0.5)])
    if goes_on:
        world.commit()
        world.now_us = WALL_US
        world.crash()
    for seconds in range(10, 30, 5):
        world.now_us = (start_s + seconds) * S
        world.found(world.evaluator.on_time(world.now_us))
    assert world.told() == []
    world.now_us = (start_s + 40) * S
    world.found(world.evaluator.on_time(world.now_us))
    assert world.told() == [("active", start_s + 40)]


def test_a_rule_of_a_longer_interval_tells_of_delay_also_where_the_flow_is_held_up() -> None:
    world = World(config_of(BEHIND.replace("name: host", "name: host\n  interval: 1m")))
    start_s = WALL_US // S // 60 * 60 + 60
    world.now_us = start_s * S
    world.rows([block(start_s, 0.5)])
    for minute in range(1, 5):
        for seconds in range(12, 60, 10):
            world.now_us = (start_s + 60 * minute + seconds) * S
            world.found(world.evaluator.on_time(world.now_us))
    assert world.told() == [("active", start_s + 60)]


def test_that_the_flows_stand_still_is_told_once_whatever_crashes() -> None:
    world = World(config_of(BEHIND))
    start_s = WALL_US // S
    world.rows([block(start_s, 0.5), block(start_s + 10, 0.5)])
    world.commit()
    for seconds in range(20, 200, 10):
        world.now_us = (start_s + seconds) * S
        world.found(world.evaluator.on_time(world.now_us))
        if seconds % 30 == 0:
            world.crash()
    world.rows([block(start_s + 200, 0.5)])
    world.found(world.evaluator.on_time(world.now_us + 10 * S))
    ended = {one.alert.id for one in world.events if one.alert and one.alert.status.value == "resolved"}
    assert {one.alert.id for one in world.events if one.alert} == ended
    assert world.told() == [("active", start_s + 90), ("resolved", start_s + 190)]


def test_what_happens_while_the_windows_flow_is_away_is_judged_when_its_rows_come() -> None:
    world = World()
    start_s = WALL_US // S

    def time(until_s: int, *, flow: bool) -> None:
        while world.now_us < (start_s + until_s) * S:
            world.now_us += 2 * S
            if flow:
                read = WindowRows(EVERY_SERVICE, "", 10, world.now_us, batch_of([]))
                world.found(world.evaluator.on_rows(read, world.now_us))
            world.found(world.evaluator.on_reading(world.now_us, world.now_us))

    time(2, flow=True)
    world.rows([block(start_s + end_s, 0.5, service) for end_s in (0, 10) for service in ("web", "shop")])
    time(10, flow=True)
    time(400, flow=False)
    values = {end_s: 0.95 if end_s in (100, 110) else 0.5 for end_s in range(20, 400, 10)}
    world.rows([block(start_s + end_s, value, "web") for end_s, value in values.items()])
    time(440, flow=False)
    world.rows([block(start_s + end_s, value, "shop") for end_s, value in values.items()])
    time(500, flow=True)
    assert world.told() == [("active", start_s + 110)] * 2 + [("resolved", start_s + 120)] * 2


def test_only_live_rows_of_10_s_count() -> None:
    world = World()
    good = history([0.5, 0.5, 0.5])
    bad = [one._replace(stream="replay-1") for one in history([0.95] * 3)]
    bad += [one._replace(window_seconds=60, watermark_us=UNKNOWN_US) for one in history([0.95] * 3)]
    world.rows([*bad[:3], *good, *bad[3:]])
    assert world.told() == []


@given(
    values=st.lists(st.sampled_from([0.5, 0.95]), min_size=1, max_size=25),
    commits=st.sets(st.integers(0, 25)),
    crashes=st.lists(st.integers(0, 25), max_size=4),
    repeated=st.sets(st.integers(0, 25)),
)
@settings(max_examples=60, deadline=None)
def test_crashes_and_repetitions_change_no_event(
    values: list[float], commits: set[int], crashes: list[int], repeated: set[int]
) -> None:
    calm = World()
    calm.rows(history(values))
    world = World()
    for number, one in enumerate(history(values)):
        world.rows([one, one] if number in repeated else [one])
        if number in commits:
            world.commit()
        for _ in range(crashes.count(number)):
            world.crash()
    assert world.told() == calm.told()
    assert {one.id for one in world.events} == {one.id for one in calm.events}


def test_what_is_active_is_told_again_after_a_restart() -> None:
    world = World()
    world.rows(history([0.95] * 4))
    world.commit()
    told = len(world.events)
    world.crash()
    world.rows([block(50, 0.95)])
    assert [one.id for one in world.events[told:]] == [world.events[0].id]


def test_what_is_said_before_anybody_was_heard_is_judged_although_the_flow_was_down() -> None:
    world = World()
    world.commit()
    world.now_us += 120 * S
    world.crash()
    world.events += world.evaluator.on_time(world.now_us).events
    world.rows(block(WALL_US // S + end_s, value) for end_s, value in ((10, 0.95), (20, 0.95), (30, 0.5)))
    assert world.told() == [("active", WALL_US // S + 20), ("resolved", WALL_US // S + 30)]


def late(until_s: int, values: Mapping[int, float]) -> WindowRows:
    """All windows from 30 s on in one message, as they come of flows that were away; 0.5 where nothing else is said."""
    rows = [Row("web", CPU, end_s, (values.get(end_s, 0.5),)) for end_s in range(30, until_s + 1, 10)]
    return WindowRows("web", "", 10, until_s * S, batch_of(rows))


def test_after_an_hour_without_rows_every_window_of_it_is_judged() -> None:
    world = World()
    world.rows(history([0.5, 0.5]))
    world.rows([late(3620, {1800: 0.95, 1810: 0.95})])
    assert world.told() == [("active", 1810), ("resolved", 1820)]


def test_what_happens_while_the_broker_is_away_is_judged_when_it_is_back() -> None:
    world = World()
    world.evaluator.on_reading(world.now_us, world.now_us)
    start_s = WALL_US // S
    world.rows([block(start_s + end_s, 0.5) for end_s in (0, 10)])
    for _ in range(30):
        world.now_us += 10 * S
        world.found(world.evaluator.on_time(world.now_us))
    world.found(world.evaluator.on_reading(world.now_us, world.now_us))
    world.rows([block(start_s + end_s, 0.95 if end_s in (100, 110) else 0.5) for end_s in range(20, 300, 10)])
    assert world.told() == [("active", start_s + 110), ("resolved", start_s + 120)]


def test_what_lies_more_than_an_hour_behind_is_passed_over() -> None:
    world = World()
    world.rows(history([0.5, 0.5]))
    world.rows([late(9000, {1800: 0.95, 1810: 0.95, 5400: 0.95, 5410: 0.95, 5420: 0.95})])
    world.found(world.evaluator.on_time(world.now_us + 10 * S))
    assert world.told() == [("active", 5420), ("resolved", 5430)]
    assert world.counts["rule_evaluations"] == 2 + 360


def test_who_begins_anew_judges_every_window_of_all_services_whichever_are_read_first() -> None:
    """Of a backlog, one partition is read before the other: for a moment one service is all there is."""
    world = World()
    web, shop = history([0.95] * 180), history([0.5] * 10 + [0.95] * 2 + [0.5] * 168, "shop")
    world.rows([*web, *shop])
    assert world.told() == [("active", 20), ("active", 120), ("resolved", 130)]


def test_a_process_that_was_held_up_does_not_take_that_time_for_having_listened() -> None:
    world = World()
    world.evaluator.on_rows(block(10, 0.5), world.now_us)
    world.now_us += 20 * S
    world.rows([block(20, 0.5), *history([0.95] * 2, "shop")])
    assert world.told() == [("active", 20)]


def test_when_all_were_silent_the_first_that_is_heard_again_is_not_all_there_is() -> None:
    world = World()
    start_s = WALL_US // S
    world.rows([block(start_s, 0.5, service) for service in ("web", "shop")])
    world.now_us += 35 * S
    blocks: list[WindowRows] = []
    for service, value in (("web", 0.5), ("shop", 0.95)):
        blocks += [block(start_s + end_s, value, service) for end_s in (10, 20)]
    world.rows(blocks)
    assert world.told() == [("active", start_s + 20)]


CHANGED = RULES.replace("threshold: 0.9,", "threshold: 0.8,")
OTHER = RULES.replace("alert: Busy", "alert: Hot")


@pytest.mark.parametrize("when", ["running", "while it was down", "killed after it"])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        pytest.param(CHANGED, [("active", 20)], id="a changed rule goes on with its alerts"),
        pytest.param(OTHER, [("active", 20), ("resolved", 30), ("active", 50)], id="another rule begins anew"),
        pytest.param("groups: []", [("active", 20), ("resolved", 30)], id="a group that is gone ends its alerts"),
    ],
)
def test_a_change_of_the_configuration(config: str, expected: list[tuple[str, int]], when: str) -> None:
    world = World()
    world.rows(history([0.95] * 3))
    world.commit()
    if when == "while it was down":
        world.crash(config_of(config))
        world.rows([])
    else:
        for key in {*world.config, *config_of(config)}:
            world.events += world.evaluator.on_change(key, config_of(config).get(key), world.now_us).events
        if when == "killed after it":
            world.rows([block(40, 0.95)])
            world.commit()
            world.crash(config_of(config))
    world.rows([block(40, 0.95), block(50, 0.95)])
    assert world.told() == expected


AT_ONCE = RULES.replace("by: [service]", "by: [host]").replace("for: 10s", "for: 0s")


def silent_shop(web: float) -> World:
    """An alert is told of (or one ends) while shop is silent; then a crash, and shop is waited for again."""
    world = World(config_of(AT_ONCE))
    world.rows(block(end_s, 1 - web, service) for end_s in (9970, 9980) for service in ("web", "shop"))
    world.commit()
    world.now_us += 31 * S
    world.rows([block(9990, web), block(10_000, web)])
    return world


def test_an_alert_that_was_told_and_is_not_found_again_goes_on_and_ends() -> None:
    world = silent_shop(0.95)
    assert world.told() == [("active", 9990)]
    world.crash()
    shop = [block(end_s, 0.1, "shop") for end_s in (9990, 10_000, 10_010)]
    world.rows([*shop, block(10_010, 0.95)])
    assert world.told() == [("active", 9990), ("resolved", 10_000)]


def test_an_alert_that_was_told_keeps_its_identity_where_its_condition_comes_back() -> None:
    world = silent_shop(0.95)
    world.crash()
    world.commit()
    world.crash()  # what waits to be judged again is in the state
    world.rows([block(9990, 0.1, "shop"), *(block(end_s, 0.99, "shop") for end_s in (10_000, 10_010, 10_020))])
    world.rows([block(10_010, 0.95), block(10_020, 0.1)])
    assert world.told() == [("active", 9990), ("resolved", 10_020)]


def test_an_alert_that_was_told_to_be_over_is_over_although_it_is_not_found_to_be() -> None:
    world = silent_shop(0.05)
    assert world.told() == [("active", 9970), ("resolved", 9990)]
    world.crash()
    world.rows([block(end_s, 2.0, "shop") for end_s in (9990, 10_000)])
    assert world.told() == [("active", 9970), ("resolved", 9990), ("active", 10_000)]


@pytest.mark.parametrize("commits", [False, True])
def test_an_alert_that_was_told_ends_where_its_rule_is_gone(*, commits: bool) -> None:
    world = World()
    world.rows(history([0.5] * 3))
    world.commit()
    world.rows([block(40, 0.95), block(50, 0.95)])
    assert world.told() == [("active", 50)]
    world.crash({})
    world.events += world.evaluator.on_time(world.now_us).events
    if commits:
        world.commit()
    world.crash({})
    world.rows([block(60, 0.95)])
    assert world.told() == [("active", 50), ("resolved", 50)]
    assert world.events[-1].reason


def test_an_alert_that_was_told_and_not_judged_again_ends_when_its_rule_is_removed() -> None:
    world = silent_shop(0.95)
    world.crash()
    world.events += world.evaluator.on_change("rule_group/host", None, world.now_us).events
    assert world.told() == [("active", 9990), ("resolved", 9990)]


@pytest.mark.parametrize("hold", ["0s", "10s"])
@pytest.mark.parametrize("silent", [False, True])
def test_an_alert_that_stands_goes_on_and_ends_where_there_is_no_state_of_it(hold: str, *, silent: bool) -> None:
    world = World(config_of(RULES.replace("for: 10s", f"for: {hold}")))
    world.rows(history([0.95, 0.1, 0.95, 0.95, 0.95]))  # one has ended, or was never told of
    before = world.told()
    given_at = time_of(world.now_us)
    for name, kind in (("c1", CommandKind.ACKNOWLEDGE), ("c2", CommandKind.ANNOTATE)):
        assert world.events[-1].alert is not None
        alert = world.events[-1].alert.id
        one = Command(id=name, kind=kind, alert_id=alert, time=given_at, author="ann", message="mine")
        world.found(world.evaluator.on_command(one, world.now_us))
    world.events += world.events[:2]  # a restart has told of the first one again
    said = len({one.id for one in world.events})
    for end_s in (110, 120):
        world.lose()
        world.rows([block(end_s, 0.95), block(end_s + 10, 0.95)])
    if silent:
        world.lose()
        world.rows(block(end_s, 0.1, "shop") for end_s in range(140, 210, 10))
    assert len({one.id for one in world.events}) == said, "nothing new is known of it"
    world.rows(block(end_s, 0.1, service) for end_s in (210, 220) for service in ("web", "shop"))
    assert world.told()[len(before) :][-1] == ("resolved", 210)
    assert len({one.id for one in world.events}) == said + 1
    assert world.events[-1].alert is not None
    assert (world.events[-1].alert.id, world.events[-1].alert.annotations[0].message) == (alert, "mine")


def test_an_alert_that_stands_ends_where_there_is_neither_state_nor_rule() -> None:
    world = World()
    world.rows(history([0.5, 0.95, 0.95]))
    world.lose({})
    world.found(world.evaluator.on_time(world.now_us))
    assert [transition for transition, _ in world.told()] == ["active", "resolved"]
    world.lose({})
    world.found(world.evaluator.on_time(world.now_us))
    assert len(world.told()) == 2


KINDS = """
slos:
- name: shop
  service: web
  objective: 99%
  period: 30d
  minimum_events: 1
  indicator: {bad: {metric: failed}, total: {metric: requests}}
health_checks:
- {name: alive, service: web, heartbeat: {metric: beat, within: 20s}}
"""


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("bad", ["slo", "health"])
def test_alerts_of_objectives_and_checks_that_were_told_end_too(bad: str, *, lost: bool) -> None:
    """They began in the last epoch; what comes again is good, since a fuller row has come meanwhile. Or all is lost."""
    config = config_of(KINDS)

    def window(end_s: int, *, ok: bool, version: int = 1) -> WindowRows:
        values = {"failed": 0.0 if ok or bad != "slo" else 90.0, "requests": 100.0}
        if ok or bad != "health":
            values["beat"] = 1.0
        rows = [Row("web", Series(name, "counter"), end_s, (value,), version) for name, value in values.items()]
        return WindowRows("web", "", 10, end_s * S, batch_of(rows))

    world = World(config, None)
    world.rows(window(end_s, ok=True) for end_s in (10, 20))
    world.commit()
    world.rows(window(end_s, ok=False) for end_s in (30, 40, 50))
    told = {one.alert.id for one in world.events if one.alert}
    assert told
    world._since = [window(end_s, ok=True, version=2) for end_s in (30, 40, 50)]
    if lost:
        world.lose()
    else:
        world.crash()
    world.rows(window(end_s, ok=True) for end_s in range(60, 600, 10))
    assert {one.alert.id for one in world.events if one.alert and one.transition is Transition.RESOLVED} == told


def test_commands_reach_their_alert_and_are_counted_where_they_cannot_be_done() -> None:
    world = World()
    world.rows(history([0.95, 0.95]))
    (active,) = world.events
    assert active.alert is not None

    def command(name: str, alert: str) -> Sequence[AlertEvent]:
        given_at = time_of(world.now_us)
        one = Command(id=name, kind=CommandKind.ACKNOWLEDGE, alert_id=alert, time=given_at, author="ann")
        return world.evaluator.on_command(one, world.now_us).events

    assert command("c0", "nobody") == ()
    assert [one.transition for one in command("c1", active.alert.id)] == [Transition.ACKNOWLEDGED]
    assert [one.transition for one in command("c2", active.alert.id)] == [Transition.REJECTED]
    world.found(world.evaluator.on_time(world.now_us + 10 * S))
    assert (world.counts["alerts_created"], world.counts["commands_rejected"]) == (1, 1)


def test_a_key_judges_what_is_its_own_alone() -> None:
    others = [Evaluator(number, PLAN, config_of(RULES), WALL_US) for number in range(EVALUATORS) if number != NUMBER]
    assert all(not other.units for other in others)
    assert list(Evaluator(NUMBER, PLAN, config_of(RULES), WALL_US).units) == ["rule_group/host"]


def test_a_rule_of_a_state_that_is_refused_now_is_gone() -> None:
    world = World(config_of(RULES))
    world.rows(history([0.5, 0.95, 0.95, 0.95]))
    assert [transition for transition, _ in world.told()][-1] == "active"
    world.commit()
    assert world._state is not None
    *before, texts, units = unseal(STATE_VERSION, world._state)
    (key,) = texts
    assert '"op":"gt"' in texts[key]
    refused = {key: texts[key].replace('"op":"gt"', '"op":"gt","description":"{value!r}"')}
    world._state = seal(STATE_VERSION, (*before, refused, units))
    world.crash({})
    world.found(world.evaluator.on_time(world.now_us + 10 * S))
    assert not world.evaluator.units
    assert [transition for transition, _ in world.told()][-1] == "resolved"


def test_a_state_of_another_format_is_refused() -> None:

    with pytest.raises(ValueError, match="format 9"):
        Evaluator(NUMBER, PLAN, {}, WALL_US, seal(9, None))
