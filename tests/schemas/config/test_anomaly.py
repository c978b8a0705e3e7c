"""Detectors: what they mean, and what is wrong with them, by file, line and key."""

# ruff: noqa: E501 - tables

import pytest
from tailrace_schemas.config import ConfigError, load, model_of, record_of
from tailrace_schemas.config.anomaly import DetectorSpec


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{name: cpu, metric: system.cpu.utilization, aggregate: mean, by: [service, host.name], direction: above, min_deviation: 0.2}",
            "cpu: every 1m, the mean of system.cpu.utilization over 1m, for each service, host.name, is judged by its own past; flagged when above by at least 10% of what was expected and 0.2.",
        ),
        (
            "{name: p, metric: latency, aggregate: p99, interval: 10s, window: 5m, where: {service: shop}}",
            "p: every 10s, the p99 of latency over 5m where service is shop is judged by its own past; flagged when off by at least 10% of what was expected.",
        ),
        (
            "{name: r, queries: {a: {metric: x, aggregate: count}, b: {metric: y, aggregate: count}}, value: a / b}",
            "r: every 1m, a / b (a is the number of samples of x over 1m; b is the number of samples of y over 1m) is judged by its own past; flagged when off by at least 10% of what was expected.",
        ),
        (
            "{name: s, queries: {a: {metric: x, aggregate: count}, b: {metric: y, aggregate: count}}, signals: {ratio: a / b, rate: b}, by: [service]}",
            "s: every 1m, ratio, rate (ratio: a / b (a is the number of samples of x over 1m; b is the number of samples of y over 1m); rate: b (b is the number of samples of y over 1m)), for each service, are judged by their own past, and flagged when they are unusual together.",
        ),
    ],
)
def test_what_a_detector_means(text: str, sentence: str) -> None:
    (item,) = load([("d.yaml", f"detectors:\n- {text}")]).items
    assert item.model.sentences() == [sentence]
    record = record_of(item)
    assert record.key == f"detector/{item.name}"
    assert model_of(record.key, record.value) == item.model  # as it comes from the config topic


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "{name: a, queries: {b: {metric: x, aggregate: mean}}, signals: {one: b}}",
            "detectors[0].signals: one signal is a `value`; several are judged together",
        ),
        (
            "{name: a, queries: {b: {metric: x, aggregate: mean}}, signals: {one: b, two: c}}",
            "detectors[0].signals.two: there is no query 'c'; there is: b",
        ),
        (
            "{name: a, queries: {b: {metric: x, aggregate: mean}}, signals: {one: b, two: b * 2}, direction: above}",
            "detectors[0].direction: has no meaning with `signals`, which are judged together",
        ),
        (
            "{name: a, queries: {b: {metric: x, aggregate: mean}, c: {metric: y, aggregate: mean}}, signals: {one: b, two: b * 2}}",
            "detectors[0].queries.c: is used by none of the `signals`",
        ),
        ("{name: a}", "detectors[0]: needs a `metric`, or `queries` and a `value`"),
        ("{name: a, metric: b}", "detectors[0].metric: needs an `aggregate`; there are: "),
        ("{name: a, metric: b, aggregate: p101}", "detectors[0].aggregate: 'p101' is no aggregate; there are: "),
        (
            "{name: a, metric: b, aggregate: mean, interval: 5s}",
            "detectors[0].interval: 5s is no multiple of 10s, which is how often there are rows",
        ),
        (
            "{name: a, metric: b, aggregate: mean, window: 2d}",
            "detectors[0].window: a rule looks back 1d at most; an SLO looks back further",
        ),
        ("{name: a, metric: b, aggregate: mean, direction: up}", "detectors[0].direction: "),
        ("{name: a, metric: b, aggregate: mean, min_deviation: -1}", "detectors[0].min_deviation: "),
        ("{name: a, metric: b, aggregate: mean, by: [host, host]}", "detectors[0].by: names a label twice"),
        (
            "{name: a, metric: b, aggregate: mean, by: [detector]}",
            "detectors[0].by: 'detector' is a label of anomaly.score: it would be there twice",
        ),
        (
            "{name: a, metric: anomaly.score, aggregate: mean}",
            "detectors[0]: anomaly.score is what detectors say; it is for rules",
        ),
        (
            "{name: a, queries: {x: {metric: m, aggregate: count}}, value: x / y}",
            "detectors[0].value: there is no query 'y'; there is: x",
        ),
        ("{name: a, value: '1'}", "detectors[0].value: a constant has no anomalies; it needs `queries`"),
        ("{name: a, metric: b, aggregate: mean, threshold: 3}", "detectors[0]"),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([("d.yaml", f"detectors:\n- {text}")])
    (found,) = [str(one) for one in caught.value.problems]
    assert found.startswith(f"d.yaml:2: {problem}")


def test_the_model_is_what_the_flow_gets() -> None:
    (item,) = load([("d.yaml", "detectors:\n- {name: a, metric: b, aggregate: mean, window: 2m}")]).items
    assert isinstance(item.model, DetectorSpec)
    assert (item.model.interval_s, item.model.window_s) == (60, 120)
    assert item.model.question().window_s == 120
