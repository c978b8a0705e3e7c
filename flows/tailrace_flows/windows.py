"""The window dataflow: samples -> 10 s and 1 m rows in ClickHouse and on the aggregates topic.

`python -m bytewax.run tailrace_flows.windows:flow` runs it with the settings of the environment; `tailrace run windows`
adds recovery, clean stops and several processes.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeGuard

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from tailrace_schemas.deadletter import DeadLetter

from tailrace_flows import host_clock
from tailrace_flows.adapters import Adapters
from tailrace_flows.core.chunk import Ahead, Chunk, Mark, ReadUntil
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.partition import Keyed
from tailrace_flows.core.shard import Output, Shard
from tailrace_flows.outputs import AggregatesSink, ClickHouseSink, DeadLettersSink
from tailrace_flows.settings import Settings
from tailrace_flows.source import Side, sample_source

__all__ = ["add_windows", "build_flow", "flow"]


log = logging.getLogger(__name__)


class _ShardLogic(StatefulBatchLogic[Chunk | Mark | Ahead | ReadUntil, Output, bytes]):
    """Wall time and Bytewax's callbacks around a `Shard`."""

    def __init__(self, config: WindowConfig, contents: bool, state: bytes | None) -> None:
        self._shard = Shard(config, host_clock.now_us(), state)
        self._contents = contents

    def on_batch(self, values: list[Chunk | Mark | Ahead | ReadUntil]) -> tuple[Iterable[Output], bool]:
        return self._emit(self._shard.on_items(values, host_clock.now_us()))

    def on_notify(self) -> tuple[Iterable[Output], bool]:
        return self._emit(self._shard.on_time(host_clock.now_us()))

    def on_eof(self) -> tuple[Iterable[Output], bool]:
        return self._emit(self._shard.on_end(host_clock.now_us()))

    def notify_at(self) -> datetime | None:
        due_us = self._shard.next_us()
        return None if due_us is None else host_clock.as_datetime(due_us)

    def snapshot(self) -> bytes:
        return self._shard.snapshot(contents=self._contents)

    def _emit(self, output: Output) -> tuple[Iterable[Output], bool]:
        for warning in self._shard.warnings:
            log.warning("%s (docs/operations.md, What is counted)", warning)
        self._shard.warnings.clear()
        nothing = not output.blocks and not output.aside and output.events is None and output.counters is None
        return (() if nothing else (output,)), self.RETAIN


def build_flow(
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    hurry: Callable[[], bool] | None = None,
    process: int = 0,
) -> Any:
    """The dataflow. Step ids are part of the recovery state: renaming one loses it (a test pins them).

    Args:
        stop: set, the sources end after their current poll, and the flow drains.
        hurry: true, writes that ClickHouse does not take give up: they are done again after the restart.
        process: this process' number in the cluster.
    """
    dataflow = Dataflow("tailrace_windows")
    add_windows(dataflow, Adapters(settings, stop, hurry), process)
    return dataflow


def add_windows(dataflow: Dataflow, adapters: Adapters, process: int) -> None:
    """The steps of the window dataflow; `process` as of `build_flow`."""
    settings = adapters.settings
    config = settings.windows.config()
    contents = settings.recovery.contents == "snapshot"
    client = settings.kafka.client()
    topics = settings.kafka.topics

    def logic(state: bytes | None) -> _ShardLogic:
        return _ShardLogic(config, contents, state)

    source = sample_source(
        client, topics.samples, settings.kafka.group_id, config, hold=not contents, stop=adapters.stop
    )
    read = op.input("samples", dataflow, source)
    kinds = op.branch("keyed", read, _is_keyed)
    rows = op.stateful_batch("windows", kinds.trues, logic)
    side = op.branch("side", kinds.falses, _is_letter)
    letters = op.key_on("dead_letter_key", side.trues, lambda letter: str(letter.partition))
    counters = op.key_on("counter_key", side.falses, lambda _: str(process))
    op.output("clickhouse", op.merge("rows_and_counters", rows, counters), ClickHouseSink(adapters.behind))
    op.output("aggregates", rows, AggregatesSink(adapters.kafka, topics.aggregates))
    op.output("dead_letters", letters, DeadLettersSink(adapters.kafka, topics.dead_letters))


def _is_keyed(item: Keyed | Side) -> TypeGuard[Keyed]:
    return type(item) is tuple  # the others are named tuples


def _is_letter(item: Keyed | Side) -> TypeGuard[DeadLetter]:
    return isinstance(item, DeadLetter)


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
