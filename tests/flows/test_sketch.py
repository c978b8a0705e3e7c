"""The sketch against exact arithmetic: the bucket of a value, merges of buckets, the error of quantiles."""

from fractions import Fraction
from math import inf, isclose, nextafter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tailrace_flows.core import sketch
from tailrace_flows.core.grid import CODE_BIAS, CODE_MASK
from tailrace_flows.core.window import MAX_RUNS, Window, count_sorted, fitting, merge_runs

from tests.flows.oracle import exact_code, nearest_rank

SCALES = range(sketch.MAX_SCALE + 1)
LARGEST = 1.7976931348623157e308
QS = [Fraction(n, 1000) for n in (0, 1, 10, 100, 250, 500, 750, 900, 950, 990, 999, 1000)]

finite = st.floats(allow_nan=False, allow_infinity=False)


def code(value: float, scale: int) -> int:
    return int(sketch.codes_of(np.array([value]), scale)[0])


def upper_edge(bucket: int, scale: int) -> float:
    """The largest float in OpenTelemetry's `bucket`, by bisection with exact powers."""
    octave, step = divmod(bucket + 1, 1 << scale)
    low = 2.0 ** (step / (1 << scale)) * (1 - 1e-12) * 2.0 ** (octave - 1) * 2
    high = min(low * (1 + 2e-12), LARGEST)
    while nextafter(low, inf) < high:
        middle = low + (high - low) / 2
        if exact_code(middle, scale) <= bucket + (1024 << scale):
            low = middle
        else:
            high = middle
    return high if exact_code(high, scale) <= bucket + (1024 << scale) else low


# -- codes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", SCALES)
def test_every_power_of_two_and_its_neighbours_get_their_exact_codes(scale: int) -> None:
    per_octave = 1 << scale
    for exponent in range(-1022, 1024):
        power = 2.0**exponent
        code_of_power = (exponent + 1024) * per_octave - 1
        below = code_of_power if exponent > -1022 else 2 * per_octave - 1  # subnormals are the smallest normal
        values = np.array([nextafter(power, 0), power, nextafter(power, inf)])
        assert sketch.codes_of(values, scale).tolist() == [below, code_of_power, code_of_power + 1], exponent


@pytest.mark.parametrize("scale", SCALES)
def test_values_at_the_edge_of_a_bucket_get_their_exact_codes(scale: int) -> None:
    per_octave = 1 << scale
    for octave in (-1022, -501, -1, 0, 3, 52, 1023):
        for step in range(0, per_octave, max(1, per_octave // 16)):
            bucket = octave * per_octave + step
            edge = upper_edge(bucket, scale)
            own = bucket + 1024 * per_octave
            assert code(edge, scale) == own
            if edge < LARGEST:
                assert code(nextafter(edge, inf), scale) == own + 1


@given(finite, st.sampled_from(SCALES))
@example(5e-324, 6)
@example(-5e-324, 0)
@example(LARGEST, 8)
@example(-LARGEST, 0)
@example(-0.0, 3)
def test_the_code_of_any_value_is_exact(value: float, scale: int) -> None:
    assert code(value, scale) == exact_code(value, scale)
    assert code(-value, scale) == -exact_code(value, scale)


@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from(SCALES))
def test_codes_keep_the_order_of_values_and_do_not_depend_on_company(values: list[float], scale: int) -> None:
    codes = sketch.codes_of(np.array(sorted(values)), scale)
    assert (np.diff(codes) >= 0).all()
    assert codes.tolist() == [code(v, scale) for v in sorted(values)]


@given(st.lists(finite, max_size=20), st.sampled_from(SCALES), st.integers(0, sketch.MAX_SCALE))
def test_downscaling_gives_the_codes_of_the_coarser_scale(values: list[float], scale: int, by: int) -> None:
    by = min(by, scale)
    coarser = sketch.downscale(sketch.codes_of(np.array(values), scale), by)
    assert coarser.tolist() == [exact_code(v, scale - by) for v in values]


@pytest.mark.parametrize("scale", SCALES)
def test_every_code_fits_its_bits_and_its_value_lies_in_its_bucket(scale: int) -> None:
    codes = np.arange(-(2048 << scale) + 1, 2048 << scale, 1 if scale < 4 else 13)
    biased = codes + CODE_BIAS
    assert (biased >= 0).all()
    assert (biased <= CODE_MASK).all()
    values = sketch.values_of(codes, scale)
    assert np.isfinite(values).all()
    real = (np.abs(codes) >= 2 << scale) | (codes == 0)  # codes below stand for subnormals alone
    assert (sketch.codes_of(values[real], scale) == codes[real]).all()


# -- merging ---------------------------------------------------------------------------------------------

runs = st.dictionaries(st.integers(-50, 50), st.integers(1, 5), max_size=10).map(
    lambda counts: (np.array(sorted(counts), np.int64), np.array([counts[k] for k in sorted(counts)], np.int64))
)


def as_dict(run: tuple[np.ndarray, np.ndarray]) -> dict[int, int]:
    keys, counts = run
    assert (np.diff(keys) > 0).all()
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


@given(runs, runs, runs)
def test_merging_is_associative_and_commutative_and_adds_up(a, b, c) -> None:
    both = as_dict(merge_runs([a, merge_runs([b, c])]))
    assert both == as_dict(merge_runs([merge_runs([c, a]), b])) == as_dict(merge_runs([b, a, c]))
    keys = {k for run in (a, b, c) for k in as_dict(run)}
    assert both == {k: sum(as_dict(run).get(k, 0) for run in (a, b, c)) for k in keys}


def test_merging_nothing_gives_nothing() -> None:
    empty = np.empty(0, np.int64), np.empty(0, np.int64)
    for several in ([], [empty], [empty, empty, empty]):
        assert as_dict(merge_runs(several)) == {}


@pytest.mark.parametrize("folds", [1, MAX_RUNS, MAX_RUNS + 1, 3 * MAX_RUNS])
def test_a_window_s_sketch_is_the_same_however_often_it_was_folded(folds: int) -> None:
    rng = np.random.default_rng(folds)
    values = rng.normal(0, 10, 600)
    slots = rng.integers(0, 3, 600).astype(np.int32)
    kinds = np.zeros(3, np.int8)
    window = Window(6)
    for part in np.array_split(np.arange(600), folds):
        window.add(slots[part], np.zeros(part.size, np.int64), values[part], kinds)
        window.fold(kinds)
    keys = (slots.astype(np.int64) << sketch.CODE_BITS) + sketch.codes_of(values, 6) + CODE_BIAS
    assert as_dict(window.sketch()) == as_dict(count_sorted(np.sort(keys)))


# -- quantiles -------------------------------------------------------------------------------------------


def sketched(values: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    return count_sorted(np.sort(sketch.codes_of(values, scale)))


def check_quantiles(values: np.ndarray, run: tuple[np.ndarray, np.ndarray], scale: int) -> None:
    low, high = float(values.min()), float(values.max())
    found = sketch.quantiles(*run, scale, np.array([float(q) for q in QS]), low, high)
    error = sketch.relative_error(scale) * (1 + 1e-9)
    for q, estimate in zip(QS, found.tolist(), strict=True):
        exact = nearest_rank(values.tolist(), q)
        assert abs(estimate - exact) <= error * abs(exact), (float(q), estimate, exact)
    assert (found[0], found[-1]) == (low, high)
    assert (np.diff(found) >= 0).all()


DISTRIBUTIONS = {
    "exponential": lambda rng, n: rng.exponential(0.2, n),
    "lognormal": lambda rng, n: rng.lognormal(-3, 2, n),
    "pareto": lambda rng, n: rng.pareto(1.1, n) * 1e-3,
    "normal around zero": lambda rng, n: rng.normal(0, 1, n),
    "negative": lambda rng, n: -rng.lognormal(0, 1, n),
    "constant": lambda rng, n: np.full(n, 0.1),
    "integers with zeros": lambda rng, n: rng.integers(-3, 4, n).astype(float),
    "two far modes": lambda rng, n: np.where(rng.random(n) < 0.5, 1e-9, 1e9) * rng.uniform(1, 1.01, n),
    "all magnitudes": lambda rng, n: 2.0 ** rng.uniform(-1022, 1023, n),
}


@pytest.mark.parametrize("scale", [0, 3, 6, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_within_the_stated_error_of_the_sample_of_nearest_rank(name: str, size: int, scale: int) -> None:
    values = DISTRIBUTIONS[name](np.random.default_rng([size, scale]), size)
    check_quantiles(values, sketched(values, scale), scale)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_merged_sketches_of_different_scales_keep_the_coarsest_one_s_error(name: str) -> None:
    parts = [DISTRIBUTIONS[name](np.random.default_rng(seed), 200) for seed in range(3)]
    merged = merge_runs(
        [
            merge_runs([(sketch.downscale(codes, by)[i : i + 1], counts[i : i + 1]) for i in range(codes.size)])
            for by, part in zip((5, 2, 0), parts, strict=True)
            for codes, counts in [sketched(part, 3 + by)]
        ]
    )
    check_quantiles(np.concatenate(parts), merged, 3)


@given(st.lists(st.floats(-1e300, 1e300, allow_subnormal=False), min_size=1, max_size=30), st.sampled_from(SCALES))
def test_quantiles_of_any_few_values_are_within_the_stated_error(values: list[float], scale: int) -> None:
    check_quantiles(np.array(values), sketched(np.array(values), scale), scale)


def of_any_exponent(size: int) -> np.ndarray:
    values = np.random.default_rng(size).integers(0, 2**64, size, np.uint64).view(np.float64)
    return values[np.isfinite(values)]


@pytest.mark.parametrize("scale", SCALES)
def test_buckets_that_are_too_many_are_written_at_the_finest_scale_that_fits_with_its_error(scale: int) -> None:
    values = of_any_exponent(100_000)
    codes, counts = sketched(values, scale)
    (keys, fitted), coarser = fitting((codes + CODE_BIAS, counts), scale)
    of_scale = {by: sketched(values, scale - by) for by in range(scale + 1)}
    assert coarser == max(scale - by for by, (found, _) in of_scale.items() if found.size <= sketch.MAX_BUCKETS)
    run = keys - CODE_BIAS, fitted
    assert as_dict(run) == as_dict(of_scale[scale - coarser])
    check_quantiles(values, run, coarser)


@pytest.mark.parametrize(("scale", "octaves"), [(6, 256), (8, 64)])
def test_the_scale_is_kept_over_as_many_octaves_as_are_stated(scale: int, octaves: int) -> None:
    every = (512 << scale) + np.arange((octaves << scale) + 1)
    for many, expected in ((every[:-1], scale), (every, scale - 1)):
        assert fitting((many + CODE_BIAS, np.ones(many.size, np.int64)), scale)[1] == expected


def test_a_rank_is_not_moved_by_the_rounding_of_its_product() -> None:
    values = np.arange(1.0, 101.0)
    run = sketched(values, 8)
    for percent in range(1, 101):  # 0.07 * 100 is 7.000000000000001
        (found,) = sketch.quantiles(*run, 8, np.array([percent / 100]), 1.0, 100.0)
        assert isclose(found, percent, rel_tol=sketch.relative_error(8) * 1.001)


def test_an_empty_sketch_and_a_q_outside_0_to_1_are_refused() -> None:
    empty = np.empty(0, np.int64)
    with pytest.raises(ValueError, match="empty"):
        sketch.quantiles(empty, empty, 6, np.array([0.5]), 0.0, 0.0)
    for q in (-0.01, 1.01, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            sketch.quantiles(np.array([1]), np.array([1]), 6, np.array([0.5, q]), 0.0, 0.0)
