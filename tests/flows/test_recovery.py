"""The core as the dataflow drives it, against the oracle: any polls, any order, any crashes give the same rows.

`TAILRACE_TEST_EXAMPLES=5000 pytest tests/flows/test_recovery.py` looks harder, for a quarter of an hour.
"""

import os
import pickle
import sqlite3
from collections import defaultdict
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from bytewax.testing import TestingSink, TestingSource, run_main
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tailrace_flows import recovery
from tailrace_flows.core import window
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.counters import Count
from tailrace_flows.core.sketch import codes_of
from tailrace_schemas.topics import shard_of

from tests.flows.machine import START_US, Machine, S, check, check_row, check_rows
from tests.flows.oracle import Batch, Entry, Sample, expect, rows_of
from tests.flows.strategies import SERIES, SERVICES, logs
from tests.flows.writing import CONFIG, TOTAL, Writer, idle

slow = settings(
    max_examples=int(os.environ.get("TAILRACE_TEST_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

configs = st.builds(
    WindowConfig,
    disorder_s=st.sampled_from([0.0, 2.0]),
    lateness_s=st.just(60.0) | st.sampled_from([20.0, 0.000001]),
    max_future_s=st.just(0.0),
    scale=st.sampled_from([6, 0, 8]),
    generation=st.sampled_from([0, 3]),
)

steps = st.one_of(
    st.tuples(st.just("poll"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("poll"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.9, 1.1, 2.5])),
    st.tuples(st.just("commit")),
    st.tuples(st.just("crash"), st.integers(0, 7)),
    st.tuples(st.just("drain")),
)


def test_the_services_of_the_strategies_share_a_shard() -> None:
    assert shard_of(SERVICES[0]) == shard_of(SERVICES[1]) != shard_of(SERVICES[2])


@slow
@given(logs(), configs, st.lists(st.integers(1, 5), min_size=1), st.floats(0, 2))
def test_any_cut_into_polls_gives_the_expected_rows_and_counters(
    records: Any, config: WindowConfig, cuts: list[int], pause: float
) -> None:
    machine = Machine(records, config)
    for number, cut in enumerate(cuts):
        machine.poll(number % 2, cut)
        machine.wait(pause)
    machine.finish(cuts[-1])
    check(machine, expect(records, config))


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@slow
@given(records=logs(), config=configs, plan=st.lists(steps, max_size=25), cut=st.integers(1, 4))
def test_any_crashes_and_restarts_give_the_expected_rows_and_counters(
    hold: bool, records: Any, config: WindowConfig, plan: Any, cut: int
) -> None:
    machine = Machine(records, config, hold=hold)
    for name, *arguments in plan:
        getattr(machine, name)(*arguments)
    event(f"crashes: {machine.crashes}")
    machine.finish(cut)
    check(machine, expect(records, config))


# -- order -----------------------------------------------------------------------------------------------


@st.composite
def shuffled(draw: Any) -> tuple[list[list[Entry]], WindowConfig]:
    """Samples that arrive as late as is allowed, but no later; some batches come twice."""
    lateness_us = draw(st.sampled_from([20 * S, 60 * S]))
    lags = st.sampled_from([0, 1, S, lateness_us // 2, lateness_us - 1, lateness_us])
    times = st.integers(0, 200).map(lambda n: START_US + n * S) | st.sampled_from(
        [START_US + n * 10 * S - d for n in (1, 6, 7) for d in (0, 1)]
    )
    values = st.floats(0, 1e6) | st.sampled_from([0.0, 1e-320, 1e300])
    sent = draw(st.lists(st.tuples(times, lags, st.integers(0, len(SERIES) - 1), values), min_size=1, max_size=25))
    arrivals = sorted((time_us + lag_us, time_us, row, value) for time_us, lag_us, row, value in sent)
    log: list[Entry] = []
    while arrivals:
        size = draw(st.integers(1, 5))
        # Samples of one batch are judged together: those that come with it are no later than its first.
        first_us = arrivals[0][0]
        batch = [one for one in arrivals[:size] if one[0] == first_us] or arrivals[:1]
        arrivals = arrivals[len(batch) :]
        samples = tuple((row, time_us, value) for _, time_us, row, value in batch)
        log.append(Batch("cart", "", "p", len(log), SERIES, samples, first_us))
    repeated = draw(st.lists(st.integers(0, len(log) - 1), max_size=5))
    numbered = list(enumerate(log)) + [(after + draw(st.integers(1, 3)) - 0.5, log[after]) for after in repeated]
    log = [entry for _, entry in sorted(numbered, key=lambda one: one[0])]
    config = WindowConfig(lateness_s=lateness_us / S, max_future_s=draw(st.sampled_from([0, lateness_us / S])))
    return [log], config


@slow
@given(shuffled(), st.integers(1, 30))
def test_any_order_within_the_lateness_gives_the_rows_of_all_samples(case: Any, cut: int) -> None:
    records, config = case
    machine = Machine(records, config)
    machine.finish(cut)
    batches = {batch.sequence: batch for batch in records[0]}
    samples = [
        Sample("cart", "", SERIES[row], time_us, value)
        for batch in batches.values()
        for row, time_us, value in batch.samples
    ]
    check_rows(machine.rows, rows_of(samples, config), config)
    assert machine.counters[("shard 55", "cart", "", Count.SAMPLES)] == len(samples)
    twice = len(records[0]) - len(batches)
    assert machine.counters.get(("partition 0", "cart", "", Count.DUPLICATE_BATCHES), 0) == twice
    assert not {name for *_, name in machine.counters} & {Count.LATE, Count.MISSING_BATCHES}


# -- silence ---------------------------------------------------------------------------------------------

quiet_steps = st.one_of(
    st.tuples(st.just("send"), st.integers(0, 1), st.integers(1, 6)),
    st.tuples(st.just("poll"), st.integers(0, 1), st.integers(1, 9)),
    st.tuples(st.just("quiet"), st.sampled_from([0.5, 11, 70, 200, 4000])),
    st.tuples(st.just("commit")),
    st.tuples(st.just("crash"), st.integers(0, 7)),
    st.tuples(st.just("drain")),
)


def run_quietly(machine: Machine, plan: Any) -> None:
    machine.hide()
    for name, *arguments in plan:
        if name == "quiet":
            machine.wait(arguments[0])
            machine.poll(0, 9)
            machine.poll(1, 9)
        else:
            getattr(machine, name)(*arguments)
    machine.finish()


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@slow
@given(records=logs(), plan=st.lists(quiet_steps, max_size=30))
def test_every_sample_is_in_one_window_or_counted_by_one_reason_whatever_falls_silent(
    hold: bool, records: Any, plan: Any
) -> None:
    config = WindowConfig(max_future_s=0.0)
    machine = Machine(records, config, hold=hold, now_us=START_US + 60 * S)
    run_quietly(machine, plan)
    expected = expect(records, config)
    # Silence makes samples late that were not by the streams' own clocks; nothing else changes.
    found: dict[tuple[str, str, str, str], int] = defaultdict(int)
    wanted: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for counters, sums in ((machine.last_counters, found), (expected.counters, wanted)):
        for (scope, service, stream, name), total in counters.items():
            both = "taken or late" if name in (Count.SAMPLES, Count.LATE) else name
            sums[(scope, service, stream, both)] += total
    assert found == wanted
    assert len(machine.letters) == expected.letters
    for (scope, service, stream, name), total in machine.last_counters.items():
        if name == Count.SAMPLES:
            for seconds in (config.window_seconds, config.rollup_seconds):
                rows = [row for key, row in machine.rows.items() if key[:3] == (seconds, service, stream)]
                assert sum(row["count"] for row in rows) == total, (scope, seconds)
    for key, row in machine.rows.items():
        assert row["count"] <= expected.rows[key].count
        if key.series.kind != "cumulative" and row["count"] == expected.rows[key].count:
            check_row(key, row, expected.rows[key], config)


@slow
@given(records=logs(), plan=st.lists(quiet_steps, max_size=30), hold=st.booleans())
def test_silence_closes_windows_but_changes_no_row_while_nothing_is_late(records: Any, plan: Any, hold: bool) -> None:
    config = WindowConfig(max_future_s=0.0, lateness_s=1e7)
    machine = Machine(records, config, hold=hold, now_us=START_US + 60 * S)
    run_quietly(machine, plan)
    check(machine, expect(records, config))


# -- several partitions of one service -------------------------------------------------------------------


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@slow
@given(
    records=logs(partitions=1, actions=("batch", "single")),
    split=st.lists(st.integers(0, 2), min_size=1),
    plan=st.lists(
        st.one_of(
            st.tuples(st.just("poll"), st.integers(0, 2), st.integers(1, 4)),
            st.tuples(st.just("wait"), st.sampled_from([0.5, 2.5])),
            st.tuples(st.just("commit")),
            st.tuples(st.just("crash"), st.integers(0, 7)),
        ),
        max_size=30,
    ),
)
def test_services_that_are_in_several_partitions_lose_nothing(hold: bool, records: Any, split: Any, plan: Any) -> None:
    # All are read to their ends within the lateness, so nothing is late or retired, wherever a sample is.
    config = WindowConfig(max_future_s=0.0, lateness_s=1e7)
    spread: list[list[Entry]] = [[], [], []]
    for number, entry in enumerate(records[0]):
        spread[split[number % len(split)]].append(entry)
    machine = Machine(spread, config, hold=hold)
    for name, *arguments in plan:
        getattr(machine, name)(*arguments)
    machine.finish()
    check_rows(machine.rows, expect(records, config).rows, config)
    totals = [total for (*_, name), total in machine.counters.items() if name == Count.SAMPLES]
    assert sum(totals) == len(expect(records, config).samples)
    assert not {name for *_, name in machine.counters} & {Count.LATE, Count.DUPLICATE_BATCHES}


def counts(machine: Machine) -> dict[int, int]:
    """Samples by the start of their window, in seconds after START_US."""
    return {key.start_s - START_US // S: row["count"] for key, row in machine.rows.items() if key.seconds == 10}


@pytest.mark.parametrize("lateness_s", [60, 3600])
def test_what_a_silent_partition_has_brought_survives_while_another_is_behind(lateness_s: float) -> None:
    """The silent one has passed the window by wall time, and does not read it again; nor if the lateness is greater
    from then on."""
    w = Writer()
    machine = Machine([[w.batch((5, 1.0), (6, 1.0))], [w.batch((1, 1.0)), w.batch((7, 1.0))]], WindowConfig())
    for number in (0, 1):
        machine.poll(number, 1)
    machine.hidden[1] = 1  # which is not at its end: it is not polled
    for _ in range(40):
        machine.wait(0.5)
        machine.poll(0, 1)
    machine.commit()
    assert machine.partitions[0].held == 1
    machine.config = WindowConfig(lateness_s=lateness_s)
    machine.crash()
    machine.commit()
    machine.crash()
    machine.finish()
    assert counts(machine) == {0: 4}


@pytest.mark.parametrize("closed", [True, False])
def test_a_counter_s_later_rows_are_written_again_once_another_partition_has_replayed_its_points(closed: bool) -> None:
    """A row's version counts the points of the windows before it, too: a row that changes while those of another
    partition are missing loses to the one from before the restart."""
    w = Writer()

    def points(*times: float) -> Batch:
        return w.batch(*((time_s, time_s) for time_s in times), series=TOTAL)

    machine = Machine([[points(11), points(21), *([points(33)] * closed)], [points(1, 2, 3)]], CONFIG)
    machine.scattered = True
    machine.poll(1, 1)
    machine.read_all()
    if not closed:
        machine.drain()
    machine.commit()
    machine.crash()
    machine.append([[points(22), *([points(33)] * (not closed))], []])
    machine.poll(0, 10)
    machine.wait(2)
    machine.read_all()
    machine.wait(2)
    machine.commit()
    assert counts(machine) == {0: 3, 10: 1, 20: 2}


@pytest.mark.parametrize("behind", [1, 50])
def test_a_partition_that_is_ahead_retires_nothing_that_another_has_still_to_replay(behind: int) -> None:
    w = Writer()
    log = [w.batch((number / 10, 1.0)) for number in range(behind)]
    machine = Machine([log, []], WindowConfig())
    machine.read_all()
    machine.commit()
    machine.append([[], [w.batch((4000, 1.0))]])  # the first that the other brings
    machine.crash()
    machine.poll(1, 1)
    for _ in range(behind):  # killed again and again, with a part of the replay done
        machine.commit()
        machine.crash()
        machine.poll(0, 1)
    machine.finish()
    assert counts(machine) == {0: behind, 4000: 1}


def test_windows_do_not_wait_for_a_partition_that_has_nothing_to_replay() -> None:
    """The service has moved to another partition, as when a topic grew."""
    w = Writer()
    machine = Machine([[w.batch((1, 1.0))], [w.batch((float(second), 1.0)) for second in range(200, 400, 5)]], CONFIG)
    machine.hide()
    machine.send(0, 1)
    idle(machine, 15)
    machine.send(1, 30)
    machine.read_all()
    machine.commit()
    machine.crash()
    assert machine.poll(0, 1) == 0
    machine.send(1, 10)
    machine.poll(1, 100)
    machine.commit()
    assert len(machine.committed[1][shard_of("cart")]) < 1_000
    machine.finish()
    assert counts(machine) == {0: 1} | dict.fromkeys(range(200, 400, 10), 2)


def test_windows_wait_for_a_partition_that_is_gone_but_not_for_ever() -> None:
    w = Writer()
    machine = Machine([[w.batch((1, 1.0))], []], WindowConfig())
    machine.read_all()
    machine.commit()
    machine.append([[], [w.batch((float(second), 1.0)) for second in range(100, 3000, 10)]])
    machine.crash()
    sizes = []
    while machine.poll(1, 1):
        machine.commit()
        sizes.append(len(machine.committed[1][shard_of("cart")]))
    assert max(sizes) > 10_000 > 1_000 > sizes[-1]
    machine.finish()
    assert counts(machine) == dict.fromkeys(range(100, 3000, 10), 1)


def test_windows_are_stored_only_while_they_wait_for_a_partition_that_is_behind() -> None:
    w = Writer()
    # Two partitions in turns, the other 30 s behind.
    logs = [
        [w.batch(*((second - lag + one / 1000, 1.0 + one) for one in range(1000))) for second in range(100, 500, 10)]
        for lag in (0, 30)
    ]
    machine = Machine(logs, WindowConfig())

    def stored() -> int:
        machine.commit()
        return len(machine.committed[1][shard_of("cart")])

    for _ in range(39):
        for number in (0, 1):
            machine.poll(number, 1)
            assert stored() < 2_000
    machine.poll(0, 1)
    machine.hidden[1] = 1
    for _ in range(30):
        machine.wait(0.5)
        machine.poll(0, 1)
    assert stored() > 10_000  # the first one was silent and releases what it has brought
    machine.crash()
    machine.hidden[1] = 0
    idle(machine, 15)
    assert stored() < 2_000
    machine.finish()
    assert sum(counts(machine).values()) == 80_000


# -- another configuration -------------------------------------------------------------------------------

LATER_US = START_US + 400 * S


@pytest.mark.parametrize("crash_again", [False, True])
def test_a_lower_lateness_after_a_restart_retires_no_window_before_it_is_rebuilt(crash_again: bool) -> None:
    """In the next generation, so that no fuller row of before the restart hides what is missing."""
    log: list[Entry] = [
        Batch("cart", "", "p", n, SERIES, tuple((row, START_US + n * 2 * S, float(n)) for row in range(8)), LATER_US)
        for n in range(100)
    ]
    machine = Machine([log], WindowConfig(lateness_s=120))
    machine.poll(0, 98)
    machine.commit()
    machine.config = WindowConfig(lateness_s=10, max_future_s=10, generation=1, disorder_s=0)
    machine.crash()
    for _ in range(3):
        machine.poll(0, 7)
        machine.wait(2)
        machine.commit()
    if crash_again:
        machine.crash()
    machine.finish(7)
    expected = expect([log], replace(machine.config, lateness_s=120)).rows
    assert machine.rows.keys() == expected.keys()
    for key, row in machine.rows.items():
        check_row(key, row, expected[key], replace(machine.config, generation=row["version"] >> 48))


@pytest.mark.parametrize("low", [600, 615], ids=["between minutes", "in a minute"])
def test_a_new_state_of_a_higher_generation_replaces_what_a_drain_left_though_the_beginning_is_gone(low: int) -> None:
    w = Writer()
    log: list[Entry] = [w.batch((second, 100.0 * (second + 1)), series=TOTAL) for second in range(1500)]
    before = Machine([log], CONFIG)
    before.poll(0, 1205)
    before.drain()
    after = Machine([log[low:]], replace(CONFIG, generation=1), low=low)
    after.rows = before.rows
    after.finish()
    expected = expect([log], CONFIG).rows
    assert after.rows.keys() == expected.keys()
    for key, row in after.rows.items():
        start_s = key.start_s - START_US // S
        if start_s <= low < start_s + key.seconds:  # of what was deleted, the first window shows nothing any more
            assert row["count"] == start_s + key.seconds - low
        else:
            check_row(key, row, expected[key], replace(CONFIG, generation=int(start_s >= low)))


def test_the_first_minute_after_a_restart_does_not_do_the_work_of_its_six_windows_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    coded: list[int] = []

    def counting(values: Any, scale: int) -> Any:
        coded.append(values.size)
        return codes_of(values, scale)

    writer = Writer()
    samples = 100
    log: list[Entry] = [
        writer.batch(*((second + number / samples, 1.0 + number) for number in range(samples))) for second in range(70)
    ]
    machine = Machine([log], WindowConfig())
    machine.poll(0, 58)
    machine.commit()
    machine.crash()
    monkeypatch.setattr(window, "codes_of", counting)
    at_once = []
    for _ in range(machine.partitions[0].next_offset, len(log)):
        coded.clear()
        machine.poll(0, 1)
        at_once.append(sum(coded))
    machine.finish()
    assert max(at_once) <= 1_300  # ten seconds, of disorder two more, and the poll itself
    check(machine, expect([log], machine.config))


def test_a_start_that_was_killed_while_it_made_the_directory_is_no_damage(tmp_path: Path) -> None:
    recovery.prepare_recovery(tmp_path)
    (tmp_path / "making").write_text("begun")
    (tmp_path / "part-0.sqlite3").write_bytes(b"")
    (tmp_path / "part-3.sqlite3").unlink()
    for _ in range(2):
        recovery.prepare_recovery(tmp_path)
        assert sorted(path.stat().st_size > 0 for path in tmp_path.glob("*.sqlite3")) == [True] * 4
    (tmp_path / "part-0.sqlite3").write_bytes(b"")
    with pytest.raises(recovery.DamagedError):
        recovery.prepare_recovery(tmp_path)


class _Sum(StatefulBatchLogic[int, int, int]):
    """Gives the sum of a key's numbers."""

    def __init__(self, state: int | None) -> None:
        self._sum = state or 0

    def on_batch(self, values: list[int]) -> tuple[list[int], bool]:
        self._sum += sum(values)
        return [self._sum], self.RETAIN

    def snapshot(self) -> int:
        return self._sum


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE fronts SET worker_frontier = worker_frontier + 4",
        "UPDATE fronts SET worker_frontier = worker_frontier - 1",
        "UPDATE exs SET resume_epoch = 100 WHERE ex_num = 1",
        "UPDATE exs SET worker_count = 2 WHERE ex_num = 1",
        "UPDATE exs SET ex_num = 9 WHERE ex_num = 1",
        "DELETE FROM exs WHERE ex_num = 1",
        "DELETE FROM fronts WHERE ex_num = 1",
        "DELETE FROM exs; DELETE FROM fronts",
        "UPDATE commits SET commit_epoch = commit_epoch - 3 WHERE part_index = 2",
        "DELETE FROM commits WHERE part_index = 2",
        "DELETE FROM parts WHERE part_index = 2",
        "UPDATE parts SET part_count = 5 WHERE part_index = 2",
        "PRAGMA user_version = 4",
        "ALTER TABLE snaps RENAME TO snap",
        "UPDATE snaps SET ser_change = zeroblob(30)",
    ],
)
def test_files_that_do_not_say_the_same_are_refused(tmp_path: Path, damage: str) -> None:
    """As when one is an older one, or has lost the end of its write-ahead log."""
    others = [(f"other {number}", 1) for number in range(9)]
    numbers = TestingSource([("a", 1), TestingSource.EOF(), *others, TestingSource.EOF()])
    for _ in range(2):
        _run(tmp_path, numbers)
    for _ in range(2):
        recovery.prepare_recovery(tmp_path)
    for path in sorted(tmp_path.glob("part-*.sqlite3")):
        with closing(sqlite3.connect(path)) as file, file:
            file.executescript(damage)
    for _ in range(2):
        with pytest.raises(recovery.DamagedError, match="put back a copy of the directory"):
            recovery.prepare_recovery(tmp_path)


def _run(directory: Path, numbers: TestingSource[Any]) -> list[tuple[str, int]]:
    sums: list[tuple[str, int]] = []
    flow = Dataflow("flow")
    summed = op.stateful_batch("sum", op.input("numbers", flow, numbers), _Sum)
    op.output("sums", summed, TestingSink(sums))
    run_main(flow, epoch_interval=timedelta(0), recovery_config=recovery.prepare_recovery(directory))
    return sums


def test_the_state_of_an_epoch_that_did_not_end_is_forgotten(tmp_path: Path) -> None:
    """When the epoch is done again there may be nothing to do for the key, so that nothing overwrites it."""
    others = [(f"other {number}", 1) for number in range(9)]  # an epoch each; at EOF every key has something to do
    numbers = TestingSource([("a", 1), TestingSource.EOF(), *others, TestingSource.ABORT(), ("a", 1)])

    assert _run(tmp_path, numbers) == [("a", 1)]
    # What a process leaves that is killed after it stored a key's state and before the epoch's end.
    undone = 0
    with ExitStack() as opened:
        files = [opened.enter_context(closing(sqlite3.connect(path))) for path in tmp_path.glob("part-*.sqlite3")]
        (epoch,) = [epoch for file in files for (epoch,) in file.execute("SELECT worker_frontier FROM fronts")]
        for file in files:
            with file:
                undone += file.execute(
                    "INSERT INTO snaps (step_id, state_key, snap_epoch, ser_change) "
                    "SELECT step_id, state_key, ?, ? FROM snaps WHERE state_key = 'a'",
                    [epoch, pickle.dumps(100)],
                ).rowcount
    assert undone == 1
    assert len(_run(tmp_path, numbers)) >= 8
    assert _run(tmp_path, numbers)[-1] == ("a", 2)
