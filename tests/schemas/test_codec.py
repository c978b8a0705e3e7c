"""The Avro layer: fingerprints, examples, and our reader against fastavro's."""

from io import BytesIO
from typing import Any

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form
from hypothesis import given
from hypothesis import strategies as st
from tailrace_schemas.codec import Codec, FlatCodec, TruncatedError, read_double, read_long, read_size, read_text
from tailrace_schemas.samples import KINDS

from tests.schemas.examples import SCHEMAS, avro_datum, definition_of, example, schema_of
from tests.schemas.hostile import varint

FINGERPRINTS = {
    "DeadLetter": "1c43060c5e3856f0",
    "Sample": "c91c42f3cb7d0b1f",
    "SampleBatch": "9c56b769342ae3ff",
    "SeriesTable": "b0dd5ac6a1637db6",
    "WindowRows": "2e5362d0635146e2",
}
"""As they stand in a message's header: the CRC-64-AVRO of the schema's canonical form, little-endian."""

FLAT = ("DeadLetter", "SampleBatch", "WindowRows")
"""The records that `FlatCodec` reads."""

CHANGED = """\
The schema {name} is no longer the one that producers, recovered state and stored messages are written with.
- Documentation, order of attributes or white space do not change a fingerprint; fields, types, names do.
- Until a version of Tailrace is released: put {found} into FINGERPRINTS here, run `python -m tests.schemas.examples`,
  and say in CHANGELOG.md that the messages changed.
- After that: leave the file as it is, add the new schema beside it as tailrace.v2, let the decoder take both headers,
  and only in a later release let producers write it.
"""


@pytest.mark.parametrize("name", SCHEMAS)
def test_fingerprint_is_pinned(name: str) -> None:
    found = Codec(name).fingerprint.hex()
    assert found == FINGERPRINTS.get(name), CHANGED.format(name=name, found=found)


def test_every_pin_has_its_schema() -> None:
    assert sorted(FINGERPRINTS) == SCHEMAS


def crc_64_avro(data: bytes) -> int:
    """The specification's algorithm ("Schema Fingerprints"), bit by bit."""
    empty = 0xC15D213AA4D7A795
    crc = empty
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (empty if crc & 1 else 0)
    return crc


@pytest.mark.parametrize(
    ("canonical", "expected"),
    [
        ('"null"', 7195948357588979594),
        ('"boolean"', -6970731678124411036),
        ('"int"', 8247732601305521295),
        ('"long"', -3434872931120570953),
    ],
)
def test_fingerprints_are_those_of_the_avro_project(canonical: str, expected: int) -> None:
    # Published with Avro, share/test/data/schema-tests.txt.
    assert crc_64_avro(canonical.encode()) == expected % (1 << 64)
    assert bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO")) == (expected % (1 << 64)).to_bytes(8, "little")


@pytest.mark.parametrize("name", SCHEMAS)
def test_fingerprint_is_of_the_canonical_form(name: str) -> None:
    canonical = to_parsing_canonical_form(definition_of(name))
    assert f'"name":"tailrace.v1.{name}"' in canonical
    assert '"doc"' not in canonical
    assert Codec(name).header == b"\xc3\x01" + crc_64_avro(canonical.encode()).to_bytes(8, "little")


@pytest.mark.parametrize("name", SCHEMAS)
def test_example_has_these_bytes(name: str) -> None:
    content = example(name)
    codec = Codec(name)
    datum = avro_datum(name, content["datum"])
    if name == "WindowRows":  # other versions of Arrow may pad its stream otherwise: the bytes stand for the same rows
        datum["rows"] = FlatCodec(name).decode(bytes.fromhex(content["hex"]))["rows"]
    encoded = codec.encode_bare(datum) if name == "SeriesTable" else codec.encode(datum)
    assert encoded.hex() == content["hex"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_fastavro_reads_the_example(name: str) -> None:
    content = example(name)
    message = bytes.fromhex(content["hex"])
    source = BytesIO(message)
    if name != "SeriesTable":
        source.seek(10)
    datum = fastavro.schemaless_reader(source, schema_of(name), None)
    expected = avro_datum(name, content["datum"])
    if name == "WindowRows":
        expected["rows"] = datum["rows"]
    assert datum == expected
    assert source.tell() == len(message)


@pytest.mark.parametrize("name", FLAT)
def test_our_reader_agrees_with_fastavro_on_the_example(name: str) -> None:
    message = bytes.fromhex(example(name)["hex"])
    source = BytesIO(message[10:])
    assert FlatCodec(name).decode(message) == fastavro.schemaless_reader(source, schema_of(name), None)


def test_kinds_are_spelled_alike_in_both_schemas() -> None:
    in_sample = {field["name"]: field["type"] for field in definition_of("Sample")["fields"]}["kind"]
    rows = {field["name"]: field["type"] for field in definition_of("SeriesTable")["fields"]}["series"]["items"]
    in_table = {field["name"]: field["type"] for field in rows["fields"]}["kind"]
    assert in_sample == in_table
    assert tuple(in_sample["symbols"]) == KINDS


def test_a_sample_holds_a_row_of_a_series_table() -> None:
    """The decoder takes these four fields of a Sample as a row's bytes."""
    rows = {field["name"]: field["type"] for field in definition_of("SeriesTable")["fields"]}["series"]["items"]
    row = [(field["name"], field["type"]) for field in rows["fields"]]
    sample = [(field["name"], field["type"]) for field in definition_of("Sample")["fields"]]
    assert sample[3:7] == row


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "int": st.integers(-(1 << 31), (1 << 31) - 1),
    "long": st.integers(-(1 << 63), (1 << 63) - 1),
    "bytes": st.binary(max_size=300),
    "string": st.text(max_size=100),
}


def datums(name: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({field["name"]: VALUES[field["type"]] for field in definition_of(name)["fields"]})


NAMED_DATUMS = st.sampled_from(FLAT).flatmap(lambda name: st.tuples(st.just(FlatCodec(name)), datums(name)))


@given(NAMED_DATUMS)
def test_what_is_encoded_is_decoded(case: tuple[FlatCodec, dict[str, Any]]) -> None:
    codec, datum = case
    assert codec.decode(codec.encode(datum)) == datum


@given(NAMED_DATUMS, st.data())
def test_a_message_cut_anywhere_is_truncated(case: tuple[FlatCodec, dict[str, Any]], data: st.DataObject) -> None:
    codec, datum = case
    message = codec.encode(datum)
    with pytest.raises(TruncatedError):
        codec.decode(message[: data.draw(st.integers(10, len(message) - 1))])


@given(NAMED_DATUMS, st.binary(min_size=1, max_size=20))
def test_nothing_may_follow_a_message(case: tuple[FlatCodec, dict[str, Any]], more: bytes) -> None:
    codec, datum = case
    with pytest.raises(ValueError, match=f"{len(more)} bytes follow the {codec.name}"):
        codec.decode(codec.encode(datum) + more)


@given(st.sampled_from(FLAT), st.binary(max_size=200))
def test_any_bytes_are_a_datum_or_a_value_error(name: str, body: bytes) -> None:
    codec = FlatCodec(name)
    try:
        datum = codec.decode(codec.header + body)
    except ValueError:
        return
    # What the stricter reader takes, the other reads alike.
    assert fastavro.schemaless_reader(BytesIO(body), schema_of(name), None) == datum


def test_another_header_is_refused() -> None:
    codec = FlatCodec("DeadLetter")
    with pytest.raises(ValueError, match="not a DeadLetter: the header is 00010203"):
        codec.decode(bytes(range(20)))


@pytest.mark.parametrize("name", ["Sample", "SeriesTable"])
def test_a_record_with_other_types_needs_a_reader_of_its_own(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} has fields of other types"):
        FlatCodec(name)


@given(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-300, 300), st.binary(max_size=3))
def test_longs_are_read_back(number: int, before: bytes) -> None:
    encoded = before + varint(number)
    assert read_long(encoded + b"\x80", len(before)) == (number, len(encoded))


@pytest.mark.parametrize("body", [b"\x80" * 10 + b"\x01", b"\xff" * 9 + b"\x02", b"\x80" * 1000])
def test_a_long_has_at_most_64_bits(body: bytes) -> None:
    with pytest.raises(ValueError, match="more than 64 bits"):
        read_long(body, 0)
    with pytest.raises(ValueError, match="more than 64 bits"):
        FlatCodec("DeadLetter").decode(Codec("DeadLetter").header + body)


def test_lengths_are_checked_before_they_are_used() -> None:
    assert read_size(varint(5) + b"rest", 0) == (5, 1)
    with pytest.raises(ValueError, match="the length -1 is negative"):
        read_size(varint(-1), 0)
    with pytest.raises(TruncatedError, match="1152921504606846976 bytes are announced, 2 are left"):
        read_text(varint(1 << 60) + b"ab", 0)
    with pytest.raises(ValueError, match="the length -9223372036854775808 is negative"):
        read_text(varint(-(1 << 63)) + b"ab", 0)
    with pytest.raises(TruncatedError, match="cut off"):
        read_double(bytes(7), 0)


@pytest.mark.parametrize(
    ("field", "body", "complaint"),
    [
        ("service", varint(-1) + b"abc", "service: the length -1 is negative"),
        ("service", varint(1 << 60), "service: 1152921504606846976 bytes are announced, 0 are left"),
        ("service", varint(3) + b"\xed\xa0\x80", "invalid continuation byte"),  # a surrogate
        ("service", varint(2) + b"\xc0\x80", "invalid start byte"),  # Java's NUL
        ("window_seconds", varint(1) + b"s" + varint(0) + varint(1 << 31), "2147483648 is no 32-bit integer"),
    ],
)
def test_what_the_specification_forbids_is_an_error(field: str, body: bytes, complaint: str) -> None:
    codec = FlatCodec("WindowRows")
    with pytest.raises(ValueError, match=complaint):
        codec.decode(codec.header + body)


def test_a_boolean_is_0_or_1() -> None:
    message = bytes.fromhex(example("SampleBatch")["hex"])
    codec = FlatCodec("SampleBatch")
    datum = codec.decode(message)
    at = codec.encode(datum | {"end_of_stream": True}).index(b"\x01", message.index(b"checkout-7f9c-1"))
    with pytest.raises(ValueError, match="end_of_stream: 2 is no boolean"):
        codec.decode(message[:at] + b"\x02" + message[at + 1 :])
