"""What changed: before against after a deploy or another event, and where a series changed most. Ranks, so robust."""

from math import erfc, exp, inf, nan, sqrt
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Change", "ChangePoint", "change_point", "compare"]

POINTS_MAX = 1_000
"""Of each side: the nearest to the event. A million pairs take some 50 ms."""
NORMAL_95 = 1.96


class Change(NamedTuple):
    """After against before an event."""

    before: float
    """Medians."""
    after: float
    shift: float
    """The median difference of a point after and one before (Hodges-Lehmann), in the series' unit."""
    low: float
    high: float
    """The shift's interval of 95 %."""
    greater: float
    """The probability that a point after exceeds one before; equal ones count half."""
    confidence: float
    """That it changed at all: 1 - p of the test of Mann and Whitney (1947), two-sided."""


class ChangePoint(NamedTuple):
    """Where a series changed most."""

    at: int
    """The first point of the new regime."""
    confidence: float


def compare(before: Any, after: Any) -> Change:
    """Whether, and by how much, points after an event differ from those before, in order of time.

    Points that are not finite are left out. Neighbouring windows resemble each other; each side counts for as many
    independent points as its autocorrelation leaves. With less than two points on a side nothing is known: confidence
    0. A trend or a season is no change of the event's: take sides of equal length, or compare the same hours.
    """
    old, new = _finite(before)[-POINTS_MAX:], _finite(after)[:POINTS_MAX]
    medians = [float(np.median(side)) if side.size else nan for side in (old, new)]
    if min(old.size, new.size) < 2:
        return Change(medians[0], medians[1], nan, -inf, inf, nan, 0.0)
    differences = np.sort((new[:, None] - old[None, :]).ravel())
    pairs = differences.size
    greater = ((differences > 0).sum() + 0.5 * (differences == 0).sum()) / pairs
    m, n = _independent(old), _independent(new)
    _, ties = np.unique(np.concatenate([old, new]), return_counts=True)
    total = old.size + new.size
    tied = 1 - float((ties.astype("f8") ** 3 - ties).sum()) / (total**3 - total)
    deviation = sqrt(max(0.0, (m + n + 1) / (12 * m * n) * tied))
    confidence = 1 - erfc(abs(greater - 0.5) / deviation / sqrt(2)) if deviation > 0 else 0.0
    reach = NORMAL_95 * deviation
    at_low = max(0, int(pairs * (0.5 - reach)))
    at_high = min(pairs - 1, int(pairs * (0.5 + reach)))
    shift = float(np.median(differences))
    return Change(
        medians[0], medians[1], shift, min(shift, float(differences[at_low])),
        max(shift, float(differences[at_high])), float(greater), confidence,
    )  # fmt: skip


def change_point(values: Any) -> ChangePoint | None:
    """Where the ranks of a series change most (the test of Pettitt, 1979); None with less than four finite points.

    `at` counts all points given. The confidence supposes independent points: of neighbours that resemble each
    other it is too high.
    """
    values = np.asarray(values, "f8")
    places = np.flatnonzero(np.isfinite(values))
    n = places.size
    if n < 4:
        return None
    ordered, ranks = np.unique(values[places], return_inverse=True)
    _, ties = np.unique(ranks, return_counts=True)
    middle = (np.cumsum(ties) - (ties - 1) / 2)[ranks]  # equal values share their mean rank
    statistic = np.abs(2 * np.cumsum(middle) - np.arange(1, n + 1) * (n + 1))[:-1]
    sizes = np.arange(1, n)
    last = int((statistic / np.sqrt(sizes * (n - sizes))).argmax())  # the maximum itself is drawn to the middle
    confidence = 1 - min(1.0, 2 * exp(-6 * float(statistic.max()) ** 2 / (n**3 + n**2))) if ordered.size > 1 else 0.0
    return ChangePoint(int(places[last + 1]), confidence)


def _finite(values: Any) -> Any:
    values = np.asarray(values, "f8")
    return values[np.isfinite(values)]


def _independent(values: Any) -> float:
    """How many independent points tell as much, by the autocorrelation of ranks at one step; 2 at least."""
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable") - (values.size - 1) / 2
    power = float((ranks * ranks).sum())
    alike = max(0.0, float((ranks[1:] * ranks[:-1]).sum()) / power) if power else 0.0
    if (values == values[0]).all():
        alike = 0.0
    return max(2.0, float(values.size) * (1 - alike) / (1 + alike))
