"""The window table of one (service, stream): samples in, whole rows out. See docs/architecture.md.

A window is *closed* when its row has been emitted, *late-open* until the watermark passes its end + lateness, and
*retired* (forgotten) when its minute's end + lateness is passed. Times are microseconds of event time unless said.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tailrace_schemas.rows import WINDOW_ROWS

from tailrace_flows.core.chunk import UNKNOWN_US, Chunk
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.grid import Bands
from tailrace_flows.core.increases import Baselines, Increases, increases_of
from tailrace_flows.core.rowblock import build_rows
from tailrace_flows.core.series import CUMULATIVE, SeriesIndex
from tailrace_flows.core.window import Window, merge_windows

__all__ = ["AFTER_ALL", "BEFORE_ALL", "Added", "Block", "TableState", "WindowTable"]

Ints = NDArray[np.int64]
Slots = NDArray[np.int32]
Floats = NDArray[np.float64]

BEFORE_ALL: Final = UNKNOWN_US
AFTER_ALL: Final = 1 << 62
# Of null arrays: to convert anything, be it nothing, pyarrow loads pandas where it is installed, which takes a while.
NO_ROWS: Final = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in WINDOW_ROWS], schema=WINDOW_ROWS)
TIMED: Final = frozenset({"cumulative", "gauge"})
"""Kinds whose aggregates depend on the order of their samples."""
MAX_WAITING: Final = 60
"""So many windows more than the lateness keeps open may wait after a restart for what a partition has to replay: it may
be gone for good, with the topic that had it."""


class Block(NamedTuple):
    """Rows of one resolution; `rows` is a pyarrow.RecordBatch of WINDOW_ROWS, empty where only time has passed."""

    service: str
    stream: str
    window_seconds: int
    watermark_us: int
    """Windows that end here or before are closed: with the blocks up to this one, their rows are out."""
    rows: Any


class Added(NamedTuple):
    """What became of a chunk's samples; a replayed chunk counts nothing."""

    samples: int
    late: int
    beyond_series_limit: int
    taken: NDArray[np.bool_] | None
    """(n,) which samples were taken; None: all."""


@dataclass
class TableState:
    """What recovery keeps of a table. Small, unless the windows are in it (`recovery.contents` snapshot, or a partition
    that does not hold them any more)."""

    watermark_us: int = BEFORE_ALL
    """The greatest event time less the disorder; decides what is late and what is retired."""
    closed_until_us: int = BEFORE_ALL
    """Windows that end here or before have had their rows emitted."""
    settled_us: int = BEFORE_ALL
    """Of windows that end here or before, whole rows have been emitted: a replay that rebuilds them changes nothing."""
    retired_until_us: int = BEFORE_ALL
    """Minutes that end here or before are forgotten."""
    dirty: set[tuple[int, int]] = field(default_factory=set)
    """(length, start) of windows whose emitted rows are out of date."""
    refused: dict[tuple[int, int], set[int]] = field(default_factory=dict)
    """(partition, offset) -> starts of windows for which that batch came too late."""
    baselines: Baselines = field(default_factory=Baselines)
    admitted: NDArray[np.uint64] | None = None
    """Ids of the series, if the limit has left others out; 8 bytes each."""
    awaited: dict[int, int] | None = None
    """Partition -> offset, from which on a replay of it is to be taken: all else is in `windows`, or nothing was open.
    None: no window is stored, every partition that has carried the stream is to be replayed."""
    passed_us: int = BEFORE_ALL
    """The furthest that a partition's own watermark may be."""
    passed: frozenset[int] = frozenset()
    """Starts of the open windows that it has passed, by the lateness of now or of an earlier state."""
    series: list[Any] | None = None
    windows: dict[int, Window] | None = None
    minutes: dict[int, bool] | None = None
    counted: dict[int, int] | None = None
    """Start -> samples that were counted in it, of windows that are not retired: what a replay should find again. None:
    not known, the state is of a version before."""


class WindowTable:
    """See the module. Not thread-safe. Cost: 30 to 60 ns a sample, about 3 us a row."""

    def __init__(
        self,
        service: str,
        stream: str,
        config: WindowConfig,
        state: TableState | None = None,
        carriers: Collection[int] = (),
    ) -> None:
        """Anew, or from a state: `carriers` are the partitions that had brought samples by then."""
        self.service = service
        self.stream = stream
        self.config = config
        state = state or TableState()
        self.watermark_us = state.watermark_us
        self.closed_until_us = state.closed_until_us
        self._retired_until_us = state.retired_until_us
        self._refused = state.refused
        self._baselines = state.baselines
        self._series = SeriesIndex(service, config.max_series, state.series, state.admitted)
        self._windows: dict[int, Window] = state.windows or {}
        self._passed = state.passed
        self._bands = Bands(config.scale)
        for known in self._windows.values():
            known.bands = self._bands if known.scale == config.scale else None
        self._minutes: dict[int, Window] = {}
        """Only `closed` and `dirty` of a minute are used: its content is that of its windows."""
        for start, closed in (state.minutes or {}).items():
            self._minutes[start] = Window(config.scale, closed=closed)
        # Rows of windows that were closed before a restart are out; replayed samples do not make them dirty.
        self._settled_us = state.settled_us
        self._missing = dict.fromkeys(carriers, 0) if state.awaited is None else state.awaited
        """Partition -> offset: what is replayed from there on is not in the windows, everything else is."""
        self._awaited = dict(self._missing)
        """The same as of now, of the partitions whose replay is not over. A window that retired now, since another
        partition is ahead, or the lateness or the disorder has been set lower, would miss the rest of it."""
        self._passed_us = state.passed_us
        # But what closes from now on may lack what another partition has still to replay: events up to this time.
        self._replayed_us = state.watermark_us + config.disorder_us if self._awaited else BEFORE_ALL - 1
        self._rebuilt_us = BEFORE_ALL
        """Up to here `_rebuilt` has been."""
        self._unsettled = state.dirty
        """(length, start) of settled windows whose rows are not what they should be."""
        self.dirty = False
        """Whether emitted rows are out of date."""
        self._counted = state.counted or {}
        self.unreplayed = 0
        """Samples that a replay did not find again; the caller takes them away."""
        every = np.arange(len(self._series.series))
        for length, start in state.dirty:
            window = (self._windows if length == config.window_us else self._minutes).get(start)
            if window is not None:
                window.dirty = [every]
                self.dirty = True

    # -- samples in ---------------------------------------------------------------------------------

    def add(self, chunk: Chunk) -> Added:
        """Takes a chunk's samples, but for those that are late or beyond the series limit."""
        time_us, value = chunk.time_us, chunk.value
        if value.size == 0:
            return Added(0, 0, 0, None)
        if chunk.replayed:
            offset = int(chunk.offsets.max())
            if offset < self._missing.get(chunk.partition, AFTER_ALL):
                return Added(0, 0, 0, None)
            self._awaited[chunk.partition] = max(offset + 1, self._awaited.get(chunk.partition, 0))
        elif self._awaited:
            self.heard(chunk.partition)
        newest_us = max(chunk.newest_us.tolist())  # of few a seventh of numpy's call
        first_us = chunk.oldest_us - chunk.oldest_us % self.config.window_us
        late = self._late(chunk, first_us)
        slots = self._series.slots_of(chunk.table).take(chunk.series_index)  # twice as fast as indexing
        taken = None
        late_samples = beyond = 0
        if late is not None or (self._series.refused and slots.min() < 0):
            taken = slots >= 0
            if late is not None:
                taken &= ~late
                late_samples = int(late.sum())
            beyond = value.size - late_samples - int(taken.sum())
            which = np.flatnonzero(taken)
            slots, time_us, value = slots[which], time_us[which], value[which]
        timed = not chunk.table.kinds.isdisjoint(TIMED)
        for start, part in _split(time_us, first_us, newest_us, self.config.window_us):
            in_window = value[part]
            self._add_to(start, slots[part], time_us[part] if timed else None, in_window, chunk.replayed)
            if not chunk.replayed:
                self._counted[start] = self._counted.get(start, 0) + in_window.size
        self.watermark_us = max(self.watermark_us, newest_us - self.config.disorder_us)
        if chunk.replayed:
            self._rebuilt(newest_us - self.config.disorder_us)
            return Added(0, 0, 0, taken)
        return Added(int(value.size), late_samples, beyond, taken)

    def heard(self, partition: int) -> None:
        """Its replay is over, if there was one."""
        if self._awaited.pop(partition, None) is not None and not self._awaited:
            self._replayed()

    def _replayed(self) -> None:
        """No replay is waited for any more: what was not found again is gone, as the broker has deleted it.

        Minutes whose rows are out and whole take no more: written anew they would lack it. All else is counted.
        """
        config = self.config
        whole_until_us = BEFORE_ALL if self._unsettled else self._settled_us - self._settled_us % config.rollup_us
        retired_until_us = BEFORE_ALL
        stands = False
        lost = 0
        for start, counted in self._counted.items():
            window = self._windows.get(start)
            found = int(window.count.sum()) + window.pending_samples if window is not None else 0
            if found >= counted:
                continue
            self._counted[start] = found
            lost += counted - found
            if start < whole_until_us:
                retired_until_us = max(retired_until_us, start - start % config.rollup_us + config.rollup_us)
            else:
                self.unreplayed += counted - found
            stands |= start + config.window_us <= self._settled_us
        if stands:
            # Rows that stand have what was added since then: it must not be booked once more, to the next point. And
            # rows of the minutes after them, which are whole, must beat those from before, whose versions count more.
            self._baselines.forget_values(0 if self.unreplayed else lost)
        self._retire_until(retired_until_us)

    def passed(self, now_us: int) -> None:
        """A partition is silent, and by wall time its own watermark passes what it has brought."""
        self._passed_us = max(self._passed_us, min(now_us - self.config.disorder_us, self.open_until_us))

    def _rebuilt(self, until_us: int) -> None:
        """A replay has come so far: what its windows hold is put together as each ends, as when rows are emitted.

        Else it would be done for a minute's windows at once when the minute closes, a pause of half a second with
        25,000 series, and grids would be held for all of them.
        """
        until_us -= until_us % self.config.window_us
        if until_us <= self._rebuilt_us:
            return
        self._rebuilt_us = until_us
        for start, window in self._windows.items():
            if window.closed and start + self.config.window_us <= until_us:
                window.fold(self._series.kinds)
                window.sketch()
        self._series.columns()

    def _late(self, chunk: Chunk, first_us: int) -> NDArray[np.bool_] | None:
        """(n,) which samples are too late; None: none. Decided by each batch's own watermark: alike on replay.

        `first_us`: start of the earliest sample's window.
        """
        config = self.config
        taken_from_us = max(chunk.watermarks_us.tolist()) - config.lateness_us - config.window_us
        if first_us > taken_from_us and first_us >= self._retired_until_us and not chunk.replayed:
            return None
        starts = chunk.time_us - chunk.time_us % config.window_us
        late = starts < self._retired_until_us  # which is a minute's end
        if chunk.replayed:
            late |= np.repeat(chunk.offsets < self._missing[chunk.partition], chunk.lengths)  # those are in
            ends = np.cumsum(chunk.lengths).tolist()
            for offset, begin, end in zip(chunk.offsets.tolist(), [0, *ends], ends, strict=False):
                refused = self._refused.get((chunk.partition, offset))
                if refused:
                    late[begin:end] |= np.isin(starts[begin:end], list(refused))
            return late if late.any() else None
        refusable = ~late
        late |= starts + config.window_us + config.lateness_us <= np.repeat(chunk.watermarks_us, chunk.lengths)
        refusable &= late
        if refusable.any():
            offsets = np.repeat(chunk.offsets, chunk.lengths)
            for offset, start in np.unique(np.stack([offsets, starts])[:, refusable], axis=1).T.tolist():
                self._refused.setdefault((chunk.partition, offset), set()).add(start)
        return late if late.any() else None

    def _add_to(
        self, start: int, slots: Slots, time_us: Ints | None, value: NDArray[np.float64], replayed: bool
    ) -> None:
        config = self.config
        window = self._windows.get(start)
        if window is None:
            window = self._windows[start] = Window(
                config.scale, closed=start + config.window_us <= self.closed_until_us, bands=self._bands
            )
            minute_start = start - start % config.rollup_us
            if minute_start not in self._minutes:
                closed = minute_start + config.rollup_us <= self.closed_until_us
                self._minutes[minute_start] = Window(config.scale, closed=closed)
        window.add(slots, time_us, value, self._series.kinds)
        if window.closed:
            self._mark_dirty(start, _distinct(slots), replayed)

    def _mark_dirty(self, start: int, slots: Ints, replayed: bool) -> None:
        """The rows of these slots in a closed window, and those that follow from them, are out of date."""
        config = self.config

        def mark(window: Window, length: int, at: int, slots: Ints) -> None:
            if not window.closed:
                return
            if at + length <= self._settled_us:
                if not replayed:
                    # The row will lack what another partition has still to replay, which must then make it whole.
                    self._unsettled.add((length, at))
                elif (length, at) not in self._unsettled:
                    return
            window.dirty.append(slots)
            self.dirty = True

        mark(self._windows[start], config.window_us, start, slots)
        minute_start = start - start % config.rollup_us
        mark(self._minutes[minute_start], config.rollup_us, minute_start, slots)
        # A late point of a cumulative counter changes the difference at the next point.
        slots = slots[self._series.kinds[slots] == CUMULATIVE]
        if slots.size and not replayed:
            # Which another partition may have still to replay.
            self._settled_us = min(self._settled_us, start + config.window_us)
        for later in sorted(at for at in self._windows if at > start):
            if slots.size == 0:
                return
            window = self._windows[later]
            # A replayed point concerns those after the next one, too. Versions count the points before a row: one that
            # was written since the restart and lacks those still to replay may be lower than one from before it.
            affected = rest = slots
            if not replayed:
                window.fold(self._series.kinds)
                present = window.count[slots] > 0
                affected, rest = slots[present], slots[~present]
            if affected.size:
                mark(window, config.window_us, later, affected)
                minute_start = later - later % config.rollup_us
                mark(self._minutes[minute_start], config.rollup_us, minute_start, affected)
            slots = rest

    # -- rows out -----------------------------------------------------------------------------------

    @property
    def series(self) -> int:
        """What counts towards the limit; series that a restart has still to meet again are among them."""
        return self._series.size

    @property
    def max_series(self) -> int:
        """The limit as of now."""
        return self._series.max_series

    @property
    def has_refused(self) -> bool:
        """Whether series were refused, so that `series` are all that a replay may bring."""
        return self._series.refused

    def limit_series(self, most: int) -> None:
        """Series beyond `most` are refused from now on."""
        self._series.limit(most)

    @property
    def open_until_us(self) -> int:
        """The watermark at which the last window that exists is retired; BEFORE_ALL with none."""
        return max((self.config.retired_after_us(start) for start in self._windows), default=BEFORE_ALL)

    def emit(self, close_until_us: int | None = None, *, dirty: bool = True, provisional: bool = False) -> list[Block]:
        """Closes what the watermark has passed and emits those rows; emits the out-of-date ones; retires.

        Out-of-date rows wait for a call with `dirty`, but for those of windows that retire.
        `close_until_us` closes further, without moving the watermark: for idle services (wall time) and drains, whose
        rows are `provisional`.
        """
        config = self.config
        boundary = max(self.watermark_us, self.closed_until_us, close_until_us or BEFORE_ALL)
        if not self.dirty and boundary // config.window_us == self.closed_until_us // config.window_us:
            # No window ends between the two: mostly, and then there is nothing to look for.
            self.closed_until_us = boundary
            self._retire()
            return []
        due = [*self._due(self._windows, config.window_us, boundary, dirty)]
        due_minutes = [*self._due(self._minutes, config.rollup_us, boundary, dirty)]
        blocks: list[Block] = []
        if due or due_minutes:
            for window in self._windows.values():
                window.fold(self._series.kinds)
            increases = increases_of(self._windows, self._baselines, self._series)
            for start, window, changed in due:
                slots = np.flatnonzero(window.count) if changed is None else changed
                parts = self._parts([start], increases, provisional and changed is None)
                blocks += self._block(start, config.window_seconds, window, slots, parts)
            for start, _, changed in due_minutes:
                members = [at for at in self._windows if start <= at < start + config.rollup_us]
                merged = merge_windows([self._windows[at] for at in members])
                slots = np.flatnonzero(merged.count) if changed is None else changed
                parts = self._parts(sorted(members), increases, provisional and changed is None)
                blocks += self._block(start, config.rollup_seconds, merged, slots, parts)
        self.closed_until_us = boundary
        self._retire()
        self.dirty = any(w.dirty for w in self._windows.values()) or any(m.dirty for m in self._minutes.values())
        return [block._replace(watermark_us=boundary) for block in blocks]

    def wall(self, now_us: int, *, retire: bool) -> list[Block]:
        """The service is silent: wall time closes its windows and, with `retire`, retires those that exist.

        Who waits for the service hears that its time has passed, by an empty block, even if there are no rows.
        """
        config = self.config
        boundary = now_us - config.disorder_us
        if retire:
            self.watermark_us = max(self.watermark_us, min(boundary, self.open_until_us))
        before_us = self.closed_until_us
        blocks = self.emit(boundary)
        if not blocks and self.closed_until_us // config.window_us > before_us // config.window_us:
            blocks = [Block(self.service, self.stream, config.window_seconds, self.closed_until_us, NO_ROWS)]
        return blocks

    def end(self) -> list[Block]:
        """The stream is over: all its windows close and retire."""
        self.watermark_us = AFTER_ALL
        return self.emit()

    def emit_all(self) -> list[Block]:
        """Every open window as it stands, provisionally, as whole rows: a drain. Closes nothing."""
        closed_until_us = self.closed_until_us
        opened = [w for w in (*self._windows.values(), *self._minutes.values()) if not w.closed]
        blocks = [block._replace(watermark_us=closed_until_us) for block in self.emit(AFTER_ALL, provisional=True)]
        self.closed_until_us = closed_until_us
        for window in opened:
            window.closed = False
        return blocks

    def _due(
        self, windows: dict[int, Window], length: int, boundary: int, dirty: bool
    ) -> Iterator[tuple[int, Window, Ints | None]]:
        """(start, window, changed slots or None for all) of the windows to emit, which become closed and clean."""
        config = self.config
        for start in sorted(windows):
            window = windows[start]
            if not window.closed and start + length <= boundary:
                window.closed = True
                window.dirty.clear()
                yield start, window, None
            elif window.dirty and (dirty or config.retired_after_us(start) <= self.watermark_us):
                changed = np.unique(np.concatenate(window.dirty)).astype(np.int64)
                window.dirty.clear()
                yield start, window, changed

    def _parts(self, starts: list[int], increases: dict[int, Increases], provisional: bool) -> list[Increases | None]:
        """Of the windows that a row consists of.

        Provisional rows count, of the points before them, only those in retired windows: one that is written anew from
        what the broker still has of the others would not beat them, however full it is.
        """
        parts = [increases.get(start) for start in starts]
        if not provisional or not any(parts):
            return parts
        points = self._baselines.points(self._series)
        for number, (start, part) in enumerate(zip(starts, parts, strict=True)):
            if part is not None:
                points[part.slots] += self._windows[start].count[part.slots]
                parts[number] = part._replace(points=np.minimum(part.points, points[part.slots]))
        return parts

    def _block(
        self, start: int, seconds: int, window: Window, slots: Any, increases: list[Increases | None]
    ) -> Iterable[Block]:
        slots = slots[window.count[slots] > 0]
        if slots.size == 0:
            return []
        rows = build_rows(self._series, self.stream, self.config, start, window, slots, increases)
        return [Block(self.service, self.stream, seconds, self.watermark_us, rows)]

    # -- forgetting ---------------------------------------------------------------------------------

    def _retire(self) -> None:
        config = self.config
        until_us = self.watermark_us - config.lateness_us
        until_us -= until_us % config.rollup_us
        if until_us <= self._retired_until_us:
            return
        if self._awaited:
            if len(self._windows) <= (config.lateness_us + config.rollup_us) // config.window_us + MAX_WAITING:
                return
            self._awaited.clear()
            self._replayed()
        self._retire_until(until_us)

    def _retire_until(self, until_us: int) -> None:
        config = self.config
        if until_us <= self._retired_until_us:
            return
        self._retired_until_us = until_us
        for minute in sorted(start for start in self._minutes if start < until_us):
            del self._minutes[minute]
            for start in range(minute, minute + config.rollup_us, config.window_us):
                window = self._windows.pop(start, None)
                if window is not None:
                    self._baselines.absorb(window, self._series)
        self._refused = {
            place: kept for place, starts in self._refused.items() if (kept := {s for s in starts if s >= until_us})
        }
        self._unsettled = {(length, start) for length, start in self._unsettled if start >= until_us}
        self._counted = {start: samples for start, samples in self._counted.items() if start >= until_us}
        self._baselines.expire(until_us, config.max_series)
        self._forget_series()

    def _forget_series(self) -> None:
        """Drops series without a sample in any window, once they are the majority."""
        if len(self._series) < 64:
            return
        used = np.zeros(len(self._series.series), np.bool_)
        for window in self._windows.values():
            window.fold(self._series.kinds)
            used |= window.count > 0
        if used.sum() * 2 > len(self._series):
            return
        for window in self._windows.values():
            window.keep(used)
        slot_of = np.cumsum(used) - 1
        for minute in self._minutes.values():
            minute.dirty = [slot_of[slots[used[slots]]] for slots in minute.dirty]
        self._series.keep(used)
        self._bands.keep(used)

    # -- recovery -----------------------------------------------------------------------------------

    def state(self, *, contents: bool) -> TableState:
        """What recovery needs, for pickling at once; with `contents`, the windows too.

        And where a partition, of several that carry the stream, has passed a window that must wait for the others: it
        will not read again what it has brought for it, whatever the lateness is by then.
        """
        passed_us = max(self._passed_us, self.watermark_us)
        passed = frozenset(
            start
            for start in self._windows
            if start in self._passed or self.config.retired_after_us(start) <= passed_us
        )
        contents = contents or bool(passed)
        length, rollup = self.config.window_us, self.config.rollup_us
        dirty = {(length, start) for start, window in self._windows.items() if window.dirty}
        dirty |= {(rollup, start) for start, minute in self._minutes.items() if minute.dirty}
        state = TableState(
            self.watermark_us,
            self.closed_until_us,
            self._settled_us if self._retired_until_us <= self._replayed_us else self.closed_until_us,
            self._retired_until_us,
            dirty | self._unsettled,
            self._refused,
            self._baselines,
            self._series.admitted,
            self._awaited if contents or not self._windows else None,
            self._passed_us,
            passed,
            counted=self._counted,
        )
        if contents:
            for window in self._windows.values():
                window.fold(self._series.kinds)
                window.sketch()
            state.series = self._series.series
            state.windows = self._windows
            state.minutes = {start: minute.closed for start, minute in self._minutes.items()}
        return state


def _distinct(slots: Slots) -> Ints:
    """Ascending; a replay asks for those of every chunk. By counting a tenth of what sorting costs."""
    return np.flatnonzero(np.bincount(slots)) if slots.max() < 16 * slots.size else np.unique(slots).astype(np.int64)


def _split(time_us: Ints, first_us: int, newest_us: int, window_us: int) -> Iterator[tuple[int, Any]]:
    """(window start, which samples) of each window from the one at `first_us` on; mostly there is one."""
    if time_us.size == 0:
        return
    if newest_us < first_us + window_us:
        yield first_us, slice(None)
        return
    window = (time_us - first_us) // window_us
    last = (newest_us - first_us) // window_us
    # Times may be years apart; mostly the windows are next to each other, and counting is faster than sorting.
    present = np.flatnonzero(np.bincount(window)) if last < time_us.size else np.unique(window)
    for number in present.tolist():
        yield first_us + number * window_us, np.flatnonzero(window == number)
