"""Quantiles by SQL over 10 M window rows: 1,000 series, 10 s rows of 28 hours, 1 h rows and 1 d rows of 30 days.

The rows are made in the server: log-normal latencies, 20 to 160 samples a window (65 buckets). Minutes are merged from
them, hours from minutes and days from hours, by the rollup's SQL; hours before the first minute are drawn, 35,000
samples each (300 buckets). Queries go through HTTP, as a dashboard's do. `--cookbook` also runs those of docs/sql.md,
with the end of the rows as now; for them there are gauges and counters of 100 hosts, a deploy, and a replay.
`--copies 9` makes 100 M rows of 10 M: the same ones, on earlier days.
"""

import argparse
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import track
from tailrace_flows.settings import ClickHouseSettings
from tailrace_infra.child import start_child
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.rows import WINDOW_ROWS
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate
from tailrace_sinks.rollup import MERGE, Level, rollup

from benchmarks.common import say

DATABASE = "tailrace_benchmark"
START_S = 1_767_225_600  # 2026-01-01
DAYS = 30
CHUNK = 1_000_000  # rows of one INSERT

# One series: its identity, how many samples a second, and the median of its latency.
_SERIES = """
    {series} AS series,
    'http.server.request.duration' AS metric, concat('service-', toString(series % 50)) AS service,
    cityHash64(series) AS series_id,
    map('http.route', concat('/api/v1/resource/', toString(series)),
        'http.request.method', ['GET', 'POST', 'PUT'][1 + series % 3],
        'http.response.status_code', if(series % 40 < 39, '200', '500')) AS attributes,
    0.02 + cityHash64(series, 'median') % 1000 / 5000 AS median,
    2 + cityHash64(series, 'rate') % 141 / 10 AS per_second
"""

_COLUMNS = """metric, service, series_id, attributes, kind, unit, stream, window_start, count, sum, min, max,
    bucket_index, bucket_count, scale, version"""

# Each sample of a short window is drawn, as its place on the scale of the buckets: 64 to a doubling.
_INSERT_10S = f"""
INSERT INTO rows_10s ({_COLUMNS})
WITH {_SERIES.format(series="number % {series:UInt32}")},
    arraySort(arrayMap(
        i -> 64 * log2(median) + 0.45 * 64 / log(2) * randNormal(0, 1, i), range(toUInt64(10 * per_second)))) AS places,
    arrayMap(place -> toInt32(ceil(place)) - 1 + 1024 * 64, places) AS codes,
    arrayFilter((at, code, after) -> code != after,
        arrayEnumerate(codes), codes, arrayPushBack(arrayPopFront(codes), 0)) AS ends,
    arrayMap((end, begin) -> toUInt64(end - begin), ends, arrayPushFront(arrayPopBack(ends), 0)) AS counts
SELECT metric, service, series_id, attributes, 'distribution', 's', '',
    toDateTime({{start:UInt32}} + 10 * intDiv(number, {{series:UInt32}}), 'UTC'),
    length(codes), arraySum(place -> exp2(place / 64), places), exp2(places[1] / 64), exp2(places[-1] / 64),
    arrayCompact(codes), counts, 6, length(codes)
FROM numbers({{from:UInt64}}, {{rows:UInt64}})
"""

# Some of the rows again, on an earlier day.
_COPY_10S = f"""
INSERT INTO rows_10s ({_COLUMNS})
SELECT {_COLUMNS.replace("window_start", "window_start - {days:UInt32} * 86400")}
FROM rows_10s WHERE window_start >= {{since:UInt32}} AND window_start < {{until:UInt32}}
"""

# What the cookbook asks for besides: a gauge and a counter of each of 100 hosts, by 10 s.
_INSERT_HOSTS = (
    """
    INSERT INTO rows_10s (metric, service, series_id, attributes, kind, unit, stream, window_start,
        count, sum, min, max, last, version)
    SELECT 'system.cpu.utilization', 'host', number % 100, map('host.name', concat('host-', toString(number % 100))),
        'gauge', '1', '', toDateTime({start:UInt32} + 10 * intDiv(number, 100), 'UTC'),
        10, 10 * (rand(1) / 4294967295 AS used), used * 0.9, used, used, 10
    FROM numbers({rows:UInt64})
    """,
    """
    INSERT INTO rows_10s (metric, service, series_id, attributes, kind, unit, stream, window_start,
        count, last, increase, resets, version)
    SELECT 'system.disk.io', 'host', number % 100,
        map('host.name', concat('host-', toString(intDiv(number % 100, 2))),
            'disk.io.direction', ['read', 'write'][1 + number % 2]),
        'cumulative', 'By', '', toDateTime({start:UInt32} + 10 * intDiv(number, 100), 'UTC'),
        10, 1e6 * intDiv(number, 100), rand(1) % 2000000, 0, 10
    FROM numbers({rows:UInt64})
    """,
)
_INSERT_DEPLOY = """
    INSERT INTO event_rows (event_id, time, service, name, attributes, value, unit, stream)
    SELECT 1, toDateTime64({time:UInt32}, 6, 'UTC'), 'service-7', 'deploy', map('version', '1.2'), 1, '', ''
"""
_INSERT_REPLAY = f"""
    INSERT INTO rows_1m ({_COLUMNS})
    SELECT {_COLUMNS.replace("stream", "'a replay'")} FROM rows_1m WHERE service = 'service-7'
"""
_INSERT_COUNTERS = """
    INSERT INTO counter_rows
    SELECT concat('shard ', toString(number % 64)), concat('service-', toString(intDiv(number, 4))), '',
        ['samples', 'late', 'duplicate_batches', 'missing_batches'][1 + number % 4], 1 + number, now64(6, 'UTC')
    FROM numbers(200)
"""
_MINUTES = Level("rows_10s", "rows_1m", 60, "toStartOfMinute", "toDate")

# A long window has so many that each bucket's count is drawn.
_INSERT_1H = f"""
INSERT INTO rows_1h ({_COLUMNS})
WITH {_SERIES.format(series="number % {series:UInt32}")},
    0.45 * 64 / log(2) AS deviation,
    arrayMap(i -> i - 4 * deviation, range(toUInt64(8 * deviation))) AS places,
    3600 * per_second / (2.5066 * deviation) AS peak,
    arrayMap(place -> peak * exp(-pow(place / deviation, 2) / 2), places) AS expected,
    arrayMap(n -> toInt64(round(n + sqrt(n) * randNormal(0, 1, n))), expected) AS drawn,
    tailrace_bucket_code(median, 6) AS middle,
    arrayFilter((code, n) -> n > 0, arrayMap(place -> middle + toInt32(place), places), drawn) AS codes,
    arrayMap(n -> toUInt64(n), arrayFilter(n -> n > 0, drawn)) AS counts
SELECT metric, service, series_id, attributes, 'distribution', 's', '',
    toDateTime({{start:UInt32}} + 3600 * intDiv(number, {{series:UInt32}}), 'UTC'),
    arraySum(counts) AS total, total * median, median / 6, median * 6, codes, counts, 6, total
FROM numbers({{from:UInt64}}, {{rows:UInt64}})
"""


class Case(NamedTuple):
    """A query and its goal."""

    name: str
    view: str
    series: int
    """1: of one; 0: all together."""
    since_s: int
    goal_s: float | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=10_000_000, help="10 s rows (default: 10 M)")
    parser.add_argument("--series", type=int, default=1_000)
    parser.add_argument("--copies", type=int, default=0, help="of the 10 s rows, on earlier days")
    parser.add_argument("--cookbook", action="store_true", help="also the queries of docs/sql.md")
    parser.add_argument("--runs", type=int, default=20, help="of each query")
    parser.add_argument("--url", help="a ClickHouse server to use instead of the embedded one")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Fills a database of its own, measures, drops it."""
    with _server(options.url) as url:
        settings = ClickHouseSettings(url=url, database=DATABASE)
        with connect(settings) as client:
            client.command(f"DROP DATABASE IF EXISTS {DATABASE}", use_database=False)
            migrate(client, settings)
            try:
                return _measure(client, options)
            finally:
                client.command(f"DROP DATABASE {DATABASE}", use_database=False)


@contextmanager
def _server(url: str | None) -> Iterator[str]:
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory, "clickhouse.log")
        child = start_child(
            "tailrace_infra.clickhouse", "--data-dir", f"{directory}/data", "--port", "0", log=log, timeout_s=60.0
        )
        try:
            yield f"http://127.0.0.1:{child.ready['port']}"
        finally:
            child.stop()


def _measure(client: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    series, windows = options.series, options.rows // options.series
    end_s = START_S + DAYS * 86_400
    begin_s = end_s - 10 * windows
    _fill(client, "10 s rows", _INSERT_10S, series, series * windows, begin_s)
    _merge_minutes(client, series, begin_s, end_s)
    _copy(client, options, begin_s, end_s)
    if options.cookbook:
        for insert in _INSERT_HOSTS:
            client.command(insert, parameters={"start": begin_s, "rows": 100 * windows})
        client.command(_INSERT_DEPLOY, parameters={"time": end_s - 2_400})
        client.command(_INSERT_REPLAY)
        client.command(_INSERT_COUNTERS)
    _fill(client, "1 h rows", _INSERT_1H, series, series * ((begin_s - START_S) // 3600), START_S)
    rolled_up = _time_rollup(client, series, end_s)
    _settle(client)
    cases = [
        Case("p99, last hour", "windows", 1, end_s - 3_600, 0.1),
        Case("p99, last hour", "windows", series, end_s - 3_600, 0.5),
        Case("p99, 30 days", "windows_1h", 1, START_S, 0.05),
        Case("p99, 30 days", "windows_1d", series, START_S, 0.5),
        Case("p99, 30 days", "windows_1h", series, START_S, None),
        Case("p99, all 10 s rows", "windows", series, begin_s, None),
        Case("p99 of all, all 10 s rows", "windows", 0, begin_s, None),
        Case("p99 of all, the same time", "windows_1h", 0, begin_s // 3600 * 3600, 0.5),
        Case("p99 of all, 30 days", "windows_1d", 0, START_S, 0.5),
    ]
    results = [_time(client, case, options.runs if case.goal_s else 3) for case in cases]
    if options.cookbook:
        results += _cookbook(client, options, end_s)
    return [*results, rolled_up]


def _cookbook(client: Any, options: argparse.Namespace, end_s: int) -> list[dict[str, Any]]:
    """Each query under the heading Queries, over services that there are, as of the rows' end."""
    text = Path(__file__).parent.parent.joinpath("docs", "sql.md").read_text().split("## Queries")[1].split("\n## ")[0]
    results = []
    for name, query in re.findall(r"### ([^\n]+)\n.*?```sql\n(.*?)```", text, re.DOTALL):
        for there, here in (
            ("now()", f"toDateTime({end_s}, 'UTC')"), ("today()", f"toDate({end_s})"),
            ("'shop'", "'service-7'"), ("'search'", "'service-8'"),
        ):  # fmt: skip
            query = query.replace(there, here)
        say(f"{name} ...")
        first = _seconds(lambda query=query: client.query(query))
        runs = options.runs if first < 1 else 3
        times = sorted(_seconds(lambda query=query: client.query(query)) for _ in range(runs))
        results.append(
            {"benchmark": "query", "query": name, "system": "docs/sql.md", "series": options.series,
             "rows": options.rows * (1 + options.copies), "seconds_p50": statistics.median(times),
             "seconds_p99": times[-1 - len(times) // 100], "goal_s": None}
        )  # fmt: skip
    return results


def _fill(client: Any, what: str, insert: str, series: int, rows: int, start_s: int) -> None:
    say(f"making {rows:,} {what}")
    for start in track(range(0, rows, CHUNK), description=what, transient=True):
        client.command(
            insert,
            parameters={"series": series, "start": start_s, "from": start, "rows": min(CHUNK, rows - start)},
        )


def _merge_minutes(client: Any, series: int, begin_s: int, end_s: int) -> None:
    say("merging them into 1 m rows")
    merge = MERGE.format(**_MINUTES._asdict(), columns=", ".join(WINDOW_ROWS.names))
    step_s = max(60, CHUNK // series * 10 // 60 * 60)

    def part(start: int) -> None:
        end = min(start + step_s, end_s)
        client.command(merge, parameters={"starts": [*range(start, end, 60)], "first": start, "end": end})

    with ThreadPoolExecutor(2) as pool:  # each keeps one core busy
        list(pool.map(part, range(begin_s // 60 * 60, end_s, step_s)))


def _copy(client: Any, options: argparse.Namespace, begin_s: int, end_s: int) -> None:
    """In pieces, so that neither memory nor the time of one statement grows with the rows."""
    step_s = max(10, CHUNK // options.series * 10)
    for copy in range(1, options.copies + 1):
        say(f"copying them, {copy} of {options.copies}")
        days = copy * (1 + (end_s - begin_s) // 86_400)
        for start in range(begin_s, end_s, step_s):
            until = min(start + step_s, end_s)
            client.command(_COPY_10S, parameters={"days": days, "since": start, "until": until})


def _settle(client: Any) -> None:
    """Until the server merges no more, for at most five minutes."""
    say("waiting for background merges")
    deadline_s = monotonic_s() + 300
    quiet = 0
    while monotonic_s() < deadline_s and quiet < 5:  # the next one begins seconds after the last
        quiet = 0 if client.command("SELECT count() FROM system.merges") else quiet + 1
        client.command("SELECT sleep(1)")


def _time_rollup(client: Any, series: int, end_s: int) -> dict[str, Any]:
    say("rolling up 1 d rows")
    seconds = _seconds(lambda: rollup(client, (end_s + 86_400) * 1_000_000))
    rows = client.command("SELECT count() FROM rows_1h")
    return {
        "benchmark": "query", "query": "rollup of 30 days", "system": "rows_1h", "series": series, "rows": rows,
        "seconds_p50": seconds, "seconds_p99": None, "goal_s": None,
    }  # fmt: skip


def _time(client: Any, case: Case, runs: int) -> dict[str, Any]:
    only = "AND service = 'service-7' AND attributes['http.route'] = '/api/v1/resource/7'" if case.series == 1 else ""
    where = f"metric = 'http.server.request.duration' AND window_start >= {case.since_s} {only}"
    by = "service, attributes['http.route']" if case.series else "1"
    query = f"""
        SELECT {by}, sum(count), tailrace_quantile(0.99, bucket_index, bucket_count, scale) AS p99
        FROM {case.view} WHERE {where} GROUP BY {by}"""
    found = client.query(query).row_count  # also warms the caches
    if found != (case.series or 1):
        raise RuntimeError(f"{case}: {found} series")
    times = sorted(_seconds(lambda: client.query(query)) for _ in range(runs))
    return {
        "benchmark": "query", "query": case.name, "system": case.view, "series": case.series,
        "rows": client.command(f"SELECT count() FROM {case.view} WHERE {where}"),
        "seconds_p50": statistics.median(times), "seconds_p99": times[-1 - len(times) // 100], "goal_s": case.goal_s,
    }  # fmt: skip


def _seconds(action: Callable[[], Any]) -> float:
    start_s = monotonic_s()
    action()
    return monotonic_s() - start_s
