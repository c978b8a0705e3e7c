"""Process groups: what a set of processes and all their descendants take, as one series a group and metric.

A process belongs to the first group, in their order, that it matches itself or that a process it descends from belongs
to; so no process counts twice. One whose parent has ended stays where it was.
"""

import os
import pwd
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import translate
from functools import lru_cache
from pathlib import Path
from typing import Final

from tailrace_schemas.clock import monotonic_s

from tailrace_producers.collectors.process_table import NO_GROUP, Process, ProcessTable, read_bytes
from tailrace_producers.collectors.reading import Failure, Reading

__all__ = ["MAX_GROUPS", "Group", "Groups"]

MAX_GROUPS: Final = 1000
LOOKS_PER_PASS: Final = 32
"""Processes that are looked at again though nothing tells of a change: a title set, a user or cgroup changed."""
MEMORY_SHARE: Final = 0.002
"""Of one CPU, for reading USS and PSS: the kernel walks all pages of a process for them (100 us to many ms)."""
MEMORY_BURST_S: Final = 0.010
COMMAND_BYTES: Final = 15
"""The kernel cuts a command's name there."""


@dataclass(frozen=True)
class Group:
    """A group's name, and what a process must be to start it: all that is given must hold.

    Raises:
        ValueError: no name, nothing to match, or a pattern that is no regular expression; names the group.
    """

    name: str
    process: str = ""
    """The program's name; `*`, `?` and `[...]` as in a shell."""
    command_line: str = ""
    """A regular expression, found anywhere in the arguments joined by spaces (their first 4 kB)."""
    user: str = ""
    """Name or number of the effective user."""
    parent: str = ""
    """The name of the parent's program, a pattern as in `process`. The parent itself is not part of the group."""
    cgroup: str = ""
    """The path of its control group, a pattern as in `process`, in any hierarchy."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a group has no name")
        criteria = [field.name for field in fields(self) if field.name != "name"]
        if not any(getattr(self, criterion) for criterion in criteria):
            raise ValueError(f"group {self.name!r} matches nothing: give it at least one of {', '.join(criteria)}")
        try:
            re.compile(self.command_line)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"group {self.name!r}: command_line {self.command_line!r} is no regular expression: {error}"
            ) from None

    def matches(self, look: "_Look") -> bool:
        """Whether a process is one that this group is about."""
        return (
            (not self.process or bool(_glob(self.process).match(look.process.name)))
            and (not self.parent or (look.parent is not None and bool(_glob(self.parent).match(look.parent.name))))
            and (not self.user or self.user in look.user)
            and (not self.command_line or bool(_regex(self.command_line).search(look.command_line)))
            and (not self.cgroup or any(map(_glob(self.cgroup).match, look.cgroups)))
        )


@lru_cache(maxsize=2 * MAX_GROUPS)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(translate(pattern))


@lru_cache(maxsize=MAX_GROUPS)
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@lru_cache(maxsize=4096)
def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


class _Look:
    """One look at a process. Reads only what a rule asks for; what cannot be read matches nothing."""

    def __init__(self, proc: str, process: Process, parent: Process | None) -> None:
        self._directory = f"{proc}/{process.pid}"
        self.process = process
        self.parent = parent
        self._command_line: str | None = None
        self._user: tuple[str, ...] | None = None
        self._cgroups: list[str] | None = None

    @property
    def command_line(self) -> str:
        if self._command_line is None:
            self._command_line = self._read("cmdline").rstrip("\0").replace("\0", " ")
        return self._command_line

    @property
    def user(self) -> tuple[str, ...]:
        """Number and name; nothing where it cannot be read."""
        if self._user is None:
            words = self._read("status").partition("\nUid:")[2].split(None, 2)
            self._user = (words[1], _user_name(int(words[1]))) if len(words) == 3 else ()
        return self._user

    @property
    def cgroups(self) -> list[str]:
        if self._cgroups is None:
            self._cgroups = [line.split(":", 2)[2] for line in self._read("cgroup").splitlines() if line.count(":") > 1]
        return self._cgroups

    def name(self) -> str:
        """The program's name, completed from the command line where the kernel has cut it."""
        command = self.process.stat.command
        if len(command) >= COMMAND_BYTES:
            program = self._read("cmdline").partition("\0")[0].rpartition("/")[2]
            if program.startswith(command.decode(errors="replace")):
                return program
        return command.decode(errors="replace")

    def _read(self, file: str) -> str:
        try:
            return read_bytes(f"{self._directory}/{file}").decode(errors="replace")
        except OSError:
            return ""


class _Sum:
    """A group in one pass."""

    __slots__ = (
        "descriptors", "io_denied", "io_missing", "memory_denied", "memory_missing", "processes", "pss",
        "resident_pages", "threads", "uss",
    )  # fmt: skip

    def __init__(self) -> None:
        self.processes = self.threads = self.descriptors = self.resident_pages = self.uss = self.pss = 0
        self.memory_missing = self.memory_denied = self.io_missing = self.io_denied = 0

    def add_memory(self, process: Process) -> None:
        if process.memory is not None:
            self.uss += process.memory[0]
            self.pss += process.memory[1]
        elif process.stat.resident_pages:  # kernel threads and zombies have none
            self.memory_missing += 1
            self.memory_denied += process.memory_denied


class Groups:
    """Adds up the table's processes by group. Its totals begin with 0 when it is made.

    Cost of a process in a group and pass: 4 us if it does nothing, 15 us more if it uses CPU; and for all together
    `MEMORY_SHARE` of a CPU for USS and PSS, whose values are thus as old as it takes to read all in turn.
    """

    def __init__(self, proc: Path, groups: Sequence[Group], clock: Callable[[], float] = monotonic_s) -> None:
        """`clock` tells what reading a process' memory takes.

        Raises:
            ValueError: two groups of one name, or too many.
        """
        if len(groups) > MAX_GROUPS:
            raise ValueError(f"{len(groups)} process groups; at most {MAX_GROUPS} are possible")
        names = [group.name for group in groups]
        if twice := next((name for number, name in enumerate(names) if name in names[:number]), None):
            raise ValueError(f"two process groups are called {twice!r}")
        self._proc = str(proc)
        self._groups = list(groups)
        self._clock = clock
        self._ticks = [0] * len(groups)
        self._io = [(0, 0)] * len(groups)
        self._turn: deque[int] = deque()
        self._looked_at: set[int] = set()
        self._memory_turn: deque[Process] = deque()
        self._memory_credit_s = MEMORY_BURST_S
        self._previous_s: float | None = None
        self._denied: set[tuple[str, str]] = set()
        self._counts_descriptors = _counts_descriptors(proc)

    def next_turn(self, processes: Mapping[int, Process]) -> set[int]:
        """PIDs that are looked at in the coming pass, whatever they do; all have their turn."""
        if not self._turn:
            self._turn.extend(processes)
        self._looked_at = {self._turn.popleft() for _ in range(min(LOOKS_PER_PASS, len(self._turn)))}
        return self._looked_at

    def readings(self, table: ProcessTable, now_s: float) -> Iterator[Reading | Failure]:
        """Of the pass that the table has just made."""
        sums = [_Sum() for _ in self._groups]
        members = []
        for process in table.processes.values():
            self._place(process, table.processes)
            ticks = process.settle_ticks()
            if process.group != NO_GROUP:
                members.append(process)
                self._ticks[process.group] += ticks
                self._add(sums[process.group], process)
        self._read_memory(table.processes, now_s)
        for process in members:
            sums[process.group].add_memory(process)
        for number, group in enumerate(sums):
            yield from self._readings_of(number, group)

    def _readings_of(self, number: int, group: _Sum) -> Iterator[Reading | Failure]:
        name = self._groups[number].name
        attributes = {"process.group.name": name}
        cpu_s = self._ticks[number] / os.sysconf("SC_CLK_TCK")
        resident = group.resident_pages * os.sysconf("SC_PAGE_SIZE")
        descriptors = group.descriptors
        yield Reading("process.group.cpu.time", "cumulative", "s", cpu_s, attributes)
        yield Reading("process.group.process.count", "gauge", "{process}", group.processes, attributes)
        yield Reading("process.group.thread.count", "gauge", "{thread}", group.threads, attributes)
        yield Reading("process.group.file_descriptor.count", "gauge", "{file_descriptor}", descriptors, attributes)
        yield Reading("process.group.memory.rss", "gauge", "By", resident, attributes)
        if not group.memory_missing:
            yield Reading("process.group.memory.uss", "gauge", "By", group.uss, attributes)
            yield Reading("process.group.memory.pss", "gauge", "By", group.pss, attributes)
        if not group.io_missing:
            for direction, size in zip(("read", "write"), self._io[number], strict=True):
                of_direction = {**attributes, "disk.io.direction": direction}
                yield Reading("process.group.disk.io", "cumulative", "By", size, of_direction)
        for what, denied in (("I/O", group.io_denied), ("USS and PSS", group.memory_denied)):
            if denied and (name, what) not in self._denied:  # told once, not each pass
                self._denied.add((name, what))
                error = PermissionError(f"{denied} processes of other users: this needs CAP_SYS_PTRACE")
                yield Failure(f"{what} of group {name}", error)

    def _place(self, process: Process, processes: Mapping[int, Process]) -> None:
        """Finds the group of a process; its parent has been placed before."""
        stat = process.stat
        parent = processes.get(stat.parent)
        if parent is not None and parent.stat.started > stat.started:
            parent = None  # a later one with its PID
        program = (stat.command, stat.start_stack)
        # Between fork and exec a process looks as its parent does: the second look sees what it has become.
        if program != process.program or process.looks < 2 or process.pid in self._looked_at:
            process.program, process.looks = program, process.looks + 1
            look = _Look(self._proc, process, parent)
            process.name = look.name()
            process.own = next((n for n, group in enumerate(self._groups) if group.matches(look)), NO_GROUP)
        if stat.parent != process.parent:
            process.parent, process.kept = stat.parent, process.inherited
        process.inherited = min(process.kept, parent.group if parent is not None else NO_GROUP)
        process.group = min(process.own, process.inherited)

    def _add(self, group: _Sum, process: Process) -> None:
        group.processes += 1
        group.threads += process.stat.threads
        group.resident_pages += process.stat.resident_pages
        if process.active:  # an idle one opens no files
            process.descriptors = self._descriptors(process.pid)
        group.descriptors += process.descriptors
        if process.io is None:
            process.read_io(self._proc)
        reads, writes = process.settle_io()
        if process.io is None:
            group.io_missing += 1
            group.io_denied += process.io_denied
        else:
            all_reads, all_writes = self._io[process.group]
            self._io[process.group] = all_reads + reads, all_writes + writes
        if not process.in_turn:
            process.in_turn = True
            self._memory_turn.appendleft(process)

    def _descriptors(self, pid: int) -> int:
        directory = f"{self._proc}/{pid}/fd"
        try:
            return os.stat(directory).st_size if self._counts_descriptors else len(os.listdir(directory))
        except OSError:  # it has ended, or is another user's and the kernel older than 6.2
            return 0

    def _read_memory(self, processes: Mapping[int, Process], now_s: float) -> None:
        """Reads USS and PSS of those whose turn it is, new ones first, as long as the time granted lasts."""
        if self._previous_s is not None:
            granted_s = MEMORY_SHARE * (now_s - self._previous_s)
            self._memory_credit_s = min(MEMORY_BURST_S, self._memory_credit_s + granted_s)
        self._previous_s = now_s
        if len(self._memory_turn) > 2 * len(processes):  # more come and go than are read: those that went
            self._memory_turn = deque(one for one in self._memory_turn if processes.get(one.pid) is one)
        for _ in range(len(self._memory_turn)):
            if self._memory_credit_s <= 0:
                break
            process = self._memory_turn.popleft()
            process.in_turn = processes.get(process.pid) is process and process.group != NO_GROUP
            if not process.in_turn:
                continue
            self._memory_turn.append(process)
            if process.stat.resident_pages:
                began_s = self._clock()
                process.read_memory(self._proc)
                self._memory_credit_s -= self._clock() - began_s


def _counts_descriptors(proc: Path) -> bool:
    """Whether the size of a process' directory fd is the number of its files: since Linux 6.2."""
    try:
        return 0 < os.stat(proc / "self" / "fd").st_size <= len(os.listdir(proc / "self" / "fd"))
    except OSError:
        return False
