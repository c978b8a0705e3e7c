"""One objective: its burn rates, what is left of its error budget, and its alerts.

The rules are those of Google's Site Reliability Workbook, chapter 5 (Alerting on SLOs), and of `docs/slo.md`. Besides:

- **No evidence, no change.** While maintenance lasts, or when no events were counted for 5 minutes, nothing begins to
  be told and nothing ends (prometheus#17482). The same for a single pair of windows while one of them has no events.
- **Few events begin nothing.** With less than `minimum_events` in the long window a burn is not told (pyrra#1925);
  one that is told already goes on until its windows say otherwise.
- **Maintenance** takes out whole 10 s windows, good and bad events alike.

State: 55 kB for a period of 30 d, and some kB for each alert. `evaluate` costs 0.2 ms (`python -m benchmarks slo`).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from operator import ne
from typing import Any, Final, NamedTuple

from tailrace_schemas.alerts import Alert, AlertEvent, Command, Labels, Operator, Severity, Threshold
from tailrace_schemas.config.base import duration_text
from tailrace_schemas.config.maintenance import Maintenance
from tailrace_schemas.config.slo import BurnAlert, SloSpec, percent_text

from tailrace_flows.core.alerting.burn import STEP_S, BudgetRings, Events, Stored
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_flows.core.alerting.maintenance import Calendar
from tailrace_flows.core.alerting.told import Told
from tailrace_flows.core.sealed import foreign

__all__ = ["MAX_EVENTS", "WINDOWS_S", "Slo", "SloStatus"]

WINDOWS_S: Final = (300, 1800, 3600, 7200, 21600, 86400, 259200, 2592000)
"""5 m, 30 m, 1 h, 2 h, 6 h, 1 d, 3 d, 30 d: burn rates of those up to the period are in every status."""
STALE_US: Final = 300_000_000
"""After so long without events nothing is judged: the shortest window, and Prometheus' lookback (promql/engine.go)."""
BUDGET_CLEAR: Final = 0.01
"""A low budget must be above its limit by this share to be so no more, or it would come and go with each request."""
MAX_EVENTS: Final = 2**53
"""Of a window: beyond it a float counts no single event, and sums of a period may have no end."""
MAX_VERSION: Final = 2**64 - 1
STATE_VERSION: Final = 1

_METRIC_BURN: Final = "slo.burn_rate"
_METRIC_BUDGET: Final = "slo.error_budget.remaining"
_EQUAL: Final = 1 + 1e-9
"""Ratios this close are equal: an error ratio of exactly 14.4 times what is allowed does not exceed 14.4."""


class SloStatus(NamedTuple):
    """An objective as of the end of a window: a row of `slo_status`, by (slo, window end)."""

    slo: str
    service: str
    window_end_us: int
    objective: float
    period_s: float
    bad: float
    """Events of the period."""
    total: float
    error_ratio: float | None
    """Of the period; None: there were no events."""
    budget_remaining: float
    """1 - error_ratio / (1 - objective): 1 untouched, 0 used up, negative overspent."""
    burn_rates: dict[str, float | None]
    """By window, as `1h`; None: no events in it."""
    exhausted_at_us: int | None
    """When the budget will be used up at the burn rate of the last hour (now, if it is); None: not within a period."""
    frozen: str
    """Why nothing was judged: `maintenance`, `no data`, `history pending`; empty: it was."""
    version: int
    """Total events: the status of fuller data replaces that of less."""


class _Judgement(NamedTuple):
    """One pair of windows."""

    alert: BurnAlert
    exceeded: bool
    known: bool
    burn: float


class Slo:
    """One objective. Its methods are called in event time; what it says depends on nothing else."""

    def __init__(self, spec: SloSpec, calendars: Iterable[Maintenance] = (), state: Any = None) -> None:
        """Anew, or from `snapshot`. Where the spec counts something else now, or by another period, only alerts go on.

        Raises:
            ValueError: the state is of another format.
        """
        self.spec = spec
        self._calendar = Calendar(calendars, spec.service)
        self._rings = BudgetRings(round(spec.period_s))
        burns = sorted(spec.burn_alerts(), key=lambda one: one.severity)
        self._burns = {severity: tuple(pairs) for severity, pairs in groupby(burns, key=lambda one: one.severity)}
        alerts = {}
        if state is not None:
            version, counted, rings, alerts = state
            if version != STATE_VERSION:
                raise foreign(version, STATE_VERSION, f"the state of slo/{spec.name}")
            if counted == _counted(spec):
                self._rings = BudgetRings.restore(rings)
        self._alerts = {key: RuleAlerts(one, alerts.get(key)) for key, one in self._specs().items()}
        self._orphans = {
            key: RuleAlerts(self._orphan(key), one) for key, one in alerts.items() if key not in self._alerts
        }
        """Alerts that the spec has no more: resolved at the next evaluation."""

    @property
    def empty(self) -> bool:
        """Whether it knows nothing of the past: then `prime` gives it what is stored."""
        return self._rings.head_us is None

    @property
    def head_us(self) -> int | None:
        """Up to where events are counted: the last evaluation, or what it was primed with."""
        return self._rings.head_us

    # -- events ----------------------------------------------------------------------------------------

    def put(self, end_us: int, bad: float, total: float) -> bool:
        """The events of a 10 s window, replacing what it had. False: it ended more than 6 h ago, and is left out.

        Bad events are kept within 0 and `total`: of two rows that come one after the other, one is there first.

        Raises:
            ValueError: as `BudgetRings.put`.
        """
        if self._calendar.overlaps(end_us - STEP_S * 1_000_000, end_us):
            bad = total = 0
        return self._rings.put(end_us, min(max(bad, 0), total), total)

    def prime(self, until_us: int, rows: Iterable[Stored]) -> None:
        """Fills an `empty` objective with stored rows until `until_us`, so that a budget survives a lost state.

        A stored row of a minute or an hour that overlaps maintenance is left out as a whole, as is one with more than
        MAX_EVENTS for each window in it.

        Raises:
            ValueError: as `BudgetRings.prime`.
        """
        calendar = self._calendar
        self._rings.prime(
            until_us,
            (
                row
                for row in rows
                if row.total <= MAX_EVENTS * row.seconds / STEP_S
                and not calendar.overlaps(row.start_us, row.start_us + row.seconds * 1_000_000)
            ),
        )

    def pending(self, t_us: int) -> SloStatus:
        """How an `empty` one stands that waits for its past: the figures are of the time since; nothing is judged."""
        since = self._rings.waiting(t_us)
        return self._status(t_us, "history pending", since, self._remaining(since))

    # -- evaluation ------------------------------------------------------------------------------------

    def evaluate(self, t_us: int) -> tuple[list[AlertEvent], SloStatus]:
        """Judges the objective at `t_us`, later than in all calls before.

        Raises:
            ValueError: it was evaluated at that time already.
        """
        rings = self._rings
        rings.advance(t_us)
        frozen = self._frozen(t_us)
        period = rings.events(rings.period_s)
        remaining = self._remaining(period)
        events = [event for one in self._orphans.values() for event in one.close(t_us, "it is no longer configured")]
        self._orphans.clear()
        for key, alerts in self._alerts.items():
            mine = self._labels(key)
            if any(labels != mine for labels in alerts.held()):  # no data of these would ever come
                events += alerts.close(t_us, "its objective is of another service now", partial(ne, mine))
        for severity, pairs in self._burns.items():
            judged = [self._judge(pair) for pair in pairs]
            worst = max((one for one in judged if one.exceeded), key=lambda one: one.burn, default=None)
            breached = {} if worst is None or frozen else {self._labels(severity): worst.burn}
            unknown = bool(frozen) or not all(one.known for one in judged)
            events += self._alerts[severity].evaluate(t_us, breached, silent=unknown)
        if (low := self.spec.budget_low) is not None:
            events += self._judge_budget(t_us, low, remaining, period, frozen=bool(frozen))
        return events, self._status(t_us, frozen, period, remaining)

    def _frozen(self, t_us: int) -> str:
        if self._calendar.overlaps(t_us - STEP_S * 1_000_000, t_us):
            return "maintenance"
        newest_us = self._rings.newest_us
        return "no data" if newest_us is None or t_us - newest_us > STALE_US else ""

    def _judge(self, pair: BurnAlert) -> _Judgement:
        """Whether both windows exceed the pair's threshold; not known where one has no, or the long one few, events."""
        limit = pair.threshold(self.spec.period_s) * self.spec.allowed * _EQUAL
        long = self._rings.events(round(pair.long_s))
        short = long if pair.short_s is None else self._rings.events(round(pair.short_s))
        if long.error_ratio is None or short.error_ratio is None:
            return _Judgement(pair, exceeded=False, known=False, burn=0.0)
        exceeded = long.error_ratio > limit and short.error_ratio > limit
        if exceeded and long.total < self.spec.minimum_events:
            return _Judgement(pair, exceeded=False, known=False, burn=0.0)
        return _Judgement(pair, exceeded, known=True, burn=long.error_ratio / self.spec.allowed)

    def _judge_budget(
        self, t_us: int, low: float, remaining: float, period: Events, *, frozen: bool
    ) -> list[AlertEvent]:
        value = {self._labels(None): remaining}
        few = period.total < self.spec.minimum_events
        breached = value if remaining < low and not few and not frozen else {}
        holding = value if not breached and remaining < low + BUDGET_CLEAR and not frozen else {}
        return self._alerts[None].evaluate(t_us, breached, holding, silent=frozen)

    # -- views -----------------------------------------------------------------------------------------

    def _remaining(self, period: Events) -> float:
        ratio = period.error_ratio
        return 1.0 if ratio is None else 1 - ratio / self.spec.allowed

    def burn_rate(self, window_s: int) -> float | None:
        """Of the window that ends where the last evaluation was; None: there were no events in it."""
        ratio = self._rings.events(window_s).error_ratio
        return None if ratio is None else ratio / self.spec.allowed

    def _status(self, t_us: int, frozen: str, period: Events, remaining: float) -> SloStatus:
        spec = self.spec
        burns = {duration_text(one): self.burn_rate(one) for one in WINDOWS_S if one <= spec.period_s}
        return SloStatus(
            spec.name, spec.service, t_us, spec.objective, spec.period_s, period.bad, period.total, period.error_ratio,
            remaining, burns, self._exhausted_at_us(t_us, remaining, burns["1h"]), frozen,
            min(round(period.total), MAX_VERSION),
        )  # fmt: skip

    def _exhausted_at_us(self, t_us: int, remaining: float, burn: float | None) -> int | None:
        """remaining * period / burn from now: the workbook's, table 5-4, for traffic like that of the period."""
        if remaining <= 0:
            return t_us
        if not burn:
            return None
        left_s = remaining * self.spec.period_s / burn
        # At a lower rate the errors that spent it leave the period sooner than new ones come.
        return t_us + round(left_s * 1e6) if left_s <= self.spec.period_s * _EQUAL else None

    # -- alerts ----------------------------------------------------------------------------------------

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
            if told.unit == f"slo/{self.spec.name}" and told.event.alert.labels == dict(self._labels(key)):
                return alerts.recall(told)
        return None

    def alerts(self) -> list[Alert]:
        """Those that are active or acknowledged."""
        return [alert for one in self._alerts.values() for alert in one.alerts()]

    def republish(self) -> list[AlertEvent]:
        """As `RuleAlerts.republish`, of all its alerts."""
        return [event for one in self._alerts.values() for event in one.republish()]

    def close(self, t_us: int, reason: str) -> list[AlertEvent]:
        """As `RuleAlerts.close`, of all its alerts: the objective is gone."""
        return [event for one in (self._orphans | self._alerts).values() for event in one.close(t_us, reason)]

    def _labels(self, severity: Severity | None) -> Labels:
        """`alert` tells the objective's alerts apart: `burn-critical`, `burn-warning`, `budget-low`."""
        alert = "budget-low" if severity is None else f"burn-{severity}"
        return (("alert", alert), ("service", self.spec.service), ("slo", self.spec.name))

    def _specs(self) -> dict[Severity | None, AlertSpec]:
        """What is said of its alerts: by severity those of burn rates, by None that of the budget."""
        spec = self.spec
        source = f"slo/{spec.name}"
        found: dict[Severity | None, AlertSpec] = {}
        for severity, pairs in self._burns.items():
            factor = min(one.threshold(spec.period_s) for one in pairs)
            for_s = pairs[0].for_s  # all of a severity have the same
            found[severity] = AlertSpec(
                name=f"{spec.name}: error budget burns fast",
                source=source,
                severity=severity,
                description=_braced(_text(spec, pairs)) + "{value:.3g}",
                metric=_METRIC_BURN,
                threshold=Threshold(operator=Operator.GT, value=factor, duration=for_s),
                for_us=round(for_s * 1e6),
                tags=spec.tags,
            )
        if spec.budget_low is not None:
            found[None] = AlertSpec(
                name=f"{spec.name}: error budget low",
                source=source,
                severity=Severity.WARNING,
                description=_braced(f"Of the error budget of {spec.service} is left over {_period(spec)}: ")
                + "{value:.1%}",
                metric=_METRIC_BUDGET,
                threshold=Threshold(operator=Operator.LT, value=spec.budget_low),
                tags=spec.tags,
            )
        return found

    def _orphan(self, severity: Severity | None) -> AlertSpec:
        name = f"{self.spec.name}: error budget {'low' if severity is None else 'burns fast'}"
        return AlertSpec(name, f"slo/{self.spec.name}", severity or Severity.WARNING, "no longer configured")

    # -- state -----------------------------------------------------------------------------------------

    def snapshot(self) -> object:
        """The state for recovery: plain values and arrays, independent of this object."""
        alerts = {key: one.snapshot() for key, one in (self._orphans | self._alerts).items()}
        return (STATE_VERSION, _counted(self.spec), self._rings.snapshot(), alerts)


def _counted(spec: SloSpec) -> tuple[str, ...]:
    """What the rings depend on."""
    return (spec.service, f"{spec.period_s:g}", spec.indicator.model_dump_json())


def _period(spec: SloSpec) -> str:
    return duration_text(spec.period_s)


def _text(spec: SloSpec, pairs: Sequence[BurnAlert]) -> str:
    limits = " or ".join(f"{one.threshold(spec.period_s):.4g} over {duration_text(one.long_s)}" for one in pairs)
    return (
        f"{spec.service} spends the error budget of {percent_text(spec.objective)} over {_period(spec)} too fast: "
        f"a burn rate above {limits}. It is "
    )


def _braced(text: str) -> str:
    """Text that `describe` leaves as it is."""
    return text.replace("{", "{{").replace("}", "}}")
