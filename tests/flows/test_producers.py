"""What a partition remembers of producers: as many as there is room for, the same after any crash."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest
from tailrace_flows.core import sequences
from tailrace_flows.core.counters import Count
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition

from tests.flows.machine import START_US, Machine, S
from tests.flows.oracle import DAY_US, Batch
from tests.flows.writing import CONFIG, LATENCY

ROOM = 3
ROOM_FOR_MISSING = 9


@pytest.fixture(scope="module", autouse=True)
def little_room() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequences, "MAX_PRODUCERS", ROOM)
        patch.setattr(sequences, "MAX_MISSING", ROOM_FOR_MISSING)
        patch.setattr(sequences, "MAX_REMEMBERED_GAPS", ROOM_FOR_MISSING // 2)
        yield


def batch(producer: str, sequence: int, at_s: float = 0) -> Batch:
    time_us = START_US + round(at_s * S)
    return Batch("cart", "", producer, sequence, (LATENCY,), ((0, time_us, 1.0),), time_us)


def counted(machine: Machine) -> dict[str, int]:
    """Of the service and the partition, by name."""
    totals: Counter[str] = Counter()
    for (*_, name), total in machine.counters.items():
        totals[name] += total
    return dict(totals)


def remembered(log: list[Batch]) -> dict[str, int]:
    """The counters of a partition with this log, by a list of who sent last and sets of what it sent."""
    totals: Counter[str] = Counter()
    known: list[tuple[str, list[int], set[int]]] = []
    """(producer, what may still come, what came), who was silent longest first."""
    for one in log:
        found = [entry for entry in known if entry[0] == one.producer]
        known = [entry for entry in known if entry[0] != one.producer]
        begun = not totals[Count.EVICTED_PRODUCERS]
        name, gaps, came = found[0] if found else (one.producer, [], {-1 if begun else one.sequence - 1})
        if one.sequence > max(came):
            skipped = range(max(came) + 1, one.sequence)
            totals[Count.MISSING_BATCHES] += len(skipped)
            gaps = [*gaps, *skipped][-(ROOM_FOR_MISSING // 2) :]
        elif one.sequence in gaps:
            totals[Count.RECOVERED_BATCHES] += 1
            gaps = [gap for gap in gaps if gap != one.sequence]
        else:
            totals[Count.DUPLICATE_BATCHES] += 1
            totals[Count.DUPLICATE_SAMPLES] += 1
            totals[Count.SAMPLES] -= 1
        totals[Count.SAMPLES] += 1
        known.append((name, gaps, came | {one.sequence}))
        while len(known) > ROOM or sum(len(gaps) for _, gaps, _ in known) > ROOM_FOR_MISSING:
            del known[0]
            totals[Count.EVICTED_PRODUCERS] += 1
    return {name: total for name, total in totals.items() if total}


def test_who_was_silent_longest_is_forgotten_and_counted() -> None:
    log = [batch("a", 0), batch("b", 0), batch("c", 0), batch("a", 1), batch("d", 0)]  # b goes
    log += [batch("a", 0), batch("a", 1), batch("c", 0), batch("d", 0)]
    log += [batch("b", 0)]  # taken for a new one
    machine = Machine([log], CONFIG)
    machine.finish()
    assert counted(machine) == {
        Count.SAMPLES: 6, Count.DUPLICATE_BATCHES: 4, Count.DUPLICATE_SAMPLES: 4, Count.EVICTED_PRODUCERS: 2
    }  # fmt: skip


def test_a_lie_about_time_keeps_nobody_remembered() -> None:
    liars = [batch(f"liar {n}", 0)._replace(record_time_us=START_US + 9 * DAY_US) for n in range(ROOM)]
    machine = Machine([[*liars, batch("a", 0), batch("b", 0), batch("a", 0), batch("b", 0)]], CONFIG)
    machine.finish()
    assert counted(machine)[Count.DUPLICATE_BATCHES] == 2


def test_a_producer_that_was_forgotten_and_goes_on_is_missing_nothing() -> None:
    log = [batch("a", n) for n in range(50)] + [batch(name, 0) for name in "bcd"] + [batch("a", 50), batch("a", 52)]
    machine = Machine([log], CONFIG)
    machine.finish()
    assert counted(machine)[Count.MISSING_BATCHES] == 1


@pytest.mark.parametrize(("silence_s", "missing"), [(80_000, 0), (90_000, 7)], ids=["within a day", "a day later"])
def test_how_a_new_producer_began_is_known_again_when_none_was_forgotten_for_a_day(
    silence_s: int, missing: int
) -> None:
    machine = Machine([[batch(name, 0) for name in "abcd"]], CONFIG)
    machine.read_all()
    machine.wait(silence_s)
    machine.commit()
    machine.crash()
    machine.append([[batch("new", 7, silence_s)]])
    machine.finish()
    assert counted(machine).get(Count.MISSING_BATCHES, 0) == missing
    assert counted(machine)[Count.EVICTED_PRODUCERS] == 2 - bool(missing)  # those of a day ago are not counted


def test_the_state_is_bounded_however_long_names_are_and_however_much_is_skipped() -> None:
    def size(log: list[Batch]) -> int:
        machine = Machine([log], CONFIG)
        machine.finish()
        return len(machine.committed[0][0] or b"")

    one = size([batch("a", 0)])
    many = size([batch(f"{n} {'x' * 1000}", 2 * m) for n in range(200) for m in range(20)])
    counters = 120  # the names and totals of three more
    # As of the oldest open window, and as of now.
    assert one < many <= one + counters + 2 * (34 * ROOM + 8 * ROOM_FOR_MISSING)


def test_a_warning_in_ten_minutes_says_what_is_forgotten_and_what_it_means() -> None:
    partition = Partition(7, "samples", CONFIG, START_US, hold=True, cluster_id="one", start=0)
    told = []
    for second in range(1500):
        now_us = START_US + second * S
        one = batch(str(second), 0, second)
        partition.read([Record(second, now_us, one.encode())], now_us)
        partition.snapshot(now_us)
        told += [(second, text) for text in partition.warnings]
        partition.warnings.clear()
    assert [second for second, _ in told] == [3, 603, 1203]
    for part in ("samples[7]", "evicted_producers", "'cart'", "sent again could be counted twice"):
        assert part in told[0][1]


# -- recovery --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
@pytest.mark.parametrize("seed", range(20))
def test_any_crashes_forget_and_count_what_an_undisturbed_run_does(seed: int, hold: bool) -> None:
    random = Random(seed)
    pace_s = random.choice((1, 15, 40, 60))
    names = random.choice(("abcd", "abcdef"))
    steps = random.choice(((1, 1, 0, 0, -1), (1, 0, -1, 2, 4, 9), (0, 1, 3, 4, 5)))
    at: Counter[str] = Counter()
    log = []
    for n in range(100):
        name = random.choice(names)
        at[name] = max(1, at[name] + random.choice(steps))
        log.append(batch(name, at[name] - 1, n * pace_s))
    machine = Machine([log], CONFIG, hold=hold)
    for _ in log:
        machine.poll(0, random.randint(1, 4))
        machine.wait(random.choice((0.01, 2.5)))
        if random.random() < 0.5:
            machine.commit()
        if random.random() < 0.3:
            machine.crash(random.randrange(8))
    machine.finish(random.randint(1, 9))
    assert counted(machine) == remembered(log)
    rows: Counter[int] = Counter()
    for key, row in machine.rows.items():
        rows[key.seconds] += row["count"]
    taken = counted(machine)[Count.SAMPLES]
    assert rows == {10: taken, 60: taken}
