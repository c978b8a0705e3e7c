"""The detector: causal, the same one by one and together, and sensible on series of every kind."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.anomaly import AnomalyConfig, Detector, DetectorBank, Direction, Verdict
from tailrace_flows.core.anomaly.config import DETECTOR_VERSION, STATE_VERSION

MINUTE_US = 60_000_000
MONDAY_US = 1_699_833_600_000_000
DAY = 1_440
NORMAL = np.random.default_rng(3).standard_normal(20 * DAY)


def judge(values: Iterable[float], config: AnomalyConfig | None = None, step_us: int = MINUTE_US) -> list[Verdict]:
    detector = Detector(config)
    return [detector.update(MONDAY_US + i * step_us, float(value)) for i, value in enumerate(values)]


def flagged(verdicts: Sequence[Verdict]) -> list[int]:
    return [i for i, verdict in enumerate(verdicts) if verdict.flag]


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Equal up to the last bits of `log` and `exp`."""
    return bool(np.allclose(np.array(one, "f8"), np.array(other, "f8"), rtol=1e-9, atol=1e-12, equal_nan=True))


values = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([0.0, 5.0, math.nan, math.inf, -math.inf, 1e-300, 9e29, -9e29, 1e300])
)


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=40),
    st.integers(1, 4_000_000_000),
    st.integers(0, 60),
    st.randoms(use_true_random=False),
)
def test_a_bank_judges_as_detectors_do_and_resumes(rows: list[list[float]], step_us: int, cut: int, rng: Any) -> None:
    """Any subset of the series in any order, and both stored and resumed on the way."""
    config = AnomalyConfig(warmup_points=5)
    bank = DetectorBank(3, config)
    detectors = [Detector(config) for _ in range(3)]
    for number, row in enumerate(rows):
        if number == cut:
            bank = DetectorBank(5, config, bank.snapshot())
            detectors = [Detector(config, one.snapshot()) for one in detectors]
        slots = rng.sample(range(3), rng.randint(1, 3))
        time_us = MONDAY_US + number * step_us
        together = bank.update(time_us, [row[slot] for slot in slots], slots)
        for at, slot in enumerate(slots):
            assert same(detectors[slot].update(time_us, row[slot]), [part[at] for part in together]), (number, slot)


def test_a_bank_judges_long_series_as_detectors_do() -> None:
    """Through seasons, shifts, spikes and the scaling back of weights, all series at once."""
    count = 150_000
    noise = np.resize(NORMAL, count)
    series = np.stack([100 + 50 * np.sin(np.arange(count) / 230) + 5 * noise, np.exp(noise), np.full(count, 5.0)])
    series[0, 1_500:] += 80
    series[2, 2_500:2_510] = 9
    count = 3_600
    bank = DetectorBank(3)
    detectors = [Detector() for _ in range(3)]
    for number in range(count):
        time_us = MONDAY_US + number * 5 * MINUTE_US
        together = bank.update(time_us, series[:, number])
        for slot, detector in enumerate(detectors):
            one = detector.update(time_us, series[slot, number])
            assert same(one, [part[slot] for part in together]), (slot, number)


def test_weights_scaled_back_change_nothing() -> None:
    """The growing weight of ranks is scaled back after some 140,000 points; around it scores go on."""
    bank = DetectorBank(1)
    field = bank._fields
    field["weight"][:] = 0.99e6
    field["total"][:] = 0.99e6 * 9_000
    field["points"][:] = 100_000
    scores = [bank.update(MONDAY_US + i * MINUTE_US, [float(NORMAL[i])]).score[0] for i in range(300)]
    assert field["weight"][0] < 2
    assert np.isfinite(scores).all()
    assert 5_000 < field["total"][0] / field["weight"][0] < 10_000


def test_a_series_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="named twice"):
        DetectorBank(4).update(MONDAY_US, [1.0, 2.0], [3, 3])


def test_a_number_given_to_another_series_starts_anew() -> None:
    bank, fresh = DetectorBank(2), DetectorBank(2)
    for i in range(300):
        bank.update(MONDAY_US + i * MINUTE_US, [7.0, float(NORMAL[i])])
    bank.reset([1])
    assert bank.snapshot() != fresh.snapshot()
    for i in range(300):
        one, other = (
            b.update(MONDAY_US + i * MINUTE_US, [float(NORMAL[-i])], [1]) for b in (bank, fresh)
        )  # fmt: skip
        assert same([part[0] for part in one], [part[0] for part in other])


def test_state_of_another_version_is_refused() -> None:
    versions = (
        (Detector, Detector().snapshot(), DETECTOR_VERSION),
        (DetectorBank, DetectorBank(1).snapshot(), STATE_VERSION),
    )
    for made, state, version in versions:
        other = state.replace(b"K" + bytes([version]), b"K\x63", 1)
        with pytest.raises(ValueError, match="format 99"):
            made(state=other)


def test_a_score_never_depends_on_later_points() -> None:
    whole = judge(NORMAL[:2_000])
    changed = judge([*NORMAL[:1_500], *(NORMAL[:500] * 100)])
    assert whole[:1_500] == changed[:1_500]


@pytest.mark.parametrize(
    ("name", "series", "expected"),
    [
        ("empty", [], []),
        ("constant", [5.0] * 3_000, []),
        ("zero, once one", [0.0] * 1_000 + [1.0] + [0.0] * 1_000, [1_000]),
        ("constant, then another constant", [5.0] * 1_000 + [6.0] * 2_000, [1_000]),
        ("noise", 100 + 3 * NORMAL[:5_000], []),
        ("a level shift, once", [*(100 + 3 * NORMAL[:1_500]), *(150 + 3 * NORMAL[:3_000])], [1_500]),
        ("a slow drift", 100 + 3 * NORMAL[:5_000] + np.arange(5_000) * 0.02, []),
        ("a spike", [*(100 + 3 * NORMAL[:1_000]), 200.0, *(100 + 3 * NORMAL[:1_000])], [1_000]),
        ("negative values", [*(-100 - 3 * NORMAL[:1_000]), -200.0, *(-100 + 3 * NORMAL[:1_000])], [1_000]),
        ("a spike too small to matter", [*(100 + NORMAL[:1_000] / 10), 105.0, *(100 + NORMAL[:1_000] / 10)], []),
        ("nothing but NaN", [math.nan] * 500, []),
        ("huge", [1e29, -1e29] * 300, []),
        ("beyond numbers", [*NORMAL[:500], 1e300, *NORMAL[:500]], []),
        ("a jump to the largest number", [*([0.0] * 500), 9e29, *([0.0] * 50)], [500]),
    ],
)  # fmt: skip
def test_series_of_every_kind(name: str, series: Sequence[float], expected: list[int]) -> None:
    verdicts = judge(series)
    assert flagged(verdicts) == expected
    assert all(0 <= verdict.score <= 1 for verdict in verdicts)


def test_values_that_are_no_numbers_score_0_and_teach_nothing() -> None:
    clean = judge(NORMAL[:1_000])
    detector = Detector()
    for i, value in enumerate(NORMAL[:1_000]):
        for bad in (math.nan, math.inf, -math.inf):
            verdict = detector.update(MONDAY_US + i * MINUTE_US, bad)
            assert (verdict.score, verdict.flag) == (0, False)
            assert math.isnan(verdict.expected)
        assert detector.update(MONDAY_US + i * MINUTE_US, float(value)) == clean[i]


def test_warming_up_says_so_and_scores_0() -> None:
    verdicts = judge([*NORMAL[:60], 1e6, *NORMAL[:60]])
    assert [verdict.warming_up for verdict in verdicts] == [True] * 100 + [False] * 21
    assert {verdict.score for verdict in verdicts[:100]} == {0}
    assert flagged(verdicts) == []


def test_daily_and_weekly_seasons_are_learned() -> None:
    minutes = np.arange(20 * DAY)
    daily = 100 + 3 * NORMAL
    daily[(minutes % DAY >= 120) & (minutes % DAY < 150)] += 100  # a batch job at night
    days = {at // DAY for at in flagged(judge(daily))}
    assert days <= set(range(10)), days

    five_minutes = np.arange(28 * 288)
    weekday = five_minutes // 288 % 7 < 5
    weekly = np.where(weekday, 100, 40) * (1 + 0.03 * NORMAL[: five_minutes.size])
    assert {at // 288 for at in flagged(judge(weekly, step_us=5 * MINUTE_US))} <= {5, 7, 12}


def test_hourly_jobs_are_learned() -> None:
    minutes = np.arange(3 * DAY)
    hourly = 100 + 3 * NORMAL[: minutes.size]
    hourly[minutes % 60 < 3] += 80
    late = [at for at in flagged(judge(hourly)) if at > DAY]
    assert late == []


@pytest.mark.parametrize(
    ("direction", "expected"),
    [(Direction.ABOVE, [500]), (Direction.BELOW, [1_001]), (Direction.BOTH, [500, 1_001])],
)
def test_direction(direction: Direction, expected: list[int]) -> None:
    series = [*(100 + 3 * NORMAL[:500]), 200, *(100 + 3 * NORMAL[:500]), 20, *(100 + 3 * NORMAL[:100])]
    assert flagged(judge(series, AnomalyConfig(direction=direction))) == expected


def test_both_minimum_deviations_must_be_exceeded() -> None:
    series = [*(100 + NORMAL[:500]), 130, *(100 + NORMAL[:100])]
    for absolute, relative, expected in ((20, 0.2, [500]), (50, 0.2, []), (20, 0.5, []), (0, 0, [500])):
        config = AnomalyConfig(min_deviation=absolute, min_relative_deviation=relative)
        assert flagged(judge(series, config)) == expected


def test_a_point_inside_the_band_is_not_flagged_and_one_beyond_it_is() -> None:
    detector = Detector()
    for i in range(2_000):
        detector.update(MONDAY_US + i * MINUTE_US, float(100 + NORMAL[i]))
    after = detector.snapshot()
    time_us = MONDAY_US + 2_000 * MINUTE_US
    band = Detector(state=after).update(time_us, 100.0)
    assert band.low < 100 < band.high
    config = AnomalyConfig(min_relative_deviation=0)
    for value, flag in ((band.high - 1, False), (band.high + 3, True), (band.low + 1, False), (band.low - 3, True)):
        assert Detector(config, after).update(time_us, value).flag is flag


def test_each_flag_and_each_reported_false_alarm_raises_the_bar_which_comes_down() -> None:
    spiky = np.where(np.arange(6_000) % 97 == 96, 1_000.0, 10.0) + NORMAL[:6_000]
    flags = flagged(judge(spiky))
    assert 1 <= len(flags) <= 20  # of 61 spikes: what happens all the time is no news

    series = [*(100 + 3 * NORMAL[:500]), 137.0]
    assert flagged(judge(series)) == [500]
    detector, bank = Detector(), DetectorBank(2)
    for i, value in enumerate(series[:-1]):
        detector.update(MONDAY_US + i * MINUTE_US, value)
        bank.update(MONDAY_US + i * MINUTE_US, [value, value])
    for _ in range(3):
        detector.false_positive()
        bank.false_positive(1)
    time_us = MONDAY_US + 500 * MINUTE_US
    assert not detector.update(time_us, 137.0).flag
    assert bank.update(time_us, [137.0, 137.0]).flag.tolist() == [True, False]
    raised = detector.bar
    assert raised == pytest.approx(1.25**3, rel=1e-3)
    assert bank.bar[1] == raised
    for i in range(40 * DAY):
        detector.update(time_us + i * MINUTE_US, 100.0 + NORMAL[i % 1_000])
    assert detector.bar < 1.5


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_points": 2}, {"min_deviation": -1.0}, {"min_relative_deviation": math.nan}, {"flag_score": 1.0},
        {"direction": "sideways"},
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong)) if "direction" not in wrong else "sideways"):
        AnomalyConfig(**wrong)
