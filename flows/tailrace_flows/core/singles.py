"""Messages of one sample each, decoded together: what a message shares with earlier ones is looked up, not read again.

A `Sample` is the bytes of its names, eight of time, those of its series, eight of value. So a message whose names and
series have been seen is a lookup and two slices; times and values are decoded as arrays, and all samples of a service
and stream become one chunk. 1 us a message, where `decode` takes 7 and a chunk for each series 50.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.samples import (
    MAX_ATTRIBUTES,
    MAX_TABLE_ATTRIBUTES,
    SINGLE_HEADER,
    SampleBatch,
    Series,
    SeriesTable,
    table_of_rows,
)

from tailrace_flows.core.chunk import UNKNOWN_US, Chunk, is_fine, time_range
from tailrace_flows.core.feed import Record

__all__ = ["Singles"]

MAX_KNOWN: Final = 50_000
"""Then all are forgotten: those in use come back with their next message."""
MAX_ROWS: Final = 10_000
"""Of one table, likewise: it is encoded anew whenever a series comes."""

_CONTINUED: Final = 0x8080_8080_8080_8080
_EIGHT_BYTES: Final = 0x0080_8080_8080_8080
"""The continuation bits of a varint of eight bytes, which the times of 1988 to 3110 in microseconds are."""


@dataclass(eq=False)
class _Group:
    """The series of one service and stream that came one by one."""

    service: str
    stream: str
    rows: list[bytes] = field(default_factory=list)
    series: list[Series] = field(default_factory=list)
    table: SeriesTable | None = None
    attributes: int = 0

    @property
    def is_full(self) -> bool:
        return len(self.rows) >= MAX_ROWS or self.attributes > MAX_TABLE_ATTRIBUTES - MAX_ATTRIBUTES


_Waiting = tuple[int, bytes, bytes, Record]
"""Row of the table, encoded time and value."""


class Singles:
    """See the module. Gathers messages with `take`, gives their chunks with `chunks`. Memory: 0.5 kB a series."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[_Group, int]] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._waiting: dict[tuple[_Group, bool], list[_Waiting]] = {}

    def take(self, record: Record, replayed: bool) -> bool:
        """Whether the record is a message like an earlier one; then it waits for `chunks`."""
        data = record.value
        if data is None or not data.startswith(SINGLE_HEADER):
            return False
        try:
            stream_at = 11 + (data[10] >> 1)  # the lengths of service and stream take a byte each
            time_at = stream_at + 1 + (data[stream_at] >> 1)
            found = self._known.get(data[10:time_at] + data[time_at + 8 : -8])
        except IndexError:
            return False
        if found is None:
            return False
        time = data[time_at : time_at + 8]
        if int.from_bytes(time, "little") & _CONTINUED != _EIGHT_BYTES:
            return False
        group, row = found
        waiting = self._waiting.get((group, replayed))
        if waiting is None:
            waiting = self._waiting[(group, replayed)] = []
        waiting.append((row, time, data[-8:], record))
        return True

    def learn(self, data: bytes, batch: SampleBatch) -> None:
        """Takes note of a message, if it is of one sample, that `decode` gave the batch for."""
        if not data.startswith(SINGLE_HEADER):
            return
        service, stream = batch.service.encode(), batch.stream.encode()
        names = b"".join([bytes([len(name) << 1]) + name for name in (service, stream) if len(name) < 64])
        time_at = 10 + len(names)
        if data[10:time_at] != names or len(names) != len(service) + len(stream) + 2:
            return  # the lengths take more than a byte
        if int.from_bytes(data[time_at : time_at + 8], "little") & _CONTINUED != _EIGHT_BYTES:
            return
        group = self._groups.get((batch.service, batch.stream))
        if len(self._known) >= MAX_KNOWN or (group is not None and group.is_full):
            self._known.clear()
            self._groups.clear()
            group = None
        if group is None:
            group = self._groups[(batch.service, batch.stream)] = _Group(batch.service, batch.stream)
        row = data[time_at + 8 : -8]
        self._known[data[10:time_at] + row] = group, len(group.rows)
        group.rows.append(row)
        group.series += batch.table.series
        group.attributes += len(batch.table.series[0].attributes)
        group.table = None

    def chunks(self, partition: int, max_future_us: int) -> tuple[list[Chunk], list[Record]]:
        """The chunks of all that was taken, and the records of those that must be looked at one by one."""
        chunks: list[Chunk] = []
        rest: list[Record] = []
        for (group, replayed), waiting in self._waiting.items():
            rows, times, values, records = zip(*waiting, strict=True)
            offsets, record_times_us, *_ = zip(*records, strict=True)
            time_us = _times(b"".join(times))
            chunk = Chunk(
                partition,
                group.service,
                group.stream,
                _table(group),
                replayed,
                np.array(offsets, np.int64),
                np.ones(len(waiting), np.int64),
                np.full(len(waiting), UNKNOWN_US, np.int64),
                [("", -1)] * len(waiting),
                np.array(rows, np.uint32),
                time_us,
                np.frombuffer(b"".join(values), "<f8"),
                *time_range(time_us, np.ones(len(waiting), np.int64)),
            )
            if is_fine(chunk, min(record_times_us) + max_future_us, max(rows)):
                chunks.append(chunk)
            else:
                rest += records
        self._waiting.clear()
        rest.sort(key=lambda record: record.offset)
        return chunks, rest


def _table(group: _Group) -> SeriesTable:
    if group.table is None:
        group.table = table_of_rows(group.rows, group.series)
    return group.table


def _times(varints: bytes) -> NDArray[np.int64]:
    """The zig-zag varints of eight bytes each."""
    packed = np.frombuffer(varints, "<u8")
    number = np.zeros(packed.size, np.uint64)
    for place in range(8):
        number |= (packed >> np.uint64(8 * place) & np.uint64(0x7F)) << np.uint64(7 * place)
    return (number >> np.uint64(1)).astype(np.int64) ^ -(number & np.uint64(1)).astype(np.int64)
