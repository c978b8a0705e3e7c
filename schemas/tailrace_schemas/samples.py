"""`SampleBatch` and `Sample`: what producers send.

Encoding needs only the base install. Decoding is total: any bytes give a `SampleBatch` or a `Rejection` with its
reason, in less than a second and 100 MB; nothing is allocated by a length that was not checked against the bytes
at hand. The values in the columns are checked by the reader that has them as arrays (`tailrace_flows.core.chunk`).
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from sys import intern
from typing import Any, Final, NamedTuple

from tailrace_schemas.codec import Codec, FlatCodec, TruncatedError, read_double, read_long, read_size, read_text

__all__ = [
    "KINDS", "MAX_ATTRIBUTES", "MAX_ATTRIBUTE_BYTES", "MAX_MESSAGE_BYTES", "MAX_NAME_CHARS", "MAX_SEQUENCE",
    "MAX_SERIES", "MAX_TABLE_ATTRIBUTES", "MAX_TIME_US", "MAX_VALUE_CHARS", "MIN_TIME_US", "SINGLE_HEADER", "Reason",
    "Rejection", "SampleBatch", "Series", "SeriesTable", "attribute_bytes", "decode", "decode_series_table",
    "encode_batch", "encode_sample", "encode_series_table", "table_of_rows",
]  # fmt: skip

KINDS: Final = ("distribution", "counter", "cumulative", "gauge", "event")

MAX_MESSAGE_BYTES: Final = 10 * 1024 * 1024
MAX_SERIES: Final = 100_000
"""Rows of one series table."""
MAX_NAME_CHARS: Final = 1024
"""Of a metric, service, stream, unit, attribute key or producer id."""
MAX_VALUE_CHARS: Final = 4096
"""Of an attribute's value."""
MAX_ATTRIBUTES: Final = 128
"""Of one series, the resource's included."""
MAX_ATTRIBUTE_BYTES: Final = 16_384
"""Of one series' keys and values together in UTF-8, the resource's included. They are in each of its rows, and four
times in a notification, as JSON, which may take six bytes for one: of either, Kafka takes 1 MB by default."""
MAX_TABLE_ATTRIBUTES: Final = 250_000
"""Of all series of one table together, the resource's counted for each: bounds what a small message can unfold to."""
MAX_SEQUENCE: Final = (1 << 40) - 1
"""Of a batch. What is missing before it is counted, and such totals must stay far from 64 bits."""

MIN_TIME_US: Final = 0
MAX_TIME_US: Final = 4_102_444_800_000_000
"""2100-01-01. ClickHouse's DateTime ends in 2106."""

BATCH = FlatCodec("SampleBatch")
TABLE = Codec("SeriesTable")
SAMPLE = Codec("Sample")
SINGLE_HEADER: Final = SAMPLE.header
"""What a `Sample` message begins with."""


class Reason(StrEnum):
    """Why a record, or samples of it, became a dead letter."""

    OVERSIZE = "oversize"
    UNKNOWN_SCHEMA = "unknown_schema"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    BAD_INDEX = "bad_index"
    NOT_FINITE = "not_finite"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    TOO_FAR_IN_FUTURE = "too_far_in_future"
    NEGATIVE_COUNT = "negative_count"


class Rejection(NamedTuple):
    """A record that cannot be used, and why."""

    reason: Reason
    detail: str


class Series(NamedTuple):
    """What a sample belongs to, besides its service: `attributes` sorted by key."""

    metric: str
    kind: str
    unit: str = ""
    attributes: tuple[tuple[str, str], ...] = ()


class SeriesTable(NamedTuple):
    """The series of a batch, the resource's attributes merged in, and the bytes they came from."""

    encoded: bytes
    series: tuple[Series, ...]
    kinds: frozenset[str]
    """Those of the series."""


class SampleBatch(NamedTuple):
    """A decoded message. The columns are little-endian bytes of equal length in samples."""

    service: str
    producer_id: str
    sequence: int
    stream: str
    end_of_stream: bool
    base_time_us: int
    table: SeriesTable
    series_index: bytes | memoryview
    """uint32, a row of `table.series`; not yet checked."""
    time_offset_us: bytes | memoryview
    """int32, added to `base_time_us`."""
    value: bytes | memoryview
    """float64."""
    samples: int


def encode_series_table(series: Iterable[Series], resource: Mapping[str, str] | None = None) -> bytes:
    """A series table to nest in batches. Encode it once and send the same bytes while nothing changes.

    Raises:
        ValueError: it exceeds a limit of this module, so that a reader would refuse it, or a kind is not of KINDS.
        TypeError: a name or attribute is no text.
    """
    common = _checked(dict(resource or {}))
    common_bytes = attribute_bytes(common.items())
    rows = [_checked_row(one, common, common_bytes) for one in series]
    if len(rows) > MAX_SERIES:
        raise ValueError(f"{len(rows)} series in one table; the limit is {MAX_SERIES}")
    total = len(common) * len(rows) + sum(len(row["attributes"]) for row in rows)
    if total > MAX_TABLE_ATTRIBUTES:
        raise ValueError(f"{total} attributes in one table; the limit is {MAX_TABLE_ATTRIBUTES}")
    return TABLE.encode_bare({"resource": common, "series": rows})


def encode_batch(
    *,
    service: str,
    producer_id: str,
    sequence: int,
    base_time_us: int,
    series_table: bytes,
    series_index: bytes,
    time_offset_us: bytes,
    value: bytes,
    stream: str = "",
    end_of_stream: bool = False,
) -> bytes:
    """A `SampleBatch` message. The columns are packed little-endian uint32, int32 and float64.

    Raises:
        ValueError: the columns do not hold the same number of samples, the message exceeds 10 MB, or a field exceeds
            its limit. The series table and the values are taken as they are.
    """
    _name(service, "service", required=True)
    _name(producer_id, "producer_id")
    _name(stream, "stream")
    _check_number(sequence, "sequence", -1, MAX_SEQUENCE)
    _check_number(base_time_us, "base_time_us", MIN_TIME_US, MAX_TIME_US)
    samples = len(value) // 8
    if (len(series_index), len(time_offset_us), len(value)) != (4 * samples, 4 * samples, 8 * samples):
        raise ValueError("series_index, time_offset_us and value do not hold the same number of samples")
    message = BATCH.encode(
        {
            "service": service, "producer_id": producer_id, "sequence": sequence, "stream": stream,
            "end_of_stream": end_of_stream, "base_time_us": base_time_us, "series_table": series_table,
            "series_index": series_index, "time_offset_us": time_offset_us, "value": value,
        }
    )  # fmt: skip
    if len(message) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a batch of {len(message)} bytes exceeds {MAX_MESSAGE_BYTES}: send fewer samples a batch")
    return message


def encode_sample(service: str, series: Series, time_us: int, value: float, stream: str = "") -> bytes:
    """A `Sample` message. Raises as `encode_series_table` and `encode_batch`."""
    _name(service, "service", required=True)
    _name(stream, "stream")
    _check_number(time_us, "time_us", MIN_TIME_US, MAX_TIME_US)
    return SAMPLE.encode(
        {
            "service": service, "stream": stream, "time_us": time_us, "value": value, **_checked_row(series, {}, 0),
        }
    )  # fmt: skip


def decode(payload: bytes | None) -> SampleBatch | Rejection:
    """A `SampleBatch` or `Sample` message as a batch (a `Sample` has sequence -1). Raises nothing.

    Cost: about 5 us for a message whose series table was seen before, and 3.5 us for each series of a new one; for any
    10 MB less than a second. Memory: besides the payload's size what the table unfolds to, always below 100 MB.
    """
    if payload is None:
        return Rejection(Reason.MALFORMED, "the record has no value (a tombstone)")
    if len(payload) > MAX_MESSAGE_BYTES:
        return Rejection(Reason.OVERSIZE, f"{len(payload)} bytes; the limit is {MAX_MESSAGE_BYTES}")
    try:
        if payload.startswith(BATCH.header):
            return _read_batch(payload)
        if payload.startswith(SAMPLE.header):
            return _read_sample(payload)
    except TruncatedError as error:
        return Rejection(Reason.TRUNCATED, str(error)[:200])
    except IndexError:
        return Rejection(Reason.TRUNCATED, "the record ends before its last field")
    except ValueError as error:
        return Rejection(Reason.MALFORMED, str(error)[:200])
    if len(payload) < len(BATCH.header):
        return Rejection(Reason.TRUNCATED, f"{len(payload)} bytes are less than a header")
    return Rejection(Reason.UNKNOWN_SCHEMA, f"the header is {payload[:10].hex()}")


def _read_batch(payload: bytes) -> SampleBatch | Rejection:
    datum = BATCH.read(payload)
    index, offset, value = datum["series_index"], datum["time_offset_us"], datum["value"]
    view = memoryview(payload)
    lengths = (index.stop - index.start, offset.stop - offset.start, value.stop - value.start)
    samples = lengths[2] // 8
    if lengths != (4 * samples, 4 * samples, 8 * samples):
        raise ValueError(f"columns of {lengths} bytes do not hold the same number of samples")
    _check_number(datum["sequence"], "sequence", -1, MAX_SEQUENCE)
    if not MIN_TIME_US <= datum["base_time_us"] <= MAX_TIME_US:
        return _out_of_range("base_time_us", datum["base_time_us"])
    return SampleBatch(
        _name(datum["service"], "service", required=True),
        _name(datum["producer_id"], "producer_id"),
        datum["sequence"],
        _name(datum["stream"], "stream"),
        datum["end_of_stream"],
        datum["base_time_us"],
        _table_at(payload, datum["series_table"]),
        view[index],
        view[offset],
        view[value],
        samples,
    )


_ONE_ZERO: Final = array("I", [0]).tobytes()


def _read_sample(payload: bytes) -> SampleBatch | Rejection:
    service, at = read_text(payload, len(SAMPLE.header))
    stream, at = read_text(payload, at)
    time_us, at = read_long(payload, at)
    begin = at
    series, _, at = _read_series(payload, at, {}, 0, {})
    # A sample's fields from `metric` to `attributes` are a row of a series table: the table of that one row.
    encoded = b"\x00\x02" + payload[begin:at] + b"\x00"
    value, at = read_double(payload, at)
    if at != len(payload):
        raise ValueError(f"{len(payload) - at} bytes follow the Sample")
    if not MIN_TIME_US <= time_us <= MAX_TIME_US:
        return _out_of_range("time_us", time_us)
    return SampleBatch(
        _name(service, "service", required=True),
        "",
        -1,
        _name(stream, "stream"),
        False,
        time_us,
        _tables.get(encoded) or _remember(encoded, (series,), 200 * (1 + len(series.attributes))),
        _ONE_ZERO,
        _ONE_ZERO,
        array("d", [value]).tobytes(),
        1,
    )


_tables: dict[bytes, SeriesTable] = {}
_latest: dict[tuple[int, bytes], SeriesTable] = {}
"""The table last seen with this length and end. To compare with it costs a fifth of hashing 50 kB for `_tables`."""
_TABLES_MAX_BYTES: Final = 256 * 1024 * 1024
_tables_bytes = 0


def decode_series_table(encoded: bytes) -> SeriesTable:
    """The series table of these bytes; equal bytes give the same object, from a cache of about 256 MB.

    Raises:
        ValueError: the bytes are no series table, or it exceeds a limit of this module.
    """
    table = _latest.get(_hint(encoded))
    if table is not None and table.encoded == encoded:
        return table
    table = _tables.get(encoded)
    if table is None:
        try:
            table = _read_series_table(encoded)
        except (TruncatedError, IndexError):
            raise ValueError("the series table ends before its last row") from None
    _latest[_hint(encoded)] = table
    return table


def table_of_rows(rows: Sequence[bytes], series: Sequence[Series]) -> SeriesTable:
    """The table of rows as they are encoded in `Sample` messages, and as they were decoded."""
    count, length = len(rows) << 1, bytearray()
    while count > 0x7F:
        length.append(count & 0x7F | 0x80)
        count >>= 7
    length.append(count)
    encoded = b"".join([b"\x00", length, *rows, b"\x00"])
    return SeriesTable(encoded, tuple(series), frozenset(one.kind for one in series))


def _table_at(payload: bytes, place: slice) -> SeriesTable:
    """`decode_series_table` of a part of a message, which is not copied if its table is known."""
    table = _latest.get((place.stop - place.start, payload[max(place.start, place.stop - 64) : place.stop]))
    if table is not None and payload.startswith(table.encoded, place.start):
        return table
    return decode_series_table(payload[place])


def _hint(encoded: bytes) -> tuple[int, bytes]:
    return len(encoded), encoded[-64:]


def _remember(encoded: bytes, series: tuple[Series, ...], unfolded_bytes: int) -> SeriesTable:
    global _tables_bytes
    table = SeriesTable(encoded, series, frozenset(one.kind for one in series))
    # Text takes one byte a character, or up to four for one of four bytes (and then all of that text).
    size = 1000 + unfolded_bytes + len(encoded) * (2 if encoded.isascii() else 5)
    if _tables_bytes + size > _TABLES_MAX_BYTES:
        # Tables that are still in use come back with their next batch; a plain reset needs no bookkeeping.
        _tables.clear()
        _latest.clear()
        _tables_bytes = 0
    _tables[encoded] = _latest[_hint(encoded)] = table
    _tables_bytes += size
    return table


_Pairs = dict[bytes, tuple[str, str]]
"""Encoded entries of maps, key and value, and what they say: most of a table's entries are alike."""


def _read_series_table(encoded: bytes) -> SeriesTable:
    pairs: _Pairs = {}
    resource, _, at = _read_attributes(encoded, 0, pairs)
    resource_bytes = at
    rows: list[Series] = []
    attributes = 0
    while True:
        count, at = _read_block(encoded, at)
        if not count:
            break
        if len(rows) + count > MAX_SERIES:
            raise ValueError(f"{len(rows) + count} series in one table; the limit is {MAX_SERIES}")
        for _ in range(count):
            one, entries, at = _read_series(encoded, at, resource, resource_bytes, pairs)
            rows.append(one)
            attributes += len(resource) + entries
            if attributes > MAX_TABLE_ATTRIBUTES:
                raise ValueError(f"more than {MAX_TABLE_ATTRIBUTES} attributes in one table")
    if at != len(encoded):
        raise ValueError(f"{len(encoded) - at} bytes follow the series table")
    # What CPython takes for a row, a reference, and a pair with its texts.
    return _remember(encoded, tuple(rows), 200 * len(rows) + 8 * attributes + 200 * len(pairs))


def _read_series(
    data: bytes, at: int, resource: dict[str, tuple[str, str]], resource_bytes: int, pairs: _Pairs
) -> tuple[Series, int, int]:
    """A row, how many entries its map had, and its end; `resource_bytes`: as encoded. Raises as `_read_attributes`."""
    metric, at = read_text(data, at)
    kind, at = read_long(data, at)
    if not 0 <= kind < len(KINDS):
        raise ValueError(f"the kind {kind} of {metric[:80]!r} is not in 0..{len(KINDS) - 1}")
    unit, at = read_text(data, at)
    begin = at
    attributes, entries, at = _read_attributes(data, at, pairs)
    encoded_bytes = resource_bytes + at - begin  # no less than the attributes have, and at hand
    if resource:
        attributes = resource | attributes
        if len(attributes) > MAX_ATTRIBUTES:
            raise ValueError(f"{len(attributes)} attributes on {metric[:80]!r}; the limit is {MAX_ATTRIBUTES}")
    if encoded_bytes > MAX_ATTRIBUTE_BYTES:
        _check_bytes(metric, attribute_bytes(attributes.values()))
    metric, unit = intern(_name(metric, "metric", required=True)), intern(_name(unit, "unit"))
    return Series(metric, KINDS[kind], unit, tuple(sorted(attributes.values()))), entries, at


def _read_attributes(data: bytes, at: int, pairs: _Pairs) -> tuple[dict[str, tuple[str, str]], int, int]:
    """A map's (key, value) by key, how many entries it had, and its end. Of equal keys the last holds.

    Here a table's time goes: lengths below 64 are read in place, at a fifth of the cost of a call.

    Raises:
        IndexError: beside the usual; the data ends within an entry.
    """
    found: dict[str, tuple[str, str]] = {}
    entries = 0
    while True:
        count, at = _read_block(data, at)
        if not count:
            return found, entries, at
        entries += count
        if entries > MAX_ATTRIBUTES:
            raise ValueError(f"{entries} entries in a map; the limit is {MAX_ATTRIBUTES}")
        for _ in range(count):
            key_size, key_at = data[at], at + 1
            if key_size & 0x81:  # more than one byte, or negative
                key_size, key_at = read_size(data, at)
            else:
                key_size >>= 1
            key_end = key_at + key_size
            value_size, value_at = data[key_end], key_end + 1
            if value_size & 0x81:
                value_size, value_at = read_size(data, key_end)
            else:
                value_size >>= 1
            end = value_at + value_size
            if end > len(data):
                raise TruncatedError("an attribute's value is cut off")
            entry = data[at:end]
            pair = pairs.get(entry)
            if pair is None:
                key, value = intern(data[key_at:key_end].decode()), data[value_at:end].decode()
                if (
                    not key or key_size > MAX_NAME_CHARS or value_size > MAX_VALUE_CHARS
                ):  # bytes: no less than characters
                    _check_attribute(key, value)
                pair = pairs[entry] = (key, value)
            found[pair[0]] = pair
            at = end


def _read_block(data: bytes, at: int) -> tuple[int, int]:
    """How many items the next block of an array or map has; 0 after the last."""
    count, at = read_long(data, at)
    if count < 0:  # the block's size in bytes follows, for readers that skip it
        count = -count
        _, at = read_long(data, at)
    return count, at


def attribute_bytes(attributes: Iterable[tuple[str, str]]) -> int:
    """What MAX_ATTRIBUTE_BYTES bounds."""
    return sum(len(key.encode()) + len(value.encode()) for key, value in attributes)


def _check_bytes(metric: str, size: int) -> None:
    if size > MAX_ATTRIBUTE_BYTES:
        raise ValueError(f"attributes of {size} bytes on {metric[:80]!r}; the limit is {MAX_ATTRIBUTE_BYTES}")


def _checked_row(series: Series, resource: dict[str, str], resource_bytes: int) -> dict[str, Any]:
    """What the encoder takes for a row, all limits held. `resource` is checked already."""
    attributes = _checked(dict(series.attributes))
    if len(resource) + len(attributes) > MAX_ATTRIBUTES and len(resource | attributes) > MAX_ATTRIBUTES:
        raise ValueError(f"more than {MAX_ATTRIBUTES} attributes on {series.metric[:80]!r}, the resource's included")
    if resource_bytes + attribute_bytes(attributes.items()) > MAX_ATTRIBUTE_BYTES:
        _check_bytes(series.metric, attribute_bytes((resource | attributes).items()))
    return {
        "metric": _name(series.metric, "metric", required=True),
        "kind": series.kind,
        "unit": _name(series.unit, "unit"),
        "attributes": attributes,
    }


def _checked(attributes: dict[str, str]) -> dict[str, str]:
    for key, value in attributes.items():
        _check_attribute(key, value)
    if len(attributes) > MAX_ATTRIBUTES:
        raise ValueError(f"{len(attributes)} attributes; the limit is {MAX_ATTRIBUTES}")
    return attributes


def _check_attribute(key: str, value: str) -> None:
    _name(key, "attribute key", required=True)
    if len(value) > MAX_VALUE_CHARS:
        raise ValueError(f"attribute {key[:80]!r} has {len(value)} characters; the limit is {MAX_VALUE_CHARS}")


def _name(text: str, what: str, *, required: bool = False) -> str:
    if required and not text:
        raise ValueError(f"{what} is empty")
    if len(text) > MAX_NAME_CHARS:
        raise ValueError(f"{what} has {len(text)} characters; the limit is {MAX_NAME_CHARS}")
    return text


def _check_number(number: int, what: str, least: int, greatest: int) -> None:
    if not least <= number <= greatest:
        raise ValueError(f"{what} {number} is not in {least}..{greatest}")


def _out_of_range(what: str, time_us: int) -> Rejection:
    return Rejection(Reason.TIME_OUT_OF_RANGE, f"{what} {time_us} is not a time between 1970 and 2100")
