"""A process that starts anew since its host's clock was set is stopped by a signal of any moment.

`python -m tests.flows.test_runner MOMENT DIR` is what is stopped.
"""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import TestingSink
from tailrace_flows import host_clock, runner
from tailrace_flows.settings import Settings

BY_US = -5_000_000


class _Waiting(StatefulSourcePartition[Any, None]):
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def next_batch(self) -> list[Any]:
        if self._stop.is_set():
            raise StopIteration
        return []

    def snapshot(self) -> None:
        return None


class _Source(FixedPartitionedSource[Any, None]):
    """Has nothing, until the flow is stopped."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def list_parts(self) -> list[str]:
        return ["only"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Waiting:
        return _Waiting(self._stop)


def build(settings: Settings, *, stop: threading.Event, **_: Any) -> Dataflow:
    dataflow = Dataflow("waiting")
    op.output("out", op.input("in", dataflow, _Source(stop)), TestingSink([]))
    return dataflow


def main(moment: str, directory: Path) -> None:
    """Ends if the signal is heeded."""

    def terminate() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return BY_US

    clock = {"when it is found": terminate, "afterwards": lambda: BY_US, "anew": lambda: 0}[moment]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_clock, "set_by_us", clock)
        try:
            runner.run(Settings(), build, directory / moment)
        except runner.ClockSetError:
            terminate()
            os.execv(sys.executable, [sys.executable, "-m", "tests.flows.test_runner", "anew", str(directory)])
    sys.stdout.write(f"stopped {moment}")


@pytest.mark.parametrize(("moment", "stopped"), [("when it is found", "when it is found"), ("afterwards", "anew")])
def test_a_signal_is_not_lost_where_a_process_starts_anew(moment: str, stopped: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.flows.test_runner", moment, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout) == (0, f"stopped {stopped}"), done.stderr


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
