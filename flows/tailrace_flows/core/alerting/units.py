"""What the evaluator judges, and how a configuration becomes it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from tailrace_schemas.alerts import AlertEvent, Command
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.config.health import HealthCheck, ServiceSpec
from tailrace_schemas.config.maintenance import Maintenance
from tailrace_schemas.config.rules import RuleGroup
from tailrace_schemas.config.slo import SloSpec

from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.evaluator import Findings, Plan
from tailrace_flows.core.alerting.health import Health, HealthStatus
from tailrace_flows.core.alerting.inputs import HealthInput, SloInput
from tailrace_flows.core.alerting.rules import AlertGroup, keep_of
from tailrace_flows.core.alerting.slo import Slo, SloStatus
from tailrace_flows.core.alerting.store import STEP_US, Keep, WindowStore

__all__ = ["HealthUnit", "RuleUnit", "SloUnit", "plan"]

Model = TypeVar("Model", bound=ConfigModel)


def plan(parts: Collection[str], config: Mapping[str, ConfigModel]) -> dict[str, Plan]:
    """The units of a configuration, by key; of the parts `rules`, `slo` and `health`."""
    found: dict[str, Plan] = {}
    calendars = _of(Maintenance, config)
    for key, model in config.items():
        if isinstance(model, RuleGroup) and "rules" in parts:
            found[key] = Plan(model, partial(RuleUnit, model))
        elif isinstance(model, SloSpec) and "slo" in parts:
            found[key] = Plan((model, calendars), partial(SloUnit, model, calendars))
    checks, services = _of(HealthCheck, config), _of(ServiceSpec, config)
    if (checks or services) and "health" in parts:
        found["health"] = Plan((checks, services, calendars), partial(HealthUnit, checks, services, calendars))
    return found


def _of(kind: type[Model], config: Mapping[str, ConfigModel]) -> tuple[Model, ...]:
    """The things of one kind, in the order of their keys."""
    return tuple(model for _, model in sorted(config.items()) if isinstance(model, kind))


class RuleUnit:
    """A rule group."""

    def __init__(self, group: RuleGroup, state: Any = None) -> None:
        self._group = AlertGroup(group, state)
        self.interval_us = self._group.interval_us
        self.keep: Mapping[str, Keep] = keep_of([self._group])

    def judge(
        self, store: WindowStore, t_us: int, changed: Iterable[tuple[str, int]], count: Callable[..., None]
    ) -> Findings:
        """As `Unit.judge`: rules look at the store alone."""
        count("rule_evaluations", len(self._group.rules))
        events = self._group.evaluate(store, t_us)
        for rule in self._group.rules.values():
            count(f"alerts_refused.{rule.alerts.spec.source}", rule.alerts.refused)
        return Findings(events)

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._group.command(command)

    def close(self, t_us: int, reason: str, successor: "RuleUnit | None" = None) -> list[AlertEvent]:
        """As `Unit.close`: resolves the alerts of all rules but those that the successor has too."""
        staying = successor._group.rules if successor else {}
        gone = [rule for name, rule in self._group.rules.items() if name not in staying]
        return [event for rule in gone for event in rule.alerts.close(t_us, reason)]

    def republish(self) -> list[AlertEvent]:
        """As `Unit.republish`."""
        return self._group.republish()

    def snapshot(self) -> Any:
        """As `Unit.snapshot`."""
        return self._group.snapshot()


class SloUnit:
    """An objective."""

    interval_us = STEP_US

    def __init__(self, spec: SloSpec, calendars: Iterable[Maintenance], state: Any = None) -> None:
        self.spec = spec
        self._slo = Slo(spec, calendars, state)
        self._input = SloInput(spec)
        self.keep: Mapping[str, Keep] = self._input.keep

    @property
    def empty(self) -> bool:
        """Whether it wants to be primed."""
        return self._slo.empty

    def prime(self, until_us: int, rows: Iterable[Stored]) -> None:
        """As `Slo.prime`."""
        self._slo.prime(until_us, rows)

    def judge(
        self, store: WindowStore, t_us: int, changed: Iterable[tuple[str, int]], count: Callable[..., None]
    ) -> Findings:
        """As `Unit.judge`; nothing is judged that lies before what the objective was primed with."""
        late = self._input.late
        self._input.take(store, changed, self._slo)
        count("slo_late_windows", self._input.late - late)
        head_us = self._slo.head_us
        if head_us is not None and t_us <= head_us:
            return Findings()
        count("slo_evaluations")
        events, status = self._slo.evaluate(t_us)
        return Findings(events, {"slo_status_rows": [_status_row(status)]})

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._slo.command(command)

    def close(self, t_us: int, reason: str, successor: "SloUnit | None" = None) -> list[AlertEvent]:
        """As `Unit.close`; a changed one resolves by itself what it does not have."""
        return [] if successor else self._slo.close(t_us, reason)

    def republish(self) -> list[AlertEvent]:
        """As `Unit.republish`."""
        return self._slo.republish()

    def snapshot(self) -> Any:
        """As `Unit.snapshot`."""
        return self._slo.snapshot()


def _status_row(status: SloStatus) -> dict[str, Any]:
    exhausted_at_us = status.exhausted_at_us
    row = status._asdict() | {f"burn_rate_{window}": rate for window, rate in status.burn_rates.items()}
    row["window_end"] = status.window_end_us // 1_000_000
    row["exhausted_at"] = None if exhausted_at_us is None else exhausted_at_us // 1_000_000
    for name in ("window_end_us", "burn_rates", "exhausted_at_us"):
        del row[name]
    return row


class HealthUnit:
    """The health of all services: they need each other, so they are one unit."""

    interval_us = STEP_US

    def __init__(
        self,
        checks: Iterable[HealthCheck],
        services: Iterable[ServiceSpec],
        calendars: Iterable[Maintenance],
        state: Any = None,
    ) -> None:
        self._health = Health(checks, services, calendars, state)
        self._input = HealthInput(self._health.checks.values())
        self.keep: Mapping[str, Keep] = self._input.keep

    def judge(
        self, store: WindowStore, t_us: int, changed: Iterable[tuple[str, int]], count: Callable[..., None]
    ) -> Findings:
        """As `Unit.judge`."""
        late = self._health.late
        self._input.take(store, changed, self._health)
        count("health_late_results", self._health.late - late)
        count("health_evaluations")
        events, statuses = self._health.evaluate(t_us)
        return Findings(events, {"health_rows": [_health_row(one) for one in statuses]} if statuses else {})

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._health.command(command)

    def close(self, t_us: int, reason: str, successor: "HealthUnit | None" = None) -> list[AlertEvent]:
        """As `Unit.close`; a changed one resolves by itself what it does not have."""
        return [] if successor else self._health.close(t_us, reason)

    def republish(self) -> list[AlertEvent]:
        """As `Unit.republish`."""
        return self._health.republish()

    def snapshot(self) -> Any:
        """As `Unit.snapshot`."""
        return self._health.snapshot()


def _health_row(status: HealthStatus) -> dict[str, Any]:
    return {
        "service": status.service,
        "check": status.check,
        "status": status.status,
        "since": status.since_us,
        "time": status.time_us,
        "reason": status.reason,
        "response_time_s": status.response_time_s,
        "root_causes": list(status.root_causes),
        "dependencies": list(status.dependencies),
    }
