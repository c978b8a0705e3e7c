"""The one place that reads a clock. Everything else takes time as an argument."""

import time

__all__ = ["monotonic_s", "now_us"]


def now_us() -> int:
    """Wall time, microseconds since the Unix epoch."""
    return time.time_ns() // 1000


monotonic_s = time.monotonic
