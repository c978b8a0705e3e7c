"""Disks that fill up: those of the recovery directory, of ClickHouse and of the broker, each a small tmpfs.

`python -m tests.reliability.disks` is the attack within a user and mount namespace of its own.
"""

import errno
import json
import random
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from tailrace_schemas.clock import monotonic_s, now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.traffic import Traffic
from tests.reliability.world import World, check_rows, finish, python, starts_on_window, why_no_kafka

__all__ = ["Disk", "heard", "why_no_namespaces"]

SIZES_MB = {"recovery": 32, "clickhouse": 256, "broker": 192}
TOLD = {
    "recovery": re.compile("no space left on the disk of the recovery directory"),
    "clickhouse": re.compile("not_enough_space|not enough space|no space left", re.IGNORECASE),
    "broker": re.compile("no space left", re.IGNORECASE),
}
FULL_S = (3.0, 8.0)
"""How long a disk stays full after it was told of."""

PER_DISK_S = 25
"""Of traffic: a disk that is full while nothing is written tells nothing."""
TIMEOUT_S = 3600.0


@attack(
    name="disk_full",
    promise="A full disk loses nothing: a clear error or waiting, no corruption, and the exact rows once there is "
    "space.",
    what="The recovery directory, ClickHouse's data and the broker's log are on small file systems, which are filled "
    "to the last byte under live load, in random order, until the log says so and some seconds longer; then there is "
    "space again, and the process is killed (kill -9) and started again.",
    unit="disks filled",
    short=3,
    long=30,
)
def disk_full(run: Run) -> Result:
    if missing := why_no_kafka() or why_no_namespaces():
        return Result(skipped=missing)
    inside = python("-m", "tests.reliability.disks", str(run.directory), str(run.size), str(run.seed))
    code, out, said = heard(["unshare", "-rm", *inside], run.say)
    if code:
        return Result(0, [run.seed], failures=[run.failure(said[-4000:])])
    return Result(run.size, [run.seed], json.loads(out))


def heard(argv: list[str], say: Callable[[str], None]) -> tuple[int, str, str]:
    """A process's exit code, stdout, and stderr, whose lines are passed on as they come. It is killed after an hour."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        end = threading.Timer(TIMEOUT_S, process.kill)
        end.start()
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                say(line.rstrip())
            return process.wait(), process.stdout.read(), "".join(lines)
        finally:
            end.cancel()
            process.kill()  # it has ended, unless something failed here


def why_no_namespaces() -> str:
    """Why no file system can be mounted for a process alone; empty: it can."""
    if not shutil.which("unshare"):
        return "unshare (util-linux) is needed"
    tried = subprocess.run(
        ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "none", "/tmp"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no mount namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Disk:
    """A file system of its own, and what fills it up."""

    def __init__(self, path: Path, size_mb: int) -> None:
        path.mkdir(parents=True, mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0700", "none", str(path)], check=True)
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """To the last byte; again, for what was given up meanwhile."""
        with self._ballast.open("ab", buffering=0) as file:
            for block in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(bytes(block))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """What fails says where."""
    try:
        yield
    except Exception as error:
        error.add_note(f"at {where}")
        raise


def _attack(directory: Path, size: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    rng = random.Random(seed)
    places = {"recovery": "recovery-disk", "clickhouse": "clickhouse", "broker": "kafka/logs"}
    disks = {name: Disk(directory / place, SIZES_MB[name]) for name, place in places.items()}
    order = [name for _ in range(-(-size // len(disks))) for name in rng.sample(list(disks), len(disks))][:size]
    with World.of(directory, "disks") as world:
        recovery = str(directory / "recovery-disk" / "state")
        flow = world.add_flow("windows", "windows", TAILRACE_RECOVERY__DIRECTORY=recovery)
        traffic = Traffic(seed, starts_on_window(now_us()), (10 + size * PER_DISK_S) // 10 * 10, samples=200)
        world.add_traffic(traffic)
        victims = {"recovery": flow, "clickhouse": world.parts["clickhouse"], "broker": world.parts["broker"]}
        logs = {"recovery": flow.log, "clickhouse": flow.log, "broker": world.parts["broker"].log}
        world.until(lambda: world.bench.counters().get("samples"), "samples are counted")
        full_s: Counter[str] = Counter()
        said: dict[str, str] = {}
        for number, name in enumerate(order, 1):
            where = f"disk {number} of {size}, that of {name}"
            say(f"{where}; {world.confirmed()} of {traffic.seconds} s sent")
            with _told_of(where):
                threading.Event().wait(rng.uniform(2, 4))
                world.until(lambda name=name: victims[name].pid, f"what writes to the disk of {name} runs")
                began_s, read = monotonic_s(), logs[name].stat().st_size

                def told(name: str = name, read: int = read) -> str:
                    disks[name].fill()
                    log = logs[name].read_bytes()
                    # A broker that ended writes a log of its own when it is started again.
                    lines = log[read if len(log) >= read else 0 :].decode(errors="replace").splitlines()
                    return next((line for line in lines if TOLD[name].search(line)), "")

                said[name] = world.until(told, f"the log tells that the disk of {name} is full", every_s=0.05)
                end_s = monotonic_s() + rng.uniform(*FULL_S)
                while monotonic_s() < end_s:
                    disks[name].fill()
                    threading.Event().wait(0.2)
                disks[name].free()
                full_s[name] += monotonic_s() - began_s
                counted = world.until(lambda: world.bench.counters().get("samples"), "ClickHouse answers again")
                world.until(  # once all is sent, nothing more may come
                    lambda counted=counted: world.bench.counters()["samples"] > counted or world.parts["sender"].done,
                    f"samples are counted after the disk of {name} was full",
                )
                victims[name].kill()
        made = finish(world, traffic)
        rows = check_rows(world.bench, made)
        return {
            **{f"disk of {name} filled": order.count(name) for name in disks},
            **{f"seconds the disk of {name} was full": seconds for name, seconds in full_s.items()},
            **{f"what was said of {name}": line.replace(f"{directory}/", "")[:200] for name, line in said.items()},
            "samples": made.counters["samples"], "rows equal to the oracle": rows,
            **{f"starts of {name} again by itself": count for name, count in sorted(world.ended.items())},
        }  # fmt: skip


if __name__ == "__main__":
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    json.dump(_attack(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), say), sys.stdout)
