"""One measured process of the pipeline benchmark: `python -m benchmarks.pipeline_child SYSTEM SERIES SAMPLES`."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from tailrace_flows import runner
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_flows.settings import Settings

from benchmarks import load
from benchmarks.clock import Clock

AHEAD_BYTES = 2_000_000


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
    measure = {"consume": consume, "consume_decode": consume_decode, "tailrace": tailrace}
    print(json.dumps(measure[system](settings, samples)))


if __name__ == "__main__":
    main()
