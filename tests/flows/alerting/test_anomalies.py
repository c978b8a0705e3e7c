"""Detectors as units of the evaluation: what they find is stored, told as metrics, and the same after any restart."""

import pickle
import random
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from tailrace_flows.core.alerting import baselines as module
from tailrace_flows.core.alerting.baselines import FORGET_US
from tailrace_flows.core.alerting.evaluator import Findings
from tailrace_flows.core.alerting.rules import AlertGroup, keep_of
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_flows.core.alerting.units import MARKABLE, AnomalyUnit, plan
from tailrace_flows.core.anomaly import AnomalyConfig, Detector, Direction
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_schemas.alerts import Command, CommandKind, time_of
from tailrace_schemas.config import load
from tailrace_schemas.config.anomaly import DetectorSpec
from tailrace_schemas.rows import ANOMALIES
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of, group_of, moment

START_S = 1_700_000_400
SPEC = """
detectors:
- {name: load, metric: cpu, aggregate: mean, by: [service, host], interval: 10s, direction: above, min_deviation: 0.05}
"""


def spec_of(text: str = SPEC, **changes: Any) -> DetectorSpec:
    (item,) = load([("detectors.yaml", text)]).items
    assert isinstance(item.model, DetectorSpec)
    return item.model.model_copy(update=changes)


class World:
    """A unit with its store, which may be restarted at any time."""

    def __init__(self, spec: DetectorSpec | None = None) -> None:
        self.spec = spec or spec_of()
        self.unit = AnomalyUnit(self.spec)
        self.store = WindowStore(self.unit.keep)
        self.counted: dict[str, int] = {}

    def window(self, end_s: int, values: dict[str, float], metric: str = "cpu") -> Findings:
        rows = [
            Row("web", Series(metric, "gauge", "1", (("host", host),)), START_S + end_s, (value,))
            for host, value in values.items()
        ]
        if rows:
            self.store.add("", batch_of(rows))
        found = self.unit.judge(moment(self.store, START_S + end_s, tally=self._count))
        self.store.forget((START_S + end_s) * S)
        return found

    def _count(self, name: str, value: int = 1) -> None:
        self.counted[name] = self.counted.get(name, 0) + value

    def restart(self, spec: DetectorSpec | None = None) -> None:
        unit, store = pickle.loads(pickle.dumps((self.unit.snapshot(), self.store.snapshot())))
        self.unit = AnomalyUnit(spec or self.spec, unit)
        self.store = WindowStore(self.unit.keep, store)

    def mark(self, anomaly: str, author: str = "ann") -> Any:
        command = Command(id="c", kind=CommandKind.FEEDBACK, alert_id=anomaly, time=time_of(0), author=author)
        return self.unit.command(command)


def load_of(hosts: int, points: int, seed: int = 1) -> Iterator[tuple[int, dict[str, float]]]:
    """Hosts at some 30 %; h0 and h2 jump to 90 %, one after the other."""
    rng = random.Random(seed)
    for number in range(1, points + 1):
        values = {}
        for host in range(hosts):
            begins = 120 + 20 * host
            busy = host % 2 == 0 and begins <= number < begins + 20
            values[f"h{host}"] = (0.9 if busy else 0.3) + rng.uniform(-0.02, 0.02)
        yield 10 * number, values


def told(found: Findings) -> tuple[Any, ...]:
    return (dict(found.rows), [(block[:4], block.rows.to_pylist()) for block in found.blocks])


def flags(found: Findings) -> list[str]:
    return [dict(row["labels"])["host"] for row in found.rows.get("anomaly_rows", []) if row["flag"]]


def test_each_series_is_judged_as_by_a_detector_of_its_own() -> None:
    world = World()
    config = AnomalyConfig(direction=Direction.ABOVE, min_deviation=0.05)
    own = {f"h{host}": Detector(config) for host in range(3)}
    seen = 0
    for end_s, values in load_of(3, 190):
        found = world.window(end_s, values)
        verdicts = {host: own[host].update((START_S + end_s) * S, value) for host, value in values.items()}
        assert flags(found) == [host for host, one in verdicts.items() if one.flag]
        scores = [row for block in found.blocks for row in block.rows.to_pylist() if row["metric"] == "anomaly.score"]
        assert {dict(row["attributes"])["host"]: row["last"] for row in scores} == {
            host: pytest.approx(one.score, abs=1e-9) for host, one in verdicts.items() if not one.warming_up
        }
        seen += len(scores)
    assert seen == world.counted["anomaly_points"] == 3 * 90


def test_what_is_stored_of_a_flag() -> None:
    world = World()
    found = [world.window(*one) for one in load_of(1, 122)]
    (row,) = [row for one in found for row in one.rows.get("anomaly_rows", []) if row["flag"]]
    assert pa.RecordBatch.from_pylist([row], ANOMALIES).validate(full=True) is None
    assert (row["detector"], row["metric"], row["service"]) == ("load", "cpu", "web")
    assert dict(row["labels"]) == {"host": "h0", "service": "web"}
    assert row["window_end"] == START_S + 1200
    assert row["low"] < row["expected"] < row["high"] < row["value"]
    assert row["reason"].startswith("the mean of cpu over 10s is 0.9")
    assert f"above the expected {row['expected']:.4g} (" in row["reason"]
    (block,) = found[119].blocks
    assert (block.service, block.stream, block.window_seconds) == ("web", "", 10)
    assert block.watermark_us == UNKNOWN_US  # it says nothing about closed windows
    assert {one["metric"]: (one["kind"], one["window_start"].timestamp()) for one in block.rows.to_pylist()} == {
        "anomaly.score": ("gauge", START_S + 1190), "anomaly.flags": ("counter", START_S + 1190)
    }  # fmt: skip


def test_a_restart_anywhere_and_a_prefix_give_the_same() -> None:
    history = list(load_of(3, 180))
    undisturbed = World()
    whole = [told(undisturbed.window(*one)) for one in history]
    assert sum(row["flag"] for rows, _ in whole for row in rows.get("anomaly_rows", [])) == 2
    rng = random.Random(2)
    restarted = World()
    for one, expected in zip(history, whole, strict=True):
        if rng.random() < 0.2:
            restarted.restart()
        assert told(restarted.window(*one)) == expected
    # Causal: whatever comes afterwards, or not at all, changes nothing of what was said.
    prefix = World()
    assert [told(prefix.window(*one)) for one in history[:150]] == whole[:150]
    other = World()
    changed = history[:150] + [(end_s, dict.fromkeys(values, 0.0)) for end_s, values in history[150:]]
    assert [told(other.window(*one)) for one in changed][:150] == whole[:150]


def test_series_that_vanish_are_forgotten_and_there_are_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SERIES", 20)
    world = World()
    for number in range(1, 11):
        world.window(10 * number, {f"h{host}": 0.3 for host in range(30)})
    assert len(world.unit._anomalies) == 20
    assert world.counted["anomaly_over_limit"] == 10 * 10
    size = len(pickle.dumps(world.unit.snapshot()))
    assert size < 20 * 1_800 + 2_000
    day_s = FORGET_US // S
    world.window(100 + day_s - 10, {"h0": 0.3})
    assert len(world.unit._anomalies) == 20
    world.window(100 + day_s, {"h0": 0.3})
    assert len(world.unit._anomalies) == 1
    for number in range(1, 60):  # pods that come and go
        world.window(100 + day_s * (number + 1) + 10 * number, {f"pod{number}-{pod}": 0.3 for pod in range(15)})
    assert len(world.unit._anomalies) <= 20
    assert len(pickle.dumps(world.unit.snapshot())) < 2 * size
    world.restart()
    world.window(100 + day_s * 100, {"h0": 0.3})
    assert len(world.unit._anomalies) == 1


def test_feedback_raises_the_bar_of_its_series_once_and_is_recorded() -> None:
    world = World()
    (flagged,) = [
        row for one in load_of(1, 130) for row in world.window(*one).rows.get("anomaly_rows", []) if row["flag"]
    ]
    assert world.mark("another") is None  # some other unit's
    assert world.mark(flagged["anomaly_id"]) == []
    world.restart()
    assert world.mark(flagged["anomaly_id"], "bob") == []
    (marked,) = [row for row in world.window(1310, {"h0": 0.9}).rows["anomaly_rows"] if row["version"] == 2]
    assert marked == flagged | {"marked_by": "ann", "version": 2}
    (bar,) = world.unit._anomalies._baselines.bank.bar[:1]
    assert bar == pytest.approx(1.05 * 1.25, rel=0.001)


def test_the_latest_flags_can_be_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    hosts = {f"h{host}": 0.3 for host in range(MARKABLE + 20)}
    for number in range(1, 121):
        world.window(10 * number, hosts)
    found = world.window(1210, dict.fromkeys(hosts, 0.9))
    ids = [row["anomaly_id"] for row in found.rows["anomaly_rows"] if row["flag"]]
    assert len(set(ids)) == MARKABLE + 20
    assert [world.mark(one) for one in ids] == [None] * 20 + [[]] * MARKABLE


def test_a_changed_threshold_keeps_what_was_learned_and_another_metric_does_not() -> None:
    world = World()
    for end_s, values in load_of(3, 119):
        world.window(end_s, values)
    world.restart(spec_of(direction="below"))
    assert world.window(1210, {"h1": 0.9}).rows["anomaly_rows"][0]["flag"] is False
    world.restart(spec_of(SPEC.replace("metric: cpu", "metric: memory")))
    assert len(world.unit._anomalies) == 0


def test_a_ratio_and_a_rate_that_ends() -> None:
    text = """
detectors:
- name: errors
  queries:
    failed: {metric: requests, aggregate: increase, where: {status: "500"}}
    all: {metric: requests, aggregate: increase}
  value: failed / all
  interval: 10s
- {name: traffic, metric: requests, aggregate: rate, where: {service: web}, interval: 10s, direction: below}
"""
    units = [AnomalyUnit(item.model) for item in load([("d.yaml", text)]).items if isinstance(item.model, DetectorSpec)]
    store = WindowStore({"requests": max(unit.keep["requests"] for unit in units)})
    found: dict[str, list[dict[str, Any]]] = {unit.spec.name: [] for unit in units}
    rng = random.Random(3)

    def requests(status: str, end_s: int, number: float) -> Row:
        return Row("web", Series("requests", "counter", "1", (("status", status),)), end_s, (number,))

    for number in range(1, 131):
        end_s = START_S + 10 * number
        rows = [requests("200", end_s, 1_000 + rng.randrange(20))] if number <= 125 else []
        if 121 <= number <= 123:
            rows.append(requests("500", end_s, 300.0))
        if rows:
            store.add("", batch_of(rows))
        for unit in units:
            rows_found = unit.judge(moment(store, end_s)).rows.get("anomaly_rows", [])
            found[unit.spec.name] += [row for row in rows_found if row["flag"]]
    (errors,), (traffic,) = found["errors"], found["traffic"]
    assert (errors["window_end"], errors["metric"]) == (START_S + 1210, "failed / all")
    assert errors["value"] == pytest.approx(300 / 1310, abs=0.01)
    assert (traffic["window_end"], traffic["value"]) == (START_S + 1260, 0.0)  # nothing came: 0, not "no data"
    assert (traffic["service"], errors["service"]) == ("web", "")


def test_a_rule_sees_the_flag_one_evaluation_later() -> None:
    rules = AlertGroup(
        group_of(
            "groups: [{name: g, rules: [{alert: Odd, metric: anomaly.flags, aggregate: increase, window: 1m, "
            "by: [service, detector, host], op: gt, threshold: 0}]}]"
        )
    )
    world = World()
    store = WindowStore(keep_of(rules.rules.values()))
    events = []
    for end_s, values in load_of(1, 150):
        events += rules.evaluate(store, (START_S + end_s) * S)  # what was found at the same time is still on its way
        for block in world.window(end_s, values).blocks:
            store.add(block.stream, block.rows)
    active, resolved = events
    assert active.alert is not None
    assert active.alert.labels == {"service": "web", "detector": "load", "host": "h0"}
    assert [round(one.time.timestamp()) - START_S for one in events] == [1210, 1260]
    assert (active.transition, resolved.transition) == ("active", "resolved")


def test_which_units_a_configuration_asks_for() -> None:
    config = {"detector/load": spec_of()}
    assert set(plan(("anomaly",), config)) == {"detector/load"}
    assert plan(("rules", "slo", "health"), config) == {}
