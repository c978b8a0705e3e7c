"""Messages of samples with one thing after another made difficult, for the curves and what else runs the flow."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import Producer
from tailrace_schemas.samples import Series, encode_batch, encode_sample, encode_series_table

START_US = 1_700_000_040_000_000
"""The first microsecond of a minute."""
POOL = 64


class Load(NamedTuple):
    """What is sent."""

    samples: int = 4_000_000
    series: int = 1_000
    per_second: int = 500_000
    """Of event time, over all series."""
    batch: int = 1_000
    """Samples a message."""
    each: int = 1_000
    """Series of one service, which is one producer with one series table."""
    kind: str = "distribution"
    attributes: int = 2
    disorder_s: float = 0.0
    """Samples are up to so much older than their message."""
    tables: str = "stable"
    """Or of each message: `order`, `one new` series, `all new`."""
    single: bool = False
    """`Sample` messages, of one sample each."""
    hot: float = 0.0
    """The share of all messages that one service sends."""
    start_us: int = START_US


class Message(NamedTuple):
    """One of a service; `time_us` is that of its newest sample."""

    key: bytes
    value: bytes
    time_us: int


def messages(load: Load) -> Iterator[Message]:
    """Log-normal values with a median of 20 ms; made from a pool, so that it costs little beside sending them."""
    each = min(load.each, load.series)
    services = [f"service-{number:04d}" for number in range(load.series // each)]
    rng = np.random.default_rng(1)
    values = [rng.lognormal(-4, 0.5, load.batch) for _ in range(POOL)]
    rows = [rng.integers(0, each, load.batch) for _ in range(POOL)]
    delays_us = [(rng.random(load.batch) * load.disorder_s * 1e6).astype(np.int64) for _ in range(POOL)]
    stable = _series(load, each)
    encoded = encode_series_table(stable)
    sequences = [0] * len(services)
    chosen = _services(load, len(services), rng)
    # Each service's messages follow one another, and all together give the rate.
    step_us = load.batch * 1_000_000 / load.per_second
    span_us = round(step_us * len(services))
    within_us = np.arange(load.batch) * span_us // load.batch
    for number in range(load.samples // load.batch):
        service = next(chosen)
        begin_us = load.start_us + round(number * step_us)
        value, row, delay_us = (pool[number % POOL] for pool in (values, rows, delays_us))
        if load.single:
            at_us = begin_us - int(delay_us[0])
            one = encode_sample(services[service], stable[int(row[0])], at_us, float(value[0]))
            yield Message(services[service].encode(), one, begin_us)
            continue
        table = encoded if load.tables == "stable" else encode_series_table(_changed(load, stable, number))
        sequences[service] += 1
        yield Message(
            services[service].encode(),
            encode_batch(
                service=services[service], producer_id="benchmark", sequence=sequences[service] - 1,
                base_time_us=begin_us, series_table=table, series_index=row.astype("<u4").tobytes(),
                time_offset_us=(within_us - delay_us).astype("<i4").tobytes(), value=value.astype("<f8").tobytes(),
            ),
            begin_us + span_us,
        )  # fmt: skip


def _services(load: Load, number: int, rng: np.random.Generator) -> Iterator[int]:
    at = 0
    while True:
        if load.hot and rng.random() < load.hot:
            yield 0
            continue
        yield at % number
        at += 1


def _series(load: Load, each: int) -> list[Series]:
    common = tuple((f"attribute.{number:02d}", "a value") for number in range(load.attributes - 1))
    return [
        Series("http.server.request.duration", load.kind, "s", (*common, ("http.route", f"/route/{row}")))
        for row in range(each)
    ]


def _changed(load: Load, stable: list[Series], number: int) -> list[Series]:
    at = number % len(stable)
    if load.tables == "order":
        return stable[at:] + stable[:at] if number // len(stable) % 2 else stable[at::-1] + stable[:at:-1]
    new = [
        one._replace(attributes=(*one.attributes[:-1], ("http.route", f"/{number}{one.attributes[-1][1]}")))
        for one in (stable if load.tables == "all new" else stable[at : at + 1])
    ]
    return new if load.tables == "all new" else stable[:at] + new + stable[at + 1 :]


def send(client: dict[str, Any], topic: str, sent: Iterable[Message]) -> None:
    """Sends them all, and waits for their delivery. Not with their own times: Kafka would delete what is so old."""
    producer = Producer(
        {
            **client, "partitioner": "murmur2_random", "compression.type": "lz4", "linger.ms": 20,
            "batch.size": 900_000, "queue.buffering.max.kbytes": 200_000, "enable.idempotence": True,
        }
    )  # fmt: skip
    for message in sent:
        while True:
            try:
                producer.produce(topic, message.value, message.key)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} messages were not delivered in 120 s")
