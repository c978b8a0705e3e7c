"""Incidents against a minute-by-minute reading of the alerts, in every order of events, and their figures."""

import pickle
import random
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.incidents import (
    Incidents,
    accuracy,
    availability,
    interventions,
    mean_time_to_repair_s,
)
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Severity, time_of
from tailrace_schemas.incidents import Impact, Incident, IncidentStatus

S = 1_000_000
T0 = datetime(2026, 11, 27, tzinfo=UTC)
T0_US = round(T0.timestamp()) * S


class Rule:
    """An alert of a service, begun and ended by the minute: events as the real state machine gives them."""

    def __init__(self, name: str, severity: Severity = Severity.CRITICAL, service: str = "shop") -> None:
        labels = (("service", service),) if service else ()
        self.labels = labels
        self.alerts = RuleAlerts(AlertSpec(name, f"test/{name}", severity, f"{name} is bad"))

    def at(self, minute: int, on: bool) -> list[AlertEvent]:
        return self.alerts.evaluate(T0_US + minute * 60 * S, {self.labels: 1.0} if on else {})

    def say(self, minute: int, kind: CommandKind, **fields: object) -> list[AlertEvent]:
        (alert,) = [one.alert.id for one in self.alerts.republish() if one.alert] or [self._last]
        self._last = alert
        given_by = {"id": f"{kind}-{minute}", "alert_id": alert, "author": "ada", "kind": kind}
        command = Command.model_validate({**given_by, "time": time_of(T0_US + minute * 60 * S), **fields})
        return self.alerts.command(command) or []

    _last = ""


def final(told: Iterable[Incident]) -> dict[str, Incident]:
    """As a table that keeps the highest version of each id."""
    found: dict[str, Incident] = {}
    for one in told:
        if one.id not in found or found[one.id].version <= one.version:
            found[one.id] = one
    return {key: one for key, one in found.items() if one.status is not IncidentStatus.WITHDRAWN}


def run(events: Iterable[AlertEvent], incidents: Incidents | None = None) -> list[Incident]:
    incidents = incidents or Incidents()
    return [one for event in events for one in incidents.on_events([event])]


def stretches(one: Incident) -> list[tuple[int, int | None]]:
    def minute(moment: datetime) -> int:
        return round((moment - T0).total_seconds() / 60)

    return [(minute(part.start), None if part.end is None else minute(part.end)) for part in one.downtime]


def test_an_end_that_a_crash_has_numbered_anew_is_an_end() -> None:
    rule = Rule("errors")
    (began,) = rule.at(0, True)
    (acknowledged,) = rule.say(1, CommandKind.ACKNOWLEDGE)
    (ended,) = rule.at(2, False)
    told = run([began, acknowledged, ended.model_copy(update={"sequence": acknowledged.sequence})])
    assert [one.status for one in final(told).values()] == ["resolved"]


def test_alerts_of_one_service_that_overlap_are_one_incident() -> None:
    errors, slow = Rule("errors"), Rule("slow", Severity.WARNING)
    other = Rule("errors", Severity.ERROR, service="stock")
    events = [*slow.at(0, True), *errors.at(2, True), *other.at(3, True), *errors.at(10, False), *slow.at(20, False)]
    shop, stock = sorted(final(run(events)).values(), key=lambda one: one.service)
    assert (shop.status, shop.severity, len(shop.alerts)) == ("resolved", Impact.CRITICAL, 2)
    assert (shop.start_time, shop.end_time) == (T0, T0 + timedelta(minutes=20))
    assert stretches(shop) == [(2, 10)]
    assert shop.description == "errors is bad"
    assert shop.impact == "errors (critical); slow (warning)"
    assert shop.resolution == "the condition ended"
    assert (stock.status, stock.severity, stock.end_time, stock.downtime) == ("open", Impact.MAJOR, None, ())


@pytest.mark.parametrize(("gap_m", "count"), [(5, 1), (6, 2)])
def test_what_follows_within_five_minutes_is_the_same_incident(gap_m: int, count: int) -> None:
    rule = Rule("errors")
    events = [*rule.at(0, True), *rule.at(10, False), *rule.at(10 + gap_m, True), *rule.at(30, False)]
    found = final(run(events))
    assert len(found) == count
    assert [stretches(one) for one in found.values()] == (
        [[(0, 10), (15, 30)]] if count == 1 else [[(0, 10)], [(16, 30)]]
    )


def test_information_is_no_incident_and_an_alert_without_service_is_its_sources() -> None:
    assert run(Rule("watchdog", Severity.INFO).at(0, True)) == []
    (one,) = run(Rule("errors", service="").at(0, True))
    assert one.service == "test/errors"


def test_what_people_do_is_counted() -> None:
    rule = Rule("errors")
    events = [
        *rule.at(0, True),
        *rule.say(1, CommandKind.ACKNOWLEDGE),
        *rule.say(2, CommandKind.ANNOTATE, message="looking", annotation="note"),
        *rule.say(3, CommandKind.ANNOTATE, message="restarted it", annotation="action"),
        *rule.say(4, CommandKind.ANNOTATE, message="a full disk", annotation="resolution"),
        *rule.say(5, CommandKind.RESOLVE),
    ]
    (one,) = final(run(events)).values()
    assert (one.acknowledged_by, one.acknowledged_at) == ("ada", T0 + timedelta(minutes=1))
    assert one.interventions == 3
    assert one.resolution == "a full disk (ada)"
    assert interventions([one]) == 3
    (marked,) = final(run([*events, *rule.say(6, CommandKind.MARK)])).values()
    assert (marked.false_positives, marked.downtime, marked.counts) == (1, (), False)
    assert accuracy([marked]) == 0
    assert mean_time_to_repair_s([marked]) is None


def test_resolved_by_hand_without_a_word() -> None:
    rule = Rule("errors")
    (one,) = final(run([*rule.at(0, True), *rule.say(5, CommandKind.RESOLVE)])).values()
    assert one.resolution == "resolved by ada"


def test_a_rejected_command_changes_nothing() -> None:
    rule = Rule("errors")
    incidents = Incidents()
    run(rule.at(0, True), incidents)
    run(rule.say(1, CommandKind.ACKNOWLEDGE), incidents)
    (rejected,) = rule.say(2, CommandKind.ACKNOWLEDGE)
    assert rejected.transition == "rejected"
    assert run([rejected], incidents) == []


def test_a_late_event_joins_two_incidents_and_the_other_id_is_withdrawn() -> None:
    first, second, between = Rule("first"), Rule("second"), Rule("between")
    events = [*first.at(0, True), *first.at(5, False), *second.at(30, True), *second.at(40, False)]
    late = [*between.at(4, True), *between.at(29, False)]
    incidents = Incidents()
    assert len(final(run(events, incidents))) == 2
    told = run(late, incidents)
    assert [one.status for one in told if one.status is IncidentStatus.WITHDRAWN] == ["withdrawn"]
    (one,) = final(run(events + late)).values()
    assert len(one.alerts) == 3


def history(rng: random.Random) -> list[list[AlertEvent]]:
    """Several alerts of two services, each with its events in order."""
    found = []
    for number in range(rng.randint(1, 5)):
        severity = rng.choice((Severity.WARNING, Severity.ERROR, Severity.CRITICAL))
        rule = Rule(f"r{number}", severity, rng.choice(("shop", "stock")))
        events: list[AlertEvent] = []
        minute, on = 0, False
        while minute < 120:
            minute += rng.randint(1, 25)
            on = not on
            events += rule.at(minute, on)
            if on and rng.random() < 0.3:
                events += rule.say(minute, CommandKind.ACKNOWLEDGE)
            if on and rng.random() < 0.2:
                events += rule.say(minute, CommandKind.MARK)
        found.append(events)
    return found


def by_the_minute(
    histories: list[list[AlertEvent]], service: str
) -> list[tuple[int, int | None, Impact, int, set[int]]]:
    """Start, end, severity, alerts and minutes of downtime of each incident, from a table of minutes."""
    last: dict[str, AlertEvent] = {}
    for events in histories:
        for event in events:
            assert event.alert is not None
            last[event.alert.id] = event
    alerts = [one.alert for one in last.values() if one.alert and one.alert.labels["service"] == service]
    spans = []
    for one in alerts:
        start = round((one.timestamp - T0).total_seconds() / 60)
        end = 10_000 if one.resolved_at is None else round((one.resolved_at - T0).total_seconds() / 60)
        spans.append((start, end, one))
    # In half minutes, so that what is a minute apart does not touch.
    touched = {half for start, end, _ in spans for half in range(2 * start, 2 * (end + 5) + 1)}
    found = []
    for begin in sorted(half for half in touched if half - 1 not in touched):
        until = begin
        while until + 1 in touched:
            until += 1
        mine = [span for span in spans if begin <= 2 * span[0] <= until]
        real = [one for _, _, one in mine if not one.false_positive] or [one for _, _, one in mine]
        down = {
            minute
            for start, end, one in mine
            if one.severity is Severity.CRITICAL and not one.false_positive
            for minute in range(start, end)
        }
        impacts = {Severity.WARNING: Impact.MINOR, Severity.ERROR: Impact.MAJOR, Severity.CRITICAL: Impact.CRITICAL}
        worst = max((impacts[one.severity] for one in real), key=list(Impact).index)
        end_m = max(end for _, end, _ in mine)
        found.append((begin // 2, None if end_m == 10_000 else end_m, worst, len(mine), down))
    return found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_order_of_alerts_duplicates_and_restarts_end_the_same(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    histories = history(rng)
    queues = [list(events) for events in histories]
    incidents, told = Incidents(), []
    sent: list[AlertEvent] = []
    while any(queues):
        queue = rng.choice([one for one in queues if one])
        sent.append(queue.pop(0))
        told += incidents.on_events(sent[-1:])
        if rng.random() < 0.2:
            told += incidents.on_events([rng.choice(sent)])
        if rng.random() < 0.2:
            incidents = Incidents(pickle.loads(pickle.dumps(incidents.snapshot())))
    found = final(told)
    for service in ("shop", "stock"):
        mine = sorted((one for one in found.values() if one.service == service), key=lambda one: one.start_time)
        assert [
            (
                round((one.start_time - T0).total_seconds() / 60),
                None if one.end_time is None else round((one.end_time - T0).total_seconds() / 60),
                one.severity,
                len(one.alerts),
                {minute for start, end in stretches(one) for minute in range(start, 10_000 if end is None else end)},
            )
            for one in mine
        ] == by_the_minute(histories, service)
        assert {one.id for one in mine} == {
            one.id for one in final(run(event for e in histories for event in e)).values() if one.service == service
        }


def test_events_given_at_once_end_in_what_they_do_one_by_one() -> None:
    events = [event for each in history(random.Random(3)) for event in each]
    assert final(Incidents().on_events(events)) == final(run(events))


def test_old_incidents_are_forgotten_and_the_version_goes_on() -> None:
    rule = Rule("errors")
    incidents = Incidents()
    first = run([*rule.at(0, True), *rule.at(10, False)], incidents)
    later = run([*rule.at(8 * 24 * 60, True)], incidents)
    assert len(later) == 1
    assert later[0].version > first[-1].version
    assert run(rule.at(8 * 24 * 60 + 1, False), incidents)
    assert len(pickle.dumps(incidents.snapshot())) < 10_000


def test_services_that_are_gone_are_forgotten_unless_an_alert_of_theirs_goes_on() -> None:
    def left(incidents: Incidents) -> int:
        state = pickle.dumps(incidents.snapshot())
        return sum(f"gone-{number}".encode() in state for number in range(100))

    day = 24 * 60
    incidents = Incidents()
    stuck = Rule("stuck", service="gone-stuck")
    (began,) = run(stuck.at(0, True), incidents)
    told = []
    for number in range(100):
        rule = Rule("errors", service=f"gone-{number}")
        told += run([*rule.at(1 + number, True), *rule.at(6 + number, False)], incidents)
    assert len(final(told)) == 100
    other = Rule("errors", service="stays")
    run([*other.at(7 * day, True)], incidents)
    run(other.say(7 * day, CommandKind.ACKNOWLEDGE, time=time_of(T0_US + 400 * day * 60 * S)), incidents)
    assert left(incidents) == 100  # whatever a person's clock says
    restored = Incidents(pickle.loads(pickle.dumps(incidents.snapshot())))
    run(other.at(9 * day, False), restored)
    assert left(restored) == 0
    (ended,) = run(stuck.at(10 * day, False), restored)
    assert (ended.id, ended.status) == (began.id, "resolved")
    assert ended.version > began.version


def test_a_flood_of_alerts_is_bounded_and_counted() -> None:
    incidents = Incidents()
    many = RuleAlerts(AlertSpec("flood", "test/flood", Severity.WARNING))
    labels = [(("n", f"{n:04}"), ("service", "shop")) for n in range(1003)]
    events = many.evaluate(T0_US, dict.fromkeys(labels, 1.0))
    told = incidents.on_events(events)
    assert incidents.dropped == 3
    assert [len(one.alerts) for one in told] == [1000]
    assert told[-1].impact == "flood (warning, 1000 times)"


# -- figures -------------------------------------------------------------------------------------------


def test_availability_is_weighted() -> None:
    one, two = Rule("errors"), Rule("errors", service="stock")
    found = final(run([*one.at(0, True), *one.at(60, False), *two.at(90, True)])).values()
    period = (T0 - timedelta(hours=8), T0 + timedelta(hours=2))
    mean, services = availability(found, *period, {"shop": 3.0, "stock": 1.0, "idle": 1.0})
    assert services["shop"] == (pytest.approx(0.9), 3600, 1)
    assert services["stock"] == (pytest.approx(0.95), 1800, 1), "what is open is down until the end"
    assert services["idle"] == (1.0, 0, 0)
    assert mean == pytest.approx((3 * 0.9 + 0.95 + 1) / 5)
    # Only what lies within the period counts.
    _, services = availability(found, T0 + timedelta(minutes=30), T0 + timedelta(minutes=90), {"shop": 1, "stock": 1})
    assert (services["shop"].downtime_s, services["stock"].downtime_s) == (1800, 0)
    with pytest.raises(ValueError, match="needs a period"):
        availability([], T0, T0, {"shop": 1})
    with pytest.raises(ValueError, match="at least one service"):
        availability([], T0, T0 + timedelta(1), {})


def test_mean_time_to_repair_and_accuracy() -> None:
    one, two, three = Rule("a"), Rule("b", service="stock"), Rule("c", service="open")
    events = [*one.at(0, True), *one.at(30, False), *two.at(0, True), *two.at(90, False), *three.at(0, True)]
    found = list(final(run(events)).values())
    assert mean_time_to_repair_s(found) == 3600
    assert accuracy(found) == 1
    assert accuracy([]) is None
    assert mean_time_to_repair_s([]) is None


def test_state_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        Incidents((99, 0, {}))
