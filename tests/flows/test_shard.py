"""A shard and its window tables: single cases, each told as a short log."""

import pytest
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


# -- closing and correcting ------------------------------------------------------------------------------


def test_a_late_correction_is_emitted_before_its_window_is_forgotten() -> None:
    w = Writer()
    # In one poll a late sample arrives, and the watermark passes the end of its minute's lateness.
    machine = run(w.batch((1, 1.0)), w.batch((70, 1.0)), w.batch((5, 2.0), (300, 1.0)))
    assert versions(machine, 10, 0) == [1, 2]
    assert versions(machine, 60, 0) == [1, 2]


@pytest.mark.parametrize("kind", ["distribution", "gauge", "counter", "cumulative", "event"])
def test_late_corrections_of_many_series_are_whole_rows(kind: str) -> None:
    table = tuple(Series("m", kind, "", (("n", f"{number:04d}"),)) for number in range(1500))
    every = [(row, 1.0, float(row)) for row in range(1500)]
    w = Writer()
    run(w.rows(table, *every), w.rows(table, (0, 30.0, 1.0)), w.rows(table, *every[1000::7], *every[::211]))
