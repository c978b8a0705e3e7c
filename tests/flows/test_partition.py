"""A partition: what it passes on, what it holds back for a replay, and what it forgets."""

import pickle

import pytest
from tailrace_flows.core.chunk import Mark, ReadUntil
from tailrace_flows.core.counters import Count
from tailrace_flows.core.feed import PoisonedError, Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.sealed import seal
from tailrace_flows.core.shard import Shard
from tailrace_schemas.samples import KINDS, Series

from tests.flows.machine import START_US, Machine, S, check
from tests.flows.oracle import DAY_US, Entry, Garbage, expect
from tests.flows.strategies import GARBAGE
from tests.flows.writing import CONFIG, LATENCY, TOTAL, Writer, idle

SAMPLES = ("shard 55", "cart", "", Count.SAMPLES)
LATE = ("shard 55", "cart", "", Count.LATE)
UNREPLAYED = ("shard 55", "cart", "", Count.UNREPLAYED)
MISSING = ("partition 0", "cart", "", Count.MISSING_BATCHES)


# -- idleness --------------------------------------------------------------------------------------------


def test_lateness_by_wall_time_is_the_same_after_a_crash() -> None:
    found = []
    for crash in (False, True):
        w = Writer()
        machine = Machine([[w.batch((1, 1.0), (2, 2.0))]], CONFIG, now_us=START_US + 5 * S)
        idle(machine, 85)  # [0, 10) takes nothing after 70 s; its minute is kept until 120 s
        machine.commit()
        if crash:
            machine.crash()
        machine.append([[w.batch((5, 3.0), (35, 4.0))]])
        machine.finish()
        assert (machine.counters[SAMPLES], machine.counters[LATE]) == (3, 1)
        found.append(machine.rows)
    assert found[0] == found[1]


# -- gaps ------------------------------------------------------------------------------------------------


GAP = ("partition 0", "", "", Count.GAP_RECORDS)


def test_records_that_were_deleted_unread_are_counted_once() -> None:
    w = Writer()
    log = [w.batch((second, 1.0)) for second in range(20)]
    machine = Machine([log], CONFIG)
    machine.poll(0, 5)
    machine.delete_before(0, 8)
    machine.poll(0, 3)
    for _ in range(3):
        machine.commit()
        machine.crash()
    machine.finish()
    assert machine.counters[GAP] == 3
    assert machine.counters[SAMPLES] == 17
    assert machine.counters[("partition 0", "cart", "", Count.MISSING_BATCHES)] == 3


def counts(machine: Machine, seconds: int) -> dict[int, int]:
    """Window start, in seconds after START_US -> samples."""
    return {key.start_s - START_US // S: row["count"] for key, row in machine.rows.items() if key.seconds == seconds}


@pytest.mark.parametrize("deleted", [7, 12], ids=["some", "all"])
def test_records_that_were_read_before_they_were_deleted_are_no_gap(deleted: int) -> None:
    w = Writer()
    log = [w.batch((second, 1.0)) for second in range(20)]
    machine = Machine([log], CONFIG)
    machine.poll(0, 10)
    machine.commit()
    machine.crash()
    assert machine.partitions[0].next_offset == 0
    machine.delete_before(0, deleted)
    machine.poll(0, 1)
    for _ in range(3):
        machine.commit()
        machine.crash(seed=1)
        assert machine.partitions[0].next_offset == deleted  # so it is found out, and told, once
    machine.finish()
    unread = max(0, deleted - 10)
    assert machine.counters.get(GAP, 0) == unread
    assert machine.counters[SAMPLES] == 20 - unread
    assert machine.counters[UNREPLAYED] == min(deleted, 10)
    assert machine.counters.get(MISSING, 0) == unread
    assert sum(counts(machine, 60).values()) == sum(counts(machine, 10).values()) == 20 - deleted


@pytest.mark.parametrize("drained", [False, True], ids=["killed", "drained"])
@pytest.mark.parametrize(("deleted", "lost"), [(250, 0), (301, 1), (307, 5)])
def test_rows_lack_no_more_than_is_counted_when_a_replay_is_not_whole(deleted: int, lost: int, drained: bool) -> None:
    """A sample a second up to 305 s; then the broker has those from `deleted` on."""
    w = Writer()
    table = (LATENCY, TOTAL)
    log = [w.rows(table, (0, second, 1.0), (1, second, 100.0 * second)) for second in range(312)]
    log.append(w.rows(table, (0, 255, 1.0), (1, 255.5, 25_550.0)))  # in time, but for the minute that is not rebuilt
    log += [w.rows(table, (0, second, 1.0), (1, second, 100.0 * second)) for second in range(312, 500)]
    machine = Machine([log], CONFIG)
    machine.poll(0, 305)
    machine.commit()
    if drained:
        machine.drain()
    else:
        machine.crash()
    before = dict(machine.rows)
    machine.delete_before(0, deleted)
    machine.finish()
    assert machine.counters.get(GAP, 0) == max(0, deleted - 305)
    assert machine.counters.get(UNREPLAYED, 0) == 2 * lost
    for kind in ("distribution", "cumulative"):
        rows = {key: row for key, row in machine.rows.items() if key.series.kind == kind}
        for key, row in rows.items():
            start_s = key.start_s - START_US // S
            whole = key.seconds if start_s + key.seconds <= 500 else 500 - start_s
            unread = max(0, deleted - 305) if start_s == 300 else 0
            lacking = whole - unread - row["count"]
            assert 0 <= lacking <= (lost if start_s == 300 else 0), (key, row)
            assert row["count"] >= before.get(key, row)["count"]
            if kind == "cumulative" and row["increase"] is not None:
                assert row["increase"] <= 100.0 * key.seconds, (key, row)
    assert machine.counters[LATE] == 2


def test_a_partition_that_starts_in_the_middle_misses_nothing() -> None:
    w = Writer()
    log = [w.batch((second, 1.0)) for second in range(20)]
    machine = Machine([log[7:]], CONFIG, low=7)
    machine.finish()
    check(machine, expect([log[7:]], CONFIG, whole=False))
    assert not any(name in (Count.MISSING_BATCHES, Count.GAP_RECORDS) for *_, name in machine.counters)


# -- forgetting ------------------------------------------------------------------------------------------


def test_a_producer_is_forgotten_a_day_after_its_last_record_though_a_window_of_it_is_held() -> None:
    a, b = Writer(), Writer("service-64")
    machine = Machine([[a.batch((0, 1.0)), a.batch((200, 1.0))]], CONFIG, now_us=START_US + 400 * S)
    for _ in range(2):
        machine.poll(0, 1)
        machine.commit()
    day_s = DAY_US / S
    machine.append([[b.batch((day_s + 300, 1.0))]])
    machine.wait(day_s)
    machine.poll(0, 1)
    machine.commit()  # the producer is a day old; its second batch is still held
    idle(machine, 20)
    for _ in range(3):
        machine.commit()
        machine.crash()
    machine.finish()
    assert machine.counters[SAMPLES] == 2


def test_one_record_from_the_future_makes_no_producer_forgotten() -> None:
    a, b = Writer(), Writer("service-64")
    first = a.batch((0, 1.0))
    log = [first, a.batch((200, 1.0)), b.batch((10 * DAY_US / S, 1.0)), first]
    machine = Machine([log], CONFIG)
    for _ in log:
        machine.poll(0, 1)
        machine.commit()
    machine.finish()
    assert machine.counters[("partition 0", "cart", "", Count.DUPLICATE_BATCHES)] == 1


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
def test_streams_that_ended_are_forgotten_after_a_day_by_whoever_remembered_them(hold: bool) -> None:
    live = Writer()
    machine = Machine([[live.batch((0, 1.0))]], CONFIG, hold=hold)
    machine.read_all()
    machine.wait(3)
    machine.commit()
    empty = size(machine)
    machine.append([[Writer(stream=f"replay {n}").batch((0, 1.0), end=True) for n in range(100)]])
    machine.read_all()
    machine.wait(3)
    machine.commit()
    assert size(machine) > empty + 100 * 60
    machine.crash()
    machine.read_all()
    machine.commit()
    machine.wait(DAY_US / S + 1)
    day = Writer()
    day.sequence = live.sequence
    machine.append([[day.batch((DAY_US / S + 10, 1.0)), day.batch((DAY_US / S + 11, 1.0))]])
    machine.read_all()
    machine.wait(3)
    machine.commit()
    # Totals stay, two for each stream; watermarks, producers and tables go.
    assert size(machine) < empty + 100 * 45


def size(machine: Machine) -> int:
    """Bytes of all states."""
    partitions, shards = machine.committed
    return sum(len(state) for state in (*partitions, *shards.values()) if state)


# -- silence ---------------------------------------------------------------------------------------------


def test_a_service_is_idle_when_every_partition_that_carried_it_is() -> None:
    old, new = Writer(), Writer()
    machine = Machine([[old.batch((1, 1.0))], [new.batch((2, 2.0))]], CONFIG, now_us=START_US + 3 * S)
    idle(machine, 8)
    machine.append([[], [new.batch((7, 2.0))]])
    idle(machine, 8)  # partition 0 has been silent for 16 s, partition 1 for 8 s
    machine.commit()
    assert not machine.rows
    idle(machine, 8)
    machine.commit()
    assert [row["count"] for row in machine.rows.values()] == [3]


def test_idle_marks_end_when_everything_is_retired() -> None:
    w = Writer()
    machine = Machine([[w.batch((1, 1.0))]], CONFIG, now_us=START_US + 3 * S)
    machine.read_all()
    machine.wait(60)
    read, marked = ("00", ReadUntil(0, 1, machine.now_us)), ("55", Mark(0, "cart", "", machine.now_us, True))
    assert machine.partitions[0].idle_marks(machine.now_us) == [read, marked]
    machine.wait(60)
    assert len(machine.partitions[0].idle_marks(machine.now_us)) == 2
    machine.wait(60)
    assert machine.partitions[0].idle_marks(machine.now_us) == [("00", ReadUntil(0, 1, machine.now_us))]


def test_batches_without_samples_keep_no_service_from_being_idle() -> None:
    w, growth = Writer(), Writer()
    machine = Machine([[w.batch((1, 1.0))], [growth.batch()]], CONFIG, now_us=START_US + 3 * S)
    idle(machine, 20)
    machine.commit()
    assert [row["count"] for row in machine.rows.values()] == [1]


def test_an_interrupted_backfill_may_go_on_within_an_hour_and_is_then_forgotten() -> None:
    w = Writer(stream="backfill")
    machine = Machine([[w.batch((1, 1.0), (700, 2.0))]], CONFIG, hold=False)
    idle(machine, 3500)
    machine.append([[w.batch((680, 1.0))]])
    machine.poll(0, 1)
    machine.wait(3)
    machine.commit()
    assert machine.counters[("shard 55", "cart", "backfill", Count.SAMPLES)] == 3
    full = len(machine.committed[1]["55"])
    # The source sees an hour of silence to the microsecond, the shard a little less: they must agree.
    machine.wait(3597 - 1e-6)
    machine.poll(0, 1)
    machine.commit()
    assert len(machine.committed[1]["55"]) < full - 500
    assert machine.partitions[0].held == 2


# -- what is held back -----------------------------------------------------------------------------------


def footprint(machine: Machine) -> int:
    """Bytes that the partitions and shards keep in memory, about."""
    return len(pickle.dumps((machine.partitions, machine.shards)))


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
def test_a_long_stream_is_held_back_and_remembered_for_its_lateness_only(hold: bool) -> None:
    kinds = [Series(kind, kind) for kind in KINDS]
    machine = Machine([[]], CONFIG, hold=hold)
    sizes = []
    w, backfill, others, second = Writer(), Writer(stream="old"), [Writer(f"other {n}") for n in range(3)], 0.0
    for round_ in range(300):
        new = Series("new", "gauge", "", (("round", str(round_)),))
        rows = [(row, second + 0.1 * row, 1.0) for row in range(len(kinds))]
        # Some samples are late, and one series is never seen again.
        rows += [(5, second, 1.0), (0, second - 65, 1.0), (0, second - 80, 1.0)]
        log: list[Entry] = [w.rows((*kinds, new), *rows), others[round_ % 3].batch((second, 1.0))]
        if round_ < 50:
            log.append(backfill.batch((round_, 1.0), end=round_ == 49))
        machine.append([log])
        machine.read_all()
        machine.wait(5)
        machine.commit()
        if round_ == 150:
            machine.crash()
            machine.read_all()
        second += 5
        if round_ >= 80:
            # A minute, its lateness, the disorder, and 15 s between an other's batches; rounds of 5 s with 2 records.
            rounds = (60 + 60 + 2 + 15) / 5 + 2
            if 150 <= round_ < 200:  # what was replayed at one go is released at one go
                rounds *= 2
            assert machine.partitions[0].next_offset - machine.partitions[0].held <= 2 * rounds
            sizes.append(footprint(machine))
    assert max(sizes[-70:]) < 1.1 * max(sizes[:70])


def test_an_idle_partition_gathers_nothing_while_it_holds_an_interrupted_backfill() -> None:
    machine = Machine([[Writer(stream="old").batch((1, 1.0))]], CONFIG)
    sizes = []
    for _ in range(1000):
        machine.poll(0, 1)
        machine.wait(1)
        machine.commit()
        sizes.append(footprint(machine))
    assert machine.partitions[0].held == 0
    assert max(sizes[500:]) <= max(sizes[:100])
    idle(machine, 3600)
    machine.commit()
    assert machine.partitions[0].held == 1


# -- records of any kind ---------------------------------------------------------------------------------


@pytest.mark.parametrize("record_us", [(2**63 - 1) * 1000, -(2**63) * 1000, -1000, 0])
def test_a_record_may_have_any_timestamp(record_us: int) -> None:
    w = Writer()
    log = [
        w.batch((1, 1.0))._replace(record_time_us=record_us),
        w.batch((2, 1.0), (3, float("nan")))._replace(record_time_us=record_us),
        w.batch((4, 1.0)),
    ]
    for hold in (True, False):
        machine = Machine([log], CONFIG, hold=hold)
        machine.poll(0, 3)
        machine.commit()
        machine.finish()
        check(machine, expect([log], CONFIG))


def test_a_leap_of_a_sequence_is_counted_in_full_and_remembered_in_part() -> None:
    w = Writer()
    leap = 1 << 39
    sequences = [0, leap, leap - 1, leap - 1024, leap - 1025, leap, 1, leap + 2, leap - 1, leap + 1]
    log = [w.batch((1, 1.0))._replace(sequence=sequence) for sequence in sequences]
    machine = Machine([log], CONFIG)
    machine.finish()
    counts = {name: total for (scope, *_, name), total in machine.counters.items() if scope == "partition 0"}
    assert counts == {
        Count.MISSING_BATCHES: leap - 1 + 1,
        Count.RECOVERED_BATCHES: 3,  # of the last 1,024 that were skipped
        Count.DUPLICATE_BATCHES: 4,
        Count.DUPLICATE_SAMPLES: 4,
    }


def test_of_many_gaps_the_last_ones_can_still_be_filled() -> None:
    w = Writer()
    sequences = [*range(1, 3001, 2), 2998, 2998 - 2 * 1023, 2998 - 2 * 1024]
    machine = Machine([[w.batch((1, 1.0))._replace(sequence=sequence) for sequence in sequences]], CONFIG)
    machine.finish()
    counts = {name: total for (scope, *_, name), total in machine.counters.items() if scope == "partition 0"}
    assert counts == {
        Count.MISSING_BATCHES: 1500,
        Count.RECOVERED_BATCHES: 2,
        Count.DUPLICATE_BATCHES: 1,
        Count.DUPLICATE_SAMPLES: 1,
    }


def unreadable(count: int, at: int = 0) -> list[Entry]:
    return [GARBAGE[(at + number) % len(GARBAGE)] for number in range(count)]


def test_a_thousand_unreadable_records_in_a_row_stop_the_flow_and_fewer_do_not() -> None:
    w = Writer()
    log = [*unreadable(999), w.batch((1, 1.0)), *unreadable(999), w.batch((2, 1.0))]
    machine = Machine([log], CONFIG)
    machine.finish()
    check(machine, expect([log], CONFIG))
    machine.append([unreadable(1000)])
    with pytest.raises(PoisonedError, match=r"samples\[0\]: 1000 of the last 3000 records up to offset 2999"):
        machine.read_all()


def test_more_than_half_unreadable_records_stop_the_flow() -> None:
    w = Writer()
    log: list[Entry] = []
    for _ in range(6):
        log += [*unreadable(900), *(w.batch() for _ in range(600))]
    machine = Machine([log], CONFIG)
    with pytest.raises(PoisonedError, match="5001 of the last"):
        machine.read_all()
    # Two fifths are a bad day, however long it lasts.
    calm = Machine([[entry for _ in range(30) for entry in (*unreadable(400), *[w.batch()] * 600)]], CONFIG)
    calm.read_all()


def test_what_was_read_before_a_crash_poisons_nothing() -> None:
    w = Writer()
    machine = Machine([[w.batch((1, 1.0)), *unreadable(900)]], CONFIG)
    machine.read_all()
    machine.commit()
    machine.crash()
    machine.append([[*unreadable(900), w.batch((1, 1.0))]])
    machine.finish()
    assert len(machine.letters) == 1800


def test_a_dead_letter_says_where_why_and_how_many_and_carries_the_record() -> None:
    w = Writer()
    bad = w.rows((LATENCY,), (0, 1.0, float("nan")), (1, 1.0, 1.0), (0, 1.0, 2.0), (0, 2.0, float("inf")))
    text = b"x" * 70_000
    machine = Machine([[w.batch((0, 1.0)), bad, Garbage(text, "unknown_schema", START_US)]], CONFIG)
    machine.finish()
    letters = [machine.letters[place] for place in sorted(machine.letters)]
    assert [(one.offset, one.reason, one.samples, one.service) for one in letters] == [
        (1, "bad_index", 1, "cart"),
        (1, "not_finite", 2, "cart"),
        (2, "unknown_schema", 0, ""),
    ]
    assert letters[0].payload == bad.encode()
    assert letters[0].payload_bytes == len(bad.encode())
    assert letters[0].detail == "1 of 4 samples: series_index beyond the table's 1 series"
    assert (letters[2].payload_bytes, len(letters[2].payload)) == (70_000, 65_536)
    assert all((one.topic, one.partition) == ("samples", 0) for one in letters)


# -- other states than its own ---------------------------------------------------------------------------


def partition(state: bytes | None, *, hold: bool = True, cluster_id: str = "one", start: int = 0) -> Partition:
    return Partition(0, "samples", CONFIG, START_US, hold=hold, cluster_id=cluster_id, start=start, state=state)


def state_after(records: int, *, hold: bool = True) -> bytes:
    w = Writer()
    machine = Machine([[w.batch((second, 1.0)) for second in range(records)]], CONFIG, hold=hold)
    machine.read_all()
    machine.commit()
    (state,), _ = machine.committed
    assert state is not None
    return state


def test_a_state_of_another_format_is_refused_with_what_to_do() -> None:
    for build, reads in ((partition, 2), (lambda state: Shard(CONFIG, START_US, state), 2)):
        with pytest.raises(ValueError, match=f"has format 99, this Tailrace reads {reads}: drain"):
            build(seal(99, None))


def test_windows_that_are_in_the_snapshots_are_not_to_be_lost_by_a_setting() -> None:
    with pytest.raises(ValueError, match="would lose the windows that are open"):
        partition(state_after(5, hold=False), hold=True)


def test_offsets_of_another_cluster_are_not_used() -> None:
    found = partition(state_after(5), cluster_id="two", start=3)
    assert (found.moved_from, found.next_offset, found.replaying) == ("one", 3, False)


@pytest.mark.parametrize(
    ("stored", "now", "elsewhere"),
    [
        ("one/topic", "one/topic", False),
        ("one/topic", "one/another", True),
        ("one/topic", "two/topic", True),
        ("one", "one/topic", False),  # a state of before
        ("one", "one", False),
        ("one/topic", "one", True),
    ],
)
def test_offsets_belong_to_one_topic_of_one_cluster(stored: str, now: str, elsewhere: bool) -> None:
    found = partition(partition(None, cluster_id=stored, start=2).snapshot(START_US), cluster_id=now, start=1)
    assert (found.moved_from, found.next_offset) == ((stored, 1) if elsewhere else (None, 2))
    again = partition(found.snapshot(START_US), cluster_id=now)
    assert again.moved_from is None


def test_a_topic_that_was_made_anew_is_read_from_its_start() -> None:
    found = partition(state_after(5))
    assert (found.next_offset, found.replaying) == (0, True)
    found.restart_at(0, "one/topic")
    assert (found.next_offset, found.replaying, found.moved_from) == (0, False, None)


def test_a_topic_that_is_made_anew_while_it_is_read_is_read_from_its_start_and_what_came_before_is_known() -> None:
    w = Writer()
    old = [w.batch((second, 1.0)) for second in range(6)]
    read = partition(None)
    read.read([Record(at, one.record_time_us, one.encode()) for at, one in enumerate(old[:4])], START_US)
    read.snapshot(START_US)  # a segment whose windows are open: it cannot be replayed any more
    read.restart_at(0, "one/new")
    read.read(
        [Record(at, one.record_time_us, one.encode()) for at, one in enumerate(old[3:])], START_US
    )  # the sender sends again what it had not seen confirmed
    state = read.snapshot(START_US)
    assert (read.held, read.position) == (0, 3)
    counters = read.counter_rows(START_US).to_pylist()
    assert {row["name"]: row["value"] for row in counters}["duplicate_batches"] == 1
    again = partition(state, cluster_id="one/new")
    assert (again.moved_from, again.next_offset, again.position) == (None, 0, 3)
