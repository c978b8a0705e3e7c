"""Counting in bands gives the sketch that sorting gives, whatever the bands are."""

import pickle

import numpy as np
import pytest
from tailrace_flows.core import sketch
from tailrace_flows.core.grid import CODE_BIAS, Bands, Grid, Run
from tailrace_flows.core.series import DISTRIBUTION, GAUGE
from tailrace_flows.core.window import Window, count_sorted

SCALE = 6

VALUES = {
    "within the bands": lambda rng, n: rng.lognormal(-3, 0.3, n),
    "heavy tail": lambda rng, n: rng.pareto(1.1, n) * 1e-3,
    "around zero": lambda rng, n: rng.normal(0, 1, n),
    "two far modes": lambda rng, n: np.where(rng.random(n) < 0.5, 1e-9, 1e9) * rng.uniform(1, 1.01, n),
    "constant": lambda rng, n: np.full(n, 0.1),
    "smallest and greatest": lambda rng, n: rng.choice([5e-324, 1.7e308, -1.7e308, 0.0], n),
}


def sorted_run(slots: np.ndarray, values: np.ndarray) -> Run:
    keys = (slots.astype(np.int64) << sketch.CODE_BITS) + sketch.codes_of(values, SCALE) + CODE_BIAS
    return count_sorted(np.sort(keys))


def equal(one: Run, other: Run) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", VALUES)
def test_windows_that_share_bands_have_the_sketch_of_their_samples_while_series_come(name: str) -> None:
    rng = np.random.default_rng(len(name))
    bands = Bands(SCALE)
    for known in (3, 3, 50, 50):  # of each window: after the second one most slots are new
        window = Window(SCALE, bands=bands)
        taken = []
        for _ in range(4):
            slots, values = rng.integers(0, known, 2_000).astype(np.int32), VALUES[name](rng, 2_000)
            # Every slot has its own place on the scale, so one band for all would not do.
            values = values * np.where(np.abs(values) < 1e300, 3.0 ** slots.clip(0, 20), 1)
            taken.append((slots, values))
            window.add(slots, None, values, np.full(known, DISTRIBUTION, np.int8))
            window.fold(np.full(known, DISTRIBUTION, np.int8))
        restored = pickle.loads(pickle.dumps(window))
        expected = sorted_run(*(np.concatenate(column) for column in zip(*taken, strict=True)))
        assert equal(window.sketch(), expected)
        assert equal(restored.sketch(), expected)
    assert bands.known == 50


def test_a_band_moves_after_its_series_and_a_steady_one_stays() -> None:
    bands, kinds = Bands(SCALE), np.full(2, DISTRIBUTION, np.int8)
    slots = np.tile(np.array([0, 1], np.int32), 500)

    def window_of(*medians: float) -> tuple[int, int]:
        """How many samples were sorted, and where the second series' band then begins."""
        values = np.random.default_rng(1).lognormal(0, 0.2, 1_000) * np.tile(medians, 500)
        window = Window(SCALE, bands=bands)
        window.add(slots, None, values, kinds)
        window.fold(kinds)
        sorted_samples = window.outside
        window.sketch()
        return sorted_samples, int(bands.lowest[1])

    first = window_of(1, 1)
    assert first[0] == 1_000  # nothing was known
    assert window_of(1, 1) == (0, first[1])
    assert window_of(1, 1000)[0] == 500
    assert window_of(1, 1000)[0] == 0
    assert window_of(1, 1000)[1] > first[1]


def test_bands_are_not_placed_after_a_first_sample_or_two() -> None:
    bands, kinds = Bands(SCALE), np.full(10, DISTRIBUTION, np.int8)
    window = Window(SCALE, bands=bands)
    rng = np.random.default_rng(1)
    for samples, known in ((10, 0), (1_000, 10)):
        window.add(np.arange(samples, dtype=np.int32) % 10, None, rng.lognormal(0, 0.3, samples), kinds)
        window.fold(kinds)
        assert bands.known == known


def test_bands_follow_slots_that_close_ranks() -> None:
    bands = Bands(SCALE)
    bands.learn(sorted_run(np.array([0, 1, 2]), np.array([1.0, 1e3, 1e6])))
    second = bands.lowest[2]
    bands.keep(np.array([True, False, True, False]))
    assert bands.known == 2
    assert bands.lowest[1] == second


def test_a_grid_counts_what_its_bands_hold_and_names_the_rest() -> None:
    bands = Bands(SCALE)
    bands.learn(sorted_run(np.array([0, 2]), np.array([1.0, 1.0])))
    grid = Grid(bands)
    slots = np.array([0, 0, 1, 2, 3])
    values = np.array([1.0, 1e6, 1.0, 1.1, 1.0])
    outside = grid.add(slots, sketch.codes_of(values, SCALE), size=4)
    assert outside is not None
    assert outside.tolist() == [1, 2, 4]  # far away, no band, a slot that came later
    assert equal(grid.run(), sorted_run(slots[[0, 3]], values[[0, 3]]))


def test_only_distributions_take_memory_for_bands() -> None:
    rng = np.random.default_rng(3)
    kinds = np.where(np.arange(100) % 10 == 0, DISTRIBUTION, GAUGE).astype(np.int8)
    bands = Bands(SCALE)
    for _ in range(2):
        window = Window(SCALE, bands=bands)
        window.add(
            rng.integers(0, 100, 20_000).astype(np.int32), np.arange(20_000), rng.lognormal(0, 0.3, 20_000), kinds
        )
        window.fold(kinds)
    assert bands.known == 10
    assert window.grid is not None
