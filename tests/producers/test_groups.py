"""Process groups: on a kernel made up for the purpose, and with real processes beside psutil and their own times."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from tailrace_producers.collectors import Failure, Reading
from tailrace_producers.collectors.groups import LOOKS_PER_PASS, MEMORY_BURST_S, MEMORY_SHARE, Group, Groups
from tailrace_producers.collectors.process_table import ProcessTable, settle
from tailrace_producers.collectors.processes import Processes
from tailrace_producers.collectors.reading import PROC

from tests.infra.waiting import eventually
from tests.producers.kernel import INIT, Kernel

linux = pytest.mark.skipif(PROC is None, reason="reads Linux's /proc")

TICKS_PER_S = os.sysconf("SC_CLK_TCK") if PROC is not None else 100

Values = dict[tuple[str, ...], float]


def of_groups(collector: Processes, now_s: float) -> Values:
    """One pass: (group, metric without its beginning, direction) -> value."""
    found: Values = {}
    for item in collector.collect(now_s):
        assert isinstance(item, Reading), item
        if "process.group.name" in item.attributes:
            name, *more = item.attributes.values()
            found[name, item.metric.removeprefix("process.group."), *more] = item.value
    return found


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


# Which processes are a group


def members(kernel: Kernel, *groups: Group) -> dict[str, float]:
    """How many processes each group has, with a collector that sees them for the first time."""
    kernel.write()
    found = of_groups(Processes(kernel.proc, groups), 1.0)
    return {group.name: found[group.name, "process.count"] for group in groups}


@pytest.fixture
def host(kernel: Kernel) -> Kernel:
    """init - supervisord - two workers; init - editor - node - shell - node; init - postgres (another user, cgroup)."""
    kernel.spawn(INIT, 10, "/usr/bin/supervisord -n")
    kernel.spawn(10, 11, "python3 -m celery -A shop worker -Q mail")
    kernel.spawn(10, 12, "python3 -m celery -A shop worker -Q bills")
    kernel.spawn(INIT, 20, "/opt/editor/editor-with-a-long-name --type=main")
    kernel.spawn(20, 21, "node lsp.js")
    kernel.spawn(21, 22, "sh -c build")
    kernel.spawn(22, 23, "node build.js")
    postgres = kernel.spawn(INIT, 30, "postgres: checkpointer")
    postgres.user, postgres.cgroup = 4294, "/system.slice/postgresql.service"
    return kernel


@pytest.mark.parametrize(
    ("group", "count"),
    [
        (Group("g", process="node"), 3),  # one of them by its parents alone
        (Group("g", process="sh"), 2),
        (Group("g", process="editor-with-a-long-name"), 4),
        (Group("g", process="editor-with-a-"), 0),  # as the kernel cuts it
        (Group("g", process="*[pd]"), 3),
        (Group("g", command_line=r"celery .* -Q (mail|sms)"), 1),
        (Group("g", command_line="^postgres: "), 1),
        (Group("g", user="4294"), 1),
        (Group("g", user="no such user"), 0),
        (Group("g", parent="supervisord"), 2),
        (Group("g", parent="supervisord", command_line="bills"), 1),
        (Group("g", cgroup="*/postgresql.service"), 1),
        (Group("g", cgroup="/elsewhere"), 9),
        (Group("g", process="node", user="4294"), 0),
        (Group("g", process="init"), 9),
    ],
)
def test_what_a_group_matches(host: Kernel, group: Group, count: int) -> None:
    assert members(host, group) == {"g": count}


def test_users_go_by_name_and_number(host: Kernel) -> None:
    root = psutil.Process().username() if os.geteuid() == 0 else "root"
    assert members(host, Group("name", user=root)) == {"name": 9}  # postgres too: init is its parent
    assert members(host, Group("number", user="0")) == {"number": 9}


def test_the_group_listed_first_wins_whether_by_itself_or_by_a_parent(host: Kernel) -> None:
    editor, node, shell = Group("editor", process="editor*"), Group("node", process="node"), Group("sh", process="sh")
    assert members(host, editor, node, shell) == {"editor": 4, "node": 0, "sh": 0}
    assert members(host, node, editor, shell) == {"node": 3, "editor": 1, "sh": 0}
    assert members(host, shell, node, editor) == {"sh": 2, "node": 1, "editor": 1}


def test_who_loses_its_parent_stays_and_an_exec_is_noticed(host: Kernel) -> None:
    collector = Processes(host.proc, [Group("editor", process="editor*"), Group("job", process="job")])
    host.write()
    assert of_groups(collector, 1.0)["editor", "process.count"] == 4
    host.exit(21)  # the shell and its child are init's now
    host.exec(12, "job --all")
    host.fork(12, 13)  # and a child that looks as its parent until it execs
    host.write()
    found = of_groups(collector, 2.0)
    assert (found["editor", "process.count"], found["job", "process.count"]) == (3, 2)
    host.exit(22)
    host.exec(23, "something else")
    host.exec(12, "idle")
    host.write()
    found = of_groups(collector, 3.0)
    assert (found["editor", "process.count"], found["job", "process.count"]) == (2, 1)


def test_a_title_set_without_an_exec_is_noticed_when_its_turn_comes(kernel: Kernel) -> None:
    for pid in range(100, 100 + 2 * LOOKS_PER_PASS):
        kernel.spawn(INIT, pid, "worker")
    collector = Processes(kernel.proc, [Group("busy", command_line="busy")])
    kernel.write()
    for now_s in (1.0, 2.0):
        assert of_groups(collector, now_s)["busy", "process.count"] == 0
    for pid in range(100, 100 + 2 * LOOKS_PER_PASS):
        kernel.tasks[pid].command_line = "busy"
    kernel.write()
    counts = [of_groups(collector, now_s)["busy", "process.count"] for now_s in (3.0, 4.0, 5.0, 6.0)]
    assert counts[-1] == 2 * LOOKS_PER_PASS
    steps = [after - before for before, after in zip([0.0, *counts], counts, strict=False)]
    assert max(steps) <= LOOKS_PER_PASS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"name": "x"},
            "group 'x' matches nothing: give it at least one of process, command_line, user, parent, cgroup",
        ),
        ({"name": "", "process": "x"}, "a group has no name"),
        ({"name": "x", "command_line": "a{99999999999}"}, "group 'x': command_line .* is no regular expression"),
        ({"name": "x", "command_line": "(a"}, r"group 'x': command_line '\(a' is no regular expression: .*position 0"),
    ],
)
def test_a_group_that_cannot_be_is_refused(fields: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Group(**fields)


def test_groups_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two process groups are called 'a'"):
        Processes(tmp_path, [Group("a", process="x"), Group("a", process="y")])
    with pytest.raises(ValueError, match="1001 process groups; at most 1000"):
        Processes(tmp_path, [Group(str(number), process="x") for number in range(1001)])
    with pytest.raises(ValueError, match="process groups need Linux"):
        Processes(None, [Group("a", process="x")])


# What a group has used


def test_figures_of_a_group(kernel: Kernel) -> None:
    shop = kernel.spawn(INIT, 10, "shop")
    child = kernel.spawn(10, 11, "helper")
    shop.threads, child.threads, shop.descriptors = 4, 2, 5
    collector = Processes(kernel.proc, [Group("shop", process="shop"), Group("none", process="none")])
    kernel.write()
    of_groups(collector, 1.0)
    shop.used, child.used, child.wrote = 50, 25, 8192
    kernel.write()
    page = os.sysconf("SC_PAGE_SIZE")
    assert of_groups(collector, 2.0) == {
        ("shop", "cpu.time"): 75 / TICKS_PER_S,
        ("shop", "process.count"): 2,
        ("shop", "thread.count"): 6,
        ("shop", "file_descriptor.count"): 8,
        ("shop", "memory.rss"): 20 * page,
        ("shop", "memory.uss"): 2 * 8 * 1024,
        ("shop", "memory.pss"): 2 * 12 * 1024,
        ("shop", "disk.io", "read"): 0,
        ("shop", "disk.io", "write"): 8192,
        **{
            ("none", *key): 0
            for key in [
                ("cpu.time",), ("process.count",), ("thread.count",), ("file_descriptor.count",),
                ("memory.rss",), ("memory.uss",), ("memory.pss",), ("disk.io", "read"), ("disk.io", "write"),
            ]
        },
    }  # fmt: skip


def test_what_was_used_before_the_first_pass_does_not_count(kernel: Kernel) -> None:
    kernel.spawn(INIT, 10, "shop").used = 500
    kernel.tasks[10].reaped = 100
    kernel.tasks[10].wrote = kernel.tasks[10].reaped_bytes = 4096
    collector = Processes(kernel.proc, [Group("shop", process="shop")])
    kernel.write()
    found = of_groups(collector, 1.0)
    assert found["shop", "cpu.time"] == found["shop", "disk.io", "write"] == 0
    kernel.spawn(INIT, 20, "shop").used = 7  # but of one that began later, all
    kernel.tasks[20].wrote = 512
    kernel.write()
    found = of_groups(collector, 2.0)
    assert (found["shop", "cpu.time"], found["shop", "disk.io", "write"]) == (7 / TICKS_PER_S, 512)


def test_a_line_of_processes_that_ends_between_two_passes_counts_once(kernel: Kernel) -> None:
    """Each was counted while it lived; in the end all of it is in the first one's totals."""
    collector = Processes(kernel.proc, [Group("shop", process="shop")])
    kernel.spawn(INIT, 10, "shop")
    for parent, pid in ((10, 11), (11, 12), (12, 13)):
        kernel.fork(parent, pid)
    kernel.write()
    of_groups(collector, 1.0)
    for pid in (11, 12, 13):
        kernel.tasks[pid].used, kernel.tasks[pid].wrote = 100, 1000
    kernel.write()
    found = of_groups(collector, 2.0)
    assert (found["shop", "cpu.time"], found["shop", "disk.io", "write"]) == (300 / TICKS_PER_S, 3000)
    kernel.tasks[13].used += 5
    kernel.fork(13, 14).used = 2  # never seen
    for pid in (14, 13, 12, 11):
        kernel.exit(pid)
    kernel.write()
    for now_s in (3.0, 4.0):
        found = of_groups(collector, now_s)
        assert (found["shop", "cpu.time"], found["shop", "disk.io", "write"]) == (307 / TICKS_PER_S, 3000)


def test_another_process_with_the_same_pid_is_another(kernel: Kernel) -> None:
    collector = Processes(kernel.proc, [Group("shop", process="shop")])
    kernel.spawn(INIT, 10, "shop").used = 500
    kernel.spawn(10, 11, "helper").used = 70
    kernel.write()
    of_groups(collector, 1.0)
    kernel.exit(11)
    kernel.exit(10)
    kernel.spawn(INIT, 10, "other").used = 900
    kernel.spawn(10, 11, "shop").used = 3  # the other's child, of a group by itself
    kernel.write()
    found = of_groups(collector, 2.0)
    assert (found["shop", "process.count"], found["shop", "cpu.time"]) == (1, 3 / TICKS_PER_S)


def test_a_parents_pid_taken_by_a_later_process_makes_it_no_parent(kernel: Kernel) -> None:
    """As in a listing that is half old and half new."""
    kernel.spawn(INIT, 10, "helper")
    kernel.spawn(INIT, 20, "shop")
    kernel.tasks[10].parent = 20  # but it began before
    assert members(kernel, Group("shop", process="shop")) == {"shop": 1}


class Accounting(RuleBasedStateMachine):
    """A tree below a process that stays: what its group is told to have used is what it has used.

    While everyone waits for its children and nobody is orphaned: exactly, children that no pass saw included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.kernel = Kernel(Path(self.directory.name))
        self.kernel.spawn(INIT, 10, "root")
        self.collector = Processes(self.kernel.proc, [Group("tree", process="root"), Group("rest", process="*")])
        self.kernel.write()
        self.now_s = 0.0
        self.found = of_groups(self.collector, self.now_s)
        self.used = self.wrote = 0

    def teardown(self) -> None:
        self.directory.cleanup()

    def tree(self) -> list[int]:
        return self.kernel.descendants(10)

    @precondition(lambda self: len(self.kernel.tasks) < 8)
    @rule(data=st.data(), pid=st.integers(11, 18))
    def forks(self, data: st.DataObject, pid: int) -> None:
        parent = data.draw(st.sampled_from(self.tree()))
        self.kernel.fork(parent, min({*range(11, 19)} - self.kernel.tasks.keys(), key=lambda one: abs(one - pid)))

    @rule(data=st.data(), ticks=st.integers(0, 100), size=st.integers(0, 10_000))
    def runs(self, data: st.DataObject, ticks: int, size: int) -> None:
        task = self.kernel.tasks[data.draw(st.sampled_from(self.tree()))]
        task.used += ticks
        task.wrote += size
        self.used += ticks
        self.wrote += size

    @precondition(lambda self: len(self.tree()) > 1)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        leaves = [pid for pid in self.tree()[1:] if len(self.kernel.descendants(pid)) == 1]
        pid = data.draw(st.sampled_from(leaves))
        self.kernel.exit(pid)

    @rule()
    def collect(self) -> None:
        self.kernel.write()
        self.now_s += 1.0
        self.found = of_groups(self.collector, self.now_s)
        assert self.found["tree", "cpu.time"] == pytest.approx(self.used / TICKS_PER_S)
        assert self.found["tree", "process.count"] == len(self.tree())
        # I/O of a process is read when it has used CPU; of the others each in its turn, here every pass.
        assert self.found["tree", "disk.io", "write"] == self.wrote


class Disorder(Accounting):
    """Parents end before their children, or do not wait for them: then never too much is told, and it never falls."""

    @rule(data=st.data(), waits=st.booleans())
    def changes_its_mind(self, data: st.DataObject, waits: bool) -> None:
        pid = data.draw(st.sampled_from(self.tree()))
        if len(self.kernel.descendants(pid)) == 1:  # of those it has, some would be waited for and some not
            self.kernel.tasks[pid].waits = waits

    @precondition(lambda self: len(self.tree()) > 1)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        pid = data.draw(st.sampled_from(self.tree()[1:]))
        self.kernel.exit(pid)

    @rule()
    def collect(self) -> None:
        before = self.found
        self.kernel.write()
        self.now_s += 1.0
        self.found = of_groups(self.collector, self.now_s)
        for key, total in ((("tree", "cpu.time"), self.used / TICKS_PER_S), (("tree", "disk.io", "write"), self.wrote)):
            assert before[key] <= self.found[key] <= total + 1e-9


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
TestDisorder = Disorder.TestCase
TestDisorder.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=20))
def test_what_comes_a_pass_later_than_it_is_owed_is_still_taken_off(children: list[tuple[int, int]]) -> None:
    """Each pass a child ends, having been counted for `seen` of what it used; the parent shows it a pass later."""
    owed = credit = 0
    risen = 0
    for seen, unseen in children:
        more, owed = settle(risen, owed, seen)
        credit += more
        risen = seen + unseen
    more, owed = settle(risen, owed, 0)
    assert credit + more == sum(unseen for _, unseen in children)
    assert owed == 0


def test_what_never_comes_is_forgotten_after_a_pass() -> None:
    _, owed = settle(0, 0, 500)
    assert owed == 500
    _, owed = settle(0, owed, 0)
    assert settle(30, owed, 0) == (30, 0)


# Memory


def test_reading_memory_keeps_to_the_time_granted_and_all_have_their_turn(kernel: Kernel) -> None:
    for pid in range(100, 140):
        kernel.spawn(INIT, pid, "shop")
    kernel.write()
    clock_s = 0.0
    reads = 0

    def clock() -> float:
        nonlocal clock_s, reads
        reads += 1
        clock_s += 0.0005  # so much passes between any two looks at the clock: a read takes 0.5 ms
        return clock_s

    table = ProcessTable(kernel.proc)
    groups = Groups(kernel.proc, [Group("shop", process="shop")], clock)
    now_s = 0.0
    told_at = None
    for number in range(40):
        table.refresh(groups.next_turn(table.processes))
        reads = 0
        found = {item.metric for item in groups.readings(table, now_s) if isinstance(item, Reading)}
        spent_s = reads / 2 * 0.0005
        assert spent_s <= (MEMORY_BURST_S if number == 0 else MEMORY_SHARE * 1.0) + 0.0005
        if "process.group.memory.uss" in found and told_at is None:
            told_at = number
            assert all(process.memory for pid, process in table.processes.items() if pid != INIT)
        now_s += 1.0
    assert told_at is not None, "all 40 have been read"
    assert told_at > 1


def test_processes_that_end_before_their_turn_are_forgotten(kernel: Kernel) -> None:
    table = ProcessTable(kernel.proc)
    clock_s = iter(range(10**6))  # a read takes so long that there is no time for another
    groups = Groups(kernel.proc, [Group("shop", process="shop")], lambda: float(next(clock_s)))
    for now_s in range(20):
        for pid in range(10, 20):
            if pid in kernel.tasks:
                kernel.exit(pid)
            kernel.spawn(INIT, pid, "shop")
        kernel.write()
        table.refresh(groups.next_turn(table.processes))
        list(groups.readings(table, float(now_s)))
    assert len(groups._memory_turn) <= 2 * len(kernel.tasks)


def test_a_new_process_is_read_before_the_others_again(kernel: Kernel) -> None:
    for pid in range(100, 110):
        kernel.spawn(INIT, pid, "shop")
    collector = Processes(kernel.proc, [Group("shop", process="shop")])
    kernel.write()
    for now_s in (0.0, 5.0):
        assert of_groups(collector, now_s)["shop", "memory.uss"] == 10 * 8 * 1024
    kernel.spawn(INIT, 110, "shop").private_kb = 100
    kernel.write()
    assert of_groups(collector, 10.0)["shop", "memory.uss"] == (10 * 8 + 100) * 1024


# Real processes


WAIT = "import sys; sys.stdin.read()"


@pytest.fixture
def spawn() -> Iterator[Any]:
    """Starts a Python that does `code`, then waits; gives it once it has printed a line."""
    running: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", f"{code}\nprint('ready', flush=True)\n{WAIT}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    yield start
    for process in running:
        process.communicate("")


CHURN = """
import os, sys, threading
def burn(seconds):
    until = sum(os.times()[:2]) + seconds
    while sum(os.times()[:2]) < until:
        pass
def child(depth):
    pid = os.fork()
    if pid == 0:
        burn(0.004)
        if depth:
            os.waitpid(child(depth - 1), 0)
        os._exit(0)
    return pid
print('ready', flush=True)
sys.stdin.readline()
for number in range(20):
    pids = [child(2), child(0)]
    for pid in pids:
        os.waitpid(pid, 0)
burn(0.05)
print(sum(os.times()[:4]), flush=True)
sys.stdin.read()
"""


@linux
@pytest.mark.parametrize("pause_s", [0.0, 0.3])
def test_nothing_of_children_that_live_shorter_than_a_pass_is_lost_or_counted_twice(pause_s: float) -> None:
    """80 children of a few ms each, in three generations, while passes come all the time or hardly ever."""
    root = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", CHURN, "tailrace-churn"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert root.stdout is not None
    assert root.stdin is not None
    assert root.stdout.readline().strip() == "ready"
    collector = Processes(groups=[Group("churn", command_line=" tailrace-churn$")])
    used = [of_groups(collector, 0.0)["churn", "cpu.time"]]
    before_s = _cpu_s(root.pid)
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.append(root.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    root.stdin.write("go\n")
    root.stdin.flush()
    while reader.is_alive():
        used.append(of_groups(collector, float(len(used)))["churn", "cpu.time"])
        reader.join(pause_s)
    for _ in range(2):
        used.append(of_groups(collector, float(len(used)))["churn", "cpu.time"])
    root.communicate("")
    expected = float(told[0]) - before_s
    assert used == sorted(used)
    assert expected > 0.3
    assert used[-1] == pytest.approx(expected, abs=0.05)


def _cpu_s(pid: int) -> float:
    return sum(psutil.Process(pid).cpu_times()[:4])


@linux
def test_memory_threads_and_files_agree_with_psutil(spawn: Any) -> None:
    code = (
        "import os, sys, threading; block = bytearray(os.urandom(20_000_000)); "
        "files = [open(sys.executable) for _ in range(7)]; "
        "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )
    process = spawn(code, "tailrace-figures")
    found = of_groups(Processes(groups=[Group("one", command_line=" tailrace-figures$")]), 0.0)
    psutils = psutil.Process(process.pid)
    memory = psutils.memory_full_info()
    assert found["one", "process.count"] == 1
    assert found["one", "thread.count"] == psutils.num_threads() == 2
    assert found["one", "file_descriptor.count"] == psutils.num_fds()
    for type in ("rss", "uss", "pss"):
        assert found["one", f"memory.{type}"] == pytest.approx(getattr(memory, type), rel=0.02)
    assert found["one", "memory.uss"] > 20_000_000


@linux
def test_io_of_children_that_are_gone_counts(spawn: Any, tmp_path: Path) -> None:
    code = f"""
import os, sys
print('ready', flush=True)
sys.stdin.readline()
for number in range(3):
    if (pid := os.fork()) == 0:
        with open({str(tmp_path)!r} + f'/{{number}}', 'wb') as file:
            file.write(bytes(1_000_000)); file.flush(); os.fsync(file.fileno())
        os._exit(0)
    os.waitpid(pid, 0)
"""
    process = spawn(code, "tailrace-io")
    collector = Processes(groups=[Group("io", command_line=" tailrace-io$")])
    of_groups(collector, 0.0)
    process.stdin.write("go\n")
    process.stdin.flush()
    assert process.stdout.readline().strip() == "ready"
    truth = psutil.Process(process.pid).io_counters().write_bytes
    if not truth:
        pytest.skip(f"writes to {tmp_path} do not count as storage's")
    eventually(lambda: of_groups(collector, 1.0)["io", "disk.io", "write"] >= 3_000_000)
    assert of_groups(collector, 2.0)["io", "disk.io", "write"] <= psutil.Process(process.pid).io_counters().write_bytes


@linux
def test_what_another_users_processes_do_not_tell_is_left_out_and_said_once(spawn: Any) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    spawn("pass", "tailrace-secret")
    collector = Processes(groups=[Group("secret", command_line=" tailrace-secret$")])
    os.seteuid(65534)
    try:
        passes = [list(collector.collect(now_s)) for now_s in (0.0, 1.0)]
    finally:
        os.seteuid(0)
    failures = [item for item in passes[0] + passes[1] if isinstance(item, Failure)]
    assert [item.what for item in failures] == ["I/O of group secret", "USS and PSS of group secret"]
    assert all("1 processes of other users: this needs CAP_SYS_PTRACE" in str(item.error) for item in failures)
    for items in passes:
        found = {item.metric: item.value for item in items if isinstance(item, Reading) and item.attributes}
        assert found["process.group.process.count"] == 1
        assert found["process.group.memory.rss"] > 1_000_000
        assert not {"process.group.memory.uss", "process.group.memory.pss", "process.group.disk.io"} & found.keys()


def test_processes_of_which_nothing_is_shown_hinder_no_other() -> None:
    """As /proc with hidepid=1 has them."""
    with TemporaryDirectory() as directory:
        kernel = Kernel(Path(directory))
        kernel.spawn(1, 10, "/bin/mine")
        kernel.spawn(1, 11, "/bin/others")
        kernel.write()
        (kernel.proc / "11").chmod(0)
        Path(directory).chmod(0o755)
        before = os.geteuid()
        os.seteuid(before or 65534)  # root may read all
        try:
            found = of_groups(Processes(kernel.proc, [Group("all", process="*")]), 1.0)
        finally:
            os.seteuid(before)
    assert found["all", "process.count"] == 2
