"""`python -m benchmarks` compares a run with the last one, and sends it as samples."""

import json
from argparse import Namespace

import pytest

from benchmarks import everything
from benchmarks.__main__ import NAMES
from benchmarks.common import HISTORY
from benchmarks.compare import ABOUT, compare, last_results, ratios, record, runs, select
from benchmarks.everything import QUICK
from tests.producers.reading import read_topic, samples_of

WHERE = {"time": "2026-01-01T00:00:00+00:00", "commit": "abc", "machine": "m", "python": "3.11", "versions": {}}


def result(system: str, series: int, **figures: object) -> dict[str, object]:
    return {"benchmark": "query", "system": system, "series": series, **figures}


def test_figures_are_compared_with_the_last_of_the_same_case() -> None:
    history = [
        json.dumps(one | WHERE | {"commit": commit})
        for one, commit in (
            (result("windows", 1, seconds=4.0), "older"),
            (result("windows", 1, seconds=2.0, peak_mb=100.0), "last"),
            (result("windows", 1000, seconds=8.0), "other"),
            (result("windows", 1, seconds=1.0) | {"benchmark": "pipeline"}, "another"),
        )
    ]
    now = [result("windows", 1, seconds=3.0, peak_mb=100.0, goal=None), result("rollup", 1, seconds=1.0)]
    found = compare(now, last_results(history, "query"))
    assert [(one["case"], one["figure"], one["last"], one["now"], one["change_percent"]) for one in found] == [
        ("windows, series 1", "seconds", 2.0, 3.0, pytest.approx(50)),
        ("windows, series 1", "peak_mb", 100.0, 100.0, pytest.approx(0)),
    ]
    assert {one["commit"] for one in found} == {"last"}
    assert compare(now, last_results([], "query")) == []


HISTORY_LINES = [
    json.dumps(one | WHERE | {"time": time, "commit": commit})
    for one, time, commit in (
        (result("windows", 1, seconds=4.0), "t1", "aaaa111"),
        (result("windows", 1000, seconds=8.0), "t1", "aaaa111"),
        (result("core", 1, rate=10.0) | {"benchmark": "pipeline"}, "t2", "bbbb222"),
        (result("windows", 1, seconds=1.0, more=1.0), "t3", "bbbb222"),
        (result("core", 1, rate=30.0, zero=0.0) | {"benchmark": "pipeline"}, "t4", "cccc333+"),
    )
]


@pytest.mark.parametrize(
    ("reference", "times"),
    [
        ("1", ["t1"]),
        ("4", ["t4"]),
        ("-1", ["t4"]),
        ("-4", ["t1"]),
        ("query", ["t3"]),
        ("query~1", ["t1"]),
        ("pipeline", ["t4"]),
        ("bbbb2", ["t2", "t3"]),
        ("cccc333", ["t4"]),
    ],
)
def test_a_run_is_named_by_number_benchmark_or_commit(reference: str, times: list[str]) -> None:
    assert [run.time for run in select(runs(HISTORY_LINES), reference)] == times


@pytest.mark.parametrize("reference", ["0", "5", "-5", "query~2", "query~x", "nothing", "dddd", "b", ""])
def test_a_run_that_is_not_there_is_said_so(reference: str) -> None:
    with pytest.raises(ValueError, match=r"no such run .* from 1 to 4 .* pipeline, query") as raised:
        select(runs(HISTORY_LINES), reference)
    assert str(raised.value).startswith(f"{reference}: ")


def test_two_runs_are_compared_by_ratios() -> None:
    history = runs(HISTORY_LINES)
    assert [len(run.results) for run in history] == [2, 1, 1, 1]

    def lines(a: str, b: str) -> list[tuple[object, ...]]:
        return [tuple(one.values()) for one in ratios(select(history, a), select(history, b))]

    assert lines("query~1", "query") == [("query", "windows, series 1", "seconds", 4.0, 1.0, 0.25)]
    assert lines("bbbb222", "-1") == [("pipeline", "core, series 1", "rate", 10.0, 30.0, 3.0)]
    assert lines("1", "2") == []


def test_all_knows_only_benchmarks_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(QUICK) <= set(NAMES)
    assert everything.run(Namespace(only="slo,sol", no_history=True), tuple(NAMES)) == 2
    assert "sol: no such benchmark; there are agent, " in capsys.readouterr().err


def test_all_goes_on_past_one_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """The command refuses a name it does not have, as any benchmark may fail."""
    assert everything.run(Namespace(only=None, no_history=True), ("one", "two")) == 1
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("[")][1].startswith("[2/2, ")
    assert err.count("failed, exit code 2 after") == 2
    assert "in all" in out


def test_the_history_can_be_read() -> None:
    lines = [json.loads(line) for line in HISTORY.read_text().splitlines()]
    assert {"middleware", "pipeline"} <= {one["benchmark"] for one in lines}
    assert all(one.keys() >= ABOUT for one in lines)


def test_figures_become_samples(embedded_broker: str) -> None:
    assert record([result("windows", 1, seconds=3.0)], embedded_broker)
    (sample,) = [one for read in read_topic(embedded_broker) for one in samples_of(read.batch)]
    assert (sample.series.metric, sample.series.kind, sample.value) == ("benchmark.result", "gauge", 3.0)
    assert dict(sample.series.attributes) == {
        "benchmark": "query", "benchmark.case": "windows, series 1", "benchmark.figure": "seconds",
    }  # fmt: skip
