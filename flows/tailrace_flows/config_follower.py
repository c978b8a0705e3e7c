"""The configuration in force, kept up to date."""

import logging
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition
from tailrace_schemas.config import ConfigModel
from tailrace_sinks.kafka import about

from tailrace_flows.config_topic import decode_change, read_config
from tailrace_flows.topic_reader import TIMEOUT_S

__all__ = ["ConfigFollower"]

log = logging.getLogger(__name__)


class ConfigFollower:
    """Read to its end when made; `poll` takes what has come since. For processes that are no dataflow."""

    def __init__(self, client: dict[str, Any], topic: str) -> None:
        """Raises KafkaException where the topic cannot be read."""
        self._topic = topic
        self._consumer = Consumer(
            {**client, "group.id": "tailrace-config", "enable.auto.commit": False, "log_level": 0}
        )
        try:
            found = self._consumer.list_topics(topic, TIMEOUT_S).topics[topic]
            if found.error is not None:
                raise about(topic, found.error)
            ends = [TopicPartition(topic, number) for number in found.partitions]
            for place in ends:  # before the reading: what comes meanwhile is read twice, which changes nothing
                place.offset = self._consumer.get_watermark_offsets(place, TIMEOUT_S)[1]
            self.config: dict[str, ConfigModel] = read_config(client, topic)
            """Key -> model."""
            self._consumer.assign(ends)
        except BaseException:
            self._consumer.close()
            raise

    def poll(self) -> bool:
        """Takes what has come, without waiting. Whether anything changed."""
        changed = False
        for message in self._consumer.consume(500, 0.0):
            error = message.error()
            if error is not None:
                if error.code() != KafkaError._PARTITION_EOF:
                    log.debug("%s: %s", self._topic, error.str())
                continue
            try:
                change = decode_change(message.key(), message.value() or b"")
            except ValueError as wrong:
                log.warning("%s at %d: %s", self._topic, message.offset(), wrong)
                continue
            changed = True
            if change.model is None:
                self.config.pop(change.key, None)
            else:
                self.config[change.key] = change.model
        return changed

    def close(self) -> None:
        self._consumer.close()
