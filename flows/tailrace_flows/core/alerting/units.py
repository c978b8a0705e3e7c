"""What the evaluator judges, and how a configuration becomes it."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from math import isnan
from typing import Any, Final, TypeVar

import pyarrow as pa
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Labels, alert_id
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.config.anomaly import ANOMALY_FLAGS, ANOMALY_SCORE, DetectorSpec
from tailrace_schemas.config.health import HealthCheck, ServiceSpec
from tailrace_schemas.config.maintenance import Maintenance
from tailrace_schemas.config.rules import RuleGroup
from tailrace_schemas.config.slo import SloSpec
from tailrace_schemas.rows import WINDOW_ROWS, WindowRows
from tailrace_schemas.samples import Series

from tailrace_flows.core.alerting.anomalies import Anomalies, JointAnomalies, Judged
from tailrace_flows.core.alerting.baselines import BASELINES_US, Baseline, baseline_id
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.evaluator import Findings, Moment, Plan
from tailrace_flows.core.alerting.health import Health, HealthStatus
from tailrace_flows.core.alerting.inputs import HealthInput, SloInput
from tailrace_flows.core.alerting.rules import AlertGroup, AlertRule, keep_of
from tailrace_flows.core.alerting.slo import Slo, SloStatus
from tailrace_flows.core.alerting.store import STEP_US, Keep
from tailrace_flows.core.alerting.told import Told
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.series import series_id

__all__ = ["AnomalyUnit", "HealthUnit", "RuleUnit", "SloUnit", "plan"]

STORED_SCORE: Final = 0.9
"""Points with such a score are stored: of ordinary series one in 100 to 200 (docs/anomalies.md)."""
MARKABLE: Final = 100
"""So many flags of a detector can be called false alarms: the latest."""
NO_SERVICE: Final = "tailrace"
"""Whose metric a score is that no service's label goes with."""

Model = TypeVar("Model", bound=ConfigModel)


def plan(parts: Collection[str], config: Mapping[str, ConfigModel]) -> dict[str, Plan]:
    """The units of a configuration, by key; of the parts `rules`, `slo`, `health` and `anomaly`."""
    found: dict[str, Plan] = {}
    calendars = _of(Maintenance, config)
    for key, model in config.items():
        if isinstance(model, RuleGroup) and "rules" in parts:
            found[key] = Plan(model, partial(RuleUnit, model))
        elif isinstance(model, SloSpec) and "slo" in parts:
            found[key] = Plan((model, calendars), partial(SloUnit, model, calendars))
        elif isinstance(model, DetectorSpec) and "anomaly" in parts:
            found[key] = Plan(model, partial(AnomalyUnit, model))
    checks, services = _of(HealthCheck, config), _of(ServiceSpec, config)
    if (checks or services) and "health" in parts:
        found["health"] = Plan((checks, services, calendars), partial(HealthUnit, checks, services, calendars))
    return found


def _of(kind: type[Model], config: Mapping[str, ConfigModel]) -> tuple[Model, ...]:
    """The things of one kind, in the order of their keys."""
    return tuple(model for _, model in sorted(config.items()) if isinstance(model, kind))


class RuleUnit:
    """A rule group."""

    by_change = False

    def __init__(self, group: RuleGroup, state: Any = None) -> None:
        self._group = AlertGroup(group, state)
        self.interval_us = self._group.interval_us
        self._delays = [rule for rule in self._group.rules.values() if rule.tells_delay]
        self._others = [rule for rule in self._group.rules.values() if not rule.tells_delay]
        self.keep: Mapping[str, Keep] = keep_of(self._others)
        self.delay_keep: Mapping[str, Keep] = keep_of(self._delays)

    def judge(self, now: Moment) -> Findings:
        """As `Unit.judge`: rules look at the store alone."""
        autos = [rule for rule in self._others if rule.auto is not None]
        over = sum(rule.auto.over_limit for rule in autos if rule.auto)
        events = self._evaluate(self._others, now)
        if not autos:
            return Findings(events)
        now.tally("anomaly_over_limit", sum(rule.auto.over_limit for rule in autos if rule.auto) - over)
        rows = []
        if _tells(now.t_us, self.interval_us):
            for rule in autos:
                assert rule.auto is not None
                rows += _baseline_rows(rule.learned_as, rule.rule.subject(), rule.auto.known(now.t_us), now.t_us)
        return Findings(events, {"baseline_rows": rows} if rows else {})

    def judge_delays(self, now: Moment) -> list[AlertEvent]:
        """As `DelayUnit.judge_delays`: at the last multiple of the interval.

        What was judged at a later time already was so by a clock that was ahead, or by windows that are: it ends, and
        begins anew.
        """
        events = []
        for rule in self._delays:
            judged_us = rule.alerts.judged_us
            if judged_us is not None and judged_us > now.t_us:
                events += rule.alerts.close(judged_us, "the clock was ahead")
                rule.begin_anew()
        t_us = now.t_us - now.t_us % self.interval_us
        return events + self._evaluate(self._delays, now._replace(t_us=t_us, until_us=t_us))

    def _evaluate(self, rules: Iterable[AlertRule], now: Moment) -> list[AlertEvent]:
        """Judges those that were not judged at this time yet; one that was changed may have been, by wall time."""
        due = [rule for rule in rules if rule.alerts.judged_us is None or rule.alerts.judged_us < now.t_us]
        events = self._group.evaluate(now.store, now.t_us, now.until_us, due)
        now.tally("rule_evaluations", len(due))
        for rule in due:
            if rule.alerts.refused:
                now.tally(f"alerts_refused.{rule.alerts.spec.source}", rule.alerts.refused)
        return events

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._group.command(command)

    def recall(self, told: Told) -> list[AlertEvent] | None:
        """As `Unit.recall`."""
        assert told.event.alert is not None
        rule = self._group.rules.get(told.event.alert.name)
        if rule is None:
            return None
        if rule.tells_delay and told.due_us is not None and rule.alerts.judged_us is not None:
            told = told._replace(due_us=min(told.due_us, rule.alerts.judged_us))  # no time is judged a second time
        return rule.alerts.recall(told)

    def close(self, t_us: int, reason: str, successor: "RuleUnit | None" = None) -> list[AlertEvent]:
        """As `Unit.close`: resolves the alerts that no rule of the successor goes on with."""
        staying = successor._group.rules if successor else {}
        interval_us = (successor or self).interval_us
        events = []
        for name, rule in self._group.rules.items():
            now = staying.get(name)
            at_us = max(t_us, rule.alerts.judged_us or t_us)
            if now is None:
                events += rule.alerts.close(at_us, reason)
            elif not now.tells_apart_as(rule):
                events += rule.alerts.close(at_us, "its rule has other labels now")
                now.begin_anew()
            else:  # without data of them any more, they would stay as they are
                events += now.alerts.close(at_us, "its rule leaves it out now", now.leaves_out)
                if now.rule.severity is not rule.rule.severity:
                    next_us = at_us - at_us % interval_us + interval_us
                    events += now.alerts.renew(at_us, next_us, "its rule has another severity now")
        return events

    def republish(self) -> list[AlertEvent]:
        """As `Unit.republish`."""
        return self._group.republish()

    def snapshot(self) -> Any:
        """As `Unit.snapshot`."""
        return self._group.snapshot()


class SloUnit:
    """An objective."""

    by_change = True
    interval_us = STEP_US

    def __init__(self, spec: SloSpec, calendars: Iterable[Maintenance], state: Any = None) -> None:
        self.spec = spec
        self._slo = Slo(spec, calendars, state)
        self._waits = False
        self._input = SloInput(spec)
        self.keep: Mapping[str, Keep] = self._input.keep

    @property
    def empty(self) -> bool:
        """Whether it wants to be primed."""
        return self._slo.empty

    def await_past(self) -> None:
        """Nothing is judged until `prime` is called."""
        self._waits = True

    def prime(self, until_us: int, rows: Iterable[Stored]) -> None:
        """As `Slo.prime`."""
        self._slo.prime(until_us, rows)
        self._waits = False

    def judge(self, now: Moment) -> Findings:
        """As `Unit.judge`; nothing is judged that lies before what the objective was primed with."""
        late, impossible = self._input.late, self._input.impossible
        self._input.take(now.store, now.changed, self._slo)
        now.tally("slo_late_windows", self._input.late - late)
        now.tally("slo_impossible_windows", self._input.impossible - impossible)
        if self._waits:
            return Findings((), {"slo_status_rows": [_status_row(self._slo.pending(now.t_us))]})
        head_us = self._slo.head_us
        if head_us is not None and now.t_us <= head_us:
            return Findings()
        now.tally("slo_evaluations")
        events, status = self._slo.evaluate(now.t_us)
        return Findings(events, {"slo_status_rows": [_status_row(status)]})

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._slo.command(command)

    def recall(self, told: Told) -> list[AlertEvent] | None:
        """As `Unit.recall`."""
        return self._slo.recall(told)

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

    by_change = True
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

    def judge(self, now: Moment) -> Findings:
        """As `Unit.judge`."""
        late = self._health.late
        self._input.take(now.store, now.changed, self._health)
        now.tally("health_late_results", self._health.late - late)
        now.tally("health_evaluations")
        now.tally("health_circular_needs", self._health.circular)
        events, statuses = self._health.evaluate(now.t_us)
        return Findings(events, {"health_rows": [_health_row(one) for one in statuses]} if statuses else {})

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`."""
        return self._health.command(command)

    def recall(self, told: Told) -> list[AlertEvent] | None:
        """As `Unit.recall`."""
        return self._health.recall(told)

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


class AnomalyUnit:
    """The series of a detector."""

    by_change = False

    def __init__(self, spec: DetectorSpec, state: Any = None) -> None:
        self.spec = spec
        joint, anomalies, flagged, marked = (False, None, {}, []) if state is None else state
        self._flagged: dict[str, tuple[Labels, dict[str, Any]]] = dict(flagged)
        """Anomaly id -> labels and stored row of the latest flags."""
        self._marked: list[dict[str, Any]] = list(marked)
        """Rows that a person marked since the last evaluation."""
        kept = anomalies if state is None or bool(spec.signals) == joint else None
        build = JointAnomalies if spec.signals else Anomalies
        self._anomalies: Anomalies | JointAnomalies = build(spec, kept)
        self._what = spec.what if spec.signals else spec.question().subject()
        self._learned_as = f"detector:{spec.name}"
        self.interval_us = self._anomalies.interval_us
        self.keep: Mapping[str, Keep] = self._anomalies.keep

    def judge(self, now: Moment) -> Findings:
        """As `Unit.judge`: a detector looks at the store alone."""
        over = self._anomalies.over_limit
        judged = self._anomalies.evaluate(now.store, now.t_us)
        rows, self._marked = self._marked, []
        for one in judged:
            if one.flag or one.score >= STORED_SCORE:
                row = self._row(one, now.t_us)
                rows.append(row)
                if one.flag:
                    self._flagged[row["anomaly_id"]] = (one.labels, row)
        while len(self._flagged) > MARKABLE:
            del self._flagged[next(iter(self._flagged))]
        now.tally("anomaly_points", len(judged))
        now.tally("anomaly_flags", sum(one.flag for one in judged))
        now.tally("anomaly_over_limit", self._anomalies.over_limit - over)
        found = {"anomaly_rows": rows} if rows else {}
        if _tells(now.t_us, self.interval_us):
            known = self._anomalies.known(now.t_us)
            found["baseline_rows"] = _baseline_rows(self._learned_as, self._what, known, now.t_us)
        return Findings((), found, blocks=_blocks(self.spec, judged, now.t_us))

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `Unit.command`: of a flag that is called a false alarm, once; its row says so with the next evaluation.

        RESET forgets what was learned of a series.
        """
        if command.kind is CommandKind.RESET:
            return [] if self._anomalies.reset(self._learned_as, command.alert_id) else None
        found = self._flagged.get(command.alert_id)
        if found is None or command.kind is not CommandKind.FEEDBACK:
            return None
        labels, row = found
        if not row["marked_by"]:
            self._anomalies.false_positive(labels)
            row = row | {"marked_by": command.author, "version": 2}
            self._flagged[command.alert_id] = (labels, row)
            self._marked.append(row)
        return []

    def recall(self, told: Told) -> list[AlertEvent] | None:
        """As `Unit.recall`: it has no alerts."""
        return None

    def close(self, t_us: int, reason: str, successor: "AnomalyUnit | None" = None) -> list[AlertEvent]:
        """As `Unit.close`: it has no alerts."""
        return []

    def republish(self) -> list[AlertEvent]:
        """As `Unit.republish`: it has no alerts."""
        return []

    def snapshot(self) -> Any:
        """As `Unit.snapshot`."""
        return bool(self.spec.signals), self._anomalies.snapshot(), dict(self._flagged), list(self._marked)

    def _row(self, one: Judged, t_us: int) -> dict[str, Any]:
        labels = dict(one.labels)
        side = "above" if one.value > one.expected else "below"
        return {
            "anomaly_id": alert_id(f"detector/{self.spec.name}", one.labels, t_us),
            "detector": self.spec.name,
            "metric": self.spec.what,
            "service": labels.get("service", ""),
            "labels": list(one.labels),
            "window_end": t_us // 1_000_000,
            **{name: getattr(one, name) for name in ("value", "expected", "low", "high", "score", "flag", "bar")},
            "reason": one.reason
            or f"{self._what} is {one.value:.4g}, {side} the expected {one.expected:.4g} "
            f"({one.low:.4g} to {one.high:.4g} is usual)",
            "marked_by": "",
            "version": 1,
        }


def _tells(t_us: int, interval_us: int) -> bool:
    """Whether this evaluation is the first of some minutes: then what was learned is told."""
    return t_us % BASELINES_US < interval_us


def _baseline_rows(source: str, what: str, known: Iterable[Baseline], t_us: int) -> list[dict[str, Any]]:
    """What was learned, as rows."""
    return [
        {
            "baseline_id": baseline_id(source, one.labels),
            "source": source,
            "subject": what,
            "service": dict(one.labels).get("service", ""),
            "labels": list(one.labels),
            "time": t_us // 1_000_000,
            **{name: getattr(one, name) for name in ("points", "warming_up", "bar", "held")},
            **{name: _known(getattr(one, name)) for name in ("expected", "low", "high")},
            "version": t_us // 1_000_000,
        }
        for one in known
    ]


def _known(value: float) -> float | None:
    return None if isnan(value) else value


def _blocks(spec: DetectorSpec, judged: Iterable[Judged], t_us: int) -> list[WindowRows]:
    """The scores, and a count for each flag, as rows of the window that ended."""
    of_services: dict[str, list[dict[str, Any]]] = {}
    for one in judged:
        labels = dict(one.labels) | {"detector": spec.name, "metric": spec.what}
        service = labels.pop("service", NO_SERVICE)
        rows = of_services.setdefault(service, [])
        attributes = tuple(sorted(labels.items()))
        extremes = {"min": one.score, "max": one.score, "last": one.score}
        rows.append(_window_row(service, Series(ANOMALY_SCORE, "gauge", "1", attributes), t_us, one.score, extremes))
        if one.flag:
            flags = Series(ANOMALY_FLAGS, "counter", "{flag}", attributes)
            rows.append(_window_row(service, flags, t_us, 1.0, {"increase": 1.0}))
    return [
        WindowRows(service, "", STEP_US // 1_000_000, UNKNOWN_US, pa.RecordBatch.from_pylist(rows, WINDOW_ROWS))
        for service, rows in of_services.items()
    ]


def _window_row(service: str, series: Series, end_us: int, value: float, more: dict[str, float]) -> dict[str, Any]:
    return {
        "metric": series.metric,
        "service": service,
        "series_id": series_id(service, series),
        "attributes": list(series.attributes),
        "kind": series.kind,
        "unit": series.unit,
        "stream": "",
        "window_start": (end_us - STEP_US) // 1_000_000,
        "count": 1,
        "sum": value,
        "bucket_index": [],
        "bucket_count": [],
        "version": 1,
        **more,
    }
