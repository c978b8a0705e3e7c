"""A partition: what it passes on, what it holds back for a replay, and what it forgets."""

from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.counters import Count

from tests.flows.machine import START_US, Machine, S, check
from tests.flows.oracle import DAY_US, expect
from tests.flows.writing import CONFIG, LATENCY, Writer, idle

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
