"""Health: thresholds against a plain reading of the rule, heartbeats, roll-up, and alerts in scenarios."""

# ruff: noqa: E501 - tables

import pickle
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.health import (
    DEGRADED,
    HEALTHY,
    UNHEALTHY,
    UNKNOWN,
    CheckResult,
    Health,
    HealthStatus,
)
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, time_of
from tailrace_schemas.config.health import HealthCheck, ServiceSpec, cycle_of
from tailrace_schemas.config.maintenance import Maintenance

S = 1_000_000
STEP = 10 * S
T0 = 1_700_000_000 * S
RESULTS = {"H": HEALTHY, "D": DEGRADED, "U": UNHEALTHY}


def check(name: str, service: str = "", **changes: Any) -> HealthCheck:
    kind = {} if "heartbeat" in changes else {"tcp": {"host": "a", "port": 1}, "interval": "10s"}
    return HealthCheck.model_validate({"name": name, "service": service or name, **kind, **changes}, strict=False)


def needs(**services: str) -> list[ServiceSpec]:
    """a="b c": a needs b and c."""
    return [ServiceSpec(name=name, depends_on=tuple(on.split())) for name, on in services.items()]


class Run:
    """Steps of 10 s, each with results like `db=U web=H` (a missing one: no result)."""

    def __init__(self, health: Health) -> None:
        self.health = health
        self.t_us = T0
        self.events: list[AlertEvent] = []
        self.changed: list[HealthStatus] = []

    def go(self, *steps: str) -> "Run":
        for step in steps:
            self.t_us += STEP
            for part in step.split():
                name, _, letter = part.partition("=")
                if letter == "beat":
                    self.health.beat(self.t_us, name)
                else:
                    reason = "" if letter == "H" else "timeout"
                    self.health.put(self.t_us, name, CheckResult(RESULTS[letter], reason, 0.1))
            events, changed = self.health.evaluate(self.t_us)
            self.events += events
            self.changed += changed
        return self

    def status(self, service: str, name: str = "") -> HealthStatus:
        (found,) = [one for one in self.health.statuses() if (one.service, one.check) == (service, name)]
        return found

    def told(self) -> list[str]:
        """`40 db unhealthy active`."""
        return [
            f"{(one.time - time_of(T0)).seconds} {one.alert.labels['service']} {one.alert.labels['alert']} {one.transition}"
            for one in self.events
            if one.alert is not None
        ]


# -- thresholds ----------------------------------------------------------------------------------------


def plain(results: str, failure: int, success: int) -> str:
    """The rule, read anew at each result over the whole past since the last change."""
    order = "UDH"
    status = results[0]
    since = 0
    for position in range(1, len(results)):
        past = results[: position + 1]
        worse = [
            level for level in order if order.index(level) < order.index(status)
            and len(past) >= failure and all(order.index(one) <= order.index(level) for one in past[-failure:])
        ]  # fmt: skip
        better = [
            level for level in order if order.index(level) > order.index(status)
            and len(past) >= success and all(order.index(one) >= order.index(level) for one in past[-success:])
        ]  # fmt: skip
        if worse:
            status, since = worse[0], position
        elif better:
            status, since = better[-1], position
    assert since >= 0
    return status


@settings(max_examples=300, deadline=None)
@given(st.text("UDH", min_size=1, max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_thresholds(results: str, failure: int, success: int) -> None:
    run = Run(Health([check("it", failure_threshold=failure, success_threshold=success)]))
    run.go(*(f"it={one}" for one in results))
    assert run.status("it", "it").status == RESULTS[plain(results, failure, success)]


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ("H", HEALTHY),
        ("U", UNHEALTHY),  # the first result is all there is to know
        ("HUU", HEALTHY),
        ("HUUU", UNHEALTHY),
        ("HUHUHU", HEALTHY),
        ("HDUU", DEGRADED),  # the mildest of three decides
        ("HDUUU", UNHEALTHY),
        ("UUUH", HEALTHY),
    ],
)
def test_examples_of_thresholds(results: str, expected: str) -> None:
    run = Run(Health([check("it")])).go(*(f"it={one}" for one in results))
    assert run.status("it", "it").status == expected


def test_silence_of_a_check_is_not_known_and_freezes_its_alert() -> None:
    run = Run(Health([check("db")])).go(*["db=U"] * 2).go(*[""] * 30)
    assert run.status("db", "db").status == UNKNOWN
    assert run.status("db", "db").reason == "no results"
    assert run.told() == ["10 db unhealthy active", "140 health unhealthy active"], "the runner's silence is told"
    run.go("db=H")
    assert run.told()[2:] == ["330 db unhealthy resolved"]
    run.health.beat(run.t_us, "health-runner")
    assert run.go("db=H").told()[3:] == ["340 health unhealthy resolved"]


def test_a_result_that_comes_after_its_window_was_judged_is_counted() -> None:
    run = Run(Health([check("db")])).go("db=H", "db=H")
    run.health.put(T0 + STEP, "db", CheckResult(UNHEALTHY))
    run.health.put(T0 + 9 * STEP, "who?", CheckResult(UNHEALTHY))
    assert run.health.late == 1
    assert run.go("").status("db", "db").status == HEALTHY


# -- heartbeats ----------------------------------------------------------------------------------------


def test_silence_is_a_failure_of_a_heartbeat() -> None:
    run = Run(Health([check("job", heartbeat={"within": "30s"})])).go("")
    assert run.status("job", "job").status == UNKNOWN
    run.go("job=beat", "", "", "")
    assert run.status("job", "job").status == HEALTHY
    run.go("", "", "job=beat")
    assert run.told() == ["60 job unhealthy active", "80 job unhealthy resolved"]


def test_what_never_beat_fails_after_its_time_too() -> None:
    run = Run(Health([check("job", heartbeat={"within": "30s"})])).go(*[""] * 4)
    assert run.told() == []
    assert run.go("").told() == ["50 job unhealthy active"]
    assert run.status("job", "job").reason == "silent for more than 30s"


# -- roll-up -------------------------------------------------------------------------------------------

CHAIN = needs(web="api cache", api="db", cache="")


def chain() -> Health:
    return Health([check(name, failure_threshold=1) for name in ("web", "api", "db", "cache")], CHAIN)


@pytest.mark.parametrize(
    ("results", "statuses", "causes"),
    [
        ("web=H api=H db=H cache=H", "web=healthy api=healthy db=healthy", {}),
        ("web=H api=H db=U cache=H", "web=degraded api=degraded db=unhealthy", {"web": ("db",), "api": ("db",), "db": ("db",)}),
        ("web=U api=U db=U cache=H", "web=unhealthy api=unhealthy db=unhealthy", {"web": ("db",), "api": ("db",), "db": ("db",)}),
        # A slow database does not explain why the API fails.
        ("web=H api=U db=D cache=H", "web=degraded api=unhealthy db=degraded", {"web": ("api",), "api": ("api",), "db": ("db",)}),
        ("web=H api=H db=U cache=D", "web=degraded api=degraded cache=degraded", {"web": ("cache", "db"), "api": ("db",), "db": ("db",)}),
        ("web=U api=H db=H cache=H", "web=unhealthy api=healthy", {"web": ("web",)}),
    ],
)  # fmt: skip
def test_roll_up_names_the_root_cause(results: str, statuses: str, causes: dict[str, tuple[str, ...]]) -> None:
    run = Run(chain()).go("web=H api=H db=H cache=H", results)
    for part in statuses.split():
        service, _, expected = part.partition("=")
        assert run.status(service).status == expected, service
    for service in ("web", "api", "db"):
        assert run.status(service).root_causes == causes.get(service, ())


def test_one_outage_is_one_alert_of_its_cause() -> None:
    run = Run(chain()).go("web=H api=H db=H cache=H", "web=H api=H db=U cache=H", "web=U api=H db=U cache=H")
    assert run.told() == ["20 db unhealthy active", "30 web unhealthy active"]
    descriptions = [one.alert.description for one in run.events if one.alert]
    assert descriptions == [
        "db is unhealthy (db: timeout)",
        "web is unhealthy (web: timeout), most likely because of db",
    ]
    assert run.status("web").dependencies == (("api", DEGRADED), ("cache", HEALTHY))


def test_a_service_without_checks_is_not_known_and_drags_nobody_down() -> None:
    run = Run(Health([check("web")], needs(web="elsewhere"))).go("web=H")
    assert run.status("elsewhere").status == UNKNOWN
    assert run.status("web").status == HEALTHY


@given(st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.sampled_from("abcdefg"), max_size=3, unique=True)))
def test_cycles_are_found(depends_on: dict[str, list[str]]) -> None:
    """Against removing, again and again, the services that need nobody who is left."""
    left = {name: set(on) for name, on in depends_on.items()}
    while free := [name for name, on in left.items() if not on & left.keys()]:
        for name in free:
            del left[name]
    cycle = cycle_of(depends_on)
    assert (cycle is not None) == bool(left)
    if cycle is not None:
        assert cycle[0] == cycle[-1]
        assert all(after in depends_on[before] for before, after in pairwise(cycle))
    health = Health([], [ServiceSpec(name=name, depends_on=tuple(on)) for name, on in depends_on.items()])
    health.evaluate(T0)
    assert bool(health.circular) == bool(left)


def test_a_circle_of_files_that_were_applied_one_after_the_other_loses_a_need() -> None:
    run = Run(Health([check("a"), check("b")], needs(a="b", b="a"))).go("a=H b=U")
    assert run.health.circular == 1
    found = {one.service: (one.status, one.dependencies) for one in run.health.statuses() if not one.check}
    assert found["a"] == (DEGRADED, (("b", UNHEALTHY),))
    assert found["b"] == (UNHEALTHY, ())


def test_a_long_chain_of_needs_is_rolled_up() -> None:
    chain = {f"s{number}": f"s{number + 1}" for number in range(2000)}
    run = Run(Health([check("s2000")], needs(**chain))).go("s2000=U")
    assert {one.status for one in run.health.statuses() if not one.check and one.service != "health"} == {
        DEGRADED,
        UNHEALTHY,
    }


def test_checks_may_run_seldom() -> None:
    """Three times the interval is longer than a duration of the configuration can be."""
    Health([check("a", interval="366d")]).evaluate(T0)


# -- alerts --------------------------------------------------------------------------------------------


def test_from_degraded_to_unhealthy_and_back() -> None:
    run = Run(Health([check("db", failure_threshold=1)])).go("db=H", "db=D", "db=U", "db=H")
    assert run.told() == [
        "20 db degraded active",
        "30 db degraded resolved",
        "30 db unhealthy active",
        "40 db unhealthy resolved",
    ]
    severities = {one.alert.labels["alert"]: one.alert.severity for one in run.events if one.alert}
    assert severities == {"degraded": "warning", "unhealthy": "critical"}


def test_maintenance_freezes_its_alerts() -> None:
    interval = {"start": time_of(T0 + 15 * S), "end": time_of(T0 + 60 * S)}
    calendar = Maintenance.model_validate({"name": "it", "services": ["db"], "once": [interval]}, strict=False)
    run = Run(Health([check("db", failure_threshold=1)], (), [calendar])).go("db=H", *["db=U"] * 5)
    assert run.told() == []
    assert run.status("db").status == UNHEALTHY
    assert run.go("db=U").told() == ["70 db unhealthy active"]


def test_removed_checks_resolve_their_alerts() -> None:
    run = Run(Health([check("db", failure_threshold=1), check("web")])).go("db=U web=H")
    state = pickle.loads(pickle.dumps(Health([check("web")], state=run.health.snapshot()).snapshot()))
    after = Health([check("web")], state=state)
    (event,) = after.evaluate(run.t_us + STEP)[0]
    assert (event.transition, event.reason) == ("resolved", "no check of the service is left")
    assert event.alert is not None
    assert event.alert.source == "health/db"


def test_people_acknowledge_and_a_restart_goes_on() -> None:
    run = Run(Health([check("db", failure_threshold=1)])).go("db=U")
    (alert,) = run.health.alerts()
    given_by = {"id": "c", "alert_id": alert.id, "time": time_of(run.t_us), "author": "ada"}
    (event,) = run.health.command(Command(kind=CommandKind.ACKNOWLEDGE, **given_by)) or []
    assert run.health.command(Command(kind=CommandKind.RESOLVE, **given_by | {"alert_id": "other"})) is None
    run.health = Health([check("db", failure_threshold=1)], state=run.health.snapshot())
    assert [one.id for one in run.health.republish()] == [event.id]
    assert run.go("db=U").told() == ["10 db unhealthy active"]
    assert [one.reason for one in run.health.close(run.t_us + STEP, "gone")] == ["gone"]


def test_state_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        Health([], state=(99, None, None, {}, {}, {}, {}))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_batches_order_duplicates_and_restarts_change_nothing(data: st.DataObject) -> None:
    rng = random.Random(data.draw(st.integers(0, 1000)))
    checks = [check("web", failure_threshold=2), check("db", success_threshold=2), check("job", heartbeat={})]
    services = needs(web="db job")
    steps = [
        [(T0 + k * STEP, name, rng.choice("HHHDUU")) for name in ("web", "db") if rng.random() < 0.8]
        + [(T0 + k * STEP, "job", "beat")] * (rng.random() < 0.3)
        for k in range(1, 120)
    ]

    def give(health: Health, row: tuple[int, str, str]) -> None:
        if row[2] == "beat":
            health.beat(row[0], row[1])
        else:
            health.put(row[0], row[1], CheckResult(RESULTS[row[2]], "timeout" if row[2] != "H" else ""))

    straight, other = Health(checks, services), Health(checks, services)
    expected = []
    for number, rows in enumerate(steps, 1):
        for row in rows:
            give(straight, row)
        expected.append(straight.evaluate(T0 + number * STEP))
    found = []
    done = 0
    while done < len(steps):
        ahead = data.draw(st.integers(1, 6))
        rows = [row for step in steps[done : done + ahead] for row in step if row[2] != "beat"]
        for row in rng.sample(rows, len(rows)) + rng.sample(rows, len(rows) // 2):
            give(other, row)
        for number in range(done + 1, min(done + ahead, len(steps)) + 1):
            for row in steps[number - 1]:
                if row[2] == "beat":
                    give(other, row)
            found.append(other.evaluate(T0 + number * STEP))
        done = min(done + ahead, len(steps))
        if data.draw(st.booleans()):
            other = Health(checks, services, state=pickle.loads(pickle.dumps(other.snapshot())))
    assert found == expected
    assert [one.id for events, _ in expected for one in events], "nothing happened"
