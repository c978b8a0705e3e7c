"""What producers send: round trips, limits on both sides, every reason of a rejection, and the cache of tables."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_schemas import samples
from tailrace_schemas.codec import Codec
from tailrace_schemas.samples import (
    KINDS,
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS,
    MAX_SEQUENCE,
    MAX_SERIES,
    MAX_TABLE_ATTRIBUTES,
    MAX_TIME_US,
    MAX_VALUE_CHARS,
    Reason,
    Rejection,
    SampleBatch,
    Series,
    decode,
    decode_series_table,
    encode_batch,
    encode_sample,
    encode_series_table,
)

from tests.schemas.examples import avro_datum, example
from tests.schemas.strategies import ATTRIBUTES, NAMES, SERIES, batch_of, columns, headers

EMPTY = encode_series_table([])
BATCH = Codec("SampleBatch")
SAMPLE = Codec("Sample")


def accepted(message: bytes) -> SampleBatch:
    batch = decode(message)
    assert isinstance(batch, SampleBatch), batch
    return batch


def rows_of(datum: dict[str, Any]) -> list[Series]:
    """The series of a table's example, as they are after decoding."""
    return [
        Series(
            row["metric"], row["kind"], row["unit"], tuple(sorted({**datum["resource"], **row["attributes"]}.items()))
        )
        for row in datum["series"]
    ]


def example_table(datum: dict[str, Any]) -> bytes:
    series = [Series(r["metric"], r["kind"], r["unit"], tuple(r["attributes"].items())) for r in datum["series"]]
    return encode_series_table(series, datum["resource"])


# -- the examples --------------------------------------------------------------------------------------


def test_example_of_a_series_table() -> None:
    content = example("SeriesTable")
    encoded = bytes.fromhex(content["hex"])
    assert example_table(content["datum"]) == encoded
    assert list(decode_series_table(encoded).series) == rows_of(content["datum"])
    assert {one.kind for one in decode_series_table(encoded).series} == set(KINDS)


def test_example_of_a_batch() -> None:
    content = example("SampleBatch")
    datum = content["datum"]
    message = bytes.fromhex(content["hex"])
    packed = avro_datum("SampleBatch", datum)
    assert encode_batch(**packed | {"series_table": example_table(datum["series_table"])}) == message
    batch = accepted(message)
    assert list(batch.table.series) == rows_of(datum["series_table"])
    for field in packed.keys() - {"series_table"}:
        assert getattr(batch, field) == packed[field]
    assert batch.samples == len(datum["value"])


def test_example_of_a_sample() -> None:
    content = example("Sample")
    datum = content["datum"]
    message = bytes.fromhex(content["hex"])
    series = Series(datum["metric"], datum["kind"], datum["unit"], tuple(datum["attributes"].items()))
    assert encode_sample(datum["service"], series, datum["time_us"], datum["value"], datum["stream"]) == message
    batch = accepted(message)
    assert (batch.service, batch.stream, batch.base_time_us) == (datum["service"], "", datum["time_us"])
    assert (batch.producer_id, batch.sequence, batch.end_of_stream, batch.samples) == ("", -1, False, 1)
    assert batch.table.series == (series,)
    assert (batch.series_index, batch.time_offset_us) == (bytes(4), bytes(4))
    assert struct.unpack("<d", batch.value) == (0.125,)


# -- round trips ---------------------------------------------------------------------------------------

FLOATS = st.floats(width=64)
ROWS = st.lists(st.tuples(st.integers(0, (1 << 32) - 1), st.integers(-(1 << 31), (1 << 31) - 1), FLOATS), max_size=20)


@given(st.lists(SERIES, max_size=8), ATTRIBUTES, ROWS, headers)
def test_a_batch_is_read_as_it_was_written(
    series: list[Series], resource: dict[str, str], rows: list[tuple[int, int, float]], header: dict[str, Any]
) -> None:
    packed = columns(rows)
    table = encode_series_table(series, resource)
    batch = accepted(encode_batch(series_table=table, **packed, **header))
    assert {field: getattr(batch, field) for field in header} == header
    assert {field: getattr(batch, field) for field in packed} == packed
    assert batch.samples == len(rows)
    assert batch.table.encoded == table
    assert list(batch.table.series) == [
        one._replace(attributes=tuple(sorted((resource | dict(one.attributes)).items()))) for one in series
    ]


@given(NAMES, SERIES, st.integers(0, MAX_TIME_US), FLOATS, st.text(max_size=10))
def test_a_sample_is_a_batch_of_one(service: str, series: Series, time_us: int, value: float, stream: str) -> None:
    batch = accepted(encode_sample(service, series, time_us, value, stream))
    assert batch == SampleBatch(
        service, "", -1, stream, False, time_us, batch.table, bytes(4), bytes(4), struct.pack("<d", value), 1
    )
    assert batch.table.series == (series,)
    # Its table is one that a batch could carry too.
    assert decode_series_table(batch.table.encoded) is batch.table
    assert samples._read_series_table(batch.table.encoded) == batch.table


LENGTHS = st.sampled_from([0, 1, MAX_NAME_CHARS, MAX_NAME_CHARS + 1, MAX_VALUE_CHARS, MAX_VALUE_CHARS + 1])
LONG = st.builds(lambda size, char: char * size, LENGTHS, st.sampled_from("aé€\U00010400\x00"))


@given(
    LONG,
    LONG,
    st.tuples(LONG, LONG),
    st.integers(MAX_ATTRIBUTES - 2, MAX_ATTRIBUTES + 2),
    st.integers(0, 2),
    LONG,
    LONG,
)
def test_what_is_encoded_is_never_refused(
    metric: str, unit: str, pair: tuple[str, str], attributes: int, shared: int, service: str, stream: str
) -> None:
    """Both sides have the same limits: a producer learns of a breach, not the dead letters."""
    few = tuple((f"k{i}", "v") for i in range(attributes - 1))
    resource = {f"k{i}": "resource" for i in range(shared)}
    series = Series(metric, "gauge", unit, (pair, *few))
    makers = (
        lambda: batch_of(encode_series_table([series], resource), service=service, stream=stream),
        lambda: encode_sample(service, series, 0, 1.0, stream),
    )
    within = (
        1 <= len(metric) <= MAX_NAME_CHARS
        and len(unit) <= MAX_NAME_CHARS
        and 1 <= len(service) <= MAX_NAME_CHARS
        and len(stream) <= MAX_NAME_CHARS
        and 1 <= len(pair[0]) <= MAX_NAME_CHARS
        and len(pair[1]) <= MAX_VALUE_CHARS
        and attributes <= MAX_ATTRIBUTES
        and sum(len(text.encode()) for one in (pair, *few) for text in one) <= MAX_ATTRIBUTE_BYTES
    )
    for make in makers:
        if within:
            accepted(make())
        else:
            with pytest.raises(ValueError, match=r"limit is|empty|more than"):
                make()


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"service": ""}, "service is empty"),
        ({"producer_id": "p" * 1025}, "producer_id has 1025 characters"),
        ({"sequence": -2}, "sequence -2 is not in"),
        ({"sequence": MAX_SEQUENCE + 1}, "sequence 1099511627776 is not in"),
        ({"base_time_us": -1}, "base_time_us -1 is not in"),
        ({"base_time_us": MAX_TIME_US + 1}, "base_time_us 4102444800000001 is not in"),
        ({"value": bytes(9)}, "do not hold the same number of samples"),
        ({"series_index": bytes(4)}, "do not hold the same number of samples"),
        ({"time_offset_us": bytes(4)}, "do not hold the same number of samples"),
        ({"series_table": bytes(MAX_MESSAGE_BYTES)}, "send fewer samples a batch"),
        ({"service": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_a_batch_beyond_a_limit_is_not_encoded(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        batch_of(EMPTY, **fields)


def test_a_table_beyond_a_limit_is_not_encoded() -> None:
    series = Series("m", "gauge")
    resource = {f"k{i}": "" for i in range(MAX_ATTRIBUTES)}
    with pytest.raises(ValueError, match=f"{MAX_SERIES + 1} series in one table; the limit is {MAX_SERIES}"):
        encode_series_table([series] * (MAX_SERIES + 1))
    fitting = MAX_TABLE_ATTRIBUTES // MAX_ATTRIBUTES
    assert len(decode_series_table(encode_series_table([series] * fitting, resource)).series) == fitting
    with pytest.raises(ValueError, match=f"attributes in one table; the limit is {MAX_TABLE_ATTRIBUTES}"):
        encode_series_table([series] * (fitting + 1), resource)
    with pytest.raises(ValueError, match="129 attributes; the limit is 128"):
        encode_series_table([], resource | {"one": "more"})
    with pytest.raises(ValueError, match="more than 128 attributes on 'm', the resource's included"):
        encode_series_table([series._replace(attributes=(("one", "more"),))], resource)
    assert encode_series_table([series._replace(attributes=(("k0", "own"),))], resource)
    with pytest.raises(ValueError, match="histogram"):
        encode_series_table([Series("m", "histogram")])


# -- rejections ----------------------------------------------------------------------------------------


def raw_batch(**fields: Any) -> bytes:
    """A message by the schema alone, without the encoder's checks."""
    ordinary = {
        "service": "s", "producer_id": "p", "sequence": 0, "stream": "", "end_of_stream": False, "base_time_us": 0,
        "series_table": EMPTY, "series_index": b"", "time_offset_us": b"", "value": b"",
    }  # fmt: skip
    return BATCH.encode({**ordinary, **fields})


def raw_sample(**fields: Any) -> bytes:
    ordinary = {
        "service": "s", "stream": "", "time_us": 0, "metric": "m", "kind": "gauge", "unit": "", "attributes": {},
        "value": 1.0,
    }  # fmt: skip
    return SAMPLE.encode({**ordinary, **fields})


def raw_table(rows: bytes, resource: bytes = b"\x00") -> bytes:
    return raw_batch(series_table=resource + rows)


ROW = b"\x02m\x06\x00\x00"
"""A row of a table: metric m, a gauge, no unit, no attributes."""


@pytest.mark.parametrize(
    ("message", "reason", "detail"),
    [
        pytest.param(None, Reason.MALFORMED, "tombstone", id="tombstone"),
        pytest.param(b"", Reason.TRUNCATED, "0 bytes are less than a header", id="empty"),
        pytest.param(BATCH.header[:9], Reason.TRUNCATED, "9 bytes are less than a header", id="half a header"),
        pytest.param(BATCH.header, Reason.TRUNCATED, "ends before its last field", id="a header alone"),
        pytest.param(SAMPLE.header, Reason.TRUNCATED, "ends before its last field", id="a sample's header alone"),
        pytest.param(raw_batch()[:-1], Reason.TRUNCATED, "ends before its last field", id="a byte less"),
        pytest.param(raw_sample()[:-1], Reason.TRUNCATED, "a number is cut off", id="a sample's byte less"),
        pytest.param(raw_batch() + b"\x00", Reason.MALFORMED, "1 bytes follow", id="a byte more"),
        pytest.param(raw_sample() + b"\x00", Reason.MALFORMED, "1 bytes follow", id="a sample's byte more"),
        pytest.param(b"{}" * 20, Reason.UNKNOWN_SCHEMA, "7b7d7b7d7b7d7b7d7b7d", id="JSON"),
        pytest.param(b"\x00\x00\x00\x00\x01" * 4, Reason.UNKNOWN_SCHEMA, "0000000001", id="Confluent framing"),
        pytest.param(b"\xc3\x01" + bytes(20), Reason.UNKNOWN_SCHEMA, "c3010000", id="another schema"),
        pytest.param(bytes(MAX_MESSAGE_BYTES + 1), Reason.OVERSIZE, "10485761 bytes", id="oversize"),
        pytest.param(raw_batch(service=""), Reason.MALFORMED, "service is empty", id="no service"),
        pytest.param(raw_sample(service=""), Reason.MALFORMED, "service is empty", id="a sample without service"),
        pytest.param(raw_batch(service="s" * 1025), Reason.MALFORMED, "1025 characters", id="long service"),
        pytest.param(raw_batch(sequence=-2), Reason.MALFORMED, "sequence -2", id="negative sequence"),
        pytest.param(raw_batch(sequence=1 << 62), Reason.MALFORMED, "sequence 46116", id="huge sequence"),
        pytest.param(raw_batch(base_time_us=-1), Reason.TIME_OUT_OF_RANGE, "base_time_us -1", id="before 1970"),
        pytest.param(raw_batch(base_time_us=1 << 62), Reason.TIME_OUT_OF_RANGE, "base_time_us 46116", id="nanoseconds"),
        pytest.param(raw_sample(time_us=-1), Reason.TIME_OUT_OF_RANGE, "time_us -1", id="a sample before 1970"),
        pytest.param(raw_batch(value=bytes(8)), Reason.MALFORMED, "columns of (0, 0, 8) bytes", id="columns"),
        pytest.param(raw_batch(value=bytes(9)), Reason.MALFORMED, "columns of (0, 0, 9) bytes", id="odd columns"),
        pytest.param(raw_batch(series_table=b""), Reason.MALFORMED, "series table ends", id="no table"),
        pytest.param(raw_table(b"\x02" + ROW[:-1]), Reason.MALFORMED, "series table ends", id="half a row"),
        pytest.param(raw_table(b"\x02" + ROW), Reason.MALFORMED, "series table ends", id="no end of the rows"),
        pytest.param(raw_table(b"\x02" + ROW + b"\x00\x00"), Reason.MALFORMED, "1 bytes follow", id="long table"),
        pytest.param(raw_table(b"\x02\x00\x06\x00\x00\x00"), Reason.MALFORMED, "metric is empty", id="no metric"),
        pytest.param(raw_table(b"\x02\x02m\x01\x00\x00\x00"), Reason.MALFORMED, "the kind -1 of 'm'", id="kind -1"),
        pytest.param(raw_table(b"\x02\x02m\x0a\x00\x00\x00"), Reason.MALFORMED, "the kind 5 of 'm'", id="kind 5"),
        pytest.param(raw_table(b"\x02\x02\xff\x06\x00\x00\x00"), Reason.MALFORMED, "invalid start byte", id="no UTF-8"),
        pytest.param(
            raw_table(b"\x02\x02m\x06\x00\x02\x00\x00\x00\x00"), Reason.MALFORMED, "attribute key is empty", id="no key"
        ),
        pytest.param(
            raw_table(b"\x02\x02m\x06\x00\x02\x01\x00\x00\x00"), Reason.MALFORMED, "length -1 is negative", id="key -1"
        ),
        pytest.param(
            raw_table(b"\x02\x02m\x06\x00\x02\x02k\x01\x00\x00"),
            Reason.MALFORMED,
            "length -1 is negative",
            id="value -1",
        ),
        pytest.param(
            raw_table(b"\x02\x02m\x06\x00\x02\x02k\x7evalue"), Reason.MALFORMED, "series table ends", id="value cut off"
        ),
        pytest.param(
            raw_table(b"\xfe\xff\xff\xff\xff\xff\xff\xff\x7f" + ROW), Reason.MALFORMED, "the limit is 100000", id="rows"
        ),
        pytest.param(
            raw_table(b"\x00", b"\x82\x02"), Reason.MALFORMED, "129 entries in a map; the limit is 128", id="entries"
        ),
        pytest.param(raw_sample(attributes={"k": "v" * 4097}), Reason.MALFORMED, "4097 characters", id="long value"),
        pytest.param(raw_sample(attributes={"k" * 1025: "v"}), Reason.MALFORMED, "1025 characters", id="long key"),
    ],
)
def test_a_record_that_cannot_be_used_has_a_reason(message: bytes | None, reason: Reason, detail: str) -> None:
    rejection = decode(message)
    assert isinstance(rejection, Rejection)
    assert rejection.reason is reason
    assert detail in rejection.detail
    assert len(rejection.detail) <= 200


def test_a_row_and_its_resource_have_one_limit() -> None:
    half = {f"k{i}": "" for i in range(MAX_ATTRIBUTES // 2)}
    other = {f"x{i}": "" for i in range(MAX_ATTRIBUTES // 2)}
    table = Codec("SeriesTable")
    row = {"metric": "m", "kind": "gauge", "unit": ""}
    assert decode_series_table(table.encode_bare({"resource": half, "series": [{**row, "attributes": other}]}))
    with pytest.raises(ValueError, match="129 attributes on 'm'"):
        decode_series_table(
            table.encode_bare({"resource": half, "series": [{**row, "attributes": other | {"one": "more"}}]})
        )


@pytest.mark.parametrize("char", ["x", "é", "\U00010400"])
@pytest.mark.parametrize("over", [0, 1])
def test_the_bytes_of_a_series_attributes_are_bounded_the_resource_s_included(char: str, over: int) -> None:
    """Each attribute once, those that a series has of its own instead of the resource's; by either side."""
    most = MAX_ATTRIBUTE_BYTES // 4 - 8
    value = char * (most // len(char.encode()))
    resource = {"kept": value, "lost": value}
    own = {"lost": value, "one": value, "two": value}
    size = sum(len((key + text).encode()) for key, text in (resource | own).items())
    own["rest"] = "x" * (MAX_ATTRIBUTE_BYTES - size - len("rest") + over)
    row = {"metric": "m", "kind": "gauge", "unit": "", "attributes": own}
    table = Codec("SeriesTable").encode_bare({"resource": resource, "series": [row]})
    single = raw_sample(attributes=resource | own)
    series = Series("m", "gauge", "", tuple(sorted(own.items())))
    whole = series._replace(attributes=tuple(sorted((resource | own).items())))
    if not over:
        assert decode_series_table(encode_series_table([series], resource)).series == (whole,)
        assert decode_series_table(table).series == accepted(single).table.series == (whole,)
        assert accepted(encode_sample("s", whole, 0, 1.0)).table.series == (whole,)
        return
    complaint = "attributes of 16385 bytes on 'm'; the limit is 16384"
    with pytest.raises(ValueError, match=complaint):
        encode_series_table([series], resource)
    with pytest.raises(ValueError, match=complaint):
        encode_sample("s", whole, 0, 1.0)
    with pytest.raises(ValueError, match=complaint):
        decode_series_table(table)
    assert decode(single) == Rejection(Reason.MALFORMED, complaint)


def test_a_small_table_does_not_unfold_without_end() -> None:
    resource = {f"k{i}": "" for i in range(MAX_ATTRIBUTES)}
    row = {"metric": "m", "kind": "gauge", "unit": "", "attributes": {}}
    fitting = MAX_TABLE_ATTRIBUTES // MAX_ATTRIBUTES
    table = Codec("SeriesTable").encode_bare({"resource": resource, "series": [row] * (fitting + 1)})
    with pytest.raises(ValueError, match=f"more than {MAX_TABLE_ATTRIBUTES} attributes in one table"):
        decode_series_table(table)


# -- tables --------------------------------------------------------------------------------------------


def test_a_series_own_attributes_win() -> None:
    table = decode_series_table(encode_series_table([Series("m", "gauge", "", (("b", "own"),))], {"b": "x", "a": "y"}))
    assert table.series[0].attributes == (("a", "y"), ("b", "own"))


def test_of_equal_keys_the_last_holds() -> None:
    table = decode_series_table(b"\x00\x02" + b"\x02m\x06\x00\x04\x02k\x021\x02k\x022\x00" + b"\x00")
    assert table.series == (Series("m", "gauge", "", (("k", "2"),)),)


def test_blocks_may_be_many_and_may_have_their_size_before_them() -> None:
    several = b"\x00" + b"\x02" + ROW + b"\x03\x0a" + ROW + ROW + b"\x00"  # one row; then -2 rows in 10 bytes
    assert decode_series_table(several).series == (Series("m", "gauge"),) * 3


def test_equal_bytes_are_decoded_once() -> None:
    encoded = encode_series_table([Series("cached", "gauge")])
    first = decode_series_table(encoded)
    assert decode_series_table(bytes(bytearray(encoded))) is first
    assert accepted(batch_of(bytes(bytearray(encoded)))).table is first


def test_equal_text_is_kept_once() -> None:
    """What 1,000 series have in common is not there 1,000 times."""
    series = [Series("http.duration", "gauge", "s", (("method", "G" + "ET"), ("route", f"/{i}"))) for i in range(1000)]
    found = decode_series_table(encode_series_table(series)).series
    assert len({id(one.metric) for one in found}) == 1
    assert len({id(one.unit) for one in found}) == 1
    assert len({id(one.attributes[0]) for one in found}) == 1
    assert len({id(key) for one in found for key, _ in one.attributes}) == 2


def test_the_cache_of_tables_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_TABLES_MAX_BYTES", 1_000_000)
    for number in range(3000):
        decode_series_table(encode_series_table([Series(f"bounded.{number}", "gauge")] * 5))
        assert samples._tables_bytes <= 1_000_000
        assert len(samples._tables) * 1000 <= samples._tables_bytes
    last = encode_series_table([Series("bounded.2999", "gauge")] * 5)
    assert samples._tables[last] is decode_series_table(last)
