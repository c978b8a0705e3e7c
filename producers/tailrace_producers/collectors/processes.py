"""Processes: how many are in each state, how CPU and memory are spread over them, and groups of them."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from tailrace_producers.collectors.groups import Group, Groups
from tailrace_producers.collectors.process_table import ProcessTable
from tailrace_producers.collectors.reading import PROC, Failure, Reading

__all__ = ["Processes"]

STATES: Final[Mapping[str, str]] = {
    "R": "running",
    "S": "sleeping",
    "D": "uninterruptible",
    "I": "idle",
    "T": "stopped",
    "t": "stopped",
    "Z": "defunct",
    "X": "defunct",
}
"""Linux's letters as OpenTelemetry's `process.state`, and two more: waiting for a device, and idle kernel threads."""
_LETTERS: Final[Mapping[str, str]] = {
    psutil.STATUS_RUNNING: "R",
    psutil.STATUS_SLEEPING: "S",
    psutil.STATUS_DISK_SLEEP: "D",
    psutil.STATUS_IDLE: "I",
    psutil.STATUS_STOPPED: "T",
    psutil.STATUS_TRACING_STOP: "t",
    psutil.STATUS_ZOMBIE: "Z",
    psutil.STATUS_DEAD: "X",
}


class Processes:
    """One pass over /proc for all processes and all groups. Cost: 15 us a process; of groups, see `Groups`."""

    name = "processes"

    def __init__(self, proc: Path | None = PROC, groups: Sequence[Group] = ()) -> None:
        """Raises ValueError on groups that contradict each other, and where there is no /proc to find them in."""
        if groups and proc is None:
            raise ValueError("process groups need Linux: they are found in /proc")
        self._table = ProcessTable(proc) if proc is not None else None
        self._groups = Groups(proc, groups) if groups and proc is not None else None
        self._previous: Mapping[tuple[int, int], float] = {}
        """Without /proc: (PID, start) -> CPU seconds."""
        self._previous_s = 0.0

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md. CPU of a process appears with its second pass; one that ends in between is not seen."""
        interval_s, self._previous_s = now_s - self._previous_s, now_s
        states: Counter[str] = Counter(dict.fromkeys(STATES.values(), 0))
        for letter, cpu_s, resident in self._from_psutil() if self._table is None else self._scan(self._table):
            states[STATES.get(letter, "other")] += 1
            if cpu_s is not None and interval_s > 0:
                yield Reading("system.process.cpu.utilization", "distribution", "1", cpu_s / interval_s)
            if resident:  # kernel threads have none
                yield Reading("system.process.memory.usage", "distribution", "By", resident)
        for state, count in states.items():
            yield Reading("system.process.count", "gauge", "{process}", count, {"process.state": state})
        if self._groups is not None and self._table is not None:
            yield from self._groups.readings(self._table, now_s)

    def _scan(self, table: ProcessTable) -> Iterator[tuple[str, float | None, int]]:
        """State, CPU seconds since the pass before, and resident bytes of each process."""
        table.refresh(self._groups.next_turn(table.processes) if self._groups is not None else ())
        tick_s, page = 1 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        for process in table.processes.values():
            stat = process.stat
            yield stat.state, None if process.new else process.cpu_ticks * tick_s, stat.resident_pages * page

    def _from_psutil(self) -> Iterator[tuple[str, float | None, int]]:
        """As `_scan`."""
        spent: dict[tuple[int, int], float] = {}
        for process in psutil.process_iter(["status", "cpu_times", "memory_info", "create_time"]):
            cpu, memory = process.info["cpu_times"], process.info["memory_info"]
            key = (process.pid, int(process.info["create_time"] or 0))
            spent[key] = cpu.user + cpu.system if cpu else 0.0
            used_s = max(0.0, spent[key] - self._previous[key]) if key in self._previous else None
            yield _LETTERS.get(process.info["status"], "?"), used_s, memory.rss if memory else 0
        self._previous = spent
