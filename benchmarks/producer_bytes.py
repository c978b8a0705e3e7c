"""Bytes a sample on the wire: RPC durations of a real system (nezha), as several formats would carry them.

Each service's spans in the order in which they ended, in messages of 100, 1,000 and 4,096. All are compressed with zstd
at level 3, librdkafka's default; remote write with snappy, as its protocol has it.
"""

import csv
import gzip
import json
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
from tailrace_producers.buffer import SeriesRef
from tailrace_producers.instruments import rounded
from tailrace_producers.packing import Packer
from tailrace_schemas.samples import Series

from benchmarks.common import say
from tests.data import DATA

SIZES = (100, 1_000, 4_096)
ZSTD = pa.Codec("zstd", compression_level=3)
METRIC = "rpc.client.duration"


class Span(NamedTuple):
    """A sample: when it ended, how long it took, what it was."""

    time_ns: int
    seconds: float
    operation: str


Encode = Callable[[str, list[Span]], bytes]


def run() -> list[dict[str, Any]]:
    """One row a format and size of messages."""
    files = sorted((DATA / "latency" / "nezha_traces").glob("2022-*.csv.gz"))
    if not files:
        say(f"no {DATA}/latency/nezha_traces: bytes a sample are left out; TAILRACE_TEST_DATA names the folder")
        return []
    services = _services(files)
    results = []
    for name, encoder, codec in _formats():
        for size in SIZES:
            total = samples = 0
            for service, spans in services.items():
                encode = encoder(service)
                for message in _batches(spans, size):
                    total += len(codec(encode(message)))
                    samples += len(message)
            results.append(
                {"part": "bytes", "system": name, "samples_per_message": size, "samples": samples,
                 "bytes_per_sample": total / samples}
            )  # fmt: skip
    return results


def _services(files: list[Any]) -> dict[str, list[Span]]:
    services: dict[str, list[Span]] = {}
    for file in files:
        with gzip.open(file, "rt") as lines:
            for row in csv.DictReader(lines):
                start_ns, end_ns = int(row["start_unix_ns"]), int(row["end_unix_ns"])
                span = Span(end_ns, (end_ns - start_ns) / 1e9, row["operation"])
                services.setdefault(row["pod"].rsplit("-", 2)[0], []).append(span)
    return {service: sorted(spans) for service, spans in services.items()}


def _batches(spans: list[Span], size: int) -> Iterator[list[Span]]:
    rest = iter(spans)
    while batch := list(islice(rest, size)):
        yield batch


def _zstd(data: bytes) -> bytes:
    return ZSTD.compress(data, asbytes=True)  # type: ignore[no-any-return]


def _formats() -> Iterator[tuple[str, Callable[[str], Callable[[list[Span]], bytes]], Callable[[bytes], bytes]]]:
    yield "tailrace, as a timer measures", lambda service: _tailrace(service, rounded), _zstd
    yield "tailrace, as given", lambda service: _tailrace(service, float), _zstd
    yield "json, an object a sample", lambda _service: _json, _zstd
    if find_spec("opentelemetry") and find_spec("opentelemetry.proto"):
        yield "otlp, gauge points", lambda service: lambda spans: _otlp(service, spans), _zstd
    else:
        say("opentelemetry-proto is not installed, and left out: pip install 'tailrace[bench]'")
    snappy = pa.Codec("snappy")
    yield (
        "prometheus remote write (ms)",
        lambda service: lambda spans: _remote_write(service, spans),
        lambda data: snappy.compress(data, asbytes=True),
    )


def _tailrace(service: str, value: Callable[[float], float]) -> Callable[[list[Span]], bytes]:
    packer, refs = Packer(service, {"service.version": "1"}, "benchmark"), {}

    def encode(spans: list[Span]) -> bytes:
        rows: list[Any] = []
        for time_ns, seconds, operation in spans:
            ref = refs.get(operation)
            if ref is None:
                series = Series(METRIC, "distribution", "s", (("rpc.method", operation),))
                ref = refs[operation] = SeriesRef(series)
            rows += value(seconds), time_ns, ref
        (message,), _ = packer.pack(rows)
        return message.payload

    return encode


def _json(spans: list[Span]) -> bytes:
    return b"\n".join(
        json.dumps(
            {"time_us": time_ns // 1000, "metric": METRIC, "value": seconds, "rpc.method": operation}
        ).encode()
        for time_ns, seconds, operation in spans
    )  # fmt: skip


def _otlp(service: str, spans: list[Span]) -> bytes:
    """Raw values are points of a gauge there: a histogram's points are aggregates."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    attribute = resource.resource.attributes.add(key="service.name")
    attribute.value.string_value = service
    metric = resource.scope_metrics.add().metrics.add(name=METRIC, unit="s")
    for time_ns, seconds, operation in spans:
        point = metric.gauge.data_points.add(time_unix_nano=time_ns, as_double=seconds)
        point.attributes.add(key="rpc.method").value.string_value = operation
    return request.SerializeToString()  # type: ignore[no-any-return]


def _remote_write(service: str, spans: list[Span]) -> bytes:
    """A `prometheus.WriteRequest` (remote write 1.0): labels and samples of each series, by hand."""
    by_series: dict[str, list[Span]] = {}
    for span in spans:
        by_series.setdefault(span.operation, []).append(span)
    request = b""
    for operation, of_series in by_series.items():
        labels = {"__name__": METRIC, "job": service, "rpc_method": operation}
        series = b"".join(
            _field(1, _field(1, name.encode()) + _field(2, text.encode())) for name, text in labels.items()
        )
        for time_ns, seconds, _ in of_series:
            series += _field(2, b"\x09" + struct.pack("<d", seconds) + b"\x10" + _varint(time_ns // 1_000_000))
        request += _field(1, series)
    return request


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
