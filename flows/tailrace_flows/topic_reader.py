"""A topic read to its end, besides the dataflow."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.kafka import about

__all__ = ["TIMEOUT_S", "read_topic"]

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0
LAST_RECORDS: Final = 20_000
"""Of a partition, where the broker does not know which are new."""

Item = TypeVar("Item")


def read_topic(
    client: dict[str, Any], topic: str, decode: Callable[[bytes | None, bytes], Item], since_us: int | None = None
) -> Iterator[tuple[int, Item]]:
    """(record time in milliseconds, item) of all that the topic holds now, partition by partition.

    `decode` takes key and value (empty for a tombstone); what it raises ValueError for is left out, with a warning.
    `since_us`: only records of that time and later.

    Raises:
        KafkaException: the topic cannot be read to its end.
    """
    consumer = Consumer(
        {
            **client, "group.id": "tailrace-config", "enable.auto.commit": False, "enable.partition.eof": True,
            "log_level": 0,
        }
    )  # fmt: skip
    try:
        found = consumer.list_topics(topic, TIMEOUT_S).topics[topic]
        if found.error is not None:
            raise about(topic, found.error)
        for number in found.partitions:
            for time_ms, item in _read_partition(consumer, TopicPartition(topic, number), decode, since_us):
                if since_us is None or time_ms * 1000 >= since_us:
                    yield time_ms, item
    finally:
        consumer.close()


def _read_partition(
    consumer: Consumer, place: TopicPartition, decode: Callable[[bytes | None, bytes], Item], since_us: int | None
) -> Iterator[tuple[int, Item]]:
    low, high = consumer.get_watermark_offsets(place, TIMEOUT_S)
    if since_us is not None and low < high:
        wanted = TopicPartition(place.topic, place.partition, max(since_us, 0) // 1000)
        (found,) = consumer.offsets_for_times([wanted], TIMEOUT_S)
        # None is so new; or it is the embedded broker, which knows no times, and says so always.
        low = max(low, found.offset if found.offset >= 0 else high - LAST_RECORDS)
    if low == high:
        return
    consumer.assign([TopicPartition(place.topic, place.partition, low)])
    until_s = monotonic_s() + TIMEOUT_S
    while monotonic_s() < until_s:
        for message in consumer.consume(500, 0.1):
            until_s = monotonic_s() + TIMEOUT_S
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:  # not the last offset: compaction leaves holes
                    return
                raise about(place.topic, error)
            try:
                yield message.timestamp()[1], decode(message.key(), message.value() or b"")
            except ValueError as wrong:
                log.warning("%s[%d] at %d: %s", place.topic, place.partition, message.offset(), wrong)
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{place.topic} cannot be read to its end"))
