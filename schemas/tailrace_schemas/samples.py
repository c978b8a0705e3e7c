"""`SampleBatch` and `Sample`: what producers send.

Encoding needs only the base install. Decoding is total: any bytes give a `SampleBatch` or a `Rejection` with its
reason; nothing is allocated by a length that was not checked against the bytes at hand. The values in the
columns are checked by the reader that has them as arrays (`tailrace_flows.core.chunk`).
"""

from array import array
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple

from tailrace_schemas.codec import MALFORMED, Codec

__all__ = [
    "KINDS", "MAX_MESSAGE_BYTES", "MAX_TIME_US", "MIN_TIME_US", "Reason", "Rejection", "SampleBatch", "Series",
    "SeriesTable", "decode", "decode_series_table", "encode_batch", "encode_sample", "encode_series_table",
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

MIN_TIME_US: Final = 0
MAX_TIME_US: Final = 4_102_444_800_000_000
"""2100-01-01. ClickHouse's DateTime ends in 2106."""

BATCH = Codec("SampleBatch")
TABLE = Codec("SeriesTable")
SAMPLE = Codec("Sample")


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


class SampleBatch(NamedTuple):
    """A decoded message. The columns are little-endian bytes of equal length in samples."""

    service: str
    producer_id: str
    sequence: int
    stream: str
    end_of_stream: bool
    base_time_us: int
    table: SeriesTable
    series_index: bytes
    """uint32, a row of `table.series`; not yet checked."""
    time_offset_us: bytes
    """int32, added to `base_time_us`."""
    value: bytes
    """float64."""
    samples: int


def encode_series_table(series: Iterable[Series], resource: Mapping[str, str] | None = None) -> bytes:
    """A series table to nest in batches. Encode it once and send the same bytes while nothing changes."""
    return TABLE.encode_bare(
        {
            "resource": dict(resource or {}),
            "series": [
                {"metric": s.metric, "kind": s.kind, "unit": s.unit, "attributes": dict(s.attributes)}
                for s in series
            ],
        }
    )


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
        ValueError: the columns do not hold the same number of samples, or the message exceeds 10 MB.
    """
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
        raise ValueError(
            f"a batch of {len(message)} bytes exceeds {MAX_MESSAGE_BYTES}: send fewer samples a batch"
        )
    return message


def encode_sample(service: str, series: Series, time_us: int, value: float, stream: str = "") -> bytes:
    """A `Sample` message."""
    return SAMPLE.encode(
        {
            "service": service, "stream": stream, "time_us": time_us, "metric": series.metric, "kind": series.kind,
            "unit": series.unit, "attributes": dict(series.attributes), "value": value,
        }
    )  # fmt: skip


def decode(payload: bytes | None) -> SampleBatch | Rejection:
    """A `SampleBatch` or `Sample` message as a batch (a `Sample` has sequence -1). Raises nothing.

    About 7 us a message whose series table was seen before. Memory: a few times the payload's size.
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
    except EOFError:
        return Rejection(Reason.TRUNCATED, "the record ends before its last field")
    except MALFORMED as error:
        return Rejection(Reason.MALFORMED, str(error)[:200])
    if len(payload) < len(BATCH.header):
        return Rejection(Reason.TRUNCATED, f"{len(payload)} bytes are less than a header")
    return Rejection(Reason.UNKNOWN_SCHEMA, f"the header is {payload[:10].hex()}")


def _read_batch(payload: bytes) -> SampleBatch:
    datum: dict[str, Any] = BATCH.decode_bare(payload, len(BATCH.header))
    value: bytes = datum["value"]
    samples = len(value) // 8
    lengths = (len(datum["series_index"]), len(datum["time_offset_us"]), len(value))
    if lengths != (4 * samples, 4 * samples, 8 * samples):
        raise ValueError(f"columns of {lengths} bytes do not hold the same number of samples")
    if not MIN_TIME_US <= datum["base_time_us"] <= MAX_TIME_US:
        raise ValueError(f"base_time_us {datum['base_time_us']} is not a time between 1970 and 2100")
    return SampleBatch(
        _name(datum["service"], "service", required=True),
        _name(datum["producer_id"], "producer_id"),
        datum["sequence"],
        _name(datum["stream"], "stream"),
        datum["end_of_stream"],
        datum["base_time_us"],
        decode_series_table(datum["series_table"]),
        datum["series_index"],
        datum["time_offset_us"],
        value,
        samples,
    )


_ONE_INDEX = array("I", [0]).tobytes()


def _read_sample(payload: bytes) -> SampleBatch:
    datum: dict[str, Any] = SAMPLE.decode_bare(payload, len(SAMPLE.header))
    if not MIN_TIME_US <= datum["time_us"] <= MAX_TIME_US:
        raise ValueError(f"time_us {datum['time_us']} is not a time between 1970 and 2100")
    attributes = tuple(sorted(datum["attributes"].items()))
    return SampleBatch(
        _name(datum["service"], "service", required=True),
        "",
        -1,
        _name(datum["stream"], "stream"),
        False,
        datum["time_us"],
        _table_of_one(Series(datum["metric"], datum["kind"], datum["unit"], attributes)),
        _ONE_INDEX,
        _ONE_INDEX,
        array("d", [datum["value"]]).tobytes(),
        1,
    )


@lru_cache(maxsize=65_536)
def _table_of_one(series: Series) -> SeriesTable:
    return decode_series_table(encode_series_table([series]))


_tables: dict[bytes, SeriesTable] = {}
_TABLES_MAX_BYTES = 64 * 1024 * 1024
_tables_bytes = 0


def decode_series_table(encoded: bytes) -> SeriesTable:
    """The series table of these bytes; equal bytes give the same object, from a cache of 64 MB of encoded tables.

    Raises:
        one of MALFORMED: the bytes are no series table, or it exceeds a limit of this module.
    """
    global _tables_bytes
    table = _tables.get(encoded)
    if table is None:
        table = _read_series_table(encoded)
        if _tables_bytes > _TABLES_MAX_BYTES:
            # Tables that are still in use come back with their next batch; a plain reset needs no bookkeeping.
            _tables.clear()
            _tables_bytes = 0
        _tables[encoded] = table
        _tables_bytes += len(encoded)
    return table


def _read_series_table(encoded: bytes) -> SeriesTable:
    datum = TABLE.decode_bare(encoded)
    rows = datum["series"]
    if len(rows) > MAX_SERIES:
        raise ValueError(f"{len(rows)} series in one table; the limit is {MAX_SERIES}")
    resource: dict[str, str] = datum["resource"]
    series = []
    for row in rows:
        attributes = {**resource, **row["attributes"]} if resource else row["attributes"]
        if len(attributes) > MAX_ATTRIBUTES:
            raise ValueError(
                f"{len(attributes)} attributes on {row['metric'][:80]!r}; the limit is {MAX_ATTRIBUTES}"
            )
        for key, value in attributes.items():
            _name(key, "attribute key", required=True)
            if len(value) > MAX_VALUE_CHARS:
                raise ValueError(
                    f"attribute {key[:80]!r} has {len(value)} characters; the limit is {MAX_VALUE_CHARS}"
                )
        series.append(
            Series(
                _name(row["metric"], "metric", required=True),
                row["kind"],
                _name(row["unit"], "unit"),
                tuple(sorted(attributes.items())),
            )
        )
    return SeriesTable(encoded, tuple(series))


def _name(text: str, what: str, *, required: bool = False) -> str:
    if required and not text:
        raise ValueError(f"{what} is empty")
    if len(text) > MAX_NAME_CHARS:
        raise ValueError(f"{what} has {len(text)} characters; the limit is {MAX_NAME_CHARS}")
    return text
