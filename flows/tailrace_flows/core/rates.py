"""Rates of cumulative counters over a range, exactly as Prometheus extrapolates them.

For rules and queries over a range. Windows do not extrapolate: their increases are differences of neighbouring
points, so that they add up exactly (`tailrace_flows.core.table`).

Source: prometheus/promql/functions.go, `extrapolatedRate`.
"""

from collections.abc import Sequence

__all__ = ["increase", "rate"]


def increase(points: Sequence[tuple[float, float]], start: float, end: float) -> float | None:
    """The extrapolated increase over (start, end] of a cumulative counter; None without points at two times.

    Args:
        points: (time, value), ascending, all inside the range; times, `start` and `end` in seconds.
    """
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    first_time, first_value = points[0]
    last_time, last_value = points[-1]
    delta = last_value - first_value
    previous = first_value
    for _, value in points[1:]:
        if value < previous:  # a reset: what was counted before it is not lost
            delta += previous
        previous = value

    sampled = last_time - first_time
    spacing = sampled / (len(points) - 1)
    threshold = spacing * 1.1
    to_start = first_time - start
    to_end = end - last_time
    if to_start >= threshold:
        to_start = spacing / 2
    if delta > 0 and first_value >= 0:
        # A counter is never below zero: do not extrapolate past the point where it would have been.
        to_start = min(to_start, sampled * (first_value / delta))
    if to_end >= threshold:
        to_end = spacing / 2
    return delta * (sampled + to_start + to_end) / sampled


def rate(points: Sequence[tuple[float, float]], start: float, end: float) -> float | None:
    """`increase` per second of the range."""
    found = increase(points, start, end)
    return None if found is None else found / (end - start)
