"""Bytes in ClickHouse of a 10 s row with its sketch: RPC durations of a real system (nezha), by column.

The spans go through the flow's core and its writer into the tables as `tailrace migrate` makes them. `busy` are the six
minutes of 2022, `all` also those with few requests. `--codec` tries another: "bucket_count Array(UInt64) CODEC(LZ4)".
`floor` is the entropy of a sketch's gaps, counts and lengths, each by itself: what a codec can come near to.
"""

import argparse
import csv
import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.shard import Shard
from tailrace_flows.settings import ClickHouseSettings
from tailrace_infra.child import start_child
from tailrace_producers.instruments import rounded
from tailrace_schemas.samples import Series, encode_batch, encode_series_table
from tailrace_sinks.clickhouse import ClickHouseWriter, connect
from tailrace_sinks.migrate import migrate

from benchmarks.common import say
from tests.data import DATA

BATCH = 1_000
SETS = {"busy": "2022-*.csv.gz", "all": "*.csv.gz"}
GROUPS = {
    "bucket_index": "index",
    "bucket_count": "counts",
    "sum": "sum_min_max",
    "min": "sum_min_max",
    "max": "sum_min_max",
}

Span = tuple[int, float, tuple[str, str]]
"""When it ended, in us; seconds; pod and operation."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--codec", action="append", default=[], help="a column of rows_10s with its type and codecs")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as directory:
        clickhouse = start_child(
            "tailrace_infra.clickhouse", "--data-dir", directory, "--port", "0", timeout_s=120,
            log=Path(directory, "clickhouse.log"),
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{clickhouse.ready['port']}"
            for name, pattern in SETS.items():
                spans = _spans(pattern)
                if not spans:
                    say(f"no {DATA}/latency/nezha_traces; TAILRACE_TEST_DATA names the folder of real data")
                    break
                for values in ("timer", "given"):
                    rows = _rows(spans, as_timer=values == "timer")
                    stored = _stored(url, f"storage_{name}_{values}", rows, options.codec)
                    results.append({"benchmark": "storage", "data": name, "values": values} | _about(rows) | stored)
        finally:
            clickhouse.stop()
    return results


def _spans(pattern: str) -> dict[str, list[Span]]:
    """Service -> its spans in the order in which they ended."""
    services: dict[str, list[Span]] = {}
    for file in sorted((DATA / "latency" / "nezha_traces").glob(pattern)):
        with gzip.open(file, "rt") as lines:
            for row in csv.DictReader(lines):
                start_ns, end_ns = int(row["start_unix_ns"]), int(row["end_unix_ns"])
                span = (end_ns // 1000, (end_ns - start_ns) / 1e9, (row["pod"], row["operation"]))
                services.setdefault(row["pod"].rsplit("-", 2)[0], []).append(span)
    return {service: sorted(spans) for service, spans in services.items()}


def _rows(services: dict[str, list[Span]], *, as_timer: bool) -> pa.Table:
    """The 10 s rows that the flow makes of them; `as_timer`: of values with the precision that a timer measures."""
    config = WindowConfig()
    partition = Partition(0, "samples", config, 0, hold=False, cluster_id="", start=0)
    shards: dict[str, Shard] = {}
    batches = []
    offset = 0
    for service, spans in services.items():
        names = sorted({name for _, _, name in spans})
        rows = {name: row for row, name in enumerate(names)}
        table = encode_series_table(
            Series("rpc.server.duration", "distribution", "s", (("k8s.pod.name", pod), ("rpc.method", operation)))
            for pod, operation in names
        )
        for message in _messages(spans):
            first_us, last_us = message[0][0], message[-1][0]
            seconds = [rounded(value) if as_timer else value for _, value, _ in message]
            encoded = encode_batch(
                service=service, producer_id="nezha", sequence=-1, base_time_us=first_us, series_table=table,
                series_index=np.array([rows[name] for *_, name in message], "<u4").tobytes(),
                time_offset_us=np.array([time_us - first_us for time_us, *_ in message], "<i4").tobytes(),
                value=np.array(seconds, "<f8").tobytes(),
            )  # fmt: skip
            for shard, item in partition.read([Record(offset, last_us, encoded)], last_us)[0]:
                batches += shards.setdefault(shard, Shard(config, 0)).on_items([item], 0).blocks
            offset += 1
    for one in shards.values():
        batches += one.on_end(0).blocks
    return pa.Table.from_batches([block.rows for block in batches if block.window_seconds == 10])


def _messages(spans: list[Span]) -> Iterator[list[Span]]:
    """At most BATCH samples of one minute each."""
    message: list[Span] = []
    for span in spans:
        if message and (len(message) == BATCH or span[0] // 60_000_000 != message[0][0] // 60_000_000):
            yield message
            message = []
        message.append(span)
    yield message


def _about(rows: pa.Table) -> dict[str, Any]:
    lists = rows["bucket_index"].combine_chunks()
    buckets = np.diff(lists.offsets.to_numpy())
    gaps = np.diff(lists.values.to_numpy())
    within = np.ones(gaps.size, np.bool_)
    within[lists.offsets.to_numpy()[1:-1] - 1] = False
    counts = rows["bucket_count"].combine_chunks().values.to_numpy()
    bits = _bits(gaps[within]) + _bits(gaps[~within]) + _bits(counts) + _bits(buckets)
    return {
        "rows": rows.num_rows,
        "samples_per_row": float(np.mean(rows["count"].to_numpy())),
        "buckets_per_row": float(np.mean(buckets)),
        "floor_sketch": bits / 8 / rows.num_rows,
    }


def _bits(values: NDArray[Any]) -> float:
    """Entropy, times their number."""
    counts = np.unique(values, return_counts=True)[1]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _stored(url: str, database: str, rows: pa.Table, codecs: list[str]) -> dict[str, float]:
    """Bytes a row, after merging, by group of columns."""
    settings = ClickHouseSettings(url=url, database=database)
    with connect(settings) as client:
        migrate(client, settings)
        # Small parts would be stored in one file, which tells nothing about columns.
        client.command("ALTER TABLE rows_10s MODIFY SETTING min_bytes_for_wide_part = 0")
        for codec in codecs:
            client.command(f"ALTER TABLE rows_10s MODIFY COLUMN {codec}", settings={"allow_suspicious_codecs": 1})
        writer = ClickHouseWriter(url, database=database)
        writer.write("rows_10s", rows.to_batches())
        writer.close()
        client.command("OPTIMIZE TABLE rows_10s FINAL")
        found = client.query(
            "SELECT column, sum(column_data_compressed_bytes) FROM system.parts_columns "
            "WHERE database = {name:String} AND table = 'rows_10s' AND active GROUP BY column",
            parameters={"name": database},
        ).result_rows
        client.command(f"DROP DATABASE {database}", use_database=False)
    sizes = dict.fromkeys(["bytes_per_row", "index", "counts", "sum_min_max", "rest"], 0.0)
    for column, size in found:
        sizes["bytes_per_row"] += size / rows.num_rows
        sizes[GROUPS.get(column, "rest")] += size / rows.num_rows
    return sizes
