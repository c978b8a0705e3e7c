"""Where the nanoseconds of the hot path go: CPU time of each step of the core, one partition and its shards, no I/O.

Each step's time is its own, without the steps it calls. Timing a call costs 0.4 us, which is in the step around it.
"""

import argparse
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from tailrace_flows import outputs
from tailrace_flows.core import grid, partition, table, window
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.shard import Shard
from tailrace_flows.runner import keep_freed_memory

from benchmarks import load
from benchmarks.common import say

STEPS: dict[str, list[tuple[Any, str]]] = {
    "decode messages": [(partition, "decode")],
    "join batches into chunks, check them": [(partition, "build_chunks")],
    "duplicates, watermarks": [(Partition, "read")],
    "find slots and windows": [(table.WindowTable, "add"), (Shard, "on_items")],
    "count, sum, min, max": [(window.Window, "fold")],
    "codes of values": [(window, "codes_of")],
    "count codes in bands": [(grid.Grid, "add")],
    "sort what is outside": [(window.Window, "_fold_sketch")],
    "read the bands, merge runs": [(window.Window, "sketch"), (grid.Grid, "run"), (window, "merge_runs")],
    "merge windows into minutes": [(table, "merge_windows")],
    "rows as Arrow": [(table, "build_rows")],
    "aggregates as messages": [(outputs, "encode_window_rows")],
}
"""What is measured: (module or class, function)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", default="1000,100000", help="comma-separated (default %(default)s)")
    parser.add_argument("--samples", type=int, default=60_000_000, help="of each (default %(default)s)")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    keep_freed_memory()
    found: dict[str, dict[str, Any]] = {name: {"benchmark": "stages", "step": name} for name in [*STEPS, "all"]}
    for series in map(int, options.series.split(",")):
        say(f"{series} series, {options.samples} samples ...")
        for name, nanoseconds in _measure(series, options.samples).items():
            found[name][f"ns_a_sample_at_{series}_series"] = nanoseconds
    return list(found.values())


class _Stopwatch:
    """Own time of nested calls, in nanoseconds."""

    def __init__(self) -> None:
        self.own_ns = dict.fromkeys(STEPS, 0)
        self._inner_ns = [0]

    def around(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **more: Any) -> Any:
            self._inner_ns.append(0)
            begin_ns = time.thread_time_ns()
            try:
                return function(*args, **more)
            finally:
                spent_ns = time.thread_time_ns() - begin_ns
                self.own_ns[step] += spent_ns - self._inner_ns.pop()
                self._inner_ns[-1] += spent_ns

        return timed


def _measure(series: int, samples: int) -> dict[str, float]:
    """ns a sample of each step, and of all."""
    watch = _Stopwatch()
    plain = [(owner, name, getattr(owner, name)) for steps in STEPS.values() for owner, name in steps]
    for step, functions in STEPS.items():
        for owner, name in functions:
            setattr(owner, name, watch.around(step, getattr(owner, name)))
    try:
        total_ns = _flow(series, samples)
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)
    return {step: own_ns / samples for step, own_ns in watch.own_ns.items()} | {"all": total_ns / samples}


class _Nowhere:
    """What the aggregates sink writes to."""

    def write(self, topic: str, key: bytes, value: bytes) -> None:
        pass

    def flush(self) -> None:
        pass


def _flow(series: int, samples: int) -> int:
    """Reads polls of 8 MB as the source does; the CPU time in ns, without making the messages."""
    config = WindowConfig()
    now_us = load.START_US
    reader = Partition(0, "samples", config, now_us, hold=True, cluster_id="", start=0)
    shards: dict[str, Shard] = {}
    nowhere: Any = _Nowhere()
    sink = outputs.AggregatesSink(lambda: nowhere, "aggregates").build_part("aggregates", "00", None)
    spent_ns = 0
    poll: list[Record] = []
    size = 0
    messages = iter(load.messages(series, samples))
    offset = 0
    while True:
        message = next(messages, None)
        if message is not None:
            poll.append(Record(offset, now_us + offset, message[1], message[0]))
            offset, size = offset + 1, size + len(message[1])
        if poll and (message is None or size >= 8 << 20):
            begin_ns = time.thread_time_ns()
            keyed: dict[str, list[Any]] = {}
            for key, item in reader.read(poll, now_us)[0]:
                keyed.setdefault(key, []).append(item)
            for key, items in keyed.items():
                if key not in shards:
                    shards[key] = Shard(config, now_us)
                sink.write_batch([shards[key].on_items(items, now_us)])
            spent_ns += time.thread_time_ns() - begin_ns
            poll, size = [], 0
        if message is None:
            return spent_ns
