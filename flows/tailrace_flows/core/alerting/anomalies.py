"""The detectors of one `DetectorSpec`: of each of its label sets one, in one bank.

Strictly causal: a point is judged by the rows that had come when its window was evaluated, and never again.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from tailrace_schemas.alerts import Labels
from tailrace_schemas.config.anomaly import DetectorSpec

from tailrace_flows.core.alerting.baselines import Baseline, Baselines
from tailrace_flows.core.alerting.rules import Comparison, Selectors, keep_by_metric
from tailrace_flows.core.alerting.store import Keep, WindowStore
from tailrace_flows.core.anomaly import AnomalyConfig, Direction

__all__ = ["Anomalies", "Judged"]

_UNLEARNED: Final = {"direction", "min_deviation", "min_relative_deviation"}
"""Keys of a spec that may change without what was learned being of something else."""


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


class Anomalies:
    """See the module."""

    def __init__(self, spec: DetectorSpec, state: Any = None) -> None:
        """Anew, or from `snapshot`; what was learned of another value (metric, labels, interval ...) is dropped.

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
        self._baselines = Baselines(config, state[1] if kept else None)

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
