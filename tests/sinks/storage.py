"""A database under test, rows to put into it, and what numpy makes of the same samples."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from tailrace_flows.core.sketch import codes_of
from tailrace_flows.settings import ClickHouseSettings
from tailrace_schemas.rows import WINDOW_ROWS
from tailrace_sinks.clickhouse import ClickHouseWriter

START_S = 1_767_225_600  # 2026-01-01
Row = dict[str, Any]


@dataclass
class Storage:
    """A ClickHouse database."""

    client: Any
    settings: ClickHouseSettings

    def writer(self, **options: Any) -> ClickHouseWriter:
        return ClickHouseWriter(self.settings.url, database=self.settings.database, **options)

    def write(self, table: str, rows: Sequence[Row]) -> None:
        writer = self.writer()
        writer.write(table, [batch(rows)])
        writer.close()

    def ask(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a result."""
        rows: list[tuple[Any, ...]] = [
            tuple(row) for row in self.client.query(query, parameters=parameters).result_rows
        ]
        return rows

    def one(self, query: str, **parameters: Any) -> Any:
        """The one value of a result."""
        [(value,)] = self.ask(query, **parameters)
        return value

    def records(self, query: str) -> list[Row]:
        """All rows of a result, by column."""
        return list(self.client.query(query).named_results())


def batch(rows: Iterable[Row]) -> Any:
    """A record batch of WINDOW_ROWS."""
    filled = [row | {"attributes": list(row["attributes"].items())} for row in rows]
    return pa.RecordBatch.from_pylist(filled, schema=WINDOW_ROWS)


def row(
    kind: str,
    start_s: int = START_S,
    *,
    metric: str = "",
    service: str = "shop",
    attributes: Mapping[str, str] | None = None,
    unit: str = "",
    stream: str = "",
    count: int = 1,
    generation: int = 0,
    **values: Any,
) -> Row:
    """One row, with NULL where `values` say nothing."""
    metric = metric or f"some.{kind}"
    identity = (service, metric, kind, unit, sorted((attributes or {}).items()))
    empty = dict.fromkeys(("sum", "min", "max", "last", "increase", "resets", "scale"))
    return {
        "metric": metric,
        "service": service,
        "series_id": crc32(repr(identity).encode()),
        "attributes": dict(attributes or {}),
        "kind": kind,
        "unit": unit,
        "stream": stream,
        "window_start": datetime.fromtimestamp(start_s, UTC),
        "count": count,
        **empty,
        "bucket_index": [],
        "bucket_count": [],
        "version": (generation << 48) + count,
        **values,
    }


def distribution(samples: Sequence[float] | np.ndarray, start_s: int = START_S, *, scale: int = 6, **more: Any) -> Row:
    """The row of a window with these samples."""
    values = np.asarray(samples, np.float64)
    codes, counts = np.unique(codes_of(values, scale), return_counts=True)
    return row(
        "distribution",
        start_s,
        **{
            "count": values.size, "sum": float(values.sum()), "min": float(values.min()), "max": float(values.max()),
            "bucket_index": codes.tolist(), "bucket_count": counts.tolist(), "scale": scale, **more,
        },
    )  # fmt: skip


def nearest_rank(samples: Sequence[float] | np.ndarray, q: float) -> float:
    """The sample of rank max(1, ceil(q * count)); q * count is forgiven its last bits."""
    ordered = np.sort(np.asarray(samples, np.float64))
    return float(ordered[max(1, math.ceil(q * ordered.size * (1 - 1e-12))) - 1])
