"""The rollup: hours from minutes, days from hours; exact, repeatable, and aware of what came late."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from tailrace_flows.core.config import MAX_GENERATION
from tailrace_flows.core.sketch import downscale
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.rollup import GRACE_S, rollup

from tests.sinks.faults import Answer, proxy_to
from tests.sinks.storage import START_S, Row, Storage, distribution, row

HOUR = 3_600
DAY = 86_400


def us(seconds: float) -> int:
    return int(seconds * 1_000_000)


def minutes(seed: int, hours: float, start_s: int = START_S) -> list[Row]:
    """Rows of all kinds, some missing, sketches of several scales."""
    rng = np.random.default_rng(seed)
    rows = []
    total = 100.0
    for at in range(start_s, start_s + round(hours * HOUR), 60):
        for service in ("shop", "cart"):
            if rng.random() < 0.8:
                samples = rng.lognormal(-3, 0.5, rng.integers(1, 20)) * rng.choice([1.0, -1.0], p=[0.9, 0.1])
                scale = int(rng.choice([6, 6, 6, 4, 8])) if service == "cart" else 6
                rows.append(distribution(samples, at, scale=scale, service=service, attributes={"a": "b"}))
        low, high = sorted(rng.integers(0, 100, 2).tolist())
        if rng.random() < 0.9:
            rows.append(
                row("gauge", at, count=2, sum=float(low + high), min=float(low), max=float(high), last=float(low))
            )
            rows.append(row("counter", at, count=3, sum=float(high), increase=float(high), stream="replay"))
            first = total == 100.0
            total += high
            resets = int(rng.integers(0, 2))
            increase = None if first else float(high)
            version = int(total)  # of all points so far
            rows.append(row("cumulative", at, count=1, last=total, increase=increase, resets=resets, version=version))
    return rows


def merged(rows: list[Row], seconds: int) -> list[dict[str, Any]]:
    """What the longer windows must hold, without NULLs, ordered."""
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for one in rows:
        start_s = int(one["window_start"].timestamp()) // seconds * seconds
        groups[one["metric"], one["service"], one["series_id"], one["stream"], start_s].append(one)
    result = []
    for (metric, service, series_id, stream, start_s), group in sorted(groups.items()):
        group.sort(key=lambda one: one["window_start"])

        def present(name: str, group: list[Row] = group) -> list[Any]:
            return [one[name] for one in group if one[name] is not None]

        expected: dict[str, Any] = {
            "metric": metric, "service": service, "series_id": series_id, "stream": stream, "start": start_s,
            "attributes": group[0]["attributes"], "kind": group[0]["kind"], "unit": group[0]["unit"],
            "count": sum(present("count")), "version": sum(present("version")),
        }  # fmt: skip
        for name, merge in (("sum", sum), ("min", min), ("max", max), ("increase", sum), ("resets", sum)):
            if present(name):
                expected[name] = merge(present(name))
        if present("last"):
            expected["last"] = present("last")[-1]
        if present("scale"):
            expected["scale"] = scale = min(present("scale"))
            buckets: dict[int, int] = defaultdict(int)
            for one in group:
                codes = downscale(np.array(one["bucket_index"]), one["scale"] - scale)
                for code, count in zip(codes.tolist(), one["bucket_count"], strict=True):
                    buckets[code] += count
            expected["buckets"] = sorted(buckets.items())
        result.append(expected)
    return result


def stored(storage: Storage, view: str) -> list[dict[str, Any]]:
    """The same, as the view has it."""
    records = storage.records(
        f"""SELECT metric, service, series_id, stream, toUnixTimestamp(window_start) AS start, attributes, kind, unit,
        count, version, sum, min, max, increase, resets, last, scale, arrayZip(bucket_index, bucket_count) AS buckets
        FROM {view} ORDER BY metric, service, series_id, stream, start"""
    )
    return [{name: value for name, value in record.items() if value is not None and value != []} for record in records]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.pop("sum", 0.0) == pytest.approx(other.pop("sum", 0.0), rel=1e-9)
        assert one == other


def age(storage: Storage, table: str, seconds: int) -> None:
    """As if all rows had been stored so long ago."""
    storage.client.command(
        f"ALTER TABLE {table} UPDATE stored_at = stored_at - {seconds} WHERE 1 SETTINGS mutations_sync = 1"
    )


@pytest.mark.parametrize("seed", range(3))
def test_hours_and_days_hold_all_of_their_minutes(storage: Storage, seed: int) -> None:
    rows = minutes(seed, hours=26)
    storage.write("rows_1m", rows)
    assert rollup(storage.client, us(START_S + 10 * DAY)) == 26 + 2
    assert_same(stored(storage, "windows_1h"), merged(rows, HOUR))
    assert_same(stored(storage, "windows_1d"), merged(rows, DAY))


def test_an_hour_is_merged_when_it_has_ended(storage: Storage) -> None:
    rows = minutes(1, hours=2.5)
    storage.write("rows_1m", rows)
    assert rollup(storage.client, us(START_S + 2 * HOUR + GRACE_S - 1)) == 1
    assert_same(stored(storage, "windows_1h"), merged(rows[: len([r for r in rows if before(r, HOUR)])], HOUR))
    assert rollup(storage.client, us(START_S + 2 * HOUR + GRACE_S)) >= 1
    assert_same(stored(storage, "windows_1h"), merged([r for r in rows if before(r, 2 * HOUR)], HOUR))
    assert storage.one("SELECT count() FROM windows_1d") == 0


def before(one: Row, seconds: int) -> bool:
    return bool(one["window_start"].timestamp() < START_S + seconds)


def test_an_hour_that_ends_long_after_its_last_row_was_stored(storage: Storage) -> None:
    """As after a stop in the middle of an hour."""
    rows = minutes(2, hours=0.5)
    storage.write("rows_1m", rows)
    assert rollup(storage.client, us(START_S + 0.6 * HOUR)) == 0
    age(storage, "rows_1m", DAY)
    assert rollup(storage.client, us(START_S + 3 * HOUR)) == 1
    assert_same(stored(storage, "windows_1h"), merged(rows, HOUR))


def test_repeating_changes_nothing_and_old_hours_are_left_alone(storage: Storage) -> None:
    rows = minutes(3, hours=25)
    storage.write("rows_1m", rows)
    now_us = us(START_S + 3 * DAY)
    rollup(storage.client, now_us)
    first = stored(storage, "windows_1h"), stored(storage, "windows_1d")
    assert rollup(storage.client, now_us) == 25 + 2  # stored just now: looked at again
    assert (stored(storage, "windows_1h"), stored(storage, "windows_1d")) == first
    age(storage, "rows_1m", DAY)
    age(storage, "rows_1h", DAY)
    assert rollup(storage.client, now_us) == 0
    assert (stored(storage, "windows_1h"), stored(storage, "windows_1d")) == first


def test_a_late_row_makes_its_hour_and_day_new(storage: Storage) -> None:
    rows = minutes(4, hours=3)
    storage.write("rows_1m", rows)
    now_us = us(START_S + 3 * DAY)
    rollup(storage.client, now_us)
    age(storage, "rows_1m", DAY)
    age(storage, "rows_1h", DAY)
    number = next(n for n, one in enumerate(rows) if one["kind"] == "distribution" and one["service"] == "shop")
    old = rows[number]
    again = distribution([0.5] * (old["count"] + 1), int(old["window_start"].timestamp()), attributes={"a": "b"})
    assert again["series_id"] == old["series_id"]
    rows[number] = again
    new = distribution([0.25], START_S + 2 * HOUR, service="new")
    storage.write("rows_1m", [again, new])
    assert rollup(storage.client, now_us) == 2 + 1
    assert_same(stored(storage, "windows_1h"), merged([*rows, new], HOUR))
    assert_same(stored(storage, "windows_1d"), merged([*rows, new], DAY))


def test_a_rebuilt_generation_wins(storage: Storage) -> None:
    """Fewer samples, but raised by an operator: minute by minute, so that in between the hour is of both."""
    old = [distribution([0.1] * 50, START_S + 60 * number) for number in range(3)]
    new = [distribution([0.2] * 5, START_S + 60 * number, version=(1 << 48) + 5, generation=1) for number in range(3)]
    storage.write("rows_1m", old)
    rollup(storage.client, us(START_S + DAY))
    for done in range(1, 4):
        storage.write("rows_1m", [new[done - 1]])
        rollup(storage.client, us(START_S + DAY))
        assert storage.one("SELECT count FROM windows_1h") == 5 * done + 50 * (3 - done)


def test_the_last_minute_of_a_day_counts_in_every_generation(storage: Storage) -> None:
    late = [row("counter", START_S + 60 * n, sum=1.0, increase=1.0, generation=MAX_GENERATION) for n in range(1440)]
    for one in late:
        one["version"] += 1 << 40  # as of a cumulative counter, whose version is the number of all its points
    for part in (late[:1424], late[1424:1439], late[1439:]):
        storage.write("rows_1m", part)
        rollup(storage.client, us(START_S + 2 * DAY))
    assert storage.one("SELECT sum FROM windows_1d") == 1440


def test_replays_of_long_ago_are_merged_too(storage: Storage) -> None:
    rollup(storage.client, us(START_S + 30 * DAY))
    rows = minutes(5, hours=1, start_s=START_S - 3000 * DAY)
    storage.write("rows_1m", rows)
    assert rollup(storage.client, us(START_S + 30 * DAY)) == 2
    assert_same(stored(storage, "windows_1h"), merged(rows, HOUR))


@pytest.mark.parametrize(("server_s", "host_s"), [(5 * HOUR, 0), (0, 5 * HOUR), (5 * HOUR, 5 * HOUR)])
def test_hours_after_a_clock_was_set_back_are_merged(storage: Storage, server_s: int, host_s: int) -> None:
    """What ran while it was ahead has recorded a time that is still to come, on disk for good."""
    now_s = storage.one("SELECT toUnixTimestamp(toStartOfHour(now()))")
    for name, seconds in (("rows_1h", HOUR), ("rows_1d", DAY)):
        windows_s = (now_s + host_s) // seconds * seconds
        storage.client.command(f"INSERT INTO rollups VALUES ('{name}', now() + {server_s}, {windows_s})")
    rows = minutes(6, hours=3.5, start_s=now_s - 2 * HOUR)
    storage.write("rows_1m", rows)
    age(storage, "rows_1m", HOUR)
    for end_s in (now_s + HOUR, now_s + 2 * HOUR):
        rollup(storage.client, us(end_s + GRACE_S))
        storage.client.command("OPTIMIZE TABLE rollups FINAL")
        ended = [one for one in rows if one["window_start"].timestamp() < end_s]
        assert_same(stored(storage, "windows_1h"), merged(ended, HOUR))
    age(storage, "rows_1m", DAY)
    age(storage, "rows_1h", DAY)
    assert rollup(storage.client, us(end_s + GRACE_S)) == 0, "it knows again how far it has come"


@pytest.mark.parametrize("fault", [Answer(200, text="<html>We will be back soon</html>"), Answer(204)], ids=str)
def test_what_something_else_than_clickhouse_has_answered_is_merged_the_next_time(
    storage: Storage, fault: Answer
) -> None:
    rows = minutes(1, hours=3)
    storage.write("rows_1m", rows)
    with proxy_to(storage.settings.url) as proxy:
        proxy.faults = [fault]
        with connect(storage.settings.model_copy(update={"url": proxy.url})) as client:
            with pytest.raises(ClickHouseError, match="not ClickHouse's"):
                rollup(client, us(START_S + 10 * HOUR))
            assert rollup(client, us(START_S + 10 * HOUR)) == 3
    assert_same(stored(storage, "windows_1h"), merged(rows, HOUR))


def test_nothing_to_do(storage: Storage) -> None:
    assert rollup(storage.client, us(START_S)) == 0
    assert rollup(storage.client, us(START_S)) == 0
    assert storage.one("SELECT count() FROM windows_1h") == 0
