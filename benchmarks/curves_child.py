"""One measured process: `python -m benchmarks.curves_child core|flow|member JSON` prints its figures as JSON.

`core` feeds the flow's partitions and shards without Kafka and ClickHouse: decoding, checking, windows, rows. `flow` is
`tailrace run windows` with the settings of the environment, until it has read so many samples and drained.
"""

import ctypes
import gc
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
from tailrace_flows.core.chunk import Chunk, Mark
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.core.shard import Output, Shard

from benchmarks.synthetic import Load, Message, messages

POLL_BYTES, POLL_RECORDS = 8 * 1024 * 1024, 2_000
"""As the source's."""


def _memory_mb(name: str) -> float:
    """VmRSS: now, without what the allocator only holds; VmHWM: at most."""
    if name == "VmRSS":
        gc.collect()
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def core(load: Load, settings: dict[str, float]) -> dict[str, float]:
    """CPU seconds of reading all messages and emitting all rows; memory before the drain."""
    _core(load._replace(samples=2 * load.batch), settings)  # imports, and what is made once
    return _core(load, settings)


def _core(load: Load, settings: dict[str, float]) -> dict[str, float]:
    config = WindowConfig(**settings)  # type: ignore[arg-type]
    partition = Partition(0, "samples", config, load.start_us, hold=True, cluster_id="", start=0)
    shards: dict[str, Shard] = {}
    sent = messages(load)
    first = next(sent)
    base_mb = _memory_mb("VmRSS")
    cpu_s = longest_s = 0.0
    offset = rows = samples = 0
    for poll in _polls(first, sent):
        now_us = poll[-1].time_us
        records = [Record(offset + at, one.time_us, one.value) for at, one in enumerate(poll)]
        offset += len(poll)
        began_s = time.process_time()
        by_shard: dict[str, list[Chunk | Mark]] = defaultdict(list)
        for name, item in partition.read(records, now_us)[0]:
            by_shard[name].append(item)
            samples += item.value.size if isinstance(item, Chunk) else 0
        for name, items in by_shard.items():
            if name not in shards:
                shards[name] = Shard(config, now_us)
            rows += _rows(shards[name].on_items(items, now_us))
        took_s = time.process_time() - began_s
        cpu_s += took_s
        longest_s = max(longest_s, took_s)
        if offset % 50 < len(poll):
            partition.snapshot(now_us)  # as an epoch would: else every record is held for recovery
    held_mb = _memory_mb("VmRSS") - base_mb
    began_s = time.process_time()
    rows += sum(_rows(shard.on_end(now_us)) for shard in shards.values())
    cpu_s += time.process_time() - began_s
    if samples != load.samples // load.batch * load.batch:
        raise RuntimeError(f"{samples} of {load.samples} samples were read")
    return {
        "samples_per_second": samples / cpu_s,
        "cpu_seconds_per_million": cpu_s / samples * 1e6,
        "rows": rows,
        "longest_poll_s": longest_s,
        "held_mb": held_mb,
        "peak_mb": _memory_mb("VmHWM"),
    }


def _polls(first: Message, rest: Iterator[Message]) -> Iterator[list[Message]]:
    poll = [first]
    while poll:
        yield poll
        count = min(POLL_RECORDS, max(10, POLL_BYTES // len(poll[0].value)))
        poll = list(islice(rest, count))


def _rows(output: Output) -> int:
    return sum(block.rows.num_rows for block in output.blocks)


def flow(samples: int, *, recovery: bool = True, from_start: bool = False) -> dict[str, float]:
    """The flow on core 0, from the first record, or `from_start` of the process, until all rows are durable.

    `longest_gap_s` is the longest time for which nothing was read.
    """
    from tailrace_flows import runner
    from tailrace_flows.settings import Settings
    from tailrace_flows.windows import build_flow

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})
    settings = Settings()
    stop = threading.Event()
    read = Partition.read
    seen = {"samples": 0, "first_s": 0.0, "last_s": 0.0, "cpu_s": 0.0, "gap_s": 0.0, "end_s": 0.0}

    def counted(self: Partition, records: Any, now_us: int) -> Any:
        now_s = time.perf_counter()
        if not seen["first_s"]:
            seen["first_s"], seen["cpu_s"] = now_s, time.process_time()
        else:
            seen["gap_s"] = max(seen["gap_s"], now_s - seen["last_s"])
        found = read(self, records, now_us)
        new = sum(item.value.size for _, item in found[0] if isinstance(item, Chunk) and not item.replayed)
        seen["samples"] += new
        seen["last_s"] = time.perf_counter()
        if seen["samples"] >= samples and not stop.is_set():
            seen["end_s"] = seen["last_s"]
            stop.set()
        return found

    Partition.read = counted  # type: ignore[method-assign]
    if recovery:
        runner.run(
            settings, lambda given, **more: build_flow(given, **{**more, "stop": stop}), settings.recovery.directory
        )
    else:
        from bytewax._bytewax import cli_main

        cli_main(build_flow(settings, stop=stop), epoch_interval=timedelta(seconds=settings.recovery.epoch_s))
    end_s = time.perf_counter()
    began_s = psutil.Process().create_time() - time.time() + end_s if from_start else seen["first_s"]
    return {
        "samples_per_second": seen["samples"] / (end_s - seen["first_s"]),
        "cpu_seconds_per_million": (time.process_time() - seen["cpu_s"]) / seen["samples"] * 1e6,
        "longest_gap_s": seen["gap_s"],
        "caught_up_s": seen["end_s"] - began_s,
        "durable_s": end_s - began_s,
        "peak_mb": _memory_mb("VmHWM"),
    }


def member(process: int, addresses: list[str] | None) -> dict[str, float]:
    """One process of a cluster until its stdin ends: what it read, and its CPU seconds from first record to last.

    Not SIGTERM, after which a drain may take 5 s at most.
    """
    from tailrace_flows import runner
    from tailrace_flows.settings import Settings
    from tailrace_flows.windows import build_flow

    settings = Settings()
    read = Partition.read
    seen = {"samples": 0.0, "first_s": 0.0, "last_s": 0.0, "began_cpu_s": 0.0, "cpu_s": 0.0}

    def counted(self: Partition, records: Any, now_us: int) -> Any:
        if not seen["first_s"]:
            seen["first_s"], seen["began_cpu_s"] = time.perf_counter(), time.process_time()
        found = read(self, records, now_us)
        seen["samples"] += sum(item.value.size for _, item in found[0] if isinstance(item, Chunk) and not item.replayed)
        seen["last_s"] = time.perf_counter()
        seen["cpu_s"] = time.process_time() - seen["began_cpu_s"]
        return found

    Partition.read = counted  # type: ignore[method-assign]
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    runner.run(
        settings, lambda given, **more: build_flow(given, **{**more, "stop": stop}), settings.recovery.directory,
        process=process, addresses=addresses,
    )  # fmt: skip
    return seen | {"peak_mb": _memory_mb("VmHWM")}


def main() -> None:
    what, given = sys.argv[1], json.loads(sys.argv[2])
    if what == "core":
        print(json.dumps(core(Load(**given["load"]), given["settings"])))
    else:
        print(json.dumps(flow(**given) if what == "flow" else member(**given)))


if __name__ == "__main__":
    main()
