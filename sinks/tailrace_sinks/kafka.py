"""Confirmed writes to Kafka."""

import logging
from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from tailrace_schemas import clock
from tailrace_schemas.kafka_errors import SecurityWarnings

__all__ = ["KafkaWriter", "about", "is_hopeless"]

log = logging.getLogger(__name__)


def about(topic: str, error: KafkaError) -> KafkaException:
    """The exception for an error that Kafka gives without the topic that it is about."""
    return KafkaException(KafkaError(error.code(), f"topic {topic}: {error.str()}"))


def is_hopeless(error: KafkaError) -> bool:
    """Whether it does not pass by waiting; after any other, librdkafka goes on by itself."""
    return error.fatal() or error.code() in _HOPELESS


_HOPELESS: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
    }
)


class KafkaWriter:
    """Writes messages and confirms each one's delivery.

    Guarantee: when `flush` returns, every message written before is acknowledged by all in-sync replicas; otherwise it
    raises. librdkafka retries without end while the broker is away (idempotent, in order), so `flush` then blocks; a
    process that is to end does not wait for it. Memory: at most `queue.buffering.max.messages` (100,000) wait; `write`
    then polls for room.

    `now_us` gives their record times, which readers go by; Kafka 4 refuses one that is more than an hour ahead.
    """

    def __init__(self, client: dict[str, Any], now_us: Callable[[], int] = clock.now_us) -> None:
        self._producer = Producer(
            {
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                # zstd would halve the bytes of aggregates, and take 1.5 us more of a core for each row.
                "compression.type": "lz4",
                "linger.ms": 5,
                "message.timeout.ms": 0,
                "error_cb": SecurityWarnings(log, "writing to Kafka"),
                "logger": logging.getLogger("tailrace.librdkafka"),
                **client,
            }
        )
        self._now_us = now_us
        self._failed: KafkaException | None = None

    def write(
        self, topic: str, key: bytes, value: bytes | None, headers: list[tuple[str, bytes]] | None = None
    ) -> None:
        """Queues a message, and lets librdkafka send it at once. A value of None is a tombstone.

        Raises:
            KafkaException: the message can never be delivered (too large, no such topic).
        """
        while True:
            try:
                self._producer.produce(
                    topic,
                    value,
                    key,
                    headers=headers or [],
                    timestamp=self._now_us() // 1000,
                    on_delivery=self._confirm,
                )
                self._producer.poll(0)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise about(topic, error.args[0]) from None

    def flush(self) -> None:
        """Waits until all is delivered.

        Raises:
            KafkaException: a message can never be delivered.
        """
        while self._producer.flush(0.25):
            pass
        if self._failed is not None:
            raise self._failed

    def _confirm(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            log.error("%s: not delivered: %s", message.topic(), error.str())
            self._failed = self._failed or about(message.topic(), error)
