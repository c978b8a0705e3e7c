"""A shard and its window tables: single cases, each told as a short log."""

import pickle
from collections import Counter

import numpy as np
import pytest
from tailrace_flows.core import series as series_module
from tailrace_flows.core.chunk import ReadUntil
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.counters import Count, Counters
from tailrace_flows.core.feed import Record
from tailrace_flows.core.increases import Baselines
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.series import SeriesIndex
from tailrace_flows.core.shard import EVENT_CHARS, Shard
from tailrace_schemas.rows import EVERY_SERVICE
from tailrace_schemas.samples import KINDS, Series, decode_series_table, encode_series_table
from tailrace_schemas.topics import shard_of

from tests.flows.machine import START_US, Machine, S, check, check_row, check_rows
from tests.flows.oracle import Batch, Single, expect
from tests.flows.writing import CONFIG, LATENCY, TOTAL, Writer, idle, run, versions

DAY_S = 24 * 3600

# -- closing and correcting ------------------------------------------------------------------------------


def test_a_late_correction_is_emitted_before_its_window_is_forgotten() -> None:
    w = Writer()
    # In one poll a late sample arrives, and the watermark passes the end of its minute's lateness.
    machine = run(w.batch((1, 1.0)), w.batch((70, 1.0)), w.batch((5, 2.0), (300, 1.0)))
    assert versions(machine, 10, 0) == [1, 2]
    assert versions(machine, 60, 0) == [1, 2]


@pytest.mark.parametrize(
    ("clock_s", "time_s", "late"),
    [
        (71.999999, 0.0, False),  # the watermark is 2 s behind; [0, 10) takes samples for 60 s after its end
        (72.0, 9.999999, True),
        (72.0, 10.0, False),
        (121.999999, 50.0, False),
        (121.999999, 49.999999, True),
        (122.0, 59.999999, True),  # and here its minute is forgotten
    ],
)
def test_a_window_takes_samples_until_the_watermark_has_passed_its_lateness(
    clock_s: float, time_s: float, late: bool
) -> None:
    for crash in (False, True):
        w = Writer()
        log = [w.batch((0, 1.0)), w.batch((clock_s, 1.0)), w.batch((time_s, 1.0))]
        machine = Machine([log], CONFIG)
        machine.poll(0, 2)
        machine.commit()
        if crash:
            machine.crash()
        machine.finish()
        assert machine.counters.get(("shard 55", "cart", "", Count.LATE), 0) == late
        check(machine, expect([log], CONFIG))


@pytest.mark.parametrize(("clock_s", "closed"), [(11.999999, False), (12.0, True)])
def test_a_window_closes_when_the_watermark_reaches_its_end(clock_s: float, closed: bool) -> None:
    w = Writer()
    machine = Machine([[w.batch((0, 1.0)), w.batch((clock_s, 1.0))]], CONFIG)
    machine.read_all(1)
    machine.commit()
    assert versions(machine, 10, 0) == [1] * closed


def test_blocks_say_which_windows_are_closed_even_when_there_is_nothing_to_write() -> None:
    w = Writer()
    machine = Machine([[w.batch((1, 1.0)), w.batch((27, 1.0))]], CONFIG)
    machine.now_us = START_US + 28 * S
    machine.read_all()
    machine.commit()
    assert machine.closed_us["cart", ""] == START_US + 25 * S
    machine.drain()  # writes the open window, which stays open
    assert machine.closed_us["cart", ""] == START_US + 25 * S
    for seconds in (15, 45):  # the first closes the last window, the other only lets time pass
        idle(machine, seconds)
        machine.commit()
        closed_us = machine.closed_us["cart", ""] + CONFIG.disorder_us
        assert machine.now_us - 12 * S < closed_us <= machine.now_us, seconds


def test_the_last_value_is_that_of_the_latest_time_and_of_equal_times_the_larger() -> None:
    gauge = Series("level", "gauge")
    w = Writer()
    run(
        w.batch((1, 5.0), series=gauge),
        w.batch((30, 1.0), series=gauge),  # folds the first window
        w.batch((2, 3.0), series=gauge),
        w.batch((50, 1.0), (51, 2.0), (51, 1.5), series=gauge),
        w.batch((1.5, 9.0), (2, 2.0), series=gauge),
        w.batch((70, 1.0), (51, 1.7), series=gauge),
        w.batch((2, 4.0), series=gauge),
    )


def test_a_drain_closes_nothing() -> None:
    for hold in (True, False):
        w = Writer()
        machine = Machine([[w.batch((1, 1.0))]], CONFIG, hold=hold)
        machine.read_all()
        machine.drain()
        machine.append([[w.batch((2, 1.0)), w.batch((3, 1.0), (11, 1.0))]])
        machine.read_all()
        machine.wait(2)
        machine.commit()
        assert versions(machine, 10, 0) == [1]  # provisional
        machine.append([[w.batch((15, 1.0))]])
        machine.read_all()
        machine.commit()
        assert versions(machine, 10, 0) == [1, 3]
        assert versions(machine, 10, 10) == []


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("stream", ["", "backfill"])
def test_no_stream_is_forgotten_while_there_is_more_of_it_to_read(
    stream: str, end: bool, crash: bool, hold: bool
) -> None:
    w = Writer(stream=stream)
    log = [w.batch((1, 1.0), end=end), w.batch((2, 1.0))]
    machine = Machine([log], CONFIG, hold=hold)
    machine.poll(0, 1)
    machine.commit()
    if crash:
        machine.crash()
    machine.wait(DAY_S + 1)  # the broker was away for a day
    machine.commit()
    if crash:
        machine.crash()
    machine.wait(DAY_S + 1)
    machine.finish(1)
    check(machine, expect([log], CONFIG))


def test_a_stream_of_several_partitions_is_forgotten_when_all_have_forgotten_it() -> None:
    w = Writer(stream="backfill")
    machine = Machine([[w.batch((1, 1.0))], [w.batch((2, 1.0)), w.batch((3, 1.0))]], CONFIG)
    machine.poll(0, 1)
    machine.poll(1, 1)
    for _ in range(3):
        machine.wait(DAY_S)
        machine.poll(0, 1)
    machine.finish()
    assert machine.last_counters[("shard 55", "cart", "backfill", Count.SAMPLES)] == 3
    assert {row["count"] for row in machine.rows.values()} == {3}


def test_a_backfill_that_is_forgotten_has_been_counted_first() -> None:
    w = Writer(stream="backfill")
    machine = Machine([[w.batch((1, 1.0)), w.batch((2, 1.0), (3, 1.0))]], CONFIG)
    machine.poll(0, 1)  # and its count is written
    machine.poll(0, 1)
    machine.wait(DAY_S)  # and nobody was called in between: the machine slept, or its clock leapt
    machine.finish()
    assert machine.counters == {("shard 55", "cart", "backfill", Count.SAMPLES): 3}


def test_streams_are_forgotten_one_by_one_a_day_after_each_one_s_last_sample() -> None:
    first, second = Writer(stream="first"), Writer(stream="second")
    machine = Machine([[first.batch((1, 1.0))]], CONFIG)
    machine.read_all()
    machine.wait(3600)
    machine.append([[second.batch((1, 1.0))]])
    idle(machine, 3700)
    machine.wait(DAY_S - 3800)
    idle(machine, 10)
    machine.append([[first.batch((1, 1.0)), second.batch((1, 1.0))]])
    machine.finish()
    # The first is new again, while the other's windows are known to be over.
    assert {key[2:]: total for key, total in machine.last_counters.items() if key[0] == "shard 55"} == {
        ("first", Count.SAMPLES): 1,
        ("second", Count.SAMPLES): 1,
        ("second", Count.LATE): 1,
    }


@pytest.mark.parametrize("kind", ["distribution", "gauge", "counter", "cumulative", "event"])
def test_late_corrections_of_many_series_are_whole_rows(kind: str) -> None:
    table = tuple(Series("m", kind, "", (("n", f"{number:04d}"),)) for number in range(1500))
    every = [(row, 1.0, float(row)) for row in range(1500)]
    w = Writer()
    run(w.rows(table, *every), w.rows(table, (0, 30.0, 1.0)), w.rows(table, *every[1000::7], *every[::211]))


def test_a_row_with_too_many_buckets_is_coarser_and_those_beside_it_are_not() -> None:
    table = tuple(Series("m", "distribution", "", (("n", str(number)),)) for number in range(4))
    rng = np.random.default_rng(1)
    wide = rng.integers(0, 2**64, 26_000, np.uint64).view(np.float64)
    wide = wide[np.isfinite(wide)]
    samples = [(row, 1.0, value) for row in (0, 2) for value in wide[row * 100 :].tolist()]
    samples += [(row, 1.0, value) for row in (1, 3) for value in rng.lognormal(0, 1, 20).tolist()]
    machine = run(Writer().rows(table, *samples), config=WindowConfig(scale=3))
    assert sorted(row["scale"] for row in machine.rows.values()) == 4 * [2] + 4 * [3]


def test_overflowing_sums_harm_nothing_else() -> None:
    table = tuple(Series("m", kind) for kind in ("distribution", "gauge", "counter", "cumulative", "event"))
    huge = [(row, 1.0 + step, 1.7e308) for row in range(5) for step in range(3)]
    negative = [(row, 11.0 + step, -1.7e308) for row in (0, 1, 4) for step in range(3)]
    resets = [
        (3, 12.0, 1e308),
        (3, 13.0, 0.0),
        (3, 14.0, 1.7e308),
        (3, 15.0, 1.7e307),
        (3, 16.0, 1.6e308),
        (3, 21.0, 0.0),
        (3, 22.0, 1.7e308),
    ]
    w = Writer()
    machine = Machine([[w.rows(table, *huge), w.rows(table, *negative, *resets)]], CONFIG)
    machine.finish()
    rows = [row for row in machine.rows.values() if row["kind"] == "distribution"]
    assert sorted((row["count"], row["min"], row["max"]) for row in rows) == [
        (3, -1.7e308, -1.7e308),
        (3, 1.7e308, 1.7e308),
        (6, -1.7e308, 1.7e308),
    ]
    assert not machine.letters


# -- cumulative counters ---------------------------------------------------------------------------------


def test_the_version_of_a_counter_s_row_counts_all_its_points() -> None:
    for hold in (True, False):
        w = Writer()
        log = [w.batch((float(second), float(second)), series=TOTAL) for second in range(0, 400, 10)]
        machine = Machine([log], CONFIG, hold=hold)
        while machine.poll(0, 1):
            machine.commit()
            if machine.polls == 30:
                machine.crash()
        machine.finish()
        points = {key.start_s - START_US // S: row["version"] for key, row in machine.rows.items() if key.seconds == 10}
        # Those of the two windows that a drain finds open: that and, before them, the retired ones up to 300 s.
        assert (points.pop(380), points.pop(390)) == (31, 31)
        assert points == {second: 1 + second // 10 for second in range(0, 380, 10)}


@pytest.mark.parametrize("records", [1, 2, 100])
@pytest.mark.parametrize("silence_s", [600, DAY_S - 1, DAY_S, DAY_S + 0.000001, DAY_S + 100, 3 * DAY_S])
def test_a_counter_silent_for_more_than_a_day_starts_afresh(silence_s: float, records: int) -> None:
    w = Writer()
    other = Series("other", "gauge")
    again_s = 5 + silence_s
    machine = run(
        w.batch((1, 10.0), (5, 15.0), series=TOTAL),
        w.batch((again_s - 100, 1.0), series=other),
        w.batch((again_s - 1, 1.0), series=other),
        w.batch((again_s, 18.0), series=TOTAL),
        w.batch((again_s + 70, 1.0), series=other),
        w.batch((again_s + 15, 20.0), series=TOTAL),
        w.batch((again_s + 200, 1.0), series=other),
        w.batch((again_s + 400, 1.0), series=other),
        records=records,
    )
    rows = {row["window_start"]: row for key, row in machine.rows.items() if key.series == TOTAL and key.seconds == 10}
    increases = [rows[start]["increase"] for start in sorted(rows)]
    assert increases == [5.0, 3.0 if silence_s <= DAY_S else None, 2.0]


def test_events_whose_texts_are_too_much_at_a_time_are_counted_and_those_of_others_stay() -> None:
    wide = Series("deploy", "event", "", tuple((f"k{number}", 4000 * "v") for number in range(4)))
    fit = EVENT_CHARS // 16_014
    w = Writer()
    many = w.rows((wide, LATENCY), *((row, 1.0, 0.5) for row in (0, 1) for _ in range(fit + 100)))
    few = w.batch((2, 1.0), series=Series("rollback", "event"))
    machine = Machine([[many, few]], CONFIG)
    machine.poll(0, 2)
    machine.finish()
    assert Counter(row["name"] for row in machine.events.values()) == {"deploy": fit, "rollback": 1}
    (counters,) = [scope for scope in machine.counters if scope[3] == Count.EVENT_LIMIT]
    assert machine.counters[counters] == 100
    assert sum(row["count"] for key, row in machine.rows.items() if key.seconds == 10) == 2 * (fit + 100) + 1


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize("crashes", [0, 1, 3])
@pytest.mark.parametrize(
    ("config", "reason"),
    [(WindowConfig(max_series=2), Count.SERIES_LIMIT), (WindowConfig(max_shard_series=2), Count.SHARD_LIMIT)],
    ids=["service", "shard"],
)
def test_the_series_limit_lets_the_same_samples_through_after_a_crash(
    config: WindowConfig, reason: Count, hold: bool, crashes: int
) -> None:
    a, b, c, d = (Series(name, "counter") for name in "abcd")
    w = Writer()
    log = [
        w.batch((1, 1.0), series=a),
        w.batch((2, 1.0), series=b),
        w.batch((130, 1.0), series=c),  # beyond the limit
        w.rows((d, b), (0, 131.0, 1.0), (1, 132.0, 1.0)),  # only b is known
        w.rows((c, d, a), (0, 133.0, 1.0), (1, 134.0, 1.0), (2, 135.0, 1.0)),
    ]
    machine = Machine([log], config, hold=hold)
    for _ in log:
        machine.poll(0, 1)
        machine.commit()
    for _ in range(crashes):
        machine.crash()
        machine.poll(0, 2)
        machine.commit()
    machine.append([[w.rows((c, b, d, a), (0, 136.0, 1.0), (1, 137.0, 1.0), (2, 138.0, 1.0), (3, 139.0, 1.0))]])
    machine.finish()
    counts = {(key.series.metric, key.start_s * S - START_US): row["count"] for key, row in machine.rows.items()}
    assert counts == {
        ("a", 0): 1, ("b", 0): 1, ("a", 130 * S): 2, ("b", 130 * S): 2, ("a", 120 * S): 2, ("b", 120 * S): 2,
    }  # fmt: skip
    totals = {name: value for (*_, name), value in machine.counters.items()}
    assert totals == {Count.SAMPLES: 6, reason: 6}


def test_a_counter_goes_on_from_points_that_were_only_replayed() -> None:
    for hold in (True, False):
        w = Writer()
        log = [w.batch((1, 5.0), series=TOTAL), w.batch((70, 6.0), series=TOTAL), w.batch((75, 9.0), series=TOTAL)]
        machine = Machine([log], CONFIG, hold=hold, now_us=START_US + 80 * S)
        idle(machine, 50)  # closes them all, by wall time, and forgets the first
        machine.drain()
        # All its windows are forgotten at once, without having been emitted since the restart.
        machine.read_all()
        machine.append([[w.batch((500, 11.0), series=TOTAL)]])
        machine.finish()
        increases = {key.start_s - START_US // S: row["increase"] for key, row in machine.rows.items()}
        assert increases == {0: None, 70: 4.0, 60: 4.0, 500: 2.0, 480: 2.0}


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize("crashes", [0, 2])
def test_series_that_are_no_longer_used_make_room_below_the_limit(hold: bool, crashes: int) -> None:
    config = WindowConfig(max_series=100)
    series = [Series("m", "counter", "", (("n", f"{number:03d}"),)) for number in range(200)]
    w = Writer()
    # All but the last take a slot; sixty are used on, so that the others are not forgotten yet.
    log = [w.rows(tuple(series[:101]), *((row, 1.0, 1.0) for row in range(101)))]
    log += [w.rows(tuple(series[:60]), *((row, second, 1.0) for row in range(60))) for second in (70.0, 130.0)]
    machine = Machine([log], config, hold=hold)
    while machine.poll(0, 1):
        machine.commit()
    for _ in range(crashes):
        machine.crash()
        machine.read_all(1)
        machine.commit()
    machine.append([[w.rows(tuple(series[:10]), *((row, 260.0, 1.0) for row in range(10)))]])
    machine.read_all()
    # Now there are ten, and room for ninety.
    machine.append([[w.rows(tuple(series[100:200]), *((row, 261.0, 1.0) for row in range(100)))]])
    machine.finish()
    totals = {name: total for (*_, name), total in machine.counters.items()}
    assert totals == {Count.SAMPLES: 100 + 120 + 10 + 90, Count.SERIES_LIMIT: 1 + 10}


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize("crashes", [0, 2])
def test_a_full_shard_refuses_services_until_others_series_are_forgotten(hold: bool, crashes: int) -> None:
    config = WindowConfig(max_shard_series=80)
    names = [name for name in map("service-{}".format, range(1000)) if shard_of(name) == shard_of("service-0")]
    large, small, refused = (Writer(name) for name in names[:3])
    series = [Series("m", "counter", "", (("n", f"{number:03d}"),)) for number in range(90)]

    def rows(w: Writer, first: int, last: int, time_s: float) -> Batch:
        return w.rows(tuple(series[first:last]), *((row, time_s, 1.0) for row in range(last - first)))

    log = [rows(small, 0, 2, 1), rows(large, 0, 77, 1), rows(small, 2, 5, 2), rows(refused, 0, 4, 2)]
    machine = Machine([log], config, hold=hold)
    while machine.poll(0, 1):
        machine.commit()
    for _ in range(crashes):
        machine.crash()
        machine.read_all(1)
        machine.commit()
    machine.wait(3)
    machine.commit()
    assert machine.counters == {
        (f"shard {shard_of('service-0')}", service, "", name): count
        for service, name, count in [
            (small.service, Count.SAMPLES, 3),
            (small.service, Count.SHARD_LIMIT, 2),
            (large.service, Count.SAMPLES, 77),
            ("", Count.SHARD_LIMIT, 4),  # without its name, since there may be millions
        ]
    }  # fmt: skip
    assert {key.service for key in machine.rows} <= {small.service, large.service}
    # The large service goes on with a few of its series. Once the others' windows are gone, there is room.
    machine.append([[rows(large, 0, 5, 300), rows(large, 0, 5, 500), rows(small, 2, 5, 500), rows(refused, 0, 4, 500)]])
    machine.finish(1)
    totals = {key[1:]: value for key, value in machine.counters.items()}
    assert totals[(small.service, "", Count.SAMPLES)] == 3 + 3
    assert totals[(refused.service, "", Count.SAMPLES)] == 4
    assert sum(value for (*_, name), value in totals.items() if name == Count.SHARD_LIMIT) == 6


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize("crashes", [0, 2])
@pytest.mark.parametrize(
    ("config", "count"),
    [(WindowConfig(max_series=100), Count.SERIES_LIMIT), (WindowConfig(max_shard_series=100), Count.SHARD_LIMIT)],
)
def test_long_series_count_as_several_towards_a_limit(
    config: WindowConfig, count: Count, crashes: int, hold: bool
) -> None:
    """Those of 16,000 letters as 16: six are 96, a seventh would be 112, and four short ones fill the rest."""
    texts = {name: name * 4_000 for name in "abcd"}
    long = [Series("m", "counter", "", tuple((texts | {"n": str(number)}).items())) for number in range(7)]
    short = [Series("m", "counter", "", (("n", str(number)),)) for number in range(5)]
    w = Writer()
    log = [w.rows(tuple(table), *((row, 1.0, 1.0) for row in range(len(table)))) for table in (long, short, long)]
    machine = Machine([log], config, hold=hold)
    machine.poll(0, 2)
    machine.commit()
    for _ in range(crashes):
        machine.crash()
        machine.read_all(1)
        machine.commit()
    machine.finish(1)
    totals = {key[1:]: value for key, value in machine.counters.items()}
    assert totals["cart", "", Count.SAMPLES] == 6 + 4 + 6
    assert totals["cart", "", count] == 1 + 1 + 1
    assert {key.series for key in machine.rows} == {*long[:6], *short[:4]}


def test_who_meets_a_limit_is_told_once_with_the_setting_that_raises_it() -> None:
    series = [Series("m", "counter", "", (("n", str(number)),)) for number in range(4)]
    config = WindowConfig(max_series=3, max_shard_series=5)
    other = next(name for name in map("service-{}".format, range(1000)) if shard_of(name) == shard_of("cart"))
    machine = Machine([[]], config)
    for w in (Writer(), Writer(other)):
        machine.append([[w.rows(tuple(series), *((row, at, 1.0) for row in range(4))) for at in (1.0, 2.0, 3.0)]])
    machine.read_all(1)
    (shard,) = machine.shards.values()
    service, full = shard.warnings
    assert "'cart' has more than windows.max_series = 3 series at a time" in service
    assert f"shard {shard_of('cart')} have more than windows.max_shard_series = 5 series at a time" in full


# -- size ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("comes_and_goes", ["series", "services", "streams", "producers"])
def test_what_comes_and_goes_leaves_no_memory_behind(comes_and_goes: str) -> None:
    """A deploy every half hour, of new pods, and three days later as much is kept as after one."""
    config = WindowConfig(max_series=600)
    sizes = []
    now_us = START_US
    partition = Partition(0, "samples", config, now_us, hold=True, cluster_id="one", start=0)
    shards: dict[str, Shard] = {}
    for generation in range(144):
        now_us += 1800 * S
        name = str(generation)
        pod = ("pod", name if comes_and_goes == "series" else "")
        table = tuple(Series("m", kind, "", (pod, ("n", f"{row:02d}"))) for row in range(20) for kind in KINDS)
        batch = Batch(
            f"service-{name}" if comes_and_goes == "services" else "shop",
            f"file-{name}" if comes_and_goes == "streams" else "",
            f"producer-{name}" if comes_and_goes == "producers" else "p",
            0 if comes_and_goes != "series" else generation,
            table,
            tuple((row, now_us, 1.0) for row in range(len(table))),
            now_us,
            comes_and_goes == "streams",
        )
        items = partition.read([Record(generation, now_us, batch.encode())], now_us)[0]
        items += partition.idle_marks(now_us + 20 * S)
        for shard, item in items:
            shards.setdefault(shard, Shard(config, now_us)).on_items([item], now_us)
        for machine in shards.values():
            if (due_us := machine.next_us()) is not None and due_us <= now_us:
                machine.on_time(now_us)
        partition.counter_rows(now_us)
        kept = [partition.snapshot(now_us), pickle.dumps(partition.__dict__), *map(pickle.dumps, shards.values())]
        sizes.append(sum(map(len, kept)))
    assert sum(sizes[-48:]) < 1.1 * sum(sizes[48:96])


def test_of_departed_counters_the_latest_are_remembered_up_to_the_series_limit() -> None:
    baselines = Baselines({number: (1.0, 1, START_US + number) for number in range(10)})
    baselines.expire(START_US, 3)
    assert sorted(baselines.by_id) == [7, 8, 9]


def test_counts_of_more_services_than_fit_are_kept_without_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace_flows.core.counters.MAX_TOTALS", 2)
    counters = Counters("shard 1")
    for service in ("a", "b", "c", "a", "d"):
        counters.add(service, "", Count.SAMPLES, 1)
    counters.add("e", "file", Count.ENDED, 1)  # somebody waits for it
    assert counters.totals == {
        ("a", "", Count.SAMPLES): 2,
        ("b", "", Count.SAMPLES): 1,
        ("", "", Count.SAMPLES): 2,
        ("e", "file", Count.ENDED): 1,
    }


def test_many_samples_at_once_are_the_same_as_many_polls() -> None:
    rng = np.random.default_rng(1)
    table = tuple(Series("m", kind, "", (("n", str(n)),)) for kind in KINDS for n in range(20))
    w = Writer()
    log = [
        w.rows(table, *((int(row), 5 + second + 0.01 * row, float(row)) for row in rng.integers(0, 100, 10_000)))
        for second in (0, 0, 1, 1, 2, 2, 11, 11)
    ]
    once, often = run(*log, records=100), run(*log, records=1)
    assert once.rows.keys() == often.rows.keys()


def test_tables_that_change_with_each_batch_are_forgotten() -> None:
    w = Writer()
    tables = [(LATENCY, Series("x", "gauge", "", (("n", str(n)),))) for n in range(2500)]
    machine = Machine([[w.rows(table, (0, 0.001 * n, 1.0)) for n, table in enumerate(tables)]], CONFIG)
    machine.finish()
    assert [row["count"] for row in machine.rows.values()] == [2500, 2500]


def test_tables_that_grow_with_each_message_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "MAP_BYTES", 20_000)
    index = SeriesIndex("cart", 1_000)
    names = [Series("x", "gauge", "", (("n", f"{n:03d}"),)) for n in range(200)]
    for end in range(1, 201):
        table = decode_series_table(encode_series_table(names[:end]))
        assert index.slots_of(table).tolist() == index.slots_of(table).tolist() == list(range(end))
    every = len(pickle.dumps([encode_series_table(names[:end]) for end in range(1, 201)]))
    assert len(pickle.dumps(vars(index))) < 60_000 < every / 4


# -- corrections and restarts ----------------------------------------------------------------------------


def test_a_correction_that_waited_when_the_flow_died_is_emitted_though_nothing_more_comes() -> None:
    for hold in (True, False):
        w = Writer()
        log = [w.batch((1, 1.0)), w.batch((30, 1.0)), w.batch((5, 2.0))]
        machine = Machine([log], CONFIG, hold=hold)
        machine.read_all(1)
        machine.commit()
        machine.crash()
        machine.read_all()
        machine.wait(1.1)
        machine.commit()
        assert versions(machine, 10, 0) == [1, 2], hold


@pytest.mark.parametrize("lateness_s", [60, 200])  # by 200 s the correction is one of a closed minute too
def test_corrections_outlive_a_crash_and_the_forgetting_of_unused_series(lateness_s: int) -> None:
    table = tuple(Series("m", "distribution", "", (("n", f"{number:03d}"),)) for number in range(200))
    w = Writer()
    log = [
        w.rows(table, *[(row, 1.0, 1.0) for row in range(200)]),
        w.rows(table, (150, 70.0, 1.0), (151, 70.0, 1.0)),
        w.rows(table, (150, lateness_s + 40.0, 1.0)),
        w.rows(table, (151, 71.0, 2.0), (199, 72.0, 3.0)),  # late
        w.rows(table[150:152], (0, lateness_s + 65.0, 1.0)),  # forgets the first minute
        w.rows(table[150:152], (0, lateness_s + 240.0, 1.0)),
    ]
    config = WindowConfig(lateness_s=lateness_s)
    for hold in (True, False):
        machine = Machine([log], config, hold=hold)
        for _ in range(4):
            machine.poll(0, 1)
        machine.commit()
        machine.crash()
        machine.read_all(1)
        machine.finish()
        check(machine, expect([log], config))


def test_a_correction_while_another_partition_is_replayed_is_a_whole_row() -> None:
    old, new = Writer(), Writer()
    new.sequence = 100
    machine = Machine([[old.batch((1, 1.0), (2, 1.0)), old.batch((30, 1.0))], []], CONFIG)
    machine.read_all()
    machine.wait(2)
    machine.commit()
    machine.crash()
    # The topic grew: a late sample comes from partition 1 before partition 0 has been replayed.
    machine.append([[], [new.batch((3, 1.0))]])
    machine.poll(1, 1)
    machine.wait(2)
    machine.finish()
    assert [row["count"] for key, row in machine.rows.items() if key.start_s * S == START_US] == [3, 4]


def test_a_row_that_closed_before_its_partition_was_replayed_is_made_whole_after_another_crash() -> None:
    old, new = Writer(), Writer()
    machine = Machine([[old.batch((1, 1.0))], []], CONFIG)
    machine.read_all()
    machine.commit()
    machine.crash()
    machine.append([[], [new.batch((20, 1.0))]])
    machine.poll(1, 1)  # closes the first window, which is empty as yet
    machine.commit()
    machine.crash()
    machine.finish()
    assert {key.start_s - START_US // S: row["count"] for key, row in machine.rows.items() if key.seconds == 10} == {
        0: 1,
        20: 1,
    }


def test_a_drain_before_the_replay_with_less_lateness_forgets_no_window_that_is_to_be_rebuilt() -> None:
    w = Writer()
    log = [w.batch((1, 1.0), series=TOTAL), w.batch((65, 3.0), series=TOTAL), w.batch((90, 4.0), series=TOTAL)]
    machine = Machine([log], CONFIG)
    machine.poll(0, 2)
    machine.commit()
    machine.config = WindowConfig(lateness_s=1, max_future_s=1)
    machine.crash()
    machine.drain()
    machine.finish()
    check_rows(machine.rows, expect([log], CONFIG).rows, CONFIG)


def test_a_new_point_before_one_that_another_partition_has_still_to_replay_corrects_its_row() -> None:
    w = Writer()
    log = [w.batch((11, 1.0)), w.batch((15, 5.0), series=TOTAL), w.batch((30, 1.0))]
    new = [w.batch((4, 2.0), series=TOTAL)]
    machine = Machine([log, []], CONFIG)
    machine.scattered = True
    machine.read_all()
    machine.wait(3)
    machine.commit()
    machine.append([[], new])
    machine.crash()
    for number in (0, 1, 0):
        machine.poll(number, 1)
    machine.finish()
    check_rows(machine.rows, expect([log, new], CONFIG).rows, CONFIG)


def test_a_new_message_in_the_poll_that_ends_a_replay_releases_nothing_that_is_not_retired() -> None:
    w = Writer()
    log = [
        Single("cart", "", TOTAL, START_US + 2 * S, 2.0, START_US + 2 * S),
        w.batch((3, 1.0)),
        Single("cart", "", TOTAL, START_US + 400 * S, 7.0, START_US + 400 * S),
    ]
    machine = Machine([log], CONFIG)
    machine.poll(0, 2)
    machine.commit()
    machine.crash()
    machine.poll(0, 1)
    machine.commit()
    machine.poll(0, 2)
    machine.commit()
    machine.crash()
    machine.finish()
    check(machine, expect([log], CONFIG))


def test_a_restart_writes_no_settled_row_again() -> None:
    w = Writer()
    log = [w.batch((float(second), 1.0)) for second in range(0, 400, 5)]
    for hold in (True, False):
        machine = Machine([log], CONFIG, hold=hold)
        for offset in (25, 75):  # 250 s of events apart: everything that closed before the second crash is settled
            while machine.partitions[0].next_offset < offset:
                machine.poll(0, 3)
                machine.commit()
            machine.crash()
        machine.finish()
        assert [versions(machine, 10, start) for start in range(0, 360, 10)] == [[2]] * 36


def test_what_waits_for_a_replay_is_kept_by_a_crash_before_it() -> None:
    w = Writer()
    log = [w.batch((1, 1.0)), w.batch((30, 1.0)), w.batch((5, 2.0))]
    machine = Machine([log], CONFIG, hold=True)
    machine.read_all(1)
    machine.commit()
    for _ in range(3):
        machine.crash()
        machine.commit()  # before anything has been replayed
    machine.finish()
    check(machine, expect([log], CONFIG))


def test_what_waits_for_a_replay_is_kept_when_the_windows_move_into_the_snapshots() -> None:
    w = Writer()
    log = [w.batch((1, 1.0)), w.batch((2, 1.0)), w.batch((30, 1.0)), w.batch((5, 2.0)), w.batch((6, 2.0))]
    machine = Machine([log], CONFIG, hold=True)
    machine.read_all(1)
    machine.commit()
    machine.crash()
    machine.hold = False
    machine.crash()
    for _ in range(5):  # killed again and again while the correction is replayed
        machine.poll(0, 1)
        machine.commit()
        machine.crash()
    machine.finish()
    check(machine, expect([log], CONFIG))


# -- settings that change between runs -------------------------------------------------------------------


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize(("before", "after"), [(6, 3), (3, 6), (0, 8), (8, 0)])
def test_a_sketch_s_scale_may_change_between_runs(before: int, after: int, hold: bool) -> None:
    w = Writer()
    log = [
        w.batch((1, 1.0), (2, 1000.0), (3, -7.0)),
        w.batch((12, 1.1), (55, 0.0)),
        w.batch((5, 3.0), (13, 2.5)),  # corrections, the first of which waits when the flow stops
        w.batch((20, 4.0), (56, 17.0)),
        w.batch((300, 1.0)),
    ]
    machine = Machine([log], WindowConfig(scale=before), hold=hold)
    machine.poll(0, 3)
    machine.commit()
    machine.config = WindowConfig(scale=after)
    machine.crash()
    machine.finish()
    found = {}
    for key, row in machine.rows.items():
        scale = row["scale"]
        assert scale in (before, after)
        wanted = expect([log], WindowConfig(scale=scale)).rows[key]
        check_row(key, row, wanted, WindowConfig(scale=scale))
        found[key.seconds, key.start_s - START_US // S] = scale
    assert found[10, 20] == found[10, 300] == after
    assert found[60, 0] == (after if hold else min(before, after))


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
def test_a_longer_lateness_brings_no_forgotten_window_back(hold: bool) -> None:
    w = Writer()
    log = [w.batch((1, 1.0), (2, 1.0)), w.batch((150, 1.0)), w.batch((3, 1.0), (100, 1.0), (151, 1.0))]
    machine = Machine([log], WindowConfig(), hold=hold)
    machine.poll(0, 2)  # forgets the first minute
    machine.commit()
    machine.config = WindowConfig(lateness_s=3600)
    machine.crash()
    machine.finish()
    counts = {key.start_s - START_US // S: row["count"] for key, row in machine.rows.items() if key.seconds == 10}
    assert counts == {0: 2, 100: 1, 150: 2}
    totals = {name: total for (*_, name), total in machine.counters.items()}
    assert totals == {Count.SAMPLES: 5, Count.LATE: 1}


# -- how far all has been read -------------------------------------------------------------------------------


def test_that_all_is_read_is_said_when_each_partition_has_said_so_also_after_a_restart() -> None:
    said: list[int] = []

    def hear(shard: Shard, *items: ReadUntil) -> None:
        output = shard.on_items(items, START_US)
        assert not output.blocks
        for one in output.aside:
            assert (one.service, one.stream, one.rows.num_rows) == (EVERY_SERVICE, "", 0)
            said.append(one.watermark_us // S)

    shard = Shard(CONFIG, START_US)
    hear(shard, ReadUntil(0, 3, 10 * S), ReadUntil(1, 3, 12 * S))
    assert said == []
    hear(shard, ReadUntil(2, 3, 11 * S))
    hear(shard, ReadUntil(2, 3, 13 * S), ReadUntil(1, 3, 14 * S))  # the other one stands still
    assert said == [10]
    hear(shard, ReadUntil(0, 3, 10 * S + 1), ReadUntil(0, 3, 15 * S))  # no news; news
    assert said == [10, 13]
    shard = Shard(CONFIG, START_US, shard.snapshot(contents=True))
    hear(shard, ReadUntil(0, 3, 20 * S), ReadUntil(1, 3, 20 * S))
    assert said == [10, 13]
    hear(shard, ReadUntil(2, 3, 20 * S))
    assert said == [10, 13, 20]
