"""Duplicates and losses of batches, from their producers' sequence numbers."""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from struct import Struct, pack, unpack_from
from typing import Final, NamedTuple

__all__ = ["Changes", "Producer", "Producers", "Seen", "observe"]

MAX_REMEMBERED_GAPS = 1024
"""Missing sequences of one producer that may still come; older ones count as duplicates if they do."""
MAX_PRODUCERS: Final = 20_000
"""Of one partition: more than a core can read the batches of, if each sends one a second. Of short jobs, each of which
is a producer, those of the last 3 minutes at 100 starts a second. 0.7 MB of state, 14 MB of memory."""
MAX_MISSING: Final = 500_000
"""Missing sequences of all producers of one partition, likewise: 4 MB of state, 40 MB of memory."""
FORGET_US: Final = 24 * 3600 * 1_000_000
"""A producer that has sent nothing for so long is forgotten."""

_ROW: Final = Struct("<16sqqH")
"""Key, highest, time, number of missing sequences, which follow."""
_TIME: Final = Struct("<q")
_NEVER_US: Final = -(1 << 62)


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
    """The greatest time of a record when its last batch came."""


class Changes(NamedTuple):
    """What changed of the producers between two snapshots."""

    rows: dict[bytes, bytes | None]
    """By key, who was silent longest first; None: forgotten."""
    evicted_us: int


class Producers:
    """The producers of one partition, as they are, and as they were at an offset that a replay would start at.

    Who is forgotten for want of room depends on the order of records alone, so that a replay forgets the same. Not by
    their times, which clients set: else one that lies would keep its own, and have others forgotten.
    Memory: 0.7 kB a producer, and 0.1 kB for each missing sequence.

    Args:
        state: of `packed`.
    """

    def __init__(self, state: bytes = b"") -> None:
        self._producers: OrderedDict[bytes, Producer] = OrderedDict()
        """Who was silent longest first."""
        self._missing = 0
        self._evicted_us = _NEVER_US
        """When one was last forgotten for want of room."""
        self._changed: set[bytes] = set()
        self._held: dict[bytes, bytes] = {}
        """Rows, in the same order."""
        self._pending: dict[bytes, bytes] = {}
        """Rows of `changes` that are not released, likewise: the last of each producer that is not forgotten."""
        self._packed: bytes | None = None
        """Of `_held`, until that changes."""
        if state:
            self.reach(state)
            self.release_all()
        self._held_evicted_us = self._evicted_us

    def observe(
        self, name: tuple[str, str, str], sequence: int, record_us: int, now_us: int, *, whole: bool
    ) -> tuple[Seen, int, int]:
        """Takes note of a batch of (service, stream, producer id). Cost: 1 us, and as `observe`.

        Returns what `observe` does, and how many producers were forgotten for want of room.

        Args:
            record_us: the greatest time of a record so far.
            now_us: the time to forget by.
            whole: all records of before were seen.
        """
        key = _key(*name)
        producer = self._producers.get(key)
        if producer is None:
            # Where its sequence began is known only if nothing was missed before it, and it is none that was forgotten.
            begun = whole and self._evicted_us < now_us - FORGET_US
            producer = self._producers[key] = Producer(-1 if begun else sequence - 1)
        else:
            self._producers.move_to_end(key)
        self._changed.add(key)
        producer.seen_us = record_us
        before = len(producer.missing)
        seen, missing = observe(producer, sequence)
        self._missing += len(producer.missing) - before
        evicted = 0
        while len(self._producers) > MAX_PRODUCERS or self._missing > MAX_MISSING:
            if self._drop().seen_us >= now_us - FORGET_US:  # otherwise it would be forgotten in any case
                self._evicted_us = now_us
                evicted += 1
        return seen, missing, evicted

    def forget(self, now_us: int) -> None:
        """Forgets those that have sent nothing for FORGET_US."""
        while self._producers and next(iter(self._producers.values())).seen_us < now_us - FORGET_US:
            self._drop()

    @property
    def changed(self) -> bool:
        """Whether `changes` would have any."""
        return bool(self._changed)

    def changes(self) -> Changes:
        """What changed since the last call. Cost: 1 us for each producer that sent."""
        rows: dict[bytes, bytes | None] = {key: None for key in self._changed if key not in self._producers}
        last = islice(reversed(self._producers.items()), len(self._changed) - len(rows))
        rows.update([(key, _row(key, producer)) for key, producer in last][::-1])
        self._changed.clear()
        for key, row in rows.items():
            self._pending.pop(key, None)
            if row is not None:
                self._pending[key] = row
        return Changes(rows, self._evicted_us)

    def release(self, changes: Changes) -> None:
        """A replay would start after these changes, which come in the order in which `changes` gave them."""
        if not changes.rows:
            return
        for key, row in changes.rows.items():
            self._held.pop(key, None)
            if row is not None:
                self._held[key] = row
                if self._pending.get(key) is row:
                    del self._pending[key]
        self._held_evicted_us = changes.evicted_us
        self._packed = None

    def release_all(self) -> None:
        """A replay would start here."""
        self._changed.clear()
        self._pending.clear()
        self._held = {key: _row(key, producer) for key, producer in self._producers.items()}
        self._held_evicted_us = self._evicted_us
        self._packed = None

    def packed(self) -> bytes:
        """The producers as a replay needs them. Cost: 50 ns a producer, and nothing while nothing changes."""
        if self._packed is None:
            self._packed = _TIME.pack(self._held_evicted_us) + b"".join(self._held.values())
        return self._packed

    def reached(self) -> bytes:
        """The producers that sent since what is released, as of the last `changes`. Cost: 50 ns for each."""
        return _TIME.pack(self._evicted_us) + b"".join(self._pending.values())

    def reach(self, state: bytes) -> None:
        """Takes over what `packed` or `reached` gave: these producers sent last."""
        if not state:
            return
        (self._evicted_us,) = _TIME.unpack_from(state)
        at = _TIME.size
        while at < len(state):
            key, highest, seen_us, missing = _ROW.unpack_from(state, at)
            sequences = unpack_from(f"<{missing}q", state, at + _ROW.size)
            at += _ROW.size + 8 * missing
            if (known := self._producers.pop(key, None)) is not None:
                self._missing -= len(known.missing)
            self._producers[key] = Producer(highest, dict.fromkeys(sequences), seen_us)
            self._missing += missing
            self._changed.add(key)

    def _drop(self) -> Producer:
        key, producer = self._producers.popitem(last=False)
        self._missing -= len(producer.missing)
        self._changed.add(key)
        return producer


@lru_cache(maxsize=4_096)
def _key(service: str, stream: str, producer_id: str) -> bytes:
    """For a producer's names, which may be long, and of which there may be many. Cached, as it takes 1 us."""
    names = f"{len(service)} {len(stream)} {service}{stream}{producer_id}"
    return blake2b(names.encode(), digest_size=16).digest()


def _row(key: bytes, producer: Producer) -> bytes:
    missing = producer.missing
    row = _ROW.pack(key, producer.highest, producer.seen_us, len(missing))
    return row + pack(f"<{len(missing)}q", *missing) if missing else row


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
