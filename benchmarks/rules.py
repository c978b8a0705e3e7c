"""1,000 alert rules over 10,000 series: what an evaluation costs in the core, without Kafka and ClickHouse.

20 metrics (10 gauges, 5 counters, 5 distributions) with 500 series each, of 50 services and 10 routes; 50 rules for
each: means, quantiles, shares, ratios and predictions over 1 to 5 minutes, of one service by route, or by service.
Rows come every 10 s of event time; then all rules are evaluated. Beside it one rule, the mean of 1 minute by host, over
100,000 series. Times are CPU times of this process, medians of steps.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from tailrace_flows.core.alerting.rules import AlertGroup, keep_of
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_flows.core.series import series_id
from tailrace_flows.core.sketch import codes_of
from tailrace_schemas.config import load
from tailrace_schemas.config.rules import RuleGroup
from tailrace_schemas.rows import ATTRIBUTES, WINDOW_ROWS
from tailrace_schemas.samples import Series

from benchmarks.common import say

KINDS = ("gauge",) * 10 + ("counter",) * 5 + ("distribution",) * 5
SERVICES, ROUTES = 50, 10
SAMPLES = 100
"""Of a distribution in a window."""
START_S = 1_700_000_000
HOSTS = 100_000
WIDE = "- {alert: Busy, metric: cpu, aggregate: mean, window: 1m, by: [host.name], op: gt, threshold: 0.9, for: 1m}"
Batches = list[tuple[str, Any]]
WARM_STEPS = 30
"""So that windows of 5 minutes are full."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", type=int, default=1000, help="how many rules (multiple of 20)")
    parser.add_argument("--steps", type=int, default=10, help="how many evaluations of all rules are measured")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Many rules, and one over many series."""
    rng = np.random.default_rng(7)
    many = _measure(
        _group(rule_texts(options.rules)),
        lambda step: [(f"s{service}", _batch(rng, service, step)) for service in range(SERVICES)],
        WARM_STEPS,
        options.steps,
    )
    wide = _measure(_group([WIDE]), lambda step: [("hosts", _hosts(rng, step))], 6, options.steps)
    return [
        {"benchmark": "rules", "rules": options.rules, "series": SERVICES * ROUTES * len(KINDS), **many},
        {"benchmark": "rules", "rules": 1, "series": HOSTS, **wide},
    ]


def _measure(group: AlertGroup, batches_of: Callable[[int], Batches], warm: int, steps: int) -> dict[str, Any]:
    """Feeds and evaluates a group for so many steps after those that warm it up."""
    store = WindowStore(keep_of(group.rules.values()))
    rows, add_s, evaluate_s, events = 0, [], [], 0
    for step in range(warm + steps):
        batches = batches_of(step)
        rows = sum(batch.num_rows for _, batch in batches)
        begin = time.process_time()
        for _, batch in batches:
            store.add("", batch)
        middle = time.process_time()
        t_us = (START_S + step * 10 + 10) * 1_000_000
        if step >= warm - 1:  # the first one works out which series match
            events += len(group.evaluate(store, t_us))
            store.forget(t_us)
        end = time.process_time()
        if step >= warm:
            add_s.append(middle - begin)
            evaluate_s.append(end - middle)
        if step % 10 == 9:
            say(f"{step + 1} of {warm + steps} steps")
    begin = time.process_time()
    state = store.snapshot()
    return {
        "rows_per_s": rows / median(add_s),
        "evaluation_ms": 1e3 * median(evaluate_s),
        "evaluation_ms_max": 1e3 * max(evaluate_s),
        "rules_per_s": len(group.rules) / median(evaluate_s),
        "events": events,
        "store_mib": len(state) / 2**20,
        "snapshot_ms": 1e3 * (time.process_time() - begin),
    }


def _group(rules: list[str]) -> AlertGroup:
    (item,) = load([("rules", "groups:\n- name: g\n  rules:\n  " + "\n  ".join(rules))]).items
    assert isinstance(item.model, RuleGroup)
    return AlertGroup(item.model)


def _hosts(rng: np.random.Generator, step: int) -> Any:
    """A row of one gauge for each of many hosts."""
    value = rng.random(HOSTS)
    columns: dict[str, Any] = {
        field.name: pa.nulls(HOSTS, field.type) if field.nullable else None for field in WINDOW_ROWS
    }
    columns |= {
        "metric": pa.repeat("cpu", HOSTS),
        "service": pa.repeat("hosts", HOSTS),
        "series_id": pa.array(np.arange(HOSTS, dtype=np.uint64)),
        "attributes": pa.array([[("host.name", str(host))] for host in range(HOSTS)], ATTRIBUTES),
        "kind": pa.repeat("gauge", HOSTS),
        "unit": pa.repeat("1", HOSTS),
        "stream": pa.repeat("", HOSTS),
        "window_start": pa.array([START_S + step * 10] * HOSTS, pa.timestamp("s", tz="UTC")),
        "count": pa.array(np.full(HOSTS, 2, np.uint64)),
        "version": pa.array(np.full(HOSTS, 2, np.uint64)),
        "bucket_index": pa.array([[]] * HOSTS, pa.list_(pa.int32())),
        "bucket_count": pa.array([[]] * HOSTS, pa.list_(pa.uint64())),
    }
    columns |= {name: pa.array(value) for name in ("sum", "min", "max", "last")}
    return pa.record_batch([columns[field.name] for field in WINDOW_ROWS], schema=WINDOW_ROWS)


def rule_texts(count: int) -> list[str]:
    rules = []
    for number in range(count):
        metric = number % len(KINDS)
        service = number // len(KINDS) % SERVICES
        shape = number // len(KINDS) % 10
        name, threshold = f"m{metric}", 20.0
        where = f"where: {{service: s{service}}}, by: [route]" if shape < 5 else "by: [service]"
        if KINDS[metric] == "gauge":
            what = "aggregate: mean, window: 1m" if shape % 5 else "aggregate: predict_linear(1h), window: 5m"
            rule = f"metric: {name}, {what}"
        elif KINDS[metric] == "distribution":
            rule = f"metric: {name}, aggregate: {'p99' if shape % 2 else 'fraction_above(1)'}, window: 1m"
            threshold = 20.0 if shape % 2 else 0.9
        else:
            rule = (
                f"queries: {{bad: {{metric: {name}, aggregate: increase, where: {{route: '=~r[01]'}}}}, "
                f"all: {{metric: {name}, aggregate: increase}}}}, value: bad / all, window: 5m"
            )
            threshold = 0.9
        rules.append(f"- {{alert: R{number}, {rule}, {where}, op: gt, threshold: {threshold}, for: 1m}}")
    return rules


def _batch(rng: np.random.Generator, service: int, step: int) -> Any:
    """A service's rows of one window."""
    series = [
        Series(f"m{metric}", kind, "", (("route", f"r{route}"),))
        for metric, kind in enumerate(KINDS)
        for route in range(ROUTES)
    ]
    kinds = np.array([one.kind for one in series])
    many = len(series)
    value = rng.lognormal(0, 1, many)
    spread = kinds != "counter"
    sketches = [
        np.unique(codes_of(rng.lognormal(0, 1, SAMPLES), 6), return_counts=True) if kind == "distribution" else ([], [])
        for kind in kinds
    ]
    columns = {
        "metric": [one.metric for one in series],
        "service": [f"s{service}"] * many,
        "series_id": pa.array([series_id(f"s{service}", one) for one in series], pa.uint64()),
        "attributes": [list(one.attributes) for one in series],
        "kind": kinds.tolist(),
        "unit": [""] * many,
        "stream": [""] * many,
        "window_start": pa.array([START_S + step * 10] * many, pa.timestamp("s", tz="UTC")),
        "count": np.where(kinds == "distribution", SAMPLES, 2),
        "sum": np.where(kinds == "distribution", SAMPLES, 2) * value,
        "min": pa.array(value / 100, mask=~spread),
        "max": pa.array(value * 100, mask=~spread),
        "last": pa.array(value, mask=kinds != "gauge"),
        "increase": pa.array(value, mask=kinds != "counter"),
        "resets": [None] * many,
        "bucket_index": [list(codes) for codes, _ in sketches],
        "bucket_count": [list(counts) for _, counts in sketches],
        "scale": [6 if kind == "distribution" else None for kind in kinds],
        "version": np.where(kinds == "distribution", SAMPLES, 2),
    }
    arrays = [pa.array(columns[field.name], field.type) for field in WINDOW_ROWS]
    return pa.record_batch(arrays, schema=WINDOW_ROWS)
