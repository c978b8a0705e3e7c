"""Budget rings against a dictionary of all windows: exact where they say so, within their bound elsewhere."""

import pickle
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.burn import EXACT_S, BudgetRings, Events, Stored

S = 1_000_000
DAY_S = 86400
T0 = 1_700_000_000 * S  # no boundary of anything but 10 s and 100 s
WINDOWS_S = (300, 1800, 3600, 7200, 6 * 3600, DAY_S, 3 * DAY_S)


class Oracle:
    """Every window kept, sums taken anew each time."""

    def __init__(self) -> None:
        self.windows: dict[int, tuple[int, int]] = {}

    def put(self, end_us: int, bad: int, total: int) -> None:
        self.windows[end_us] = (bad, total)

    def exact(self, t_us: int, window_s: int) -> Events:
        found = [both for end, both in self.windows.items() if t_us - window_s * S < end <= t_us]
        return Events(sum(bad for bad, _ in found), sum(total for _, total in found))

    def spread(self, t_us: int, window_s: int, step_s: int) -> tuple[Fraction, Fraction]:
        """As documented: the bucket of the older edge in proportion."""
        after_us, step_us = t_us - window_s * S, step_s * S
        edge_us = -(-after_us // step_us) * step_us
        share = Fraction(edge_us - after_us, step_us)
        bad = total = Fraction(0)
        for end, (one_bad, one_total) in self.windows.items():
            if edge_us < end <= t_us:
                bad, total = bad + one_bad, total + one_total
            elif edge_us - step_us < end <= edge_us:
                bad, total = bad + share * one_bad, total + share * one_total
        return bad, total


def step_of(window_s: int) -> int:
    return 300 if window_s <= DAY_S else 900 if window_s <= 3 * DAY_S else 3600


@pytest.mark.parametrize("seed", range(3))
def test_sums_are_those_of_all_windows(seed: int) -> None:
    """A month with gaps, late rows, revisions and duplicates, as they come while time goes on."""
    rng = random.Random(seed)
    rings, oracle = BudgetRings(30 * DAY_S), Oracle()
    t_us = T0
    recent: list[tuple[int, int, int]] = []
    for _ in range(4000):
        t_us += 10 * S * rng.choice((1, 1, 1, 1, 60, 600) if rng.random() < 0.98 else (6000,))
        batch = []
        for _ in range(rng.randint(0, 3)):
            total = rng.choice((0, 1, 100, 10**6))
            # Some belong to windows after the time of evaluation, some are late.
            batch.append((t_us + 10 * S * rng.randint(-6, 3), rng.randint(0, total), total))
        if rng.random() < 0.3:
            batch += [window for window in recent if window[0] > t_us - 3600 * S]
        for window in batch:
            assert rings.put(*window)
            oracle.put(*window)
        recent = batch or recent
        rings.advance(t_us)
        if rng.random() < 0.02:
            rings = BudgetRings.restore(pickle.loads(pickle.dumps(rings.snapshot())))
            for window_s in (*WINDOWS_S, 30 * DAY_S):
                if window_s <= EXACT_S:
                    assert rings.events(window_s) == oracle.exact(t_us, window_s), window_s
                    continue
                bad, total = oracle.spread(t_us, window_s, step_of(window_s))
                assert rings.events(window_s) == pytest.approx((float(bad), float(total)), rel=1e-12), window_s


def test_even_traffic_is_exact_in_every_window() -> None:
    rings = BudgetRings(7 * DAY_S)
    for k in range(1, 7 * 8640 + 500):
        rings.put(T0 + k * 10 * S, 1, 1000)
        if k % 11 == 0:
            rings.advance(T0 + k * 10 * S)
    rings.advance(T0 + k * 10 * S)
    for window_s in (*WINDOWS_S, 7 * DAY_S):
        assert rings.events(window_s) == pytest.approx((window_s / 10, window_s * 100), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-3, 40), st.integers(0, 5), st.integers(0, 5)), max_size=60),
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
    st.data(),
)
def test_the_order_of_windows_duplicates_and_restarts_change_nothing(
    windows: list[tuple[int, int, int]], steps: list[int], data: st.DataObject
) -> None:
    """What is put before an evaluation may come in any order, twice, and with a restart in between."""
    final = {T0 + k * 10 * S: (min(bad, total), total) for k, bad, total in windows}
    shuffled = data.draw(st.permutations(list(final.items())))
    plain, other = BudgetRings(7 * DAY_S), BudgetRings(7 * DAY_S)
    for end_us, (bad, total) in final.items():
        plain.put(end_us, bad, total)
    for end_us, (bad, total) in shuffled:
        other.put(end_us, 0, 7)  # a partial row first
        other.put(end_us, bad, total)
        other.put(end_us, bad, total)
    t_us = T0
    for step in steps:
        t_us += step * 10 * S
        plain.advance(t_us)
        other = BudgetRings.restore(other.snapshot())
        other.advance(t_us)
        for window_s in (300, 7200, DAY_S, 7 * DAY_S):
            assert plain.events(window_s) == other.events(window_s)


@pytest.mark.parametrize(
    ("period_s", "edge_s"), [(6 * 3600, 10), (DAY_S, 300), (2 * DAY_S, 900), (3 * DAY_S, 900), (4 * DAY_S, 3600)]
)
def test_the_older_edge_is_as_exact_as_the_window_is_long(period_s: int, edge_s: int) -> None:
    """Bad events alone, just outside: none of them further than a bucket from the edge is counted."""
    rings = BudgetRings(period_s)
    t_us = T0 + period_s * S
    rings.put(t_us - period_s * S - edge_s * S, 5, 5)
    rings.put(t_us - period_s * S + edge_s * S, 7, 7)
    rings.advance(t_us)
    assert rings.events(period_s).total == 7


def test_a_window_older_than_can_be_replaced_is_refused() -> None:
    rings = BudgetRings(7 * DAY_S)
    rings.advance(T0)
    assert rings.put(T0 - EXACT_S * S + 10 * S, 1, 2)
    assert not rings.put(T0 - EXACT_S * S, 1, 2)
    assert rings.events(7 * DAY_S) == (1, 2)


@pytest.mark.parametrize("period_days", [1, 30, 90])
@pytest.mark.parametrize("offset_s", [0, 1790])
def test_stored_rows_of_three_resolutions_fill_the_rings(period_days: int, offset_s: int) -> None:
    """Hours, then minutes, then 10 s: the same sums as if every window had been seen."""
    rng = random.Random(period_days)
    until_us = T0 + offset_s * S
    period_s = period_days * DAY_S
    seen, oracle = BudgetRings(period_s), Oracle()
    first = until_us // (3600 * S) * 3600 * S - period_s * S
    for end_us in range(first + 10 * S, until_us + 1, 30 * S):
        total = rng.randint(0, 20)
        oracle.put(end_us, rng.randint(0, total), total)
    ends = sorted(oracle.windows)
    seen.advance(ends[0] - 10 * S)
    for number, end_us in enumerate(ends):
        seen.put(end_us, *oracle.windows[end_us])
        if number % 1000 == 0:
            seen.advance(end_us)
    seen.advance(until_us)

    hours_until = (until_us - 73 * 3600 * S) // (3600 * S) * 3600 * S
    minutes_until = (until_us - EXACT_S * S) // (60 * S) * 60 * S - 60 * S
    rows: dict[tuple[int, int], tuple[int, int]] = {}
    for end_us, (bad, total) in oracle.windows.items():
        seconds = 3600 if end_us <= hours_until else 60 if end_us <= minutes_until else 10
        key = ((end_us - 10 * S) // (seconds * S) * seconds * S, seconds)
        good, all_of_them = rows.get(key, (0, 0))
        rows[key] = (good + total - bad, all_of_them + total)
    primed = BudgetRings(period_s)
    primed.prime(until_us, [Stored(*key, *row) for key, row in rows.items()])
    assert primed.newest_us == seen.newest_us
    for window_s in {min(one, period_s) for one in (*WINDOWS_S, period_s)}:
        assert primed.events(window_s) == pytest.approx(seen.events(window_s), rel=1e-12), window_s
    # Rows that come again after that replace what was primed.
    for end_us in [end for end in oracle.windows if end > until_us - EXACT_S * S][:50]:
        primed.put(end_us, *oracle.windows[end_us])
    assert primed.events(period_s) == pytest.approx(seen.events(period_s), rel=1e-12)


def test_a_snapshot_of_thirty_days_is_below_64_kb() -> None:
    rings = BudgetRings(30 * DAY_S)
    rings.advance(T0)
    for k in range(30):
        rings.put(T0 + k * 10 * S, 1, 2)
    assert len(pickle.dumps(rings.snapshot(), protocol=5)) < 58_000


def test_what_is_not_possible_is_refused() -> None:
    rings = BudgetRings(7 * DAY_S)
    with pytest.raises(ValueError, match="not the end of a window"):
        rings.put(T0 + 1, 0, 1)
    for bad, total in ((-1, 1), (2, 1), (0, float("inf")), (float("nan"), 1), (0, float("nan"))):
        with pytest.raises(ValueError, match="not possible"):
            rings.put(T0, bad, total)
    for window_s in (0, 15, 8 * DAY_S):
        with pytest.raises(ValueError, match="a window of"):
            rings.events(window_s)
    for period_s in (3600, 7 * DAY_S + 1):
        with pytest.raises(ValueError, match="a period of"):
            BudgetRings(period_s)
    rings.advance(T0)
    with pytest.raises(ValueError, match="counted nothing yet"):
        rings.prime(T0, [])
