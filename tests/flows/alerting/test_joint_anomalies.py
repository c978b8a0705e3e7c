"""Several signals of a service together: flagged with the reason, taught, reset, the same after any restart."""

import math
import pickle
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_flows.core.alerting.units import AnomalyUnit
from tailrace_flows.core.anomaly.joint import EVIDENCE, Joint, joint_rarity
from tailrace_schemas.alerts import Command, CommandKind, time_of
from tailrace_schemas.config import load
from tailrace_schemas.config.anomaly import DetectorSpec
from tailrace_schemas.rows import ANOMALIES, BASELINES
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of, moment

START_S = 1_700_000_400
SPEC = """
detectors:
- name: together
  queries:
    p99: {metric: p99, aggregate: mean}
    failed: {metric: failed, aggregate: mean}
    all: {metric: all, aggregate: mean}
    cpu: {metric: cpu, aggregate: mean}
  signals: {latency: p99, errors: failed / all, rate: all, saturation: cpu}
  by: [service]
  interval: 10s
"""
USUAL = {"p99": 0.3, "failed": 2.0, "all": 100.0, "cpu": 0.5}


class World:
    def __init__(self) -> None:
        (item,) = load([("detectors.yaml", SPEC)]).items
        assert isinstance(item.model, DetectorSpec)
        self.spec = item.model
        self.unit = AnomalyUnit(self.spec)
        self.store = WindowStore(self.unit.keep)
        self.baselines: list[dict[str, Any]] = []

    def window(self, end_s: int, values: dict[str, float]) -> list[dict[str, Any]]:
        rows = [Row("web", Series(metric, "gauge", "1", ()), START_S + end_s, (one,)) for metric, one in values.items()]
        self.store.add("", batch_of(rows))
        found = self.unit.judge(moment(self.store, START_S + end_s))
        self.store.forget((START_S + end_s) * S)
        self.baselines = found.rows.get("baseline_rows", self.baselines)
        return found.rows.get("anomaly_rows", [])

    def restart(self) -> None:
        unit, store = pickle.loads(pickle.dumps((self.unit.snapshot(), self.store.snapshot())))
        self.unit = AnomalyUnit(self.spec, unit)
        self.store = WindowStore(self.unit.keep, store)

    def command(self, kind: CommandKind, about: str) -> Any:
        return self.unit.command(Command(id="c", kind=kind, alert_id=about, time=time_of(0), author="ann"))


def load_of(points: int, shift: float, at: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Signals with 5 % of noise; from `at` on, latency, failures and saturation are higher by some deviations."""
    rng = random.Random(4)
    for number in range(1, points + 1):
        values = {}
        for metric, usual in USUAL.items():
            off = shift if number >= at and metric != "all" else 0.0
            values[metric] = usual * (1 + 0.05 * (rng.gauss(0, 1) + off))
        yield 10 * number, values


def test_shifts_of_several_signals_are_flagged_together() -> None:
    world = World()
    flagged = [row for one in load_of(330, 6.0, 301) for row in world.window(*one) if row["flag"]]
    assert len(flagged) == 1
    (row,) = flagged
    assert pa.RecordBatch.from_pylist([row], ANOMALIES).validate(full=True) is None
    assert START_S + 3010 <= row["window_end"] <= START_S + 3040  # within four windows
    assert (row["metric"], row["service"], row["low"]) == ("latency, errors, rate, saturation", "web", 0.0)
    assert row["value"] >= row["high"] >= EVIDENCE
    assert row["reason"].endswith(": unusual together")
    assert "latency is 0.3" in row["reason"]
    assert "above the expected 0.3" in row["reason"]
    assert {dict(one["labels"])["signal"] for one in world.baselines} == set(world.spec.signals)
    assert pa.RecordBatch.from_pylist(world.baselines, BASELINES).validate(full=True) is None
    assert world.command(CommandKind.FEEDBACK, row["anomaly_id"]) == []
    (marked,) = [one for one in world.window(3310, USUAL) if one["marked_by"]]
    assert marked == row | {"marked_by": "ann", "version": 2}
    # 5 % for the flag itself, a quarter for the false alarm.
    assert world.unit.snapshot()[1][1][(("service", "web"),)][1][2] == pytest.approx(1.05 * 1.25, rel=1e-3)
    latency = next(one for one in world.baselines if dict(one["labels"])["signal"] == "latency")
    assert world.command(CommandKind.RESET, "0" * 16) is None
    assert world.command(CommandKind.RESET, latency["baseline_id"]) == []
    for end_s in range(3320, 3700, 10):
        world.window(end_s, USUAL)
    warming = {dict(one["labels"])["signal"] for one in world.baselines if one["warming_up"]}
    assert warming == {"latency"}


def test_a_restart_anywhere_gives_the_same() -> None:
    history = list(load_of(220, 6.0, 190))
    undisturbed, restarted = World(), World()
    rng = random.Random(2)
    flags = 0
    for one in history:
        if rng.random() < 0.05:
            restarted.restart()
        expected = undisturbed.window(*one)
        assert restarted.window(*one) == expected
        flags += sum(row["flag"] for row in expected)
    assert flags == 1


def test_the_rarity_of_several_is_that_of_their_sum() -> None:
    assert joint_rarity({"a": 3.0}) == 3.0
    rng = np.random.default_rng(1)
    for count, total in ((2, 4.0), (4, 8.0), (7, 10.0)):
        share = (rng.exponential(size=(400_000, count)).sum(axis=1) >= total).mean()
        spread = dict.fromkeys(map(str, range(count)), total / count)
        assert math.exp(-joint_rarity(spread)) == pytest.approx(share, rel=0.05)


def test_evidence_adds_up_and_an_episode_is_flagged_once() -> None:
    joint = Joint()
    quiet = {"a": 0.5, "b": 0.6}
    assert not any(joint.update(quiet).flag for _ in range(1_000))
    flags = [joint.update({"a": 0.999, "b": 0.99}).flag for _ in range(30)]
    assert flags.count(True) == 1
    assert flags.index(True) in (1, 2)
    assert joint.update({"a": 1.0}).evidence < 100  # a score of 1 counts finitely
