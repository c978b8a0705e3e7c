"""Reads a samples topic back, as any consumer would."""

from array import array
from typing import NamedTuple

from confluent_kafka import Consumer, TopicPartition
from tailrace_schemas.samples import SampleBatch, Series, decode

__all__ = ["Read", "Sent", "read_topic", "samples_of"]


class Read(NamedTuple):
    """One message."""

    key: bytes
    partition: int
    batch: SampleBatch


class Sent(NamedTuple):
    """One sample."""

    series: Series
    time_us: int
    value: float


def read_topic(bootstrap_servers: str, topic: str = "tailrace.samples") -> list[Read]:
    """Every message of the topic so far, each partition in order."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "test", "log_level": 0})
    try:
        partitions = [
            TopicPartition(topic, number, 0) for number in consumer.list_topics(topic).topics[topic].partitions
        ]
        wanted = sum(consumer.get_watermark_offsets(one)[1] for one in partitions)
        consumer.assign(partitions)
        found: list[Read] = []
        while len(found) < wanted:
            for message in consumer.consume(wanted - len(found), 1.0):
                assert message.error() is None
                batch = decode(message.value())
                assert isinstance(batch, SampleBatch), batch
                found.append(Read(message.key(), message.partition(), batch))
        return found
    finally:
        consumer.close()


def samples_of(batch: SampleBatch) -> list[Sent]:
    """The samples of a batch."""
    index, offset, value = array("I"), array("i"), array("d")
    index.frombytes(batch.series_index)
    offset.frombytes(batch.time_offset_us)
    value.frombytes(batch.value)
    return [
        Sent(batch.table.series[i], batch.base_time_us + o, v) for i, o, v in zip(index, offset, value, strict=True)
    ]
