"""Chunks: the batches that one poll of a partition brought, as columns, checked all at once.

A batch of 1,000 samples costs numpy about as much in calls as in work, so the batches of one (service, stream, series
table) are concatenated first and checked together; only where a check fails are they looked at one by one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.samples import (
    MAX_TIME_US,
    MIN_TIME_US,
    Reason,
    SampleBatch,
    SeriesTable,
    decode_series_table,
)

__all__ = ["UNKNOWN_US", "Arrival", "Chunk", "Mark", "Refusal", "build_chunk", "is_fine", "joined", "time_range"]

Ints = NDArray[np.int64]

COUNTERS: Final = frozenset({"counter", "cumulative"})
UNKNOWN_US: Final = -(1 << 62)
"""Earlier than any time: no watermark yet."""


class Arrival(NamedTuple):
    """A decoded batch, and where it stands in its partition."""

    offset: int
    record_time_us: int
    batch: SampleBatch
    record: bytes
    """What it was decoded from."""


class Refusal(NamedTuple):
    """Samples of one batch that cannot be used."""

    arrival: Arrival
    reason: Reason
    detail: str
    samples: int


class Mark(NamedTuple):
    """What a source says of a service between chunks."""

    partition: int
    service: str
    stream: str
    now_us: int
    """Wall time of an idle mark; 0 for the end of the stream."""
    retire: bool = True
    """Whether wall time may retire windows too, or only close them: a backfill that paused may go on."""


@dataclass(slots=True)
class Chunk:
    """Samples of one service, stream and series table, from one partition, in order of their offsets.

    b batches of n samples in all; `offsets`, `lengths` and `watermarks_us` are (b,), the columns (n,).
    """

    partition: int
    service: str
    stream: str
    table: SeriesTable
    replayed: bool
    """Counted and emitted before a restart; now only rebuilds open windows."""
    offsets: Ints
    lengths: Ints
    watermarks_us: Ints
    """The partition's own watermark of (service, stream) before each batch: decides what is late, alike on replay."""
    producers: list[tuple[str, int]]
    """(producer id, sequence) of each batch: names its events."""
    series_index: NDArray[np.uint32]
    time_us: Ints
    value: NDArray[np.float64]
    oldest_us: int
    """The least time; UNKNOWN_US of none."""
    newest_us: Ints
    """(b,) the greatest time of each batch; UNKNOWN_US for an empty one."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes a series table travels encoded, and is looked up in the receiver's cache.
        fields = (
            self.partition, self.service, self.stream, self.table.encoded, self.replayed, self.offsets, self.lengths,
            self.watermarks_us, self.producers, self.series_index, self.time_us, self.value, self.oldest_us,
            self.newest_us,
        )  # fmt: skip
        return _restore, fields


def _restore(partition: int, service: str, stream: str, table: bytes, *rest: Any) -> Chunk:
    return Chunk(partition, service, stream, decode_series_table(table), *rest)


def build_chunk(
    partition: int, arrivals: list[Arrival], *, max_future_us: int, replayed: bool
) -> tuple[Chunk, list[Refusal]]:
    """One chunk of batches that share service, stream and series table, and what had to be left out.

    Cost: about 8 ns a sample and 1 us a batch where all is well.
    """
    first = arrivals[0].batch
    lengths = np.array([a.batch.samples for a in arrivals], np.int64)
    if len(arrivals) == 1:
        series_index = np.frombuffer(first.series_index, "<u4")
        value = np.frombuffer(first.value, "<f8").copy()  # windows keep it, and must not keep the message with it
        time_us = np.frombuffer(first.time_offset_us, "<i4") + np.int64(first.base_time_us)
    else:
        # Bytes are joined before they become arrays: one copy, and no call per batch.
        series_index = np.frombuffer(b"".join([a.batch.series_index for a in arrivals]), "<u4")
        value = np.frombuffer(b"".join([a.batch.value for a in arrivals]), "<f8")
        time_us = np.repeat(np.array([a.batch.base_time_us for a in arrivals], np.int64), lengths)
        time_us += np.frombuffer(b"".join([a.batch.time_offset_us for a in arrivals]), "<i4")
    chunk = Chunk(
        partition,
        first.service,
        first.stream,
        first.table,
        replayed,
        np.array([a.offset for a in arrivals], np.int64),
        lengths,
        np.full(len(arrivals), UNKNOWN_US, np.int64),
        [(a.batch.producer_id, a.batch.sequence) for a in arrivals],
        series_index,
        time_us,
        value,
        *time_range(time_us, lengths),
    )
    if is_fine(chunk, min(a.record_time_us for a in arrivals) + max_future_us):
        return chunk, []
    return _sift(chunk, arrivals, max_future_us)


def is_fine(chunk: Chunk, latest_us: int) -> bool:
    """Whether every sample can be used; `latest_us` is the least of their limits."""
    value = chunk.value
    if value.size == 0:
        return True
    return bool(
        chunk.series_index.max() < len(chunk.table.series)
        and np.isfinite(value).all()
        and chunk.oldest_us >= MIN_TIME_US
        and int(chunk.newest_us.max()) <= min(latest_us, MAX_TIME_US)
        and (chunk.table.kinds.isdisjoint(COUNTERS) or value.min() >= 0)
    )


def joined(parts: list[Any]) -> Any:
    """The arrays one after the other; a single one as it is, not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def time_range(time_us: Ints, lengths: Ints) -> tuple[int, Ints]:
    """The least of all times, and the greatest of each batch."""
    if time_us.size == 0:
        return UNKNOWN_US, np.full(lengths.size, UNKNOWN_US)
    oldest_us = int(time_us.min())
    if lengths.size == 1:
        return oldest_us, time_us.max(keepdims=True)
    begins = np.cumsum(lengths) - lengths
    if lengths.min() > 0:
        return oldest_us, np.maximum.reduceat(time_us, begins)
    newest = np.full(lengths.size, UNKNOWN_US)
    filled = lengths > 0
    newest[filled] = np.maximum.reduceat(time_us, begins[filled])
    return oldest_us, newest


def _sift(chunk: Chunk, arrivals: list[Arrival], max_future_us: int) -> tuple[Chunk, list[Refusal]]:
    """Takes out the samples that cannot be used, the first reason that holds for each."""
    batch_of = np.repeat(np.arange(len(arrivals)), chunk.lengths)
    # A record's timestamp is its producer's word and may be anything; beyond the range of times all limits are alike.
    limits_us = [min(max(a.record_time_us + max_future_us, MIN_TIME_US - 1), MAX_TIME_US) for a in arrivals]
    limits = np.array(limits_us, np.int64)[batch_of]
    known = chunk.series_index < len(chunk.table.series)
    counter_rows = np.array([s.kind in COUNTERS for s in chunk.table.series] or [False])
    is_counter = counter_rows[np.where(known, chunk.series_index, 0)]
    checks: Iterable[tuple[Reason, NDArray[np.bool_], str]] = (
        (Reason.BAD_INDEX, ~known, f"series_index beyond the table's {len(chunk.table.series)} series"),
        (Reason.NOT_FINITE, ~np.isfinite(chunk.value), "NaN or infinite values"),
        (
            Reason.TIME_OUT_OF_RANGE,
            (chunk.time_us < MIN_TIME_US) | (chunk.time_us > MAX_TIME_US),
            "times outside 1970 to 2100",
        ),
        (
            Reason.TOO_FAR_IN_FUTURE,
            chunk.time_us > limits,
            f"times more than {max_future_us / 1e6:g} s after the record's timestamp",
        ),
        (Reason.NEGATIVE_COUNT, is_counter & (chunk.value < 0), "negative values of a counter"),
    )
    good = np.ones(chunk.value.size, np.bool_)
    refusals: list[Refusal] = []
    for reason, bad, detail in checks:
        bad = bad & good
        good &= ~bad
        per_batch = np.bincount(batch_of[bad], minlength=len(arrivals))
        refusals += [
            Refusal(
                arrivals[i],
                reason,
                f"{per_batch[i]} of {chunk.lengths[i]} samples: {detail}",
                int(per_batch[i]),
            )
            for i in np.flatnonzero(per_batch)
        ]
    chunk.lengths = np.bincount(batch_of[good], minlength=len(arrivals)).astype(np.int64)
    chunk.series_index = chunk.series_index[good]
    chunk.time_us = chunk.time_us[good]
    chunk.value = chunk.value[good]
    chunk.oldest_us, chunk.newest_us = time_range(chunk.time_us, chunk.lengths)
    return chunk, refusals
