"""Forecasts: the reference cases exactly, and never worse than a straight line on real growth."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.forecast import ewma_chart, forecast, least_squares, predict_linear

from tests.data import data_file, reference

DAY_S = 86_400


@pytest.mark.parametrize("case", reference("promql_prediction"))
def test_deriv_and_predict_linear_are_those_of_prometheus(case: dict[str, Any]) -> None:
    ((series,), (expected,)) = case["series"], case["expected"]
    at_s = case["eval_time_s"] if case["at_s"] is None else case["at_s"]
    # A range with @ looks back from there, but predicts from the time of evaluation.
    inside = [(t, v) for t, v in series["samples"] if at_s - case["range_s"] < t <= at_s]
    times, values = zip(*inside, strict=True)
    if case["function"] == "deriv":
        found = least_squares(times, values)[0]
    else:
        found = predict_linear(times, values, case["eval_time_s"], case["params"][0])
    assert found == pytest.approx(expected["value"], rel=1e-6)


@pytest.mark.parametrize("case", reference("ewma_ols"))
def test_means_and_lines_are_those_of_the_handbooks(case: dict[str, Any]) -> None:
    if case["kind"] == "ewma_chart":
        means, low, high = ewma_chart(case["data"], case["lam"], case["start"], case["sigma"], case["k"])
        assert means == pytest.approx(case["ewma"], abs=0.005)
        assert (low, high) == pytest.approx((case["lcl"], case["ucl"]), abs=2e-4)
    else:
        slope, intercept = least_squares(case["x"], case["y"])
        assert (slope, intercept) == pytest.approx((case["slope"], case["intercept"]), abs=1e-7)


def test_what_has_no_line_is_nan() -> None:
    for times, values in (([], []), ([1], [1]), ([1, 1], [1, 2]), ([1, 2], [1, math.inf]), ([0, 1], [1e308, -1e308])):
        assert math.isnan(predict_linear(times, values, 0, 10))


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 1e3), st.floats(-1e6, 1e6), st.integers(3, 700))
def test_a_straight_line_is_continued(slope: float, start: float, count: int) -> None:
    times = np.arange(count) * 60.0
    found = forecast(times, start + slope * times, start + slope * (times[-1] + 3_600))
    assert found.slope == pytest.approx(slope, rel=1e-3)
    assert found.reached_in_s == pytest.approx(3_600, rel=0.05)
    assert found.earliest_in_s <= found.reached_in_s <= found.latest_in_s


def test_outliers_and_a_last_odd_point_do_not_move_it() -> None:
    times = np.arange(200) * 60.0
    values = 100 + times / 60
    values[::17] = 9_000
    values[-1] = 0
    found = forecast(times, values, 399.0)
    assert found.reached_in_s == pytest.approx(100 * 60, rel=0.02)


def test_a_limit_below_is_reached_by_falling() -> None:
    times = np.arange(50) * 60.0
    assert forecast(times, 100 - times / 60, 0).reached_in_s == pytest.approx(51 * 60)
    assert forecast(times, 100 + times / 60, 0).reached_in_s == math.inf


def test_one_point_a_constant_and_a_limit_already_reached() -> None:
    one = forecast([5], [1], 2)
    assert (one.reached_in_s, one.earliest_in_s, one.latest_in_s) == (math.inf, 0, math.inf)
    constant = forecast([0, 1, 2], [7, 7, 7], 9)
    assert (constant.slope, constant.reached_in_s, constant.latest_in_s) == (0, math.inf, math.inf)
    assert forecast([0, 1, 2], [7, 7, 7], 7).reached_in_s == 0


def test_nothing_to_go_by_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="no finite point"):
        forecast([1, 2], [math.nan, math.inf], 3)
    with pytest.raises(ValueError, match="limit nan"):
        forecast([1, 2], [1, 2], math.nan)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 2e9), st.floats(allow_nan=True)), max_size=30), st.floats(-1e300, 1e300))
def test_any_points_give_an_interval_or_say_why_not(points: list[tuple[float, float]], limit: float) -> None:
    times, values = [t for t, _ in points], [v for _, v in points]
    if not any(abs(value) < 1e100 for value in values):
        with pytest.raises(ValueError, match="no finite point"):
            forecast(times, values, limit)
        return
    found = forecast(times, values, limit)
    assert 0 <= found.earliest_in_s <= found.reached_in_s <= found.latest_in_s
    assert found.slope_low <= found.slope <= found.slope_high


def waves(count: int, height: float, seed: int, step_s: float = 3_600, period_s: float = DAY_S) -> tuple[Any, Any, Any]:
    """Times, what is seen with noise of deviation 1, and the truth behind it: growth of 2.4 a day and a wave."""
    random = np.random.default_rng(seed)
    times = np.arange(count) * step_s
    actual = times / 36_000 + height * np.sin(times / period_s * 2 * math.pi + random.uniform(0, 6))
    return times, actual + random.normal(size=count), actual


@pytest.mark.parametrize(
    ("step_s", "period_s", "season_h"), [(3_600, DAY_S, 24), (600, DAY_S, 24), (14_400, 7 * DAY_S, 168)]
)
def test_a_season_that_shows_is_forecast(step_s: float, period_s: float, season_h: int) -> None:
    ahead_s = 3 * DAY_S
    count, ahead = round(4 * period_s / step_s), round(ahead_s / step_s)
    errors, straight = [], []
    for seed in range(10):
        times, seen, actual = waves(count + ahead, 20, seed, step_s, period_s)
        found = forecast(times[:count], seen[:count], 1e6)
        line = forecast(times[:count], seen[:count], 1e6, seasonal=False)
        assert (len(found.season), line.season) == (season_h, ())
        errors.append(abs(found.at(ahead_s) - actual[-1]))
        straight.append(abs(line.at(ahead_s) - actual[-1]))
    assert np.mean(errors) < np.mean(straight) / 5


def test_a_day_and_a_week_add_up() -> None:
    times, seen, _ = waves(24 * 28, 20, 1)
    seen -= 30.0 * (times // DAY_S % 7 >= 5)
    found = forecast(times, seen, 1e6)
    assert len(found.season) == 168
    expected = [*seen[-168:]]
    assert [found.at(hour * 3_600.0) - 7 * 2.4 for hour in range(1, 169)] == pytest.approx(expected, abs=6)


def test_a_limit_is_reached_by_the_wave_when_the_line_is_still_below() -> None:
    times, seen, actual = waves(24 * 34, 20, 3)
    now = 24 * 30
    for limit in (actual[now - 24 : now + 24].max() + 0.5, actual[now - 24 : now].max() + 8):
        first = int(np.argmax(actual[now:] >= limit)) + 1
        found = forecast(times[:now], seen[:now], limit)
        assert found.reached_in_s == pytest.approx(first * 3_600, abs=3 * 3_600)
        assert found.at(found.reached_in_s) == pytest.approx(limit)
        before = np.linspace(0, found.reached_in_s, 500)[:-1]
        assert max(found.at(at) for at in before) < limit
    falling = forecast(times[:now], -seen[:now], -limit)
    assert falling.reached_in_s == pytest.approx(found.reached_in_s)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [24, 72, 200, 700])
def test_without_a_season_the_result_is_that_of_a_line(seed: int, count: int) -> None:
    noise = np.random.default_rng(seed).normal(size=count)
    times = np.arange(count) * 3_600.0
    for values in (noise, noise.cumsum(), times, times // 50_000, times**2, np.full(count, 3)):
        assert forecast(times, values, 1e9) == forecast(times, values, 1e9, seasonal=False)


def test_a_wave_that_ended_or_is_too_short_is_no_season() -> None:
    times, seen, _ = waves(24 * 10, 20, 1)
    assert forecast(times, seen, 1e6).season
    assert not forecast(times[:71], seen[:71], 1e6).season
    seen[-30:] = seen[-30]
    assert not forecast(times, seen, 1e6).season


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 900), st.sampled_from([1.0, 7.3, 1e3, 1e98]), st.floats(0, 0.95), st.floats(0, 6_000),
    st.floats(-1e300, 1e300) | st.floats(-100, 100), st.integers(0, 2**32 - 1), st.sampled_from([900, 3_600, 21_600]),
)  # fmt: skip
def test_waves_with_gaps_and_jitter_give_an_interval(
    count: int, height: float, missing: float, jitter_s: float, limit: float, seed: int, step_s: int
) -> None:
    times, seen, _ = waves(count, height, seed, step_s)
    random = np.random.default_rng(seed)
    times = times + random.uniform(0, jitter_s, count)
    kept = random.random(count) >= missing
    gap = random.integers(count)
    kept[gap + 1 : gap + 100] = False
    kept[random.integers(count)] = True
    found = forecast(times[kept], seen[kept], limit)
    assert 0 <= found.earliest_in_s <= found.reached_in_s <= found.latest_in_s
    assert found.slope_low <= found.slope <= found.slope_high
    if not found.season:
        assert found == forecast(times[kept], seen[kept], limit, seasonal=False)


@pytest.mark.parametrize("name", ["numenta_NAB", "sysstat_sysstat"])
@pytest.mark.parametrize("ahead_days", [30, 90])
def test_on_real_growth_it_errs_less_than_least_squares(name: str, ahead_days: int) -> None:
    table = np.loadtxt(data_file(f"system/storage_growth/{name}.csv"), delimiter=",", skiprows=1)
    errors, straight = [], []
    for end in range(90, len(table) - ahead_days, 60):
        times, values = table[end - 90 : end].T
        actual = table[end - 1 + ahead_days, 1]
        errors.append(abs(forecast(times, values, 1e12).at(ahead_days * DAY_S) - actual))
        straight.append(abs(predict_linear(times, values, times[-1], ahead_days * DAY_S) - actual))
    assert np.mean(errors) <= np.mean(straight)
    assert np.median(errors) <= np.median(straight)
