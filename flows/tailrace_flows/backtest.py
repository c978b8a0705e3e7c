"""Rules, objectives, health checks and detectors over past data: the evaluator's own state machines, on virtual time.

Samples that are all at hand need no watermarks: they are sorted, and windowed a stretch of time at once by the
aggregates of the core, which gives the rows that the window flow gives when nothing is late. From there on it is the
dataflow's `Evaluator`, one for all keys, with event time for wall time. Nothing here knows Kafka, ClickHouse or files.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tailrace_schemas.alerts import AlertEvent, Labels, Status, Transition, us_of
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.config.anomaly import ANOMALY_FLAGS, ANOMALY_SCORE
from tailrace_schemas.rows import WindowRows
from tailrace_schemas.samples import Series

from tailrace_flows.core.alerting.evaluator import Evaluator
from tailrace_flows.core.alerting.store import STEP_US, Keep
from tailrace_flows.core.alerting.units import AnomalyUnit, plan
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.increases import Baselines, Increases, increases_of
from tailrace_flows.core.rowblock import Cumulative, rows_of
from tailrace_flows.core.series import CUMULATIVE, SeriesIndex
from tailrace_flows.core.window import Window

__all__ = ["Backtest", "Samples", "Step", "windows_of"]

PARTS: Final = ("rules", "slo", "health", "anomaly")
STRIDE_US: Final = 600_000_000
"""How far is judged at once."""
SILENCE_US: Final = 24 * 3600 * 1_000_000
"""For so long, as rules look back, a stretch without a row is judged step by step; of the rest its last hour."""
STRETCH_US: Final = 3600 * 1_000_000
"""So much time is windowed at once."""
STRETCH_SAMPLES: Final = 1_000_000
"""Of a stretch; with more of them it is cut, at the borders of windows."""

Ints = NDArray[np.int64]


class Samples(NamedTuple):
    """Columns of equal length, in any order. `series` are places in `catalogue`."""

    catalogue: Sequence[tuple[str, Series]]
    """(service, series)."""
    time_us: Ints
    series: NDArray[np.int32]
    value: NDArray[np.float64]


def windows_of(samples: Samples) -> Iterator[Any]:
    """Record batches of WINDOW_ROWS, in the order of time; a batch has all rows of its windows.

    Nothing is late, whatever the order of the samples. Cost: 60 ns a sample and 0.5 us a row, and 20 ns a sample more
    where they are not in the order of time.
    """
    time_us, series, value = samples.time_us, samples.series, samples.value
    if (np.diff(time_us) < 0).any():
        order = np.argsort(time_us, kind="stable")
        time_us, series, value = time_us[order], series[order], value[order]
    services = {service: _ServiceWindows(service) for service, _ in samples.catalogue}
    slot = np.array([services[service].slot_of(one) for service, one in samples.catalogue], np.int64)
    place = {service: number for number, service in enumerate(services)}
    owner = np.array([place[service] for service, _ in samples.catalogue], np.int64)
    for first, end in _stretches(time_us):
        owners = owner[series[first:end]]
        order = np.argsort(owners, kind="stable")
        bounds = np.searchsorted(owners[order], np.arange(len(services) + 1)).tolist()
        parts = []
        for windows, low, high in zip(services.values(), bounds, bounds[1:], strict=False):
            if low < high:
                chosen = first + order[low:high]
                parts.append(windows.rows(time_us[chosen], slot[series[chosen]], value[chosen]))
        rows = pa.Table.from_batches(parts)
        (batch,) = (rows.sort_by("window_start") if len(parts) > 1 else rows).combine_chunks().to_batches()
        yield batch


def _stretches(time_us: Ints) -> Iterator[tuple[int, int]]:
    """Places in ascending times from and to which a stretch goes: whole windows."""
    first = 0
    while first < time_us.size:
        start_us = int(time_us[first] - time_us[first] % STEP_US)
        end = int(np.searchsorted(time_us, start_us + STRETCH_US))
        if end - first > STRETCH_SAMPLES:
            cut_us = int(time_us[first + STRETCH_SAMPLES])
            end = int(np.searchsorted(time_us, max(cut_us - cut_us % STEP_US, start_us + STEP_US)))
        yield first, end
        first = end


class _ServiceWindows:
    """One service's windows, a stretch of them at a time."""

    def __init__(self, service: str) -> None:
        self._config = WindowConfig()
        self._series = SeriesIndex(service, self._config.max_series)
        self._slots: dict[Series, int] = {}
        self._baselines = Baselines()

    def slot_of(self, series: Series) -> int:
        """The slot of a series, which all must have before the first rows."""
        if series not in self._slots:
            self._slots[series] = len(self._series.series)
            self._series.series.append(series)
        return self._slots[series]

    def rows(self, time_us: Ints, slots: Ints, value: NDArray[np.float64]) -> Any:
        """The rows of all windows of these samples, which have the times of no earlier ones. One slot of one window
        is one slot of the core's `Window`, so that all windows are folded at once."""
        size = len(self._series.series)
        first_us = int(time_us[0] - time_us[0] % STEP_US)
        cells, cell = np.unique((time_us - first_us) // STEP_US * size + slots, return_inverse=True)
        kinds = self._series.kinds[cells % size]
        window = Window(self._config.scale)
        window.add(cell.astype(np.int32), time_us, value, kinds)
        window.fold(kinds)
        start_s = first_us // 1_000_000 + cells // size * (STEP_US // 1_000_000)
        chosen = self._series.kinds[slots] == CUMULATIVE
        points = (time_us[chosen], slots[chosen], value[chosen])
        cumulative = self._cumulative(*points, first_us, cells[kinds == CUMULATIVE], size)
        every = np.arange(cells.size)
        return rows_of(self._series, "", self._config, start_s, cells % size, window, every, cumulative)

    def _cumulative(
        self, time_us: Ints, slots: Ints, value: NDArray[np.float64], first_us: int, cells: Ints, size: int
    ) -> Cumulative:
        """The figures of the rows of cumulative counters, whose differences go across windows."""
        if cells.size == 0:
            return np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
        numbers = (time_us - first_us) // STEP_US
        windows = {}
        for number in np.unique(numbers).tolist():
            one = numbers == number
            points = (slots[one].astype(np.int32), time_us[one], value[one])
            windows[first_us + number * STEP_US] = Window(self._config.scale, points=[points])
        found: list[Increases] = list(increases_of(windows, self._baselines, self._series).values())
        for window in windows.values():
            self._baselines.absorb(window, self._series)
        return (
            np.concatenate([one.increase for one in found]),
            np.concatenate([one.resets for one in found]),
            np.concatenate([one.points for one in found]),
            np.concatenate([one.last for one in found]),
        )


class Step(NamedTuple):
    """A change of the state of an alert."""

    time_us: int
    rule: str
    """Where the alert comes from: `rule_group/rule`, `slo/name` or `health/service`."""
    labels: Labels
    before: str
    """inactive or pending for one that becomes active; pending: its condition has held since before."""
    after: str
    value: float | None
    alert: str
    """Its id."""


class Backtest:
    """The evaluator of a configuration, for all keys, on virtual time. Deterministic. Feed it in the order of time."""

    def __init__(self, config: Mapping[str, ConfigModel]) -> None:
        self._evaluator = Evaluator(None, partial(plan, PARTS), config, UNKNOWN_US, live=False)
        self._judged_us: int | None = None
        self._detects = any(isinstance(unit, AnomalyUnit) for unit in self._evaluator.units.values())
        self._stride_us = STEP_US if self._detects else STRIDE_US
        """What a detector finds must be there for the next step."""

    @property
    def keep(self) -> dict[str, Keep]:
        """The metrics that are looked at, and how far back; but for those that detectors make."""
        found: dict[str, Keep] = {}
        for unit in self._evaluator.units.values():
            for metric, keep in unit.keep.items():
                if not (self._detects and metric in (ANOMALY_SCORE, ANOMALY_FLAGS)):
                    found[metric] = Keep(*map(max, found.get(metric, Keep(0)), keep))
        return found

    def feed(self, rows: Any) -> Iterator[Step]:
        """Judges all that ends with or before the last of these rows: a record batch of WINDOW_ROWS of 10 s windows,
        ascending, none of which starts before the end of those fed earlier."""
        if rows.num_rows == 0:
            return
        end_us = rows.column("window_start").cast(pa.int64()).to_numpy() * 1_000_000 + STEP_US
        first_us, last_us = int(end_us[0]), int(end_us[-1])
        if self._judged_us is None:
            self._judged_us = first_us - STEP_US
        step_until_us = min(first_us, self._judged_us + SILENCE_US)
        while step_until_us - self._judged_us > self._stride_us:
            yield from self._advance(rows.slice(0, 0), self._judged_us + self._stride_us)
        if first_us - self._judged_us > STRIDE_US:
            yield from self._advance(rows.slice(0, 0), first_us - STEP_US)
        at = 0
        until_us = first_us
        while at < rows.num_rows:
            end = int(np.searchsorted(end_us, until_us, side="right"))
            yield from self._advance(rows.slice(at, end - at), until_us)
            at, until_us = end, min(until_us + self._stride_us, last_us)

    def _advance(self, rows: Any, until_us: int) -> list[Step]:
        """Takes rows, and judges every step up to that time: of the last hour, where that is further."""
        self._judged_us = until_us
        block = WindowRows("", "", STEP_US // 1_000_000, until_us, rows)
        found = self._evaluator.on_rows(block, until_us)
        for scores in found.blocks:  # as in the flow: what is found is there after the time it was found at
            self._evaluator.on_rows(scores, until_us)
        return sorted(filter(None, map(_step, found.events)), key=lambda step: step[:3])


def _step(event: AlertEvent) -> Step | None:
    alert = event.alert
    if alert is None:
        return None
    labels = tuple(sorted(alert.labels.items()))
    time_us = us_of(event.time)
    if event.transition is Transition.ACTIVE:
        before = "pending" if us_of(alert.timestamp) < time_us else "inactive"
    else:
        before = Status.ACTIVE.value
    return Step(time_us, alert.source, labels, before, event.transition.value, alert.current_value, alert.id)
