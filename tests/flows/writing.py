"""Logs written by hand, for single cases."""

from tailrace_flows.core.config import WindowConfig
from tailrace_schemas.samples import Series

from tests.flows.machine import START_US, Machine, S, check
from tests.flows.oracle import Batch, Entry, expect

LATENCY = Series("latency", "distribution", "s")
TOTAL = Series("total", "cumulative")
CONFIG = WindowConfig()


class Writer:
    """Writes batches of one service as its producer would; times are seconds after START_US."""

    def __init__(self, service: str = "cart", stream: str = "") -> None:
        self.service = service
        self.stream = stream
        self.sequence = 0

    def batch(self, *samples: tuple[float, float], series: Series = LATENCY, end: bool = False) -> Batch:
        """A batch of (time, value)."""
        return self.rows((series,), *((0, time_s, value) for time_s, value in samples), end=end)

    def rows(self, table: tuple[Series, ...], *samples: tuple[int, float, float], end: bool = False) -> Batch:
        """A batch of (row, time, value)."""
        timed = tuple((row, START_US + round(time_s * S), value) for row, time_s, value in samples)
        newest_us = max((time_us for _, time_us, _ in timed), default=START_US)
        self.sequence += 1
        return Batch(self.service, self.stream, "p", self.sequence - 1, table, timed, newest_us, end)


def run(*log: Entry, config: WindowConfig = CONFIG, records: int = 1) -> Machine:
    """A machine that has read the log, in polls of `records`, and the rows of which are the expected ones."""
    machine = Machine([log], config)
    machine.finish(records)
    check(machine, expect([log], config))
    return machine


def versions(machine: Machine, seconds: int, start_s: int) -> list[int]:
    """The versions of a window's rows, as written."""
    start = START_US // S + start_s
    return [row["version"] for row in machine.written if row["key"][::4] == (seconds, start)]


def idle(machine: Machine, seconds: float) -> None:
    """Polls for so long, twice a second; mostly there is nothing."""
    until_us = machine.now_us + round(seconds * S)
    while machine.now_us < until_us:
        for number in range(len(machine.logs)):
            machine.poll(number, 100)
        machine.wait(0.5)
