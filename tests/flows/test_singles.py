"""Messages of one sample, decoded together, are what they are one by one."""

import math
import pickle
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core import singles
from tailrace_flows.core.chunk import Arrival, Chunk, build_chunks
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Partition
from tailrace_schemas.samples import Rejection, Series, decode, encode_sample

NOW_US = 1_767_614_400_000_000
CONFIG = WindowConfig()


def partition() -> Partition:
    return Partition(0, "samples", CONFIG, NOW_US, hold=False, cluster_id="", start=0)


def samples_of(chunk: Chunk) -> Iterable[Any]:
    offsets = np.repeat(chunk.offsets, chunk.lengths).tolist()
    for at, row, time_us, value in zip(offsets, chunk.series_index, chunk.time_us, chunk.value, strict=True):
        yield at, chunk.service, chunk.stream, chunk.table.series[row], int(time_us), float(value)


def one_by_one(records: list[Record]) -> tuple[Counter[Any], Counter[Any]]:
    """(samples, (offset, reason) of dead letters) of records of one sample each."""
    samples: Counter[Any] = Counter()
    letters: Counter[Any] = Counter()
    for record in records:
        batch = decode(record.value)
        if isinstance(batch, Rejection):
            letters[record.offset, batch.reason] += 1
            continue
        arrival = Arrival(record.offset, record.time_us, batch, record.value or b"")
        (chunk,), refusals = build_chunks(0, [(False, [arrival])], max_future_us=CONFIG.max_future_us)
        samples.update(samples_of(chunk))
        letters.update((record.offset, refusal.reason) for refusal in refusals)
    return samples, letters


def together(records: list[Record], polls: int) -> tuple[Counter[Any], Counter[Any]]:
    reader = partition()
    samples: Counter[Any] = Counter()
    letters: Counter[Any] = Counter()
    for part in np.array_split(np.arange(len(records)), polls):
        items, refused = reader.read([records[at] for at in part], NOW_US)
        for chunk in [item for _, item in items if isinstance(item, Chunk)]:
            # Between processes a chunk is pickled, and its series table decoded from its bytes.
            for sample, other in zip(samples_of(chunk), samples_of(pickle.loads(pickle.dumps(chunk))), strict=True):
                assert sample == other
                samples[sample] += 1
        letters.update((letter.offset, letter.reason) for letter in refused)
    return samples, letters


messages = st.builds(
    encode_sample,
    st.sampled_from(["cart", "übung", "s" * 63, "s" * 64, "x" * 200]),
    st.sampled_from(
        [
            Series("latency", "distribution", "s", (("http.route", "/a"),)),
            Series("latency", "distribution", "s", (("http.route", "/b"),)),
            Series("requests", "counter"),
            Series("load", "gauge", "", (("käy", "välue"),)),
        ]
    ),
    st.sampled_from([NOW_US, NOW_US + 1, NOW_US - 10**6, NOW_US + 10**9, 0, 1, 2**49]),
    st.sampled_from([0.5, 2.0, 0.0, -1.0, math.inf, math.nan]),
    st.sampled_from(["", "replay", "r" * 100]),
)
damaged = st.builds(lambda message, at, byte: message[:at] + bytes([byte]) + message[at + 1 :], messages,
                    st.integers(0, 60), st.integers(0, 255))  # fmt: skip
cut = st.builds(lambda message, size: message[:size], messages, st.integers(0, 60))


@settings(max_examples=150)
@given(st.lists(messages | messages | damaged | cut, min_size=1, max_size=30), st.integers(1, 4))
def test_any_messages_give_the_samples_and_dead_letters_that_they_give_one_by_one(found: list[bytes], polls: int):
    # Twice, so that what the first ones taught is used.
    records = [Record(offset, NOW_US, message) for offset, message in enumerate([*found, *found])]
    assert together(records, polls) == one_by_one(records)


def test_known_series_become_one_chunk_of_a_service() -> None:
    reader = partition()
    many = [
        encode_sample("cart", Series("latency", "distribution", "s", (("route", str(n % 50)),)), NOW_US + n, 0.1)
        for n in range(500)
    ]
    reader.read([Record(offset, NOW_US, message) for offset, message in enumerate(many)], NOW_US)
    items, _ = reader.read([Record(500 + offset, NOW_US, message) for offset, message in enumerate(many)], NOW_US)
    assert [chunk.value.size for _, chunk in items] == [500]


@pytest.mark.parametrize(("limit", "value"), [("MAX_KNOWN", 20), ("MAX_ROWS", 20), ("MAX_TABLE_ATTRIBUTES", 150)])
def test_what_is_remembered_is_bounded_and_forgetting_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(singles, limit, value)
    records = [
        Record(n, NOW_US, encode_sample("cart", Series("load", "gauge", "", (("host", str(n % 70)),)), NOW_US, 1.0))
        for n in range(300)
    ]
    assert together(records, 10) == one_by_one(records)
