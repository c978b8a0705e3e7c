"""Duplicates and losses of batches, from their producers' sequence numbers."""

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Producer", "Seen", "observe"]

MAX_REMEMBERED_GAPS = 1024
"""Missing sequences of one producer that may still come; older ones count as duplicates if they do."""


class Seen(Enum):
    """What a sequence number says about its batch."""

    NEW = "new"
    DUPLICATE = "duplicate"
    RECOVERED = "recovered"
    """It was counted as missing before."""


@dataclass(slots=True)
class Producer:
    """What is known of one (service, producer id, stream): all up to `highest` came, but for `missing`."""

    highest: int = -1
    missing: dict[int, None] = field(default_factory=dict)
    """A dict for its order: the oldest gap is forgotten first."""

    seen_us: int = 0
    """Timestamp of the record that brought its last batch."""

    def copy(self) -> "Producer":
        return Producer(self.highest, dict(self.missing), self.seen_us)


def observe(producer: Producer, sequence: int) -> tuple[Seen, int]:
    """Takes note of a batch. Returns what it is, and how many batches are newly known to be missing.

    Cost: O(1), and O(gap) up to MAX_REMEMBERED_GAPS where batches are missing.
    """
    if sequence > producer.highest:
        gap = sequence - producer.highest - 1
        for number in range(max(producer.highest + 1, sequence - MAX_REMEMBERED_GAPS), sequence):
            producer.missing[number] = None
        while len(producer.missing) > MAX_REMEMBERED_GAPS:
            del producer.missing[next(iter(producer.missing))]
        producer.highest = sequence
        return Seen.NEW, gap
    if sequence in producer.missing:
        del producer.missing[sequence]
        return Seen.RECOVERED, 0
    return Seen.DUPLICATE, 0
