"""Before and after: right shifts, and as often wrong as the confidence says."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.change import change_point, compare

finite = st.floats(-1e6, 1e6)


def autocorrelated(rng: np.random.Generator, count: int, kept: float) -> np.ndarray:
    noise = rng.standard_normal(count) * math.sqrt(1 - kept**2)
    for i in range(1, count):
        noise[i] += kept * noise[i - 1]
    return noise


@pytest.mark.parametrize("ahead", [0.0, 1.0, 2.5])
def test_confidence_is_that_of_all_permutations(ahead: float) -> None:
    """The exact test: how many ways to deal the same points out show a difference as big."""
    rng = np.random.default_rng(4)
    old, new = rng.standard_normal(8), rng.standard_normal(8) + ahead
    pool = np.concatenate([old, new])

    def differs(new: np.ndarray, old: np.ndarray) -> float:
        return abs(float((new[:, None] > old[None, :]).mean()) - 0.5)

    seen = differs(new, old)
    deals = [list(deal) for deal in combinations(range(16), 8)]
    exact = np.mean([differs(pool[deal], np.delete(pool, deal)) < seen - 1e-12 for deal in deals])
    assert compare(np.sort(old)[[3, 0, 6, 2, 7, 1, 5, 4]], np.sort(new)[[3, 0, 6, 2, 7, 1, 5, 4]]).confidence == (
        pytest.approx(exact, abs=0.06)
    )


@pytest.mark.parametrize(("kept", "at_most"), [(0.0, 0.08), (0.6, 0.1)])
def test_without_a_change_it_is_rarely_sure(kept: float, at_most: float) -> None:
    rng = np.random.default_rng(5)
    noise = [autocorrelated(rng, 120, kept) for _ in range(400)]
    sure = np.mean([compare(one[:60], one[60:]).confidence > 0.95 for one in noise])
    assert 0.01 <= sure <= at_most


def test_a_change_is_found_with_its_size() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(100):
        found = compare(100 + 10 * rng.standard_normal(60), 112 + 10 * rng.standard_normal(60))
        assert found.confidence > 0.99
        assert found.greater > 0.6
        covered += found.low <= 12 <= found.high
    assert covered >= 88


def test_odd_sides() -> None:
    for before, after in (([], []), ([1.0], [2.0, 3.0]), ([math.nan] * 9, [1.0] * 9)):
        found = compare(before, after)
        assert (found.confidence, found.low, found.high) == (0, -math.inf, math.inf)
    assert compare([5.0] * 20, [5.0] * 20).confidence == 0
    assert compare([5.0] * 20, [6.0] * 20).confidence > 0.999
    assert compare([1.0, math.nan, 2.0], [math.inf, 3.0, 4.0]).shift == 2
    spiky = compare([1.0, 2.0, 1.0, 2.0] * 10, [1.0, 2.0, 1.0, 900.0] * 10)
    assert spiky.shift <= 1


@settings(max_examples=40, deadline=None)
@given(st.lists(finite, min_size=2, max_size=40), st.lists(finite, min_size=2, max_size=40))
def test_turning_it_around_turns_the_answer(one: list[float], other: list[float]) -> None:
    there, back = compare(one, other), compare(other, one)
    assert there.greater == pytest.approx(1 - back.greater)
    assert there.shift == pytest.approx(-back.shift, abs=1e-6)
    assert there.confidence == pytest.approx(back.confidence)
    assert there.low <= there.shift <= there.high
    assert 0 <= there.confidence <= 1


def test_a_change_point_is_where_the_level_changed() -> None:
    rng = np.random.default_rng(7)
    noise = rng.standard_normal(300)
    found = change_point(noise + np.where(np.arange(300) < 200, 0, 3))
    assert found is not None
    assert abs(found.at - 200) <= 2
    assert found.confidence > 0.999
    sure = [one.confidence > 0.95 for one in map(change_point, rng.standard_normal((200, 100))) if one]
    assert np.mean(sure) <= 0.08
    assert change_point([1, 2, math.nan, 3]) is None
    assert change_point([4.0] * 50) == (1, 0.0)
