"""Each query of docs/sql.md runs, and answers what numpy says about the same samples."""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from tailrace_flows.core.sketch import codes_of, relative_error
from tailrace_flows.settings import ClickHouseSettings
from tailrace_schemas.rows import COUNTERS, EVENTS
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate
from tailrace_sinks.rollup import rollup

from tests.sinks.storage import START_S, Row, Storage, distribution, nearest_rank, row

PAGE = Path(__file__).parents[2] / "docs" / "sql.md"
NOW_S = START_S + 36 * 3_600  # noon of the second day
DEPLOY_S = NOW_S - 40 * 60 + 3
ROUTES = {"shop": ("/cart", "/pay"), "search": ("/find",), "batch": ("/run",)}
LATENCY = "http.server.request.duration"


class Request(NamedTuple):
    time_s: int
    service: str
    route: str
    status: str
    duration_s: float


def make_requests() -> list[Request]:
    """26 hours; slower after the deploy; `batch` fell silent 20 minutes ago."""
    rng = np.random.default_rng(11)
    requests = []
    for service, routes in ROUTES.items():
        for number, route in enumerate(routes):
            end_s = NOW_S - 1_200 if service == "batch" else NOW_S
            times = np.sort(rng.integers(NOW_S - 26 * 3_600, end_s, 12_000))
            slow = 1.0 + number + (times >= DEPLOY_S) * (service == "shop")
            durations = rng.lognormal(-3, 0.6, times.size) * slow
            failed = rng.random(times.size) < (0.05 if route == "/pay" else 0.01)
            for time_s, duration_s, error in zip(times.tolist(), durations.tolist(), failed.tolist(), strict=True):
                requests.append(Request(time_s, service, route, "500" if error else "200", duration_s))
    return requests


def latency_rows(requests: Iterable[Request], seconds: int, stream: str = "") -> list[Row]:
    groups: dict[tuple[int, str, str, str], list[float]] = {}
    for one in requests:
        key = (one.time_s // seconds * seconds, one.service, one.route, one.status)
        groups.setdefault(key, []).append(one.duration_s)
    return [
        distribution(
            durations, start_s, metric=LATENCY, service=service, unit="s", stream=stream,
            attributes={"http.route": route, "http.response.status_code": status},
        )
        for (start_s, service, route, status), durations in groups.items()
    ]  # fmt: skip


def host_rows() -> list[Row]:
    """Two hosts with unlike numbers of samples, and a counter that begins again."""
    rows = []
    for start_s in range(NOW_S - 7_200, NOW_S, 10):
        for host, count, value in (("a", 2, 0.2), ("b", 6, 0.6)):
            rows.append(
                row(
                    "gauge", start_s, metric="system.cpu.utilization", service="host", unit="1", count=count,
                    attributes={"host.name": host}, sum=count * value, min=value, max=value + 0.1, last=value,
                )
            )  # fmt: skip
        for direction, increase in (("read", 1_000.0), ("write", 50.0)):
            rows.append(
                row(
                    "cumulative", start_s, metric="system.disk.io", service="host", unit="By", count=2,
                    attributes={"disk.io.direction": direction}, last=5.0, increase=increase, resets=0,
                )
            )  # fmt: skip
    return rows


class Data(NamedTuple):
    storage: Storage
    requests: list[Request]

    def durations(self, within: Callable[[Request], bool]) -> list[float]:
        return [one.duration_s for one in self.requests if within(one)]


@pytest.fixture(scope="module")
def data(clickhouse_url: str) -> Iterator[Data]:
    settings = ClickHouseSettings(url=clickhouse_url, database="test_docs")
    requests = make_requests()
    with connect(settings) as client:
        migrate(client, settings)
        storage = Storage(client, settings)
        storage.write("rows_10s", latency_rows((one for one in requests if one.time_s >= NOW_S - 7_200), 10))
        storage.write("rows_10s", host_rows())
        storage.write("rows_1m", latency_rows(requests, 60))
        storage.write("rows_1m", latency_rows(requests[:100], 60, stream="replay-1"))
        events = [
            {
                "event_id": number, "time": time_s * 1_000_000, "service": "shop", "name": "deploy",
                "attributes": [("version", f"1.{number}")], "value": 1.0, "unit": "", "stream": "",
            }
            for number, time_s in enumerate((DEPLOY_S - 9_000, DEPLOY_S))
        ]  # fmt: skip
        counters = [
            {"scope": scope, "service": "shop", "stream": "", "name": name, "value": value, "time": 0}
            for scope, name, value in (("1", "samples", 900), ("1", "late_samples", 3), ("2", "late_samples", 4))
        ]
        writer = storage.writer()
        writer.write("event_rows", [pa.RecordBatch.from_pylist(events, schema=EVENTS)])
        writer.write("counter_rows", [pa.RecordBatch.from_pylist(counters, schema=COUNTERS)])
        writer.close()
        rollup(client, NOW_S * 1_000_000)
        yield Data(storage, requests)


def near(value: float) -> Any:
    return pytest.approx(value, rel=relative_error(6))


def same(value: float) -> Any:
    return pytest.approx(value, rel=1e-9)


def since(seconds: int, service: str = "") -> Callable[[Request], bool]:
    return lambda one: one.time_s >= NOW_S - seconds and service in ("", one.service)


def p99_by_route(data: Data, found: list[Row]) -> None:
    assert [one["route"] for one in found] == ["/pay", "/cart"]
    for one in found:
        durations = data.durations(
            lambda r, route=one["route"]: r.service == "shop" and r.route == route and r.time_s >= NOW_S - 86_400
        )
        assert one == {"route": one["route"], "requests": len(durations), "p99": near(nearest_rank(durations, 0.99))}


def p99_by_minute(data: Data, found: list[Row]) -> None:
    assert len(found) == 60
    for one in found:
        start_s = one["minute"].timestamp()
        durations = data.durations(lambda r, start_s=start_s: r.service == "shop" and r.time_s // 60 * 60 == start_s)
        assert one["p99"] == near(nearest_rank(durations, 0.99))


def slowest(data: Data, found: list[Row]) -> None:
    expected = {service: nearest_rank(data.durations(since(300, service)), 0.99) for service in ("shop", "search")}
    assert [one["service"] for one in found] == sorted(expected, key=lambda service: -expected[service])
    for one in found:
        assert one["p99"] == near(expected[one["service"]])
        assert one["requests_per_second"] == len(data.durations(since(300, one["service"]))) / 300


def several(data: Data, found: list[Row]) -> None:
    assert [one["service"] for one in found] == ["batch", "search", "shop"]
    for one in found:
        durations = data.durations(since(3_600, one["service"]))
        assert (one["fastest"], one["slowest"]) == (min(durations), max(durations))
        assert one["mean"] == same(float(np.mean(durations)))
        assert one["p50"] == near(nearest_rank(durations, 0.5))
        assert one["p90"] == near(nearest_rank(durations, 0.9))
        assert one["p999"] == near(nearest_rank(durations, 0.999))


def several_services(data: Data, found: list[Row]) -> None:
    durations = data.durations(lambda r: r.service != "batch" and r.time_s >= NOW_S - 3_600)
    assert found == [{"p95": near(nearest_rank(durations, 0.95))}]


def around_deploy(data: Data, found: list[Row]) -> None:
    first_after_s = DEPLOY_S // 10 * 10 + 10
    first_s, last_s = (DEPLOY_S - 1_800) // 10 * 10 + 10, (DEPLOY_S + 1_800) // 10 * 10
    before = data.durations(lambda r: r.service == "shop" and first_s <= r.time_s < first_after_s)
    after = data.durations(lambda r: r.service == "shop" and first_after_s <= r.time_s < last_s)
    assert found == [
        {"period": "before", "requests": len(before), "p99": near(nearest_rank(before, 0.99))},
        {"period": "after", "requests": len(after), "p99": near(nearest_rank(after, 0.99))},
    ]
    assert found[1]["p99"] > 1.3 * found[0]["p99"]


def yesterday(data: Data, found: list[Row]) -> None:
    for one, start_s in zip(found, (NOW_S - 3_600, NOW_S - 25 * 3_600), strict=True):
        durations = data.durations(
            lambda r, start_s=start_s: r.service == "shop" and start_s <= r.time_s < start_s + 3_600
        )
        assert one["requests"] == len(durations)
        assert one["p90"] == near(nearest_rank(durations, 0.9))


def each_day(data: Data, found: list[Row]) -> None:
    assert [one["service"] for one in found] == ["batch", "search", "shop"]
    for one in found:
        durations = data.durations(lambda r, one=one: r.service == one["service"] and r.time_s < START_S + 86_400)
        assert one["requests"] == len(durations)
        assert one["p99"] == near(nearest_rank(durations, 0.99))


def error_ratio(data: Data, found: list[Row]) -> None:
    assert len(found) == 3
    for one in found:
        recent = [r for r in data.requests if since(3_600, one["service"])(r)]
        assert one["error_ratio"] == same(np.mean([r.status == "500" for r in recent]))


def within_threshold(data: Data, found: list[Row]) -> None:
    assert len(found) == 3
    for one in found:  # 0.25 is a power of two: exact
        durations = np.array(data.durations(since(86_400, one["service"])))
        assert one["good"] == same(np.mean(durations <= 0.25))


def throughput(data: Data, found: list[Row]) -> None:
    assert len(found) == 60
    assert sum(one["requests_per_second"] for one in found) * 60 == same(len(data.durations(since(3_600, "shop"))))


def busiest(data: Data, found: list[Row]) -> None:
    assert found[0]["samples_per_second"] == 0.6
    assert found[0]["attributes"] == {"host.name": "b"}
    assert len(found) <= 10


def heat_map(data: Data, found: list[Row]) -> None:
    recent = [r for r in data.requests if since(600, "shop")(r)]
    codes = codes_of(np.array([r.duration_s for r in recent]), 3)
    edges = np.exp2((codes + 1) / 8 - 1024)
    expected: dict[tuple[int, float], int] = {}
    for one, edge in zip(recent, edges.tolist(), strict=True):
        key = (one.time_s // 60 * 60, round(edge, 9))
        expected[key] = expected.get(key, 0) + 1
    assert {(int(one["minute"].timestamp()), round(one["at_most"], 9)): one["samples"] for one in found} == expected


def gauge_over_hosts(data: Data, found: list[Row]) -> None:
    assert len(found) == 60
    assert {(round(one["mean"], 9), round(one["highest"], 9), one["hosts"]) for one in found} == {(0.5, 0.7, 2)}


def latest_gauges(data: Data, found: list[Row]) -> None:
    assert [(one["attributes"]["host.name"], one["value"]) for one in found] == [("b", 0.6), ("a", 0.2)]


def counter_rate(data: Data, found: list[Row]) -> None:
    assert len(found) == 120
    assert {(one["direction"], one["bytes_per_second"]) for one in found} == {("read", 100.0), ("write", 5.0)}


def silent(data: Data, found: list[Row]) -> None:
    assert found[-1]["service"] == "batch"
    for one in found:
        newest_s = max(
            r.time_s
            for r in data.requests
            if {"http.route": r.route, "http.response.status_code": r.status} == one["attributes"]
        )
        assert one["last_seen"] == datetime.fromtimestamp(newest_s // 10 * 10 + 10, UTC).replace(
            tzinfo=one["last_seen"].tzinfo
        )


def event_list(data: Data, found: list[Row]) -> None:
    assert [one["version"] for one in found] == ["1.1", "1.0"]


def left_out(data: Data, found: list[Row]) -> None:
    assert found == [{"service": "shop", "stream": "", "name": "late_samples", "value": 7}]


def replayed(data: Data, found: list[Row]) -> None:
    assert [(one["stream"], one["service"], one["samples"]) for one in found] == [("replay-1", "shop", 100)]


CHECKS: dict[str, Callable[[Data, list[Row]], None]] = {
    "p99 by route over a day": p99_by_route,
    "p99 by minute": p99_by_minute,
    "The five slowest services now": slowest,
    "Several quantiles and the exact extremes": several,
    "A percentile over several services": several_services,
    "Before and after the last deploy": around_deploy,
    "This hour against the same hour yesterday": yesterday,
    "p99 of each day": each_day,
    "Error ratio": error_ratio,
    "The share of requests within a threshold": within_threshold,
    "Throughput by minute": throughput,
    "The busiest series": busiest,
    "Data for a heat map": heat_map,
    "A gauge over all hosts": gauge_over_hosts,
    "The latest value of each gauge": latest_gauges,
    "The rate of a counter by minute": counter_rate,
    "Series that fell silent": silent,
    "Events": event_list,
    "What was late, lost or left out": left_out,
    "What a replay has brought": replayed,
}


def queries() -> dict[str, str]:
    found = re.findall(r"^### ([^\n]+)\n(?:(?!^#).)*?```sql\n(.*?)```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return dict(found)


def test_every_query_has_a_check() -> None:
    assert list(queries()) == list(CHECKS)
    assert PAGE.read_text().count("```sql") == len(CHECKS)


@pytest.mark.parametrize("scale", range(9))
def test_a_heat_map_of_any_scale(storage: Storage, scale: int) -> None:
    samples = np.random.default_rng(scale).lognormal(0, 3, 200) * np.tile([1, -1], 100)
    storage.write("rows_10s", [distribution(samples, NOW_S - 60, metric=LATENCY, scale=scale)])
    found = storage.records(queries()["Data for a heat map"].replace("now()", f"toDateTime({NOW_S}, 'UTC')"))
    shown = min(scale, 3)
    codes, counts = np.unique(codes_of(samples, shown), return_counts=True)
    edges = np.sign(codes) * np.exp2((np.abs(codes) + (codes > 0)) / 2**shown - 1024)
    assert [(one["at_most"], one["samples"]) for one in found] == [
        (pytest.approx(edge), count) for edge, count in zip(edges.tolist(), counts.tolist(), strict=True)
    ]


@pytest.mark.parametrize("name", CHECKS)
def test_query(data: Data, name: str) -> None:
    query = queries()[name]
    # The data lies in the past; the queries ask about now.
    query = query.replace("now()", f"toDateTime({NOW_S}, 'UTC')").replace("today()", "toDate('2026-01-02')")
    found = data.storage.records(query)
    assert found
    CHECKS[name](data, found)
