"""`threshold: auto`: a threshold for each label set that follows it, can be seen, taught and reset, and survives."""

import pickle
import random
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest
from tailrace_flows.core.alerting.baselines import HELD_POINTS, baseline_id
from tailrace_flows.core.alerting.evaluator import Findings
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_flows.core.alerting.units import RuleUnit
from tailrace_flows.core.anomaly import AnomalyConfig, Detector
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, time_of
from tailrace_schemas.config import ConfigError, load
from tailrace_schemas.rows import BASELINES
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of, group_of, moment

START_S = 1_700_000_400
RULE = """
groups:
- name: hosts
  rules:
  - {alert: Busy, metric: cpu, aggregate: mean, by: [host], op: gt, threshold: auto}
"""


class World:
    """A group with its store; a window of 10 s after the other."""

    def __init__(self, text: str = RULE) -> None:
        self.text = text
        self.unit = RuleUnit(group_of(text))
        self.store = WindowStore(self.unit.keep)
        self.windows = 0
        self.baselines: dict[str, dict[str, Any]] = {}

    def windows_of(self, values: Iterable[float], host: str = "h0") -> list[AlertEvent]:
        return [event for value in values for event in self.window({host: value}).events]

    def window(self, values: dict[str, float]) -> Findings:
        self.windows += 1
        end_s = START_S + 10 * self.windows
        rows = [Row("web", Series("cpu", "gauge", "1", (("host", host),)), end_s, (v,)) for host, v in values.items()]
        self.store.add("", batch_of(rows))
        found = self.unit.judge(moment(self.store, end_s))
        self.store.forget(end_s * S)
        self.baselines |= {dict(row["labels"])["host"]: row for row in found.rows.get("baseline_rows", [])}
        return found

    def restart(self) -> None:
        unit, store = pickle.loads(pickle.dumps((self.unit.snapshot(), self.store.snapshot())))
        self.unit = RuleUnit(group_of(self.text), unit)
        self.store = WindowStore(self.unit.keep, store)

    def command(self, kind: CommandKind, about: str, **more: Any) -> Any:
        time = time_of((START_S + 10 * self.windows) * S)
        return self.unit.command(Command(id="c", kind=kind, alert_id=about, time=time, author="ann", **more))


def usual(points: int, level: float = 0.3, seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    return [level + rng.uniform(-0.02, 0.02) for _ in range(points)]


def test_the_threshold_is_the_edge_of_the_band_of_a_detector() -> None:
    world = World()
    values = usual(130)
    detector = Detector(AnomalyConfig(direction="above"))  # type: ignore[arg-type]
    for number, value in enumerate(values, 1):
        detector.update((START_S + 10 * number) * S, value)
    assert world.windows_of(values) == []
    (event,) = world.windows_of([0.9])
    assert event.alert is not None
    assert event.alert.threshold is not None
    assert event.alert.threshold.operator == "gt"
    assert event.alert.threshold.value == pytest.approx(detector.update((START_S + 1310) * S, 0.9).high, rel=1e-9)
    assert 0.3 < event.alert.threshold.value < 0.5


def test_it_warms_up_follows_and_keeps_series_apart() -> None:
    world = World()
    assert world.windows_of([*usual(98), 5.0]) == []  # nothing is known yet
    world = World()
    for low, high in zip(usual(120), usual(120, level=30.0, seed=2), strict=True):
        assert not world.window({"low": low, "high": high}).events
    slow = [value * 1.01**number for number, value in enumerate(usual(100, seed=3))]
    for low, high in zip(slow, usual(100, level=30.0, seed=4), strict=True):
        assert not world.window({"low": low, "high": high}).events  # it has grown by 170 %
    (event,) = world.window({"low": 5.0, "high": 30.0}).events
    assert event.alert is not None
    assert event.alert.labels == {"host": "low"}


def test_an_incident_does_not_become_normal_but_a_new_level_does() -> None:
    world = World()
    world.windows_of(usual(150))
    (active,) = world.windows_of(usual(HELD_POINTS, level=0.9))
    assert active.transition == "active"
    assert world.baselines["h0"]["held"] > 0
    assert world.baselines["h0"]["expected"] == pytest.approx(0.3, abs=0.02)
    (resolved,) = world.windows_of(usual(60, level=0.9))
    assert resolved.transition == "resolved"
    assert world.windows_of(usual(60, level=0.9)) == []
    assert world.baselines["h0"]["expected"] == pytest.approx(0.9, abs=0.03)


def test_what_was_learned_is_told_taught_and_forgotten() -> None:
    world = World()
    world.windows_of(usual(150))
    row = world.baselines["h0"]
    assert pa.RecordBatch.from_pylist([row], BASELINES).validate(full=True) is None
    assert row["baseline_id"] == baseline_id("rule:hosts/Busy", (("host", "h0"),))
    assert (row["source"], row["bar"], row["warming_up"]) == ("rule:hosts/Busy", 1.0, False)
    assert row["low"] < 0.3 < row["high"] < 0.5
    (event,) = world.windows_of([0.9])
    assert event.alert is not None
    (marked,) = world.command(CommandKind.MARK, event.alert.id)
    assert marked.transition == "marked"
    world.windows_of(usual(60))
    assert world.baselines["h0"]["bar"] == pytest.approx(1.25, rel=1e-3)  # and coming down
    assert world.baselines["h0"]["bar"] < 1.25
    assert world.baselines["h0"]["high"] > row["high"]
    assert world.command(CommandKind.RESET, "0" * 16) is None
    assert world.command(CommandKind.RESET, row["baseline_id"]) == []
    assert world.windows_of([*usual(40), 9.0]) == []
    assert world.baselines["h0"]["warming_up"]
    assert world.baselines["h0"]["points"] < 45


def test_a_restart_anywhere_gives_the_same() -> None:
    values = [*usual(140), *usual(70, level=0.9), *usual(60, level=0.2), 0.9, 0.9]
    undisturbed, restarted = World(), World()
    rng = random.Random(3)
    for value in values:
        if rng.random() < 0.1:
            restarted.restart()
        one, other = undisturbed.window({"h0": value}), restarted.window({"h0": value})
        assert one.events == other.events
        assert one.rows == other.rows


def test_windows_that_overlap_are_learned_once_a_window() -> None:
    world = World(RULE.replace("op: gt", "op: gt, window: 1m"))
    assert world.windows_of(usual(6 * 110)) == []
    assert world.baselines["h0"]["points"] == 110
    assert [event.transition for event in world.windows_of([0.9] * 3)] == ["active"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("threshold: auto", "threshold: much"), "must be a finite number, without quotes, or auto"),
        (("threshold: auto", "threshold: [1]"), "must be a finite number, without quotes, or auto"),
        (("op: gt", "op: eq"), "edge of a band"),
        (("threshold: auto", "threshold: auto, clear_threshold: 1"), "no meaning with `threshold: auto`"),
    ],
)
def test_what_cannot_work_is_refused(change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load([("rules.yaml", RULE.replace(*change))])


def test_what_it_means() -> None:
    (sentence,) = group_of(RULE).sentences()
    assert "is above what is usual, as learned from its own past" in sentence
