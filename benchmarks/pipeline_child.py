"""One measured process of the pipeline benchmark: `python -m benchmarks.pipeline_child SYSTEM SERIES SAMPLES`."""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition
from tailrace_flows import runner
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.settings import Settings

from benchmarks import load

AHEAD_BYTES = 2_000_000


class Clock:
    """Wall and CPU seconds from the first sample on."""

    def __init__(self) -> None:
        self.samples = 0
        self._wall: float | None = None
        self._cpu = 0.0

    def count(self, samples: int) -> None:
        if self._wall is None:
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        self.samples += samples

    def result(self) -> dict[str, float]:
        assert self._wall is not None
        return {
            "samples": self.samples,
            "seconds": time.perf_counter() - self._wall,
            "cpu_seconds": time.process_time() - self._cpu,
            "peak_mb": _peak_mb(),
        }


def _peak_mb() -> float:
    """Of this process since it was started; getrusage would count the parent that forked it."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def records(settings: Settings, messages: int) -> Iterator[tuple[int, list[Record]]]:
    """(partition, records) by polls, until so many messages have come."""
    topic = settings.kafka.topics.samples
    consumer = Consumer(
        {
            **settings.kafka.client(), "group.id": "bench", "enable.auto.commit": False,
            "queued.max.messages.kbytes": 32 * 1024, "fetch.queue.backoff.ms": 5,
        }
    )  # fmt: skip
    numbers = consumer.list_topics(topic, 10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
    left = messages
    while left > 0:
        found: dict[int, list[Record]] = {}
        for message in consumer.consume(500, 0.1):
            value = message.value()
            found.setdefault(message.partition(), []).append(
                Record(message.offset(), message.timestamp()[1] * 1000, value)
            )
            left -= 1
        yield from found.items()
    consumer.close()


def consume(settings: Settings, samples: int) -> dict[str, float]:
    clock = Clock()
    for _, found in records(settings, samples // load.BATCH):
        clock.count(len(found) * load.BATCH)
    return clock.result()


def consume_decode(settings: Settings, samples: int) -> dict[str, float]:
    clock = Clock()
    partitions: dict[int, Partition] = {}
    for number, found in records(settings, samples // load.BATCH):
        clock.count(0)
        partition = partitions.get(number)
        if partition is None:
            partition = partitions[number] = Partition(
                number, "", settings.windows.config(), 0, hold=False, cluster_id="", start=0
            )
        items, _ = partition.read(found, 0)
        clock.count(sum(len(chunk.value) for _, chunk in items))  # type: ignore[union-attr]
    return clock.result()


def tailrace(settings: Settings, samples: int) -> dict[str, float]:
    """The flow as `tailrace run windows` runs it, until all samples are read and every row is durable."""
    from tailrace_flows.windows import build_flow

    clock = Clock()
    stop = threading.Event()
    read = Partition.read

    def counted(self: Partition, found: list[Record], now_us: int) -> Any:
        clock.count(0)
        result = read(self, found, now_us)
        clock.count(sum(chunk.value.size for _, chunk in result[0]))  # type: ignore[union-attr]
        if clock.samples >= samples:
            stop.set()
        return result

    Partition.read = counted  # type: ignore[method-assign]

    def build(settings: Settings, *, stop: threading.Event, **more: Any) -> Any:
        return build_flow(settings, stop=own, **more)

    own = stop
    runner.run(settings, build, settings.recovery.directory)
    return clock.result()


def fold_window(settings: Settings, samples: int) -> dict[str, float]:
    """The same aggregates with Bytewax's stock `fold_window`; its sketch is a dict of the same buckets."""
    import bytewax.operators as op
    import bytewax.operators.windowing as win
    from bytewax.dataflow import Dataflow
    from bytewax.inputs import DynamicSource, StatelessSourcePartition
    from bytewax.testing import TestingSink, run_main
    from tailrace_flows.core.sketch import codes_of

    clock = Clock()

    class Part(StatelessSourcePartition[Any]):
        def __init__(self) -> None:
            self._items = self._samples()

        def _samples(self) -> Iterator[list[Any]]:
            partitions: dict[int, Partition] = {}
            config = settings.windows.config()
            for number, found in records(settings, samples // load.BATCH):
                clock.count(0)
                known = partitions.setdefault(
                    number, Partition(number, "", config, 0, hold=False, cluster_id="", start=0)
                )
                for _, chunk in known.read(found, 0)[0]:
                    clock.count(chunk.value.size)  # type: ignore[union-attr]
                    names = [f"{chunk.service}/{row}" for row in range(len(chunk.table.series))]  # type: ignore[union-attr]
                    codes = codes_of(chunk.value, 6).tolist()  # type: ignore[union-attr]
                    rows = chunk.series_index.tolist()  # type: ignore[union-attr]
                    times = chunk.time_us.tolist()  # type: ignore[union-attr]
                    values = chunk.value.tolist()  # type: ignore[union-attr]
                    yield [
                        (names[row], (datetime.fromtimestamp(at / 1e6, UTC), value, code))
                        for row, at, value, code in zip(rows, times, values, codes, strict=True)
                    ]

        def next_batch(self) -> list[Any]:
            return next(self._items)

    class Source(DynamicSource[Any]):
        def build(self, step_id: str, worker_index: int, worker_count: int) -> Part:
            return Part()

    def fold(state: list[Any], item: tuple[datetime, float, int]) -> list[Any]:
        _, value, code = item
        state[0] += 1
        state[1] += value
        state[2] = min(state[2], value)
        state[3] = max(state[3], value)
        state[4][code] = state[4].get(code, 0) + 1
        return state

    def merge(one: list[Any], other: list[Any]) -> list[Any]:
        for code, count in other[4].items():
            one[4][code] = one[4].get(code, 0) + count
        return [one[0] + other[0], one[1] + other[1], min(one[2], other[2]), max(one[3], other[3]), one[4]]

    flow = Dataflow("fold")
    keyed = op.input("samples", flow, Source())
    windows = win.fold_window(
        "fold",
        keyed,
        win.EventClock(lambda item: item[0], wait_for_system_duration=timedelta(seconds=2)),
        win.TumblingWindower(align_to=datetime(2020, 1, 1, tzinfo=UTC), length=timedelta(seconds=10)),
        lambda: [0, 0.0, np.inf, -np.inf, {}],
        fold,
        merge,
    )
    op.output("out", windows.down, TestingSink([]))
    run_main(flow)
    return clock.result()


def send(settings: Settings, series: int, samples: int) -> None:
    """Paced by the flow's committed offsets, less than 2 MB a partition ahead."""
    topic = settings.kafka.topics.samples
    producer = Producer(
        {**settings.kafka.client(), "partitioner": "murmur2_random", "compression.type": "lz4", "linger.ms": 5}
    )
    consumer = Consumer({**settings.kafka.client(), "group.id": settings.kafka.group_id, "enable.auto.commit": False})
    ahead: dict[int, list[tuple[int, int]]] = {}

    def delivered(error: Any, message: Any) -> None:
        ahead.setdefault(message.partition(), []).append((message.offset(), len(message)))

    for number, (key, value) in enumerate(load.messages(series, samples)):
        producer.produce(topic, value, key, on_delivery=delivered)
        producer.poll(0)
        if number % 20:
            continue
        producer.flush()
        while any(sum(size for _, size in waiting) > AHEAD_BYTES for waiting in ahead.values()):
            places = [TopicPartition(topic, partition) for partition in ahead]
            for place in consumer.committed(places, 10):
                ahead[place.partition] = [one for one in ahead[place.partition] if one[0] >= place.offset]
    producer.flush()


def main() -> None:
    system, series, samples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    settings = Settings()
    if system == "send":
        send(settings, series, samples)
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})
    measure = {"consume": consume, "consume_decode": consume_decode, "tailrace": tailrace, "fold_window": fold_window}
    print(json.dumps(measure[system](settings, samples)))


if __name__ == "__main__":
    main()
