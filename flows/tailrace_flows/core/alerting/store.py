"""The rows of 10 s windows that rules look back at, as one matrix of windows by series for each metric and column.

A row that comes again with a higher version takes the place of the first; a lower or equal one is ignored. So the
contents do not depend on how rows were cut into batches, on their order, or on how often they came. What is read is
bounded by time on both sides, and so does not depend on when old rows were dropped.

Memory: 8 bytes a window and series for each of 4 to 6 columns; 12 bytes a bucket, where sketches are kept.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf, nan
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tailrace_schemas.config.matcher import Matcher
from tailrace_schemas.samples import KINDS, Series

from tailrace_flows.core.sealed import foreign

__all__ = ["EMPTY", "STEP_US", "Keep", "LabelValues", "MetricRows", "Sketches", "WindowStore"]

STEP_US: Final = 10_000_000
MAX_SPAN_US: Final = 24 * 3600 * 1_000_000
"""How far apart kept rows of a metric may be, besides what rules look back: a service's clock may be wrong."""
STATE_VERSION: Final = 1

EMPTY: Final[Mapping[str, float]] = {
    "version": 0, "count": 0, "sum": 0, "min": inf, "max": -inf, "last": nan, "increase": nan,
}  # fmt: skip
"""Column -> what stands where there is no row: the neutral element; NaN where it has none."""
_OPTIONAL: Final = ("sum", "min", "max", "last", "increase")


class Keep(NamedTuple):
    """How far a metric's rows are looked back at."""

    rows_us: int
    sketches_us: int = 0
    """0: no rule asks for quantiles."""


class Sketches(NamedTuple):
    """The sketches of a window's rows: row i has the codes `offsets[i]` to `offsets[i + 1]`."""

    slot: NDArray[np.int64]
    version: NDArray[np.uint64]
    scale: NDArray[np.int64]
    offsets: NDArray[np.int64]
    bucket: NDArray[np.int32]
    bucket_count: NDArray[np.int64]

    def rows_of(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row of each slot, where `slot` ascends; -1: it has none."""
        if self.slot.size == 0:
            return np.full(slots.size, -1)
        place = np.minimum(np.searchsorted(self.slot, slots), self.slot.size - 1)
        return np.where(self.slot[place] == slots, place, -1)

    def take(self, rows: NDArray[np.int64]) -> "Sketches":
        """Those rows, in that order."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        entries = np.repeat(self.offsets[rows] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Sketches(
            self.slot[rows],
            self.version[rows],
            self.scale[rows],
            offsets,
            self.bucket[entries],
            self.bucket_count[entries],
        )


class _Batch:
    """The columns of a record batch of WINDOW_ROWS, for numpy; what only new series need stays in Arrow."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.end_us = rows.column("window_start").cast(pa.int64()).to_numpy() * 1_000_000 + STEP_US
        self.version = rows.column("version").to_numpy()
        self.series_id = rows.column("series_id").to_numpy()
        self.columns: dict[str, NDArray[np.float64]] = {"count": rows.column("count").to_numpy().astype(np.float64)}
        for name in _OPTIONAL:
            column = rows.column(name)
            if column.null_count < len(column):
                self.columns[name] = column.to_numpy(zero_copy_only=False)

    @cached_property
    def sketches(self) -> Sketches:
        """Of all rows; their slots are not known yet."""
        codes, counts = self.rows.column("bucket_index"), self.rows.column("bucket_count")
        scale = self.rows.column("scale").to_numpy(zero_copy_only=False).astype(np.float64)
        return Sketches(
            np.zeros(self.end_us.size, np.int64),
            self.version,
            np.nan_to_num(scale).astype(np.int64),
            codes.offsets.to_numpy().astype(np.int64) - codes.offsets[0].as_py(),
            codes.flatten().to_numpy(),
            counts.flatten().to_numpy().astype(np.int64),
        )


class LabelValues:
    """The values of one label, numbered in the order they were met."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self.codes: dict[str, int] = {}
        self._matching: dict[Matcher, NDArray[np.bool_]] = {}

    def code(self, value: str) -> int:
        """The number of a value; a new one gets the next."""
        code = self.codes.setdefault(value, len(self.values))
        if code == len(self.values):
            self.values.append(value)
        return code

    def matching(self, matcher: Matcher) -> NDArray[np.bool_]:
        """For each value, whether it matches: worked out once for each value."""
        known = self._matching.get(matcher, np.empty(0, np.bool_))
        if known.size < len(self.values):
            new = np.array([matcher.matches(value) for value in self.values[known.size :]], np.bool_)
            known = self._matching[matcher] = np.concatenate([known, new])
        return known


@dataclass
class _Window:
    """Sketches of one window, as they came; the rows that were replaced since are still in there."""

    parts: list[Sketches] = field(default_factory=list)
    sorted: bool = False
    """Whether there is one part, each series once, by slot."""


class MetricRows:
    """All rows of one metric. Row r of a matrix is the window that ends at `first_end_us + r * STEP_US`."""

    def __init__(self) -> None:
        self.epoch = 0
        """Raised when slots get other numbers."""
        self.changes = 0
        """Raised when rows change."""
        self.series: list[tuple[str, Series]] = []
        """By slot: service and series."""
        self.kind = np.empty(0, np.int8)
        self.first_end_us = 0
        self.windows = 0
        self._ids = np.empty(0, np.uint64)
        """Of `series`, as rows name them."""
        self._order = np.empty(0, np.int64)
        """Which sorts them."""
        self._columns: dict[str, NDArray[Any]] = {}
        self._sketches: dict[int, _Window] = {}
        self._labels: dict[str, NDArray[np.int32]] = {}
        self._packed: tuple[tuple[int, ...], bytes] = ((), b"")

    # -- reading ---------------------------------------------------------------------------------------

    def span(self, after_us: int, until_us: int) -> slice:
        """The rows of windows whose end is in (after, until]."""
        low = (after_us - self.first_end_us) // STEP_US + 1
        high = (until_us - self.first_end_us) // STEP_US + 1
        return slice(min(max(low, 0), self.windows), min(max(high, 0), self.windows))

    def column(self, name: str) -> NDArray[np.float64] | None:
        """A matrix of windows by series; None: no row ever had a value."""
        found = self._columns.get(name)
        return None if found is None else found[: self.windows, : len(self.series)]

    def sketches(self, end_us: int) -> Sketches | None:
        """The sketches of the window that ends then, each series once, by slot; None: there are none."""
        window = self._sketches.get(end_us)
        if window is None:
            return None
        if not window.sorted:
            part = _joined(window.parts)
            order = np.argsort(part.slot, kind="stable")
            current = self._columns["version"][(end_us - self.first_end_us) // STEP_US, part.slot] == part.version
            window.parts, window.sorted = [part.take(order[current[order]])], True
        return window.parts[0]

    # -- writing ---------------------------------------------------------------------------------------

    def add(self, batch: _Batch, chosen: NDArray[np.int64], keep: Keep) -> tuple[NDArray[np.int64], int]:
        """Takes the `chosen` rows of a batch, lower versions first.

        Returns:
            The window ends that changed, and how many rows were too far away.
        """
        fits = self._make_room(batch.end_us[chosen], keep)
        refused = chosen.size - int(np.count_nonzero(fits))
        chosen = chosen[fits]
        if chosen.size == 0:
            return np.empty(0, np.int64), refused
        slot = self._slots(batch, chosen)
        window = (batch.end_us[chosen] - self.first_end_us) // STEP_US
        newer = batch.version[chosen] > self._columns["version"][window, slot]
        if not newer.all():
            chosen, slot, window = chosen[newer], slot[newer], window[newer]
        if chosen.size == 0:
            return np.empty(0, np.int64), refused
        self.changes += 1
        at = (window, slot)
        self._columns["version"][at] = batch.version[chosen]  # of several in one batch the last, highest, stays
        for name in ("count", *_OPTIONAL):
            values = batch.columns[name][chosen] if name in batch.columns else np.full(chosen.size, nan)
            missing = np.isnan(values)
            if name in self._columns or not missing.all():
                self._matrix(name)[at] = np.where(missing, EMPTY[name], values)
        if keep.sketches_us:
            self._add_sketches(batch, chosen, slot)
        return np.unique(batch.end_us[chosen]), refused

    def forget(self, now_us: int, keep: Keep) -> None:
        """Drops what no evaluation at `now_us` or later looks back at, when it is worth it."""
        for end_us in [end for end in self._sketches if end <= now_us - keep.sketches_us]:
            del self._sketches[end_us]
        old = self.span(-(1 << 62), now_us - keep.rows_us).stop
        if old < self.windows and old < max(8, self.windows // 4):
            return
        for name, matrix in self._columns.items():
            kept = matrix[old : self.windows].copy()
            matrix[: self.windows - old] = kept
            matrix[self.windows - old : self.windows] = EMPTY[name]
        self.windows -= old
        self.first_end_us += old * STEP_US
        used = (self._columns["count"][: self.windows, : len(self.series)] > 0).any(axis=0)
        if np.count_nonzero(~used) > len(self.series) // 4:
            self._keep_slots(np.flatnonzero(used))

    def _make_room(self, end_us: NDArray[np.int64], keep: Keep) -> NDArray[np.bool_]:
        """Extends the matrices to these windows; says which of them lie within the span that is kept."""
        fits = end_us >= (self.first_end_us + (self.windows - 1) * STEP_US if self.windows else 0) - (
            MAX_SPAN_US + keep.rows_us
        )
        if not self.windows:
            self.first_end_us = int(end_us.min())
        limit_us = self.first_end_us + MAX_SPAN_US + keep.rows_us
        fits &= end_us <= limit_us
        if not fits.any():
            return fits
        low = min(int(end_us[fits].min()), self.first_end_us)
        high = max(int(end_us[fits].max()), self.first_end_us + (self.windows - 1) * STEP_US)
        before = (self.first_end_us - low) // STEP_US
        self._grow(before, (high - low) // STEP_US + 1, len(self.series))
        self.first_end_us = low
        return fits

    def _grow(self, before: int, windows: int, slots: int) -> None:
        """Makes room for so many windows, `before` of them ahead of the present ones, and so many series."""
        for name in ("version", "count") if not self._columns else tuple(self._columns):
            old = self._columns.get(name)
            rows, columns = (0, 0) if old is None else old.shape
            if before or windows > rows or slots > columns:
                rows = max(rows, windows + windows // 2 + 8) if windows > rows else rows
                columns = max(columns, slots + slots // 2 + 8) if slots > columns else columns
                new = _matrix(name, rows, columns)
                if old is not None:
                    new[before : before + self.windows, : len(self.series)] = old[: self.windows, : len(self.series)]
                self._columns[name] = new
        self.windows = windows

    def _matrix(self, name: str) -> NDArray[np.float64]:
        found = self._columns.get(name)
        if found is None:
            found = self._columns[name] = _matrix(name, *self._columns["count"].shape)
        return found

    def _slots(self, batch: _Batch, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slot of each row's series; new ones get the next."""
        ids = batch.series_id[chosen]
        slots, known = self._look_up(ids)
        if known.all():
            return slots
        new, first = np.unique(ids[~known], return_index=True)
        of_series = batch.rows.select(["service", "metric", "kind", "unit", "attributes"])
        met = of_series.take(pa.array(chosen[~known][first]))
        found = [
            (service, Series(metric, kind, unit, tuple(tuple(pair) for pair in attributes)))
            for service, metric, kind, unit, attributes in zip(*(col.to_pylist() for col in met.columns), strict=True)
        ]
        self._grow(0, self.windows, len(self.series) + len(found))
        self.series += found
        self.kind = np.concatenate([self.kind, np.array([KINDS.index(one.kind) for _, one in found], np.int8)])
        self._ids = np.concatenate([self._ids, new])
        self._order = np.argsort(self._ids)
        return self._look_up(ids)[0]

    def _look_up(self, ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        if self._ids.size == 0:
            return np.zeros(ids.size, np.int64), np.zeros(ids.size, np.bool_)
        place = np.searchsorted(self._ids, ids, sorter=self._order)
        slots = self._order[np.minimum(place, self._ids.size - 1)]
        return slots, self._ids[slots] == ids

    def _add_sketches(self, batch: _Batch, chosen: NDArray[np.int64], slot: NDArray[np.int64]) -> None:
        every = batch.sketches
        full = np.flatnonzero(every.offsets[chosen + 1] > every.offsets[chosen])
        if full.size == 0:
            return
        end_us = batch.end_us[chosen[full]]
        found = every.take(chosen[full])._replace(slot=slot[full])
        for end in np.unique(end_us).tolist():
            part = found if (end_us == end).all() else found.take(np.flatnonzero(end_us == end))
            window = self._sketches.setdefault(end, _Window())
            window.parts.append(part)
            window.sorted = False

    def _keep_slots(self, kept: NDArray[np.int64]) -> None:
        """Forgets the other series; the slots close ranks."""
        for end_us in list(self._sketches):
            part = self.sketches(end_us)
            assert part is not None
            part = part.take(np.flatnonzero(np.isin(part.slot, kept)))
            self._sketches[end_us].parts = [part._replace(slot=np.searchsorted(kept, part.slot))]
        for name, matrix in self._columns.items():
            new = _matrix(name, matrix.shape[0], kept.size + kept.size // 2 + 8)
            new[: self.windows, : kept.size] = matrix[: self.windows, kept]
            self._columns[name] = new
        self.series = [self.series[slot] for slot in kept.tolist()]
        self.kind = self.kind[kept]
        self._ids = self._ids[kept]
        self._order = np.argsort(self._ids)
        self._labels.clear()
        self.epoch += 1

    # -- labels ----------------------------------------------------------------------------------------

    def label_codes(self, name: str, values: LabelValues) -> NDArray[np.int32]:
        """The value of a label for each slot, as its number in `values`."""
        known = self._labels.get(name, np.empty(0, np.int32))
        if known.size < len(self.series):
            new = [values.code(_label(service, one, name)) for service, one in self.series[known.size :]]
            known = self._labels[name] = np.concatenate([known, np.array(new, np.int32)])
        return known

    def forget_labels(self) -> None:
        """The values are numbered anew."""
        self._labels.clear()

    # -- state -----------------------------------------------------------------------------------------

    def state(self) -> tuple[Any, ...]:
        """For recovery."""
        columns = {name: np.ascontiguousarray(self.column(name)) for name in self._columns}
        sketches = {end_us: self.sketches(end_us) for end_us in self._sketches}
        return self.series, self._ids, self.first_end_us, self.windows, columns, sketches

    def packed(self) -> bytes:
        """`state`, pickled; the same bytes again as long as nothing has changed."""
        now = (self.changes, self.epoch, self.first_end_us, self.windows, len(self._sketches))
        if self._packed[0] != now:
            self._packed = (now, pickle.dumps(self.state(), protocol=5))
        return self._packed[1]

    @classmethod
    def restored(cls, state: tuple[Any, ...]) -> "MetricRows":
        """From `state`'s tuple."""
        one = cls()
        one.series, one._ids, one.first_end_us, one.windows, one._columns, sketches = state
        one.kind = np.array([KINDS.index(series.kind) for _, series in one.series], np.int8)
        one._order = np.argsort(one._ids)
        one._sketches = {end_us: _Window([part]) for end_us, part in sketches.items()}
        return one


class WindowStore:
    """The rows of the metrics that rules ask for; those of others are passed over."""

    def __init__(self, keep: Mapping[str, Keep], state: bytes | None = None) -> None:
        """Anew, or from `snapshot`'s bytes; `keep` may have changed in between.

        Raises:
            ValueError: the state is of another format.
        """
        self._keep: Mapping[str, Keep] = {}
        self._labels: dict[str, LabelValues] = {}
        self.labels_epoch = 0
        """Raised when values get other numbers."""
        self.refused = 0
        """Rows passed over since their time is too far from that of the others of their metric."""
        self.changes = 0
        """Raised when what can be read may have changed."""
        self._metrics: dict[str, MetricRows] = {}
        if state is not None:
            version, *contents = pickle.loads(state)  # noqa: S301 - our own recovery state
            if version != STATE_VERSION:
                raise foreign(version, STATE_VERSION, "the state of the rows")
            self.refused, metrics = contents
            self._metrics = {
                name: MetricRows.restored(pickle.loads(one) if isinstance(one, bytes) else one)  # noqa: S301 - as above
                for name, one in metrics.items()
            }
        self.keep = keep

    @property
    def keep(self) -> Mapping[str, Keep]:
        """Which metrics are kept, and how long."""
        return self._keep

    @keep.setter
    def keep(self, keep: Mapping[str, Keep]) -> None:
        self._keep = dict(keep)
        self.changes += 1
        self._metrics = {name: one for name, one in self._metrics.items() if name in keep}

    def metric(self, name: str) -> MetricRows | None:
        """The rows of a metric; None: there was none."""
        return self._metrics.get(name)

    def add(self, stream: str, rows: Any) -> set[tuple[str, int]]:
        """Takes a record batch of WINDOW_ROWS of 10 s windows; only the live stream, "", is kept.

        Returns:
            The (metric, window end in microseconds) whose rows changed.
        """
        if stream or rows.num_rows == 0:
            return set()
        names = pc.dictionary_encode(rows.column("metric"))
        metrics = names.dictionary.to_pylist()
        if not any(name in self._keep for name in metrics):
            return set()
        batch = _Batch(rows)
        numbers = names.indices.to_numpy()
        order = np.lexsort((batch.version, numbers))
        bounds = np.searchsorted(numbers[order], np.arange(len(metrics) + 1))
        changed: set[tuple[str, int]] = set()
        for name, (start, end) in zip(metrics, pairwise(bounds.tolist()), strict=True):
            keep = self._keep.get(name)
            if keep is None:
                continue
            metric = self._metrics.setdefault(name, MetricRows())
            ends, refused = metric.add(batch, order[start:end], keep)
            self.refused += refused
            changed.update((name, end) for end in ends.tolist())
        self.changes += bool(changed)
        return changed

    def forget(self, now_us: int) -> None:
        """Drops rows that no evaluation at `now_us` or later looks back at, and series without any."""
        self.changes += 1
        for name, metric in self._metrics.items():
            metric.forget(now_us, self._keep[name])
        series = sum(len(metric.series) for metric in self._metrics.values())
        if any(len(label.values) > 4 * series + 1000 for label in self._labels.values()):
            self._labels.clear()  # most of their values are gone
            self.labels_epoch += 1
            for metric in self._metrics.values():
                metric.forget_labels()

    def label(self, name: str) -> LabelValues:
        """The values of a label over all metrics."""
        return self._labels.setdefault(name, LabelValues())

    def snapshot(self) -> bytes:
        """The state for recovery."""
        metrics = {name: metric.packed() for name, metric in self._metrics.items()}
        return pickle.dumps((STATE_VERSION, self.refused, metrics), protocol=5)


def _matrix(name: str, rows: int, columns: int) -> NDArray[Any]:
    return np.full((rows, columns), EMPTY[name], np.uint64 if name == "version" else np.float64)


def _label(service: str, series: Series, name: str) -> str:
    if name == "service":
        return service
    return next((value for key, value in series.attributes if key == name), "")


def _joined(parts: list[Sketches]) -> Sketches:
    shifts = np.cumsum([0, *(part.bucket.size for part in parts)])
    offsets = [part.offsets[:-1] + shift for part, shift in zip(parts, shifts[:-1], strict=True)]
    return Sketches(
        np.concatenate([part.slot for part in parts]),
        np.concatenate([part.version for part in parts]),
        np.concatenate([part.scale for part in parts]),
        np.concatenate([*offsets, shifts[-1:]]),
        np.concatenate([part.bucket for part in parts]),
        np.concatenate([part.bucket_count for part in parts]),
    )
