"""Processes: how many are in each state, and how CPU and memory are spread over them."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import psutil

from tailrace_producers.collectors.proc import ProcessStat, parse_process_stat
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
    """One pass over /proc, one read a process. Cost: 15 us a process."""

    name = "processes"

    def __init__(self, proc: Path | None = PROC) -> None:
        self._proc = proc
        self._previous: Mapping[tuple[int, int], float] = {}
        """(PID, start) -> CPU seconds."""
        self._previous_s = 0.0

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md. CPU appears with a process' second pass; one that ends in between is not seen."""
        interval_s = now_s - self._previous_s
        page = os.sysconf("SC_PAGE_SIZE") if self._proc is not None else 1
        states: Counter[str] = Counter(dict.fromkeys(STATES.values(), 0))
        spent: dict[tuple[int, int], float] = {}
        for pid, process in self._read() if self._proc is None else _scan(self._proc):
            states[STATES.get(process.state, "other")] += 1
            key = (pid, process.started)
            spent[key] = process.cpu_s
            if key in self._previous and interval_s > 0:
                share = max(0.0, process.cpu_s - self._previous[key]) / interval_s
                yield Reading("system.process.cpu.utilization", "distribution", "1", share)
            if process.resident_pages:  # kernel threads have none
                size = process.resident_pages * page
                yield Reading("system.process.memory.usage", "distribution", "By", size)
        self._previous, self._previous_s = spent, now_s
        for state, count in states.items():
            yield Reading("system.process.count", "gauge", "{process}", count, {"process.state": state})

    def _read(self) -> Iterator[tuple[int, ProcessStat]]:
        for process in psutil.process_iter(["status", "cpu_times", "memory_info", "create_time"]):
            cpu, memory = process.info["cpu_times"], process.info["memory_info"]
            yield (
                process.pid,
                ProcessStat(
                    _LETTERS.get(process.info["status"], "?"),
                    cpu.user + cpu.system if cpu else 0.0,
                    int(process.info["create_time"] or 0),
                    memory.rss if memory else 0,
                ),
            )


def _scan(proc: Path) -> Iterator[tuple[int, ProcessStat]]:
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    for name in os.listdir(proc):
        if name.isdecimal():
            try:
                with open(f"{proc}/{name}/stat", encoding="utf-8", errors="replace") as file:
                    text = file.read()
            except (FileNotFoundError, ProcessLookupError):  # it has ended since the listing
                continue
            yield int(name), parse_process_stat(text, ticks_per_s)
