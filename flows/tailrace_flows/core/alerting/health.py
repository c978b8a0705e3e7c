"""How services fare: results of checks and heartbeats, thresholds, and what follows for those that need each other.

A result is what `tailrace health run` found in a 10 s window: the worst of its runs. Statuses are ordered unhealthy <
degraded < healthy. A check's status becomes worse when `failure_threshold` results in a row were worse, and better when
`success_threshold` in a row were better; how much so is decided by the mildest of them. A check without results for
three intervals and half a minute is *unknown*: its alerts stay as they are, since unmeasured time is no uptime. That
the checks are run at all is a heartbeat of its own.

A service is as bad as the worst of its checks, and at least degraded while a service that it needs is not healthy.
Only what its own checks say is told as an alert, with the root cause in its description: the services furthest down
whose own checks are as bad. So an outage of a database is one alert of the database, and one of each service whose own
checks fail.

State: 1 kB a check or service.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any, Final, NamedTuple

from tailrace_schemas.alerts import Alert, AlertEvent, Command, Labels, Operator, Severity, Threshold
from tailrace_schemas.config.base import MAX_DURATION_S, duration_text
from tailrace_schemas.config.health import HEALTH_RUNS, RUNNER, HealthCheck, ServiceSpec, cycle_of
from tailrace_schemas.config.maintenance import Maintenance

from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_flows.core.alerting.maintenance import Calendar
from tailrace_flows.core.alerting.told import Told
from tailrace_flows.core.sealed import foreign

__all__ = ["DEGRADED", "HEALTHY", "UNHEALTHY", "UNKNOWN", "CheckResult", "Health", "HealthStatus"]

STEP_US: Final = 10_000_000
STATE_VERSION: Final = 1
RUNNER_CHECK: Final = "health-runner"
"""The heartbeat that is there wherever there are checks to run."""

UNHEALTHY: Final = "unhealthy"
DEGRADED: Final = "degraded"
HEALTHY: Final = "healthy"
UNKNOWN: Final = "unknown"
_LEVELS: Final = (UNHEALTHY, DEGRADED, HEALTHY)
_SEVERITIES: Final = {UNHEALTHY: Severity.CRITICAL, DEGRADED: Severity.WARNING}


class CheckResult(NamedTuple):
    """What a check found in a window."""

    status: str
    reason: str = ""
    """Its `error.type`; empty where it is healthy."""
    response_time_s: float | None = None


class HealthStatus(NamedTuple):
    """How a check, or a service as a whole (`check` is empty), fares since `since_us`."""

    service: str
    check: str
    status: str
    since_us: int
    time_us: int
    """Of the evaluation."""
    reason: str = ""
    response_time_s: float | None = None
    root_causes: tuple[str, ...] = ()
    """Of a service that is not healthy: the services at fault, itself among them or not."""
    dependencies: tuple[tuple[str, str], ...] = ()
    """Those that it needs directly, with their statuses."""


@dataclass
class _CheckState:
    """One check. Runs of results in a row are counted by level: index 0 unhealthy, 1 degraded, 2 healthy."""

    status: str = UNKNOWN
    since_us: int = 0
    newest_us: int | None = None
    """The end of the newest window with a result, or of the newest beat."""
    at_most: tuple[int, int, int] = (0, 0, 0)
    at_least: tuple[int, int, int] = (0, 0, 0)
    reason: str = ""
    response_time_s: float | None = None

    def take(self, end_us: int, result: CheckResult, check: HealthCheck) -> None:
        level = _LEVELS.index(result.status)
        self.at_most = _counted(self.at_most, [level <= one for one in range(3)])
        self.at_least = _counted(self.at_least, [level >= one for one in range(3)])
        self.newest_us = end_us
        self.reason, self.response_time_s = result.reason, result.response_time_s
        if self.status == UNKNOWN:  # the first result says all there is
            self._become(result.status, end_us)
            return
        now = _LEVELS.index(self.status)
        worse = [one for one in range(now) if self.at_most[one] >= check.failure_threshold]
        better = [one for one in range(now + 1, 3) if self.at_least[one] >= check.success_threshold]
        if worse:
            self._become(_LEVELS[worse[0]], end_us)
        elif better:
            self._become(_LEVELS[better[-1]], end_us)

    def grow_stale(self, t_us: int) -> None:
        self.at_most = self.at_least = (0, 0, 0)
        self.response_time_s = None
        self.reason = "no results"
        self._become(UNKNOWN, t_us)

    def _become(self, status: str, at_us: int) -> None:
        if status != self.status:
            self.status, self.since_us = status, at_us


def _counted(runs: tuple[int, int, int], goes_on: Sequence[bool]) -> tuple[int, int, int]:
    first, second, third = (run + 1 if on else 0 for run, on in zip(runs, goes_on, strict=True))
    return first, second, third


class Health:
    """All checks and services. Called in event time; what it says depends on nothing else."""

    def __init__(
        self,
        checks: Iterable[HealthCheck],
        services: Iterable[ServiceSpec] = (),
        calendars: Iterable[Maintenance] = (),
        state: Any = None,
    ) -> None:
        """Anew, or from `snapshot`; checks and services may have changed in between.

        Raises:
            ValueError: the state is of another format.
        """
        self.checks = {one.name: one for one in checks}
        to_run = [one for one in self.checks.values() if one.heartbeat is None]
        if to_run:
            within = duration_text(min(max(120.0, *(one.stale_s for one in to_run)), MAX_DURATION_S))
            beat = {"metric": HEALTH_RUNS, "where": {"service": "=~.*"}, "within": within}
            mine = {"name": RUNNER_CHECK, "service": RUNNER, "heartbeat": beat}
            self.checks.setdefault(RUNNER_CHECK, HealthCheck.model_validate(mine))
        self._needs = {one.name: one.depends_on for one in services}
        self.circular = 0
        """Needs that are left out, since with them services would need each other in a circle: each file may be without
        one, and a change of several records is one for a moment."""
        while (cycle := cycle_of(self._needs)) is not None:
            self._needs[cycle[-2]] = tuple(one for one in self._needs[cycle[-2]] if one != cycle[-1])
            self.circular += 1
        names = {one.service for one in self.checks.values()}.union(self._needs, *self._needs.values())
        self._services = sorted(names)
        self._order = tuple(TopologicalSorter({one: self._needs.get(one, ()) for one in names}).static_order())
        """The services, each after those that it needs."""
        calendars = tuple(calendars)
        self._calendars = {service: Calendar(calendars, service) for service in names}
        fresh: tuple[Any, ...] = (STATE_VERSION, None, None, {}, {}, {}, {})
        version, started_us, last_us, states, seen, alerts, waiting = fresh if state is None else state
        if version != STATE_VERSION:
            raise foreign(version, STATE_VERSION, "the state of health")
        self._started_us: int | None = started_us
        self._last_us: int | None = last_us
        self._states = {name: _CheckState(*states.get(name, ())) for name in self.checks}
        self._seen: dict[str, HealthStatus] = {
            service: HealthStatus(*seen[service]) for service in self._services if service in seen
        }
        self._waiting: dict[int, dict[str, CheckResult]] = {
            end_us: {name: result for name, result in results.items() if name in self.checks}
            for end_us, results in waiting.items()
        }
        keys = [(one, level) for one in {check.service for check in self.checks.values()} for level in _SEVERITIES]
        self._alerts = {key: RuleAlerts(_spec(*key), alerts.get(key)) for key in sorted(keys)}
        self._orphans = {key: RuleAlerts(_spec(*key), one) for key, one in alerts.items() if key not in self._alerts}
        """Of services whose checks are gone: resolved at the next evaluation."""
        self.late = 0
        """Results that came after their window was judged."""

    # -- results ---------------------------------------------------------------------------------------

    def put(self, end_us: int, check: str, result: CheckResult) -> None:
        """What a check found in the window that ends at `end_us`; it replaces what was put for that before.

        A check that is not configured is passed over. A window that was judged already is counted in `late`.
        """
        if check not in self.checks:
            return
        if self._last_us is not None and end_us <= self._last_us:
            self.late += 1
            return
        self._waiting.setdefault(end_us, {})[check] = result

    def beat(self, end_us: int, check: str) -> None:
        """A heartbeat in the window that ends at `end_us`; late ones count too."""
        state = self._states.get(check)
        if state is not None and (state.newest_us is None or end_us > state.newest_us):
            state.newest_us = end_us

    # -- evaluation ------------------------------------------------------------------------------------

    def evaluate(self, t_us: int) -> tuple[list[AlertEvent], list[HealthStatus]]:
        """Judges all results of windows up to `t_us`, later than in all calls before.

        Returns:
            What became of alerts, and the statuses of checks and services that changed.

        Raises:
            ValueError: it was evaluated at that time already.
        """
        before = {name: (one.status, one.reason) for name, one in self._states.items()}
        self._started_us = t_us if self._started_us is None else self._started_us
        self._last_us = t_us
        for end_us in sorted(end for end in self._waiting if end <= t_us):
            for name, result in sorted(self._waiting.pop(end_us).items()):
                self._states[name].take(end_us, result, self.checks[name])
        for name, check in self.checks.items():
            self._judge_silence(check, self._states[name], t_us)
        changed = [
            self._check_status(name, t_us)
            for name, one in self._states.items()
            if (one.status, one.reason) != before[name]
        ]
        for status in self._roll_up(t_us):
            last = self._seen.get(status.service)
            if last is None or status.status != last.status or status.root_causes != last.root_causes:
                changed.append(status)
            self._seen[status.service] = status
        return self._judge_alerts(t_us), changed

    def _judge_silence(self, check: HealthCheck, state: _CheckState, t_us: int) -> None:
        assert self._started_us is not None
        beat = check.heartbeat
        silent_us = t_us - (self._started_us if state.newest_us is None else min(state.newest_us, t_us))
        if beat is None:
            if state.status != UNKNOWN and silent_us > check.stale_s * 1e6:
                state.grow_stale(t_us)
            return
        if silent_us > beat.within_s * 1e6:
            state.reason = f"silent for more than {duration_text(beat.within_s)}"
            state._become(UNHEALTHY, t_us)
        elif state.newest_us is not None:
            state.reason = ""
            state._become(HEALTHY, t_us)

    def _own(self) -> dict[str, str]:
        """Each service's status by its own checks: the worst; unknown only where none is bad."""
        found: dict[str, list[str]] = {service: [] for service in self._services}
        for name, check in self.checks.items():
            found[check.service].append(self._states[name].status)
        order = (UNHEALTHY, DEGRADED, UNKNOWN, HEALTHY)
        return {service: min(all_of, key=order.index, default=UNKNOWN) for service, all_of in found.items()}

    def _roll_up(self, t_us: int) -> list[HealthStatus]:
        own = self._own()
        rolled: dict[str, str] = {}
        causes: dict[str, tuple[str, ...]] = {}
        for service in self._order:
            needs = self._needs.get(service, ())
            bad = [one for one in needs if rolled[one] in _SEVERITIES]
            rolled[service] = DEGRADED if bad and own[service] not in _SEVERITIES else own[service]
            as_bad = [
                cause
                for one in bad
                for cause in causes[one]
                if own[service] not in _SEVERITIES or _LEVELS.index(own[cause]) <= _LEVELS.index(own[service])
            ]
            mine = (service,) if own[service] in _SEVERITIES else ()
            causes[service] = tuple(sorted(set(as_bad))) or mine
        return [self._service_status(service, rolled, causes[service], t_us) for service in self._services]

    def _service_status(
        self, service: str, rolled: Mapping[str, str], causes: tuple[str, ...], t_us: int
    ) -> HealthStatus:
        last = self._seen.get(service)
        since_us = last.since_us if last is not None and last.status == rolled[service] else t_us
        needs = tuple((one, rolled[one]) for one in self._needs.get(service, ()))
        return HealthStatus(
            service, "", rolled[service], since_us, t_us, self._reason(service), None, causes, needs
        )  # fmt: skip

    def _reason(self, service: str) -> str:
        """Its checks that are not healthy, and why: `checkout-http: timeout`."""
        bad = [
            f"{name}: {self._states[name].reason or self._states[name].status}"
            for name, check in self.checks.items()
            if check.service == service and self._states[name].status != HEALTHY
        ]
        return "; ".join(bad)

    def _check_status(self, name: str, t_us: int) -> HealthStatus:
        check, state = self.checks[name], self._states[name]
        since_us = state.since_us or t_us
        return HealthStatus(
            check.service, name, state.status, since_us, t_us, state.reason, state.response_time_s
        )  # fmt: skip

    def _judge_alerts(self, t_us: int) -> list[AlertEvent]:
        own = self._own()
        gone = [one for _, one in sorted(self._orphans.items())]
        events = [event for one in gone for event in one.close(t_us, "no check of the service is left")]
        self._orphans.clear()
        for (service, level), alerts in self._alerts.items():
            frozen = self._calendars[service].overlaps(t_us - STEP_US, t_us) or own[service] == UNKNOWN
            breached = {_labels(service, level): float(_LEVELS.index(level)) / 2} if own[service] == level else {}
            alerts.spec = alerts.spec._replace(description=self._description(service, level))
            events += alerts.evaluate(t_us, {} if frozen else breached, silent=frozen)
        return events

    def _description(self, service: str, level: str) -> str:
        text = f"{service} is {level}"
        if reason := self._reason(service):
            text += f" ({reason})"
        causes = [one for one in self._seen[service].root_causes if one != service]
        if causes:
            text += f", most likely because of {', '.join(causes)}"
        return _braced(text)

    # -- views and commands ----------------------------------------------------------------------------

    def statuses(self) -> list[HealthStatus]:
        """Of every check and service as of the last evaluation; none before the first."""
        if self._last_us is None:
            return []
        return [*(self._check_status(name, self._last_us) for name in self.checks), *self._seen.values()]

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `RuleAlerts.command`, for whichever of its alerts has that id."""
        for one in self._alerts.values():
            if (answer := one.command(command)) is not None:
                return answer
        return None

    def recall(self, told: Told) -> list[AlertEvent] | None:
        """As `RuleAlerts.recall`, for whichever has alerts of those labels; None: none has."""
        assert told.event.alert is not None
        for key, alerts in (self._orphans | self._alerts).items():
            if told.unit == "health" and told.event.alert.labels == dict(_labels(*key)):
                return alerts.recall(told)
        return None

    def alerts(self) -> list[Alert]:
        """Those that are active or acknowledged."""
        return [alert for one in self._alerts.values() for alert in one.alerts()]

    def republish(self) -> list[AlertEvent]:
        """As `RuleAlerts.republish`, of all its alerts."""
        return [event for one in self._alerts.values() for event in one.republish()]

    def close(self, t_us: int, reason: str) -> list[AlertEvent]:
        """As `RuleAlerts.close`, of all its alerts: no check is left."""
        return [event for one in (*self._orphans.values(), *self._alerts.values()) for event in one.close(t_us, reason)]

    def snapshot(self) -> object:
        """The state for recovery: plain values that pickle, independent of this object."""
        states = {
            name: (one.status, one.since_us, one.newest_us, one.at_most, one.at_least, one.reason, one.response_time_s)
            for name, one in self._states.items()
        }
        seen = {service: tuple(status) for service, status in self._seen.items()}
        alerts = {key: one.snapshot() for key, one in (self._orphans | self._alerts).items()}
        waiting = {end_us: dict(results) for end_us, results in self._waiting.items()}
        return (STATE_VERSION, self._started_us, self._last_us, states, seen, alerts, waiting)


def _labels(service: str, level: str) -> Labels:
    return (("alert", level), ("service", service))


def _spec(service: str, level: str) -> AlertSpec:
    return AlertSpec(
        name=f"{service} is {level}",
        source=f"health/{service}",
        severity=_SEVERITIES[level],
        metric="health.status",
        description=f"{_braced(service)} is {level}",
        threshold=Threshold(operator=Operator.LTE, value=_LEVELS.index(level) / 2),
    )


def _braced(text: str) -> str:
    """Text that `describe` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")
