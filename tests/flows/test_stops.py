"""A flow that is told to stop while nobody takes its writes ends in time, and as any other does.

`python -m tests.flows.test_stops MOMENT DIR` is what is stopped.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from tailrace_flows import runner
from tailrace_flows.adapters import Adapters
from tailrace_flows.settings import KafkaSettings, Settings
from tailrace_infra.ports import free_port

from tests.infra.waiting import eventually


class _Reading(StatelessSourcePartition[tuple[str, str]]):
    """Has one item, and ends when the flow is stopped."""

    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop
        self._items = [("only", "item")]

    def next_batch(self) -> list[tuple[str, str]]:
        if self._stop.is_set():
            raise StopIteration
        items, self._items = self._items, []
        return items


class _Source(DynamicSource[tuple[str, str]]):
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Reading:
        return _Reading(self._stop)


class _Writing(StatefulSinkPartition[Any, None]):
    """The process is told to stop while this writes."""

    def __init__(self, write: Callable[[], object]) -> None:
        self._write = write

    def write_batch(self, values: list[Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        self._write()

    def snapshot(self) -> None:
        return None


class _Sink(FixedPartitionedSink[Any, None]):
    def __init__(self, write: Callable[[], object]) -> None:
        self._write = write

    def list_parts(self) -> list[str]:
        return ["only"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Writing:
        return _Writing(self._write)


def build(settings: Settings, *, stop: threading.Event, hurry: Callable[[], bool], moment: str, **_: Any) -> Dataflow:
    kafka = Adapters(settings, stop, hurry).kafka()

    def write_to_nobody() -> None:
        kafka.write("topic", b"key", b"value")
        kafka.flush()

    def fail_late() -> None:
        eventually(hurry)
        raise RuntimeError("the other process is gone")

    write = {"kafka is away": write_to_nobody, "a peer is gone": fail_late, "all is well": lambda: None}[moment]
    dataflow = Dataflow("writing")
    op.output("out", op.input("in", dataflow, _Source(stop)), _Sink(write))
    return dataflow


class _Last:
    """Sends another signal when it is deleted."""

    kill, own, number = staticmethod(os.kill), os.getpid(), signal.SIGTERM

    def __del__(self) -> None:
        self.kill(self.own, self.number)


def main(moment: str, directory: Path) -> None:
    settings = Settings(kafka=KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"))
    runner.run(settings, partial(build, moment=moment), directory)
    if moment == "all is well":
        # Deleted with the main module, when the interpreter has set signals back already.
        globals()["last"] = _Last()


def stopped(moment: str, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.flows.test_stops", moment, str(directory)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_a_stop_while_kafka_is_away_is_no_failure(tmp_path: Path) -> None:
    done = stopped("kafka is away", tmp_path)
    assert done.returncode == 0
    assert "not drained in time" in done.stderr
    assert "panicked" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_does_not_turn_a_clean_end_into_a_killed_one(tmp_path: Path) -> None:
    done = stopped("all is well", tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_fails_late_in_a_stop_is_done_again_at_the_next_start(tmp_path: Path) -> None:
    """As in a cluster, whose processes do not end in the same instant."""
    done = stopped("a peer is gone", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "stopped before everything was durable" in done.stderr


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
