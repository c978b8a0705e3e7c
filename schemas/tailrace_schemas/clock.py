"""The one place that reads a clock. Everything else takes time as an argument."""

import time

__all__ = ["monotonic_ns", "monotonic_s", "now_ns", "now_us"]


def now_us() -> int:
    """Wall time, microseconds since the Unix epoch."""
    return time.time_ns() // 1000


now_ns = time.time_ns
"""Wall time, nanoseconds since the Unix epoch: without a frame of Python's, for the path that records samples."""

monotonic_s = time.monotonic
monotonic_ns = time.monotonic_ns
