"""Memory and swap."""

from collections.abc import Iterator
from pathlib import Path

import psutil

from tailrace_producers.collectors.proc import parse_vmstat
from tailrace_producers.collectors.reading import PROC, Failure, Reading

__all__ = ["Memory"]


class Memory:
    """Cost: 0.3 ms."""

    name = "memory"

    def __init__(self, proc: Path | None = PROC) -> None:
        self._proc = proc

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """See docs/metrics.md."""
        memory = psutil.virtual_memory()
        # What applications cannot get: OpenTelemetry's definition of `used`, MemTotal - MemAvailable on Linux.
        used = memory.total - memory.available
        yield Reading("system.memory.limit", "gauge", "By", memory.total)
        states = {"used": used, "free": memory.free}
        states |= {state: getattr(memory, state) for state in ("cached", "buffers") if hasattr(memory, state)}
        for state, size in states.items():
            yield Reading("system.memory.usage", "gauge", "By", size, {"system.memory.state": state})
        if memory.total:
            share = used / memory.total
            yield Reading("system.memory.utilization", "gauge", "1", share, {"system.memory.state": "used"})
        swap = psutil.swap_memory()
        for state, size in (("used", swap.used), ("free", swap.free)):
            yield Reading("system.paging.usage", "gauge", "By", size, {"system.paging.state": state})
        if swap.total:
            share = swap.used / swap.total
            yield Reading("system.paging.utilization", "gauge", "1", share, {"system.paging.state": "used"})
        if self._proc is not None:
            yield Reading("system.memory.linux.available", "gauge", "By", memory.available)
            yield from _paging(parse_vmstat((self._proc / "vmstat").read_text()))


def _paging(vmstat: dict[str, int]) -> Iterator[Reading]:
    major = vmstat.get("pgmajfault", 0)
    for kind, faults in (("major", major), ("minor", vmstat.get("pgfault", 0) - major)):
        attributes = {"system.paging.fault.type": kind}
        yield Reading("system.paging.faults", "cumulative", "{fault}", faults, attributes)
    for direction in ("in", "out"):
        pages = vmstat.get(f"pswp{direction}", 0)
        attributes = {"system.paging.direction": direction}
        yield Reading("system.paging.operations", "cumulative", "{operation}", pages, attributes)
    if "oom_kill" in vmstat:
        yield Reading("system.linux.memory.oom_kills", "cumulative", "{process}", vmstat["oom_kill"])
