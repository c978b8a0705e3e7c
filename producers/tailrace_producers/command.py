"""Runs a command as if it had been called directly, and records how long it took and what it used.

The process stays out of the command's way: same standard streams, working directory, environment and process group;
signals that reach this process are passed on. Only the command's name is recorded, never its arguments.
"""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

from tailrace_schemas.clock import monotonic_s, now_us

if TYPE_CHECKING:
    from tailrace_producers.telemetry import Telemetry  # not loaded to run a command: see `peak_bytes`

__all__ = ["CommandRun", "record_command", "run_command"]

FORWARDED: Final = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
BLOCK_BYTES: Final = 512
"""The unit of `ru_inblock` and `ru_oublock` (getrusage(2))."""
SI_KERNEL: Final = 0x80
"""`si_code` of a signal that the terminal sent, to the whole process group: the command has it already."""


@dataclass(frozen=True, slots=True)
class CommandRun:
    """A run that has ended. Usage is that of the command and of all its descendants that were waited for."""

    name: str
    exit_code: int
    """128 + N where signal N ended it, as shells have it."""
    signal_name: str | None
    end_us: int
    duration_s: float
    user_s: float
    system_s: float
    peak_bytes: int
    """Of resident memory, of the largest of these processes; at least what this process held when it started it."""
    read_bytes: int
    """From block devices, as `written_bytes`: what caches answer does not count."""
    written_bytes: int


def run_command(arguments: Sequence[str], name: str | None = None) -> CommandRun:
    """Runs `arguments` to its end; recorded as `name`, or the name of its file.

    In the main thread of a process that has no other: a thread that blocks no signals would take the command's.

    Raises:
        FileNotFoundError: there is no such command.
        PermissionError: it may not be executed.
        OSError: it could not be started for another reason.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, signal.SIGCHLD))
    on_child = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, as some parents leave it, none is sent
    try:
        start_s = monotonic_s()
        pid = os.posix_spawnp(
            arguments[0],
            list(arguments),
            os.environ,
            setsigmask=mask,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
        )
        status, usage = _wait(pid)
        duration_s = monotonic_s() - start_s
    finally:
        signal.signal(signal.SIGCHLD, on_child)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = os.waitstatus_to_exitcode(status)
    return CommandRun(
        name=name or PurePath(arguments[0]).name,
        exit_code=code if code >= 0 else 128 - code,
        signal_name=_signal_name(-code) if code < 0 else None,
        end_us=now_us(),
        duration_s=duration_s,
        user_s=usage.ru_utime,
        system_s=usage.ru_stime,
        peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        read_bytes=usage.ru_inblock * BLOCK_BYTES,
        written_bytes=usage.ru_oublock * BLOCK_BYTES,
    )


def _wait(pid: int) -> tuple[int, Any]:
    """Until the command ends: its wait status and its usage."""
    while True:
        told = signal.sigwaitinfo((*FORWARDED, signal.SIGCHLD))
        if told.si_signo == signal.SIGCHLD:
            ended, status, usage = os.wait4(pid, os.WNOHANG)
            if ended:
                return status, usage
        elif told.si_code != SI_KERNEL:
            with suppress(ProcessLookupError):
                os.kill(pid, told.si_signo)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals, most of which have no names
        return f"SIG{number}"


def record_command(telemetry: "Telemetry", run: CommandRun) -> None:
    """Records a run: an operation of the kind `command` (see `io_monitoring`), and what it used."""
    attributes = {"io.operation.kind": "command", "io.operation.target": run.name}
    error = run.signal_name or (str(run.exit_code) if run.exit_code else None)
    telemetry.distribution("io.operation.duration", "s").record(
        run.duration_s, {**attributes, "error.type": error}, run.end_us
    )
    target = {"io.operation.target": run.name}
    cpu_time = telemetry.distribution("command.cpu.time", "s")
    cpu_time.record(run.user_s, {**target, "cpu.mode": "user"}, run.end_us)
    cpu_time.record(run.system_s, {**target, "cpu.mode": "system"}, run.end_us)
    telemetry.distribution("command.memory.peak", "By").record(run.peak_bytes, target, run.end_us)
    disk = telemetry.distribution("command.disk.io", "By")
    disk.record(run.read_bytes, {**target, "disk.io.direction": "read"}, run.end_us)
    disk.record(run.written_bytes, {**target, "disk.io.direction": "write"}, run.end_us)
