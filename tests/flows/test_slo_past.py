"""A ClickHouse that is away when an objective wants its past holds up nothing but that objective."""

import threading
from typing import Any

import pytest
from tailrace_flows import host_clock, slo_past
from tailrace_flows.adapters import Adapters
from tailrace_flows.alerts import _Evaluate
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.evaluator import EVALUATORS, Findings
from tailrace_flows.core.alerting.units import SloUnit
from tailrace_flows.settings import Settings
from tailrace_infra.ports import free_port
from tailrace_schemas.clock import now_us
from tailrace_schemas.config import load, record_of
from tailrace_schemas.config.slo import SloSpec
from tailrace_schemas.rows import WindowRows
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of
from tests.infra.waiting import eventually

CONFIG = """
groups: [{name: g, rules: [{alert: Failing, metric: failed, aggregate: increase, op: gt, threshold: 3, by: [service]}]}]
slos:
- name: shop
  service: web
  objective: 99%
  period: 30d
  minimum_events: 1
  indicator: {bad: {metric: failed}, total: {metric: requests}}
"""


class World:
    """All keys of an alert flow without Kafka, with the history of a ClickHouse on a port where nobody listens."""

    def __init__(self, start_us: int) -> None:
        self.at_us = start_us
        self.back = threading.Event()
        self.stored: list[Stored] = []
        away = Adapters(Settings(clickhouse={"url": f"http://127.0.0.1:{free_port()}"}))

        def history(spec: SloSpec, until_us: int) -> Any:
            return self.stored if self.back.is_set() else away.slo_history(spec, until_us)

        config = {record_of(item).key: item.model for item in load([("config.yaml", CONFIG)]).items}
        self.keys = [
            _Evaluate(("rules", "slo"), lambda: config, history, lambda _: (), None) for _ in range(EVALUATORS)
        ]

    def window(self, failed: int, requests: int) -> list[Findings]:
        """What the next window of 10 s gives."""
        end_s = self.at_us // S + 10
        values = (("failed", failed), ("requests", requests))
        rows = [Row("web", Series(name, "counter"), end_s, (float(value),)) for name, value in values]
        self.at_us = end_s * S
        block = WindowRows("web", "", 10, self.at_us, batch_of(rows))
        return [found for number, key in enumerate(self.keys) for found in key.on_batch([(number, block)])[0]]

    def listen(self, monkeypatch: pytest.MonkeyPatch) -> list[Findings]:
        """What comes when it has been listened for a while who is there."""
        found = []
        for later_s in range(1, 8):
            later_us = now_us() + later_s * S
            monkeypatch.setattr(host_clock, "now_us", lambda at_us=later_us: at_us)
            found += [one for key in self.keys for one in key.on_notify()[0]]
        return found

    def slo(self) -> SloUnit:
        units = [unit for key in self.keys if key._evaluator for unit in key._evaluator.units.values()]
        (slo,) = (unit for unit in units if isinstance(unit, SloUnit))
        return slo


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slo_past, "RETRY_S", (0.05, 0.1))


@pytest.mark.usefixtures("quick")
def test_others_are_judged_and_it_goes_on_with_its_past_when_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    start_us = (now_us() // (10 * S) - 30) * 10 * S
    world = World(start_us)
    found = world.window(0, 100) + world.window(5, 100)
    with monkeypatch.context() as patch:
        found += world.listen(patch)
    assert [event.alert and event.alert.name for one in found for event in one.events] == ["Failing"]
    statuses = [row for one in found for row in one.rows.get("slo_status_rows", ())]
    # The figures are of the time since; the budget says what it lacks.
    assert [(row["frozen"], row["bad"], row["total"]) for row in statuses] == [
        ("history pending", 0, 100),
        ("history pending", 5, 200),
    ]
    assert {row["burn_rate_1h"] for row in statuses} == {None}

    # An hour of a day before, and the last window that was judged, which has been stored meanwhile.
    world.stored = [
        Stored(start_us - 86_400 * S // 3600 * 3600, 3600, 990.0, 1000.0),
        Stored(start_us + 10 * S, 10, 95.0, 100.0),
    ]
    world.back.set()

    def goes_on() -> bool:
        for key in world.keys:
            key.on_notify()
        return not world.slo().empty

    eventually(goes_on, 30)
    world.at_us = now_us() // (10 * S) * 10 * S + 60 * S
    found = world.window(1, 100)
    (*_, status) = [row for one in found for row in one.rows.get("slo_status_rows", ()) if not row["frozen"]]
    assert (status["bad"], status["total"]) == (10 + 5 + 1, 1000 + 200 + 100)
