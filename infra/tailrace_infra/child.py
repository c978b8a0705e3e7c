"""Processes that belong to a parent: the embedded broker and the embedded ClickHouse.

A child prints one JSON line on stdout when it serves (`{"ready": true, ...}`) and nothing else there; its log
goes to stderr. It ends with code 0 on SIGTERM or SIGINT, and by itself when its parent is gone, however that
died.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tailrace_flows.private_files import open_private
from tailrace_schemas.clock import monotonic_s

__all__ = ["Child", "ChildError", "announce_ready", "exit_with_parent", "start_child"]

PARENT_POLL_S = 0.5
ORPHAN_GRACE_S = 10.0

_PARENT_VARIABLE = "TAILRACE_PARENT_PID"


class ChildError(RuntimeError):
    """A child ended, or stayed silent, before it was ready: the message says which, and quotes its log."""


# In the child


def exit_with_parent() -> None:
    """Let this process end when its parent does: SIGTERM to itself within 0.5 s, a hard exit 10 s later.

    It watches getppid() from a daemon thread. PR_SET_PDEATHSIG would be immediate, but it fires when the
    *thread* that started the child ends, and it exists on Linux only. A parent that died before this call is
    noticed when it was `start_child` that started us: it leaves its pid in the environment.
    """
    parent = int(os.environ.pop(_PARENT_VARIABLE, os.getppid()))

    def watch() -> None:
        never = threading.Event()
        while os.getppid() == parent:
            never.wait(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)
        never.wait(ORPHAN_GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()


def announce_ready(**fields: object) -> None:
    """Write the ready line: `{"ready": true}` and the fields, all JSON values."""
    sys.stdout.write(json.dumps({"ready": True, **fields}) + "\n")
    sys.stdout.flush()


# In the parent


@dataclass
class Child:
    """A running child and what it said in its ready line."""

    process: subprocess.Popen[bytes]
    ready: Mapping[str, Any]

    @property
    def end(self) -> IO[bytes]:
        """What can be read as soon as it has ended: its stdout, on which it says nothing more."""
        assert self.process.stdout is not None
        return self.process.stdout

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM, SIGKILL after the timeout. Returns the exit code; harmless when it has ended already."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def start_child(
    module: str,
    *arguments: str,
    timeout_s: float = 30.0,
    log: Path | None = None,
    environment: Mapping[str, str] | None = None,
    pass_fds: Collection[int] = (),
) -> Child:
    """Run `python -m module arguments`; return when it is ready, `ChildError` if that takes too long.

    Its stderr is appended to `log`, or inherited; `environment` adds to ours; `pass_fds` are inherited. It gets its
    own session, so that Ctrl-C reaches the parent only, which then stops its children in the order it chooses.
    """
    stderr: IO[bytes] | None = open_private(log, "ab") if log else None
    began = stderr.tell() if stderr else 0
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **(environment or {}), _PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
            pass_fds=pass_fds,
        )
    finally:
        if stderr:
            stderr.close()
    child = Child(process, {})
    try:
        child.ready = _read_ready(process, timeout_s)
    except BaseException as error:  # Ctrl-C included: nothing that was started is left behind
        code = child.stop()
        if isinstance(error, ChildError):
            # Only what this one wrote: the log may be older.
            tail = log.read_bytes()[began:].decode(errors="replace")[-2000:].strip() if log else ""
            raise ChildError(f"{module}: {error} (exit code {code})" + (f"\n{tail}" if tail else "")) from None
        raise
    return child


def _read_ready(process: subprocess.Popen[bytes], timeout_s: float) -> Mapping[str, Any]:
    """The ready line, read with a deadline."""
    assert process.stdout is not None
    deadline_s = monotonic_s() + timeout_s
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline_s - monotonic_s())):
                raise ChildError(f"not ready within {timeout_s:g} s")
            chunk = os.read(process.stdout.fileno(), 4096)
            if not chunk:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)  # its own exit code says more than that of a SIGTERM
                raise ChildError("ended before it was ready")
            line += chunk
    try:
        ready = json.loads(line)
    except ValueError:
        ready = None
    if not isinstance(ready, dict) or ready.get("ready") is not True:
        raise ChildError(f"said {line[:200]!r} where its ready line was expected")
    return ready
