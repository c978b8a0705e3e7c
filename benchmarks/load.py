"""Synthetic latencies as `SampleBatch` messages: stable series tables, batches of 1,000 samples."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import Producer
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

BATCH = 1_000
SAMPLES_PER_SECOND = 1_000_000
"""In event time: a minute of event time is 60 M samples, so 100,000 series have 100 samples a window."""
START_US = 1_700_000_000_000_000


class Batch(NamedTuple):
    """The samples of one message, in the order of their times."""

    producer: int
    step: int
    """Number of the producer's message."""
    base_time_us: int
    series_index: np.ndarray[Any, np.dtype[np.uint32]]
    """Into the series of this producer, which has `series_each(series)` of them."""
    time_offset_us: np.ndarray[Any, np.dtype[np.int32]]
    value: np.ndarray[Any, np.dtype[np.float64]]


def series_each(series: int) -> int:
    """Series of a producer: 100, and 1,000 from 100,000 series on."""
    return 1_000 if series >= 100_000 else 100


def service_name(producer: int) -> str:
    return f"service-{producer:03d}"


def batches(series: int, samples: int, seed: int = 1) -> Iterator[Batch]:
    """The producers' batches in turn. Latencies are log-normal with a median of 20 ms. 30 us each."""
    each = series_each(series)
    producers = max(1, series // each)
    rng = np.random.default_rng(seed)
    span_us = BATCH * producers * 1_000_000 // SAMPLES_PER_SECOND
    offsets = (np.arange(BATCH) * span_us // BATCH).astype("<i4")
    for batch in range(samples // BATCH):
        step, number = divmod(batch, producers)
        yield Batch(
            number, step, START_US + step * span_us, rng.integers(0, each, BATCH, "<u4"), offsets,
            rng.lognormal(-4, 0.5, BATCH),
        )  # fmt: skip


def messages(series: int, samples: int, seed: int = 1) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the batches as `SampleBatch` messages."""
    table = encode_series_table(
        Series(
            "http.server.request.duration", "distribution", "s",
            (("http.request.method", "GET"), ("http.route", f"/route/{number}")),
        )
        for number in range(series_each(series))
    )  # fmt: skip
    for batch in batches(series, samples, seed):
        name = service_name(batch.producer)
        yield (
            name.encode(),
            encode_batch(
                service=name,
                producer_id="benchmark",
                sequence=batch.step,
                base_time_us=batch.base_time_us,
                series_table=table,
                series_index=batch.series_index.tobytes(),
                time_offset_us=batch.time_offset_us.tobytes(),
                value=batch.value.tobytes(),
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
