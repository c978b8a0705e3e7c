"""A partition: what it passes on, what it holds back for a replay, and what it forgets."""

from tailrace_flows.core.counters import Count

from tests.flows.machine import START_US, Machine, S, check
from tests.flows.oracle import expect
from tests.flows.oracle import expect
from tests.flows.writing import CONFIG, Writer, idle

SAMPLES = ("shard 55", "cart", "", Count.SAMPLES)
LATE = ("shard 55", "cart", "", Count.LATE)


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


def test_records_that_were_read_before_they_were_deleted_are_no_gap() -> None:
    w = Writer()
    log = [w.batch((second, 1.0)) for second in range(20)]
    machine = Machine([log], CONFIG)
    machine.poll(0, 10)
    machine.commit()
    machine.crash()
    assert machine.partitions[0].next_offset == 0
    machine.delete_before(0, 12)
    machine.finish()
    assert machine.counters[GAP] == 2
    assert machine.counters[SAMPLES] == 18


def test_a_partition_that_starts_in_the_middle_misses_nothing() -> None:
    w = Writer()
    log = [w.batch((second, 1.0)) for second in range(20)]
    machine = Machine([log[7:]], CONFIG, low=7)
    machine.finish()
    check(machine, expect([log[7:]], CONFIG, whole=False))
    assert not any(name in (Count.MISSING_BATCHES, Count.GAP_RECORDS) for *_, name in machine.counters)
