"""The past of objectives, read from ClickHouse: the same as adding up the rows in Python."""

# ruff: noqa: E501 - tables

import random
from typing import Any

import pytest
from pydantic import ValidationError
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.slo import Slo
from tailrace_schemas.config.matcher import matchers_of
from tailrace_schemas.config.slo import SloSpec
from tailrace_sinks.slo_history import slo_history

from tests.sinks.storage import START_S, Row, Storage, distribution, row

DAY_S = 86_400
UNTIL_S = START_S + 40 * DAY_S + 1790  # the middle of an hour and of a minute
STRETCHES = (
    ("rows_1h", 3600, START_S + 9 * DAY_S, UNTIL_S - 3 * DAY_S),
    ("rows_1m", 60, UNTIL_S // 3600 * 3600 - 3 * DAY_S - 7200, UNTIL_S - 6 * 3600),
    ("rows_10s", 10, UNTIL_S // 60 * 60 - 6 * 3600 - 120, UNTIL_S + 60),
)


def spec(indicator: dict[str, Any], period: str = "30d") -> SloSpec:
    fields = {"name": "it", "service": "shop", "objective": 0.99, "period": period, "indicator": indicator}
    return SloSpec.model_validate(fields, strict=False)


def expected(rows: dict[str, list[tuple[Row, float, float]]], period_s: int) -> list[tuple[int, int, float, float]]:
    """Start, seconds, good and total by window, each stretch of time at one resolution."""
    tens_s = (UNTIL_S - 6 * 3600 - 60) // 60 * 60
    minutes_s = (UNTIL_S - 3 * DAY_S - 3600) // 3600 * 3600
    bounds = {
        "rows_1h": ((UNTIL_S - period_s - 3600) // 3600 * 3600, minutes_s, 3600),
        "rows_1m": (minutes_s, tens_s, 60),
        "rows_10s": (tens_s, UNTIL_S, 10),
    }
    found: dict[tuple[int, int], list[float]] = {}
    for table, (low, high, seconds) in bounds.items():
        for one, bad, total in rows[table]:
            start_s = int(one["window_start"].timestamp())
            if low <= start_s < high:
                sums = found.setdefault((start_s, seconds), [0.0, 0.0])
                sums[0] += bad
                sums[1] += total
    return [
        (start * 1_000_000, seconds, total - bad, total)
        for (start, seconds), (bad, total) in sorted(found.items())
        if total
    ]


def test_counters(storage: Storage) -> None:
    """Of other services, streams, kinds and codes besides, which must not be counted."""
    rng = random.Random(1)
    rows: dict[str, list[tuple[Row, float, float]]] = {}
    for table, seconds, first, last in STRETCHES:
        mine = rows[table] = []
        for start in range(first // seconds * seconds, last, seconds * (1 if seconds > 60 else 7)):
            for code in ("200", "503"):
                n = float(rng.randint(0, 9))
                attributes = {"code": code}
                one = row("counter", start, metric="requests", attributes=attributes, count=3, sum=n, increase=n)
                mine.append((one, n if code == "503" else 0.0, n))
        start = last - 7 * seconds
        others = [
            row("counter", start, metric="requests", service="stock", count=3, sum=5.0, increase=5.0),
            row("counter", start, metric="requests", stream="replay", count=3, sum=5.0, increase=5.0),
            row("counter", start, metric="other", count=3, sum=5.0, increase=5.0),
            row(
                "gauge",
                start,
                metric="requests",
                attributes={"code": "503"},
                count=9,
                sum=5.0,
                min=1.0,
                max=1.0,
                last=1.0,
            ),
            row("cumulative", start, metric="requests", attributes={"code": "503"}, last=1.0),  # its first point
        ]
        storage.write(table, [one for one, _, _ in mine] + others)
    good = {"good": {"metric": "requests", "where": {"code": "!~5.."}}, "total": {"metric": "requests"}}
    bad = {"bad": {"metric": "requests", "where": {"code": "=~5..|nonsense"}}, "total": {"metric": "requests"}}
    for indicator in (good, bad):
        for period in (7, 30):
            found = slo_history(storage.client, spec(indicator, f"{period}d"), UNTIL_S * 1_000_000)
            assert found == expected(rows, period * DAY_S)

    slo = Slo(spec(good))
    slo.prime(UNTIL_S * 1_000_000, [Stored(*one) for one in found])
    _, status = slo.evaluate(UNTIL_S * 1_000_000)
    inside = [one for one in found if one[0] >= (UNTIL_S - 30 * DAY_S) * 1_000_000]
    assert status.total == pytest.approx(sum(one[3] for one in inside), rel=0.002)
    assert status.error_ratio == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("limit", [0.25, 0.3])
def test_latencies(storage: Storage, limit: float) -> None:
    rng = random.Random(2)
    rows: dict[str, list[tuple[Row, float, float]]] = {}
    slow_at_least = slow_at_most = 0
    for table, seconds, first, last in STRETCHES:
        mine = rows[table] = []
        for start in range(first // seconds * seconds, last, seconds * 60):
            samples = [rng.lognormvariate(-1.2, 0.4) for _ in range(rng.randint(1, 30))]
            one = distribution(samples, start, metric="duration", attributes={"route": "/"})
            mine.append((one, sum(value > limit for value in samples), len(samples)))
            slow_at_least += sum(value > limit * 1.011 for value in samples)
            slow_at_most += sum(value > limit for value in samples)
        storage.write(table, [one for one, _, _ in mine] + [distribution([9.0], last - seconds, metric="other")])
    indicator = {"latency": {"metric": "duration", "below": limit, "where": {"route": "/"}}}
    found = slo_history(storage.client, spec(indicator), UNTIL_S * 1_000_000)
    exact = expected(rows, 30 * DAY_S)
    assert [(start, seconds, total) for start, seconds, _, total in found] == [
        (start, seconds, total) for start, seconds, _, total in exact
    ]
    if limit == 0.25:
        assert found == exact, "a power of two is an edge"
    assert all(mine[2] >= theirs[2] for mine, theirs in zip(found, exact, strict=True))


VALUES = ("", "503", "a", "A", "é", "É", "a\nb", "a\n", "\n", "a\0b", "a.b", "(a)", "\\", "ab" * 100, "٣", "日本")
EXPRESSIONS = (
    "", "5..", "a|b", "a|", ".*", "a.b", r"a\.b", "^a$", "a$", "(?i)a", "(?i)é", ".", "..", "[^a]*", r"\d+", r"\w*", r"\(a\)", r"\\",
    "(?s:.)*", "(?-s:.)*", "(?m)a$.*", "(?:ab){100}", r"\pL+", "(?P<x>a)", r"\x{65e5}.", r"\Qa.b\E", "(ab)+|(a", "a{1001}", "(?=a).*",
)  # fmt: skip


@pytest.mark.parametrize("operator", ["=~", "!~"])
def test_an_expression_means_the_same_of_the_past_as_of_the_present(storage: Storage, operator: str) -> None:
    """Or it is refused by both, or by us."""
    start = UNTIL_S // 10 * 10 - 100
    rows = [row("counter", start, metric="m", attributes={"label": value}, sum=1.0, increase=1.0) for value in VALUES]
    storage.write("rows_10s", rows)
    taken = 0
    for expression in EXPRESSIONS:
        where = {"label": operator + expression}
        try:
            one = spec({"bad": {"metric": "m", "where": where}, "total": {"metric": "m"}})
        except ValidationError:
            continue
        taken += 1
        ((*_, good, total),) = slo_history(storage.client, one, UNTIL_S * 1_000_000)
        (matcher,) = matchers_of(where)
        matching = [value for value in VALUES if matcher.matches(value)]
        assert (total - good, total) == (len(matching), len(VALUES)), f"{where} of {matching}"
    assert taken == len(EXPRESSIONS) - 3


def test_health_checks_and_nothing(storage: Storage) -> None:
    indicator = {"health": "web"}
    assert slo_history(storage.client, spec(indicator), UNTIL_S * 1_000_000) == []
    start = UNTIL_S // 10 * 10 - 100
    rows = [
        row(
            "counter", start, metric="health.check.runs", service="health", sum=n, increase=n,
            attributes={"health.check.name": name, "health.check.status": status},
        )
        for name, status, n in (("web", "healthy", 5.0), ("web", "unhealthy", 2.0), ("web", "degraded", 1.0), ("db", "unhealthy", 7.0))
    ]  # fmt: skip
    storage.write("rows_10s", rows)
    assert slo_history(storage.client, spec(indicator), UNTIL_S * 1_000_000) == [(start * 1_000_000, 10, 6.0, 8.0)]
