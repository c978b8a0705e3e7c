"""What the sinks write to Kafka."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tailrace_flows.behind import Behind, Spool
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.shard import Output, Shard
from tailrace_flows.core.sketch import MAX_BUCKETS
from tailrace_flows.core.table import NO_ROWS, Block
from tailrace_flows.outputs import AGGREGATE_BYTES, WRITE_ROWS, AggregatesSink, ClickHouseSink
from tailrace_schemas.rows import COUNTERS, WindowRows, decode_window_rows
from tailrace_schemas.samples import (
    MAX_ATTRIBUTE_BYTES,
    MAX_NAME_CHARS,
    MAX_VALUE_CHARS,
    Series,
    attribute_bytes,
    encode_batch,
    encode_series_table,
)
from tailrace_sinks.kafka import KafkaWriter

from tests.flows.machine import START_US
from tests.flows.writing import CONFIG, Writer, run


class Topic:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, bytes, bytes]] = []

    def write(self, topic: str, key: bytes, value: bytes) -> None:
        self.messages.append((topic, key, value))

    def flush(self) -> None:
        pass


def written(*outputs: Output) -> list[WindowRows]:
    topic: Any = Topic()
    part = AggregatesSink(lambda: topic, "aggregates").build_part("aggregates", "00", None)
    part.write_batch(list(outputs))
    return [decode_window_rows(value) for _, _, value in topic.messages]


def many_rows(service: str) -> Any:
    rows = run(Writer(service).batch((1, 1.0))).written
    row = {name: value for name, value in rows[0].items() if name != "key"}
    return pa.RecordBatch.from_pylist([row] * 5_000, NO_ROWS.schema)


def test_only_the_last_message_of_a_service_says_that_its_windows_are_closed() -> None:
    rows = many_rows("cart")
    assert rows.nbytes > AGGREGATE_BYTES
    cart = [Block("cart", "", 10, 70, rows), Block("cart", "", 60, 70, rows)]
    found = written(
        Output([*cart, Block("shop", "", 10, 30, rows.slice(0, 1))]), Output([Block("cart", "", 10, 80, rows)])
    )
    said = [(one.service, one.watermark_us) for one in found if one.watermark_us != UNKNOWN_US]
    assert said == [("cart", 70), ("shop", 30), ("cart", 80)]
    assert sum(one.rows.num_rows for one in found) == 3 * 5_000 + 1
    ends = {one.watermark_us: number for number, one in enumerate(found)}
    assert found[ends[70]].window_seconds == 60  # no row of these windows comes after it
    assert all(one.watermark_us == UNKNOWN_US for one in found[: ends[70]])


def test_passing_time_is_told_without_rows() -> None:
    (found,) = written(Output([Block("cart", "", 10, 70, NO_ROWS)]))
    assert (found.watermark_us, found.rows.num_rows) == (70, 0)


@pytest.mark.parametrize("narrow", [0, 20_000])
@pytest.mark.parametrize("wide", [1, 20])
def test_kafka_takes_rows_however_their_sizes_differ(embedded_broker: str, narrow: int, wide: int) -> None:
    """Wide rows side by side: there are some MB of them, while a row has 200 bytes on average."""
    (small,) = many_rows("cart").slice(0, 1).to_pylist()
    row = small | {"bucket_index": list(range(MAX_BUCKETS)), "bucket_count": [2**40] * MAX_BUCKETS}
    rows = pa.RecordBatch.from_pylist([row] * wide + [small] * narrow, NO_ROWS.schema)
    writer = KafkaWriter({"bootstrap.servers": embedded_broker})
    part = AggregatesSink(lambda: writer, "aggregates").build_part("aggregates", "00", None)
    part.write_batch([Output([Block("cart", "", 10, 70, rows)])])
    part.snapshot()
    blocks = written(Output([Block("cart", "", 10, 70, rows)]))
    assert pa.Table.from_batches([one.rows for one in blocks]).to_pylist() == rows.to_pylist()
    assert [one.watermark_us for one in blocks] == [UNKNOWN_US] * (len(blocks) - 1) + [70]


def test_kafka_takes_the_row_of_the_longest_names_and_the_most_buckets(embedded_broker: str) -> None:
    """As they come from the samples topic, each as long as it may be there."""
    name = "\U0001f4a3" * MAX_NAME_CHARS
    attributes = {"k": "\U0001f4a3" * (MAX_VALUE_CHARS - 1)}
    attributes["n"] = "x" * (MAX_ATTRIBUTE_BYTES - attribute_bytes(attributes.items()) - 1)
    table = encode_series_table([Series(name, "distribution", name, tuple(attributes.items()))])
    values = np.random.default_rng(1).integers(0, 2**64, 400_000, np.uint64).view("<f8")
    values = values[np.isfinite(values)]
    message = encode_batch(
        service=name, producer_id="p", sequence=0, stream=name, base_time_us=START_US, series_table=table,
        series_index=bytes(4 * values.size), time_offset_us=bytes(4 * values.size), value=values.tobytes(),
    )  # fmt: skip
    partition = Partition(0, "samples", CONFIG, START_US, hold=True, cluster_id="one", start=0)
    items, letters = partition.read([Record(0, START_US, message)], START_US)
    assert not letters
    shard = Shard(CONFIG, START_US)
    outputs = [shard.on_items([item for _, item in items], START_US), shard.on_end(START_US)]
    writer = KafkaWriter({"bootstrap.servers": embedded_broker})
    part = AggregatesSink(lambda: writer, "aggregates").build_part("aggregates", "00", None)
    part.write_batch(outputs)
    part.snapshot()
    found = [row for block in written(*outputs) for row in block.rows.to_pylist()]
    assert len(found) == 2
    for row in found:
        assert MAX_BUCKETS // 2 < len(row["bucket_index"]) <= MAX_BUCKETS
        assert sum(row["bucket_count"]) == row["count"] == values.size
        assert dict(row["attributes"]) == attributes


class Table:
    """Takes writes, or raises; keeps their order."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.written: list[tuple[str, int]] = []

    def write(self, table: str, batches: list[Any]) -> None:
        if self.failure is not None:
            raise self.failure
        self.written.append((table, sum(batch.num_rows for batch in batches)))


def counters() -> Any:
    return pa.RecordBatch.from_arrays([pa.nulls(1, field.type) for field in COUNTERS], names=COUNTERS.names)


def clickhouse_sink(table: Table, spool: Path) -> ClickHouseSink:
    return ClickHouseSink(lambda: Behind(table, Spool(spool, 0)))


def test_when_an_epoch_ends_all_rows_are_written_and_counters_after_them(tmp_path: Path) -> None:
    table, rows = Table(), many_rows("cart")
    part = clickhouse_sink(table, tmp_path).build_part("clickhouse", "00", None)
    for _ in range(WRITE_ROWS // rows.num_rows + 1):
        part.write_batch([Output([Block("cart", "", 10, 70, rows)], None, counters())])
    part.snapshot()
    assert sum(count for name, count in table.written if name == "rows_10s") == WRITE_ROWS + rows.num_rows
    assert len([name for name, _ in table.written if name == "rows_10s"]) > 1  # not all at once
    assert table.written[-1] == ("counter_rows", WRITE_ROWS // rows.num_rows + 1)


def test_a_write_that_fails_fails_the_epoch_and_all_that_follow(tmp_path: Path) -> None:
    part = clickhouse_sink(Table(OSError("no such table")), tmp_path).build_part("clickhouse", "00", None)
    part.write_batch([Output([Block("cart", "", 10, 70, many_rows("cart").slice(0, 1))])])
    for _ in range(2):
        with pytest.raises(OSError, match="no such table"):
            part.snapshot()
