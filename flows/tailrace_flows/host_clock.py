"""The host's clock, as flows go by it: see `tailrace_flows.core.steady`. One for the process, as the clock is."""

import threading
from datetime import UTC, datetime

from tailrace_schemas import clock

from tailrace_flows.core.steady import SteadyClock

__all__ = ["as_datetime", "begin", "hear", "now_us", "offset_us", "set_by_us"]


def _monotonic_us() -> int:
    return clock.monotonic_ns() // 1000


_steady = SteadyClock(clock.now_us(), _monotonic_us())
_lock = threading.Lock()


def begin(offset_us: int | None = None) -> None:
    """From now on the clock is believed as it is now; with an `offset_us`, of the broker's or of a process before, the
    one that is behind."""
    global _steady
    with _lock:
        _steady = SteadyClock(clock.now_us(), _monotonic_us(), offset_us)


def offset_us() -> int:
    """For the `begin` of who starts anew since the clock was set."""
    return _steady.offset_us


def now_us() -> int:
    """Microseconds since the Unix epoch; never leaps."""
    return _steady.now_us(_monotonic_us())


def as_datetime(time_us: int) -> datetime:
    """A time of `now_us`, by the clock as it now is: the engine reads that one."""
    return datetime.fromtimestamp((time_us - now_us() + clock.now_us()) / 1e6, UTC)


def hear(record_time_us: int) -> None:
    """A record with this time has been read just now."""
    with _lock:
        _steady.hear(record_time_us, _monotonic_us())


def set_by_us() -> int:
    """By how much the clock was set, where the process must start anew; otherwise 0."""
    with _lock:
        return _steady.set_by_us(clock.now_us(), _monotonic_us())
