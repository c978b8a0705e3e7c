"""`tailrace exec` as shells, terminals and supervisors use it."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.waiting import eventually
from tests.producers.reading import read_topic, samples_of

EXEC = [sys.executable, "-c", "from tailrace_infra.entry import main; main()", "exec"]
AWAY = {"TAILRACE_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1", "TAILRACE_KAFKA__PROPERTIES": "nonsense"}
"""Settings that fail at once, so that a test need not wait for a broker that is away."""


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EXEC, *arguments], env={**os.environ, **AWAY, **environment}, input=stdin, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_a_parent_that_ignores_its_children_hinders_nothing() -> None:
    done = subprocess.run(
        [*EXEC, "sh", "-c", "exit 6"], env={**os.environ, **AWAY}, capture_output=True, timeout=60, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )  # fmt: skip
    assert done.returncode == 6


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 7"), 7),
        (("--name", "x", "--", "sh", "-c", "kill -9 $$"), 137),
        (("/nowhere/at/all",), 127),
        (("/etc",), 126),
        ((), 2),
        (("--nonsense", "true"), 2),
        (("--help",), 0),
    ],
)
def test_exit_codes(command: tuple[str, ...], code: int) -> None:
    assert run(*command).returncode == code


def test_standard_streams_are_the_commands() -> None:
    done = run("sh", "-c", 'cat; echo from the command >&2; echo "$0" "$1"', "a  b", "--help", stdin="from us\n")
    assert done.stdout == "from us\na  b --help\n"
    assert done.stderr.splitlines()[:1] == ["from the command"]
    assert done.stderr.splitlines()[1:] == [
        "tailrace: the settings are wrong: TAILRACE_KAFKA__PROPERTIES: lists and tables are given as JSON, "
        'such as {"client.id": "x"}'
    ]
    assert done.returncode == 0


def test_what_a_command_used_arrives(embedded_broker: str, tmp_path: Path) -> None:
    used = f"x = bytearray(150_000_000); sum(range(3_000_000)); open({str(tmp_path / 'f')!r}, 'wb').write(x[:10])"
    environment = os.environ | {"TAILRACE_KAFKA__BOOTSTRAP_SERVERS": embedded_broker}
    secret = ["--token", "hunter2"]
    commands = [
        ["--name", "heavy", "--service", "batch", "--", sys.executable, "-c", used, *secret],
        ["--service", "batch", "--", "sh", "-c", "exit 3"],
        ["--service", "batch", "--", "sh", "-c", "kill -TERM $$"],
        ["--service", "batch", "--", "sh", "-c", "kill -40 $$"],
    ]
    started = [
        subprocess.Popen([*EXEC, *command], env=environment, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    assert [one.communicate(timeout=60)[1] for one in started] == [""] * 4
    assert [one.returncode for one in started] == [0, 3, 128 + 15, 128 + 40]
    reads = read_topic(embedded_broker)
    assert {read.batch.service for read in reads} == {"batch"}
    found = {}
    for one in (one for read in reads for one in samples_of(read.batch)):
        attributes = dict(one.series.attributes)
        assert attributes.pop("host.name")
        assert "hunter2" not in repr(one)
        found[one.series.metric, *attributes.values()] = one.value
    durations = {key: value for key, value in found.items() if key[0] == "io.operation.duration"}
    assert set(durations) == {
        ("io.operation.duration", "command", "heavy"),
        ("io.operation.duration", "3", "command", "sh"),
        ("io.operation.duration", "SIGTERM", "command", "sh"),
        ("io.operation.duration", "SIG40", "command", "sh"),
    }
    assert all(0 < value < 30 for value in durations.values())
    assert found["command.memory.peak", "heavy"] > 150_000_000
    assert found["command.memory.peak", "sh"] < 60_000_000  # not that of the process that started it
    assert found["command.cpu.time", "user", "heavy"] + found["command.cpu.time", "system", "heavy"] > 0.01
    assert {key[1:] for key in found if key[0] == "command.disk.io"} >= {("read", "heavy"), ("write", "heavy")}


COUNTS = """
import signal, sys, time
got = []
for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(one, lambda number, frame: got.append(signal.Signals(number).name))
print("ready", flush=True)
while "SIGUSR1" not in got:
    time.sleep(0.01)
time.sleep(0.2)
print(*got, flush=True)
"""


def test_signals_are_passed_on_once() -> None:
    with subprocess.Popen(
        [*EXEC, "--", sys.executable, "-c", COUNTS], env={**os.environ, **AWAY}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for one in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            process.send_signal(one)
        said = process.stdout.read().split()
        assert process.wait(30) == 0
    assert sorted(said) == ["SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1"]


def test_ctrl_c_reaches_the_command_once_and_its_answer_counts() -> None:
    """At a terminal the whole process group gets SIGINT: passing it on as well would give it twice."""
    script = COUNTS.replace('"SIGUSR1" not in got', "not got").replace(
        "print(*got", "sys.exit(40 + len(got)); print(*got"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, [*EXEC, "--", sys.executable, "-c", script], {**os.environ, **AWAY})
    said = b""

    def ready() -> bool:
        nonlocal said
        said += os.read(terminal, 1000)
        return b"ready" in said

    eventually(ready, 30)
    os.write(terminal, b"\x03")
    try:
        while os.read(terminal, 1000):
            pass
    except OSError:
        pass  # the terminal is gone with the last process on it
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 41
    os.close(terminal)
