"""Window rows for tests, and a second implementation of rules: plain Python, row by row, all rows at hand."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil, isnan, nan
from typing import Any, NamedTuple

import pyarrow as pa
from tailrace_flows.core.alerting.evaluator import Moment
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_flows.core.series import series_id
from tailrace_schemas.alerts import Labels
from tailrace_schemas.config import load
from tailrace_schemas.config.rules import Query, Rule, RuleGroup
from tailrace_schemas.rows import WINDOW_ROWS
from tailrace_schemas.samples import Series

from tests.flows.oracle import exact_code

__all__ = ["Row", "S", "batch_of", "group_of", "latest", "moment", "series_labels", "slow_values"]

S = 1_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Row(NamedTuple):
    """A row of a 10 s window. `values` are its samples; of a cumulative, the increase (None: unknown) and the last."""

    service: str
    series: Series
    end_s: int
    values: tuple[float | None, ...]
    version: int = 0
    """0: the number of samples."""
    scale: int = 6

    def columns(self) -> dict[str, Any]:
        kind, values = self.series.kind, [v for v in self.values if v is not None]
        row: dict[str, Any] = dict.fromkeys(("sum", "min", "max", "last", "increase", "resets", "scale"))
        row |= {
            "metric": self.series.metric,
            "service": self.service,
            "series_id": series_id(self.service, self.series),
            "attributes": list(self.series.attributes),
            "kind": kind,
            "unit": self.series.unit,
            "stream": "",
            "window_start": EPOCH + timedelta(seconds=self.end_s - 10),
            "count": max(len(values), 1),
            "bucket_index": [],
            "bucket_count": [],
            "version": self.version or max(len(values), 1),
        }
        if kind == "cumulative":
            return row | {"count": 1, "increase": self.values[0], "last": self.values[1], "resets": 0}
        row["sum"] = sum(values)
        if kind in ("counter", "event"):
            return row | {"increase": row["sum"] if kind == "counter" else float(len(values))}
        row |= {"min": min(values), "max": max(values)}
        if kind == "gauge":
            return row | {"last": values[-1]}
        buckets = sorted(self.buckets().items())
        return row | {
            "scale": self.scale,
            "bucket_index": [code for code, _ in buckets],
            "bucket_count": [count for _, count in buckets],
        }

    def buckets(self) -> dict[int, int]:
        """The sketch's codes and counts."""
        found: dict[int, int] = defaultdict(int)
        for value in self.values:
            assert value is not None
            found[exact_code(value, self.scale)] += 1
        return dict(found)


def batch_of(rows: Iterable[Row]) -> Any:
    """A record batch."""
    return pa.RecordBatch.from_pylist([row.columns() for row in rows], WINDOW_ROWS)


def moment(
    store: WindowStore,
    end_s: int,
    changed: Iterable[tuple[str, int]] = (),
    tally: Callable[..., None] = lambda _name, _value=1: None,
) -> Moment:
    """A time at which a unit is judged alone."""
    return Moment(store, end_s * S, end_s * S, sorted(changed), tally)


def group_of(text: str) -> RuleGroup:
    """The one rule group of a YAML text."""
    (item,) = load([("rules.yaml", text)]).items
    assert isinstance(item.model, RuleGroup)
    return item.model


# -- the second implementation -------------------------------------------------------------------------


def latest(rows: Iterable[Row]) -> list[Row]:
    """The highest version of each (series, window)."""
    found: dict[tuple[str, Series, int], Row] = {}
    for row in rows:
        key = (row.service, row.series, row.end_s)
        if key not in found or row.columns()["version"] > found[key].columns()["version"]:
            found[key] = row
    return list(found.values())


def series_labels(row: Row) -> dict[str, str]:
    return {**dict(row.series.attributes), "service": row.service}


def matches(text: str, value: str) -> bool:

    for operator in ("!=", "=~", "!~"):
        if text.startswith(operator):
            expected = text[2:]
            if operator == "!=":
                return value != expected
            return bool(re.fullmatch(expected, value)) == (operator == "=~")
    return value == text


KINDS = {
    "sum": {"distribution", "counter", "gauge", "event"},
    "min": {"distribution", "gauge"},
    "max": {"distribution", "gauge"},
    "mean": {"distribution", "gauge"},
    "last": {"gauge", "cumulative"},
    "increase": {"counter", "cumulative", "event"},
    "rate": {"counter", "cumulative", "event"},
    "predict_linear": {"gauge", "cumulative"},
}
DELTA = {"distribution", "counter", "event"}


def kinds_for(aggregate: str, kind: str | None) -> set[str]:
    name = aggregate.split("(")[0]
    every = {"distribution", "counter", "cumulative", "gauge", "event"}
    found = {"distribution"} if (name[0] == "p" and name[1:2].isdigit()) or name.startswith("fraction") else every
    found = KINDS.get(name, found)
    return found & {kind} if kind else found


def slow_values(rule: Rule, interval_s: int, rows: Sequence[Row], t_s: int) -> dict[Labels, dict[str, float]]:
    """For each label set that some query knows: the value of each query, NaN without data."""
    fixed = {label for label, text in rule.where.items() if text and text[:2] not in ("!=", "=~", "!~")}
    by = sorted({*rule.by, *fixed})
    found: dict[Labels, dict[str, float]] = defaultdict(dict)
    known: dict[str, set[Labels]] = {}
    queries = rule.all_queries()
    for name, query in queries.items():
        window_s = int(query.window_s or rule.window_s)
        wanted = {**rule.where, **query.where}
        selected: dict[Labels, list[Row]] = defaultdict(list)
        for row in rows:
            labels = series_labels(row)
            if (
                row.series.metric == query.metric
                and row.series.kind in kinds_for(str(query.aggregate), query.kind)
                and t_s - window_s - 300 - interval_s < row.end_s <= t_s
                and all(matches(text, labels.get(label, "")) for label, text in wanted.items())
            ):
                key = tuple((label, labels[label]) for label in by if labels.get(label))
                selected[key].append(row)
        known[name] = set(selected)
        for key, group in selected.items():
            inside = [row for row in group if row.end_s > t_s - window_s]
            value = slow_aggregate(query, inside, t_s, window_s)
            additive = query.aggregate.how.value in ("count", "sum", "increase", "rate")
            if isnan(value) and additive and any(row.series.kind in DELTA for row in group):
                value = 0
            found[key][name] = value
    for values in found.values():
        measured = any(not isnan(value) for value in values.values())
        for name, query in queries.items():
            if name not in values:
                additive = query.aggregate.how.value in ("count", "sum", "increase", "rate")
                values[name] = 0 if measured and additive else nan
    return dict(found)


def slow_aggregate(query: Query, inside: list[Row], t_s: int, window_s: int) -> float:
    columns = [row.columns() for row in inside]
    name = query.aggregate.how.value
    argument = query.aggregate.argument
    if not inside:
        return nan
    if name in ("increase", "rate"):
        known = [one["increase"] for one in columns if one["increase"] is not None]
        return sum(known) / (window_s if name == "rate" else 1) if known else nan
    if name == "count":
        return sum(one["count"] for one in columns)
    if name == "sum":
        return sum(one["sum"] for one in columns)
    if name == "mean":
        return sum(one["sum"] for one in columns) / sum(one["count"] for one in columns)
    if name == "min":
        return min(one["min"] for one in columns)
    if name == "max":
        return max(one["max"] for one in columns)
    if name == "last":
        return max((row.end_s, one["last"]) for row, one in zip(inside, columns, strict=True))[1]
    if name == "predict_linear":
        return slow_prediction(
            [(row.end_s - t_s, one["last"]) for row, one in zip(inside, columns, strict=True)], argument
        )
    return slow_sketch(name, argument, inside, min(one["min"] for one in columns), max(one["max"] for one in columns))


def slow_prediction(points: list[tuple[int, float]], ahead_s: float) -> float:
    if len(points) < 2:
        return nan
    if len({value for _, value in points}) == 1:
        return points[0][1]
    n = len(points)
    xs, ys = [Fraction(x) for x, _ in points], [Fraction(y) for _, y in points]
    across = sum(x * x for x in xs) - sum(xs) ** 2 / n
    if across == 0:
        return nan
    slope = (sum(x * y for x, y in zip(xs, ys, strict=True)) - sum(xs) * sum(ys) / n) / across
    return float(sum(ys) / n - slope * sum(xs) / n + slope * Fraction(ahead_s))


def slow_sketch(name: str, argument: float, inside: list[Row], low: float, high: float) -> float:
    scale = min(row.scale for row in inside)
    buckets: dict[int, int] = defaultdict(int)
    for row in inside:
        for code, count in row.buckets().items():
            shifted = abs(code) >> (row.scale - scale)
            buckets[shifted if code > 0 else -shifted] += count
    total = sum(buckets.values())
    if name == "quantile":
        if argument in (0, 1):
            return low if argument == 0 else high
        rank, passed = max(1, ceil(Fraction(str(argument)) * total)), 0
        for code in sorted(buckets):
            passed += buckets[code]
            if passed >= rank:
                base = 2.0 ** (2.0**-scale)
                value = base ** (abs(code) - (1024 << scale)) * 2 * base / (1 + base) if code else 0.0
                return min(max(value if code >= 0 else -value, low), high)
    limit = exact_code(argument, scale)
    if name == "fraction_above":
        if low > argument or high <= argument:
            return float(low > argument)
        return sum(count for code, count in buckets.items() if code > limit) / total
    if high < argument or low >= argument:
        return float(high < argument)
    return sum(count for code, count in buckets.items() if code < limit) / total
