"""Bytewax sinks: everything written in an epoch is durable before the epoch commits.

Guarantee: at least once. Bytewax calls `snapshot` before it commits an epoch, and there the sinks flush; if that fails
or the process dies, the epoch is done again. Rows are versioned and dead letters carry their offset, so a repetition
is recognised. (Bytewax's `DynamicSink`s and its `KafkaSink` do not hold back the commit.)
"""

from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from tailrace_schemas.alerts import AlertEvent
from tailrace_schemas.cloudevents import event_message, notification_message
from tailrace_schemas.deadletter import DeadLetter, encode_dead_letter
from tailrace_schemas.rows import ANOMALIES, BASELINES, HEALTH, INCIDENTS, SLO_STATUS, WindowRows, encode_window_rows
from tailrace_sinks.kafka import KafkaWriter

from tailrace_flows.alert_rows import alert_event_rows
from tailrace_flows.behind import Behind
from tailrace_flows.core.alerting.evaluator import Findings
from tailrace_flows.core.alerting.responder import Response
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.shard import Output

__all__ = [
    "AggregatesSink", "ClickHouseSink", "DeadLettersSink", "EventsSink", "FindingsSink", "NotificationsSink",
]  # fmt: skip

WRITE_ROWS = 20_000
"""Rows that are written before the epoch ends, so that the flow computes meanwhile, and memory is bounded."""
AGGREGATE_BYTES = 400_000
"""A message's rows, about, and twice that at most: Kafka takes 1 MB by default."""

SCHEMA_OF = {
    "slo_status_rows": SLO_STATUS,
    "health_rows": HEALTH,
    "incident_rows": INCIDENTS,
    "anomaly_rows": ANOMALIES,
    "baseline_rows": BASELINES,
}
TABLE_OF_SECONDS = {10: "rows_10s", 60: "rows_1m"}


PARTS = 16
"""Of each sink, whatever the number of processes: Bytewax cannot resume a partition that nobody lists any more."""


class _SharedSink(FixedPartitionedSink[Any, None]):
    """Bytewax spreads PARTS partitions over the processes; those of one process share one `_Writer`."""

    def __init__(self, build: Callable[[], "_Writer"]) -> None:
        self._build = build
        self._writer: _Writer | None = None

    def list_parts(self) -> list[str]:
        return [f"{part:02d}" for part in range(PARTS)]

    def part_fn(self, item_key: str) -> int:
        return int(item_key)  # the number of a shard or partition

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_Part":
        if self._writer is None:
            self._writer = self._build()
        return _Part(self._writer)


class _Writer(Protocol):
    """What a sink does with its items; `flush` returns when all are durable."""

    def write_batch(self, values: list[Any]) -> None: ...

    def flush(self) -> None: ...


class _Part(StatefulSinkPartition[Any, None]):
    def __init__(self, writer: _Writer) -> None:
        self._writer = writer

    def write_batch(self, values: list[Any]) -> None:
        self._writer.write_batch(values)

    def snapshot(self) -> None:
        # The first partition of the epoch writes what all have gathered, the others find nothing left.
        self._writer.flush()

    def close(self) -> None:
        # Bytewax takes a snapshot first, unless the flow has failed: then nothing more is to be made durable, and an
        # error in here would abort the process before the first one is reported.
        pass


class ClickHouseSink(_SharedSink):
    """Takes (shard, Output)."""

    def __init__(self, writer: Callable[[], Behind]) -> None:
        super().__init__(lambda: _Rows(writer()))


class _Rows:
    def __init__(self, writer: Behind) -> None:
        self._writer = writer
        self._batches: dict[str, list[Any]] = {}
        self._rows = 0
        self._counters: list[Any] = []

    def write_batch(self, values: list[Output]) -> None:
        for output in values:
            for block in output.blocks:
                self._add(TABLE_OF_SECONDS[block.window_seconds], block.rows)
            if output.events is not None:
                self._add("event_rows", output.events)
            if output.counters is not None:
                self._counters.append(output.counters)
        if self._rows >= WRITE_ROWS:
            self._write()

    def _add(self, table: str, batch: Any) -> None:
        self._batches.setdefault(table, []).append(batch)
        self._rows += batch.num_rows

    def _write(self) -> None:
        for table, batches in self._batches.items():
            self._writer.write(table, batches)
        self._batches = {}
        self._rows = 0

    def flush(self) -> None:
        self._write()
        # Counters last: when a stream is counted as ended, all its rows are there.
        if self._counters:
            self._writer.write("counter_rows", self._counters)
            self._counters = []
        self._writer.wait()


class AggregatesSink(_SharedSink):
    """Takes (shard, Output or Findings); writes its window rows to the aggregates topic, key = service.name."""

    def __init__(self, writer: Callable[[], KafkaWriter], topic: str) -> None:
        super().__init__(lambda: _Aggregates(writer(), topic))


class _Aggregates:
    def __init__(self, writer: KafkaWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic

    def write_batch(self, values: list[Output | Findings]) -> None:
        for output in values:
            given = output.blocks if isinstance(output, Findings) else [*output.aside, *output.blocks]
            blocks = [block._replace(rows=rows) for block in given for rows in _slices(block.rows)]
            last = {block[:2]: number for number, block in enumerate(blocks)}
            for number, block in enumerate(blocks):
                # Who reads that a window is closed must have had all of its rows: only the last message says it.
                watermark_us = block.watermark_us if last[block[:2]] == number else UNKNOWN_US
                self._write(WindowRows(*block[:3], watermark_us, block.rows))

    def _write(self, rows: WindowRows) -> None:
        """Writes a message of them, or two where it gets too large: some rows are many times the size of the others.

        One row always fits: `core.sketch` bounds its buckets and `tailrace_schemas.samples` its names.
        """
        message = encode_window_rows(rows)
        half = rows.rows.num_rows // 2
        if len(message) > 2 * AGGREGATE_BYTES and half:
            self._write(rows._replace(watermark_us=UNKNOWN_US, rows=rows.rows.slice(0, half)))
            self._write(rows._replace(rows=rows.rows.slice(half)))
        else:
            self._writer.write(self._topic, rows.service.encode(), message)

    def flush(self) -> None:
        self._writer.flush()


def _slices(rows: pa.RecordBatch) -> list[Any]:
    step = max(1, rows.num_rows * AGGREGATE_BYTES // max(1, rows.nbytes))
    return [rows.slice(at, step) for at in range(0, max(1, rows.num_rows), step)]


class DeadLettersSink(_SharedSink):
    """Takes (partition, DeadLetter)."""

    def __init__(self, writer: Callable[[], KafkaWriter], topic: str) -> None:
        super().__init__(lambda: _DeadLetters(writer(), topic))


class _DeadLetters:
    def __init__(self, writer: KafkaWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic

    def write_batch(self, values: list[DeadLetter]) -> None:
        for letter in values:
            key = f"{letter.topic}-{letter.partition}".encode()
            self._writer.write(self._topic, key, encode_dead_letter(letter))

    def flush(self) -> None:
        self._writer.flush()


class EventsSink(_SharedSink):
    """Takes (key, Findings); writes their events to the alerts topic, key = alert id."""

    def __init__(self, writer: Callable[[], KafkaWriter], topic: str) -> None:
        super().__init__(lambda: _Events(writer(), topic))


class _Events:
    def __init__(self, writer: KafkaWriter, topic: str) -> None:
        self._writer = writer
        self._topic = topic

    def write_batch(self, values: list[Findings]) -> None:
        for found in values:
            for event in found.events:
                sent = event_message(event)
                self._writer.write(self._topic, sent.key, sent.value, sent.headers)

    def flush(self) -> None:
        self._writer.flush()


class FindingsSink(_SharedSink):
    """Takes (key, Findings); writes their events and rows to ClickHouse."""

    def __init__(self, writer: Callable[[], Behind]) -> None:
        super().__init__(lambda: _FindingRows(writer()))


class _FindingRows:
    def __init__(self, writer: Behind) -> None:
        self._writer = writer
        self._events: list[AlertEvent] = []
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._counters: list[Any] = []
        self._blocks: list[Any] = []

    def write_batch(self, values: list[Findings]) -> None:
        for found in values:
            self._events += found.events
            self._blocks += [block.rows for block in found.blocks]
            for table, rows in found.rows.items():
                self._rows.setdefault(table, []).extend(rows)
            if found.counters is not None:
                self._counters.append(found.counters)

    def flush(self) -> None:
        batches = {table: pa.RecordBatch.from_pylist(rows, SCHEMA_OF[table]) for table, rows in self._rows.items()}
        if self._events:
            batches["alert_event_rows"] = alert_event_rows(self._events)
        for table, batch in batches.items():
            self._writer.write(table, [batch])
        if self._blocks:
            self._writer.write("rows_10s", self._blocks)
        self._writer.write("counter_rows", self._counters)
        self._writer.wait()
        self._events, self._rows, self._counters, self._blocks = [], {}, [], []


class NotificationsSink(_SharedSink):
    """Takes (key, Response); writes notifications, key = group key, and answers to the alerts topic."""

    def __init__(self, writer: Callable[[], KafkaWriter], notifications: str, alerts: str) -> None:
        super().__init__(lambda: _Responses(writer(), notifications, alerts))


class _Responses:
    def __init__(self, writer: KafkaWriter, notifications: str, alerts: str) -> None:
        self._writer = writer
        self._notifications = notifications
        self._alerts = alerts

    def write_batch(self, values: list[Response]) -> None:
        for response in values:
            for one in response.notifications:
                sent = notification_message(one)
                self._writer.write(self._notifications, sent.key, sent.value, sent.headers)
            for event in response.events:
                sent = event_message(event)
                self._writer.write(self._alerts, sent.key, sent.value, sent.headers)

    def flush(self) -> None:
        self._writer.flush()
