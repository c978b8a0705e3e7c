"""Samples into `SampleBatch` messages, per service: pure, and the same whatever the blocks the samples came in."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tailrace_producers.replay.model import I4, I8, Block, Catalogue

__all__ = ["LAYOUT_VERSION", "Batcher", "Message"]

LAYOUT_VERSION: Final = 1
"""Raise it when the same file would be cut into other messages: a flow knows a message by its sequence alone."""

MAX_SAMPLES: Final = 5000
MAX_SPAN_US: Final = 2_000_000_000
"""An offset is an int32 of microseconds: 2,147 s."""
MAX_TABLE_BYTES: Final = 128 * 1024
"""With 5,000 samples of 16 bytes a message stays below 256 kB, unless one series alone is greater."""
MAX_TABLE_SERIES: Final = 20_000
_ROUND_SAMPLES: Final = 1000


class Message(NamedTuple):
    """An encoded batch."""

    service: str
    payload: bytes
    samples: int
    release_us: int
    """Greatest event time of the service so far: in real time the batch may be sent when this has come."""


class _Service:
    """One service's place in its stream, and what waits for its next batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sequence = 0
        self.release_us = 0
        self.pending: list[Block] = []
        self.waiting = 0
        """Samples in `pending`."""
        self.table: list[int] = []
        """The series of the table, in the order in which they came."""
        self.table_bytes = 0
        self.encoded = b""
        """The table's bytes; empty: to be encoded anew."""
        self.run = 0
        """Samples since a table was begun before its predecessor was full."""
        self.starts: set[int] = set()
        """The first series of every table so far."""


class Batcher:
    """Cuts each service's samples into batches of <= 5,000 samples, <= `max_span_us` and one table of series.

    Guarantee: the messages depend on the samples and their order alone, not on the blocks, so the same file gives
    the same bytes. Memory: less than one batch of samples a service, and the tables.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        producer_id: str,
        stream: str,
        max_samples: int = MAX_SAMPLES,
        max_span_us: int = MAX_SPAN_US,
        max_table_bytes: int = MAX_TABLE_BYTES,
        max_table_series: int = MAX_TABLE_SERIES,
    ) -> None:
        self._catalogue = catalogue
        self._producer_id = producer_id
        self._stream = stream
        self._max_samples = max_samples
        self._max_span_us = max_span_us
        self._max_table_bytes = max_table_bytes
        self._max_table_series = max_table_series
        self._services: dict[int, _Service] = {}
        self._row = np.full(1024, -1, np.int32)
        """Series number -> row of its service's table; -1: not in it."""

    @property
    def services(self) -> tuple[str, ...]:
        """The services that have had samples, by first appearance."""
        return tuple(service.name for service in self._services.values())

    def add(self, block: Block) -> Iterator[Message]:
        """The batches that are full now."""
        if not len(block.value):
            return
        known = len(self._catalogue.series)
        if known > len(self._row):
            self._row = np.concatenate((self._row, np.full(2 * known - len(self._row), -1, np.int32)))
        for number, part in self._by_service(block):
            service = self._services.get(number)
            if service is None:
                service = self._services[number] = _Service(self._catalogue.services[number])
            service.pending.append(part)
            service.waiting += len(part.value)
            if service.waiting >= self._max_samples:
                yield from self._cut(service, keep_incomplete=True)

    def flush(self) -> Iterator[Message]:
        """Everything that waits for its batch to fill."""
        for service in self._services.values():
            yield from self._cut(service, keep_incomplete=False)

    def finish(self) -> Iterator[Message]:
        """What is left, then for each service the empty batch that ends its stream."""
        yield from self.flush()
        for service in self._services.values():
            empty = Block(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0))
            self._begin_table(service)
            yield self._message(service, empty, np.empty(0, np.int32), end_of_stream=True)

    def _by_service(self, block: Block) -> Iterator[tuple[int, Block]]:
        """The block's samples of each service, by the first appearance of the service."""
        if len(self._catalogue.services) == 1:
            yield 0, block
            return
        owners = np.array(self._catalogue.service_of, np.int32)[block.series]
        order = np.argsort(owners, kind="stable")
        cuts = np.flatnonzero(np.diff(owners[order])) + 1
        for rows in sorted(np.split(order, cuts), key=lambda rows: int(rows[0])):
            yield int(owners[rows[0]]), block.rows(rows)

    def _cut(self, service: _Service, *, keep_incomplete: bool) -> Iterator[Message]:
        if not service.waiting:
            return
        waiting = _joined(service.pending)
        least = self._max_samples if keep_incomplete else 1
        start = 0
        while len(waiting.value) - start >= least:
            stop = self._span_end(waiting.time_us, start, min(start + self._max_samples, len(waiting.value)))
            stop = start + self._admit(service, waiting.series[start:stop])
            part = waiting.rows(slice(start, stop))
            yield self._message(service, part, self._row[part.series])
            start = stop
        # Joined again: a slice would keep the whole block in memory.
        service.pending = [_joined([waiting.rows(slice(start, None))])]
        service.waiting = len(waiting.value) - start

    def _span_end(self, time_us: I8, start: int, stop: int) -> int:
        """The greatest end <= stop whose samples span at most `max_span_us`."""
        part = time_us[start:stop]
        if int(part.max()) - int(part.min()) <= self._max_span_us:
            return stop
        spans = np.maximum.accumulate(part) - np.minimum.accumulate(part)
        return start + int(np.argmax(spans > self._max_span_us))

    def _admit(self, service: _Service, series: I4) -> int:
        """Let the first samples' series into the service's table; says how many samples these are: at least one."""
        strangers = np.flatnonzero(self._row[series] < 0)
        _, first = np.unique(series[strangers], return_index=True)
        for place in strangers[np.sort(first)].tolist():
            number = int(series[place])
            size = _encoded_bytes(self._catalogue.series[number])
            full = service.table_bytes + size > self._max_table_bytes or len(service.table) >= self._max_table_series
            # Data that goes round more series than a table holds: begin where a table began before, and the tables
            # of this round equal those of the last, byte by byte, which a reader decodes once. Not too often, lest
            # two series take turns with a message each.
            again = number in service.starts and service.run + place >= _ROUND_SAMPLES
            if service.table and (full or again):
                if place:
                    # What comes before is a message of its own; the next call begins with this series.
                    service.run += place
                    return int(place)
                self._begin_table(service)
                if not full:
                    service.run = 0
                return self._admit(service, series)
            if not service.table:
                service.starts.add(number)
            self._row[number] = len(service.table)
            service.table.append(number)
            service.table_bytes += size
            service.encoded = b""
        service.run += len(series)
        return len(series)

    def _begin_table(self, service: _Service) -> None:
        self._row[service.table] = -1
        service.table = []
        service.table_bytes = 0
        service.encoded = b""

    def _message(self, service: _Service, part: Block, rows: I4, *, end_of_stream: bool = False) -> Message:
        if not service.encoded:
            service.encoded = encode_series_table(self._catalogue.series[number] for number in service.table)
        base_us = int(part.time_us.min()) if len(part.value) else service.release_us
        payload = encode_batch(
            service=service.name,
            producer_id=self._producer_id,
            sequence=service.sequence,
            stream=self._stream,
            end_of_stream=end_of_stream,
            base_time_us=base_us,
            series_table=service.encoded,
            series_index=rows.astype("<u4").tobytes(),
            time_offset_us=(part.time_us - base_us).astype("<i4").tobytes(),
            value=part.value.astype("<f8", copy=False).tobytes(),
        )
        service.sequence += 1
        if len(part.value):
            service.release_us = max(service.release_us, int(part.time_us.max()))
        return Message(service.name, payload, len(part.value), service.release_us)


def _joined(blocks: Sequence[Block]) -> Block:
    return Block(
        np.concatenate([block.time_us for block in blocks]),
        np.concatenate([block.series for block in blocks]),
        np.concatenate([block.value for block in blocks]),
    )


def _encoded_bytes(series: Series) -> int:
    """At most so many bytes of the encoded table: text, its lengths, the kind, and the map's frame."""
    texts: Sequence[str] = (series.metric, series.unit, *(text for pair in series.attributes for text in pair))
    return sum(len(text.encode()) + 3 for text in texts) + 8
