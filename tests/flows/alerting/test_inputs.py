"""What objectives and health checks count in rows, against counting the rows one by one."""

# ruff: noqa: E501 - tables

import itertools
import pickle
import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.health import CheckResult, Health
from tailrace_flows.core.alerting.inputs import REVISED_US, HealthInput, SloInput
from tailrace_flows.core.alerting.slo import Slo
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_schemas.config.health import HealthCheck
from tailrace_schemas.config.slo import SloSpec
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of, latest, matches, series_labels

T0_S = 1_700_000_000


def spec(indicator: dict[str, Any], service: str = "shop") -> SloSpec:
    fields = {"name": "it", "service": service, "objective": 0.9, "period": "7d", "indicator": indicator, "alerts": []}
    return SloSpec.model_validate(fields, strict=False)


class Counting:
    """An objective fed with batches of rows."""

    def __init__(self, one: SloSpec) -> None:
        self.slo = Slo(one)
        self.input = SloInput(one)
        self.store = WindowStore(self.input.keep)

    def add(self, rows: Sequence[Row]) -> None:
        for service in {row.service for row in rows}:
            changed = self.store.add("", batch_of([row for row in rows if row.service == service]))
            self.input.take(self.store, changed, self.slo)

    def restarted(self) -> "Counting":
        """The same from its snapshots."""
        state = pickle.loads(pickle.dumps((self.slo.snapshot(), self.store.snapshot())))
        other = Counting(self.slo.spec)
        other.slo = Slo(self.slo.spec, state=state[0])
        other.store = WindowStore(other.input.keep, state[1])
        return other

    def evaluate(self, t_s: int) -> tuple[float, float]:
        _, status = self.slo.evaluate(t_s * S)
        self.store.forget(t_s * S)
        return status.bad, status.total


def counter(name: str, amount: float, end_s: int, *, kind: str = "counter", version: int = 0, **labels: str) -> Row:
    service = labels.pop("service", "shop")
    series = Series(name, kind, "", tuple(sorted(labels.items())))
    values = (amount, 5.0) if kind == "cumulative" else (1.0,) * int(amount) if kind == "event" else (amount,)
    return Row(service, series, end_s, values, version)


INDICATORS: dict[str, dict[str, Any]] = {
    "good": {"good": {"metric": "requests", "where": {"code": "!~5.."}}, "total": {"metric": "requests"}},
    "bad": {"bad": {"metric": "errors"}, "total": {"metric": "requests", "where": {"code": "=~[2-5].."}}},
    "other service": {"bad": {"metric": "errors", "where": {"service": "=~.*"}}, "total": {"metric": "requests", "where": {"service": "=~.*"}}},
}  # fmt: skip


def plain(rows: Sequence[Row], indicator: dict[str, Any], part: str, end_s: int) -> float | None:
    where = indicator[part].get("where", {})
    conditions = {"service": "shop"} | where
    found = [
        row
        for row in latest(rows)
        if row.series.metric == indicator[part]["metric"]
        and row.end_s == end_s
        and all(matches(text, series_labels(row).get(label, "")) for label, text in conditions.items())
    ]
    amounts = [
        float(len(row.values)) if row.series.kind in ("distribution", "event")
        else row.values[0] if row.series.kind == "cumulative"
        else sum(value or 0 for value in row.values)
        for row in found
    ]  # fmt: skip
    return sum(one or 0 for one in amounts) if amounts else None


@pytest.mark.parametrize("name", INDICATORS)
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_the_rows_whatever_the_batches(name: str, seed: int) -> None:
    rng = random.Random(seed)
    indicator = INDICATORS[name]
    rows: list[Row] = []
    for end_s in range(T0_S, T0_S + 200, 10):
        for service in ("shop", "stock"):
            for metric, kind in (("requests", "counter"), ("requests", "cumulative"), ("errors", "event"), ("requests", "distribution")):  # fmt: skip
                for code in ("200", "404", "503"):
                    if rng.random() < 0.6:
                        amount = rng.randint(0, 4) if kind == "cumulative" else rng.randint(1, 4)
                        row = counter(
                            metric, amount, end_s, kind=kind, service=service, code=code, version=rng.randint(1, 9)
                        )
                        rows.append(row._replace(values=(0.1,) * amount) if kind == "distribution" else row)
                        if rng.random() < 0.3:  # a revision, or an older row
                            rows.append(rows[-1]._replace(values=rows[-1].values[:1] * 2 if kind != "cumulative" else (7.0, 5.0), version=rng.randint(10, 19)))  # fmt: skip
    rng.shuffle(rows)
    counting = Counting(spec(indicator))
    at = 0
    while at < len(rows):
        size = rng.randint(1, 40)
        counting.add(rows[at : at + size])
        at += size
    bad = total = 0.0
    for end_s in range(T0_S, T0_S + 200, 10):
        all_of_them = plain(rows, indicator, "total", end_s)
        if all_of_them is None:
            continue
        part = plain(rows, indicator, "bad" if "bad" in indicator else "good", end_s) or 0
        wrong = part if "bad" in indicator else all_of_them - part
        bad, total = bad + min(wrong, all_of_them), total + all_of_them
    assert counting.evaluate(T0_S + 200) == pytest.approx((bad, total))


def sample(values: Sequence[float], end_s: int, route: str = "/", service: str = "shop") -> Row:
    return Row(service, Series("duration", "distribution", "s", (("route", route),)), end_s, tuple(values))


@pytest.mark.parametrize("limit", [0.25, 0.3, 0.3037])
def test_slow_samples_but_for_those_in_the_limits_bucket(limit: float) -> None:
    rng = random.Random(str(limit))
    counting = Counting(spec({"latency": {"metric": "duration", "below": limit, "where": {"route": "!=/health"}}}))
    low = high = total = 0
    for end_s in range(T0_S, T0_S + 600, 10):
        values = [rng.lognormvariate(-1.2, 0.3) for _ in range(rng.randint(1, 200))]
        counting.add([sample(values, end_s), sample([9.0], end_s, "/health"), sample([9.0], end_s, "/", "stock")])
        low += sum(one > limit * 1.011 for one in values)
        high += sum(one > limit for one in values)
        total += len(values)
    bad, everything = counting.evaluate(T0_S + 600)
    assert everything == total
    assert low <= bad <= high
    if limit == 0.25:
        assert bad == high, "a power of two is an edge"


def test_a_window_whose_samples_are_all_on_one_side_is_exact() -> None:
    counting = Counting(spec({"latency": {"metric": "duration", "below": 0.3}}))
    counting.add([sample([0.3, 0.3], T0_S), sample([0.3001, 0.3001], T0_S + 10)])
    assert counting.evaluate(T0_S + 10) == (2, 4)


def test_a_duration_is_in_seconds() -> None:
    counting = Counting(spec({"latency": {"metric": "duration", "below": "250ms"}}))
    counting.add([sample([0.25, 0.26], T0_S)])
    assert counting.evaluate(T0_S) == (1, 2)


def test_a_revision_replaces_and_one_that_is_too_late_is_left_out() -> None:
    counting = Counting(spec(INDICATORS["good"]))
    counting.add([counter("requests", 10, T0_S, code="500", version=1)])
    assert counting.evaluate(T0_S) == (10, 10)
    counting.add([counter("requests", 12, T0_S, code="500", version=2)])
    assert counting.evaluate(T0_S + 60) == (12, 12)
    late_s = T0_S + REVISED_US // S
    assert counting.evaluate(late_s) == (12, 12)
    counting.add([counter("requests", 90, T0_S, code="500", version=3)])
    assert counting.evaluate(late_s + 10) == (12, 12)
    assert counting.input.late == 1


@settings(max_examples=10, deadline=None)
@given(st.data())
def test_any_batches_duplicates_and_restarts_give_the_same_events_and_statuses(data: st.DataObject) -> None:
    """Rows of windows up to 30 s ahead and, revised, up to 60 s behind, between evaluations."""
    rng = random.Random(data.draw(st.integers(0, 10_000)))
    fields = spec(INDICATORS["good"]).model_dump(by_alias=True, mode="json")
    alerts = [{"severity": "critical", "long": "5m", "short": "1m", "factor": 3}]
    one = SloSpec.model_validate({**fields, "alerts": alerts, "minimum_events": 20}, strict=False)
    steps: list[list[Row]] = []
    numbers = itertools.count()
    bad = 0.0
    for end_s in range(T0_S, T0_S + 900, 10):
        bad = rng.choice((0.0, 0.5, 1.0)) if rng.random() < 0.08 else bad
        rows = []
        for at_s in (end_s, end_s, end_s + 10 * rng.randint(0, 3), end_s - 10 * rng.randint(0, 6)):
            code = "500" if rng.random() < bad else "200"
            version = 1000 * rng.randint(1, 9) + next(numbers)  # rows of one version are one row
            rows.append(counter("requests", rng.randint(1, 9), at_s, code=code, version=version))
        steps.append(rows)

    def play(restless: bool) -> list[Any]:
        counting = Counting(one)
        found: list[Any] = []
        seen: list[Row] = []
        for number, rows in enumerate(steps):
            batch = list(rows)
            if restless:
                batch += rng.sample(seen[-20:], min(len(seen), rng.randint(0, 5)))  # what came before comes again
                rng.shuffle(batch)
            cut = rng.randint(0, len(batch)) if restless else len(batch)
            counting.add(batch[:cut])
            if restless and rng.random() < 0.2:
                counting = counting.restarted()
            counting.add(batch[cut:])
            seen += rows
            t_s = T0_S + 10 * number
            events, status = counting.slo.evaluate(t_s * S)
            counting.store.forget(t_s * S)
            found.append(([event.model_dump() for event in events], status))
        return found

    expected = play(restless=False)
    assert play(restless=True) == expected


# -- health --------------------------------------------------------------------------------------------


def run(name: str, status: str, end_s: int, error: str = "") -> Row:
    labels = {"health.check.name": name, "health.check.service": "db", "health.check.status": status}
    labels |= {"error.type": error} if error else {}
    return counter("health.check.runs", 1, end_s, service="health", **labels)


def took(name: str, seconds: Sequence[float], end_s: int) -> Row:
    series = Series("health.check.duration", "distribution", "s", (("health.check.name", name),))
    return Row("health", series, end_s, tuple(seconds))


class Watching(Health):
    """Keeps what it is given."""

    def __init__(self, checks: Sequence[HealthCheck]) -> None:
        super().__init__(checks)
        self.given: list[tuple[int, str, CheckResult]] = []

    def put(self, end_us: int, check: str, result: CheckResult) -> None:
        self.given.append((end_us // S - T0_S, check, result))
        super().put(end_us, check, result)


def check(name: str, **kind: Any) -> HealthCheck:
    return HealthCheck.model_validate({"name": name, "service": "db", **kind}, strict=False)


def test_results_and_beats() -> None:
    tcp = {"tcp": {"host": "a", "port": 1}, "failure_threshold": 1}
    beat = {"heartbeat": {"metric": "job.runs", "where": {"job": "nightly"}, "within": "30s"}}
    health = Watching([check("one", **tcp), check("two", **tcp), check("job", **beat)])
    source = HealthInput(health.checks.values())
    store = WindowStore(source.keep)

    def add(service: str, *rows: Row) -> None:
        source.take(store, store.add("", batch_of([row._replace(service=service) for row in rows])), health)

    add("health", run("one", "healthy", T0_S), took("one", [0.1, 0.3], T0_S), run("two", "degraded", T0_S, "slow"))
    add("db", counter("job.runs", 1, T0_S, job="nightly"), counter("job.runs", 1, T0_S + 30, job="other"))
    assert health.given == [
        (0, "one", CheckResult("healthy", "", 0.3)),
        (0, "two", CheckResult("degraded", "slow", None)),
    ]
    health.given.clear()
    # The worst of a window is its result, and what nobody knows is no health.
    add(
        "health",
        run("one", "healthy", T0_S + 10),
        run("one", "unhealthy", T0_S + 10, "timeout"),
        run("two", "great", T0_S + 10),
    )
    assert health.given == [
        (10, "one", CheckResult("unhealthy", "timeout", None)),
        (10, "two", CheckResult("unhealthy", "", None)),
    ]
    for t_s in range(T0_S, T0_S + 50, 10):
        health.evaluate(t_s * S)
    statuses = {(one.service, one.check): one.status for one in health.statuses()}
    assert statuses == {
        ("db", "one"): "unhealthy",
        ("db", "two"): "unhealthy",
        ("db", "job"): "unhealthy",
        ("health", "health-runner"): "healthy",
        ("db", ""): "unhealthy",
        ("health", ""): "healthy",
    }
    add("db", counter("job.runs", 1, T0_S + 40, job="nightly"))
    health.evaluate((T0_S + 60) * S)
    assert {one.check: one.status for one in health.statuses()}["job"] == "healthy"


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("amount", [1e20, 1e308])
def test_a_window_with_an_impossible_number_of_events_is_left_out_and_counted(amount: float) -> None:
    """Two series of 1e308 have no finite sum; 1e20 events have no place in the status' version."""
    run = Counting(spec({"bad": {"metric": "bad"}, "total": {"metric": "all"}}))
    end_s = T0_S + 10
    run.add([counter("all", 10, end_s), counter("bad", 1, end_s)])
    run.add([counter("all", amount, end_s + 10, host="a"), counter("all", amount, end_s + 10, host="b")])
    assert run.evaluate(end_s + 10) == (1, 10)
    assert run.input.impossible == 1


def test_stored_events_that_are_impossible_are_left_out() -> None:
    slo = Slo(spec({"bad": {"metric": "bad"}, "total": {"metric": "all"}}))
    hours = [Stored((T0_S // 3600 - back) * 3600 * S, 3600, total, total) for back, total in ((9, 1e20), (8, 7.0))]
    slo.prime(T0_S * S, [*hours, Stored((T0_S - 20) * S, 10, float("inf"), float("inf"))])
    assert slo.evaluate((T0_S + 10) * S)[1].total == 7


def test_a_status_of_more_events_than_versions_has_the_highest() -> None:
    slo = Slo(spec({"bad": {"metric": "bad"}, "total": {"metric": "all"}}))
    for number in range(1, 4000):
        slo.put((T0_S + 10 * number) * S, 0, 2**53)
    assert slo.evaluate((T0_S + 40_000) * S)[1].version == 2**64 - 1
