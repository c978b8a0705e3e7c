"""The detectors of one `DetectorSpec`: of each of its label sets one, in one bank.

Strictly causal: a point is judged by the rows that had come when its window was evaluated, and never again. Bounded:
at most MAX_SERIES label sets, and one that has had no value for FORGET_US is forgotten.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.alerts import Labels
from tailrace_schemas.config.anomaly import DetectorSpec

from tailrace_flows.core.alerting.rules import KNOWN_US, Comparison, Selectors, keep_by_metric
from tailrace_flows.core.alerting.select import LabelSets
from tailrace_flows.core.alerting.store import Keep, WindowStore
from tailrace_flows.core.anomaly import AnomalyConfig, DetectorBank, Direction

__all__ = ["FORGET_US", "MAX_SERIES", "Anomalies", "Judged"]

MAX_SERIES: Final = 10_000
"""Label sets, at most: 15 MB. What comes beyond is not judged, and counted."""
FORGET_US: Final = 7 * 86_400_000_000
"""As long as the longest season."""

_NEVER: Final = 1 << 62
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
    """See the module. About 1.5 kB a label set, in memory and in each snapshot."""

    def __init__(self, spec: DetectorSpec, state: Any = None) -> None:
        """Anew, or from `snapshot`; what was learned of another value (metric, labels, interval ...) is dropped.

        Raises:
            ValueError: the state is of another format.
        """
        question = spec.question()
        by = tuple(sorted(question.label_names()))
        self.interval_us = round(spec.interval_s * 1_000_000)
        self._comparison = Comparison(question, by, KNOWN_US + self.interval_us, Selectors())
        self.keep: Mapping[str, Keep] = keep_by_metric(self._comparison.keep())
        config = AnomalyConfig(
            direction=Direction(spec.direction),
            min_deviation=spec.min_deviation,
            min_relative_deviation=spec.min_relative_deviation,
        )
        self._learned = spec.model_dump_json(exclude=_UNLEARNED)
        self._slots: dict[Labels, int] = {}
        self._free: list[int] = []
        self._seen_us: NDArray[np.int64] = np.empty(0, np.int64)
        """By slot, when it last had a value; of free ones _NEVER."""
        self._bank_state: bytes | None = None
        if state is not None and state[0] == self._learned:
            _, self._bank_state, self._slots, self._free, self._seen_us = state
            self._slots, self._free, self._seen_us = dict(self._slots), list(self._free), self._seen_us.copy()
        self._bank = DetectorBank(config=config, state=self._bank_state)
        self._placed: tuple[LabelSets | None, NDArray[np.int64]] = (None, np.empty(0, np.int64))
        self.over_limit = 0
        """Points that were not judged, since there were too many label sets."""

    def __len__(self) -> int:
        return len(self._slots)

    def evaluate(self, store: WindowStore, t_us: int) -> list[Judged]:
        """Judges a point of each label set that has a value; `t_us` is later than before.

        Costs a rule's evaluation, 1 us a label set and 10 us for each that has warmed up.
        """
        self._forget(t_us)
        sets, value, *_ = self._comparison.evaluate(store, t_us)
        measured = np.flatnonzero(np.isfinite(value))
        slots = self._place(sets, measured)
        measured = measured[slots >= 0]
        slots = slots[slots >= 0]
        if slots.size == 0:
            return []
        self._seen_us[slots] = t_us
        self._bank_state = None
        judged = self._bank.update(t_us, value[measured], slots)
        bars = self._bank.bar[slots]
        columns = (value[measured], judged.score, judged.flag, judged.expected, judged.low, judged.high, bars)
        warm = np.flatnonzero(~judged.warming_up & ~np.isnan(judged.expected))
        of_points = zip(*(column[warm].tolist() for column in columns), strict=True)
        return [
            Judged(sets.labels(number), *point)
            for number, point in zip(measured[warm].tolist(), of_points, strict=True)
        ]

    def false_positive(self, labels: Labels) -> None:
        """A person says that a flag was none: raises the bar of its series, if it is still there."""
        slot = self._slots.get(labels)
        if slot is not None:
            self._bank.false_positive(slot)
            self._bank_state = None

    def snapshot(self) -> Any:
        """The state for recovery. The bank is pickled once an evaluation, however often this is asked for."""
        if self._bank_state is None:
            self._bank_state = self._bank.snapshot()
        return self._learned, self._bank_state, dict(self._slots), list(self._free), self._seen_us.copy()

    # --------------------------------------------------------------------------------------------------

    def _place(self, sets: LabelSets, measured: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of the `measured` label sets, new ones included; -1: there are too many."""
        if self._placed[0] is not sets:
            found = [self._slots.get(sets.labels(number), -1) for number in range(len(sets))]
            self._placed = (sets, np.array(found, np.int64))
        slots = self._placed[1]
        new = measured[slots[measured] < 0]
        room = MAX_SERIES - len(self._slots)
        self.over_limit += max(0, new.size - room)
        for number in new[:room].tolist():
            slots[number] = self._slots[sets.labels(number)] = self._free.pop() if self._free else self._next_slot()
        return slots[measured]

    def _next_slot(self) -> int:
        slot = len(self._slots)  # none is free
        if slot >= self._bank.capacity:
            capacity = min(MAX_SERIES, slot + slot // 4 + 8)
            self._bank.grow(capacity)
            self._seen_us = np.concatenate([self._seen_us, np.full(capacity - self._seen_us.size, _NEVER)])
        return slot

    def _forget(self, t_us: int) -> None:
        gone = self._seen_us <= t_us - FORGET_US
        if not gone.any():
            return
        self._slots = {labels: slot for labels, slot in self._slots.items() if not gone[slot]}
        free = np.flatnonzero(gone)
        self._bank.reset(free)
        self._bank_state = None
        self._seen_us[free] = _NEVER
        self._free += free.tolist()
        self._placed = (None, np.empty(0, np.int64))
