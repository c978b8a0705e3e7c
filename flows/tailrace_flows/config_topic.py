"""The config topic: validated records, of which the last of each key counts.

Who needs the configuration reads the topic to its end first (`read_config`), and then what comes after. A record that
cannot be read is a dead letter, and leaves in force what was there before it.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from tailrace_schemas.config import ConfigModel, Record, model_of
from tailrace_sinks.kafka import KafkaWriter

from tailrace_flows.topic_reader import read_topic

__all__ = ["ConfigChange", "decode_change", "publish", "read_changes", "read_config"]

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
    return read_topic(client, topic, decode_change)


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
    """
    for record in records:
        value = None if record.value is None else json.dumps(record.value, ensure_ascii=False).encode()
        writer.write(topic, record.key.encode(), value)
    writer.flush()
