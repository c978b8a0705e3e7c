"""Runs health checks at their intervals and sends what they find as samples.

Of service `health` (or as named), with the attributes `health.check.name`, `health.check.service` (whose health it is)
and `health.check.kind`:

- `health.check.runs` (counter, `{run}`), with `health.check.status`: healthy, degraded or unhealthy, and, where it is
  not healthy, the reason as `error.type`;
- `health.check.duration` (distribution, `s`), the response time.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Final, NamedTuple

from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.topics import Topics

from tailrace_producers.agent import Stop
from tailrace_producers.health.checks import CheckFailedError, Probe, Status, reason_of
from tailrace_producers.telemetry import Stats, Telemetry

__all__ = ["Check", "Result", "Runner", "run_check", "run_health"]

MAX_WORKERS: Final = 32
"""Checks under way at once. With as many checks or fewer, one that hangs holds up no other."""
GRACE_S: Final = 1.0
"""A check that overruns its timeout by this, as a name lookup can, is reported while it still hangs."""

_log = logging.getLogger("tailrace.health")


@dataclass(frozen=True)
class Check:
    """What to check, and how often. Times in seconds."""

    name: str
    service: str
    """Whose health it is."""
    kind: str
    probe: Probe
    interval_s: float = 30.0
    timeout_s: float = 5.0
    degraded_above_s: float | None = None
    """A healthy answer that takes longer is a degraded one."""

    def __post_init__(self) -> None:
        """Raises ValueError: times that contradict each other."""
        if not 0 < self.timeout_s <= self.interval_s:
            raise ValueError(f"{self.name}: timeout {self.timeout_s} s is not within the interval {self.interval_s} s")


class Result(NamedTuple):
    """What one run of a check found."""

    check: Check
    status: Status
    duration_s: float
    reason: str = ""
    detail: str = ""


def run_check(check: Check) -> Result:
    """Runs it now, in this thread. Raises nothing: whatever ails the check is its result."""
    begin_s = monotonic_s()
    try:
        check.probe(check.timeout_s)
    except Exception as error:  # noqa: BLE001 - whatever a probe, a library or the network came up with
        reason, detail = reason_of(error)
        status = error.status if isinstance(error, CheckFailedError) else Status.UNHEALTHY
        return Result(check, status, monotonic_s() - begin_s, reason, detail)
    duration_s = monotonic_s() - begin_s
    if check.degraded_above_s is not None and duration_s > check.degraded_above_s:
        slow = f"{duration_s:.3f} s is more than {check.degraded_above_s} s"
        return Result(check, Status.DEGRADED, duration_s, "slow", slow)
    return Result(check, Status.HEALTHY, duration_s)


class _Schedule:
    """Where one check stands. Changed by the scheduling thread alone."""

    def __init__(self, check: Check, due_s: float) -> None:
        self.check = check
        self.due_s = due_s
        self.begun_s: float | None = None
        """When its worker began; set by the worker."""
        self.running = False
        self.overdue = False
        """Reported as hanging already; what it finds in the end is too late."""


class Runner:
    """Checks on a bounded pool of threads: each at a fixed rate, never twice at once."""

    def __init__(self, checks: Sequence[Check], on_result: Callable[[Result], object]) -> None:
        """`on_result` is called in the thread of `run`.

        Raises:
            ValueError: no checks, or two of one name.
        """
        if not checks:
            raise ValueError("there is no check to run")
        names = [check.name for check in checks]
        if len(set(names)) < len(names):
            raise ValueError(f"two checks have the name {next(one for one in names if names.count(one) > 1)}")
        self._checks = list(checks)
        self._on_result = on_result
        self._work: SimpleQueue[_Schedule | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[_Schedule, Result]] = SimpleQueue()

    def run(self, stop: Stop, poll_s: float = 0.05) -> None:
        """Until `stop` is set; a check under way is then abandoned, its result not reported."""
        schedules = [_Schedule(check, monotonic_s()) for check in self._checks]
        workers = [Thread(target=self._worker, daemon=True) for _ in range(min(MAX_WORKERS, len(schedules)))]
        for worker in workers:
            worker.start()
        try:
            while not stop.is_set():
                self._collect()
                for schedule in schedules:
                    self._step(schedule, monotonic_s())
                stop.wait(poll_s)
        finally:
            for _ in workers:
                self._work.put(None)

    def _collect(self) -> None:
        while not self._done.empty():
            schedule, result = self._done.get()
            if not schedule.overdue:
                self._on_result(result)
            schedule.running = schedule.overdue = False
            schedule.begun_s = None

    def _step(self, schedule: _Schedule, now_s: float) -> None:
        check = schedule.check
        if not schedule.running and now_s >= schedule.due_s:
            schedule.running = True
            # At a fixed rate; what a slow check overlaps is left out, not made up for.
            schedule.due_s += check.interval_s * (1 + (now_s - schedule.due_s) // check.interval_s)
            self._work.put(schedule)
        elif schedule.running and schedule.begun_s is not None:
            took_s = now_s - schedule.begun_s
            if took_s > check.timeout_s + GRACE_S and (not schedule.overdue or now_s >= schedule.due_s):
                if schedule.overdue:
                    schedule.due_s += check.interval_s
                schedule.overdue = True
                self._on_result(Result(check, Status.UNHEALTHY, took_s, "timeout", "the check itself hangs"))

    def _worker(self) -> None:
        while (schedule := self._work.get()) is not None:
            schedule.begun_s = monotonic_s()
            self._done.put((schedule, run_check(schedule.check)))


class _Recorder:
    """Records results, and logs where a check's status changes."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._runs = telemetry.counter("health.check.runs", "{run}")
        self._duration = telemetry.distribution("health.check.duration", "s")
        self._last: dict[str, tuple[Status, str]] = {}

    def record(self, result: Result) -> None:
        check, time_us = result.check, now_us()
        whose = {
            "health.check.name": check.name,
            "health.check.service": check.service,
            "health.check.kind": check.kind,
        }
        outcome = {"health.check.status": result.status.value, "error.type": result.reason or None}
        self._runs.add(1, {**whose, **outcome}, time_us)
        self._duration.record(result.duration_s, whose, time_us)
        if self._last.get(check.name, (Status.HEALTHY, "")) != (result.status, result.reason):
            level = logging.INFO if result.status is Status.HEALTHY else logging.WARNING
            why = f": {result.reason} ({result.detail})" if result.reason else ""
            _log.log(level, "%s of %s is %s%s", check.name, check.service, result.status, why)
        self._last[check.name] = (result.status, result.reason)


def run_health(
    checks: Sequence[Check],
    stop: Stop,
    *,
    bootstrap_servers: str,
    properties: Mapping[str, object] | None = None,
    topics: Topics | None = None,
    service: str = "health",
) -> Stats:
    """Run checks until `stop` is set, then send what is left (5 s at most). Returns what became of the samples.

    Raises:
        ValueError, confluent_kafka.KafkaException: as for `Telemetry` and `Runner`.
    """
    with Telemetry(
        service, bootstrap_servers=bootstrap_servers, properties=properties, topics=topics or Topics()
    ) as telemetry:
        Runner(checks, _Recorder(telemetry).record).run(stop)
    return telemetry.stats
