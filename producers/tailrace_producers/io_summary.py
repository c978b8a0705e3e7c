"""Operations and cache lookups of the last hour, in bounded memory. Pure: time is an argument. Not for two threads."""

from collections import Counter, deque
from dataclasses import dataclass, field
from math import ceil, inf, log2
from typing import Final, TypedDict

__all__ = ["Figures", "OperationSummary", "RecentHour"]

SLOT_S: Final = 300.0
SLOTS: Final = 12
"""An hour, of which the oldest five minutes are forgotten at once."""
BUCKETS_PER_OCTAVE: Final = 8
"""A bucket holds (2^((i-1)/8), 2^(i/8)] seconds: its middle is within 4.5 % of all that is in it."""
SHORTEST_S: Final = 1e-9
OTHER: Final = "_OTHER"

Key = tuple[str, str]


class Figures(TypedDict):
    """Of one operation; seconds."""

    count: int
    errors: int
    total_s: float
    mean_s: float
    p50_s: float
    p95_s: float
    max_s: float


@dataclass(slots=True)
class OperationSummary:
    """Durations, merged exactly; at most some 300 buckets."""

    count: int = 0
    errors: int = 0
    total_s: float = 0.0
    min_s: float = inf
    max_s: float = 0.0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, duration_s: float, failed: bool) -> None:
        self.count += 1
        self.errors += failed
        self.total_s += duration_s
        self.min_s = min(self.min_s, duration_s)
        self.max_s = max(self.max_s, duration_s)
        self.buckets[ceil(log2(max(duration_s, SHORTEST_S)) * BUCKETS_PER_OCTAVE)] += 1

    def merge(self, other: "OperationSummary") -> None:
        self.count += other.count
        self.errors += other.errors
        self.total_s += other.total_s
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)
        self.buckets.update(other.buckets)

    def quantile(self, q: float) -> float:
        """Of nearest rank: the sample of rank max(1, ceil(q * count)), within 4.5 %. There must be one."""
        rank = max(1, ceil(q * self.count))
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                break
        middle_s = float(2 ** ((bucket - 0.5) / BUCKETS_PER_OCTAVE))
        return min(max(middle_s, self.min_s), self.max_s)

    def figures(self) -> Figures:
        """What a report shows of it."""
        return Figures(
            count=self.count,
            errors=self.errors,
            total_s=self.total_s,
            mean_s=self.total_s / self.count,
            p50_s=self.quantile(0.5),
            p95_s=self.quantile(0.95),
            max_s=self.max_s,
        )


class _Slot:
    """Five minutes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.operations: dict[Key, OperationSummary] = {}
        self.hits: Counter[str] = Counter()
        self.misses: Counter[str] = Counter()


class RecentHour:
    """The last hour in slots of five minutes. Memory: 3 kB for each operation and slot, so 8 MB at 200 operations."""

    def __init__(self, max_operations: int, begin_s: float) -> None:
        self._max_operations = max_operations
        self._slots: deque[_Slot] = deque()
        self._known: set[Key] = set()
        self._begin_s = begin_s

    def add(self, kind: str, target: str, duration_s: float, failed: bool, now_s: float) -> Key:
        """Count an operation. Returns what it is known as: of one too many the target is `_OTHER`."""
        operations = self._slot(now_s).operations
        key = (kind, target)
        if key not in self._known:
            if len(self._known) >= self._max_operations:
                key = (kind if any(kind == known for known, _ in self._known) else OTHER, OTHER)
            else:
                self._known.add(key)
        summary = operations.get(key)
        if summary is None:
            summary = operations[key] = OperationSummary()
        summary.add(duration_s, failed)
        return key

    def add_lookups(self, cache: str, hits: int, misses: int, now_s: float) -> tuple[int, int]:
        """Count lookups. Returns the cache's hits and misses in these five minutes."""
        slot = self._slot(now_s)
        slot.hits[cache] += hits
        slot.misses[cache] += misses
        return slot.hits[cache], slot.misses[cache]

    def operations(self, now_s: float) -> dict[Key, OperationSummary]:
        """All of the hour."""
        self._forget(now_s)
        found: dict[Key, OperationSummary] = {}
        for slot in self._slots:
            for key, summary in slot.operations.items():
                found.setdefault(key, OperationSummary()).merge(summary)
        return found

    def lookups(self, now_s: float) -> dict[str, tuple[int, int]]:
        """Hits and misses of all caches in the hour."""
        self._forget(now_s)
        hits: Counter[str] = Counter()
        misses: Counter[str] = Counter()
        for slot in self._slots:
            hits.update(slot.hits)
            misses.update(slot.misses)
        return {name: (hits[name], misses[name]) for name in dict.fromkeys((*hits, *misses))}

    def period_s(self, now_s: float) -> float:
        """How long back it reaches."""
        oldest_s = (int(now_s // SLOT_S) - SLOTS + 1) * SLOT_S
        return now_s - max(self._begin_s, oldest_s)

    def _slot(self, now_s: float) -> _Slot:
        number = int(now_s // SLOT_S)
        if not self._slots or self._slots[-1].number < number:
            self._slots.append(_Slot(number))
            self._forget(now_s)
        return self._slots[-1]

    def _forget(self, now_s: float) -> None:
        oldest = int(now_s // SLOT_S) - SLOTS + 1
        while self._slots and self._slots[0].number < oldest:
            self._slots.popleft()
