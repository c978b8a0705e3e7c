"""CPU: utilization, time by mode, load, and how many there are."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from tailrace_producers.collectors.proc import CpuTimes, parse_proc_stat
from tailrace_producers.collectors.reading import PROC, Failure, Reading

__all__ = ["Cpu", "busy", "by_mode", "utilization"]


class _Cpus(NamedTuple):
    total: CpuTimes
    each: Mapping[str, CpuTimes]
    counters: Mapping[str, int]


def by_mode(times: CpuTimes) -> dict[str, float]:
    """Seconds by OpenTelemetry's `cpu.mode`; they add up to all time. Interrupts are hardware's and software's."""
    return {
        "user": times.user,
        "nice": times.nice,
        "system": times.system,
        "idle": times.idle,
        "iowait": times.iowait,
        "interrupt": times.irq + times.softirq,
        "steal": times.steal,
    }


def utilization(prev: CpuTimes, curr: CpuTimes) -> dict[str, float]:
    """Shares of the time between two readings by mode, adding up to 1; empty if no time has passed.

    A mode that went back counts as unchanged: `iowait` is known to, and all do when a CPU comes back online.
    Source: sysstat (iostat, mpstat), whose figures these are.
    """
    before = by_mode(prev)
    spent = {mode: max(0.0, seconds - before[mode]) for mode, seconds in by_mode(curr).items()}
    total = sum(spent.values())
    return {mode: seconds / total for mode, seconds in spent.items()} if total > 0 else {}


def busy(shares: Mapping[str, float]) -> float:
    """The share that was neither idle nor waiting for a disk, as psutil's `cpu_percent` counts it."""
    return max(0.0, 1.0 - shares["idle"] - shares["iowait"])


class Cpu:
    """Utilizations appear with the second pass. Cost: 0.1 ms, and 10 us a logical CPU."""

    name = "cpu"

    def __init__(self, proc: Path | None = PROC) -> None:
        self._proc = proc
        self._previous: _Cpus | None = None

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md."""
        cpus = self._read()
        for mode, seconds in by_mode(cpus.total).items():
            yield Reading("system.cpu.time", "cumulative", "s", seconds, {"cpu.mode": mode})
        yield Reading("system.cpu.logical.count", "gauge", "{cpu}", len(cpus.each))
        if self._previous is not None:
            yield from _utilizations(self._previous, cpus)
        self._previous = cpus
        for metric, counter, unit in (
            ("system.process.created", "processes", "{process}"),
            ("system.linux.cpu.context_switches", "ctxt", "{switch}"),
            ("system.linux.cpu.interrupts", "intr", "{interrupt}"),
        ):
            if counter in cpus.counters:
                yield Reading(metric, "cumulative", unit, cpus.counters[counter])
        for minutes, load in zip((1, 5, 15), psutil.getloadavg(), strict=True):
            yield Reading(f"system.cpu.load_average.{minutes}m", "gauge", "{thread}", load)

    def _read(self) -> _Cpus:
        if self._proc is not None:
            text = (self._proc / "stat").read_text()
            return _Cpus(*parse_proc_stat(text, os.sysconf("SC_CLK_TCK")))
        each = {str(number): _from_psutil(times) for number, times in enumerate(psutil.cpu_times(percpu=True))}
        return _Cpus(_from_psutil(psutil.cpu_times()), each, {})


def _utilizations(prev: _Cpus, curr: _Cpus) -> Iterator[Reading]:
    shares = utilization(prev.total, curr.total)
    if shares:
        yield Reading("system.cpu.utilization", "gauge", "1", busy(shares))
    for mode, share in shares.items():
        yield Reading("system.cpu.mode.utilization", "gauge", "1", share, {"cpu.mode": mode})
    for number, times in curr.each.items():
        shares = utilization(prev.each[number], times) if number in prev.each else {}
        if shares:
            attributes = {"cpu.logical_number": number}
            yield Reading("system.cpu.logical.utilization", "gauge", "1", busy(shares), attributes)


def _from_psutil(times: object) -> CpuTimes:
    """psutil's times of one platform; a mode that it does not have is 0. Windows says `interrupt` for irq."""
    irq = getattr(times, "irq", getattr(times, "interrupt", 0.0))
    known = {field: getattr(times, field, 0.0) for field in CpuTimes._fields if field != "irq"}
    return CpuTimes(**known, irq=irq)
