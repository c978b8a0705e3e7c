"""The detectors of one `DetectorSpec`: of each of its label sets one, in one bank.

Strictly causal: a point is judged by the rows that had come when its window was evaluated, and never again.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from tailrace_schemas.alerts import Labels
from tailrace_schemas.config.anomaly import DetectorSpec

from tailrace_flows.core.alerting.baselines import FORGET_US, Baseline, Baselines
from tailrace_flows.core.alerting.rules import Comparison, Selectors, keep_by_metric
from tailrace_flows.core.alerting.store import Keep, WindowStore
from tailrace_flows.core.anomaly import AnomalyConfig, Direction, Joint

__all__ = ["Anomalies", "JointAnomalies", "Judged"]

_UNLEARNED: Final = {"direction", "min_deviation", "min_relative_deviation"}
"""Keys of a spec that may change without what was learned being of something else."""

TOLD_SCORE: Final = 0.9
"""Of all signals together: from here on it is said which are unusual ..."""
TOLD_SIGNAL: Final = 0.8
"""... which are those with this score."""


class Judged(NamedTuple):
    """A point of one series that has warmed up."""

    labels: Labels
    value: float
    score: float
    flag: bool
    expected: float
    low: float
    high: float
    bar: float
    """How many times the usual evidence its next flag needs."""
    reason: str = ""
    """Which signals are unusual; empty: there is one."""


class Anomalies:
    """See the module."""

    def __init__(self, spec: DetectorSpec, state: Any = None, extra: Labels = ()) -> None:
        """Anew, or from `snapshot`; what was learned of another value (metric, labels, interval ...) is dropped.

        `extra`: as of `Baselines`.

        Raises:
            ValueError: the state is of another format.
        """
        question = spec.question()
        by = tuple(sorted(question.label_names()))
        self.interval_us = round(spec.interval_s * 1_000_000)
        self._comparison = Comparison(question, by, self.interval_us, Selectors())
        self.keep: Mapping[str, Keep] = keep_by_metric(self._comparison.keep())
        config = AnomalyConfig(
            direction=Direction(spec.direction),
            min_deviation=spec.min_deviation,
            min_relative_deviation=spec.min_relative_deviation,
        )
        self._learned = spec.model_dump_json(exclude=_UNLEARNED)
        kept = state is not None and state[0] == self._learned
        self._baselines = Baselines(config, state[1] if kept else None, extra)

    def __len__(self) -> int:
        return len(self._baselines)

    @property
    def over_limit(self) -> int:
        """Points that were not judged, since there were too many label sets."""
        return self._baselines.over_limit

    def evaluate(self, store: WindowStore, t_us: int) -> list[Judged]:
        """Judges a point of each label set that has a value; `t_us` is later than before.

        Costs a rule's evaluation, 1 us a label set and 10 us for each that has warmed up.
        """
        found, number = self._comparison.evaluate(store, t_us)
        sets, value = found.sets, found.value[number]
        measured = np.flatnonzero(np.isfinite(value))
        slots = self._baselines.place(t_us, sets, measured)
        measured = measured[slots >= 0]
        slots = slots[slots >= 0]
        if slots.size == 0:
            return []
        judged = self._baselines.update(t_us, value[measured], slots)
        bars = self._baselines.bank.bar[slots]
        columns = (value[measured], judged.score, judged.flag, judged.expected, judged.low, judged.high, bars)
        warm = np.flatnonzero(~judged.warming_up & ~np.isnan(judged.expected))
        of_points = zip(*(column[warm].tolist() for column in columns), strict=True)
        return [
            Judged(sets.labels(number), *point)
            for number, point in zip(measured[warm].tolist(), of_points, strict=True)
        ]

    def known(self, t_us: int) -> Iterator[Baseline]:
        """What was learned of each label set, as it would be used at `t_us`."""
        return self._baselines.known(t_us)

    def false_positive(self, labels: Labels) -> None:
        """A person says that a flag was none: raises the bar of its series, if it is still there."""
        self._baselines.false_positive(labels)

    def reset(self, source: str, baseline: str) -> bool:
        """As `Baselines.reset`."""
        return self._baselines.reset(source, baseline)

    def snapshot(self) -> Any:
        """The state for recovery."""
        return self._learned, self._baselines.snapshot()


class JointAnomalies:
    """The detectors of a `DetectorSpec` with signals: of each label set one for each signal, and one for them all."""

    def __init__(self, spec: DetectorSpec, state: Any = None) -> None:
        """Anew, or from `snapshot`. Raises as `Anomalies` does."""
        states, joints = ({}, {}) if state is None else state
        self._signals = {
            name: Anomalies(part, states.get(name), (("signal", name),)) for name, part in spec.parts().items()
        }
        self._joints = {labels: (seen_us, Joint(one)) for labels, (seen_us, one) in joints.items()}
        """Label set -> when it was last judged, and what speaks against it."""
        self.interval_us = round(spec.interval_s * 1_000_000)
        keeps = (one for part in self._signals.values() for one in part.keep.items())
        self.keep: Mapping[str, Keep] = keep_by_metric(keeps)

    def __len__(self) -> int:
        return max(map(len, self._signals.values()))

    @property
    def over_limit(self) -> int:
        """As of `Anomalies`, of all signals."""
        return sum(part.over_limit for part in self._signals.values())

    def evaluate(self, store: WindowStore, t_us: int) -> list[Judged]:
        """Judges a point of each label set of which one signal at least has warmed up; `t_us` is later than before.

        Costs what its signals do, and 10 us a label set.
        """
        found: dict[Labels, dict[str, Judged]] = {}
        for name, part in self._signals.items():
            for one in part.evaluate(store, t_us):
                found.setdefault(one.labels, {})[name] = one
        gone = [labels for labels, (seen_us, _) in self._joints.items() if seen_us <= t_us - FORGET_US]
        for labels in gone:
            del self._joints[labels]
        return [self._judged(labels, signals, t_us) for labels, signals in found.items()]

    def _judged(self, labels: Labels, signals: Mapping[str, Judged], t_us: int) -> Judged:
        _, joint = self._joints.get(labels) or (0, Joint())
        self._joints[labels] = (t_us, joint)
        verdict = joint.update({name: one.score for name, one in signals.items()})
        reason = ""
        if verdict.flag or verdict.score >= TOLD_SCORE:
            odd = sorted(signals.items(), key=lambda pair: -pair[1].score)
            said = [_said(name, one) for name, one in odd if one.score >= TOLD_SIGNAL] or [_said(*odd[0])]
            reason = ", ".join(said) + (": unusual together" if len(said) > 1 else ": unusual")
        return Judged(
            labels, verdict.evidence, verdict.score, verdict.flag, 0.0, 0.0, verdict.needed, joint.bar, reason
        )  # fmt: skip

    def known(self, t_us: int) -> Iterator[Baseline]:
        """As of `Anomalies`, with the name of the signal as a label."""
        for part in self._signals.values():
            yield from part.known(t_us)

    def false_positive(self, labels: Labels) -> None:
        """As of `Anomalies`."""
        if labels in self._joints:
            self._joints[labels][1].false_positive()

    def reset(self, source: str, baseline: str) -> bool:
        """As of `Anomalies`: of one signal of a label set."""
        return any(part.reset(source, baseline) for part in self._signals.values())

    def snapshot(self) -> Any:
        """The state for recovery."""
        joints = {labels: (seen_us, joint.snapshot()) for labels, (seen_us, joint) in self._joints.items()}
        return {name: part.snapshot() for name, part in self._signals.items()}, joints


def _said(name: str, one: Judged) -> str:
    side = "above" if one.value > one.expected else "below"
    return f"{name} is {one.value:.4g}, {side} the expected {one.expected:.4g}"
