"""Measurements of real systems, from their files through Kafka and the flow into ClickHouse, read back by SQL.

What must come out is worked out from the files by numpy, and was worked out by others (`window_percentiles.json`).
"""

import csv
import gzip
import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from tailrace_infra.broker import embedded_broker as serve_broker
from tailrace_producers.replay import ReplayOptions
from tailrace_schemas.samples import SampleBatch, decode

from tests.data import data_file, reference
from tests.infra.waiting import eventually
from tests.system.harness import Bench, bench
from tests.system.workload import assert_same, stored_rows

ERROR = 0.0055
"""The relative error of a quantile that is stated for scale 6."""
QUANTILES = {"p50": 500, "p90": 900, "p95": 950, "p99": 990, "p999": 999}
"""In thousandths, so that ranks are whole numbers."""

Name = tuple[str, str, tuple[tuple[str, str], ...]]
"""(service, metric, attributes)."""
Key = tuple[str, str, tuple[tuple[str, str], ...], int]
"""A name and the start of a window."""


class Sample(NamedTuple):
    """One sample, or so many equal ones."""

    name: Name
    time_us: int
    value: float
    count: int = 1


def lines_of(path: Path) -> Iterator[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        yield from csv.DictReader(file)


HISTOGRAM = ReplayOptions(
    metric="pause", unit="us", time_column="interval_start_s", value_column="value_lowest", count_column="count",
    attribute_columns=(), service="measured",
)  # fmt: skip


def histogram(path: Path) -> Iterator[Sample]:
    """The file that HISTOGRAM describes."""
    for line in lines_of(path):
        time_us = int(Decimal(line["interval_start_s"]) * 1_000_000)
        yield Sample(("measured", "pause", ()), time_us, float(line["value_lowest"]), int(line["count"]))


SPANS = ReplayOptions(
    metric="span.duration", unit="us", time_column="end_unix_ns", time_unit="ns", value_column="duration_us",
    service_column="pod", attribute_columns=("operation",),
)  # fmt: skip


def spans(path: Path) -> Iterator[Sample]:
    """The file that SPANS describes."""
    for line in lines_of(path):
        name = (line["pod"], "span.duration", (("operation", line["operation"]),))
        yield Sample(name, int(line["end_unix_ns"]) // 1000, float(line["duration_us"]))


def windows_of(samples: Iterable[Sample], seconds: int) -> dict[Key, NDArray[np.float64]]:
    """The sorted values of each series and window."""
    values: dict[Key, list[float]] = defaultdict(list)
    for name, time_us, value, count in samples:
        start = time_us // 1_000_000
        values[(*name, start - start % seconds)] += [value] * count
    return {key: np.sort(np.array(found)) for key, found in values.items()}


def rows_of(b: Bench, stream: str, view: str = "windows") -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows of a stream, without its name."""
    rows = stored_rows(b.clickhouse, view).items()
    return {(key[0], *key[2:]): row for key, row in rows if key[1] == stream}


def assert_windows(b: Bench, stream: str, samples: list[Sample]) -> None:
    """Both tables hold exactly the windows of the samples."""
    for view, seconds in (("windows", 10), ("windows_1m", 60)):
        expected = windows_of(samples, seconds)
        columns = "service, metric, attributes, toUnixTimestamp(window_start), count, min, max, sum, mean"
        query = f"SELECT {columns}, {', '.join(QUANTILES)} FROM {view} WHERE stream = {{stream:String}}"
        found = b.clickhouse.query(query, parameters={"stream": stream}).result_rows
        assert len(found) == len(expected)
        for service, metric, attributes, start, count, least, greatest, total, mean, *quantiles in found:
            values = expected[service, metric, tuple(sorted(attributes.items())), start]
            assert (count, least, greatest) == (values.size, values[0], values[-1])
            assert total == pytest.approx(values.sum(), rel=1e-9, abs=0)
            assert mean == pytest.approx(values.mean(), rel=1e-9, abs=0)
            for thousandths, quantile in zip(QUANTILES.values(), quantiles, strict=True):
                exact = values[max(1, -(-thousandths * count // 1000)) - 1]
                assert abs(quantile - exact) <= ERROR * exact, (service, start, thousandths, quantile, exact)


MERGED = """
SELECT toUnixTimestamp(window_start) AS window_start, sum(count) AS n, min(min) AS min, max(max) AS max,
       sum(sum) / sum(count) AS mean, {quantiles}
FROM {view} WHERE stream = '{stream}' GROUP BY window_start ORDER BY window_start
"""


def merged_query(view: str, stream: str, quantiles: list[float]) -> str:
    """The windows of all services and series together."""
    columns = [f"tailrace_quantile({q}, bucket_index, bucket_count, scale) AS q{i}" for i, q in enumerate(quantiles)]
    return MERGED.format(quantiles=", ".join(columns), view=view, stream=stream)


def assert_reference(rows: list[dict[str, Any]], case: dict[str, Any]) -> None:
    """Rows of `merged_query`, against results that no code of ours has made."""
    assert [row["window_start"] for row in rows] == [window["window_start"] for window in case["windows"]]
    for row, window in zip(rows, case["windows"], strict=True):
        assert (row["n"], row["min"], row["max"]) == (window["n"], window["min"], window["max"])
        assert row["mean"] == pytest.approx(window["mean"], rel=1e-9, abs=0)
        for number, (low, high) in enumerate(window["bracket"]):
            assert low * (1 - ERROR) <= row[f"q{number}"] <= high * (1 + ERROR), (window["window_start"], number)


def reference_case(name: str) -> dict[str, Any]:
    found = [parameter.values[0] for parameter in reference("window_percentiles")]
    return next((case for case in found if case.get("id") == name), {}) or pytest.skip("no window_percentiles.json")


def query_rows(b: Bench, query: str) -> list[dict[str, Any]]:
    return list(b.clickhouse.query(query).named_results())


@pytest.fixture(scope="module")
def running(clickhouse_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A bench whose flow runs; each test has streams of its own."""
    with (
        serve_broker() as servers,
        bench(servers, clickhouse_url, tmp_path_factory.mktemp("replay"), "data", "replay") as b,
    ):
        flow = b.start_flow()
        yield b
        assert flow.stop() == 0


@pytest.fixture(scope="module")
def nezha(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The spans of three minutes of an online shop, in the order in which they ended."""
    names = ["2022-08-22_03_53", "2022-08-22_03_54", "2022-08-22_03_55"]
    return [line for name in names for line in lines_of(data_file(f"latency/nezha_traces/{name}.csv.gz"))]


@pytest.fixture(scope="module")
def undisturbed(running: Bench, nezha: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of those spans, that was replayed as the stream `undisturbed`."""
    path = write_csv(tmp_path_factory.mktemp("nezha") / "spans.csv", nezha)
    running.await_stream(running.replay(path, "undisturbed", SPANS))
    return path


def write_csv(path: Path, lines: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def shuffled(lines: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
    """Each line up to 2 s later than its turn: what the default disorder allows."""
    rng = random.Random(seed)
    return sorted(lines, key=lambda line: int(line["end_unix_ns"]) + rng.randrange(2_000_000_000))


# -- what is stored is what the files hold ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "read"),
    [
        ("hdr/jhiccup_v0", HISTOGRAM, histogram),
        ("hdr/jhiccup_v2", HISTOGRAM, histogram),
        ("nezha_traces/2023-01-29_08_45", SPANS, spans),
        ("nezha_traces/2023-01-29_08_52", SPANS, spans),
    ],
)
def test_the_windows_of_a_file_are_those_of_its_samples(
    running: Bench, name: str, options: ReplayOptions, read: Callable[[Path], Iterable[Sample]]
) -> None:
    path = data_file(f"latency/{name}.csv.gz")
    samples = list(read(path))
    sent = running.replay(path, name, options)
    assert (sent.samples, sent.bad_lines) == (sum(sample.count for sample in samples), {})
    running.await_stream(sent)
    assert_windows(running, name, samples)


def test_the_command_replays_a_file_and_sql_reads_it_back(tmp_path: Path) -> None:
    pytest.importorskip("chdb")
    path, stack = data_file("latency/hdr/ycsb_read_first300s.csv.gz"), ["--data-dir", str(tmp_path / "data")]

    def tailrace(*arguments: str) -> Any:
        command = [sys.executable, "-m", "tailrace_infra.cli", *arguments, *stack, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    figures = tailrace(
        "replay", str(path), "--embedded", "--metric", "read", "--unit", "us", "--time-column", "interval_start_s",
        "--value-column", "value_lowest", "--count-column", "count", "--attribute-columns", "", "--stream", "ycsb",
    )  # fmt: skip
    case = reference_case("ycsb_10s")
    found = {row["figure"]: row["value"] for row in figures}
    assert int(found["samples"]) == case["overall"]["n"]
    assert_reference(tailrace("sql", merged_query("windows", "ycsb", case["quantiles"])), case)


def test_the_spans_of_all_services_together_have_the_reference_quantiles(running: Bench, undisturbed: Path) -> None:
    case = reference_case("nezha_all_spans_10s")
    assert_reference(query_rows(running, merged_query("windows", "undisturbed", case["quantiles"])), case)
    assert_windows(running, "undisturbed", list(spans(undisturbed)))


def test_root_spans_have_the_reference_quantiles(running: Bench, nezha: list[dict[str, str]], tmp_path: Path) -> None:
    case = reference_case("nezha_root_spans_60s")
    path = write_csv(tmp_path / "roots.csv", [line for line in nezha if line["parent_id"] == "root"])
    running.await_stream(running.replay(path, "roots", SPANS))
    assert_reference(query_rows(running, merged_query("windows_1m", "roots", case["quantiles"])), case)


ACCESS = re.compile(r'\S+ \S+ \S+ \[([^]]+)\] "(\S+)[^"]*" (\d{3}) (\S+)')


def test_an_access_log_gives_requests_and_sizes_by_method_and_status(running: Bench) -> None:
    path = data_file("latency/apache_access_first5000.log.gz")
    requests: dict[Key, int] = defaultdict(int)
    sizes = []
    with gzip.open(path, "rt") as file:
        for line in file:
            found = ACCESS.match(line)
            assert found is not None
            time_us = int(datetime.strptime(found[1], "%d/%b/%Y:%H:%M:%S %z").timestamp()) * 1_000_000
            attributes = (("http.request.method", found[2]), ("http.response.status_code", found[3]))
            start = time_us // 1_000_000 // 10 * 10
            requests["web", "http.server.requests", attributes, start] += 1
            size = 0.0 if found[4] == "-" else float(found[4])  # Apache's way to say that there was no body
            sizes.append(Sample(("web", "http.server.response.body.size", attributes), time_us, size))
    sent = running.replay(path, "access", ReplayOptions(service="web", path_segments=0))
    assert sent.lines == sum(requests.values()) == 5_000
    running.await_stream(sent)
    stored = rows_of(running, "access")
    counted = {key: row for key, row in stored.items() if key[1] == "http.server.requests"}
    assert {key: row["increase"] for key, row in counted.items()} == requests
    expected = windows_of(sizes, 10)
    measured = {key: row for key, row in stored.items() if key[1] == "http.server.response.body.size"}
    assert {key: (row["count"], row["min"], row["max"], row["sum"]) for key, row in measured.items()} == {
        key: (values.size, values[0], values[-1], values.sum()) for key, values in expected.items()
    }


# -- disturbances leave the same windows ------------------------------------------------------------


def test_a_replay_shuffled_within_the_disorder_leaves_the_same_windows(
    running: Bench, undisturbed: Path, nezha: list[dict[str, str]], tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "shuffled.csv", shuffled(nezha, seed=1))
    running.await_stream(running.replay(path, "shuffled", SPANS))
    for view in ("windows", "windows_1m"):
        assert_same(rows_of(running, "shuffled", view), rows_of(running, "undisturbed", view))


def stream_counters(b: Bench, stream: str) -> dict[str, int]:
    query = "SELECT name, sum(value) FROM counters WHERE stream = {stream:String} GROUP BY name"
    return {name: int(value) for name, value in b.clickhouse.query(query, parameters={"stream": stream}).result_rows}


def test_a_file_replayed_twice_leaves_the_same_windows_and_counts_the_duplicates(
    running: Bench, nezha: list[dict[str, str]], tmp_path: Path
) -> None:
    path = write_csv(tmp_path / "twice.csv", nezha)
    first = running.replay(path, "twice", SPANS)
    running.await_stream(first)
    before = {view: rows_of(running, "twice", view) for view in ("windows", "windows_1m")}
    running.replay(path, "twice", SPANS)
    expected = {
        "samples": first.samples, "duplicate_samples": first.samples, "duplicate_batches": first.batches,
        "ended": len(first.services),
    }  # fmt: skip
    eventually(lambda: stream_counters(running, "twice") == expected, 60)
    for view, rows in before.items():
        assert_same(rows_of(running, "twice", view), rows)


def test_batches_duplicated_on_the_topic_leave_the_same_windows(
    running: Bench, undisturbed: Path, embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    rng = random.Random(2)
    sent: dict[str, list[bytes]] = defaultdict(list)
    messages: list[tuple[str, bytes]] = []
    doubled = 0
    for record in running.read_topic(running.settings.kafka.topics.samples):
        value = record.value()
        batch = decode(value)
        assert isinstance(batch, SampleBatch)
        if batch.stream == "undisturbed":
            sent[batch.service].append(value)
            messages.append((batch.service, value))
            for _ in range(rng.randrange(3)):
                # Its own, or one that came long before.
                messages.append((batch.service, rng.choice(sent[batch.service])))
                doubled += 1
    with bench(embedded_broker, clickhouse_url, tmp_path, "doubled", "snapshot") as b:
        b.send(b.producer(), messages)
        flow = b.start_flow()
        try:
            b.await_ended(len(sent))
            eventually(lambda: b.counters().get("duplicate_batches") == doubled, 60)
        finally:
            assert flow.stop() == 0
        for view in ("windows", "windows_1m"):
            assert_same(rows_of(b, "undisturbed", view), rows_of(running, "undisturbed", view))


def kill_once_counted(b: Bench, more_than: int) -> int:
    """Starts the flow and kills it when it has counted more samples than that; how many."""
    flow = b.start_flow()
    try:
        return eventually(lambda: (count := b.counters().get("samples", 0)) > more_than and count, 60)
    finally:
        flow.process.kill()
        flow.stop()


def test_a_replay_in_which_the_flow_is_killed_leaves_the_same_windows(
    running: Bench, undisturbed: Path, embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with (
        bench(embedded_broker, clickhouse_url, tmp_path, "killed", "snapshot") as b,
        ThreadPoolExecutor(1) as pool,
    ):
        # 180 s of spans in 15 s, for a start takes seconds on a busy machine. Paced, it waits while there is no flow.
        replaying = pool.submit(b.replay, undisturbed, "killed", SPANS, 12.0)
        stored = kill_once_counted(b, more_than=0)
        stored = kill_once_counted(b, more_than=stored)
        flow = b.start_flow()
        try:
            sent = replaying.result(60)
            b.await_stream(sent)
        finally:
            assert flow.stop() == 0
        assert stored < sent.samples, "the kills were to come in the middle"
        assert b.counters() == {"samples": sent.samples, "ended": len(sent.services)}
        for view in ("windows", "windows_1m"):
            assert_same(rows_of(b, "killed", view), rows_of(running, "undisturbed", view))
