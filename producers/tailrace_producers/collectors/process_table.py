"""All processes, from one pass over /proc: what each has used since the pass before, nothing lost and nothing twice."""

import os
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Final

from tailrace_producers.collectors.proc import ProcessStat, parse_process_io, parse_process_stat, parse_smaps_rollup

__all__ = ["NO_GROUP", "Process", "ProcessTable", "read_bytes", "settle"]

NO_GROUP: Final = 1 << 30
"""After every group."""
READ_BYTES: Final = 4096
"""Of any file of a process; longer command lines are cut."""


def settle(risen: int, owed_before: int, owed_now: int) -> tuple[int, int]:
    """What a process' counter of its ended children has really added, and what it is still owed.

    When a child ends and is waited for, all that it ever used appears in its parent's counter at once. What was counted
    while the child lived (`owed`) must be taken off; the rest is what it used last, and what its own children used that
    came and went unseen. A child may end after its parent was read and before it was looked for: what is owed since
    this pass may thus come with the next. What has not come by then never will: the parent ignores SIGCHLD, or the
    child was given to another. So too little may be counted, never too much.
    """
    owed = owed_before + owed_now
    return (risen - owed, 0) if risen >= owed else (0, min(owed - risen, owed_now))


class Process:
    """One process, known by PID and start time."""

    __slots__ = (
        "active", "cpu_ticks", "descriptors", "group", "in_turn", "inherited", "io", "io_bytes", "io_denied",
        "io_owed_before", "io_owed_now", "io_read", "kept", "looks", "memory", "memory_denied", "name", "new", "own",
        "parent", "pid", "program", "since_start", "stat", "ticks_owed_before", "ticks_owed_now", "ticks_risen",
    )  # fmt: skip

    def __init__(self, pid: int, stat: ProcessStat, since_start: bool) -> None:
        self.pid = pid
        self.stat = stat
        self.since_start = since_start
        """It began after the table's first pass: all that it has used counts."""
        self.new = True
        """In the pass that found it."""
        self.active = True
        """It is new, has used CPU since the pass before, has waited for a child that did, or it is its turn."""
        self.cpu_ticks = stat.cpu_ticks if since_start else 0
        """Used since the pass before, by itself."""
        self.ticks_risen = stat.reaped_ticks if since_start else 0
        self.ticks_owed_before = self.ticks_owed_now = 0
        self.io: tuple[int, int] | None = None
        """Bytes read from and written to storage, as last read."""
        self.io_bytes = (0, 0)
        """What `io` has risen by with this reading."""
        self.io_owed_before = self.io_owed_now = (0, 0)
        self.io_read = False
        """In this pass."""
        self.io_denied = False
        # The rest belongs to groups.py.
        self.name = ""
        self.program: tuple[bytes, int] | None = None
        """Changes with an exec."""
        self.looks = 0
        """How often its command line, user and cgroup were looked at."""
        self.own = self.kept = self.inherited = self.group = NO_GROUP
        """Number of the first group that it matches itself; that it keeps from parents it had; that it has from these
        and its parent; and the first of them, to which it belongs."""
        self.parent = stat.parent
        self.descriptors = 0
        """Open files, as last counted."""
        self.memory: tuple[int, int] | None = None
        """USS and PSS in bytes, as last read."""
        self.memory_denied = False
        self.in_turn = False
        """Waiting for its memory to be read again."""

    def advance(self, stat: ProcessStat, its_turn: bool) -> None:
        """Another reading of the same process."""
        before = self.stat
        self.stat, self.new = stat, False
        self.cpu_ticks = max(0, stat.cpu_ticks - before.cpu_ticks)
        self.ticks_risen = max(0, stat.reaped_ticks - before.reaped_ticks)
        self.active = its_turn or self.cpu_ticks > 0 or self.ticks_risen > 0

    def read_io(self, proc: str) -> None:
        """Reads its I/O, which the kernel keeps together with that of its waited-for children."""
        try:
            now = parse_process_io(read_bytes(f"{proc}/{self.pid}/io"))
        except PermissionError:
            self.io_denied = True
            return
        except (FileNotFoundError, ProcessLookupError):  # it has ended; or a kernel that does not count
            return
        before = self.io or ((0, 0) if self.new and self.since_start else now)
        self.io, self.io_read, self.io_denied = now, True, False
        self.io_bytes = (max(0, now[0] - before[0]), max(0, now[1] - before[1]))

    def read_memory(self, proc: str) -> None:
        """Reads its USS and PSS."""
        try:
            self.memory = parse_smaps_rollup(read_bytes(f"{proc}/{self.pid}/smaps_rollup"))
        except PermissionError:
            self.memory, self.memory_denied = None, True
        except (FileNotFoundError, ProcessLookupError):  # it has ended; or Linux before 4.14
            self.memory = None

    def owe(self, child: "Process") -> None:
        """A child is gone: what it was counted for will appear here too."""
        ticks = child.stat.cpu_ticks + child.stat.reaped_ticks
        self.ticks_owed_now += ticks + child.ticks_owed_before + child.ticks_owed_now
        reads, writes = child.io or (0, 0)
        (r1, w1), (r2, w2), (r3, w3) = self.io_owed_now, child.io_owed_before, child.io_owed_now
        self.io_owed_now = (r1 + reads + r2 + r3, w1 + writes + w2 + w3)

    def settle_ticks(self) -> int:
        """CPU used by it and by children of it that have ended, since the pass before. Once a pass."""
        if not self.ticks_owed_now and not self.ticks_owed_before:
            return self.cpu_ticks + self.ticks_risen
        credit, self.ticks_owed_before = settle(self.ticks_risen, self.ticks_owed_before, self.ticks_owed_now)
        self.ticks_owed_now = 0
        return self.cpu_ticks + credit

    def settle_io(self) -> tuple[int, int]:
        """Bytes read and written by it and by children that have ended, since it was read before. Once a pass."""
        before, now = self.io_owed_before, self.io_owed_now
        if not self.io_read and now == (0, 0):
            return 0, 0
        if not self.io_read:
            self.io_owed_before, self.io_owed_now = (before[0] + now[0], before[1] + now[1]), (0, 0)
            return 0, 0
        reads, reads_owed = settle(self.io_bytes[0], before[0], now[0])
        writes, writes_owed = settle(self.io_bytes[1], before[1], now[1])
        self.io_owed_before, self.io_owed_now, self.io_read = (reads_owed, writes_owed), (0, 0), False
        return reads, writes


class ProcessTable:
    """One read of /proc/PID/stat a process and pass; of /proc/PID/io for processes of groups that did something.

    Parents are read before their children. So whoever was waited for before a parent was read is found gone afterwards,
    and its time is not counted twice: once with itself and once with its parent.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = str(proc)
        self.processes: Mapping[int, Process] = {}
        """By PID, in the order in which they began; a parent before its children."""
        self._passed = False

    def refresh(self, turn: Container[int] = ()) -> None:
        """One pass. `turn`: PIDs of processes that count as active even if they used no CPU.

        Raises:
            OSError: /proc itself cannot be listed.
            ValueError, IndexError: the kernel writes something else than this knows.
        """
        listed = {int(name) for name in os.listdir(self._proc) if name.isdecimal()}
        known = self.processes
        found: dict[int, Process] = {}
        new: list[Process] = []
        for pid in [pid for pid in known if pid in listed] + sorted(listed - known.keys()):
            try:
                stat = parse_process_stat(read_bytes(f"{self._proc}/{pid}/stat"))
            except (FileNotFoundError, ProcessLookupError):  # it has ended since the listing
                continue
            except PermissionError:  # /proc with hidepid=1 lists others' processes, and shows nothing of them
                continue
            process = known.get(pid)
            if process is not None and process.stat.started == stat.started:
                process.advance(stat, pid in turn)
                if process.active and process.group != NO_GROUP:
                    process.read_io(self._proc)
                found[pid] = process
            else:
                new.append(Process(pid, stat, self._passed))
        for process in sorted(new, key=lambda one: (one.stat.started, one.pid)):
            found[process.pid] = process
        _hand_on(known, found)
        self.processes, self._passed = found, True


def _hand_on(before: Mapping[int, Process], now: Mapping[int, Process]) -> None:
    """Lets the parents of processes that have ended know; where the parent has ended too, its parent."""
    for process in reversed(list(before.values())):  # children first
        if now.get(process.pid) is process:
            continue
        parent = before.get(process.stat.parent)
        if parent is not None and parent.stat.started <= process.stat.started:  # else a later one with its PID
            parent.owe(process)


def read_bytes(path: str) -> bytes:
    """The first 4 kB of a file: half the cost of `open`.

    Raises:
        OSError: as usual; FileNotFoundError or ProcessLookupError where the process has ended.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, READ_BYTES)
    finally:
        os.close(file)
