"""Reset-aware increases of cumulative counters, window by window.

Each difference of neighbouring points is booked to the window of its later point, so windows add up exactly. All points
of the windows at hand are kept, so that any order of arrival gives the same increases; of older windows only each
series' last point is: its baseline.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailrace_flows.core.series import CUMULATIVE, SeriesIndex
from tailrace_flows.core.window import NEVER, Window

__all__ = ["Baselines", "Increases", "increases_of"]

EXPIRY_US: Final = 24 * 3600 * 1_000_000
"""A counter silent for longer starts afresh: its first point books no increase, and points are counted anew."""


class Increases(NamedTuple):
    """Of one window, by its cumulative slots, ascending; all (p,)."""

    slots: NDArray[np.int64]
    increase: NDArray[np.float64]
    """NaN where there is no earlier point to compare with."""
    resets: NDArray[np.int64]
    points: NDArray[np.int64]
    """All points of the counter so far: the row's version, since a late point changes the window after it too."""
    last: NDArray[np.float64]


@dataclass
class Baselines:
    """The last point of each cumulative series in retired windows: series id -> (value, points so far, time)."""

    by_id: dict[int, tuple[float, int, int]] = field(default_factory=dict)

    def absorb(self, window: Window, series: SeriesIndex) -> None:
        """Takes a window that is about to be forgotten; windows come in the order of their starts."""
        if window.pending:
            window.fold(series.kinds)
        slots, time_us, value = window.sorted_points()
        if slots.size == 0:
            return
        ends = np.flatnonzero(np.concatenate([slots[1:] != slots[:-1], [True]]))
        points = np.diff(ends, prepend=-1)
        columns = (series.ids[slots[ends]], value[ends], points, time_us[ends])
        for key, at_end, more, at_us in zip(*(column.tolist() for column in columns), strict=True):
            _, before, _ = self.by_id.get(key, (0.0, 0, 0))
            self.by_id[key] = (at_end, before + more, at_us)

    def forget_values(self, points: int) -> None:
        """The next point of each series books no increase; versions go on, from so many points more."""
        self.by_id = {key: (np.nan, before + points, time_us) for key, (_, before, time_us) in self.by_id.items()}

    def points(self, series: SeriesIndex) -> NDArray[np.int64]:
        """By slot: the points in retired windows."""
        return np.array([self.by_id.get(key, (0.0, 0, 0))[1] for key in series.ids.tolist()], np.int64)

    def expire(self, taken_from_us: int, most: int) -> None:
        """Forgets what no point from `taken_from_us` on is compared with, and the oldest of more than `most`."""
        horizon = taken_from_us - EXPIRY_US
        if any(time_us < horizon for _, _, time_us in self.by_id.values()):
            self.by_id = {key: point for key, point in self.by_id.items() if point[2] >= horizon}
        if len(self.by_id) > most:
            newest = sorted(self.by_id.items(), key=lambda item: (item[1][2], item[0]))[-most:]
            self.by_id = dict(newest)


def increases_of(windows: dict[int, Window], baselines: Baselines, series: SeriesIndex) -> dict[int, Increases]:
    """The increases of all folded windows, by start. Cost: 50 ns a cumulative point; nothing without any."""
    kinds = series.kinds
    if not (kinds == CUMULATIVE).any():
        return {}
    value_before = np.full(kinds.size, np.nan)
    points_before = np.zeros(kinds.size, np.int64)
    time_before_us = np.full(kinds.size, NEVER)
    if baselines.by_id:
        chosen = np.flatnonzero(kinds == CUMULATIVE)
        for slot, key in zip(chosen.tolist(), series.ids[chosen].tolist(), strict=True):
            known = baselines.by_id.get(key)
            if known is not None:
                value_before[slot], points_before[slot], time_before_us[slot] = known
    found: dict[int, Increases] = {}
    for start in sorted(windows):
        slots, time_us, value = windows[start].sorted_points()
        if slots.size == 0:
            continue
        first = np.concatenate([[True], slots[1:] != slots[:-1]])
        begins = np.flatnonzero(first)
        present = slots[begins]
        # Decided by the points alone, not by when a baseline is forgotten: alike however the stream was cut into polls.
        afresh = present[time_before_us[present] < time_us[begins] - EXPIRY_US]
        value_before[afresh], points_before[afresh] = np.nan, 0
        previous = np.concatenate([[np.nan], value[:-1]])
        previous[begins] = value_before[present]
        known = ~np.isnan(previous)
        reset = known & (value < previous)
        # After a reset the counter started at zero again, so what it shows has been added since.
        step = np.where(known, np.where(reset, value, value - previous), 0.0)
        with np.errstate(over="ignore"):
            increase = np.add.reduceat(step, begins)
        increase[~np.logical_or.reduceat(known, begins)] = np.nan
        ends = np.append(begins[1:], slots.size) - 1
        value_before[present], time_before_us[present] = value[ends], time_us[ends]
        points_before[present] += ends - begins + 1
        resets = np.add.reduceat(reset.astype(np.int64), begins)
        found[start] = Increases(present, increase, resets, points_before[present], value[ends])
    return found
