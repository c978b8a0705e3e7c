"""A workload with every kind of sample and of trouble, and, worked out in plain Python, the rows it must leave."""

import math
import random
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tailrace_flows.core.sketch import codes_of
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

MAX_ROW_BUCKETS = 16_384
START_US = 1_700_000_000_000_000
STEP_US = 500_000
SERIES = [
    *(Series("http.server.request.duration", "distribution", "s", (("http.route", f"/r{i}"),)) for i in range(12)),
    *(Series("http.server.requests", "counter", "{request}", (("http.route", f"/r{i}"),)) for i in range(4)),
    *(Series("system.disk.io", "cumulative", "By", (("system.device", f"sd{i}"),)) for i in range(4)),
    *(Series("system.memory.usage", "gauge", "By", (("state", f"s{i}"),)) for i in range(4)),
    Series("deploy", "event", "", (("version", "2"),)),
]
TABLE = encode_series_table(SERIES)
JUNK = b"not a message of ours"


@dataclass
class Workload:
    """Messages in the order they are sent, and what must come of them."""

    messages: list[tuple[str, bytes]] = field(default_factory=list)
    """(service, value)."""
    samples: dict[tuple[str, str], list[tuple[Series, int, float]]] = field(default_factory=lambda: defaultdict(list))
    """(service, stream) -> what is in windows."""
    counters: dict[str, int] = field(default_factory=lambda: defaultdict(int))


def make_workload(seed: int, *, services: int = 3, steps: int = 400, samples: int = 40, stream: str = "") -> Workload:
    """`steps` batches of half a second of event time for each service; within 1 s of disorder; ends its streams."""
    rng = random.Random(seed)
    made = Workload()
    cumulative: dict[tuple[str, int], float] = defaultdict(float)
    sequence: dict[str, int] = defaultdict(int)
    for step in range(steps):
        for number in range(services):
            service = f"svc-{number}"
            base_us = START_US + step * STEP_US
            batch = []
            for _ in range(samples):
                row = rng.randrange(len(SERIES))
                time_us = base_us + rng.randrange(-STEP_US, STEP_US)
                batch.append((row, time_us, _value(rng, service, row, cumulative)))
            if rng.random() < 0.02:
                sequence[service] += 1  # a batch that was lost before Kafka
                made.counters["missing_batches"] += 1
            value = _encode(service, stream, sequence[service], base_us, batch)
            sequence[service] += 1
            made.messages.append((service, value))
            made.samples[service, stream] += [(SERIES[row], at, v) for row, at, v in batch]
            made.counters["samples"] += len(batch)
            if rng.random() < 0.05:
                made.messages.append((service, value))
                made.counters["duplicate_batches"] += 1
                made.counters["duplicate_samples"] += len(batch)
            if rng.random() < 0.02:
                made.messages.append((service, JUNK))
                made.counters["dead_letters.unknown_schema"] += 1
    for number in range(services):
        service = f"svc-{number}"
        last = _encode(service, stream, sequence[service], START_US, [], end=True)
        made.messages.append((service, last))
        made.counters["ended"] += 1
    return made


def _value(rng: random.Random, service: str, row: int, cumulative: dict[tuple[str, int], float]) -> float:
    kind = SERIES[row].kind
    if kind == "distribution":
        return rng.choice([rng.lognormvariate(-4, 1), rng.lognormvariate(-4, 1), 0.25, 0.0, -rng.random()])
    if kind == "cumulative":
        if rng.random() < 0.02:
            cumulative[service, row] = 0.0
        cumulative[service, row] += rng.randrange(1000)
        return cumulative[service, row]
    return float(rng.randrange(1000)) if kind != "event" else 1.0


def _encode(
    service: str, stream: str, sequence: int, base_us: int, batch: list[tuple[int, int, float]], end: bool = False
) -> bytes:
    return encode_batch(
        service=service,
        producer_id=f"producer-of-{service}",
        sequence=sequence,
        stream=stream,
        end_of_stream=end,
        base_time_us=base_us,
        series_table=TABLE,
        series_index=array("I", [row for row, _, _ in batch]).tobytes(),
        time_offset_us=array("i", [at - base_us for _, at, _ in batch]).tobytes(),
        value=array("d", [value for _, _, value in batch]).tobytes(),
    )


def expected_rows(made: Workload, seconds: int, scale: int = 6) -> dict[tuple[Any, ...], dict[str, Any]]:
    """(service, stream, metric, attributes, start) -> the row, from the samples alone."""
    length_us = seconds * 1_000_000
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (service, stream), samples in made.samples.items():
        by_series: dict[Series, list[tuple[int, float]]] = defaultdict(list)
        for series, time_us, value in samples:
            by_series[series].append((time_us, value))
        for series, points in by_series.items():
            points.sort()
            windows: dict[int, list[tuple[int, float]]] = defaultdict(list)
            increases: dict[int, float | None] = {}
            previous: float | None = None
            for time_us, value in points:
                start = time_us - time_us % length_us
                windows[start].append((time_us, value))
                if previous is not None:
                    step = value if value < previous else value - previous
                    increases[start] = (increases.get(start) or 0.0) + step
                previous = value
            for start, members in windows.items():
                key = (service, stream, series.metric, series.attributes, start // 1_000_000)
                rows[key] = _row(series.kind, [value for _, value in members], increases.get(start), scale)
    return rows


def _row(kind: str, values: list[float], increase: float | None, scale: int) -> dict[str, Any]:
    row: dict[str, Any] = {"count": len(values), "kind": kind, "sum": None, "min": None, "max": None, "last": None}
    row |= {"increase": None, "bucket_index": [], "bucket_count": []}
    if kind != "cumulative":
        row["sum"] = math.fsum(values)
    if kind in ("distribution", "gauge"):
        row["min"], row["max"] = min(values), max(values)
    if kind in ("gauge", "cumulative"):
        row["last"] = values[-1]
    if kind == "counter":
        row["increase"] = math.fsum(values)
    if kind == "event":
        row["increase"] = float(len(values))
    if kind == "cumulative":
        row["increase"] = increase
    if kind == "distribution":
        codes, counts = np.unique(codes_of(np.array(values), scale), return_counts=True)
        while codes.size > MAX_ROW_BUCKETS:
            scale -= 1
            codes, counts = np.unique(codes_of(np.array(values), scale), return_counts=True)
        row["bucket_index"], row["bucket_count"] = codes.tolist(), counts.tolist()
    return row


COLUMNS = (
    "service, stream, metric, attributes, toUnixTimestamp(window_start), kind, count, sum, min, max, last, increase, "
    "bucket_index, bucket_count"
)


def stored_rows(client: Any, view: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What ClickHouse has, in the shape of `expected_rows`."""
    found = {}
    for row in client.query(f"SELECT {COLUMNS} FROM {view}").result_rows:
        service, stream, metric, attributes, start, *values = row
        names = ("kind", "count", "sum", "min", "max", "last", "increase", "bucket_index", "bucket_count")
        key = (service, stream, metric, tuple(sorted(attributes.items())), start)
        assert key not in found, f"two rows of {key}"
        found[key] = dict(zip(names, values, strict=True))
    return found


def assert_same(found: dict[tuple[Any, ...], dict[str, Any]], expected: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    """Equal as semantics has it: everything exactly, but sums and increases within 1e-9."""
    assert found.keys() == expected.keys(), (
        f"missing {list(expected.keys() - found.keys())[:3]}, too many {list(found.keys() - expected.keys())[:3]}"
    )
    for key, want in expected.items():
        got = found[key]
        for name, value in want.items():
            if name in ("sum", "increase") and value is not None:
                assert got[name] is not None, (key, name, got, want)
                assert math.isclose(got[name], value, rel_tol=1e-9, abs_tol=1e-9), (key, name, got[name], value)
            else:
                assert list(got[name]) == value if isinstance(value, list) else got[name] == value, (
                    key,
                    name,
                    got,
                    want,
                )
