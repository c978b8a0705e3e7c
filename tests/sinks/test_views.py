"""The views: each row once and in its fullest version, and what is computed from it."""

import numpy as np
import pyarrow as pa
import pytest
from tailrace_flows.core.sketch import relative_error
from tailrace_schemas.rows import COUNTERS, EVENTS

from tests.sinks.storage import START_S, Storage, distribution, nearest_rank, row

RESOLUTIONS = {"windows": ("rows_10s", 10), "windows_1m": ("rows_1m", 60), "windows_1h": ("rows_1h", 3600),
         "windows_1d": ("rows_1d", 86_400)}  # fmt: skip


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
@pytest.mark.parametrize("merged", [False, True])
def test_the_highest_version_stands_whatever_order_it_comes_in(
    storage: Storage, order: tuple[int, ...], merged: bool
) -> None:
    storage.client.command("SYSTEM STOP MERGES rows_10s")
    for count in order:
        storage.write("rows_10s", [distribution([0.1] * count)])
    if merged:
        storage.client.command("SYSTEM START MERGES rows_10s")
        storage.client.command("OPTIMIZE TABLE rows_10s FINAL")
    assert storage.ask("SELECT count, version, bucket_count FROM windows") == [(3, 3, [3])]
    assert storage.one("SELECT count() FROM rows_10s") == (1 if merged else 3)


@pytest.mark.parametrize("condition", ["count = 1", "bucket_count = [1]", "version < 2", "p99 < 0.15", "max = 0.1"])
def test_a_condition_never_brings_back_an_older_version(storage: Storage, condition: str) -> None:
    """Conditions are moved before FINAL only where all versions agree."""
    storage.client.command("SYSTEM STOP MERGES rows_10s")
    storage.write("rows_10s", [distribution([0.1])])
    assert storage.one(f"SELECT count() FROM windows WHERE {condition}") == 1
    storage.write("rows_10s", [distribution([0.2, 0.3])])
    assert storage.one(f"SELECT count() FROM windows WHERE {condition}") == 0


def test_of_one_series_by_its_attributes_little_is_read(storage: Storage) -> None:
    """And its newest version is found, wherever it is."""
    storage.client.command("SYSTEM STOP MERGES rows_10s")
    for samples, windows in (([0.1], 1_000), ([0.1, 0.2], 1_000), ([0.1, 0.2, 0.3], 1)):
        storage.write(
            "rows_10s",
            [
                distribution(samples, START_S + 10 * window, attributes={"host": f"host-{number}", "region": "eu"})
                for number in range(20)
                for window in range(windows)
            ],
        )
    query = "SELECT count(), min(count), max(count) FROM windows WHERE attributes['host'] = 'host-7'"
    found = storage.client.query(query)
    assert found.result_rows == [(1_000, 2, 3)]
    assert int(found.summary["read_rows"]) < 40_000 / 3


def test_a_later_generation_replaces_a_fuller_row(storage: Storage) -> None:
    storage.write("rows_10s", [distribution([0.1] * 9)])
    storage.write("rows_10s", [distribution([0.1] * 4, generation=1, version=(1 << 48) + 4)])
    storage.write("rows_10s", [distribution([0.1] * 10)])
    assert storage.ask("SELECT count FROM windows") == [(4,)]


def test_streams_series_and_windows_are_apart(storage: Storage) -> None:
    storage.write(
        "rows_10s",
        [
            distribution([0.1]),
            distribution([0.1], stream="replay"),
            distribution([0.1], START_S + 10),
            distribution([0.1], attributes={"host": "a"}),
            distribution([0.1], service="cart"),
            distribution([0.1], START_S + 86_400),
        ],
    )
    assert storage.one("SELECT count() FROM windows") == 6
    assert storage.one("SELECT count() FROM windows WHERE stream = ''") == 5
    assert storage.ask("SELECT stream FROM windows WHERE stream != ''") == [("replay",)]


@pytest.mark.parametrize("view", RESOLUTIONS)
def test_columns_of_each_kind(storage: Storage, view: str) -> None:
    table, seconds = RESOLUTIONS[view]
    samples = np.random.default_rng(7).lognormal(-3, 1, 1000)
    storage.write(
        table,
        [
            distribution(samples, metric="d", unit="s", attributes={"http.route": "/a", "host": "b"}),
            row("gauge", metric="g", count=4, sum=10.0, min=1.0, max=4.0, last=2.0),
            row("counter", metric="c", count=3, sum=6.0, increase=6.0),
            row("cumulative", metric="m", count=2, last=50.0, increase=30.0, resets=1),
            row("cumulative", metric="m", service="first", count=1, last=20.0, resets=0),
            row("event", metric="e", count=2, sum=2.0, increase=2.0),
        ],
    )
    found = {(record["metric"], record["service"]): record for record in storage.records(f"SELECT * FROM {view}")}
    assert {record["window_seconds"] for record in found.values()} == {seconds}
    for record in found.values():
        assert (record["window_end"] - record["window_start"]).total_seconds() == seconds
        assert record["window_start"].timestamp() == START_S

    wanted = {
        "g": {"kind": "gauge", "count": 4, "mean": 2.5, "min": 1.0, "max": 4.0, "last": 2.0, "increase": None},
        "c": {"kind": "counter", "mean": None, "increase": 6.0, "rate": 6.0 / seconds, "min": None, "last": None},
        "m": {"kind": "cumulative", "sum": None, "mean": None, "last": 50.0, "rate": 30.0 / seconds, "resets": 1},
        "e": {"kind": "event", "mean": None, "increase": 2.0, "rate": 2.0 / seconds, "resets": None},
    }
    for metric, columns in wanted.items():
        record = found[metric, "shop"]
        assert {name: record[name] for name in columns} == pytest.approx(columns)
        assert [record[name] for name in ("p50", "p90", "p95", "p99", "p999", "scale")] == [None] * 6
        assert (record["bucket_index"], record["bucket_count"]) == ([], [])
    assert found["m", "first"]["increase"] is None
    assert found["m", "first"]["rate"] is None

    record = found["d", "shop"]
    assert record["attributes"] == {"http.route": "/a", "host": "b"}
    assert (record["unit"], record["scale"], sum(record["bucket_count"])) == ("s", 6, 1000)
    assert record["mean"] == pytest.approx(samples.mean())
    assert (record["last"], record["increase"], record["rate"]) == (None, None, None)
    for name, q in (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999)):
        assert record[name] == pytest.approx(nearest_rank(samples, q), rel=relative_error(6))


def test_quantiles_stay_within_the_exact_bounds(storage: Storage) -> None:
    storage.write("rows_10s", [distribution([0.1037])])
    assert storage.ask("SELECT p50, p999, min, max FROM windows") == [(0.1037,) * 4]


def test_a_condition_on_the_key_reaches_the_index(storage: Storage) -> None:
    """Through the view: a query reads what it asks for, not everything."""
    rows = [
        distribution([0.1], START_S + 10 * number, attributes={"n": str(series)})
        for series in range(20)
        for number in range(400)
    ]
    storage.write("rows_10s", rows)
    storage.client.command("OPTIMIZE TABLE rows_10s FINAL")
    plan = "\n".join(
        line
        for (line,) in storage.ask(
            "EXPLAIN indexes = 1 SELECT p99 FROM windows WHERE metric = 'some.distribution' AND service = 'shop' "
            f"AND series_id = {rows[0]['series_id']} AND window_end > {START_S + 3000}"
        )
    )
    assert "PREWHERE" in plan.upper()
    assert "window_start" in plan
    granules = [line.split()[-1] for line in plan.splitlines() if "Granules: " in line and "/" in line]
    read, all_ = map(int, granules[-1].split("/"))
    assert read <= 2 < all_


def test_read_only_users_can_ask_the_views(storage: Storage) -> None:
    storage.write("rows_10s", [distribution([0.1])])
    result = storage.client.query("SELECT count(), any(p99) FROM windows", settings={"readonly": 1})
    assert result.result_rows[0][0] == 1


def test_events_are_there_once(storage: Storage) -> None:
    event = {
        "event_id": 2**64 - 1, "time": START_S * 1_000_000 + 5, "service": "shop", "name": "deploy",
        "attributes": [("version", "1.2")], "value": 1.0, "unit": "", "stream": "",
    }  # fmt: skip
    twin = event | {"event_id": 6}
    writer = storage.writer()
    for _ in range(3):
        writer.write("event_rows", [pa.RecordBatch.from_pylist([event, twin], schema=EVENTS)])
    writer.close()
    time_us = START_S * 1_000_000 + 5
    assert storage.ask("SELECT event_id, toUnixTimestamp64Micro(time) FROM events ORDER BY event_id") == [
        (6, time_us), (2**64 - 1, time_us),
    ]  # fmt: skip


def test_counters_add_up_the_latest_of_each_scope(storage: Storage) -> None:
    def counter(scope: str, value: int, **more: str) -> dict[str, object]:
        base = {"scope": scope, "service": "shop", "stream": "", "name": "samples", "value": value, "time": value}
        return base | more

    writer = storage.writer()
    for rows in (
        [counter("shard 1", 5), counter("shard 2", 7)],
        [counter("shard 1", 9)],
        [counter("shard 1", 6)],  # an old one, once more
        [counter("shard 1", 2, name="late_samples"), counter("partition 0", 1, service="")],
    ):
        writer.write("counter_rows", [pa.RecordBatch.from_pylist(rows, schema=COUNTERS)])
    writer.close()
    assert storage.ask("SELECT service, name, value, toUnixTimestamp64Micro(time) FROM counters ORDER BY 1, 2") == [
        ("", "samples", 1, 1), ("shop", "late_samples", 2, 2), ("shop", "samples", 16, 9),
    ]  # fmt: skip
