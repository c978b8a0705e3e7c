"""The last hour of operations and lookups, beside exact computation."""

import math

from hypothesis import given
from hypothesis import strategies as st
from tailrace_producers.io_summary import OTHER, SLOT_S, SLOTS, OperationSummary, RecentHour

DURATIONS = st.lists(st.floats(1e-7, 1e5), min_size=1, max_size=200)


def exact(durations: list[float], q: float) -> float:
    return sorted(durations)[max(1, math.ceil(q * len(durations))) - 1]


@given(DURATIONS, DURATIONS)
def test_merged_summaries_are_within_their_error(some: list[float], others: list[float]) -> None:
    one, other = OperationSummary(), OperationSummary()
    for durations, summary in ((some, one), (others, other)):
        for duration_s in durations:
            summary.add(duration_s, failed=duration_s > 1)
    one.merge(other)
    everything = some + others
    figures = one.figures()
    assert (figures["count"], figures["errors"]) == (len(everything), sum(one > 1 for one in everything))
    assert figures["max_s"] == max(everything)
    assert math.isclose(figures["total_s"], sum(everything))
    for q, found in ((0.5, figures["p50_s"]), (0.95, figures["p95_s"])):
        assert math.isclose(found, exact(everything, q), rel_tol=0.05)


@given(st.lists(st.tuples(st.floats(0, 20_000), st.sampled_from("abc"), st.floats(0, 10)), max_size=100))
def test_what_is_older_than_an_hour_is_forgotten(operations: list[tuple[float, str, float]]) -> None:
    recent = RecentHour(10, 0.0)
    operations.sort()
    for time_s, target, duration_s in operations:
        recent.add("read", target, duration_s, False, time_s)
        recent.add_lookups(target, 1, 2, time_s)
    now_s = 20_000.0
    first = int(now_s // SLOT_S) - SLOTS + 1
    kept = [target for time_s, target, _ in operations if time_s // SLOT_S >= first]
    assert {key[1]: summary.count for key, summary in recent.operations(now_s).items()} == {
        target: kept.count(target) for target in set(kept)
    }
    assert recent.lookups(now_s) == {target: (kept.count(target), 2 * kept.count(target)) for target in set(kept)}
    assert 0 <= recent.period_s(now_s) <= SLOT_S * SLOTS


def test_operations_are_bounded() -> None:
    recent = RecentHour(3, 0.0)
    keys = [recent.add("read", str(number), 1.0, False, 0.0) for number in range(5)]
    assert keys == [("read", "0"), ("read", "1"), ("read", "2"), ("read", OTHER), ("read", OTHER)]
    assert recent.add("made up", "x", 1.0, False, 0.0) == (OTHER, OTHER)
    assert recent.add("read", "1", 1.0, False, 0.0) == ("read", "1")
    assert len(recent.operations(0.0)) == 5


def test_a_duration_of_nothing_counts() -> None:
    summary = OperationSummary()
    summary.add(0.0, False)
    assert summary.figures()["p50_s"] == 0.0
