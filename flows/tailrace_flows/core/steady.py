"""The time that flows go by: wall time, but for what the host's clock is set by while they run.

A plain state machine; both clocks' times come as arguments. The adapter is `tailrace_flows.host_clock`.
"""

from typing import Final

__all__ = ["SteadyClock"]

TOLERANCE_US: Final = 2_000_000
"""A clock that was set by less is as good as before."""
AGREE_US: Final = 5_000_000
"""How far a record's time may lie behind the clock that it confirms: it was under way."""
LISTEN_US: Final = 10_000_000
"""For so long every record must agree with a clock that was set ahead."""


class SteadyClock:
    """Wall time as it was at the start, carried on by the monotonic clock: nothing that runs ever sees time leap.

    Where the host's clock is set, `set_by_us` says whether to start anew by it. At once, where it was set back: the
    engine waits for what it had planned by the clock as it was. Where it was set ahead, once the records that come
    agree: that was a clock put right, or a machine that slept. As long as one of them is older, the clock is wrong, and
    to go by it would make what comes late.

    Args:
        offset_us: of the process before this one, if that started anew, or of the broker's clock. Of two that differ
            the one that is behind is believed: to go by one that is ahead would make late what comes.
    """

    def __init__(self, wall_us: int, monotonic_us: int, offset_us: int | None = None) -> None:
        self._furthest_us = wall_us - monotonic_us
        """Its greatest so far: what the engine may have planned by."""
        self.offset_us = self._furthest_us if offset_us is None else min(offset_us, self._furthest_us)
        """Of the time to go by from the monotonic clock; after `set_by_us` has said so, for who starts anew."""
        self._listening_us: int | None = None
        """Monotonic time since when records are heard about a clock that was set ahead."""
        self._oldest_us: int | None = None
        """The least record time since, less the monotonic time when it was heard."""

    def now_us(self, monotonic_us: int) -> int:
        """The time to go by."""
        return monotonic_us + self.offset_us

    def hear(self, record_time_us: int, monotonic_us: int) -> None:
        """A record has been read, with the time that its producer or broker gave it."""
        heard_us = record_time_us - monotonic_us
        self._oldest_us = heard_us if self._oldest_us is None else min(self._oldest_us, heard_us)

    def set_by_us(self, wall_us: int, monotonic_us: int) -> int:
        """By how much the clock was set, if the process is to start anew by it; otherwise 0. To be asked often."""
        offset_us = wall_us - monotonic_us
        self._furthest_us = max(self._furthest_us, offset_us)
        if self._furthest_us - offset_us > TOLERANCE_US:
            self.offset_us = min(self.offset_us, offset_us)
            return offset_us - self._furthest_us
        if offset_us - self.offset_us <= TOLERANCE_US:
            self._listening_us = None
            return 0
        if self._listening_us is not None and monotonic_us - self._listening_us < LISTEN_US:
            return 0
        oldest_us, self._oldest_us = self._oldest_us, None
        if self._listening_us is not None and oldest_us is not None and oldest_us >= offset_us - AGREE_US:
            set_by_us, self.offset_us = offset_us - self.offset_us, offset_us
            return set_by_us
        self._listening_us = monotonic_us
        return 0
