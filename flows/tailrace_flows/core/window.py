"""One open window: what its samples amount to so far, by slot."""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tailrace_flows.core.chunk import joined
from tailrace_flows.core.grid import CODE_BIAS, CODE_MASK, Bands, Grid, Run
from tailrace_flows.core.series import CUMULATIVE, DISTRIBUTION, GAUGE
from tailrace_flows.core.sketch import CODE_BITS, MAX_BUCKETS, codes_of, downscale

__all__ = ["Window", "fitting", "merge_runs", "merge_windows"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Slots = NDArray[np.int32]

PENDING_SAMPLES: Final = 16_384
"""Samples that wait, at least, before they are folded in: numpy's cost a call vanishes in them."""
PENDING_SAMPLES_A_SLOT: Final = 32
"""Likewise, for each slot: folding waits for memory, which it then uses several times. 12 bytes a sample."""
MAX_RUNS: Final = 8
GRID_SAMPLES: Final = 16
"""Of a window, for each band: fewer are sorted, since making a grid and reading it costs as much."""
MAX_GRID_SAMPLES: Final = 1 << 31
"""A grid's cells have 32 bits."""
MAX_OUTSIDE: Final = 1 / 16
"""Share of a window's samples outside the bands from which on they are placed anew."""
NEVER: Final = np.iinfo(np.int64).min


def count_sorted(keys: Ints) -> Run:
    """Run-length encoding of ascending keys."""
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.diff(starts, append=keys.size)


def merge_runs(runs: list[Run]) -> Run:
    """One run of several, equal keys added up. Cost: 20 ns a key, but for the longest run, which is hardly touched."""
    runs = [run for run in runs if run[0].size]
    if not runs:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    longest = max(range(len(runs)), key=lambda number: runs[number][0].size)
    into = runs.pop(longest)
    if not runs:
        return into
    keys = np.concatenate([keys for keys, _ in runs])
    counts = np.concatenate([counts for _, counts in runs])
    if len(runs) > 1:
        order = np.argsort(keys, kind="stable")  # a stable sort of sorted runs is a merge
        keys, counts = _add_up(keys[order], counts[order])
    return _insert(into, keys, counts)


def _insert(into: Run, keys: Ints, counts: Ints) -> Run:
    """The run with ascending `keys` put into it."""
    at = np.searchsorted(into[0], keys)
    there = into[0].take(at, mode="clip") == keys
    if there.any():
        total = into[1].copy()
        total[at[there]] += counts[there]
        into = into[0], total
        at, keys, counts = at[~there], keys[~there], counts[~there]
    return np.insert(into[0], at, keys), np.insert(into[1], at, counts)


def _add_up(keys: Ints, counts: Ints) -> Run:
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts], np.add.reduceat(counts, starts)


@dataclass(slots=True)
class Window:
    """Aggregates by slot. Arrays are (c,), c the slots known when they were last grown.

    `scale` is the sketches'; windows that outlive a change of settings keep theirs.

    Everything here is a commutative fold, so that any order of samples gives the same window
    (`sum` to within float rounding).
    """

    scale: int
    count: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    sum: Floats = field(default_factory=lambda: np.zeros(0))
    min: Floats = field(default_factory=lambda: np.zeros(0))
    max: Floats = field(default_factory=lambda: np.zeros(0))
    last_time_us: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    last: Floats = field(default_factory=lambda: np.zeros(0))
    runs: list[Run] = field(default_factory=list)
    points: list[tuple[Ints, Ints, Floats]] = field(default_factory=list)
    """Slot, time and value of cumulative samples: their differences depend on all of them."""
    pending: list[tuple[Slots, Ints | None, Floats]] = field(default_factory=list)
    pending_samples: int = 0
    closed: bool = False
    dirty: list[Ints] = field(default_factory=list)
    """Slots whose rows were emitted and have changed since."""
    bands: Bands | None = None
    """The table's; None: everything is sorted. Not part of a snapshot, like what follows."""
    grid: Grid | None = None
    sketched: int = 0
    """Samples of distributions, and how many of them were outside the bands, since `sketch` was last called."""
    outside: int = 0

    def __getstate__(self) -> dict[str, Any]:
        self.sketch()
        return {name: getattr(self, name) for name in self.__slots__ if name not in _PASSING}

    def __setstate__(self, state: Any) -> None:
        self.__init__(**(state if isinstance(state, dict) else state[1]))  # type: ignore[misc]

    def add(self, slots: Slots, time_us: Ints | None, value: Floats, kinds: NDArray[np.int8]) -> None:
        """Takes samples (n,); `kinds` are those of the table's slots. Folds them in when enough have come.

        Times are wanted of gauges and cumulative counters only: None where there are none.
        """
        self.pending.append((slots, time_us, value))
        self.pending_samples += slots.size
        if self.pending_samples >= max(PENDING_SAMPLES, PENDING_SAMPLES_A_SLOT * kinds.size):
            self.fold(kinds)

    def fold(self, kinds: NDArray[np.int8]) -> None:
        """Folds the pending samples into the aggregates. About 25 ns a sample of a distribution."""
        self._grow(kinds.size)
        if not self.pending:
            return
        slots = joined([one[0] for one in self.pending]).astype(np.int64)
        value = joined([one[2] for one in self.pending])
        # A part without times has no sample whose time matters.
        timed = any(one[1] is not None for one in self.pending)
        time_us = joined([one[1] if one[1] is not None else one[0] for one in self.pending]) if timed else slots
        self.pending.clear()
        self.pending_samples = 0
        self.count += np.bincount(slots, minlength=kinds.size)
        with np.errstate(over="ignore", invalid="ignore"):  # a sum beyond the floats is infinite, or NaN
            self.sum += np.bincount(slots, weights=value, minlength=kinds.size)
        np.minimum.at(self.min, slots, value)
        np.maximum.at(self.max, slots, value)

        for kind, fold in (
            (DISTRIBUTION, self._fold_sketch),
            (GAUGE, self._fold_last),
            (CUMULATIVE, self._fold_points),
        ):
            of_kind = kinds == kind
            if of_kind.all():
                fold(slots, time_us, value)
            elif of_kind.any():
                chosen = np.flatnonzero(of_kind.take(slots))
                if chosen.size:
                    fold(slots[chosen], time_us[chosen], value[chosen])

    def _fold_sketch(self, slots: Ints, time_us: Ints, value: Floats) -> None:
        codes = codes_of(value, self.scale)
        self.sketched += codes.size
        bands = self.bands
        if bands is not None:
            if self.grid is None and self.sketched >= GRID_SAMPLES * bands.known > 0:
                self.grid = Grid(bands)
            if self.grid is not None:
                outside = self.grid.add(slots, codes, self.count.size)
                if self.grid.samples > MAX_GRID_SAMPLES:
                    self.sketch()
                if outside is None:
                    return
                slots, codes = slots[outside], codes[outside]
        self.outside += codes.size
        keys = codes
        keys += CODE_BIAS
        keys |= slots << CODE_BITS
        keys.sort()
        self.runs.append(count_sorted(keys))
        if bands is not None and not bands.known and keys.size >= GRID_SAMPLES * self.count.size:
            bands.learn(self.runs[-1])
        if len(self.runs) > MAX_RUNS:
            self.runs = [merge_runs(self.runs)]

    def _fold_last(self, slots: Ints, time_us: Ints, value: Floats) -> None:
        before = self.last_time_us[slots]
        np.maximum.at(self.last_time_us, slots, time_us)
        now = self.last_time_us[slots]
        self.last[slots[now > before]] = -np.inf
        newest = time_us == now  # of equal times the larger value
        np.maximum.at(self.last, slots[newest], value[newest])

    def _fold_points(self, slots: Ints, time_us: Ints, value: Floats) -> None:
        self.points.append((slots, time_us, value))

    def sketch(self) -> Run:
        """All buckets as one run. The bands learn from it, if too much was outside."""
        if self.grid is not None:
            self.runs.append(self.grid.run())
            self.grid = None
        self.runs = [merge_runs(self.runs)]
        if self.bands is not None and self.outside > self.sketched * MAX_OUTSIDE:
            self.bands.learn(self.runs[0])
        self.sketched = self.outside = 0
        return self.runs[0]

    def sorted_points(self) -> tuple[Ints, Ints, Floats]:
        """Cumulative points by slot, time, value; sorted once for each change."""
        if len(self.points) > 1:
            slots, time_us, value = (np.concatenate(column) for column in zip(*self.points, strict=True))
            order = np.lexsort((value, time_us, slots))
            self.points = [(slots[order], time_us[order], value[order])]
        elif self.points:
            slots, time_us, value = self.points[0]
            order = np.lexsort((value, time_us, slots))
            self.points = [(slots[order], time_us[order], value[order])]
        return self.points[0] if self.points else (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))

    def _grow(self, size: int) -> None:
        more = size - self.count.size
        if more > 0:
            self.count = np.concatenate([self.count, np.zeros(more, np.int64)])
            self.sum = np.concatenate([self.sum, np.zeros(more)])
            self.min = np.concatenate([self.min, np.full(more, np.inf)])
            self.max = np.concatenate([self.max, np.full(more, -np.inf)])
            self.last_time_us = np.concatenate([self.last_time_us, np.full(more, NEVER)])
            self.last = np.concatenate([self.last, np.full(more, -np.inf)])

    def keep(self, used: NDArray[np.bool_]) -> None:
        """Drops the slots that are not `used`; folded windows only."""
        self.sketch()
        self.count, self.sum = self.count[used], self.sum[used]
        self.min, self.max = self.min[used], self.max[used]
        self.last_time_us, self.last = self.last_time_us[used], self.last[used]
        slot_of = np.cumsum(used) - 1
        self.runs = [
            ((slot_of[keys >> CODE_BITS] << CODE_BITS) | (keys & CODE_MASK), counts) for keys, counts in self.runs
        ]
        self.points = [(slot_of[slots], time_us, value) for slots, time_us, value in self.points]
        self.dirty = [slot_of[slots[used[slots]]] for slots in self.dirty]


_PASSING: Final = frozenset({"bands", "grid", "sketched", "outside"})


def _coarser(run: Run, by: int) -> Run:
    keys, counts = run
    if by == 0 or keys.size == 0:
        return run
    codes = downscale((keys & CODE_MASK) - CODE_BIAS, by)
    return _add_up(keys & ~CODE_MASK | codes + CODE_BIAS, counts)


def fitting(run: Run, scale: int) -> tuple[Run, int]:
    """The run of one slot at the finest scale, from this one down, at which it has no more than MAX_BUCKETS."""
    while run[0].size > MAX_BUCKETS:
        run, scale = _coarser(run, 1), scale - 1
    return run, scale


def merge_windows(windows: list[Window]) -> Window:
    """The window of several folded ones of equal size; cumulative points are left to the caller."""
    scale = min(window.scale for window in windows)
    runs = [_coarser(window.sketch(), window.scale - scale) for window in windows]
    count = np.sum([window.count for window in windows], axis=0)
    bands = windows[0].bands
    if bands is not None and bands.known and bands.scale == scale and count.sum() < MAX_GRID_SAMPLES:
        runs = _counted(runs, bands, count.size)
    merged = Window(scale, count, runs=[merge_runs(runs)])
    with np.errstate(over="ignore", invalid="ignore"):
        merged.sum = np.sum([window.sum for window in windows], axis=0)
    merged.min = np.min([window.min for window in windows], axis=0)
    merged.max = np.max([window.max for window in windows], axis=0)
    # Windows do not share times, so the latest has the last value.
    latest = np.argmax([window.last_time_us for window in windows], axis=0)
    merged.last = np.stack([window.last for window in windows])[latest, np.arange(latest.size)]
    return merged


def _counted(runs: list[Run], bands: Bands, slots: int) -> list[Run]:
    """Runs of the same sum, all but the first of which are short: what lies in the bands is in one."""
    grid, rest = Grid(bands), []
    for keys, counts in runs:
        if keys.size == 0:
            continue
        outside = grid.add(keys >> CODE_BITS, (keys & CODE_MASK) - CODE_BIAS, slots, counts)
        if outside is not None:
            rest.append((keys[outside], counts[outside]))
    return [grid.run(), *rest]
