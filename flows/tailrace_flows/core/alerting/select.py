"""Aggregates of a metric over time and over series, for each group of label values.

Which series match and which group they fall into is worked out once for the series that there are, so that an
evaluation is a few numpy calls, whatever the number of series.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.alerts import Labels
from tailrace_schemas.config.aggregate import Aggregate, How
from tailrace_schemas.config.matcher import Matcher
from tailrace_schemas.samples import KINDS

from tailrace_flows.core.alerting.store import STEP_US, LabelValues, MetricRows, WindowStore
from tailrace_flows.core.sketch import codes_of, values_of

__all__ = ["Groups", "LabelSets", "Selector", "joined"]

_DELTA: Final = [KINDS.index(kind) for kind in ("distribution", "counter", "event")]
_DENSE_MAX: Final = 1 << 22
"""Cells up to which buckets are counted in an array of groups by codes; beyond it they are sorted."""


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

    def any(self, of_members: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each group, whether it has a member of which it is true."""
        return np.logical_or.reduceat(of_members, self.starts) if len(self) else np.empty(0, np.bool_)

    def reduce(self, how: np.ufunc, of_members: NDArray[np.float64]) -> NDArray[np.float64]:
        """For each group, of its members."""
        found: NDArray[np.float64] = how.reduceat(of_members, self.starts) if len(self) else np.empty(0)
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
        self._merged: tuple[tuple[object, ...], _Buckets | None] = ((), None)
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

    def present(self, store: WindowStore, after_us: int, until_us: int) -> NDArray[np.bool_]:
        """For each member of the groups, whether it has a row in (after, until]."""
        rows = store.metric(self.metric)
        groups = self.groups(store)
        if rows is None or len(groups) == 0:
            return np.empty(0, np.bool_)
        count = rows.column("count")
        assert count is not None
        found: NDArray[np.bool_] = np.logical_or.reduce(
            count[rows.span(after_us, until_us)][:, groups.members] > 0, axis=0
        )
        return found

    def aggregate(self, store: WindowStore, how: Aggregate, after_us: int, until_us: int) -> NDArray[np.float64]:
        """The value of each group over windows whose end is in (after, until]; NaN where there are no data.

        Costs some 10 ns a row and column; for sketches 10 ns a bucket.
        """
        rows = store.metric(self.metric)
        groups = self.groups(store)
        if rows is None or len(groups) == 0:
            return np.empty(0)
        if how.how in (How.QUANTILE, How.FRACTION_ABOVE, How.FRACTION_BELOW):
            return self._of_sketches(groups, rows, how, after_us, until_us)
        span = rows.span(after_us, until_us)
        if span.start == span.stop:
            return np.full(len(groups), np.nan)
        columns = _Columns(rows, span, groups)
        if how.how is How.PREDICT_LINEAR:
            end_us = rows.first_end_us + np.arange(span.start, span.stop) * STEP_US
            return _predicted(groups, (end_us - until_us) / 1e6, columns("last"), how.argument)
        return _simple(groups, how.how, columns, (until_us - after_us) / 1e6)

    def _of_sketches(
        self, groups: Groups, rows: MetricRows, how: Aggregate, after_us: int, until_us: int
    ) -> NDArray[np.float64]:
        key = (after_us, until_us, rows.changes, groups)
        if self._merged[0] != key:
            self._merged = (key, _merged(groups, rows, after_us, until_us))
        found = np.full(len(groups), np.nan)
        buckets = self._merged[1]
        if buckets is not None:
            found[buckets.some] = buckets.answer(how)
        return found


class _Columns:
    """Columns of the rows of a span, for the members of groups."""

    def __init__(self, rows: MetricRows, span: slice, groups: Groups) -> None:
        self._rows, self._span, self._groups = rows, span, groups

    def __call__(self, name: str) -> NDArray[np.float64]:
        column = self._rows.column(name)
        if column is None:
            return np.full((self._span.stop - self._span.start, self._groups.members.size), np.nan)
        return column[self._span][:, self._groups.members]

    def reduced(self, name: str, how: np.ufunc) -> NDArray[np.float64]:
        """For each group, over time and members; columns without NaN alone."""
        found: NDArray[np.float64] = self._groups.reduce(how, how.reduce(self(name), axis=0))
        return found


def _simple(groups: Groups, how: How, columns: _Columns, seconds: float) -> NDArray[np.float64]:
    match how:
        case How.INCREASE | How.RATE:
            increase = columns("increase")
            known = groups.any(np.logical_or.reduce(~np.isnan(increase), axis=0))
            total = groups.reduce(np.add, np.nansum(increase, axis=0))
            return np.where(known, total / seconds if how is How.RATE else total, np.nan)
        case How.LAST:
            return _last(groups, columns("last"))
    count = columns.reduced("count", np.add)
    with np.errstate(divide="ignore", invalid="ignore"):
        match how:
            case How.COUNT:
                found = count
            case How.SUM:
                found = columns.reduced("sum", np.add)
            case How.MEAN:
                found = columns.reduced("sum", np.add) / count
            case How.MIN:
                found = columns.reduced("min", np.minimum)
            case _:
                found = columns.reduced("max", np.maximum)
    return np.where(count > 0, found, np.nan)


def _last(groups: Groups, last: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value of the newest window; of several series, the largest of those that are as new, as in a window."""
    known = ~np.isnan(last)
    windows = last.shape[0]
    newest = np.where(known.any(axis=0), windows - 1 - known[::-1].argmax(axis=0), -1)
    value = last[newest, np.arange(newest.size)]
    of_group = groups.reduce(np.maximum, newest.astype(np.float64))
    is_newest = (newest == np.repeat(of_group, groups.sizes)) & (newest >= 0)
    found = groups.reduce(np.maximum, np.where(is_newest, value, -np.inf))
    return np.where(of_group >= 0, found, np.nan)


def _predicted(
    groups: Groups, seconds: NDArray[np.float64], last: NDArray[np.float64], ahead_s: float
) -> NDArray[np.float64]:
    """`predict_linear` of Prometheus (promql/functions.go, `linearRegression`): least squares, at least two points.

    `seconds` are those of the rows, from the time of evaluation.
    """
    known = ~np.isnan(last)
    points = groups.reduce(np.add, known.sum(axis=0).astype(np.float64))

    def total(of_points: NDArray[np.float64]) -> NDArray[np.float64]:
        return groups.reduce(np.add, np.where(known, of_points, 0).sum(axis=0))

    times = np.broadcast_to(seconds[:, None], last.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_time, mean = total(times) / points, total(last) / points
        off_time = times - np.repeat(mean_time, groups.sizes)
        off = last - np.repeat(mean, groups.sizes)
        slope = total(off_time * off) / total(off_time * off_time)
        found = mean + slope * (ahead_s - mean_time)
    low = groups.reduce(np.minimum, np.where(known, last, np.inf).min(axis=0))
    high = groups.reduce(np.maximum, np.where(known, last, -np.inf).max(axis=0))
    found = np.where(low == high, low, found)  # a constant predicts itself, without rounding
    return np.where((points >= 2) & np.isfinite(found), found, np.nan)


# -- sketches ------------------------------------------------------------------------------------------


class _Buckets(NamedTuple):
    """The merged sketches of the groups that have any."""

    some: NDArray[np.int64]
    """Those groups."""
    code: NDArray[np.int64]
    """Of each bucket; ascending within a group, groups one after the other."""
    counts: NDArray[np.int64]
    cumulative: NDArray[np.int64]
    bounds: NDArray[np.int64]
    """Where the buckets of each of `some` begin, and the end."""
    scale: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    """The exact extremes of each of `some`."""

    def answer(self, how: Aggregate) -> NDArray[np.float64]:
        """For each of `some`."""
        sums = np.concatenate([[0], self.cumulative])[self.bounds]
        before, total = sums[:-1], np.diff(sums)
        low, high = self.low, self.high
        if how.how is How.QUANTILE:
            if how.argument in (0, 1):
                return low if how.argument == 0 else high
            # The same rank as that of `sketch.quantiles`.
            product = how.argument * total
            ranks = np.maximum(1, np.ceil(product - 1e-12 * np.maximum(product, 1)))
            at = np.searchsorted(self.cumulative, before + ranks)
            return np.clip(values_of(self.code[at], self.scale), low, high)
        (limit,) = codes_of(np.array([how.argument]), self.scale).tolist()
        above = how.how is How.FRACTION_ABOVE
        counted = self.counts * (self.code > limit if above else self.code < limit)
        share = np.add.reduceat(counted, self.bounds[:-1]) / total
        # The exact extremes say more than the bucket that the limit is in.
        if above:
            return np.where(low > how.argument, 1, np.where(high <= how.argument, 0, share))
        return np.where(high < how.argument, 1, np.where(low >= how.argument, 0, share))


def _merged(groups: Groups, rows: MetricRows, after_us: int, until_us: int) -> _Buckets | None:
    """The sketches of these windows by group; None: there are none."""
    group, code, count, scale = _buckets(groups, rows, after_us, until_us)
    if group.size == 0:
        return None
    least = int(code.min())
    width = int(code.max()) - least + 1
    keys, counts = _counted(group * width + (code - least), count, len(groups) * width)
    group = keys // width
    first = np.flatnonzero(np.diff(group, prepend=-1))
    some = group[first]
    columns = _Columns(rows, rows.span(after_us, until_us), groups)
    return _Buckets(
        some,
        keys % width + least,
        counts,
        np.cumsum(counts),
        np.append(first, group.size),
        scale,
        columns.reduced("min", np.minimum)[some],
        columns.reduced("max", np.maximum)[some],
    )


def _buckets(
    groups: Groups, rows: MetricRows, after_us: int, until_us: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """Group, code and count of each bucket of these windows, at the coarsest of their scales."""
    group_of = np.full(len(rows.series), -1)
    group_of[groups.members] = np.repeat(np.arange(len(groups)), groups.sizes)
    span = rows.span(after_us, until_us)
    parts = []
    for row in range(span.start, span.stop):
        part = rows.sketches(rows.first_end_us + row * STEP_US)
        if part is None:
            continue
        of_rows = group_of[part.slot]
        if (of_rows < 0).any():
            part = part.take(np.flatnonzero(of_rows >= 0))
            of_rows = group_of[part.slot]
        sizes = np.diff(part.offsets)
        if part.bucket.size:
            parts.append((np.repeat(of_rows, sizes), part.bucket, part.bucket_count, part.scale, sizes))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), 0
    scale = min(int(scales.min()) for *_, scales, _ in parts)
    codes = []
    for _, bucket, _, scales, sizes in parts:
        code = bucket.astype(np.int64)
        if int(scales.max()) > scale:
            by = np.repeat(scales - scale, sizes)
            code = np.sign(code) * (np.abs(code) >> by)
        codes.append(code)
    return (
        np.concatenate([one[0] for one in parts]),
        np.concatenate(codes),
        np.concatenate([one[2] for one in parts]),
        scale,
    )


def _counted(
    keys: NDArray[np.int64], counts: NDArray[np.int64], cells: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ascending distinct keys, of 0 to `cells`, with their counts added up."""
    if cells <= _DENSE_MAX:
        summed = np.bincount(keys, weights=counts, minlength=cells)  # exact up to 2^53
        found = np.flatnonzero(summed)
        return found, summed[found].astype(np.int64)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.flatnonzero(np.diff(ordered, prepend=-1))
    return ordered[first], np.add.reduceat(counts[order], first)


def _number_rows(columns: Sequence[NDArray[np.int32]], size: int) -> NDArray[np.int64]:
    """Numbers the distinct rows of parallel columns of codes from 0; returns each row's number."""
    number = np.zeros(size, np.int64)
    for column in columns:
        # Never beyond 2^63: there are at most `size` numbers so far.
        keys = number * (int(column.max()) + 1) + column if size else number
        number = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    return number
