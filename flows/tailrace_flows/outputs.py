"""Bytewax sinks: everything written in an epoch is durable before the epoch commits.

Guarantee: at least once. Bytewax calls `snapshot` before it commits an epoch, and there the sinks flush; if that fails
or the process dies, the epoch is done again. Rows are versioned and dead letters carry their offset, so a repetition
is recognised. (Bytewax's `DynamicSink`s and its `KafkaSink` do not hold back the commit.)
"""

from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from tailrace_schemas.deadletter import DeadLetter, encode_dead_letter
from tailrace_schemas.rows import WindowRows, encode_window_rows
from tailrace_sinks.kafka import KafkaWriter

from tailrace_flows.core.shard import Output

__all__ = ["AggregatesSink", "ClickHouseSink", "DeadLettersSink", "RowWriter"]

FLUSH_ROWS = 100_000
"""Rows that are written before the epoch ends, to bound memory."""
AGGREGATE_BYTES = 400_000
"""A message's rows, at most, so that it stays below Kafka's default limit of 1 MB."""

TABLE_OF_SECONDS = {10: "rows_10s", 60: "rows_1m"}


class RowWriter(Protocol):
    """What writes record batches to a ClickHouse table, and returns when they are durable."""

    def write(self, table: str, batches: list[Any]) -> None: ...

    def close(self) -> None: ...


class _OneSink(FixedPartitionedSink[Any, None]):
    """One partition a process, number `part`; items spread over them by their key, a number."""

    def __init__(self, build: Callable[[], StatefulSinkPartition[Any, None]], part: int) -> None:
        self._build = build
        self._part = part

    def list_parts(self) -> list[str]:
        return [f"{self._part:04d}"]

    def part_fn(self, item_key: str) -> int:
        return int(item_key)

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> StatefulSinkPartition[Any, None]:
        return self._build()


class ClickHouseSink(_OneSink):
    """Takes (shard, Output)."""

    def __init__(self, writer: Callable[[], RowWriter], part: int) -> None:
        super().__init__(lambda: _ClickHousePart(writer()), part)


class _ClickHousePart(StatefulSinkPartition[Output, None]):
    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer
        self._batches: dict[str, list[Any]] = {}
        self._rows = 0

    def write_batch(self, values: list[Output]) -> None:
        for output in values:
            for block in output.blocks:
                self._add(TABLE_OF_SECONDS[block.window_seconds], block.rows)
            if output.events is not None:
                self._add("event_rows", output.events)
            if output.counters is not None:
                self._add("counter_rows", output.counters)
        if self._rows >= FLUSH_ROWS:
            self._flush()

    def _add(self, table: str, batch: Any) -> None:
        self._batches.setdefault(table, []).append(batch)
        self._rows += batch.num_rows

    def _flush(self) -> None:
        # Counters last: when a stream is counted as ended, all its rows are there.
        for table in sorted(self._batches, key=lambda name: name == "counter_rows"):
            self._writer.write(table, self._batches[table])
        self._batches.clear()
        self._rows = 0

    def snapshot(self) -> None:
        self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()


class AggregatesSink(_OneSink):
    """Takes (shard, Output); writes its window rows to the aggregates topic, key = service.name."""

    def __init__(self, writer: Callable[[], KafkaWriter], topic: str, part: int) -> None:
        super().__init__(lambda: _AggregatesPart(writer(), topic), part)


class _AggregatesPart(StatefulSinkPartition[Output, None]):
    def __init__(self, writer: KafkaWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic

    def write_batch(self, values: list[Output]) -> None:
        for output in values:
            for block in output.blocks:
                for rows in _slices(block.rows):
                    message = encode_window_rows(WindowRows(*block[:4], rows))
                    self._writer.write(self._topic, block.service.encode(), message)

    def snapshot(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.flush()


def _slices(rows: pa.RecordBatch) -> list[Any]:
    step = max(1, rows.num_rows * AGGREGATE_BYTES // max(1, rows.nbytes))
    return [rows.slice(at, step) for at in range(0, rows.num_rows, step)]


class DeadLettersSink(_OneSink):
    """Takes (partition, DeadLetter)."""

    def __init__(self, writer: Callable[[], KafkaWriter], topic: str, part: int) -> None:
        super().__init__(lambda: _DeadLettersPart(writer(), topic), part)


class _DeadLettersPart(StatefulSinkPartition[DeadLetter, None]):
    def __init__(self, writer: KafkaWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic

    def write_batch(self, values: list[DeadLetter]) -> None:
        for letter in values:
            key = f"{letter.topic}-{letter.partition}".encode()
            self._writer.write(self._topic, key, encode_dead_letter(letter))

    def snapshot(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.flush()
