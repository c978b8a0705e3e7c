"""Published results, computed by others, that the core must reproduce.

Quantiles here are those of nearest rank (Hyndman-Fan type 1, numpy's `inverted_cdf`), estimated by a sketch with a
stated relative error; definitions that interpolate are not ours, and where a set has only those, its test says so.
"""

import csv
import gzip
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from math import inf, isclose, isfinite, isnan
from random import Random
from typing import Any

import numpy as np
import pytest
from tailrace_flows.core import sketch
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.rates import increase, rate
from tailrace_flows.core.window import merge_runs
from tailrace_flows.core.windows import sliding, tumbling
from tailrace_schemas.samples import Series

from tests.data import data_file, reference
from tests.flows.machine import Machine, S
from tests.flows.oracle import Batch, nearest_rank

SERVICE = "reference"


def log_of(samples: Iterable[tuple[Series, int, float]], *, batch: int = 1000) -> list[Batch]:
    """Batches of (series, time_us, value)."""
    every = list(samples)
    table = tuple(dict.fromkeys(series for series, _, _ in every))
    row_of = {series: row for row, series in enumerate(table)}
    rows = [(row_of[series], time_us, value) for series, time_us, value in every]
    newest_us = max((time_us for _, time_us, _ in rows), default=0)
    return [
        Batch(SERVICE, "", "p", at // batch, table, tuple(rows[at : at + batch]), newest_us)
        for at in range(0, len(rows), batch)
    ]


def stored(samples: Iterable[tuple[Series, int, float]], config: WindowConfig) -> tuple[list[dict[str, Any]], Machine]:
    """The rows that the flow stores for (series, time_us, value), and how; `seconds` is each one's resolution."""
    machine = Machine([log_of(samples)], config)
    machine.finish()
    return [{**row, "seconds": key.seconds, "start": key.start_s} for key, row in machine.rows.items()], machine


def quantile(rows: list[dict[str, Any]], q: float) -> float:
    """Of the samples of several rows, as the SQL function merges them."""
    runs = [(np.array(row["bucket_index"], np.int64), np.array(row["bucket_count"], np.int64)) for row in rows]
    codes, counts = merge_runs(runs) if runs else (np.empty(0, np.int64),) * 2
    low, high = min((row["min"] for row in rows), default=inf), max((row["max"] for row in rows), default=-inf)
    (scale,) = {row["scale"] for row in rows} or {sketch.DEFAULT_SCALE}
    return float(sketch.quantiles(codes, counts, scale, np.array([q]), low, high)[0])


def table_of(name: str) -> list[dict[str, str]]:
    with gzip.open(data_file(name), "rt") as file:
        return list(csv.DictReader(file))


# -- windows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", reference("window_assignment"))
def test_a_time_belongs_to_the_windows_of_flink(case: dict[str, Any]) -> None:
    size, offset, time = case["size_ms"], case["offset_ms"], case["t_ms"]
    if case["kind"] == "tumbling":
        found = [tumbling(time, size, offset)]
    else:
        assert case["kind"] == "sliding"
        found = sliding(time, size, case["slide_ms"], offset)
    assert sorted(found) == sorted(tuple(window) for window in case["windows"])


def test_a_window_without_a_length_is_refused() -> None:
    for size, slide in ((0, 1), (1, 0), (-5, 5)):
        with pytest.raises(ValueError, match="both must be positive"):
            sliding(0, size, slide)
    with pytest.raises(ValueError, match="it must be positive"):
        tumbling(0, 0)


# -- quantiles of real data ------------------------------------------------------------------------------

LATENCY = Series("latency", "distribution", "us")


def latency_samples(case: dict[str, Any]) -> list[tuple[Series, int, float]]:
    if case["id"] == "ycsb_10s":
        return [
            (LATENCY, round(float(row["interval_start_s"]) * S), float(row["value_lowest"]))
            for row in table_of(case["file"])
            for _ in range(int(row["count"]))
        ]
    roots = case["id"] == "nezha_root_spans_60s"
    assert roots or case["id"] == "nezha_all_spans_10s"
    return [
        (LATENCY, int(row["end_unix_ns"]) // 1000, float(row["duration_us"]))
        for name in case["file"]
        for row in table_of(name)
        if not roots or row["parent_id"] == "root"
    ]


@pytest.mark.parametrize("case", reference("window_percentiles"))
def test_windows_of_real_latencies_are_exact_but_for_the_sketch_s_error(case: dict[str, Any]) -> None:
    # Spans come in the order of their traces, minutes apart: the lateness takes them all.
    config = WindowConfig(lateness_s=3600)
    samples = latency_samples(case)
    rows, machine = stored(samples, config)
    assert not machine.letters
    by_start = {row["start"]: row for row in rows if row["seconds"] == case["window_s"]}
    error = sketch.relative_error(config.scale)
    for window in case["windows"]:
        row = by_start.pop(window["window_start"])
        assert (row["count"], row["min"], row["max"]) == (window["n"], window["min"], window["max"])
        assert isclose(row["sum"] / row["count"], window["mean"], rel_tol=1e-9)
        columns = zip(case["quantiles"], window["bracket"], window["nearest_rank"], strict=True)
        for q, (low, high), exact in columns:
            found = quantile([row], q)
            assert low * (1 - error) <= found <= high * (1 + error), (window["window_start"], q)
            assert isclose(found, exact, rel_tol=error * (1 + 1e-9)), (window["window_start"], q)
    assert not by_start


@pytest.mark.parametrize("case", reference("window_percentiles"))
def test_the_oracle_s_nearest_rank_is_that_of_numpy(case: dict[str, Any]) -> None:
    values = defaultdict(list)
    for _, time_us, value in latency_samples(case):
        values[time_us // (case["window_s"] * S) * case["window_s"]].append(value)
    for window in case["windows"]:
        found = [nearest_rank(values[window["window_start"]], Fraction(str(q))) for q in case["quantiles"]]
        assert found == window["nearest_rank"]


@pytest.mark.parametrize("hold", [True, False], ids=["replay", "snapshot"])
def test_real_spans_shuffled_repeated_and_restarted_give_the_same_windows(hold: bool) -> None:
    rows = table_of("latency/nezha_traces/2022-08-22_03_53.csv.gz")[:6000]
    samples = [
        (Series("duration", "distribution", "us", (("pod", row["pod"]),)), int(row["end_unix_ns"]) // 1000, value)
        for row in rows
        for value in [float(row["duration_us"])]
    ]
    config = WindowConfig(lateness_s=3600)
    log = log_of(samples, batch=100)
    random = Random(53)
    mixed = random.sample(log + log[::3], len(log) + len(log[::3]))
    tidy = Machine([log], config)
    tidy.finish()
    machine = Machine([mixed], config, hold=hold)
    for seed in range(12):
        machine.poll(0, random.randint(1, 20))
        machine.wait(random.choice([0.1, 1.5]))
        random.choice([machine.commit, machine.drain, lambda seed=seed: machine.crash(seed)])()
    machine.finish(50)
    assert machine.crashes
    assert machine.rows.keys() == tidy.rows.keys()
    for key, row in machine.rows.items():
        assert row == {**tidy.rows[key], "sum": pytest.approx(tidy.rows[key]["sum"], rel=1e-9)}


def test_the_set_of_quantile_definitions_has_none_of_ours() -> None:
    cases = [parameter.values[0] for parameter in reference("quantile_definitions")]
    if cases == [{}]:
        pytest.skip("no reference/quantile_definitions.json")
    assert {case["kind"] for case in cases} == {
        "NIST / commons-math legacy (type 6, clamped)",
        "exclusive (type 6, extrapolating; PERCENTILE.EXC)",
        "inclusive (type 7, numpy default, PERCENTILE.INC)",
    }


@pytest.mark.parametrize("case", reference("hdr_log_percentiles"))
def test_recorded_histograms_give_their_counts_and_percentiles(case: dict[str, Any]) -> None:
    begin_s, end_s = case["range_s_from_start"] or (-inf, inf)
    rows = [
        row
        for row in table_of(f"latency/hdr/{case['dataset']}.csv.gz")
        if begin_s <= round(float(row["interval_start_s"]) - case["log_start_s"], 6) < end_s
    ]
    assert len({row["interval_start_s"] for row in rows}) == case["intervals"]
    values = [float(row["value_lowest"]) for row in rows for _ in range(int(row["count"]))]
    times = [round(float(row["interval_start_s"]) * S) for row in rows for _ in range(int(row["count"]))]
    samples = [(LATENCY, time_us, value) for time_us, value in zip(times, values, strict=True)]
    windows = [row for row in stored(samples, WindowConfig(lateness_s=3600))[0] if row["seconds"] == 10]
    assert sum(row["count"] for row in windows) == case["total_count"]
    assert case["max"] * 0.999 <= max(row["max"] for row in windows) <= case["max"]
    # The rule asks for 0.1 %, from below: the sample of nearest rank keeps it, and the sketch its error around that.
    exact = nearest_rank(values, Fraction(999, 1000))
    assert case["p999"] * 0.999 <= exact <= case["p999"]
    assert isclose(quantile(windows, 0.999), exact, rel_tol=sketch.relative_error(6) * (1 + 1e-9))


# -- the sketch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", reference("otel_exponential_index"))
def test_values_are_in_opentelemetry_s_buckets(case: dict[str, Any]) -> None:
    value = np.array([float.fromhex(case["value_hex"])])
    for scale in range(max(case["scale"], 0), sketch.MAX_SCALE + 1):
        code = sketch.downscale(sketch.codes_of(value, scale), scale - case["scale"])
        assert code.tolist() == [case["index"] + Fraction(1024) * Fraction(2) ** case["scale"]]


NO_OBSERVATIONS = {"histograms:1033": "its counts fall as `le` rises: no observations give such a histogram"}
HISTOGRAMS = [
    parameter
    for parameter in reference("promql_histogram")
    # Which fraction lies below a value (histogram_fraction) is not a question to this core.
    if parameter.values[0].get("function") != "histogram_fraction" and parameter.id not in NO_OBSERVATIONS
]


@pytest.mark.parametrize("case", HISTOGRAMS)
def test_quantiles_fall_into_the_bucket_that_prometheus_finds(case: dict[str, Any]) -> None:
    """Prometheus knows how many observations are in each classic bucket, and interpolates; we keep a sketch of them.

    So observations are put into the middle of their buckets: our quantile must then come from the same one. Where
    Prometheus answers with an edge, the buckets on both sides of it are right. A q that is no fraction, and a histogram
    without observations, for which it answers NaN or an infinity, are errors here.
    """
    assert case["function"] == "histogram_quantile"
    (q,) = (float(parameter) for parameter in case["params"])
    for expected in case["expected"]:
        counts: dict[float, float] = defaultdict(float)
        for series in case["series"]:
            if expected["labels"].items() <= series["labels"].items():
                counts[float(series["labels"]["le"])] += observed(series["samples"], case)
        edges = sorted(counts)
        buckets = list(zip([-inf, *edges], edges, strict=False))
        rows = stored(observations(counts, buckets), WindowConfig())[0]
        rows = [row for row in rows if row["seconds"] == 10]
        wanted = float(expected["value"])
        if not 0 <= q <= 1 or isnan(wanted):
            with pytest.raises(ValueError, match="an empty sketch" if 0 <= q <= 1 else "from 0 to 1"):
                quantile(rows, q)
        else:
            found = quantile(rows, q)
            assert any(low <= wanted <= high and low < found <= high for low, high in buckets)


def observed(samples: list[tuple[float, float]], case: dict[str, Any]) -> float:
    """How many observations a bucket's counter shows: at the time, or as an increase over the range."""
    inside = in_range(samples, case, case["range_s"] or 300)
    return inside[-1][1] - (inside[0][1] if case["range_s"] else 0)


def observations(counts: dict[float, float], buckets: list[tuple[float, float]]) -> list[tuple[Series, int, float]]:
    """That many in the middle of each bucket (low, high], as a series each, within half a minute."""
    found = []
    before = 0.0
    for low, high in buckets:
        value = (low + high) / 2
        if not isfinite(value):
            value = (min(high * 1.5, high / 2) or -1.0) if low == -inf else (max(low * 1.5, low / 2) or 1.0)
        series = Series("m", "distribution", "", (("le", str(high)),))
        found += [(series, S * (1 + number % 30), value) for number in range(round(counts[high] - before))]
        before = counts[high]
    return found


# -- ranges ----------------------------------------------------------------------------------------------


def reference_time(case: dict[str, Any]) -> float:
    at_s = case["eval_time_s"] if case["at_s"] is None else case["at_s"]
    return float(at_s - case["offset_s"])


def in_range(samples: list[Any], case: dict[str, Any], range_s: float) -> list[tuple[float, float]]:
    """(time, value) of the samples in (end - range, end], without stale markers."""
    end_s = reference_time(case)
    return [(time, float(v)) for time, v in samples if v != "stale" and end_s - range_s < time <= end_s]


def test_the_functions_of_the_range_sets_are_known() -> None:
    found = {
        name: {parameter.values[0].get("function") for parameter in reference(name)}
        for name in ("promql_rate_increase", "promql_over_time")
    }
    if None in found["promql_rate_increase"]:
        pytest.skip("no reference/promql_rate_increase.json")
    assert found["promql_rate_increase"] == {
        "changes", "delta", "idelta", "increase", "irate", "rate", "resets",
    }  # fmt: skip
    # There is no last_over_time in it; `last` is checked beside the others.
    assert found["promql_over_time"] == {
        *(f"{name}_over_time" for name in ("avg", "count", "mad", "max", "min", "quantile", "stddev", "stdvar", "sum"))
    }


RATES = [
    parameter
    for parameter in reference("promql_rate_increase")
    if parameter.values[0].get("function", "rate") in ("rate", "increase")
]


@pytest.mark.parametrize("case", RATES)
def test_rates_are_those_of_prometheus(case: dict[str, Any]) -> None:
    end_s = reference_time(case)
    start_s = end_s - case["range_s"]
    function = {"rate": rate, "increase": increase}[case["function"]]
    found = {}
    for series in case["series"]:
        value = function(in_range(series["samples"], case, case["range_s"]), start_s, end_s)
        if value is not None:
            found[tuple(sorted(series["labels"].items()))] = value
    expected = {tuple(sorted(one["labels"].items())): float(one["value"]) for one in case["expected"]}
    assert found == pytest.approx(expected, rel=1e-6)


def test_points_at_one_time_have_no_rate() -> None:
    assert increase([(5.0, 1.0), (5.0, 3.0)], 0, 10) is None
    assert rate([(5.0, 1.0)], 0, 10) is None


OVER_TIME = [
    parameter
    for parameter in reference("promql_over_time")
    if parameter.values[0].get("function", "avg_over_time").removesuffix("_over_time")
    in ("avg", "min", "max", "sum", "count", "last")
]
PLAIN_SUMS = {
    "functions:1027": "the sum exceeds the floats",
    "functions:1034": "the sum exceeds the floats",
    "functions:1087": "1e100 and -1e100 cancel out, and take the ones between them along",
}
"""Where Prometheus adds up with compensation, and windows do not: their sums are plain sums of floats."""


@pytest.mark.parametrize("case", OVER_TIME)
def test_windows_of_gauges_give_what_prometheus_gives_over_the_range(case: dict[str, Any]) -> None:
    """A range (end - r, end] is the window [0, r) of times counted from just after its start, in microseconds.

    A sample that is not finite is a dead letter here and in no window, where Prometheus lets it spread or ignores it.
    """
    range_us = round(case["range_s"] * S)
    config = WindowConfig(window_seconds=range_us // S, rollup_seconds=2 * range_us // S, lateness_s=3600)
    origin_us = round(reference_time(case) * S) - range_us + 1 - 100 * range_us
    name = case["function"].removesuffix("_over_time")
    expected = {tuple(sorted(one["labels"].items())): float(one["value"]) for one in case["expected"]}
    for series in case["series"]:
        gauge = Series(series["metric"], "gauge")
        inside = [(time, v) for time, v in in_range(series["samples"], case, case["range_s"]) if isfinite(v)]
        every = [(gauge, round(time * S) - origin_us, float(v)) for time, v in series["samples"] if v != "stale"]
        rows, machine = stored(every, config)
        bad = sum(not isfinite(value) for *_, value in every)
        assert sum(letter.samples for letter in machine.letters.values()) == bad
        row = next((row for row in rows if row["seconds"] * S == range_us and row["start"] * S == 100 * range_us), None)
        wanted = expected.get(tuple(sorted(series["labels"].items())))
        if not inside:
            assert row is None
            assert wanted is None or isnan(wanted)
            continue
        assert row is not None
        assert row["last"] == inside[-1][1]
        found = {**row, "avg": row["sum"] / row["count"]}[name]
        if bad and name == "avg":
            assert found == pytest.approx(sum(v for _, v in inside) / len(inside))
        elif case["id"] in PLAIN_SUMS:
            size = sum(Fraction(abs(v)) for _, v in inside)
            assert not isfinite(found) if size > 1.7e308 else abs(found) <= size / 10**9
        else:
            assert found == pytest.approx(wanted, rel=1e-6)
