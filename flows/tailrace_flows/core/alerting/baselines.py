"""What is usual for label sets: a detector for each, in one bank.

Bounded: at most MAX_SERIES label sets, and one that has had no value for FORGET_US is forgotten.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.alerts import Labels, alert_id

from tailrace_flows.core.alerting.select import LabelSets
from tailrace_flows.core.anomaly import AnomalyConfig, DetectorBank, Direction

__all__ = ["BASELINES_US", "FORGET_US", "MAX_SERIES", "AutoThreshold", "Baseline", "Baselines", "baseline_id"]

MAX_SERIES: Final = 10_000
"""Label sets, at most: 15 MB. What comes beyond is not judged, and counted."""
FORGET_US: Final = 7 * 86_400_000_000
"""As long as the longest season."""
BASELINES_US: Final = 300_000_000
"""What was learned is told so often."""
HELD_POINTS: Final = 60
"""A threshold that follows stands still while it is passed, for so many points; then that is the new normal."""

_NEVER: Final = 1 << 62


class Baseline(NamedTuple):
    """What was learned of one label set, for the time that it was asked for."""

    labels: Labels
    points: int
    warming_up: bool
    expected: float
    low: float
    high: float
    bar: float
    """How many times the usual evidence it needs; feedback raises it."""
    held: int = 0
    """Points for which it has stood still."""


def baseline_id(source: str, labels: Labels) -> str:
    """Of what was learned, for commands; `source` is `rule:group/alert` or `detector:name`."""
    return alert_id(f"baseline:{source}", labels, 0)


class Baselines:
    """See the module. About 1.6 kB a label set, in memory and in each snapshot."""

    def __init__(self, config: AnomalyConfig, state: Any = None, extra: Labels = ()) -> None:
        """Anew, or from `snapshot`. `extra` labels tell these baselines from others of the same source.

        Raises:
            ValueError: the state is of another format.
        """
        self._extra = extra
        self._slots: dict[Labels, int] = {}
        self._free: list[int] = []
        self._seen_us: NDArray[np.int64] = np.empty(0, np.int64)
        """By slot, when it last had a value; of free ones _NEVER."""
        self._bank_state: bytes | None = None
        if state is not None:
            self._bank_state, slots, free, seen_us = state
            self._slots, self._free, self._seen_us = dict(slots), list(free), seen_us.copy()
        self.bank = DetectorBank(config=config, state=self._bank_state)
        self._placed: tuple[LabelSets | None, NDArray[np.int64]] = (None, np.empty(0, np.int64))
        self.over_limit = 0
        """Points that were not judged, since there were too many label sets."""

    def __len__(self) -> int:
        return len(self._slots)

    def place(self, t_us: int, sets: LabelSets, measured: NDArray[np.int64]) -> NDArray[np.int64]:
        """The slots of the `measured` label sets, new ones included; -1: there are too many."""
        self._forget(t_us)
        if self._placed[0] is not sets:
            found = [self._slots.get(sets.labels(number), -1) for number in range(len(sets))]
            self._placed = (sets, np.array(found, np.int64))
        slots = self._placed[1]
        new = measured[slots[measured] < 0]
        room = MAX_SERIES - len(self._slots)
        self.over_limit += max(0, new.size - room)
        for number in new[:room].tolist():
            slots[number] = self._slots[sets.labels(number)] = self._free.pop() if self._free else self._next_slot()
        found_slots = slots[measured]
        self._seen_us[found_slots[found_slots >= 0]] = t_us
        return found_slots

    def update(self, t_us: int, values: NDArray[np.float64], slots: NDArray[np.int64]) -> Any:
        """Judges a point of each slot, and learns from it: `Verdicts`."""
        self._bank_state = None
        return self.bank.update(t_us, values, slots)

    def known(self, t_us: int) -> Iterator[Baseline]:
        """What was learned of each label set, as it would be used at `t_us`."""
        slots = np.array(sorted(self._slots.values()), np.int64)
        labels = {slot: one for one, slot in self._slots.items()}
        band = self.bank.band(t_us, slots)
        columns = (self.bank.points[slots], band.warming_up, band.expected, band.low, band.high, self.bank.bar[slots])
        for slot, *of_series in zip(slots.tolist(), *(column.tolist() for column in columns), strict=True):
            yield Baseline(tuple(sorted(labels[slot] + self._extra)), *of_series)

    def slot(self, labels: Labels) -> int | None:
        """Where a label set is."""
        return self._slots.get(labels)

    def false_positive(self, labels: Labels) -> None:
        """A person says that an alarm was none: raises the bar of its series, if it is still there."""
        slot = self._slots.get(labels)
        if slot is not None:
            self.bank.false_positive(slot)
            self._bank_state = None

    def reset(self, source: str, baseline: str) -> bool:
        """Begins anew with the label set of that `baseline_id`; False: it is none of these."""
        for labels, slot in self._slots.items():
            if baseline_id(source, tuple(sorted(labels + self._extra))) == baseline:
                self.bank.reset(np.array([slot]))
                self._bank_state = None
                return True
        return False

    def snapshot(self) -> Any:
        """The state for recovery. The bank is packed once after it learned, however often this is asked for."""
        if self._bank_state is None:
            self._bank_state = self.bank.snapshot()
        return self._bank_state, dict(self._slots), list(self._free), self._seen_us.copy()

    # --------------------------------------------------------------------------------------------------

    def _next_slot(self) -> int:
        slot = len(self._slots)  # none is free
        if slot >= self.bank.capacity:
            capacity = min(MAX_SERIES, slot + slot // 4 + 8)
            self.bank.grow(capacity)
            self._seen_us = np.concatenate([self._seen_us, np.full(capacity - self._seen_us.size, _NEVER)])
        return slot

    def _forget(self, t_us: int) -> None:
        gone = self._seen_us <= t_us - FORGET_US
        if not gone.any():
            return
        self._slots = {labels: slot for labels, slot in self._slots.items() if not gone[slot]}
        free = np.flatnonzero(gone)
        self.bank.reset(free)
        self._bank_state = None
        self._seen_us[free] = _NEVER
        self._free += free.tolist()
        self._placed = (None, np.empty(0, np.int64))


class AutoThreshold:
    """A threshold for each label set that follows its values: the edge of the band in which they usually lie.

    A point is learned once a `period_us`; between them the band moves with the seasons alone. While a value is past it,
    nothing is learned, so an incident does not become normal, but for HELD_POINTS points only.
    """

    def __init__(self, *, above: bool, period_us: int, state: Any = None) -> None:
        """Anew, or from `snapshot`. Raises as `Baselines` does."""
        direction = Direction.ABOVE if above else Direction.BELOW
        self._above, self._period_us = above, period_us
        baselines, held = (None, np.empty(0, np.int32)) if state is None else state
        self._baselines = Baselines(AnomalyConfig(direction=direction), baselines)
        self._held: NDArray[np.int32] = held.copy()
        """By slot, for how many points the threshold has been passed."""

    @property
    def over_limit(self) -> int:
        """As of `Baselines`."""
        return self._baselines.over_limit

    def limits(self, t_us: int, sets: LabelSets, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The threshold of each label set, from what came before `t_us`; NaN: not known. Then learns the values.

        Costs some 0.3 ms, and 1 us a label set.
        """
        limits = np.full(len(sets), np.nan)
        measured = np.flatnonzero(np.isfinite(values))
        slots = self._baselines.place(t_us, sets, measured)
        measured, slots = measured[slots >= 0], slots[slots >= 0]
        if slots.size == 0:
            return limits
        band = self._baselines.bank.band(t_us, slots)
        edge = np.where(band.warming_up, np.nan, band.high if self._above else band.low)
        limits[measured] = edge
        if t_us % self._period_us == 0:
            if self._held.size < self._baselines.bank.capacity:
                more = np.zeros(self._baselines.bank.capacity - self._held.size, np.int32)
                self._held = np.concatenate([self._held, more])
            found = values[measured]
            past = found > edge if self._above else found < edge
            self._held[slots] = np.where(past, self._held[slots] + 1, 0)
            learn = ~past | (self._held[slots] > HELD_POINTS)
            if learn.any():
                self._baselines.update(t_us, found[learn], slots[learn])
        return limits

    def known(self, t_us: int) -> Iterator[Baseline]:
        """As of `Baselines`."""
        for one in self._baselines.known(t_us):
            slot = self._baselines.slot(one.labels)
            assert slot is not None
            yield one._replace(held=int(self._held[slot])) if slot < self._held.size else one

    def false_positive(self, labels: Labels) -> None:
        """As of `Baselines`."""
        self._baselines.false_positive(labels)

    def reset(self, source: str, baseline: str) -> bool:
        """As of `Baselines`."""
        return self._baselines.reset(source, baseline)

    def snapshot(self) -> Any:
        """The state for recovery."""
        return self._baselines.snapshot(), self._held.copy()
