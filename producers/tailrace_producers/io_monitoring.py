"""I/O monitoring: how long operations take, what caches hit, and a warning where a threshold is passed.

    start_io_monitoring(telemetry, slow_s={"read": 0.1})

    with track_io_operation("read", "config"):
        ...

    ids = monitor_cache("ids")
    ids.hit()

    print(generate_io_report())

What is tracked goes to the telemetry, if one is given, and into a summary of the last hour in memory that the report is
made of. Nothing raises into the host but a call with arguments that make no sense. Before `start_io_monitoring`, and
after `stop_io_monitoring`, tracking does nothing.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from numbers import Real
from threading import RLock
from typing import Final, ParamSpec, Self, TypeVar
from weakref import WeakSet

from tailrace_schemas.clock import monotonic_s

from tailrace_producers.http_server import error_type
from tailrace_producers.instruments import each_call
from tailrace_producers.io_report import CacheLine, IoReport, OperationLine, ReportFormat
from tailrace_producers.io_summary import RecentHour
from tailrace_producers.telemetry import Telemetry

__all__ = [
    "CacheMonitor", "generate_io_report", "monitor_cache", "start_io_monitoring", "stop_io_monitoring",
    "track_io_operation",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")

OPERATION_DURATION: Final = "io.operation.duration"
CACHE_LOOKUPS: Final = "cache.lookups"
CACHE_MEMORY: Final = "cache.memory.usage"
WARN_INTERVAL_S: Final = 60.0
"""A threshold that keeps being passed is told that often."""
MIN_LOOKUPS: Final = 100
"""Fewer of a cache, in five minutes, say nothing about its hit ratio."""
MAX_CACHES: Final = 100
MAX_OPERATIONS: Final = 200
"""Distinct operations of a process: memory and series are bounded by it. Further ones have the target `_OTHER`."""

_log = logging.getLogger("tailrace.io")


class CacheMonitor:
    """Counts the hits and misses of one cache, by name; get it by `monitor_cache`. For any thread. 2 us a call."""

    def __init__(self, name: str, memory_bytes: Callable[[], float] | None) -> None:
        self.name = name
        self.memory_bytes = memory_bytes

    def hit(self, count: int = 1) -> None:
        """So many lookups found what they looked for."""
        if _monitor is not None:
            _monitor.looked_up(self.name, count, 0)

    def miss(self, count: int = 1) -> None:
        """So many lookups did not."""
        if _monitor is not None:
            _monitor.looked_up(self.name, 0, count)


class _Warnings:
    """Has each trouble told once in `WARN_INTERVAL_S`, with how often it came meanwhile."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, ...], tuple[float, int]] = {}

    def due(self, key: tuple[str, ...], message: str, now_s: float) -> str | None:
        """What to tell now. The caller logs it without the lock: a log that hangs must not hold up other threads."""
        told_s, suppressed = self._told.get(key, (float("-inf"), 0))
        if now_s - told_s < WARN_INTERVAL_S:
            self._told[key] = told_s, suppressed + 1
            return None
        self._told[key] = now_s, 0
        return message + (f"; {suppressed} more since the last warning" if suppressed else "")


class _Monitor:
    """One monitoring, from its start to its stop."""

    def __init__(
        self,
        telemetry: Telemetry | None,
        slow_s: Mapping[str, float],
        min_hit_ratio: Mapping[str, float],
        max_memory_bytes: Mapping[str, float],
    ) -> None:
        self.telemetry = telemetry
        self._slow_s = dict(slow_s)
        self._min_hit_ratio = dict(min_hit_ratio)
        self._max_memory_bytes = dict(max_memory_bytes)
        self.start_over()
        if telemetry is not None:
            self._duration = telemetry.distribution(OPERATION_DURATION, "s")
            self._lookups = telemetry.counter(CACHE_LOOKUPS, "{lookup}")
            if telemetry not in _observed:
                _observed.add(telemetry)
                telemetry.gauge(CACHE_MEMORY, "By").observe(partial(_observe_memory, telemetry))

    def start_over(self) -> None:
        """Forget all: at the start, and in a forked child, where the lock may be held by nobody that lives."""
        self._lock = RLock()  # a signal handler may track too
        self._summary = RecentHour(MAX_OPERATIONS, monotonic_s())
        self._warnings = _Warnings()

    def tracked(self, kind: str, target: str, duration_s: float, error: BaseException | None) -> None:
        """One operation has ended."""
        now_s = monotonic_s()
        warning = None
        with self._lock:
            kind, target = self._summary.add(kind, target, duration_s, error is not None, now_s)
            limit_s = self.slow_limit_s(kind, target)
            if limit_s is not None and duration_s > limit_s:
                text = f"slow I/O: {kind} {target} took {duration_s:.3g} s, over its threshold of {limit_s:g} s"
                warning = self._warnings.due((kind, target), text, now_s)
        _warn(warning)
        if self.telemetry is not None:
            self._duration.record(
                duration_s,
                {
                    "io.operation.kind": kind,
                    "io.operation.target": target,
                    "error.type": None if error is None else error_type(error),
                },
            )

    def slow_limit_s(self, kind: str, target: str) -> float | None:
        """The threshold of `kind target`, else that of `kind`."""
        return self._slow_s.get(f"{kind} {target}", self._slow_s.get(kind))

    def looked_up(self, name: str, hits: int, misses: int) -> None:
        """Lookups of a cache."""
        now_s = monotonic_s()
        warning = None
        with self._lock:
            all_hits, all_misses = self._summary.add_lookups(name, hits, misses, now_s)
            least = self._min_hit_ratio.get(name)
            lookups = all_hits + all_misses
            if misses and least is not None and lookups >= MIN_LOOKUPS and all_hits < least * lookups:
                ratio = f"{all_hits / lookups:.0%} of {lookups} lookups"
                text = f"cache {name}: {ratio} hit, below its threshold of {least:.0%}"
                warning = self._warnings.due((name,), text, now_s)
        _warn(warning)
        if self.telemetry is not None:
            for count, result in ((hits, "hit"), (misses, "miss")):
                if count:
                    self._lookups.add(count, {"cache.name": name, "cache.result": result})

    def memory_of(self, cache: CacheMonitor) -> float | None:
        """What a cache says it takes; warns above its threshold. Raises what the host's function raises."""
        if cache.memory_bytes is None:
            return None
        size = float(cache.memory_bytes())
        most = self._max_memory_bytes.get(cache.name)
        if most is not None and size > most:
            text = f"cache {cache.name}: {size:,.0f} bytes, over its threshold of {most:,.0f}"
            with self._lock:
                warning = self._warnings.due((cache.name, "memory"), text, monotonic_s())
            _warn(warning)
        return size

    def report(self) -> IoReport:
        now_s = monotonic_s()
        with self._lock:
            operations = [
                OperationLine(kind, target, **summary.figures(), threshold_s=self.slow_limit_s(kind, target))
                for (kind, target), summary in self._summary.operations(now_s).items()
            ]
            lookups = self._summary.lookups(now_s)
            period_s = self._summary.period_s(now_s)
        caches = []
        for name in dict.fromkeys((*lookups, *_caches)):
            size = None
            with suppress(Exception):  # the host's function
                size = self.memory_of(_caches[name])
            caches.append(CacheLine(name, *lookups.get(name, (0, 0)), size))
        return IoReport(f"process {os.getpid()}", period_s, operations, caches)


_monitor: _Monitor | None = None
_caches: dict[str, CacheMonitor] = {}
_observed: "WeakSet[Telemetry]" = WeakSet()
"""Those that ask for the memory of caches already; nobody can tell them to stop."""


def _observe_memory(telemetry: Telemetry) -> list[tuple[float, Mapping[str, object]]]:
    """Of all caches, while the monitoring goes to this telemetry."""
    monitor = _monitor
    found: list[tuple[float, Mapping[str, object]]] = []
    if monitor is not None and monitor.telemetry is telemetry:
        for cache in tuple(_caches.values()):
            size = monitor.memory_of(cache)
            if size is not None:
                found.append((size, {"cache.name": cache.name, "process.pid": os.getpid()}))
    return found


def _warn(warning: str | None) -> None:
    if warning is not None:
        with suppress(Exception):  # a host's logging may raise
            _log.warning("%s", warning)


def start_io_monitoring(
    telemetry: Telemetry | None = None,
    *,
    slow_s: Mapping[str, float] | None = None,
    min_hit_ratio: Mapping[str, float] | None = None,
    max_memory_bytes: Mapping[str, float] | None = None,
) -> None:
    """Track from now on, in place of a monitoring that was started before.

    Thresholds, each a warning in the log `tailrace.io`, once a minute at most: `slow_s`, seconds by kind of operation
    or by `"kind target"`; `min_hit_ratio`, 0..1 by cache; `max_memory_bytes` by cache (looked at every 5 s with a
    telemetry, otherwise when a report is made).

    Raises:
        ValueError: a threshold that is no positive number, or a ratio above 1.
    """
    global _monitor
    thresholds = [dict(one or {}) for one in (slow_s, min_hit_ratio, max_memory_bytes)]
    for given, what in zip(thresholds, ("slow_s", "min_hit_ratio", "max_memory_bytes"), strict=True):
        most = 1 if what == "min_hit_ratio" else sys.float_info.max
        for name, value in given.items():
            if not isinstance(value, Real) or not 0 < value <= most:
                raise ValueError(f"{what}[{name!r}] is {value!r}; it must be a positive number, a ratio 1 at most")
    _monitor = _Monitor(telemetry, *thresholds)


def stop_io_monitoring() -> None:
    """Track no more, and forget what was tracked."""
    global _monitor
    _monitor = None


def monitor_cache(name: str, memory_bytes: Callable[[], float] | None = None) -> CacheMonitor:
    """The monitor of the cache of this name, the same each time; `memory_bytes` tells what it takes, if given.

    Raises:
        ValueError: no name, or more than 100 caches.
    """
    if not name:
        raise ValueError("a cache needs a name")
    found = _caches.get(name)
    if found is None:
        if len(_caches) >= MAX_CACHES:
            raise ValueError(f"more than {MAX_CACHES} caches: give one name to those that are alike")
        found = _caches.setdefault(name, CacheMonitor(name, memory_bytes))
    elif memory_bytes is not None:
        found.memory_bytes = memory_bytes
    return found


class track_io_operation:  # noqa: N801 - used as a function: as a context manager and as a decorator
    """Tracks a `with` block, or each call of the function it decorates, `async` ones too; failed ones as well.

    `kind` is what is done (`read`, `write`, `command`), `target` to what, of few distinct names: a table or a file's
    purpose, never a path with ids. Cost: 3 us; 0.2 us where monitoring is off.
    """

    __slots__ = ("_kind", "_start_s", "_target")

    def __init__(self, kind: str, target: str = "") -> None:
        self._kind = str(kind)
        self._target = str(target)
        self._start_s = 0.0

    def __enter__(self) -> Self:
        self._start_s = monotonic_s()
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if _monitor is not None:
            _monitor.tracked(self._kind, self._target, monotonic_s() - self._start_s, error)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        return each_call(function, partial(track_io_operation, self._kind, self._target))


def generate_io_report(format: ReportFormat = "text") -> str:
    """What this process did in the last hour, slowest in all first, as `text`, `markdown` or `json`.

    Durations are within 5 % (quantiles of 2^(1/8) wide buckets); counts, sums and maxima are exact. Without
    monitoring the report is empty.

    Raises:
        ValueError: another format.
    """
    report = _monitor.report() if _monitor is not None else IoReport(f"process {os.getpid()}", 0.0, [], [])
    return report.render(format)


def _after_fork() -> None:
    if _monitor is not None:
        _monitor.start_over()


os.register_at_fork(after_in_child=_after_fork)
