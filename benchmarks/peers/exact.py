"""What the right answers are, and how far a peer's are from them.

Every peer leaves a CSV file of the columns COLUMNS, a row for each series and window.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import csv

from benchmarks import load
from benchmarks.peers.topics import WINDOW_US, global_series

QUANTILES = (0.5, 0.95, 0.99, 0.999)
COLUMNS = ("series", "window", "count", "sum", "p50", "p95", "p99", "p999")
SUM_ERROR_MAX = 1e-9
"""Relative, by the order of adding."""


class WrongError(Exception):
    """A peer's counts or sums are not right. The message says which."""


@dataclass(frozen=True)
class Exact:
    """The answers for each series and window that has samples, in the order of `key`."""

    key: Any
    """window << 32 | series, ascending."""
    count: Any
    sum: Any
    low: Any
    """[row, quantile]: the sample at rank floor(q * (n - 1))."""
    high: Any
    """[row, quantile]: the sample at rank ceil(q * (n - 1))."""


def exact(series: Any, window: Any, value: Any) -> Exact:
    """Of samples as columns. Sorts them: 0.3 s a million.

    Libraries define a quantile's rank differently; the samples at all those ranks are between `low` and `high`, so an
    answer between them is right by some definition.
    """
    key = window.astype("i8") << 32 | series.astype("i8")
    order = np.lexsort((value, key))
    key, value = key[order], value[order]
    starts = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
    count = np.diff(np.r_[starts, len(key)])
    rank = np.array(QUANTILES) * (count[:, None] - 1)
    return Exact(
        key[starts], count, np.add.reduceat(value, starts),
        value[starts[:, None] + np.floor(rank).astype("i8")], value[starts[:, None] + np.ceil(rank).astype("i8")],
    )  # fmt: skip


def exact_of_load(series: int, samples: int) -> Exact:
    """Of the first samples of the load."""
    columns = [
        (global_series(one, series), (one.base_time_us + one.time_offset_us.astype("i8")) // WINDOW_US, one.value)
        for one in load.batches(series, samples)
    ]
    return exact(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def errors(answers: Exact, path: Path) -> dict[str, float]:
    """`error_max` and `error_p99` of the quantiles in a peer's file, relative, in percent, over all rows and quantiles.

    Raises WrongError: a row is missing, double or too many, or its count or sum is wrong.
    """
    if not path.exists() or not path.stat().st_size:
        raise WrongError(f"{len(answers.key)} rows expected, none found")
    table = csv.read_csv(path, csv.ReadOptions(column_names=list(COLUMNS)))
    found = {name: table[name].to_numpy() for name in COLUMNS}
    key = found["window"].astype("i8") << 32 | found["series"].astype("i8")
    order = np.argsort(key)
    if not np.array_equal(key[order], answers.key):
        raise WrongError(
            f"{len(answers.key)} rows expected, {len(key)} found, {len(np.intersect1d(key, answers.key))} of them right"
        )
    if not np.array_equal(found["count"][order], answers.count):
        raise WrongError(f"counts differ: {answers.count.sum()} samples in all, {found['count'].sum()} found")
    if not np.allclose(found["sum"][order], answers.sum, rtol=SUM_ERROR_MAX, atol=0):
        raise WrongError(f"sums differ: {answers.sum.sum()} in all, {found['sum'].sum()} found")
    quantiles = np.stack([found[name][order] for name in COLUMNS[4:]], axis=1)
    away = np.maximum(answers.low - quantiles, quantiles - answers.high).clip(0)
    error = 100 * away / np.where(quantiles < answers.low, answers.low, answers.high)
    return {"error_max_percent": float(error.max()), "error_p99_percent": float(np.quantile(error, 0.99))}
