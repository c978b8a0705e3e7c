"""Objectives and health as units of the evaluation: rows in, statuses and events out."""

from typing import Any

import pyarrow as pa
import pytest
from tailrace_flows.core.alerting import lifecycle
from tailrace_flows.core.alerting.evaluator import Findings
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_flows.core.alerting.units import HealthUnit, SloUnit, plan
from tailrace_schemas.config import ConfigModel, load, record_of
from tailrace_schemas.rows import HEALTH, SLO_STATUS
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of, moment

REQUESTS = Series("requests", "counter")
FAILED = Series("failed", "counter")
SLO = """
slos:
- name: shop
  service: web
  objective: 99%
  period: 30d
  minimum_events: 1
  indicator: {bad: {metric: failed}, total: {metric: requests}}
"""
HEALTHY = """
health_checks:
- {name: alive, service: web, heartbeat: {metric: beat, within: 30s}}
services:
- {name: shop, depends_on: [web]}
"""


def config_of(text: str) -> dict[str, ConfigModel]:
    return {record_of(item).key: item.model for item in load([("config.yaml", text)]).items}


class Judge:
    """Gives a unit the rows of each window, and keeps what it finds."""

    def __init__(self, unit: Any) -> None:
        self.unit = unit
        self.store = WindowStore(unit.keep)
        self.found: list[Findings] = []

    def window(self, end_s: int, *values: tuple[Series, float]) -> Findings:
        rows = batch_of([Row("web", series, end_s, (value,)) for series, value in values])
        changed = self.store.add("", rows)
        self.found.append(self.unit.judge(moment(self.store, end_s, changed)))
        return self.found[-1]

    def events(self) -> list[tuple[str, int, str]]:
        return [
            (event.transition.value, round(event.time.timestamp()), event.alert.source if event.alert else "")
            for found in self.found
            for event in found.events
        ]


def test_which_units_a_configuration_asks_for() -> None:
    config = config_of(SLO) | config_of(HEALTHY)
    assert set(plan(("rules", "slo", "health"), config)) == {"slo/shop", "health"}
    assert set(plan(("slo",), config)) == {"slo/shop"}
    assert set(plan(("rules",), config)) == set()
    calendar = config_of("""
maintenance:
- {name: move, services: [web], once: [{start: 2026-01-01T00:00:00Z, end: 2026-01-02T00:00:00Z}]}
""")
    before, after = (plan(("slo",), one)["slo/shop"].signature for one in (config, config | calendar))
    assert before != after  # it is built anew, with what it knew


def test_an_objective_burns_and_recovers() -> None:
    judge = Judge(plan(("slo",), config_of(SLO))["slo/shop"].build(None))
    assert judge.unit.empty
    judge.unit.prime(0, [])
    for step in range(1, 31):
        judge.window(10 * step, (REQUESTS, 100), (FAILED, 0))
    for step in range(31, 91):
        judge.window(10 * step, (REQUESTS, 100), (FAILED, 50))
    begun = [event.alert for found in judge.found for event in found.events if event.transition == "active"]
    assert {alert.severity.value for alert in begun if alert} == {"critical", "warning"}
    (row,) = judge.found[-1].rows["slo_status_rows"]
    batch = pa.RecordBatch.from_pylist([row], SLO_STATUS)
    assert (row["bad"], row["total"]) == (3000, 9000)
    assert batch.column("burn_rate_5m")[0].as_py() == 50
    for step in range(91, 500):
        judge.window(10 * step, (REQUESTS, 100), (FAILED, 0))
    assert any(transition == "resolved" for transition, _, _ in judge.events())


def test_an_objective_goes_on_from_its_state_and_judges_nothing_before_what_it_was_primed_with() -> None:
    unit = SloUnit(*plan(("slo",), config_of(SLO))["slo/shop"].signature)
    unit.prime(100 * S, [])
    judge = Judge(unit)
    assert not judge.window(90, (REQUESTS, 10), (FAILED, 1)).rows
    (first,) = judge.window(110, (REQUESTS, 10), (FAILED, 1)).rows["slo_status_rows"]
    assert first["total"] == 20
    again = Judge(SloUnit(unit.spec, (), unit.snapshot()))
    assert not again.unit.empty
    (row,) = again.window(120, (REQUESTS, 10), (FAILED, 1)).rows["slo_status_rows"]
    assert row["total"] == 30


def test_health_of_a_service_that_falls_silent() -> None:
    unit = HealthUnit(*plan(("health",), config_of(HEALTHY))["health"].signature)
    judge = Judge(unit)
    beat = Series("beat", "counter")
    rows = []
    for step in range(1, 4):
        rows += judge.window(10 * step, (beat, 1)).rows.get("health_rows", [])
    assert {(one["service"], one["check"]): one["status"] for one in rows} == {
        ("web", "alive"): "healthy", ("web", ""): "healthy", ("shop", ""): "unknown"  # nothing checks it itself
    }  # fmt: skip
    rows = []
    for step in range(4, 20):
        rows += judge.window(10 * step).rows.get("health_rows", [])
    pa.RecordBatch.from_pylist(rows, HEALTH)
    last = {(one["service"], one["check"]): one for one in rows}
    assert last["web", "alive"]["status"] == last["web", ""]["status"] == "unhealthy"
    assert last["shop", ""]["status"] == "degraded"
    assert last["shop", ""]["root_causes"] == ["web"]
    assert ("active", "health/web") in [(transition, source) for transition, _, source in judge.events()]


def test_a_rule_that_is_refused_alerts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "MAX_ALERTS", 2)
    config = config_of("""
groups:
- {name: shop, rules: [{alert: Wide, metric: load, aggregate: last, window: 10s, by: [user], op: gt, threshold: 0}]}
""")
    unit = plan(("rules",), config)["rule_group/shop"].build(None)
    store = WindowStore(unit.keep)
    rows = [Row("web", Series("load", "gauge", "", (("user", str(number)),)), 10, (1.0,)) for number in range(5)]
    counted: dict[str, int] = {}
    unit.judge(moment(store, 10, store.add("", batch_of(rows)), counted.__setitem__))
    assert counted == {"rule_evaluations": 1, "alerts_refused.shop/Wide": 3}
