"""What happened to every sample and batch, by reason. Totals live in recovered state: a crash counts nothing twice."""

from enum import StrEnum
from typing import Any

import pyarrow as pa
from tailrace_schemas.rows import COUNTERS
from tailrace_schemas.samples import Reason

__all__ = ["Count", "Counters", "dead_letters"]


class Count(StrEnum):
    """The names in the view `counters`."""

    SAMPLES = "samples"
    """Samples that are in a window."""
    LATE = "late_samples"
    """Later than the allowed lateness: in no window."""
    SERIES_LIMIT = "series_limit_samples"
    """Of series beyond `max_series`: in no window."""
    DUPLICATE_BATCHES = "duplicate_batches"
    DUPLICATE_SAMPLES = "duplicate_samples"
    """In a window already."""
    MISSING_BATCHES = "missing_batches"
    """Skipped in a producer's sequence: lost before Kafka, or by it."""
    RECOVERED_BATCHES = "recovered_batches"
    """Counted as missing, but came after all."""
    GAP_RECORDS = "gap_records"
    """Offsets that the broker deleted before they were read."""
    ENDED = "ended"
    """1 when the stream has ended and all its rows are stored."""


def dead_letters(reason: Reason) -> str:
    """The counter of dead letters of one reason, in samples, or records where no sample could be read."""
    return f"dead_letters.{reason}"


class Counters:
    """Totals by (service, stream, name) of one shard or partition."""

    def __init__(self, scope: str, totals: dict[tuple[str, str, str], int] | None = None) -> None:
        self.scope = scope
        self.totals = totals or {}
        self._changed: set[tuple[str, str, str]] = set(self.totals)

    def add(self, service: str, stream: str, name: str, value: int) -> None:
        """Counts; nothing for 0."""
        if value:
            key = (service, stream, name)
            self.totals[key] = self.totals.get(key, 0) + value
            self._changed.add(key)

    @property
    def changed(self) -> bool:
        """Whether a total differs from what `rows` last gave."""
        return bool(self._changed)

    def rows(self, now_us: int) -> Any:
        """A pyarrow.RecordBatch of COUNTERS: the totals that changed since the last call."""
        keys = sorted(self._changed)
        self._changed.clear()
        services, streams, names = zip(*keys, strict=True) if keys else ((), (), ())
        totals = [self.totals[key] for key in keys]
        columns = [[self.scope] * len(keys), services, streams, names, totals, [now_us] * len(keys)]
        return pa.record_batch(
            [pa.array(column, field.type) for column, field in zip(columns, COUNTERS, strict=True)],
            schema=COUNTERS,
        )
