"""How much of each service's live samples are misdated: a clock is wrong. What rules see of it, in rows of 10 s.

A plain state machine; wall time comes as an argument, and is what the rows are dated by: the samples' own is wrong.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa
from tailrace_schemas.rows import WINDOW_ROWS
from tailrace_schemas.samples import Series

from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.series import series_id
from tailrace_flows.core.table import Block

__all__ = ["FUTURE", "LATE", "MISDATED", "Misdated"]

MISDATED: Final = "tailrace.samples.misdated"
"""The share of a service's samples of 10 s, by when they came, that are late or of the future: a gauge, 0..1."""
LATE: Final = "late"
FUTURE: Final = "future"
WINDOW_S: Final = 10
EVERY_US: Final = 1_000_000
"""A row is given again, fuller, at most so often."""
_SERIES: Final = {how: Series(MISDATED, "gauge", "1", (("tailrace.samples.time", how),)) for how in (LATE, FUTURE)}


@dataclass
class _Window:
    start_s: int
    samples: int = 0
    misdated: dict[str, int] = field(default_factory=dict)
    due_us: int = 0


class Misdated:
    """One shard's services. Memory: 300 bytes for each that was heard of in the last seconds."""

    def __init__(self) -> None:
        self._windows: dict[str, _Window] = {}
        self._changed: set[str] = set()

    def count(self, service: str, samples: int, late: int, future: int, now_us: int) -> None:
        """`samples` have come, and of them `late` and `future` ones."""
        start_s = now_us // (WINDOW_S * 1_000_000) * WINDOW_S
        window = self._windows.get(service)
        if window is None or window.start_s != start_s:
            window = self._windows[service] = _Window(start_s)
        window.samples += samples
        for how, number in ((LATE, late), (FUTURE, future)):
            if number:
                window.misdated[how] = window.misdated.get(how, 0) + number
                self._changed.add(service)

    def blocks(self, now_us: int) -> Iterator[Block]:
        """The rows that are due, for the aggregates topic. They say nothing of closed windows."""
        for service in [one for one in self._changed if now_us >= self._windows[one].due_us]:
            self._changed.discard(service)
            window = self._windows[service]
            window.due_us = now_us + EVERY_US
            rows = [_row(service, how, number, window) for how, number in window.misdated.items()]
            yield Block(service, "", WINDOW_S, UNKNOWN_US, pa.RecordBatch.from_pylist(rows, WINDOW_ROWS))

    def forget(self, now_us: int) -> None:
        """Drops what is over."""
        until_s = now_us // 1_000_000 - WINDOW_S
        self._windows = {service: one for service, one in self._windows.items() if one.start_s >= until_s}
        self._changed &= self._windows.keys()


def _row(service: str, how: str, number: int, window: _Window) -> dict[str, object]:
    share = number / window.samples
    series = _SERIES[how]
    return {
        "metric": series.metric, "service": service, "series_id": series_id(service, series),
        "attributes": list(series.attributes), "kind": series.kind, "unit": series.unit, "stream": "",
        "window_start": window.start_s, "count": 1, "sum": share, "min": share, "max": share, "last": share,
        "bucket_index": [], "bucket_count": [], "version": window.samples,
    }  # fmt: skip
