"""One shard: the window tables of its services, and when they emit.

A plain state machine: `now_us` is wall time, given by the caller. The Bytewax adapter is `tailrace_flows.windows`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from tailrace_schemas.rows import EVENTS, EVERY_SERVICE
from tailrace_schemas.topics import shard_of

from tailrace_flows.core.chunk import UNKNOWN_US, Ahead, Chunk, Mark, ReadUntil
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.counters import Count, Counters
from tailrace_flows.core.misdated import Misdated
from tailrace_flows.core.sealed import seal, unseal
from tailrace_flows.core.series import chars_of
from tailrace_flows.core.table import NO_ROWS, Block, TableState, WindowTable

__all__ = ["Output", "Shard"]

DIRTY_US: Final = 1_000_000
"""Late corrections of emitted rows are collected for so long."""
COUNTERS_US: Final = 2_000_000
READ_EVERY_US: Final = 1_000_000
"""That all partitions are read is said no more often."""
EVENT_CHARS: Final = 1 << 27
"""Of the names and attributes of events that are taken at a time, at most. Each has those of its series, which many
share in a message: three of 1 MB may unfold to 3 GB."""
STATE_VERSION: Final = 2
MAX_WARNINGS: Final = 20


class Output(NamedTuple):
    """What a shard emits, for its sinks: `blocks` of window rows, and record batches of EVENTS and COUNTERS."""

    blocks: list[Block]
    events: Any = None
    counters: Any = None
    aside: Sequence[Block] = ()
    """For the aggregates topic only."""


@dataclass
class _Stream:
    """One (service, stream) of the shard."""

    table: WindowTable
    idle: dict[int, bool | None] = field(default_factory=dict)
    """Partition that has carried it -> `retire` of its idle mark; None: not idle."""
    series: int = 0
    """How many of the shard's series are its own."""


class Shard:
    """State: about 1 kB a service, and the open windows."""

    def __init__(self, config: WindowConfig, now_us: int, state: bytes | None = None) -> None:
        """Anew, or from `snapshot`'s bytes.

        Raises:
            ValueError: the state was written by another version of this format.
        """
        self.config = config
        scope, totals, streams = unseal(STATE_VERSION, state) if state is not None else ("", {}, {})
        self._counters = Counters(scope, totals)
        self._counters_due_us = now_us
        self._dirty_due_us: int | None = None
        """When corrections are due that wait."""
        self._streams: dict[tuple[str, str], _Stream] = {
            (service, stream): _Stream(WindowTable(service, stream, config, table, idle), dict(idle))
            for (service, stream), (table, idle) in streams.items()
        }
        # Kept up to date, since a call must not cost time for each stream.
        self._series = 0
        for entry in self._streams.values():
            self._count_series(entry)
        if any(entry.table.dirty for entry in self._streams.values()):
            self._dirty_due_us = now_us + DIRTY_US
        self._misdated = Misdated()
        self._read_until_us: dict[int, int] = {}
        """Partition -> as of which wall time all of it has been read; of one shard alone, and not kept: after a restart
        each partition has to say so again."""
        self._told_until_us = UNKNOWN_US
        self.warnings: list[str] = []
        """What an operator should read, each once; the caller takes them away."""
        self._warned: set[str] = set()

    def on_items(self, items: Iterable[Chunk | Mark | Ahead | ReadUntil], now_us: int) -> Output:
        """Takes what the source brought, in order; returns the rows that are due."""
        events = _Events()
        blocks: list[Block] = []
        touched: dict[tuple[str, str], _Stream] = {}
        forgotten: set[tuple[str, str]] = set()
        aside: list[Block] = []
        for item in items:
            if isinstance(item, ReadUntil):
                aside += self._read_until(item)
                continue
            if isinstance(item, Ahead):
                self._misdated.count(item.service, item.samples, 0, item.samples, now_us)
                continue
            name = (item.service, item.stream)
            entry = self._streams.get(name)
            if isinstance(item, Mark) and item.replayed:
                if entry is not None:
                    entry.table.heard(item.partition)
                    touched[name] = entry
                continue
            if isinstance(item, Mark) and item.forget:
                if entry is not None:
                    entry.idle.pop(item.partition, None)
                    forgotten.add(name)
                continue
            if entry is None:
                # The state holds every stream of what was read before a restart: another one was refused then, too.
                if self._series >= self.config.max_shard_series or (isinstance(item, Chunk) and item.replayed):
                    self._refuse(item, now_us)
                    continue
                self._counters.scope = f"shard {shard_of(item.service)}"
                table = WindowTable(item.service, item.stream, self.config)
                entry = self._streams[name] = _Stream(table)
                self._count_series(entry)
            if isinstance(item, Chunk):
                entry.table.limit_series(self._limit(entry, item.replayed))
                self._add(entry, item, now_us, events)
                self._count_series(entry)
                touched[name] = entry
            elif item.now_us == 0:
                blocks += entry.table.end()
                self._count_series(entry)
                self._count_end(item, now_us)
            else:
                blocks += self._idle(entry, item)
                self._count_series(entry)
        emit_dirty = self._dirty_due_us is not None and now_us >= self._dirty_due_us
        for entry in self._streams.values() if emit_dirty else touched.values():
            blocks += entry.table.emit(dirty=emit_dirty)
            self._count_series(entry)
        if emit_dirty:
            self._dirty_due_us = None
        elif self._dirty_due_us is None and any(entry.table.dirty for entry in touched.values()):
            self._dirty_due_us = now_us + DIRTY_US
        aside += self._misdated.blocks(now_us)
        # Once no partition remembers them, and none has brought more in the meantime.
        forgotten = {name for name in forgotten if not self._streams[name].idle}
        if forgotten:
            self._counters_due_us = now_us  # what is forgotten must have been told
        counters = self._due_counters(now_us)
        for name in forgotten:
            entry = self._streams.pop(name)
            self._series -= entry.series
            blocks += entry.table.end()  # mostly there is nothing left in it
            if name[1]:
                self._counters.forget(*name)
        return Output(blocks, events.taken(), counters, aside)

    def on_time(self, now_us: int) -> Output:
        """At `next_us`: corrections and counters that are due."""
        return self.on_items((), now_us)

    def on_end(self, now_us: int) -> Output:
        """A drain: open windows as they stand, whole, and the counters. The state stays as it is."""
        blocks = [block for entry in self._streams.values() for block in entry.table.emit_all()]
        self._counters_due_us = now_us
        return Output(blocks, None, self._due_counters(now_us))

    def next_us(self) -> int | None:
        """When `on_time` is wanted, in wall time."""
        due = [self._counters_due_us] if self._counters.changed else []
        due += [self._dirty_due_us] if self._dirty_due_us is not None else []
        return min(due, default=None)

    def snapshot(self, *, contents: bool) -> bytes:
        """The state for recovery; with `contents`, open windows too."""
        streams: dict[tuple[str, str], tuple[TableState, dict[int, bool | None]]] = {
            name: (entry.table.state(contents=contents), entry.idle) for name, entry in self._streams.items()
        }
        return seal(STATE_VERSION, (self._counters.scope, self._counters.totals, streams))

    # ------------------------------------------------------------------------------------------------

    def _add(self, entry: _Stream, chunk: Chunk, now_us: int, events: "_Events") -> None:
        entry.idle[chunk.partition] = None
        latest_us = now_us + self.config.max_future_us
        added = entry.table.add(chunk)
        if not chunk.stream and not chunk.replayed:
            # A record's time, by which the future is refused, is often its producer's own: then only ours can tell.
            is_future = int(chunk.newest_us.max()) > latest_us
            future = int((chunk.time_us > latest_us).sum()) if is_future else 0
            self._misdated.count(chunk.service, chunk.value.size, added.late, future, now_us)
        of_service = entry.table.max_series >= self.config.max_series
        for name, value in (
            (Count.SAMPLES, added.samples),
            (Count.LATE, added.late),
            (Count.SERIES_LIMIT if of_service else Count.SHARD_LIMIT, added.beyond_series_limit),
        ):
            self._counters.add(chunk.service, chunk.stream, name, value)
        if added.beyond_series_limit and of_service:
            self._warn(
                f"service {chunk.service!r} has more than windows.max_series = {self.config.max_series} series "
                f"{f'in stream {chunk.stream!r} ' if chunk.stream else ''}at a time: further ones are left out"
            )
        elif added.beyond_series_limit:
            self._warn_full(chunk)
        if not chunk.replayed and "event" in chunk.table.kinds and (left_out := events.add(chunk, added.taken)):
            self._counters.add(chunk.service, chunk.stream, Count.EVENT_LIMIT, left_out)
            self._warn(
                f"events of service {chunk.service!r} are left out: there were too many at a time for their texts"
            )

    def _count_series(self, entry: _Stream) -> None:
        """Brings the shard's number of series up to date with a stream's, and counts what that could not rebuild."""
        table = entry.table
        before, entry.series = entry.series, max(1, table.series)
        self._series += entry.series - before
        if table.unreplayed:
            self._counters.add(table.service, table.stream, Count.UNREPLAYED, table.unreplayed)
            table.unreplayed = 0

    def _limit(self, entry: _Stream, replayed: bool) -> int:
        """How many series a stream may have."""
        table = entry.table
        if replayed:  # what was admitted before a restart is admitted again, and nothing else
            return table.series if table.has_refused else self.config.max_series
        room = self.config.max_shard_series - self._series
        return min(self.config.max_series, max(table.series, entry.series + room))

    def _count_end(self, mark: Mark, now_us: int) -> None:
        if not self._counters.totals.get((mark.service, mark.stream, Count.ENDED)):
            self._counters.add(mark.service, mark.stream, Count.ENDED, 1)
        self._counters_due_us = now_us

    def _refuse(self, item: Chunk | Mark, now_us: int) -> None:
        """A stream that the shard does not know, and has no room for."""
        if isinstance(item, Mark):
            if item.now_us == 0:
                self._count_end(item, now_us)
        elif not item.replayed:
            # Without its name: where every message has another, the names would fill the memory.
            self._counters.add("", "", Count.SHARD_LIMIT, item.value.size)
            self._warn_full(item)

    def _warn_full(self, chunk: Chunk) -> None:
        self._warn(
            f"the services of shard {shard_of(chunk.service)} have more than windows.max_shard_series = "
            f"{self.config.max_shard_series} series at a time: further ones, such as of service {chunk.service!r}, are "
            "left out",
            key="full",
        )

    def _warn(self, text: str, key: str = "") -> None:
        if (key or text) not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(key or text)
            self.warnings.append(text)

    def _read_until(self, item: ReadUntil) -> list[Block]:
        """What is said once all partitions have been read further, at most once in a while."""
        self._read_until_us[item.partition] = item.until_us
        if len(self._read_until_us) < item.partitions:
            return []
        until_us = min(self._read_until_us.values())
        if until_us < self._told_until_us + READ_EVERY_US:
            return []
        self._told_until_us = until_us
        return [Block(EVERY_SERVICE, "", self.config.window_seconds, until_us, NO_ROWS)]

    def _idle(self, entry: _Stream, mark: Mark) -> list[Block]:
        # Whether to retire is decided by the source, which holds its offset back by the same rule.
        entry.idle[mark.partition] = mark.retire
        if mark.retire:
            entry.table.passed(mark.now_us)
        if None in entry.idle.values():
            return []
        return entry.table.wall(mark.now_us, retire=all(entry.idle.values()))

    def _due_counters(self, now_us: int) -> Any:
        if not self._counters.changed or now_us < self._counters_due_us:
            return None
        self._counters_due_us = now_us + COUNTERS_US
        self._misdated.forget(now_us)
        return self._counters.rows(now_us)


class _Events:
    """Those of one call, as record batches of EVENTS."""

    def __init__(self) -> None:
        self._batches: list[Any] = []
        self._room = EVENT_CHARS

    def taken(self) -> Any:
        return pa.concat_batches(self._batches) if self._batches else None

    def add(self, chunk: Chunk, taken: Any) -> int:
        """Takes the chunk's event samples of those that were `taken`; returns how many there was no room for."""
        is_event = np.array([series.kind == "event" for series in chunk.table.series])[chunk.series_index]
        if taken is not None:
            is_event &= taken
        found = np.flatnonzero(is_event)
        chars = np.array([chars_of(series) for series in chunk.table.series])[chunk.series_index[found]].cumsum()
        chosen = found[chars <= self._room]
        if chosen.size:
            self._room -= int(chars[chosen.size - 1])
            self._batches.append(_occurred(chunk, chosen))
        return int(found.size - chosen.size)


def _occurred(chunk: Chunk, chosen: Any) -> Any:
    """A record batch of EVENTS of some of the chunk's samples."""
    batch_of = np.repeat(np.arange(chunk.lengths.size), chunk.lengths)
    begins = np.cumsum(chunk.lengths) - chunk.lengths
    ids = []
    for at in chosen.tolist():
        batch = int(batch_of[at])
        producer_id, sequence = chunk.producers[batch]
        # A numbered batch is the same wherever it is read again; another is known by its place in Kafka.
        place = (producer_id, sequence) if sequence >= 0 else (chunk.partition, int(chunk.offsets[batch]))
        text = repr((chunk.service, chunk.stream, *place, at - int(begins[batch])))
        ids.append(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))
    series = [chunk.table.series[row] for row in chunk.series_index[chosen].tolist()]
    columns = [
        ids,
        chunk.time_us[chosen],
        [chunk.service] * len(ids),
        [one.metric for one in series],
        [one.attributes for one in series],
        chunk.value[chosen],
        [one.unit for one in series],
        [chunk.stream] * len(ids),
    ]
    return pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, EVENTS, strict=True)], schema=EVENTS)
