"""Past data on virtual time: the flow's rows, the evaluator's events."""

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.backtest import Backtest, Samples, Step, windows_of
from tailrace_flows.core.alerting.evaluator import EVALUATORS, Evaluator
from tailrace_flows.core.alerting.units import plan
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.config import WindowConfig
from tailrace_schemas.alerts import Labels, Transition, us_of
from tailrace_schemas.config import load, model_of, record_of
from tailrace_schemas.config.base import ConfigModel
from tailrace_schemas.rows import WINDOW_ROWS, WindowRows
from tailrace_schemas.samples import Series

from tests.flows import oracle
from tests.flows.machine import START_US, S, check_batch, check_rows
from tests.flows.strategies import SERIES, SERVICES, VALUES

CONFIG = WindowConfig()
GAPS_US = (0, 0, 1, 3 * S, 10 * S, 10 * S, 25 * S, 700 * S)


@st.composite
def samples(draw: st.DrawFn, *more_gaps_us: int) -> list[oracle.Sample]:
    found = []
    time_us = START_US
    for gap_us, service, series, value in draw(
        st.lists(
            st.tuples(
                st.sampled_from(GAPS_US + more_gaps_us),
                st.sampled_from(SERVICES),
                st.sampled_from(SERIES),
                st.sampled_from(VALUES),
            ),
            min_size=1,
            max_size=20,
        )
    ):
        time_us += gap_us
        if abs(value) < float("inf") and (value >= 0 or series.kind not in ("counter", "cumulative")):
            found.append(oracle.Sample(service, "", series, time_us, value))
    return found or [oracle.Sample(SERVICES[0], "", SERIES[0], START_US, 1.0)]


def columns_of(found: Sequence[oracle.Sample]) -> Samples:
    catalogue = list({(one.service, one.series): None for one in found})
    return Samples(
        catalogue,
        np.array([one.time_us for one in found], np.int64),
        np.array([catalogue.index((one.service, one.series)) for one in found], np.int32),
        np.array([one.value for one in found]),
    )


@given(samples(4000 * S, 90_000 * S).flatmap(st.permutations))
@settings(deadline=None)
def test_the_rows_are_those_of_the_flow_when_nothing_is_late(found: list[oracle.Sample]) -> None:
    rows: dict[oracle.Key, dict[str, Any]] = {}
    ends = []
    for batch in windows_of(columns_of(found)):
        check_batch(batch, WINDOW_ROWS)
        starts = batch.column("window_start").cast(pa.int64()).to_pylist()
        assert starts == sorted(starts)
        ends.append((starts[0], starts[-1]))
        for row in batch.to_pylist():
            series = Series(row["metric"], row["kind"], row["unit"], tuple(row["attributes"]))
            key = oracle.Key(10, row["service"], "", series, int(row["window_start"].timestamp()))
            assert key not in rows
            rows[key] = row
    assert all(end < start for (_, end), (start, _) in pairwise(ends))
    expected = {key: row for key, row in oracle.rows_of(found, CONFIG).items() if key.seconds == 10}
    check_rows(rows, expected, CONFIG)


RULES = """
groups:
- name: fast
  rules:
  - {alert: High, metric: one, aggregate: max, kind: gauge, op: gt, threshold: 2, by: [service], for: 20s}
  - {alert: Slow, metric: two, aggregate: p90, window: 1m, op: gte, threshold: 1, by: [http.route]}
- name: slow
  interval: 1m
  rules:
  - {alert: Quiet, metric: one, kind: counter, aggregate: increase, window: 5m, op: lt, threshold: 2, by: [service]}
  - {alert: Gone, metric: one, op: absent, window: 30s, by: [service]}
  - {alert: Never, metric: nothing, op: absent}
"""


def config_of(text: str) -> dict[str, ConfigModel]:
    records = [record_of(item) for item in load([("rules.yaml", text)]).items]
    return {one.key: model_of(one.key, one.value) for one in records if one.value is not None}


def steps_of(batches: Iterable[Any], text: str = RULES) -> list[Step]:
    run = Backtest(config_of(text))
    return [step for batch in batches for step in run.feed(batch)]


def live(batches: Iterable[Any]) -> list[tuple[int, str, Labels, str]]:
    """As the dataflow does it: each service's rows of a window in a message of their own, then its watermark."""
    rows = pa.Table.from_batches(batches).to_pylist()
    by_end: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_end.setdefault(int(row["window_start"].timestamp()) * S + 10 * S, []).append(row)
    services = sorted({row["service"] for row in rows})
    begins = partial(Evaluator, plan=partial(plan, ("rules",)), config=config_of(RULES), now_us=min(by_end))
    evaluators = [one for one in map(begins, range(EVALUATORS)) if one.units]
    events = []
    for end_us in range(min(by_end), max(by_end) + 1, 10 * S):
        own = {service: [row for row in by_end.get(end_us, ()) if row["service"] == service] for service in services}
        messages = [(service, UNKNOWN_US, own[service]) for service in services if own[service]]
        messages += [(service, end_us, []) for service in services]
        for service, watermark_us, some in messages:
            block = WindowRows(service, "", 10, watermark_us, pa.RecordBatch.from_pylist(some, WINDOW_ROWS))
            for evaluator in evaluators:
                events += evaluator.on_rows(block, end_us).events
    now_us = max(by_end)
    while any(evaluator.next_us(now_us) <= now_us + S for evaluator in evaluators):  # listening who else there is
        now_us += S
        events += [event for evaluator in evaluators for event in evaluator.on_time(now_us).events]
    return sorted(
        (us_of(event.time), event.alert.source, tuple(event.alert.labels.items()), event.transition.value)
        for event in events
        if event.alert is not None
    )


@given(samples())
@settings(deadline=None, max_examples=10)
def test_the_steps_are_the_events_of_the_flow(found: list[oracle.Sample]) -> None:
    batches = list(windows_of(columns_of(found)))
    told = sorted((step.time_us, step.rule, step.labels, step.after) for step in steps_of(batches))
    assert told == live(batches)


@given(samples(), st.data())
@settings(deadline=None, max_examples=20)
def test_how_the_rows_are_cut_changes_nothing(found: list[oracle.Sample], data: st.DataObject) -> None:
    rows = pa.Table.from_batches(windows_of(columns_of(found))).combine_chunks()
    starts = rows.column("window_start").cast(pa.int64()).to_numpy()
    cuts = sorted(data.draw(st.sets(st.sampled_from(np.unique(starts).tolist()))))
    places = [0, *np.searchsorted(starts, cuts).tolist(), len(starts)]
    parts = [rows.slice(low, high - low).combine_chunks().to_batches() for low, high in pairwise(places)]
    assert steps_of(batch for part in parts for batch in part) == steps_of(rows.to_batches())


def gauge(time_s: int, value: float) -> oracle.Sample:
    return oracle.Sample("web", "", Series("one", "gauge", ""), time_s * S, value)


def test_a_step_says_where_from_and_where_to() -> None:
    found = [gauge(1_000_000 + second, 5 if 30 <= second < 80 else 1) for second in range(0, 120, 10)]
    steps = [step for step in steps_of(windows_of(columns_of(found))) if step.rule == "fast/High"]
    told = [(step.time_us // S - 1_000_000, step.before, step.after, step.value) for step in steps]
    assert told == [(60, "pending", "active", 5.0), (90, "active", "resolved", 5.0)]
    assert [step.labels for step in steps] == [(("service", "web"),)] * 2


def test_silence_is_judged_however_long_it_lasts() -> None:
    text = "groups: [{name: g, rules: [{alert: Gone, metric: one, op: absent, window: 30s, by: [service]}]}]"
    for gap_s in (40, 600, 3600, 86_400, 90_000, 10_000_000):
        found = [gauge(1_000_000, 1), gauge(1_000_010 + gap_s, 1)]
        steps = steps_of(windows_of(columns_of(found)), text)
        told = [(step.time_us // S - 1_000_010, step.after) for step in steps]
        assert told == [(30, Transition.ACTIVE), (gap_s + 10, Transition.RESOLVED)]


def test_a_rule_over_the_scores_of_a_detector_hears_of_them_a_step_later() -> None:
    text = """
detectors: [{name: load, metric: one, aggregate: mean, by: [service], interval: 10s, min_deviation: 5}]
groups:
- name: g
  rules:
  - {alert: Odd, metric: anomaly.flags, aggregate: increase, window: 30s, by: [service], op: gt, threshold: 0}
"""
    start_s, odd_s = 1_000_000, 1_000_000 + 3000
    found = [gauge(at_s, 100 if at_s == odd_s else 10 + at_s // 10 % 3) for at_s in range(start_s, odd_s + 200, 10)]
    steps = steps_of(windows_of(columns_of(found)), text)
    told = [(step.time_us // S - odd_s, step.rule, step.after) for step in steps]
    assert told == [(20, "g/Odd", "active"), (40, "g/Odd", "resolved")]
    assert set(Backtest(config_of(text)).keep) == {"one"}  # the scores are found, not read
