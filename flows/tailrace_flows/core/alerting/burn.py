"""How fast an error budget burns: bad and total events in rings of several resolutions.

The burn rate of a window is its error ratio over the ratio that the objective allows: at 1 the budget lasts exactly its
period (Google SRE Workbook, chapter 5). Ratios are weighted by events: all bad over all events, never a mean of
ratios (sloth#241).

What is exact. Each event is counted exactly once in every ring, and a row that is revised replaces what was counted.
The newer edge of a window is always exact to 10 s. Its older edge is exact to 10 s for windows up to 6 h, which the
short windows of every usual policy are; in a longer window the one bucket that the edge falls into is counted in
proportion, as if its events were spread evenly. So a sum is off by at most the events of that bucket, which is

    a window up to 1 d: 5 min, or 0.35 % of a day;   up to 3 d: 15 min, 0.35 %;   up to the period: 1 h, 0.14 % of 30 d

and by nothing while bad and total events of that bucket come at an even rate.

Memory, and the size of a snapshot: 55 kB for a period of 30 d, whatever the traffic.
"""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["EXACT_S", "STEP_S", "BudgetRings", "Events", "Stored"]

STEP_S: Final = 10
"""The windows that come in."""
EXACT_S: Final = 6 * 3600
"""Windows up to this are exact to STEP_S; rows can be revised for as long."""
_COARSER: Final = ((300, 86400), (900, 3 * 86400))
"""Seconds of a bucket, and how far back such buckets reach."""
_COARSEST_S: Final = 3600
_COARSEST_SLOTS: Final = 720
"""30 d of hours; for a longer period the buckets grow."""
_STEP_US: Final = STEP_S * 1_000_000
_WAITING: Final = 2 * EXACT_S // STEP_S
"""Windows that wait, at most, while there is no head: older ones could not be counted."""


class Events(NamedTuple):
    """Events of a window of time."""

    bad: float
    total: float

    @property
    def error_ratio(self) -> float | None:
        """None where there were no events: that is no evidence, good or bad."""
        return self.bad / self.total if self.total > 0 else None


class Stored(NamedTuple):
    """A stored row of good and total events, of 10 s, a minute or an hour."""

    start_us: int
    seconds: int
    good: float
    total: float


class BudgetRings:
    """Events by time, until `head_us`; what comes with later windows waits until the head moves there."""

    def __init__(self, period_s: int) -> None:
        """Raises ValueError: the period is no whole number of hours, or shorter than 6 h."""
        if period_s % 3600 or period_s < EXACT_S:
            raise ValueError(f"a period of {period_s} s is no whole number of hours, at least {EXACT_S // 3600}")
        self.period_s = period_s
        coarsest_s = _COARSEST_S * -(-period_s // (_COARSEST_S * _COARSEST_SLOTS))
        levels = [(STEP_S, EXACT_S), *((step_s, min(reach_s, period_s)) for step_s, reach_s in _COARSER)]
        if period_s > levels[-1][1]:
            levels.append((coarsest_s, period_s))
        # Two slots more: one for the bucket of the older edge, one for the bucket that the head is in.
        self._levels = [_Ring(step_s * 1_000_000, -(-reach_s // step_s) + 2, reach_s) for step_s, reach_s in levels]
        self._waiting: dict[int, tuple[float, float]] = {}
        """Windows after the head: end -> (bad, total)."""
        self.head_us: int | None = None
        """Up to here events are counted; None: nothing was asked for yet."""
        self.newest_us: int | None = None
        """The end of the newest counted window that had events."""
        self._sums: dict[int, Events] = {}
        """By window, since something was counted last."""

    def put(self, end_us: int, bad: float, total: float) -> bool:
        """Counts a 10 s window, replacing what it had. False: it ended more than 6 h before the head, and is left out.

        Cost: 4 us.

        Raises:
            ValueError: `end_us` is not the end of a 10 s window, or the counts are not 0 <= bad <= total.
        """
        if end_us % _STEP_US:
            raise ValueError(f"{end_us} us is not the end of a window of {STEP_S} s")
        if not 0 <= bad <= total < float("inf"):
            raise ValueError(f"{bad} bad of {total} events is not possible")
        if self.head_us is None or end_us > self.head_us:
            self._waiting[end_us] = (bad, total)
            if self.head_us is None and len(self._waiting) > _WAITING:
                del self._waiting[min(self._waiting)]
            return True
        if end_us <= self.head_us - EXACT_S * 1_000_000:
            return False
        self._count(end_us, bad, total)
        return True

    def advance(self, t_us: int) -> None:
        """Moves the head to the last 10 s boundary not after `t_us`; going back is ignored."""
        t_us -= t_us % _STEP_US
        if self.head_us is not None and t_us <= self.head_us:
            return
        for ring in self._levels:
            ring.move(self.head_us, t_us)
        self.head_us = t_us
        self._sums.clear()
        for end_us in sorted(end for end in self._waiting if end <= t_us):
            bad, total = self._waiting.pop(end_us)
            if end_us > t_us - EXACT_S * 1_000_000:
                self._count(end_us, bad, total)
            else:
                self._fill(Stored(end_us - _STEP_US, STEP_S, total - bad, total))

    def _count(self, end_us: int, bad: float, total: float) -> None:
        fine = self._levels[0]
        slot = fine.slot(end_us)
        more_bad, more_total = bad - fine.bad[slot], total - fine.total[slot]
        if more_bad or more_total:
            self._sums.clear()
            for ring in self._levels:
                slot = ring.slot(end_us)
                ring.bad[slot] += more_bad
                ring.total[slot] += more_total
        if total and (self.newest_us is None or end_us > self.newest_us):
            self.newest_us = end_us

    def prime(self, until_us: int, rows: Iterable[Stored]) -> None:
        """Fills empty rings with stored rows that do not overlap; the head is then at `until_us`.

        Windows that were put before replace what is stored of them. A row is counted in the rings whose buckets are as
        long as it or longer; see `tailrace_flows.core.alerting.slo` for the rows that make every ring complete. Rows
        after `until_us` or before the period are left out.

        Raises:
            ValueError: the rings are not empty, or a row is not possible.
        """
        if self.head_us is not None:
            raise ValueError("only rings that counted nothing yet can be filled")
        waiting, self._waiting = self._waiting, {}
        self.advance(until_us)
        for row in rows:
            if not 0 <= row.good <= row.total < float("inf"):
                raise ValueError(f"{row.good} good of {row.total} events is not possible")
            if row.start_us + row.seconds * 1_000_000 <= until_us:
                self._fill(row)
        for end_us in sorted(waiting):  # what came meanwhile may not be stored yet, and replaces what is
            self.put(end_us, *waiting[end_us])

    def _fill(self, row: Stored) -> None:
        assert self.head_us is not None
        self._sums.clear()
        end_us = row.start_us + row.seconds * 1_000_000
        for ring in self._levels:
            if row.seconds * 1_000_000 <= ring.step_us and ring.holds(end_us, self.head_us):
                slot = ring.slot(end_us)
                ring.bad[slot] += row.total - row.good
                ring.total[slot] += row.total
        if row.total and (self.newest_us is None or end_us > self.newest_us):
            self.newest_us = end_us

    def waiting(self, until_us: int) -> Events:
        """The events of windows after the head that end until then."""
        some = [found for end_us, found in self._waiting.items() if end_us <= until_us]
        return Events(sum(bad for bad, _ in some), sum(total for _, total in some))

    def events(self, window_s: int) -> Events:
        """The events in (head - window, head]; see above for what is exact. Cost: 8 us the first time.

        Raises:
            ValueError: the window is no positive multiple of 10 s, or longer than the period.
        """
        found = self._sums.get(window_s)
        if found is None:
            if window_s <= 0 or window_s % STEP_S or window_s > self.period_s:
                raise ValueError(f"a window of {window_s} s is not a multiple of {STEP_S} s up to {self.period_s} s")
            found = self._sums[window_s] = self._added_up(window_s)
        return found

    def _added_up(self, window_s: int) -> Events:
        if self.head_us is None:
            return Events(0.0, 0.0)
        fine = self._levels[0]
        after_us = self.head_us - window_s * 1_000_000
        if window_s <= EXACT_S:
            return Events(*fine.sums(after_us, self.head_us))
        ring = next(level for level in self._levels[1:] if window_s <= level.reach_s)
        edge_us = -(-after_us // ring.step_us) * ring.step_us  # the end of the bucket that the older edge is in
        whole_us = self.head_us // ring.step_us * ring.step_us
        bad, total = ring.sums(edge_us, whole_us)
        newest_bad, newest_total = fine.sums(whole_us, self.head_us)
        share = (edge_us - after_us) / ring.step_us
        slot = ring.slot(edge_us)
        return Events(
            bad + newest_bad + share * float(ring.bad[slot]), total + newest_total + share * float(ring.total[slot])
        )

    def snapshot(self) -> tuple[Any, ...]:
        """For `restore`: what can be pickled, shared with nothing."""
        arrays = [(ring.bad.copy(), ring.total.copy()) for ring in self._levels]
        return (self.period_s, self.head_us, self.newest_us, dict(self._waiting), arrays)

    @classmethod
    def restore(cls, state: tuple[Any, ...]) -> "BudgetRings":
        """The rings as they were at `snapshot`."""
        period_s, head_us, newest_us, waiting, arrays = state
        rings = cls(period_s)
        rings.head_us, rings.newest_us, rings._waiting = head_us, newest_us, dict(waiting)
        for ring, (bad, total) in zip(rings._levels, arrays, strict=True):
            ring.bad[:], ring.total[:] = bad, total
        return rings


class _Ring:
    """Buckets of one length. The bucket with end e, a multiple of the length, holds the windows in (e - length, e]."""

    def __init__(self, step_us: int, slots: int, reach_s: int) -> None:
        self.step_us = step_us
        self.reach_s = reach_s
        self.bad: NDArray[np.float64] = np.zeros(slots)
        self.total: NDArray[np.float64] = np.zeros(slots)

    def slot(self, end_us: int) -> int:
        """Of the bucket that holds the window which ends then."""
        return -(-end_us // self.step_us) % self.bad.size

    def holds(self, end_us: int, head_us: int) -> bool:
        """Whether that bucket is still in the ring."""
        return -(-head_us // self.step_us) + end_us // -self.step_us < self.bad.size

    def move(self, head_us: int | None, to_us: int) -> None:
        """Empties the buckets that the head enters."""
        new = -(-to_us // self.step_us)
        if head_us is None or new + head_us // -self.step_us >= self.bad.size:
            self.bad[:] = self.total[:] = 0
            return
        for bucket in range(-(-head_us // self.step_us) + 1, new + 1):
            self.bad[bucket % self.bad.size] = self.total[bucket % self.bad.size] = 0

    def sums(self, after_us: int, until_us: int) -> tuple[float, float]:
        """Of the buckets whose ends are in (after, until], both multiples of the length, at most a whole ring."""
        size = self.bad.size
        first, last = after_us // self.step_us + 1, until_us // self.step_us
        if last < first:
            return 0.0, 0.0
        begin, end = first % size, last % size + 1
        if begin < end:
            return float(self.bad[begin:end].sum()), float(self.total[begin:end].sum())
        return (
            float(self.bad[begin:].sum() + self.bad[:end].sum()),
            float(self.total[begin:].sum() + self.total[:end].sum()),
        )
