"""What the sinks write to Kafka."""

from typing import Any

import pyarrow as pa
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.shard import Output
from tailrace_flows.core.table import NO_ROWS, Block
from tailrace_flows.outputs import AGGREGATE_BYTES, AggregatesSink
from tailrace_schemas.rows import WindowRows, decode_window_rows

from tests.flows.writing import Writer, run


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
