"""What happened to every sample and batch, by reason. Totals live in recovered state: a crash counts nothing twice."""

from enum import StrEnum
from typing import Any, Final

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
    SHARD_LIMIT = "shard_limit_samples"
    """Of series, or of whole services, beyond `max_shard_series`: in no window."""
    EVENT_LIMIT = "event_limit_samples"
    """In a window, but not among the events: their texts were too much at a time."""
    DUPLICATE_BATCHES = "duplicate_batches"
    DUPLICATE_SAMPLES = "duplicate_samples"
    """In a window already."""
    MISSING_BATCHES = "missing_batches"
    """Skipped in a producer's sequence: lost before Kafka, or by it."""
    RECOVERED_BATCHES = "recovered_batches"
    """Counted as missing, but came after all."""
    EVICTED_PRODUCERS = "evicted_producers"
    """Forgotten within a day, as there were too many: a batch of theirs that is sent again is taken for a new one."""
    GAP_RECORDS = "gap_records"
    """Offsets that the broker deleted before they were read."""
    UNREPLAYED = "unreplayed_samples"
    """Counted as `samples`, but gone when a restart was to rebuild their windows from them."""
    ENDED = "ended"
    """1 when the stream has ended and all its rows are stored."""


def dead_letters(reason: Reason) -> str:
    """The counter of dead letters of one reason, in samples, or records where no sample could be read."""
    return f"dead_letters.{reason}"


MAX_TOTALS: Final = 50_000
"""Of one scope; what would be further ones is counted without service and stream."""


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
            if len(self.totals) >= MAX_TOTALS and key not in self.totals and name != Count.ENDED:
                key = ("", "", name)
            self.totals[key] = self.totals.get(key, 0) + value
            self._changed.add(key)

    def forget(self, service: str, stream: str) -> None:
        """Drops the totals of a stream that is not live; if it is replayed once more, it counts anew."""
        for key in [key for key in self.totals if key[:2] == (service, stream)]:
            del self.totals[key]
            self._changed.discard(key)

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
