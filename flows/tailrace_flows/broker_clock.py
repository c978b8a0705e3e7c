"""The broker's clock, which a flow asks for when it starts: its host's may be ahead. See docs/reliability.md."""

import logging
from typing import Any, Final

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, Producer
from tailrace_schemas import clock

from tailrace_flows.source import EMBEDDED

__all__ = ["offset_us"]

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
TOLERANCE_US: Final = 5_000_000
"""The clocks of hosts differ by so much: a flow that went by the broker's would start anew once records agree with its
own host's (`tailrace_flows.core.steady`)."""


class _UntoldError(Exception):
    """The broker did not say what time it is; why."""


def offset_us(client: dict[str, Any], topic: str) -> int | None:
    """How far the broker's wall clock is ahead of this host's monotonic one, where the wall clocks of both differ.

    An empty record is written to `topic`, on which brokers put the time themselves (`LogAppendTime`). None: the clocks
    agree, or the broker did not tell, since it is the embedded one (which is on this host), or for a reason that is
    logged. Takes a few milliseconds, or TIMEOUT_S twice; what it takes makes the answer too great.
    """
    try:
        of_broker_us = _ask(client, topic)
    except (_UntoldError, KafkaException) as error:
        why = error.args[0].str() if isinstance(error, KafkaException) else error
        log.warning("topic %s: %s. So this host's clock is believed, not compared with the broker's", topic, why)
        return None
    if of_broker_us is None:
        return None
    ahead_us = clock.now_us() - clock.monotonic_ns() // 1000 - of_broker_us
    if abs(ahead_us) <= TOLERANCE_US:
        return None
    log.warning(
        "this host's clock is %.1f s %s that of Kafka's broker: going by the one that is behind until all records "
        "agree with the other", abs(ahead_us) / 1e6, "ahead of" if ahead_us > 0 else "behind",
    )  # fmt: skip
    return of_broker_us


def _ask(client: dict[str, Any], topic: str) -> int | None:
    producer = Producer(
        {
            "message.timeout.ms": round(TIMEOUT_S * 1000),
            "linger.ms": 0,
            "logger": logging.getLogger("tailrace.librdkafka"),
            **client,
        }
    )
    found = producer.list_topics(timeout=TIMEOUT_S)  # of all: one that is asked for by name may be made thereby
    if (found.cluster_id or "").startswith(EMBEDDED):
        return None
    if topic not in found.topics:
        raise _UntoldError("it does not exist, or the user has no right to it; `tailrace topics` makes it")
    answers: list[tuple[KafkaError | None, Message]] = []
    asked_us = clock.monotonic_ns() // 1000
    producer.produce(topic, b"", on_delivery=lambda error, message: answers.append((error, message)))
    producer.flush(TIMEOUT_S)
    if not answers:
        raise _UntoldError("no answer")
    ((failed, message),) = answers
    if failed is not None:
        raise KafkaException(failed)
    kind, time_ms = message.timestamp()
    if kind != TIMESTAMP_LOG_APPEND_TIME:
        raise _UntoldError("the broker does not put the time on its records: set message.timestamp.type=LogAppendTime")
    return int(time_ms) * 1000 - asked_us
