"""A kernel's processes, as far as /proc tells of them: what the accounting of process groups is tested against."""

from dataclasses import dataclass, field
from pathlib import Path

INIT = 1


@dataclass
class Task:
    """One process. `used` and `wrote` are its own; `reaped` and `reaped_bytes` those of children it has waited for."""

    pid: int
    parent: int
    started: int
    command: str
    command_line: str
    user: int = 0
    cgroup: str = "/"
    used: int = 0
    wrote: int = 0
    reaped: int = 0
    reaped_bytes: int = 0
    waits: bool = True
    """False: it ignores SIGCHLD, so the kernel forgets what its children used."""
    resident_pages: int = 10
    threads: int = 1
    descriptors: int = 3
    private_kb: int = 8
    pss_kb: int = 12
    execs: int = 1


@dataclass
class Kernel:
    """Runs as its methods say, and writes itself to a directory as /proc."""

    proc: Path
    tasks: dict[int, Task] = field(default_factory=dict)
    ticks: int = 1000

    def __post_init__(self) -> None:
        self.tasks[INIT] = Task(INIT, 0, 0, "init", "/sbin/init")

    def fork(self, parent: int, pid: int) -> Task:
        assert pid not in self.tasks
        self.ticks += 1
        of = self.tasks[parent]
        self.tasks[pid] = task = Task(pid, parent, self.ticks, of.command, of.command_line, of.user, of.cgroup)
        return task

    def exec(self, pid: int, command_line: str) -> None:
        task = self.tasks[pid]
        task.command = command_line.split()[0].rpartition("/")[2][:15]
        task.command_line = command_line
        task.execs += 1

    def spawn(self, parent: int, pid: int, command_line: str) -> Task:
        task = self.fork(parent, pid)
        self.exec(pid, command_line)
        return task

    def exit(self, pid: int) -> None:
        """It ends and is waited for at once; its children become init's."""
        task = self.tasks.pop(pid)
        parent = self.tasks[task.parent]
        if parent.waits:
            parent.reaped += task.used + task.reaped
            parent.reaped_bytes += task.wrote + task.reaped_bytes
        for other in self.tasks.values():
            if other.parent == pid:
                other.parent = INIT

    def descendants(self, pid: int) -> list[int]:
        children = [task.pid for task in self.tasks.values() if task.parent == pid]
        return [pid, *(one for child in children for one in self.descendants(child))]

    def write(self) -> None:
        """Brings the directory up to date."""
        for entry in self.proc.iterdir():
            if entry.name.isdecimal() and int(entry.name) not in self.tasks:
                for file in (entry / "fd").iterdir():
                    file.unlink()
                (entry / "fd").rmdir()
                for file in entry.iterdir():
                    file.unlink()
                entry.rmdir()
        for task in self.tasks.values():
            self._write(task)

    def _write(self, task: Task) -> None:
        directory = self.proc / str(task.pid)
        (directory / "fd").mkdir(parents=True, exist_ok=True)
        stack = 0x7FF000000000 + task.pid * 4096 + task.execs
        (directory / "stat").write_text(
            f"{task.pid} ({task.command}) S {task.parent} 1 1 0 -1 4194560 0 0 0 0 {task.used} 0 {task.reaped} 0 20 0 "
            f"{task.threads} 0 {task.started} 9000000 {task.resident_pages} 18446744073709551615 1 1 {stack} 0 0 0\n"
        )
        (directory / "io").write_text(
            "rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\n"
            f"read_bytes: 0\nwrite_bytes: {task.wrote + task.reaped_bytes}\ncancelled_write_bytes: 0\n"
        )
        (directory / "cmdline").write_text(task.command_line.replace(" ", "\0") + "\0")
        user = task.user
        (directory / "status").write_text(f"Name:\t{task.command}\nUid:\t0\t{user}\t{user}\t{user}\nGid:\t0\t0\t0\t0\n")
        (directory / "cgroup").write_text(f"4:memory:/elsewhere\n0::{task.cgroup}\n")
        (directory / "smaps_rollup").write_text(
            "55d2c6f04000-7fff0f106000 ---p 00000000 00:00 0                          [rollup]\n"
            f"Rss:                1708 kB\nPss:                 {task.pss_kb} kB\nPss_Dirty:           116 kB\n"
            f"Shared_Clean:       1552 kB\nPrivate_Clean:        {task.private_kb - 1} kB\n"
            "Private_Dirty:         1 kB\nPrivate_Hugetlb:       0 kB\n"
        )
        for number in range(task.descriptors):
            (directory / "fd" / str(number)).touch()
