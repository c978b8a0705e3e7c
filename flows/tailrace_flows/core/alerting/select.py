"""Aggregates of a metric over time and over series, for each group of label values.

Which series match and which group they fall into is worked out once for the series that there are, so that an
evaluation is a few numpy calls, whatever the number of series.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import nan
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.alerts import Labels
from tailrace_schemas.config.aggregate import Aggregate, How
from tailrace_schemas.config.matcher import Matcher
from tailrace_schemas.samples import KINDS

from tailrace_flows.core.alerting.store import EMPTY, STEP_US, LabelValues, MetricRows, WindowStore
from tailrace_flows.core.sketch import codes_of, values_of

__all__ = ["Groups", "LabelSets", "Selector", "joined"]

_DELTA: Final = [KINDS.index(kind) for kind in ("distribution", "counter", "event")]
_DENSE_MAX: Final = 1 << 22
"""Cells up to which buckets are numbered in an array of groups by codes, and counted in one of times by buckets."""


class LabelSets:
    """Distinct label sets, as rows of codes: 100,000 of them cost no Python objects until one is asked for."""

    def __init__(self, by: tuple[str, ...], values: tuple[LabelValues, ...], codes: NDArray[np.int32]) -> None:
        self.by = by
        self.values = values
        self.codes = codes
        """Label sets by labels."""

    def __len__(self) -> int:
        return len(self.codes)

    def labels(self, number: int) -> Labels:
        """One label set; labels that are empty are left out."""
        of_codes = zip(self.by, self.values, self.codes[number].tolist(), strict=True)
        named = ((name, values.values[code]) for name, values, code in of_codes)
        return tuple((name, value) for name, value in named if value)

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        return {row.tobytes(): number for number, row in enumerate(self.codes)}

    def find(self, labels: Labels) -> int:
        """The number of a label set; -1: it is not here."""
        given = dict(labels)
        codes = [values.codes.get(given.get(name, ""), -1) for name, values in zip(self.by, self.values, strict=True)]
        return self._numbers.get(np.array(codes, np.int32).tobytes(), -1)


class Groups(LabelSets):
    """The groups of a selector's series: group g has `members[starts[g] : starts[g + 1]]`."""

    def __init__(
        self,
        by: tuple[str, ...],
        values: tuple[LabelValues, ...],
        codes: NDArray[np.int32],
        members: NDArray[np.int64],
        starts: NDArray[np.int64],
        delta: NDArray[np.bool_],
    ) -> None:
        super().__init__(by, values, codes)
        self.members = members
        """Slots, by group."""
        self.starts = starts
        self.sizes = np.diff(np.append(starts, members.size))
        self.delta = delta
        """Which members are of kinds for which no samples mean that nothing happened."""

    def reduce(self, how: np.ufunc, of_members: NDArray[Any]) -> NDArray[Any]:
        """Anything by members, to anything by groups."""
        if len(self) == self.members.size:
            return of_members
        found: NDArray[Any] = how.reduceat(of_members, self.starts, axis=1)
        return found


def joined(several: Sequence[LabelSets]) -> tuple[LabelSets, list[NDArray[np.int64]]]:
    """The union of label sets with the same labels, and for each of them the numbers that its sets have there."""
    if len(several) == 1:
        return several[0], [np.arange(len(several[0]))]
    codes = np.concatenate([one.codes for one in several])
    numbers = _number_rows(list(codes.T), len(codes))
    _, first = np.unique(numbers, return_index=True)
    bounds = np.cumsum([0, *map(len, several)])
    places = [numbers[start:end] for start, end in pairwise(bounds.tolist())]
    return LabelSets(several[0].by, several[0].values, codes[first]), places


class Selector:
    """The series of a metric that match, of the given kinds, grouped by some labels (sorted by name)."""

    def __init__(self, metric: str, where: Sequence[Matcher], by: Sequence[str], kinds: frozenset[str]) -> None:
        self.metric = metric
        self.where = tuple(where)
        self.by = tuple(sorted(set(by)))
        self._kinds = [KINDS.index(kind) for kind in sorted(kinds)]
        self._seen: tuple[object, ...] = ()
        self._groups: Groups | None = None
        self._merged: tuple[tuple[object, ...], _Merged | None] = ((), None)
        """The sketches that were asked for last: rules often want several quantiles of the same."""

    def groups(self, store: WindowStore) -> Groups:
        """The groups of the series that the store has; the same object as long as these are the same.

        Costs 50 ns a series and label when they have changed.
        """
        rows = store.metric(self.metric)
        seen = (store.labels_epoch, rows, rows and (rows.epoch, len(rows.series)))
        if self._groups is None or self._seen != seen:
            self._groups = self._group(store, rows)
            self._seen = seen
        return self._groups

    def _group(self, store: WindowStore, rows: MetricRows | None) -> Groups:
        values = tuple(store.label(name) for name in self.by)
        slots = np.empty(0, np.int64)
        if rows is not None:
            matching = np.isin(rows.kind, self._kinds)
            for matcher in self.where:
                label = store.label(matcher.label)
                codes = rows.label_codes(matcher.label, label)
                matching &= label.matching(matcher)[codes]
            slots = np.flatnonzero(matching)
        if rows is None or slots.size == 0:
            none = np.empty(0, np.int64)
            return Groups(self.by, values, np.empty((0, len(self.by)), np.int32), none, none, np.empty(0, np.bool_))
        every = [rows.label_codes(name, label)[slots] for name, label in zip(self.by, values, strict=True)]
        group = _number_rows(every, slots.size)
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(group.max() + 1))
        codes = np.empty((starts.size, len(self.by)), np.int32)
        for at, column in enumerate(every):
            codes[:, at] = column[order[starts]]
        members = slots[order]
        return Groups(self.by, values, codes, members, starts, np.isin(rows.kind[members], _DELTA))

    # -- values ----------------------------------------------------------------------------------------

    def present(self, store: WindowStore, window_us: int, times: range) -> NDArray[np.bool_]:
        """At each time, for each member of the groups, whether it has a row in (time - window, time]."""
        rows = store.metric(self.metric)
        groups = self.groups(store)
        if rows is None or len(groups) == 0:
            return np.zeros((len(times), 0), np.bool_)
        view = _View(rows, window_us, times, groups)
        return view.newest(view.column("count") > 0) >= 0

    def aggregate(self, store: WindowStore, how: Aggregate, window_us: int, times: range) -> NDArray[np.float64]:
        """The value of each group over windows whose end is in (time - window, time], for each time: times by groups;
        NaN where there are no data. A time's values do not depend on what other times are asked for with it.

        `times` are multiples of STEP_US apart. Costs some 10 ns a row and column, and 20 to 100 us a call; for sketches
        20 ns a bucket.
        """
        rows = store.metric(self.metric)
        groups = self.groups(store)
        if rows is None or len(groups) == 0:
            return np.empty((len(times), 0))
        if how.how in (How.QUANTILE, How.FRACTION_ABOVE, How.FRACTION_BELOW):
            return self._of_sketches(groups, rows, how, window_us, times)
        view = _View(rows, window_us, times, groups)
        if how.how is How.PREDICT_LINEAR:
            return _predicted(view, how.argument)
        return _simple(view, how.how, window_us / 1e6)

    def _of_sketches(
        self, groups: Groups, rows: MetricRows, how: Aggregate, window_us: int, times: range
    ) -> NDArray[np.float64]:
        key = (window_us, times, rows.changes, groups)
        if self._merged[0] != key:
            self._merged = (key, _merged(_View(rows, window_us, times, groups)))
        merged = self._merged[1]
        if merged is None:
            each = (times[number : number + 1] for number in range(len(times)))
            return np.concatenate([self._of_sketches(groups, rows, how, window_us, one) for one in each])
        return merged.answer(how)


class _View:
    """The rows of a metric that lie in the windows of some times, for the members of groups.

    The window of time number i is rows `i * stride` to `i * stride + width` of the matrices that `column` gives.
    """

    def __init__(self, rows: MetricRows, window_us: int, times: range, groups: Groups) -> None:
        self.rows, self.groups = rows, groups
        self.count = len(times)
        self.stride = max(1, times.step // STEP_US)
        first_us = rows.first_end_us
        low = (times[0] - window_us - first_us) // STEP_US + 1
        stop = (times[0] - first_us) // STEP_US + 1
        self.width = stop - low
        self.lead = 0
        """Rows of the first window that are left out at its beginning, since there is nothing."""
        if self.count == 1:
            self.lead = min(max(0, -low), self.width - 1)
            stop = max(min(stop, rows.windows), low + self.lead + 1)
        self.span = (low + self.lead, stop + (self.count - 1) * self.stride)
        """Numbers of rows; those below 0 and from `rows.windows` on are not there."""

    def column(self, name: str) -> NDArray[np.float64]:
        """Windows by members; what a row that is not there has, is as in the store: 0, NaN, or an infinity."""
        first, stop = self.span
        matrix = self.rows.column(name)
        if matrix is None:
            return np.full((stop - first, self.groups.members.size), nan)
        low, high = min(max(first, 0), self.rows.windows), min(max(stop, 0), self.rows.windows)
        there = np.take(matrix[low:high], self.groups.members, axis=1)
        if high - low == stop - first:
            return there
        every = np.full((stop - first, there.shape[1]), float(EMPTY[name]))
        every[low - first : high - first] = there
        return every

    def reduced(self, how: np.ufunc, of_rows: NDArray[Any]) -> NDArray[Any]:
        """Times by groups: over the rows of each window and the members of each group.

        Always in the same order, row after row: the sum of a window does not depend on what it is asked for with.
        """
        return self.over_time(how, self.groups.reduce(how, of_rows))

    def over_time(self, how: np.ufunc, of_rows: NDArray[Any]) -> NDArray[Any]:
        """Times by columns."""
        if self.count == 1:
            return _down(how, of_rows)[None]
        if self.count <= self.width:
            return np.stack([_down(how, of_rows[at : at + self.width]) for at in self.starts])
        last = (self.count - 1) * self.stride + 1
        found: NDArray[Any] = of_rows[0 : last : self.stride].copy()
        for at in range(1, self.width):
            how(found, of_rows[at : at + last : self.stride], out=found)
        return found

    def newest(self, there: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Times by columns: the number of the newest row of each window that is there; -1: none is."""
        numbers = np.where(there, np.arange(len(there))[:, None], -1)
        np.maximum.accumulate(numbers, axis=0, out=numbers)
        starts = np.array(self.starts)
        found = numbers[np.minimum(starts + self.width, len(there)) - 1]
        return np.where(found >= starts[:, None], found, -1)

    @property
    def starts(self) -> range:
        """The first row of each window."""
        return range(0, (self.count - 1) * self.stride + 1, self.stride)


def _down(how: np.ufunc, of_rows: NDArray[Any]) -> NDArray[Any]:
    """By columns, over the rows, one after the other: numpy would add up a single column in another order."""
    found: NDArray[Any] = how.reduce(np.repeat(of_rows, 2, axis=1) if of_rows.shape[1] == 1 else of_rows, axis=0)
    return found[: of_rows.shape[1]]


def _simple(view: _View, how: How, seconds: float) -> NDArray[np.float64]:
    match how:
        case How.INCREASE | How.RATE:
            increase = view.column("increase")
            missing = np.isnan(increase)
            increase[missing] = 0
            total = view.reduced(np.add, increase)
            if missing.any():
                total[~view.reduced(np.logical_or, ~missing)] = nan
            return total / seconds if how is How.RATE else total
        case How.LAST:
            return _last(view)
    count = view.reduced(np.add, view.column("count"))
    match how:
        case How.COUNT:
            found = count.copy()
        case How.SUM:
            found = view.reduced(np.add, view.column("sum"))
        case How.MEAN:
            found = view.reduced(np.add, view.column("sum")) / np.maximum(count, 1)
        case How.MIN:
            found = view.reduced(np.minimum, view.column("min"))
        case _:
            found = view.reduced(np.maximum, view.column("max"))
    found[count == 0] = nan
    return found


def _last(view: _View) -> NDArray[np.float64]:
    """The value of the newest window; of several series, the largest of those that are as new, as in a window."""
    last = view.column("last")
    known = ~np.isnan(last)
    of_groups = view.groups.reduce(np.maximum, np.where(known, last, -np.inf))
    newest = view.newest(view.groups.reduce(np.logical_or, known))
    return np.where(newest >= 0, np.take_along_axis(of_groups, np.maximum(newest, 0), axis=0), nan)


def _predicted(view: _View, ahead_s: float) -> NDArray[np.float64]:
    """`predict_linear` of Prometheus (promql/functions.go, `linearRegression`): least squares, at least two points.

    Values are counted from each window's least one, and times, in steps, from its middle: so that little is lost where
    both are far from 0.
    """
    last = view.column("last")
    known = ~np.isnan(last)
    low = view.reduced(np.minimum, np.where(known, last, np.inf))
    high = view.reduced(np.maximum, np.where(known, last, -np.inf))
    base = np.where(np.isfinite(low), low, 0)
    values, products = _moments(view, known, last, base)
    weight, row = known.astype(np.float64), (np.arange(len(known)) + view.lead)[:, None]
    points, rows, squares = (view.reduced(np.add, weight * row**power) for power in range(3))  # whole numbers: exact
    end = (view.width - 1) / 2
    middle = np.array(view.starts)[:, None] + end
    times, squares = rows - middle * points, squares - 2 * middle * rows + middle**2 * points
    with np.errstate(divide="ignore", invalid="ignore"):
        across = squares - times * times / points
        # All points at one time have no trend; what is left then is rounding.
        slope = np.where(across > 1e-12 * squares, products - times * values / points, nan) / across
        found = base + values / points + slope * (end + ahead_s * 1e6 / STEP_US - times / points)
    found = np.where(low == high, low, found)  # a constant predicts itself, without rounding
    return np.where((points >= 2) & np.isfinite(found), found, nan)


def _moments(
    view: _View, known: NDArray[np.bool_], last: NDArray[np.float64], base: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of the values less `base`, and of these times their steps from the window's middle: times by groups."""
    groups = view.groups
    if groups.members.size > len(groups):
        base = np.repeat(base, groups.sizes, axis=1)
    steps = np.arange(view.lead, view.width) - (view.width - 1) / 2
    values, products = np.zeros(base.shape), np.zeros(base.shape)
    if view.count <= view.width:
        for number, at in enumerate(view.starts):
            rows = slice(at, at + view.width)
            value = np.where(known[rows], last[rows] - base[number], 0)
            values[number] = _down(np.add, value)
            products[number] = _down(np.add, value * steps[: len(value), None])
    else:
        for at, step in enumerate(steps.tolist()):
            rows = slice(at, at + view.starts[-1] + 1, view.stride)
            value = np.where(known[rows], last[rows] - base, 0)
            values += value
            products += value * step
    return groups.reduce(np.add, values), groups.reduce(np.add, products)


# -- sketches ------------------------------------------------------------------------------------------


class _Merged(NamedTuple):
    """The merged sketches of groups at some times."""

    some: NDArray[np.int64]
    """The groups that have any bucket at any of the times."""
    code: NDArray[np.int64]
    """Of each bucket; ascending within a group, groups one after the other."""
    starts: NDArray[np.int64]
    """Where the buckets of each of `some` begin."""
    counts: NDArray[np.int64]
    """Times by buckets."""
    scale: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """Times by groups: the exact extremes."""

    def answer(self, how: Aggregate) -> NDArray[np.float64]:
        """Times by groups, NaN: no samples."""
        found = np.full(self.low.shape, nan)
        if self.some.size == 0:
            return found
        total = np.add.reduceat(self.counts, self.starts, axis=1)
        low, high = self.low[:, self.some], self.high[:, self.some]
        if how.how is How.QUANTILE:
            value = self._quantile(how.argument, total, low, high)
        else:
            value = self._share(how, total, low, high)
        found[:, self.some] = np.where(total > 0, value, nan)
        return found

    def _quantile(
        self, q: float, total: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if q in (0, 1):
            return low if q == 0 else high
        # The same rank as that of `sketch.quantiles`.
        product = q * total
        ranks = np.maximum(1, np.ceil(product - 1e-12 * np.maximum(product, 1))).astype(np.int64)
        cumulative = np.cumsum(self.counts)  # over all times, one after the other
        before = np.concatenate([[0], cumulative])[np.arange(len(total))[:, None] * self.code.size + self.starts]
        at = np.minimum(np.searchsorted(cumulative, before + ranks), cumulative.size - 1) % self.code.size
        return np.clip(values_of(self.code[at].ravel(), self.scale).reshape(at.shape), low, high)

    def _share(
        self, how: Aggregate, total: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        (limit,) = codes_of(np.array([how.argument]), self.scale).tolist()
        above = how.how is How.FRACTION_ABOVE
        counted = self.counts * (self.code > limit if above else self.code < limit)
        share = np.add.reduceat(counted, self.starts, axis=1) / np.maximum(total, 1)
        # The exact extremes say more than the bucket that the limit is in.
        if above:
            return np.where(low > how.argument, 1, np.where(high <= how.argument, 0, share))
        return np.where(high < how.argument, 1, np.where(low >= how.argument, 0, share))


def _merged(view: _View) -> _Merged | None:
    """The sketches of the windows by time and group; None: of several times, which do not fit together."""
    row, group, code, count, scale = _buckets(view)
    if view.count > 1 and scale < 0:
        return None
    low, high = view.reduced(np.minimum, view.column("min")), view.reduced(np.maximum, view.column("max"))
    none = np.empty(0, np.int64)
    if group.size == 0:
        return _Merged(none, none, none, none[None], 0, low, high)
    least = int(code.min())
    width = int(code.max()) - least + 1
    keys, place = _distinct(group * width + (code - least), len(view.groups) * width)
    if view.count * keys.size > _DENSE_MAX and view.count > 1:
        return None
    group = keys // width
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    counts = _by_time(view, row, place, count, keys.size)
    return _Merged(group[starts], keys % width + least, starts, counts, scale, low, high)


def _by_time(
    view: _View, row: NDArray[np.int64], place: NDArray[np.int64], count: NDArray[np.int64], size: int
) -> NDArray[np.int64]:
    """Times by buckets: each row is counted from the first time on whose window it is in, until it is in none."""
    if view.count == 1:
        return np.bincount(place, count, size).astype(np.int64)[None]  # exact up to 2^53
    first = np.maximum(0, -((view.width - 1 - row) // view.stride))
    end = np.minimum(row // view.stride + 1, view.count)
    cells = view.count * size
    change = np.zeros(cells)
    used = first < end
    change += np.bincount(first[used] * size + place[used], count[used], cells)
    ends = used & (end < view.count)
    change -= np.bincount(end[ends] * size + place[ends], count[ends], cells)
    return np.cumsum(change.reshape(view.count, size), axis=0).astype(np.int64)


def _buckets(
    view: _View,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Row in the view, group, code and count of each bucket, at the coarsest of their scales; -1 for that, and nothing
    else, where there are several and several times."""
    groups, rows, (first, stop) = view.groups, view.rows, view.span
    of_members = np.repeat(np.arange(len(groups)), groups.sizes)
    parts = []
    for row in range(max(first, 0), min(stop, rows.windows)):
        found = rows.sketches(rows.first_end_us + row * STEP_US)
        if found is None:
            continue
        place = found.rows_of(groups.members)
        members = np.flatnonzero(place >= 0)
        if members.size:
            part = found.take(place[members])
            parts.append((row - first, of_members[members], part, np.diff(part.offsets)))
    none = np.empty(0, np.int64)
    if not parts:
        return none, none, none, none, 0
    scale = min(int(part.scale.min()) for _, _, part, _ in parts)
    mixed = any(int(part.scale.max()) > scale for _, _, part, _ in parts)
    if mixed and view.count > 1:
        return none, none, none, none, -1
    code = np.concatenate([part.bucket for _, _, part, _ in parts]).astype(np.int64)
    if mixed:
        by = np.concatenate([np.repeat(part.scale - scale, sizes) for _, _, part, sizes in parts])
        code = np.sign(code) * (np.abs(code) >> by)
    return (
        np.repeat([row for row, *_ in parts], [part.bucket.size for _, _, part, _ in parts]),
        np.concatenate([np.repeat(of_rows, sizes) for _, of_rows, _, sizes in parts]),
        code,
        np.concatenate([part.bucket_count for _, _, part, _ in parts]),
        scale,
    )


def _distinct(keys: NDArray[np.int64], cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending distinct keys, of 0 to `cells`, and for each of `keys` its place among them."""
    if cells > _DENSE_MAX:
        found, place = np.unique(keys, return_inverse=True)
        return found, place
    there = np.zeros(cells, np.bool_)
    there[keys] = True
    return np.flatnonzero(there), (np.cumsum(there) - 1)[keys]


def _number_rows(columns: Sequence[NDArray[np.int32]], size: int) -> NDArray[np.int64]:
    """Numbers the distinct rows of parallel columns of codes from 0; returns each row's number."""
    number = np.zeros(size, np.int64)
    for column in columns:
        # Never beyond 2^63: there are at most `size` numbers so far.
        keys = number * (int(column.max()) + 1) + column if size else number
        number = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return number
