"""`python -m benchmarks` compares a run with the last one, and sends it as samples."""

import json

import pytest

from benchmarks.common import HISTORY
from benchmarks.compare import ABOUT, compare, last_results, record
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
