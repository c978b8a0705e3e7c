"""Rows of windows, as an Arrow record batch."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tailrace_schemas.rows import WINDOW_ROWS

from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.grid import CODE_BIAS, CODE_MASK, Run
from tailrace_flows.core.increases import Increases
from tailrace_flows.core.series import COUNTER, CUMULATIVE, DISTRIBUTION, EVENT, GAUGE, SeriesIndex
from tailrace_flows.core.sketch import CODE_BITS, MAX_BUCKETS
from tailrace_flows.core.window import Window, fitting

__all__ = ["Cumulative", "build_rows", "rows_of"]

Cumulative = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Of rows of cumulative counters: increase, resets, points, last."""


def build_rows(
    series: SeriesIndex,
    stream: str,
    config: WindowConfig,
    start_us: int,
    window: Window,
    slots: NDArray[np.int64],
    increases: list[Increases | None],
) -> Any:
    """A record batch of WINDOW_ROWS for ascending `slots` of a folded window, which all have samples.

    `increases` are those of the 10 s windows it consists of, in order.
    """
    start_s = np.full(slots.size, start_us // 1_000_000)
    cumulative = _combine(increases, slots[series.kinds[slots] == CUMULATIVE])
    return rows_of(series, stream, config, start_s, slots, window, slots, cumulative)


def rows_of(
    series: SeriesIndex,
    stream: str,
    config: WindowConfig,
    start_s: NDArray[np.int64],
    series_slots: NDArray[np.int64],
    window: Window,
    slots: NDArray[np.int64],
    cumulative: Cumulative,
) -> Any:
    """Likewise, where the slots of the window are not those of the series: row i is of series `series_slots[i]`.

    `cumulative` has the figures of the rows that are of cumulative counters.
    """
    kinds = series.kinds[series_slots]
    count = window.count[slots]
    is_cumulative = kinds == CUMULATIVE
    distribution = kinds == DISTRIBUTION
    spread = distribution | (kinds == GAUGE)
    increase = np.where(kinds == COUNTER, window.sum[slots], np.where(kinds == EVENT, count, np.nan))
    resets = np.zeros(slots.size, np.int64)
    version = count.copy()
    last = window.last[slots]
    if is_cumulative.any():
        rows = np.flatnonzero(is_cumulative)
        increase[rows], resets[rows], version[rows], last[rows] = cumulative
    version += config.generation << 48

    keys, counts = window.sketch()
    if slots.size < np.count_nonzero(window.count):
        wanted = np.zeros(window.count.size, np.bool_)
        wanted[slots] = True
        kept = wanted[keys >> CODE_BITS]
        keys, counts = keys[kept], counts[kept]
    begins = _begins(keys, slots)
    scale = np.full(slots.size, window.scale, np.int8)
    if (np.diff(begins) > MAX_BUCKETS).any():
        keys, counts = _fit((keys, counts), begins, scale)
        begins = _begins(keys, slots)
    offsets = begins.astype(np.int32)

    columns = {name: column.take(pa.array(series_slots)) for name, column in series.columns().items()}
    columns |= {
        "service": pa.repeat(pa.scalar(series.service, pa.string()), slots.size),
        "stream": pa.repeat(pa.scalar(stream, pa.string()), slots.size),
        "window_start": pa.array(start_s, pa.timestamp("s", tz="UTC")),
        "count": pa.array(count.astype(np.uint64)),
        "sum": pa.array(window.sum[slots], mask=is_cumulative),
        "min": pa.array(window.min[slots], mask=~spread),
        "max": pa.array(window.max[slots], mask=~spread),
        "last": pa.array(last, mask=~((kinds == GAUGE) | is_cumulative)),
        "increase": pa.array(increase, mask=np.isnan(increase)),
        "resets": pa.array(resets.astype(np.uint32), mask=~is_cumulative),
        "bucket_index": pa.ListArray.from_arrays(offsets, pa.array(((keys & CODE_MASK) - CODE_BIAS).astype(np.int32))),
        "bucket_count": pa.ListArray.from_arrays(offsets, pa.array(counts.astype(np.uint64))),
        "scale": pa.array(scale, mask=~distribution),
        "version": pa.array(version.astype(np.uint64)),
    }
    return pa.record_batch([columns[field.name] for field in WINDOW_ROWS], schema=WINDOW_ROWS)


def _begins(keys: NDArray[np.int64], slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n + 1,) where the buckets of each slot begin, and where the last one's end."""
    return np.append(np.searchsorted(keys, slots << CODE_BITS), keys.size)


def _fit(run: Run, begins: NDArray[np.int64], scale: NDArray[np.int8]) -> Run:
    """The run with the buckets of all slots fitting; changes the `scale` of those that did not, in place."""
    keys, counts = run
    parts = []
    done = 0
    for row in np.flatnonzero(np.diff(begins) > MAX_BUCKETS).tolist():
        own = slice(begins[row], begins[row + 1])
        before = slice(done, own.start)
        fitted, scale[row] = fitting((keys[own], counts[own]), int(scale[row]))
        parts += [(keys[before], counts[before]), fitted]
        done = own.stop
    parts.append((keys[done:], counts[done:]))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _combine(increases: list[Increases | None], slots: NDArray[np.int64]) -> Cumulative:
    """The figures of cumulative `slots` over consecutive windows."""
    increase = np.full(slots.size, np.nan)
    resets = np.zeros(slots.size, np.int64)
    points = np.zeros(slots.size, np.int64)
    last = np.full(slots.size, np.nan)
    for part in increases:
        if part is None:
            continue
        rows = np.flatnonzero(np.isin(slots, part.slots))
        at = np.searchsorted(part.slots, slots[rows])
        # NaN: no increase so far.
        with np.errstate(over="ignore"):
            both = np.nansum([increase[rows], part.increase[at]], axis=0)
        increase[rows] = np.where(np.isnan(increase[rows]), part.increase[at], both)
        resets[rows] += part.resets[at]
        points[rows] = part.points[at]
        last[rows] = part.last[at]
    return increase, resets, points, last
