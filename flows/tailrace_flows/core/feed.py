"""One Kafka partition of any topic but samples: each record is decoded, or becomes a dead letter.

A plain state machine, as `tailrace_flows.core.partition` is for samples; `Feed` is what the Kafka adapter
(`tailrace_flows.source`) needs of both.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from tailrace_schemas.deadletter import MAX_PAYLOAD_BYTES, DeadLetter

from tailrace_flows.core.counters import Count, Counters
from tailrace_flows.core.sealed import seal, unseal

__all__ = ["UNREADABLE", "Feed", "PoisonedError", "Reading", "Record", "TopicFeed", "is_elsewhere"]

Item = TypeVar("Item")
ItemOut = TypeVar("ItemOut", covariant=True)

UNREADABLE: Final = "unreadable"
"""Why a record is a dead letter; its `detail` says more."""
MAX_INVALID_RUN: Final = 1_000
"""So many unreadable records in a row stop the flow: that is no longer bad input, but the wrong topic."""
READING_EVERY_US: Final = 2_000_000
STATE_VERSION: Final = 1


class PoisonedError(Exception):
    """Too many unreadable records: going on would discard a stream."""


class Record(NamedTuple):
    """A Kafka record, without Kafka."""

    offset: int
    time_us: int
    value: bytes | None
    key: bytes | None = None


class Reading(NamedTuple):
    """At this wall time a partition was being read, or there was no more of it to read."""

    time_us: int


class Feed(Protocol[ItemOut]):
    """What a source partition does with its records."""

    @property
    def number(self) -> int: ...
    @property
    def topic(self) -> str: ...
    @property
    def next_offset(self) -> int:
        """Where to read on."""

    @property
    def position(self) -> int:
        """Up to here everything has been counted."""

    @property
    def replaying(self) -> bool:
        """Whether what comes next was counted before a restart."""

    @property
    def moved_from(self) -> str | None:
        """Where the state's offsets belong to, if that is elsewhere: they are not used."""

    @property
    def warnings(self) -> list[str]:
        """For the operator; who tells them empties it."""

    @property
    def marks_silence(self) -> bool:
        """Whether `idle_marks` ever gives any."""

    def restart_at(self, offset: int, cluster_id: str) -> None:
        """The offsets so far belong to another topic of the same name; `cluster_id` says which this one is."""

    def gap(self, low: int) -> int:
        """The broker's first offset is `low`: skips what is gone, and returns how many records that is."""

    def read(self, records: Iterable[Record], now_us: int) -> tuple[Sequence[ItemOut], list[DeadLetter]]:
        """Takes records in the order of their offsets."""

    def idle_marks(self, now_us: int) -> Sequence[ItemOut]:
        """All that was in the partition at this time is read."""

    def counter_rows(self, now_us: int) -> Any:
        """A record batch of COUNTERS that changed, or None."""

    def snapshot(self, now_us: int) -> bytes:
        """The state for recovery."""


def is_elsewhere(stored: str, cluster_id: str) -> bool:
    """Whether offsets that were stored with one `cluster/topic id` mean nothing at another.

    The embedded broker has no topic ids; states of before had none: then it is the cluster that counts.
    """
    return stored not in (cluster_id, cluster_id.partition("/")[0])


class TopicFeed(Generic[Item]):
    """Reads on where it stopped; what `decode` raises ValueError for is a dead letter."""

    replaying = False

    def __init__(
        self,
        number: int,
        topic: str,
        decode: Callable[[bytes | None, bytes], Item],
        *,
        cluster_id: str,
        start: int,
        state: bytes | None = None,
        since_us: int = 0,
        marks_silence: bool = False,
    ) -> None:
        """`decode` takes a record's key and value (empty for a tombstone). `state`: of `snapshot`, or None to begin
        at `start`, and skip records of a time before `since_us`. `marks_silence`: the items have a `Reading` among
        them every 2 s, as far as the broker answers.

        Raises:
            ValueError: the state was written by another version of this format.
        """
        self.number = number
        self.topic = topic
        self._cluster_id = cluster_id
        self._decode = decode
        self._since_us = 0 if state else since_us
        stored, offset, totals = unseal(STATE_VERSION, state) if state is not None else (cluster_id, start, {})
        self.moved_from: str | None = stored if is_elsewhere(stored, cluster_id) else None
        self.next_offset: int = start if self.moved_from is not None else offset
        self._invalid_run = 0
        self.marks_silence = marks_silence
        self.warnings: list[str] = []
        self._reading_us = 0
        # Several flows read the same topic and count the same records: with one scope these are counted once.
        self._counters = Counters(f"{topic}[{number}]", totals)

    @property
    def position(self) -> int:
        """Up to here everything has been read."""
        return self.next_offset

    def restart_at(self, offset: int, cluster_id: str) -> None:
        """The offset so far belongs to another topic of the same name."""
        self.next_offset = offset
        self._cluster_id = cluster_id

    def gap(self, low: int) -> int:
        """Skips what the broker no longer has; how many records that is."""
        gone = max(0, low - self.next_offset)
        self.next_offset += gone
        self._counters.add("", "", f"{Count.GAP_RECORDS}.{self.topic}", gone)
        return gone

    def read(self, records: Iterable[Record], now_us: int) -> tuple[list[Item | Reading], list[DeadLetter]]:
        """Takes records in the order of their offsets.

        Raises:
            PoisonedError: too many in a row cannot be read.
        """
        items: list[Item | Reading] = []
        letters: list[DeadLetter] = []
        for record in records:
            self.next_offset = record.offset + 1
            if record.time_us < self._since_us:
                continue
            try:
                items.append(self._decode(record.key, record.value or b""))
                self._invalid_run = 0
            except ValueError as error:
                letters.append(self._letter(record, str(error)))
                self._invalid_run += 1
                if self._invalid_run >= MAX_INVALID_RUN:
                    raise PoisonedError(
                        f"{self.topic}[{self.number}]: {self._invalid_run} records in a row up to offset "
                        f"{record.offset} cannot be read (the last: {error}). "
                        "The flow stops rather than discard a stream."
                    ) from None
        return items + self.idle_marks(now_us), letters

    def idle_marks(self, now_us: int) -> list[Item | Reading]:
        """As `Feed.idle_marks`."""
        if not self.marks_silence or now_us < self._reading_us + READING_EVERY_US:
            return []
        self._reading_us = now_us
        return [Reading(now_us)]

    def counter_rows(self, now_us: int) -> Any:
        """As `Feed.counter_rows`: dead letters and gaps, by topic and reason."""
        return self._counters.rows(now_us) if self._counters.changed else None

    def snapshot(self, now_us: int) -> bytes:
        """The state for recovery."""
        return seal(STATE_VERSION, (self._cluster_id, self.next_offset, dict(self._counters.totals)))

    def _letter(self, record: Record, detail: str) -> DeadLetter:
        self._counters.add("", "", f"dead_letters.{UNREADABLE}.{self.topic}", 1)
        value = record.value or b""
        return DeadLetter(
            self.topic, self.number, record.offset, record.time_us, "", UNREADABLE, detail[:1_000], 0,
            len(value), value[:MAX_PAYLOAD_BYTES],
        )  # fmt: skip
