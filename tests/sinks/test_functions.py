"""The SQL functions over sketches, against numpy and the flow's own sketch."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tailrace_flows.core import sketch

from tests.sinks.storage import Storage, distribution, nearest_rank

QS = (0.0, 0.001, 0.07, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
ROW = "Tuple(Array(Int32), Array(UInt64), Nullable(Int8), Float64, Float64)"
TINY = float(np.finfo(np.float64).tiny)

values = st.one_of(
    st.floats(-1e300, 1e300).filter(lambda value: value == 0 or abs(value) >= 1e-300),
    st.floats(0.001, 10.0),
    st.integers(-5, 5).map(float),
)
sketches = st.lists(st.tuples(st.lists(values, min_size=1, max_size=30), st.integers(0, 8)), min_size=1, max_size=6)
checked = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ask_over(storage: Storage, expressions: list[str], rows: list[dict[str, Any]]) -> tuple[Any, ...]:
    """Expressions over rows that need no table."""
    data = [(r["bucket_index"], r["bucket_count"], r["scale"], r["min"], r["max"]) for r in rows]
    [answer] = storage.ask(
        f"""SELECT {", ".join(expressions)} FROM (
            SELECT r.1 AS bucket_index, r.2 AS bucket_count, r.3 AS scale, r.4 AS min, r.5 AS max
            FROM (SELECT arrayJoin({{rows:Array({ROW})}}) AS r))""",
        rows=data,
    )
    return answer


@checked
@given(parts=sketches)
@example(parts=[([0.0], 6)])
@example(parts=[([-1.0, 0.0, 1.0], 8), ([-1.0, 0.0, 1.0], 0)])
@example(parts=[([1.7976931348623157e308, -1.7976931348623157e308, 1e-300], 0)])
def test_quantile_merges_any_scales(functions: Storage, parts: list[tuple[list[float], int]]) -> None:
    """Exactly what merging at the coarsest scale gives, and within its error of the sample of that rank."""
    answers = ask_over(
        functions,
        [f"tailrace_quantile({q}, bucket_index, bucket_count, scale)" for q in QS],
        [distribution(samples, scale=scale) for samples, scale in parts],
    )
    scale = min(scale for _, scale in parts)
    merged = np.concatenate(
        [sketch.downscale(sketch.codes_of(np.array(samples), own), own - scale) for samples, own in parts]
    )
    everything = [sample for samples, _ in parts for sample in samples]
    for q, answer in zip(QS, answers, strict=True):
        [expected] = sketch.values_of(np.array([nearest_rank(merged.astype(float), q)]), scale)
        assert answer == pytest.approx(expected, rel=1e-12)
        truth = nearest_rank(everything, q)
        assert abs(answer - truth) <= abs(truth) * sketch.relative_error(scale) * (1 + 1e-9)


@checked
@given(samples=st.lists(values, min_size=1, max_size=50), scale=st.integers(0, 8))
def test_quantile_of_a_row_is_that_of_the_flow(functions: Storage, samples: list[float], scale: int) -> None:
    row = distribution(samples, scale=scale)
    answers = ask_over(
        functions,
        [f"tailrace_quantile_row({q}, bucket_index, bucket_count, scale, min, max)" for q in QS],
        [row],
    )
    codes, counts = np.array(row["bucket_index"]), np.array(row["bucket_count"])
    expected = sketch.quantiles(codes, counts, scale, np.array(QS), row["min"], row["max"])
    assert answers == pytest.approx(expected, rel=1e-12)
    assert answers[0] == row["min"]
    assert answers[-1] == row["max"]


@checked
@given(parts=sketches, x=values)
def test_fraction_below_is_right_to_a_bucket(
    functions: Storage, parts: list[tuple[list[float], int]], x: float
) -> None:
    [answer] = ask_over(
        functions,
        [f"tailrace_fraction_below({x!r}, bucket_index, bucket_count, scale)"],
        [distribution(samples, scale=scale) for samples, scale in parts],
    )
    total = sum(len(samples) for samples, _ in parts)
    at_most = sum(np.count_nonzero(np.array(samples) <= x) for samples, _ in parts)
    in_x_s_bucket = 0
    for samples, scale in parts:
        code = sketch.codes_of(np.array([x]), scale)
        # Its neighbours too: a logarithm may fall on either side of an edge that is no power of two.
        in_x_s_bucket += np.count_nonzero(np.abs(sketch.codes_of(np.array(samples), scale) - code) <= 1)
    assert at_most / total - 1e-12 <= answer + in_x_s_bucket / total
    assert answer <= (at_most + in_x_s_bucket) / total + 1e-12


def test_fraction_below_is_exact_at_powers_of_two(functions: Storage) -> None:
    samples = [0.125, 0.25, 0.2500001, 0.5, 1.0, -0.25, 0.0, 3.0]
    for x in (0.25, 0.5, 1.0, 2.0, 0.0):
        [answer] = ask_over(
            functions,
            [f"tailrace_fraction_below({x}, bucket_index, bucket_count, scale)"],
            [distribution(samples, scale=scale) for scale in (8, 6, 0)],
        )
        assert answer == np.mean(np.array(samples) <= x)


@pytest.mark.parametrize("scale", [0, 3, 6, 8])
def test_codes_and_edges_are_those_of_the_flow(functions: Storage, scale: int) -> None:
    samples = np.random.default_rng(scale).lognormal(0, 20, 500)
    samples = np.concatenate([samples, -samples, [0.0, 1.0, -1.0, 0.25, 5e-324, TINY, -TINY, 1.7976931348623157e308]])
    codes = sketch.codes_of(samples, scale)
    rows = functions.ask(
        """SELECT tailrace_bucket_code(v, s), tailrace_bucket_value(c, s), tailrace_bucket_upper(c, s)
        FROM (
            SELECT {scale:Int8} AS s, arrayJoin(arrayZip({values:Array(Float64)}, {codes:Array(Int32)})) AS pair,
                   pair.1 AS v, pair.2 AS c
        )""",
        scale=scale,
        values=samples.tolist(),
        codes=codes.tolist(),
    )
    found, middles, uppers = map(np.array, zip(*rows, strict=True))
    assert np.array_equal(found, codes)
    assert middles == pytest.approx(sketch.values_of(codes, scale), rel=1e-12)
    assert (samples <= uppers * (1 + np.sign(uppers) * 1e-12)).all()
    normal = np.abs(samples) > TINY
    assert (middles[normal] <= uppers[normal]).all()
    assert np.array_equal(uppers[codes == 0], [0.0])


def test_infinite_thresholds(functions: Storage) -> None:
    rows = [distribution([-1e300, 0.0, 1e308])]
    answers = ask_over(
        functions, [f"tailrace_fraction_below({x}, bucket_index, bucket_count, scale)" for x in ("inf", "-inf")], rows
    )
    assert answers == (1.0, 0.0)


def test_without_samples_there_is_no_answer(functions: Storage) -> None:
    arguments = "bucket_index, bucket_count, scale"
    for view in ("windows", "windows_1m", "windows_1h", "windows_1d"):
        assert functions.ask(
            f"SELECT tailrace_quantile(0.5, {arguments}), tailrace_fraction_below(1, {arguments}) FROM {view}"
        ) == [(None, None)]
        assert functions.ask(f"SELECT service, tailrace_quantile(0.5, {arguments}) FROM {view} GROUP BY service") == []


def test_rows_without_sketches_count_nothing(functions: Storage) -> None:
    gauge = {"bucket_index": [], "bucket_count": [], "scale": None, "min": 1.0, "max": 2.0}
    quantile = "tailrace_quantile(0.5, bucket_index, bucket_count, scale)"
    of_row = "any(tailrace_quantile_row(0.5, bucket_index, bucket_count, scale, min, max))"
    assert ask_over(functions, [quantile, of_row], [gauge]) == (None, None)
    one = distribution([3.0], scale=8)
    assert ask_over(functions, [quantile], [gauge, one, gauge])[0] == pytest.approx(3.0, rel=sketch.relative_error(8))


def test_quantile_takes_expressions_and_parameters(functions: Storage) -> None:
    rows = [distribution(range(1, 101))]
    answers = ask_over(functions, ["tailrace_quantile(1 - 1 / 4, bucket_index, bucket_count, scale)"], rows)
    assert answers[0] == pytest.approx(75, rel=sketch.relative_error(6))
    [(answer,)] = functions.ask(
        "SELECT tailrace_quantile({q:Float64}, [1, 2]::Array(Int32), [1, 1]::Array(UInt64), 6)", q=0.5
    )
    assert answer > 0


def test_large_counts(functions: Storage) -> None:
    row = {"bucket_index": [65_000, 65_001], "bucket_count": [2**40, 2**40], "scale": 6, "min": 0.0, "max": 1.0}
    quantile = "tailrace_quantile({}, bucket_index, bucket_count, scale)"
    low, high = ask_over(functions, [quantile.format(0.5), quantile.format(0.5000001)], [row] * 1000)
    assert low < high
    assert math.isclose(high / low, 2 ** (1 / 64))
