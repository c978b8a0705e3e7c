"""What the measured processes of Python peers share."""

import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """What a measured process is told, as JSON in its first argument."""

    bootstrap_servers: str
    topic: str
    series: int
    samples: int
    out: str
    """Where its answers go: see `exact`."""
    options: dict[str, Any]


def job() -> Job:
    """The job of this process, which is pinned to core 0 from here on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {0})
    return Job(**json.loads(sys.argv[1]))


def report(job: Job, measured: dict[str, float], rows: Iterable[tuple[Any, ...]]) -> None:
    """Prints what was measured, and writes the answers, which is not."""
    Path(job.out).write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    print(json.dumps(measured), flush=True)


def values(job: Job, messages: int, *, at_once: int = 500) -> Iterator[list[bytes]]:
    """The values of the topic's first messages, by polls."""
    from confluent_kafka import Consumer, TopicPartition  # what one measured process does not have

    consumer = Consumer(
        {
            "bootstrap.servers": job.bootstrap_servers, "group.id": "bench", "enable.auto.commit": False,
            "queued.max.messages.kbytes": 32 * 1024, "fetch.queue.backoff.ms": 5,
        }
    )  # fmt: skip
    consumer.assign([TopicPartition(job.topic, 0, 0)])
    while messages > 0:
        found = [message.value() for message in consumer.consume(min(at_once, messages), 0.1)]
        messages -= len(found)
        if found:
            yield found
    consumer.close()
