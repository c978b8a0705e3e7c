"""Series, tables and batches for Hypothesis, and columns as lists."""

import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from tailrace_schemas.samples import KINDS, MAX_SEQUENCE, MAX_TIME_US, Series, encode_batch

__all__ = ["ATTRIBUTES", "NAMES", "SERIES", "batch_of", "columns", "headers"]

NAMES = st.text(min_size=1, max_size=20)
ATTRIBUTES = st.dictionaries(NAMES, st.text(max_size=20), max_size=5)
SERIES = st.builds(
    Series,
    NAMES,
    st.sampled_from(KINDS),
    st.text(max_size=8),
    ATTRIBUTES.map(lambda found: tuple(sorted(found.items()))),
)

headers = st.fixed_dictionaries(
    {
        "service": NAMES,
        "producer_id": st.text(max_size=20),
        "sequence": st.integers(-1, MAX_SEQUENCE),
        "stream": st.text(max_size=10),
        "end_of_stream": st.booleans(),
        "base_time_us": st.integers(0, MAX_TIME_US),
    }
)
"""What `encode_batch` is given besides the samples."""


def columns(samples: Sequence[tuple[int, int, float]]) -> dict[str, bytes]:
    """The packed columns of (series_index, time_offset_us, value)."""
    index, offset, value = zip(*samples, strict=True) if samples else ((), (), ())
    return {
        "series_index": struct.pack(f"<{len(samples)}I", *index),
        "time_offset_us": struct.pack(f"<{len(samples)}i", *offset),
        "value": struct.pack(f"<{len(samples)}d", *value),
    }


def batch_of(table: bytes, samples: Sequence[tuple[int, int, float]] = (), **fields: Any) -> bytes:
    """A message; fields that are not given are unremarkable."""
    ordinary = {"service": "checkout", "producer_id": "p1", "sequence": 0, "base_time_us": 1_767_614_400_000_000}
    return encode_batch(**{**ordinary, "series_table": table, **columns(samples), **fields})
