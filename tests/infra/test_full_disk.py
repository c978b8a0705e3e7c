"""The recovery directory's disk is full: the flow ends and says what to do, and goes on from there.

`python -m tests.infra.test_full_disk DIR` is what runs in a mount namespace of its own, for the small disk.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, TestingSource
from tailrace_flows import runner
from tailrace_flows.settings import Settings
from tailrace_infra.run import explain

from tests.reliability.disks import Disk, why_no_namespaces

KEYS, ITEMS = 50, 1000
STATE_BYTES = 400_000
"""Of a key once the disk is full: what was written before leaves some room in files that are used again."""


def test_a_full_recovery_directory_ends_the_flow_with_advice_and_keeps_its_state(tmp_path: Path) -> None:
    if missing := why_no_namespaces():
        pytest.skip(missing)
    inside = [sys.executable, "-m", "tests.infra.test_full_disk", str(tmp_path / "disk")]
    done = subprocess.run(["unshare", "-rm", *inside], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    for when in ("while it runs", "at the start"):
        assert told[when].startswith(f"no space left on the disk of the recovery directory {tmp_path}/disk/state: free")
    assert told["counts"] == [ITEMS // KEYS] * KEYS


def main(path: Path) -> dict[str, Any]:
    """What is told when the disk fills up, when it is full at the next start, and what is counted when it is not."""
    disk = Disk(path, 192)
    state = path / "state"
    counted: list[Any] = []
    reached = threading.Event()

    def build(full: bool) -> Dataflow:
        flow = Dataflow("counts")
        items = op.input("in", flow, TestingSource([(str(number % KEYS), number) for number in range(ITEMS)]))

        def count(before: tuple[int, bytes] | None, number: int) -> tuple[tuple[int, bytes], int]:
            if full and number == ITEMS // 2:
                disk.fill()
                reached.set()
            size = 1 + (before[0] if before else 0)
            return (size, bytes(STATE_BYTES if number >= ITEMS // 2 else 10)), size

        op.output("out", op.stateful_map("count", items, count), TestingSink(counted))
        return flow

    settings = Settings(recovery={"epoch_s": 0.001, "directory": path})

    def attempt(run: Callable[[], object]) -> str:
        try:
            run()
        except Exception as error:  # noqa: BLE001 - whatever the engine makes of it
            return explain(error, settings, state)
        return ""

    told = {"while it runs": attempt(lambda: runner.run(settings, lambda *_, **__: build(True), state))}
    assert reached.is_set()
    disk.fill()
    told["at the start"] = attempt(lambda: runner.run(settings, lambda *_, **__: build(False), state))
    disk.free()
    runner.run(settings, lambda *_, **__: build(False), state)
    most: dict[str, int] = {}
    for key, size in counted:
        most[key] = max(size, most.get(key, 0))
    return {**told, "counts": list(most.values())}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
