"""The config topic: validated records, of which the last of each key counts.

Who needs the configuration reads the topic to its end first (`read_config`), and then what comes after. A record that
cannot be read is a dead letter, and leaves in force what was there before it.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.config import ConfigModel, Record, model_of
from tailrace_sinks.kafka import KafkaWriter, about

__all__ = ["ConfigChange", "decode_change", "publish", "read_changes", "read_config"]

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 30.0
MAX_BYTES: Final = 1_000_000


class ConfigChange(NamedTuple):
    """A record of the topic."""

    key: str
    """`kind/name`."""
    model: ConfigModel | None
    """None: removed."""

    @property
    def kind(self) -> str:
        return self.key.partition("/")[0]

    @property
    def name(self) -> str:
        return self.key.partition("/")[2]


def decode_change(key: bytes | None, value: bytes) -> ConfigChange:
    """The change that a message makes.

    Raises:
        ValueError: it is none, or none that this Tailrace knows.
    """
    if not key:
        raise ValueError("a record of the config topic has a key: kind/name")
    if len(value) > MAX_BYTES:
        raise ValueError(f"the record has {len(value)} bytes, more than {MAX_BYTES}")
    name = key.decode()
    return ConfigChange(name, model_of(name, value) if value else None)


def read_changes(client: dict[str, Any], topic: str) -> Iterator[tuple[int, ConfigChange]]:
    """(record time in milliseconds, change) of all that the topic holds now, partition by partition.

    What cannot be read is left out, with a warning.

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
            yield from _read_partition(consumer, TopicPartition(topic, number))
    finally:
        consumer.close()


def _read_partition(consumer: Consumer, place: TopicPartition) -> Iterator[tuple[int, ConfigChange]]:
    low, high = consumer.get_watermark_offsets(place, TIMEOUT_S)
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
                yield message.timestamp()[1], decode_change(message.key(), message.value() or b"")
            except ValueError as wrong:
                log.warning("%s[%d] at %d: %s", place.topic, place.partition, message.offset(), wrong)
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"{place.topic} cannot be read to its end"))


def read_config(client: dict[str, Any], topic: str) -> dict[str, ConfigModel]:
    """What is in force: key -> model. Raises as `read_changes`."""
    config: dict[str, ConfigModel] = {}
    for _, change in read_changes(client, topic):
        if change.model is None:
            config.pop(change.key, None)
        else:
            config[change.key] = change.model
    return config


def publish(writer: KafkaWriter, topic: str, records: Iterable[Record]) -> None:
    """Writes records, and returns when they are confirmed.

    Raises:
        KafkaException: one can never be delivered.
        StoppedError: the process is stopping first.
    """
    for record in records:
        value = None if record.value is None else json.dumps(record.value, ensure_ascii=False).encode()
        writer.write(topic, record.key.encode(), value)
    writer.flush()
