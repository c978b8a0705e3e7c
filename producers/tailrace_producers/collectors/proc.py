"""Parsers of files in /proc. Pure: text in, counters out, as the kernel has them.

Unknown lines and further columns are ignored, for kernels add some every few years.
Source: Linux Documentation/filesystems/proc.rst, Documentation/admin-guide/iostats.rst.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "CpuTimes", "DiskStats", "ProcStat", "ProcessStat", "parse_diskstats", "parse_proc_stat", "parse_process_io",
    "parse_process_stat", "parse_smaps_rollup", "parse_sockstat", "parse_vmstat",
]  # fmt: skip


class CpuTimes(NamedTuple):
    """Seconds since boot. `guest` is part of `user`, `guest_nice` of `nice`."""

    user: float = 0.0
    nice: float = 0.0
    system: float = 0.0
    idle: float = 0.0
    iowait: float = 0.0
    irq: float = 0.0
    softirq: float = 0.0
    steal: float = 0.0
    guest: float = 0.0
    guest_nice: float = 0.0


class ProcStat(NamedTuple):
    """/proc/stat."""

    total: CpuTimes
    """Of all CPUs together."""
    cpus: Mapping[str, CpuTimes]
    """By logical number; one that is offline is absent."""
    counters: Mapping[str, int]
    """The first number of every other line: intr, ctxt, btime, processes, procs_running, procs_blocked, softirq."""


class DiskStats(NamedTuple):
    """A block device since boot. Times are milliseconds and wrap at 2^32, sectors have 512 bytes."""

    reads: int = 0
    reads_merged: int = 0
    sectors_read: int = 0
    read_ms: int = 0
    writes: int = 0
    writes_merged: int = 0
    sectors_written: int = 0
    write_ms: int = 0
    in_flight: int = 0
    """Not a counter."""
    busy_ms: int = 0
    weighted_ms: int = 0
    discards: int = 0
    discards_merged: int = 0
    sectors_discarded: int = 0
    discard_ms: int = 0
    flushes: int = 0
    flush_ms: int = 0


class ProcessStat(NamedTuple):
    """/proc/PID/stat, as far as it is used. Times are clock ticks, see sysconf(SC_CLK_TCK)."""

    command: bytes
    """At most 15 bytes of the program's or the main thread's name."""
    state: str
    """One letter: R S D I T t Z X ..."""
    parent: int
    cpu_ticks: int
    """User and system time."""
    reaped_ticks: int
    """User and system time of children that have ended and been waited for, and of theirs."""
    threads: int
    started: int
    """Clock ticks after boot: tells a process from a later one with its PID."""
    resident_pages: int
    start_stack: int
    """Another one after each exec; 0 where the process may not be looked into."""


def parse_proc_stat(text: str, ticks_per_s: int) -> ProcStat:
    """Reads /proc/stat; `ticks_per_s` is sysconf(SC_CLK_TCK).

    Raises:
        ValueError: it has no line of the CPUs' total, or words where numbers belong.
    """
    times: dict[str, CpuTimes] = {}
    counters: dict[str, int] = {}
    for line in text.splitlines():
        # The line of interrupts has a number for each of thousands; only the first, the sum, is of use.
        name, _, rest = line.partition(" ")
        if name.startswith("cpu"):
            values = [int(word) / ticks_per_s for word in rest.split()[: len(CpuTimes._fields)]]
            times[name[3:]] = CpuTimes(*values)
        elif rest:
            counters[name] = int(rest.split(" ", 1)[0])
    total = times.pop("", None)
    if total is None:
        raise ValueError("/proc/stat has no line of the CPUs' total")
    return ProcStat(total, times, counters)


def parse_diskstats(text: str) -> dict[str, DiskStats]:
    """Reads /proc/diskstats: device -> counters. Columns that the kernel does not have are 0.

    Raises:
        ValueError: words where numbers belong.
    """
    devices = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 14:  # fewer: a partition before Linux 2.6.25
            devices[words[2]] = DiskStats(*map(int, words[3 : 3 + len(DiskStats._fields)]))
    return devices


def parse_vmstat(text: str) -> dict[str, int]:
    """Reads /proc/vmstat: name -> number.

    Raises:
        ValueError: words where numbers belong.
    """
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def parse_sockstat(text: str) -> dict[tuple[str, str], int]:
    """Reads /proc/net/sockstat or sockstat6: (protocol, field) -> number; `mem` counts pages.

    Raises:
        ValueError: words where numbers belong.
    """
    found = {}
    for line in text.splitlines():
        protocol, _, rest = line.partition(":")
        words = rest.split()
        for field, number in zip(words[::2], words[1::2], strict=False):
            found[protocol, field] = int(number)
    return found


def parse_process_stat(data: bytes) -> ProcessStat:
    """Reads /proc/PID/stat. The command, in parentheses, may hold anything, parentheses and spaces included.

    Raises:
        ValueError, IndexError: it is cut short, or has words where numbers belong.
    """
    close = data.rindex(b")")
    words = data[close + 2 :].split(None, 26)
    return ProcessStat(
        data[data.index(b"(") + 1 : close],
        words[0].decode(),
        int(words[1]),
        int(words[11]) + int(words[12]),
        int(words[13]) + int(words[14]),
        int(words[17]),
        int(words[19]),
        int(words[21]),
        int(words[25]),
    )


def parse_process_io(data: bytes) -> tuple[int, int]:
    """Reads /proc/PID/io: bytes that the process, and its waited-for children, made storage read and write.

    Raises:
        ValueError, IndexError: it is cut short, or has words where numbers belong.
    """
    words = data.split()
    if words[8] != b"read_bytes:" or words[10] != b"write_bytes:":
        raise ValueError("/proc/PID/io has its fields in another order")
    return int(words[9]), int(words[11])


_PRIVATE = re.compile(rb"^Private_\w+:\s+(\d+)", re.M)
_PSS = re.compile(rb"^Pss:\s+(\d+)", re.M)


def parse_smaps_rollup(data: bytes) -> tuple[int, int]:
    """Reads /proc/PID/smaps_rollup: USS and PSS in bytes, as psutil has them (without swap).

    Raises:
        ValueError: it has no PSS.
    """
    pss = _PSS.search(data)
    if pss is None:
        raise ValueError("/proc/PID/smaps_rollup has no Pss")
    return 1024 * sum(map(int, _PRIVATE.findall(data))), 1024 * int(pss[1])
