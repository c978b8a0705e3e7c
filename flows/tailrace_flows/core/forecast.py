"""When a series reaches its limit: a robust slope with an interval, and Prometheus' `predict_linear` beside it."""

from collections.abc import Sequence
from math import inf, isfinite, nan, sqrt
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Forecast", "ewma_chart", "forecast", "least_squares", "predict_linear"]

POINTS_MAX = 400
"""Slopes of pairs are taken between so many points at most, each the median of as many neighbours: 80,000 pairs."""
PIECES = 10
"""The interval spans what the slope was in each of so many pieces of the history, and Sen's interval, which knows of
independent noise only: growth comes in bursts."""
NORMAL_95 = 1.96
LARGEST = 1e100
"""Values from here on, which no measurement has, are left out: sums of them could overflow."""
LEVEL_POINTS = 5
"""The value now is the median of the last points' values, brought to the last time along the slope."""


class Forecast(NamedTuple):
    """Times are seconds from the last point; infinite: never."""

    level: float
    """The value at the last point, one odd point left out of account."""
    slope: float
    """A second; Theil and Sen's median over pairs of points."""
    slope_low: float
    slope_high: float
    reached_in_s: float
    earliest_in_s: float
    latest_in_s: float


def forecast(times_s: Any, values: Any, limit: float) -> Forecast:
    """When the series reaches `limit` from the side where it is now; 0 if it is there.

    Points that are not finite, or 1e100 and more, are left out; times are taken to the microsecond. With no two times
    among the rest nothing is known: slope 0, and anything between now and never. Some 10 ms. Source: Sen, "Estimates of
    the regression coefficient based on Kendall's tau", 1968.

    Raises:
        ValueError: no such point at all, or a limit that is not finite.
    """
    if not isfinite(limit):
        raise ValueError(f"limit {limit} is no finite number")
    times, found = _finite(times_s, values)
    if times.size == 0:
        raise ValueError("there is no finite point to forecast from")
    times, found = _thinned(times - times[-1], found)
    if times[0] == times[-1]:
        level = float(np.median(found[-LEVEL_POINTS:]))
        now = 0.0 if level == limit else inf
        return Forecast(level, 0.0, -inf, inf, now, 0.0, now)
    slope, low, high = _slope(times, found)
    level = float(np.median(found[-LEVEL_POINTS:] - slope * times[-LEVEL_POINTS:]))
    reached = [_reached(limit - level, one) for one in (slope, low, high)]
    return Forecast(level, slope, low, high, reached[0], min(reached), max(reached))


def least_squares(times_s: Any, values: Any, at_s: float = 0.0) -> tuple[float, float]:
    """Slope a second and value at `at_s` of the line of least squares; NaN with less than two times.

    As `linearRegression` of promql/functions.go: a constant series has slope 0 and predicts itself; points or results
    that are not finite make both NaN.
    """
    times = np.asarray(times_s, "f8") - at_s
    found = np.asarray(values, "f8")
    if times.size < 2 or not np.isfinite(found).all() or times.min() == times.max():
        return nan, nan
    if (found == found[0]).all():
        return 0.0, float(found[0])
    with np.errstate(all="ignore"):
        mean_time, mean = times.mean(), found.mean()
        off = times - mean_time
        slope = float((off * (found - mean)).sum() / (off * off).sum())
        value = float(mean - slope * mean_time)
    return (slope, value) if isfinite(slope) and isfinite(value) else (nan, nan)


def predict_linear(times_s: Any, values: Any, now_s: float, ahead_s: float) -> float:
    """The line of least squares at `now_s + ahead_s`, as `predict_linear` of Prometheus evaluated at `now_s`."""
    slope, value = least_squares(times_s, values, now_s)
    return value + slope * ahead_s


def ewma_chart(
    values: Sequence[float], weight: float, start: float, sigma: float, width: float = 3.0
) -> tuple[list[float], float, float]:
    """The exponentially weighted means, `start` first, and the lower and upper limit of their control chart.

    Source: NIST/SEMATECH e-Handbook, 6.3.2.4.
    """
    means = [start]
    for value in values:
        means.append(weight * value + (1 - weight) * means[-1])
    margin = width * sigma * sqrt(weight / (2 - weight))
    return means, start - margin, start + margin


def _finite(times_s: Any, values: Any) -> tuple[Any, Any]:
    times, found = np.asarray(times_s, "f8"), np.asarray(values, "f8")
    good = np.isfinite(times) & (np.abs(found) < LARGEST)
    times, found = np.round(times[good], 6), found[good]
    order = np.argsort(times, kind="stable")
    return times[order], found[order]


def _thinned(times: Any, values: Any) -> tuple[Any, Any]:
    """Medians of neighbouring points, so that `POINTS_MAX` remain; the last ones stay as they are."""
    if times.size <= POINTS_MAX:
        return times, values
    pieces = np.array_split(np.arange(times.size - LEVEL_POINTS), POINTS_MAX - LEVEL_POINTS)
    return (
        np.concatenate([[np.median(times[piece]) for piece in pieces], times[-LEVEL_POINTS:]]),
        np.concatenate([[np.median(values[piece]) for piece in pieces], values[-LEVEL_POINTS:]]),
    )


def _slope(times: Any, values: Any) -> tuple[float, float, float]:
    """The median slope of all pairs, and an interval around it."""
    first, second = np.triu_indices(times.size, 1)
    span = times[second] - times[first]
    apart = span > 0
    with np.errstate(over="ignore"):
        slopes = np.sort((values[second] - values[first])[apart] / span[apart])
    slopes = np.clip(slopes, -np.finfo("f8").max, np.finfo("f8").max)
    n = times.size
    spread = NORMAL_95 * sqrt(n * (n - 1) * (2 * n + 5) / 18)
    at_low = max(0, int((slopes.size - spread) / 2))
    at_high = min(slopes.size - 1, int((slopes.size + spread) / 2) + 1)
    slope = float(np.median(slopes))
    changes = [slope]
    for piece in np.array_split(np.arange(n), min(PIECES, n // 2)):
        took = times[piece[-1]] - times[piece[0]]
        if took > 0:
            changes.append(float((values[piece[-1]] - values[piece[0]]) / took))
    return slope, min([*changes, float(slopes[at_low])]), max([*changes, float(slopes[at_high])])


def _reached(distance: float, slope: float) -> float:
    if distance == 0:
        return 0.0
    if slope == 0 or (distance > 0) != (slope > 0):
        return inf
    return distance / slope
