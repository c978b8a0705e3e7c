"""Synthetic latencies as `SampleBatch` messages: stable series tables, batches of 1,000 samples."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from confluent_kafka import Producer
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

BATCH = 1_000
SAMPLES_PER_SECOND = 1_000_000
"""In event time: a minute of event time is 60 M samples, so 100,000 series have 100 samples a window."""
START_US = 1_700_000_000_000_000


def messages(series: int, samples: int, seed: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of batches: one producer each 100 series, or each 1,000 from 100,000 series on.

    Latencies are log-normal with a median of 20 ms; each batch's samples are in the order of their times. Values come
    from a pool of 64 batches, so that making them costs nothing beside sending them.
    """
    each = 1_000 if series >= 100_000 else 100
    producers = max(1, series // each)
    rng = np.random.default_rng(seed)
    tables = [
        encode_series_table(
            Series(
                "http.server.request.duration", "distribution", "s",
                (("http.request.method", "GET"), ("http.route", f"/route/{number}")),
            )
            for number in range(each)
        )
        for _ in range(producers)
    ]  # fmt: skip
    pool = [
        (
            rng.integers(0, each, BATCH).astype("<u4").tobytes(),
            (rng.lognormal(-4, 0.5, BATCH)).astype("<f8").tobytes(),
        )
        for _ in range(64)
    ]
    span_us = BATCH * producers * 1_000_000 // SAMPLES_PER_SECOND
    offsets = (np.arange(BATCH) * span_us // BATCH).astype("<i4").tobytes()
    names = [f"service-{number:03d}" for number in range(producers)]
    for batch in range(samples // BATCH):
        step, number = divmod(batch, producers)
        index, value = pool[(batch * 7) % len(pool)]
        yield (
            names[number].encode(),
            encode_batch(
                service=names[number],
                producer_id="benchmark",
                sequence=step,
                base_time_us=START_US + step * span_us,
                series_table=tables[number],
                series_index=index,
                time_offset_us=offsets,
                value=value,
            ),
        )


def send(client: dict[str, Any], topic: str, series: int, samples: int) -> None:
    """Sends them all, and waits for their delivery."""
    producer = Producer(
        {
            **client, "partitioner": "murmur2_random", "compression.type": "lz4", "linger.ms": 20,
            "batch.size": 900_000, "queue.buffering.max.kbytes": 200_000, "enable.idempotence": True,
        }
    )  # fmt: skip
    for key, value in messages(series, samples):
        while True:
            try:
                producer.produce(topic, value, key)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} messages were not delivered")
