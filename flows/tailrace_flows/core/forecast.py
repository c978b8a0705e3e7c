"""When a series reaches its limit: a robust slope with an interval, and Prometheus' `predict_linear` beside it."""

from collections.abc import Sequence
from math import ceil, inf, isfinite, nan, sqrt
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

HOUR_S = 3_600
SEASONS_H = (24, 168)
"""A day, and a week in what the day leaves over."""
PERIODS_MIN = 3
"""A season needs so many whole periods, and must show in each of the last so many."""
PERIODS_MAX = 60
"""It is learned from the last so many: seasons change."""
CELLS_MIN = 4
"""Hours of a period with values, at least: a line, which is taken out, explains two."""
SHOWN = 0.8
"""A period's mean absolute residual falls to this share with the profile of the other periods, or there is no season.
On noise the profile only adds to it."""
PAYS = 0.1
"""A season that deviates by less than this share of a period's growth moves the time by less than that of a period."""
ROUNDING = 1e-9
"""A share of the largest value: what deviates less is rounding."""


class Forecast(NamedTuple):
    """Times are seconds from the last point; infinite: never."""

    level: float
    """The value at the last point, one odd point left out of account; with a season, at its phase."""
    slope: float
    """A second; Theil and Sen's median over pairs of points."""
    slope_low: float
    slope_high: float
    reached_in_s: float
    earliest_in_s: float
    latest_in_s: float
    season: tuple[float, ...] = ()
    """What the season adds 0, 1, 2 ... hours from the last point, over one period; empty: no season was shown."""

    def at(self, ahead_s: float, slope: float | None = None) -> float:
        """The value so many seconds after the last point, along `slope` (a second) if one is given."""
        value = self.level + (self.slope if slope is None else slope) * ahead_s
        if self.season:
            value += float(_in_season(self.season, ahead_s)) - self.season[0]
        return value


def forecast(times_s: Any, values: Any, limit: float, *, seasonal: bool = True) -> Forecast:
    """When the series first reaches `limit` from the side where it is now; 0 if it is there.

    A daily or weekly profile is taken out before slope and level are estimated, and put back for the time, if it is
    shown to exist (`_season`) and not `seasonal=False`; else the result is that of a line alone.

    Points that are not finite, or 1e100 and more, are left out; times are taken to the microsecond. With no two times
    among the rest nothing is known: slope 0, and anything between now and never. Some 20 ms, 0.15 s for
    500,000 points. Source: Sen, "Estimates of
    the regression coefficient based on Kendall's tau", 1968.

    Raises:
        ValueError: no such point at all, or a limit that is not finite.
    """
    if not isfinite(limit):
        raise ValueError(f"limit {limit} is no finite number")
    times, found = _finite(times_s, values)
    if times.size == 0:
        raise ValueError("there is no finite point to forecast from")
    times = times - times[-1]
    season = _season(times, found) if seasonal else ()
    if season:
        found = found - _in_season(season, times)
    times, found = _thinned(times, found)
    if times[0] == times[-1]:
        level = float(np.median(found[-LEVEL_POINTS:]))
        now = 0.0 if level == limit else inf
        return Forecast(level, 0.0, -inf, inf, now, 0.0, now)
    slope, low, high = _slope(times, found)
    level = float(np.median(found[-LEVEL_POINTS:] - slope * times[-LEVEL_POINTS:]))
    if season:
        level += season[0]
        reached = [_reached_in_season(limit - level, one, season) for one in (slope, low, high)]
    else:
        reached = [_reached(limit - level, one) for one in (slope, low, high)]
    return Forecast(level, slope, low, high, reached[0], min(reached), max(reached), season)


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


# -- seasons ---------------------------------------------------------------------------------------------


def _season(times: Any, values: Any) -> tuple[float, ...]:
    """What a day, and a week if that shows too, adds to the line, by hours from the last point; empty: nothing.

    `times` are sorted and 0 at the last point. Days are of 24 hours: a change of the clocks moves the phase.
    """
    hours = _hourly(times, values)
    season: Any = ()
    for period in SEASONS_H:
        rows = min(hours.size // period, PERIODS_MAX)
        profile = _profile(hours[: rows * period].reshape(rows, period)) if rows >= PERIODS_MIN else None
        if profile is not None:
            hours = hours - np.resize(profile, hours.size)
            season = profile + (np.resize(season, period) if len(season) else 0.0)
    # From hours before the last point to hours after it.
    return tuple(np.roll(season[::-1], 1).tolist()) if len(season) else ()


def _hourly(times: Any, values: Any) -> Any:
    """The median of each hour, the last hour first; NaN where there is no point."""
    near = times > -PERIODS_MAX * SEASONS_H[-1] * HOUR_S
    hour = np.floor(0.5 - times[near] / HOUR_S).astype("i8")
    order = np.lexsort((values[near], hour))
    which, start, count = np.unique(hour[order], return_index=True, return_counts=True)
    ordered = values[near][order]
    hours = np.full(which[-1] + 1, nan)
    hours[which] = (ordered[start + (count - 1) // 2] + ordered[start + count // 2]) / 2
    return hours


def _profile(table: Any) -> Any:
    """What each phase adds, if the last periods bear it out; else None. Rows are periods, the last first.

    Growth is taken out by the median change from a phase to the same one a period later, which knows of no season.
    Source: Hirsch, Slack and Smith, "Techniques of trend analysis for monthly water quality data", 1982.
    """
    growth = float(_medians((table[:-1] - table[1:]).ravel()))
    if not isfinite(growth):
        return None
    table = table + np.arange(table.size).reshape(table.shape) * (growth / table.shape[1])
    least = ROUNDING * float(np.nanmax(np.abs(table)))
    for number in range(PERIODS_MIN):
        others = _polished(np.delete(table, number, axis=0))
        both = np.flatnonzero(np.isfinite(table[number] - others))
        if both.size < max(CELLS_MIN, np.isfinite(table[number]).sum() / 2):
            return None
        without = _off_line(both, table[number][both])
        if without <= least or _off_line(both, (table[number] - others)[both]) > SHOWN * without:
            return None
    profile = _polished(table)
    known = np.flatnonzero(np.isfinite(profile))
    if np.abs(profile[known]).mean() < PAYS * abs(growth):
        return None
    return np.interp(np.arange(profile.size), known, profile[known], period=profile.size)


def _polished(table: Any) -> Any:
    """The columns' effects, the rows' levels taken out: two sweeps of Tukey's median polish."""
    levels = _medians(table.T)
    effects = _medians(table - levels[:, None])
    levels = _medians((table - effects).T)
    return _medians(table - levels[:, None])


def _medians(table: Any) -> Any:
    """Along the first axis, of what is not NaN; NaN where there is nothing."""
    ordered = np.sort(table, axis=0)
    count = np.isfinite(table).sum(axis=0)[None]
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=0)
    high = np.take_along_axis(ordered, np.minimum(count // 2, len(table) - 1), axis=0)
    return ((low + high) / 2)[0]


def _off_line(at: Any, values: Any) -> float:
    """The mean distance from their line of least squares: growth within a period is no season."""
    off = at - at.mean()
    centred = values - values.mean()
    return float(np.abs(centred - off * ((off * centred).sum() / (off * off).sum())).mean())


def _in_season(season: Sequence[float], ahead_s: Any) -> Any:
    return np.interp(np.asarray(ahead_s) / HOUR_S, np.arange(len(season)), season, period=len(season))


def _reached_in_season(distance: float, slope: float, season: tuple[float, ...]) -> float:
    """The first time at which line and season, straight between hours, have gone so far."""
    if distance == 0:
        return 0.0
    sign = 1.0 if distance > 0 else -1.0
    distance, slope = abs(distance), sign * slope
    hours = np.arange(len(season) + 1)
    period_s = len(season) * HOUR_S
    way = sign * (np.array([*season, season[0]]) - season[0])
    with np.errstate(over="ignore"):
        way = way + slope * HOUR_S * hours
        short = distance - float(way.max())
        if short > 0 and slope <= 0:
            return inf
        periods = short / (slope * period_s) if short > 0 else 0.0
        if not isfinite(periods):
            return inf
        whole = ceil(periods)
        way = way + slope * period_s * whole
    # Rounding may leave the highest hour just short of it.
    hour = max(1, int(np.argmax(way >= min(distance, way.max()))))
    before, after = float(way[hour - 1]), float(way[hour])
    part = min(max((distance - before) / (after - before), 0.0), 1.0) if after > before else 1.0
    return whole * period_s + (hour - 1 + part) * HOUR_S
