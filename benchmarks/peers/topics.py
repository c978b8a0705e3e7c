"""The same samples in the encoding of each peer, so that none pays for ours.

A series is a number in the peers' encodings, which is the cheapest key there is: `series`, 0 to the number of series.
"""

import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks import load

WINDOW_US = 10_000_000
END_MS = 13_000
"""So much after the last sample comes a message of series -1 in `*_each`: all windows close, with 2 s for late ones."""
Message = tuple[bytes | None, bytes, int]
"""Key, value, and timestamp in ms (0: of its sending)."""


def global_series(batch: load.Batch, series: int) -> Any:
    """The numbers of the batch's series among all of them."""
    return batch.series_index + np.uint32(batch.producer * load.series_each(series))


def tailrace(series: int, samples: int) -> Iterator[Message]:
    """`SampleBatch`, 1,000 samples a message."""
    for key, value in load.messages(series, samples):
        yield key, value, 0


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def native(series: int, samples: int) -> Iterator[Message]:
    """ClickHouse's own `Native`, a block of 1,000 rows a message."""

    def column(name: str, kind: str) -> bytes:
        return _varint(len(name)) + name.encode() + _varint(len(kind)) + kind.encode()

    head = _varint(3) + _varint(load.BATCH) + column("series", "UInt32")
    time, value = column("time_us", "Int64"), column("value", "Float64")
    for batch in load.batches(series, samples):
        yield (
            None,
            b"".join(
                (
                    head, global_series(batch, series).tobytes(),
                    time, (batch.time_offset_us + np.int64(batch.base_time_us)).tobytes(),
                    value, batch.value.tobytes(),
                )
            ),
            0,
        )  # fmt: skip


def _objects(batch: load.Batch, series: int) -> Iterator[dict[str, Any]]:
    times = (batch.time_offset_us + np.int64(batch.base_time_us)).tolist()
    for key, time_us, value in zip(global_series(batch, series).tolist(), times, batch.value.tolist(), strict=True):
        yield {"series": key, "time_us": time_us, "value": value}


def json_batch(series: int, samples: int) -> Iterator[Message]:
    """1,000 lines a message, a JSON object each: `JSONEachRow`."""
    for batch in load.batches(series, samples):
        yield None, b"".join(orjson.dumps(one) + b"\n" for one in _objects(batch, series)), 0


def json_each(series: int, samples: int) -> Iterator[Message]:
    """A JSON object a message, keyed by series, with the sample's time as the message's."""
    for one in _objects_to_end(series, samples):
        yield str(one["series"]).encode(), orjson.dumps(one), one["time_us"] // 1000


def binary_each(series: int, samples: int) -> Iterator[Message]:
    """A message a sample in Kafka's own serdes: key int32, value double, the sample's time as the message's."""
    key, value = struct.Struct(">i").pack, struct.Struct(">d").pack
    for one in _objects_to_end(series, samples):
        yield key(one["series"]), value(one["value"]), one["time_us"] // 1000


def _objects_to_end(series: int, samples: int) -> Iterator[dict[str, Any]]:
    one: dict[str, Any] = {}
    for batch in load.batches(series, samples):
        for one in _objects(batch, series):
            yield one
    yield {"series": -1, "time_us": one["time_us"] + END_MS * 1000, "value": 1.0}


ENCODINGS: dict[str, Callable[[int, int], Iterator[Message]]] = {
    "tailrace": tailrace,
    "native": native,
    "json_batch": json_batch,
    "json_each": json_each,
    "binary_each": binary_each,
}


def fill(client: dict[str, Any], topic: str, encoding: str, series: int, samples: int) -> None:
    """Makes the topic, of one partition, and sends the samples in their order; waits for their delivery."""
    keep = {"retention.ms": "-1"}  # messages have the samples' times, which are long ago
    admin = AdminClient(client)
    admin.create_topics([NewTopic(topic, 1, config=keep)])[topic].result(30)
    producer = Producer(
        {
            **client, "compression.type": "lz4", "linger.ms": 20, "batch.size": 900_000,
            "queue.buffering.max.kbytes": 200_000, "queue.buffering.max.messages": 500_000, "enable.idempotence": True,
        }
    )  # fmt: skip
    for key, value, timestamp_ms in ENCODINGS[encoding](series, samples):
        while True:
            try:
                producer.produce(topic, value, key, 0, timestamp=timestamp_ms)
                break
            except BufferError:
                producer.poll(0.05)
    left = producer.flush(120)
    if left:
        raise RuntimeError(f"{left} messages for {topic} were not delivered")
