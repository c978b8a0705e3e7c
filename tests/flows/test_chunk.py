"""Chunks that are built together are those that are built alone."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tailrace_flows.core import chunk as module
from tailrace_flows.core.chunk import Arrival, Chunk, Refusal, build_chunks
from tailrace_schemas.samples import SampleBatch, Series, decode, encode_batch, encode_series_table

NOW_US = 1_700_000_000_000_000
MAX_FUTURE_US = 60_000_000
TABLES = [
    encode_series_table([Series("d", "distribution"), Series("g", "gauge")]),
    encode_series_table([Series("c", "counter")]),
]

# Mostly fine; a row that no table has, a time too far ahead, no number, and less than a counter can be.
samples = st.tuples(
    st.sampled_from([0, 0, 0, 1, 7]),
    st.sampled_from([0, 1, -5_000_000, 61_000_000]),
    st.sampled_from([1.0, 2.5, 0.0, np.nan, np.inf, -1.0]),
)
groups = st.tuples(
    st.booleans(), st.sampled_from(TABLES), st.lists(st.lists(samples, max_size=4), min_size=1, max_size=3)
)


def arrivals(name: str, table: bytes, batches: list[Any], offset: int) -> list[Arrival]:
    found = []
    for number, rows in enumerate(batches):
        index, offsets, values = zip(*rows, strict=True) if rows else ((), (), ())
        batch = decode(
            encode_batch(
                service=name, producer_id="p", sequence=number, base_time_us=NOW_US + number, series_table=table,
                series_index=np.array(index, "<u4").tobytes(), time_offset_us=np.array(offsets, "<i4").tobytes(),
                value=np.array(values, "<f8").tobytes(),
            )
        )  # fmt: skip
        assert isinstance(batch, SampleBatch)
        found.append(Arrival(offset + number, NOW_US, batch, b""))
    return found


def plain(chunk: Chunk) -> Any:
    columns = [getattr(chunk, name) for name in Chunk.__slots__]
    return [(column.dtype.str, column.tolist()) if isinstance(column, np.ndarray) else column for column in columns]


@given(st.lists(groups, max_size=5), st.sampled_from([1, 5, 1_000]))
def test_whatever_is_built_with_a_chunk_does_not_change_it(drawn: list[Any], together: int) -> None:
    all_groups = [(old, arrivals(f"s{at}", table, batches, 10 * at)) for at, (old, table, batches) in enumerate(drawn)]
    expected: tuple[list[Any], list[Refusal]] = [], []
    for group in all_groups:
        chunks, refusals = build_chunks(0, [group], max_future_us=MAX_FUTURE_US)
        expected[0].extend(map(plain, chunks))
        expected[1].extend(refusals)
    limit, module.SAMPLES_TOGETHER = module.SAMPLES_TOGETHER, together
    try:
        chunks, refusals = build_chunks(0, all_groups, max_future_us=MAX_FUTURE_US)
    finally:
        module.SAMPLES_TOGETHER = limit
    assert ([*map(plain, chunks)], refusals) == expected


def test_a_small_chunk_keeps_nothing_of_the_others_in_memory() -> None:
    """A window may hold its samples while polls go by."""
    sizes = {"small": 1, "large": 10_000}
    all_groups = [(False, arrivals(name, TABLES[0], [[(0, 0, 1.0)] * size], 0)) for name, size in sizes.items()]
    small, _ = build_chunks(0, all_groups, max_future_us=MAX_FUTURE_US)[0]
    for column in (small.time_us, small.value):
        assert (column if column.base is None else column.base).nbytes == 8
