"""From rows of windows to what objectives and health checks count.

A window is counted anew whenever one of its rows changed, as long as all of its rows are at hand: 10 minutes. That is
ten times the lateness that windows have by default; what comes later than that is left out, and counted.
"""

from collections.abc import Iterable, Sequence
from math import isnan
from typing import Final

from tailrace_schemas.config.aggregate import Aggregate, How
from tailrace_schemas.config.health import HEALTH_RUNS, HealthCheck
from tailrace_schemas.config.matcher import Matcher, matchers_of
from tailrace_schemas.config.slo import Count, SloSpec
from tailrace_schemas.samples import KINDS

from tailrace_flows.core.alerting.health import HEALTHY, UNHEALTHY, CheckResult, Health
from tailrace_flows.core.alerting.select import Selector
from tailrace_flows.core.alerting.slo import MAX_EVENTS, Slo
from tailrace_flows.core.alerting.store import STEP_US, Keep, WindowStore

__all__ = ["REVISED_US", "HealthInput", "SloInput"]

REVISED_US: Final = 600_000_000
"""How long after an evaluation the rows of its window are kept, and may change what was counted."""

_COUNT: Final = Aggregate(How.COUNT)
_INCREASE: Final = Aggregate(How.INCREASE)
_MAX: Final = Aggregate(How.MAX)
_COUNTED: Final = frozenset({"counter", "cumulative", "event"})
_SAMPLED: Final = frozenset({"distribution"})
_NAME, _STATUS, _ERROR = "health.check.name", "health.check.status", "error.type"
_DURATION: Final = "health.check.duration"

Changed = Iterable[tuple[str, int]]
"""What `WindowStore.add` returns: (metric, window end in microseconds)."""


def _at(t_us: int) -> range:
    """The one time."""
    return range(t_us, t_us + 1, STEP_US)


def _where(service: str, where: dict[str, str]) -> list[Matcher]:
    """The matchers, and the service unless they name one."""
    named = [] if "service" in where else [Matcher("service", "=", service)]
    return [*named, *matchers_of(where)]


class _Events:
    """How many events a `Count` has in a window."""

    def __init__(self, count: Count, service: str) -> None:
        matchers = _where(service, count.where)
        self._parts = [
            (Selector(count.metric, matchers, (), _COUNTED), _INCREASE),
            (Selector(count.metric, matchers, (), _SAMPLED), _COUNT),
        ]

    def of(self, store: WindowStore, end_us: int) -> float | None:
        """None: the window has no rows of it."""
        found = [_single(selector, store, how, end_us) for selector, how in self._parts]
        known = [value for value in found if value is not None]
        return sum(known) if known else None


def _single(selector: Selector, store: WindowStore, how: Aggregate, end_us: int) -> float | None:
    values = selector.aggregate(store, how, STEP_US, _at(end_us))[0]
    return float(values[0]) if values.size and not isnan(values[0]) else None


class SloInput:
    """Finds an objective's good and bad events in rows."""

    def __init__(self, spec: SloSpec) -> None:
        indicator = spec.indicator
        self.late = 0
        """Windows that changed after REVISED_US."""
        self.impossible = 0
        """Windows with more events than MAX_EVENTS."""
        self._counts: tuple[_Events, _Events] | None = None
        self._slow: tuple[Selector, Aggregate] | None = None
        self._counts_bad = indicator.counts_bad
        if indicator.latency is not None:
            latency = indicator.latency
            selector = Selector(latency.metric, _where(spec.service, latency.where), (), _SAMPLED)
            self._slow = (selector, Aggregate(How.FRACTION_ABOVE, latency.below))
            self.keep = {latency.metric: Keep(REVISED_US, REVISED_US)}
        else:
            part, total = indicator.counts()
            self._counts = (_Events(part, spec.service), _Events(total, spec.service))
            self.keep = {one.metric: Keep(REVISED_US) for one in (part, total)}
        """What the store must keep for it."""

    def take(self, store: WindowStore, changed: Changed, slo: Slo) -> None:
        """Counts the windows that changed. Cost: about 0.1 ms a window.

        Samples in the one bucket of the sketch that a latency's limit lies in are good, as if they were at its lower
        edge: at the default scale of 6 a sample may be 1.1 % above the limit and good. Exact where a window's greatest
        sample is not above the limit, or its least one is, and where the limit is a power of two.
        """
        for end_us in sorted({end_us for metric, end_us in changed if metric in self.keep}):
            if slo.head_us is not None and end_us <= slo.head_us - REVISED_US:
                self.late += 1
                continue
            events = self._events(store, end_us)
            if events is None:
                continue
            if 0 <= events[1] <= MAX_EVENTS:
                slo.put(end_us, *events)
            else:  # a counter may have any finite value, as what went below 0 in unsigned arithmetic
                self.impossible += 1

    def _events(self, store: WindowStore, end_us: int) -> tuple[float, float] | None:
        """Bad and all events; None: there are no rows."""
        if self._slow is not None:
            selector, above = self._slow
            total = _single(selector, store, _COUNT, end_us)
            share = _single(selector, store, above, end_us)
            return None if total is None or share is None else (round(share * total), total)
        assert self._counts is not None
        part, total = (one.of(store, end_us) for one in self._counts)
        if total is None:
            return None
        part = part or 0.0
        return (part if self._counts_bad else total - part), total


class HealthInput:
    """Finds the results of checks, and heartbeats, in rows."""

    def __init__(self, checks: Iterable[HealthCheck]) -> None:
        """`checks`: those of `Health.checks`, which has one more than the configuration."""
        runs = frozenset({"counter"})
        self._runs = Selector(HEALTH_RUNS, (), (_NAME, _STATUS, _ERROR), runs)
        self._durations = Selector(_DURATION, (), (_NAME,), _SAMPLED)
        self._beats = [
            (one.name, Selector(one.heartbeat.metric, _where(one.service, one.heartbeat.where), (), frozenset(KINDS)))
            for one in checks
            if one.heartbeat is not None
        ]
        metrics = {HEALTH_RUNS, _DURATION, *(selector.metric for _, selector in self._beats)}
        self.keep = {metric: Keep(REVISED_US) for metric in metrics}
        """What the store must keep for it."""

    def take(self, store: WindowStore, changed: Changed, health: Health) -> None:
        """Hands over the results and beats of the windows that changed. Cost: about 0.1 ms a window, 20 us a result."""
        by_metric: dict[str, list[int]] = {}
        for metric, end_us in sorted(changed):
            by_metric.setdefault(metric, []).append(end_us)
        ends = {*by_metric.get(HEALTH_RUNS, ()), *by_metric.get(_DURATION, ())}
        for end_us in sorted(ends):
            for check, result in self._results(store, end_us).items():
                health.put(end_us, check, result)
        for check, selector in self._beats:
            for end_us in by_metric.get(selector.metric, ()):
                if selector.present(store, STEP_US, _at(end_us)).any():
                    health.beat(end_us, check)

    def _results(self, store: WindowStore, end_us: int) -> dict[str, CheckResult]:
        """By check the worst of its runs in the window."""
        groups = self._runs.groups(store)
        times = self._response_times(store, end_us)
        found: dict[str, CheckResult] = {}
        counts = self._runs.aggregate(store, _INCREASE, STEP_US, _at(end_us))[0]
        for number in (counts > 0).nonzero()[0].tolist():
            labels = dict(groups.labels(number))
            name, status = labels.get(_NAME, ""), labels.get(_STATUS, "")
            result = CheckResult(_status(status), labels.get(_ERROR, ""), times.get(name))
            before = found.get(name)
            if before is None or _badness(result) > _badness(before):
                found[name] = result
        return found

    def _response_times(self, store: WindowStore, end_us: int) -> dict[str, float]:
        groups = self._durations.groups(store)
        values = self._durations.aggregate(store, _MAX, STEP_US, _at(end_us))[0]
        return {
            dict(groups.labels(number)).get(_NAME, ""): float(value)
            for number, value in enumerate(values.tolist())
            if not isnan(value)
        }


_BADNESS: Final[Sequence[str]] = (HEALTHY, "degraded", UNHEALTHY)


def _status(text: str) -> str:
    """What somebody else's samples call otherwise is no health."""
    return text if text in _BADNESS else UNHEALTHY


def _badness(result: CheckResult) -> tuple[int, str]:
    return _BADNESS.index(result.status), result.reason
