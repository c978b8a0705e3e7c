"""The Arrow schemas of what flows write, and the messages that carry window rows."""

import random
from collections import Counter
from hashlib import blake2b
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_schemas import rows
from tailrace_schemas.codec import Codec
from tailrace_schemas.rows import (
    ALERT_EVENTS,
    ANOMALIES,
    BASELINES,
    COUNTERS,
    EVENTS,
    HEALTH,
    INCIDENTS,
    SLO_STATUS,
    WINDOW_ROWS,
    WindowRows,
    decode_window_rows,
    encode_window_rows,
)
from tailrace_schemas.samples import KINDS

from tests.schemas.examples import arrow_rows, avro_datum, example

SCHEMAS = {
    "ALERT_EVENTS": ALERT_EVENTS,
    "ANOMALIES": ANOMALIES,
    "BASELINES": BASELINES,
    "COUNTERS": COUNTERS,
    "EVENTS": EVENTS,
    "HEALTH": HEALTH,
    "INCIDENTS": INCIDENTS,
    "SLO_STATUS": SLO_STATUS,
    "WINDOW_ROWS": WINDOW_ROWS,
}
FINGERPRINTS = {
    "ALERT_EVENTS": "fe60b85253400212",
    "ANOMALIES": "212c97343efb257b",
    "BASELINES": "f80a76e487e3ae55",
    "COUNTERS": "0606e11998ab391b",
    "EVENTS": "8fd0c777fef81385",
    "HEALTH": "c8072a3905e46708",
    "INCIDENTS": "a6692e4adce322b0",
    "SLO_STATUS": "9eaa4e828767e355",
    "WINDOW_ROWS": "20e063a5fa8c3864",
}
CHANGED = """\
The columns {name} are no longer those of the stored tables and of the messages on the aggregates topic.
- Add a migration that brings the ClickHouse table along, and say in CHANGELOG.md what it does to old rows.
- After a release, WINDOW_ROWS may only change with its envelope: readers of the aggregates topic refuse other columns.
- Then put {found} into FINGERPRINTS here and run `python -m tests.schemas.examples`.
"""


def fingerprint(schema: Any) -> str:
    """Of names, types and nullability, in order."""
    lines = [f"{field.name} {field.type} {field.nullable}" for field in schema]
    return blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


@pytest.mark.parametrize("name", SCHEMAS)
def test_columns_are_pinned(name: str) -> None:
    found = fingerprint(SCHEMAS[name])
    assert found == FINGERPRINTS[name], CHANGED.format(name=name, found=found)


def test_every_arrow_schema_is_pinned() -> None:
    assert {name for name, one in vars(rows).items() if isinstance(one, pa.Schema)} == set(FINGERPRINTS)


# -- examples ------------------------------------------------------------------------------------------


def test_example_of_window_rows() -> None:
    content = example("WindowRows")
    datum = content["datum"]
    block = decode_window_rows(bytes.fromhex(content["hex"]))
    assert block._asdict() | {"rows": None} == datum | {"rows": None}
    assert block.rows.equals(arrow_rows(WINDOW_ROWS, datum["rows"]))
    assert {row["kind"] for row in datum["rows"]} <= set(KINDS)


@pytest.mark.parametrize(("name", "schema"), [("Events", EVENTS), ("Counters", COUNTERS)])
def test_example_of_other_rows(name: str, schema: Any) -> None:
    """Every column has a value of its type, and none is left over."""
    written = example(name)["rows"]
    batch = arrow_rows(schema, written)
    batch.validate(full=True)
    assert all(list(row) == schema.names for row in written)
    assert all(not column.null_count for column in batch.columns)


# -- round trips ---------------------------------------------------------------------------------------

FLOATS = st.none() | st.floats(allow_nan=False)
ROW = st.fixed_dictionaries(
    {
        "metric": st.text(max_size=10),
        "service": st.text(max_size=10),
        "series_id": st.integers(0, (1 << 64) - 1),
        "attributes": st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3).map(
            lambda found: list(found.items())
        ),
        "kind": st.sampled_from(KINDS),
        "unit": st.text(max_size=5),
        "stream": st.text(max_size=5),
        "window_start": st.integers(0, 4_102_444_800),
        "count": st.integers(0, (1 << 64) - 1),
        **dict.fromkeys(("sum", "min", "max", "last", "increase"), FLOATS),
        "resets": st.none() | st.integers(0, (1 << 32) - 1),
        "bucket_index": st.lists(st.integers(-(1 << 31), (1 << 31) - 1), max_size=5),
        "bucket_count": st.lists(st.integers(0, (1 << 64) - 1), max_size=5),
        "scale": st.none() | st.integers(-128, 127),
        "version": st.integers(0, (1 << 64) - 1),
    }
)


def block_of(batch: Any) -> WindowRows:
    return WindowRows("checkout", "", 10, 1_767_614_412_000_000, batch)


@given(
    st.lists(ROW, max_size=5),
    st.text(max_size=10),
    st.text(max_size=10),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.integers(-(1 << 63), (1 << 63) - 1),
)
def test_rows_are_read_as_they_were_written(
    written: list[dict[str, Any]], service: str, stream: str, window_seconds: int, watermark_us: int
) -> None:
    batch = pa.RecordBatch.from_pylist(written, WINDOW_ROWS)
    block = decode_window_rows(encode_window_rows(WindowRows(service, stream, window_seconds, watermark_us, batch)))
    assert block._asdict() | {"rows": None} == {
        "service": service, "stream": stream, "window_seconds": window_seconds, "watermark_us": watermark_us,
        "rows": None,
    }  # fmt: skip
    assert block.rows.equals(batch)


def test_a_part_of_a_batch_is_read_as_that_part() -> None:
    whole = arrow_rows(WINDOW_ROWS, example("WindowRows")["datum"]["rows"] * 3)
    for start in range(7):
        for length in range(7 - start):
            part = whole.slice(start, length)
            assert decode_window_rows(encode_window_rows(block_of(part))).rows.equals(part)


def test_several_batches_become_one() -> None:
    batch = arrow_rows(WINDOW_ROWS, example("WindowRows")["datum"]["rows"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, WINDOW_ROWS) as writer:
        for _ in range(3):
            writer.write_batch(batch)
    message = Codec("WindowRows").encode(block_of(sink.getvalue().to_pybytes())._asdict())
    assert decode_window_rows(message).rows.num_rows == 3 * batch.num_rows


# -- damage --------------------------------------------------------------------------------------------


def test_rows_of_other_columns_are_refused() -> None:
    for schema in (EVENTS, WINDOW_ROWS.remove(3), WINDOW_ROWS.set(1, pa.field("service", pa.string()))):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema):
            pass
        message = Codec("WindowRows").encode(block_of(sink.getvalue().to_pybytes())._asdict())
        with pytest.raises(ValueError, match="the rows are of another schema"):
            decode_window_rows(message)


def test_a_row_without_a_required_value_is_refused() -> None:
    row = arrow_rows(WINDOW_ROWS, example("WindowRows")["datum"]["rows"])
    columns = [pa.nulls(2, f.type) if f.name == "version" else c for f, c in zip(WINDOW_ROWS, row.columns, strict=True)]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, WINDOW_ROWS) as writer:
        writer.write_batch(pa.record_batch(columns, schema=WINDOW_ROWS))
    with pytest.raises(ValueError, match="version has no value in some row"):
        decode_window_rows(Codec("WindowRows").encode(block_of(sink.getvalue().to_pybytes())._asdict()))


def test_another_message_is_refused() -> None:
    with pytest.raises(ValueError, match="not a WindowRows"):
        decode_window_rows(bytes.fromhex(example("DeadLetter")["hex"]))


def test_damaged_messages_are_rows_or_value_errors() -> None:
    """And what is given as rows can be read to its last value: Arrow itself would follow damaged offsets anywhere."""
    datum = example("WindowRows")["datum"]
    message = Codec("WindowRows").encode(avro_datum("WindowRows", datum))
    chance = random.Random(20260105)
    outcomes: Counter[str] = Counter()
    for _ in range(10_000):
        damaged = bytearray(message)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            damaged[chance.randrange(10, len(damaged))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        if chance.random() < 0.1:
            del damaged[chance.randrange(10, len(damaged)) :]
        try:
            block = decode_window_rows(bytes(damaged))
        except ValueError:
            outcomes["refused"] += 1
            continue
        outcomes["read"] += 1
        for field, column in zip(WINDOW_ROWS, block.rows.columns, strict=True):
            # A damaged time may lie beyond what Python's datetime can say.
            readable = column.cast(pa.int64()) if pa.types.is_timestamp(field.type) else column
            assert len(readable.to_pylist()) == block.rows.num_rows
    assert min(outcomes["refused"], outcomes["read"]) > 1000, outcomes
