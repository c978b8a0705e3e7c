"""The `tailrace` command as a user runs it: a process, its output, and everything it starts."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from tailrace_flows.settings import ClickHouseSettings
from tailrace_infra.stack import Endpoints, running_endpoints, start_clickhouse
from tailrace_sinks.clickhouse import connect

from tests.infra.waiting import eventually, gone

__all__ = ["Up", "embedded", "tailrace", "up"]

COMMAND = [sys.executable, "-c", "from tailrace_infra.entry import main; main()"]  # as the installed script does


def tailrace(
    *arguments: str, stdin: str = "", cwd: Path | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env={**os.environ, **environment}, cwd=cwd,
        input=stdin, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@dataclass
class Up:
    """A running `tailrace up`."""

    process: subprocess.Popen[str]
    data_dir: Path

    def endpoints(self) -> Endpoints:
        """Where it listens, once it does."""

        def look() -> Endpoints | None:
            assert self.process.poll() is None, self.output()
            return running_endpoints(self.data_dir)

        found = eventually(look, 60)
        assert found is not None
        return found

    def parts(self) -> dict[str, psutil.Process]:
        """Its processes, by the last part of their module's name; flows are `flow` and `alerts`, as in its logs."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            command = child.cmdline()
            if "-m" in command:  # else it is not yet what it will be, but a copy of its parent
                module, *arguments = command[command.index("-m") + 1 :]
                name = module.rsplit(".", 1)[-1]
                found[name if name != "run" else "flow" if arguments[0] == "windows" else "alerts"] = child
        return found

    def all_parts(self) -> dict[str, psutil.Process]:
        """Its processes, once there are five."""

        def look() -> dict[str, psutil.Process] | None:
            assert self.process.poll() is None, self.output()
            found = self.parts()
            return found if len(found) == 5 else None

        found = eventually(look, 60)
        assert found is not None
        return found

    def signal(self, number: int, *, group: bool = False) -> None:
        """As `kill` does, or as a terminal does: to the whole process group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self, timeout_s: float = 90.0) -> int:
        return self.process.wait(timeout_s)

    def output(self) -> str:
        return (self.data_dir.parent / f"{self.data_dir.name}.out").read_text()


@contextmanager
def up(data_dir: Path, *arguments: str, **environment: str) -> Iterator[Up]:
    """`tailrace up` on any free ports; killed at the end if it still runs, and nothing of it is left behind."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with (data_dir.parent / f"{data_dir.name}.out").open("a") as out:
        process = subprocess.Popen(
            [*COMMAND, "up", "--data-dir", str(data_dir), "--clickhouse-port", "0", "--interval", "0.5", *arguments],
            env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            text=True, start_new_session=True,
        )  # fmt: skip
    try:
        yield Up(process, data_dir)
    finally:
        if process.poll() is None:
            parts = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            eventually(lambda: all(gone(part.pid) for part in parts), 60)
        left = {child.pid for child in psutil.Process().children(recursive=True)} - before
        assert not [pid for pid in left if not gone(pid)]


@contextmanager
def embedded(data_dir: Path) -> Iterator[Any]:
    """A client of ClickHouse on a data directory on which nothing runs."""
    child = start_clickhouse(data_dir, 0)
    try:
        with connect(ClickHouseSettings(url=f"http://127.0.0.1:{child.ready['port']}")) as client:
            yield client
    finally:
        child.stop()
