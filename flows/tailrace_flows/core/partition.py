"""One Kafka partition of samples: decoding, duplicates, idleness, and from where a replay must start.

A plain state machine: records and wall time come as arguments; that never leaps (`core/steady.py`).
The Kafka adapter is `tailrace_flows.source`.
See docs/architecture.md, "Recovery", for `held` and `position`.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from tailrace_schemas.deadletter import MAX_PAYLOAD_BYTES, DeadLetter
from tailrace_schemas.rows import EVERY_SERVICE
from tailrace_schemas.samples import MAX_TIME_US, Reason, Rejection, SampleBatch, decode
from tailrace_schemas.topics import shard_of

from tailrace_flows.core.chunk import UNKNOWN_US, Ahead, Arrival, Chunk, Mark, ReadUntil, Refusal, build_chunks, joined
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.counters import Count, Counters, dead_letters
from tailrace_flows.core.feed import MAX_INVALID_RUN, PoisonedError, Record, is_elsewhere
from tailrace_flows.core.sealed import seal, unseal
from tailrace_flows.core.sequences import MAX_MISSING, MAX_PRODUCERS, Changes, Producers, Seen
from tailrace_flows.core.singles import Singles
from tailrace_flows.core.table import AFTER_ALL

__all__ = ["Keyed", "Partition"]

StreamName = tuple[str, str]
"""(service, stream)."""
_Groups = dict[tuple[str, str, bytes, bool], list[Arrival]]
"""(service, stream, encoded series table, replayed) -> batches."""
Keyed = tuple[str, Chunk | Mark | Ahead | ReadUntil]
"""(shard, item)."""

FORGET_US: Final = 24 * 3600 * 1_000_000
"""A stream silent for so long, in wall time, is forgotten."""
MARK_EVERY_US: Final = 2_000_000
BACKFILL_IDLE_US: Final = 3600 * 1_000_000
"""A replay that was interrupted may go on within this time without its samples being late."""
MAX_PAYLOADS_PER_SECOND: Final = 100
"""Dead letters with their record's value, by second of the records' time; more come without: a flood stays small."""
RATIO_RECORDS: Final = 10_000
MAX_INVALID_RATIO: Final = 0.5
"""Of the last RATIO_RECORDS: likewise."""
WARN_EVERY_US: Final = 600_000_000
STATE_VERSION: Final = 2


@dataclass(slots=True)
class _Segment:
    """What was read between two snapshots, as far as a release needs it."""

    start: int
    newest_us: dict[StreamName, int] = field(default_factory=dict)
    """The greatest event time of each stream."""
    producers: Changes | None = None
    """As of its end."""


@dataclass
class _State:
    """What recovery keeps, pickled. Producers are those before `held`, all else is as of `position`."""

    cluster_id: str
    """Where the offsets belong to: `cluster/topic id`, or the cluster alone."""
    held: int
    position: int
    producers: bytes
    """Of `Producers.packed`."""
    watermarks_us: dict[StreamName, int]
    """A replay does not need older ones: what was late then is remembered by the shards."""
    newest_us: dict[StreamName, int]
    """Streams whose windows may be open."""
    totals: dict[tuple[str, str, str], int]
    hold: bool
    """Shards do not store their windows."""
    whole: bool
    """Everything since offset 0 was read."""
    reached: bytes | None
    """Of `Producers.reached`: after a replay that is whole they are the same."""


class Partition:
    """See the module. Not thread-safe.

    Args:
        partitions: how many the topic has.
        hold: keep `held` back to the oldest open window, for shards that do not store their windows.
        state: of `snapshot`, or None to start at `start`.

    Raises:
        ValueError: the state was written by another version of this format, or for `hold` false and it is now true.
    """

    def __init__(
        self,
        number: int,
        topic: str,
        config: WindowConfig,
        now_us: int,
        *,
        partitions: int = 1,
        hold: bool,
        cluster_id: str,
        start: int,
        state: bytes | None = None,
    ) -> None:
        self.number = number
        self.topic = topic
        self.config = config
        self._partitions = partitions
        self._hold = hold
        self._cluster_id = cluster_id
        kept: _State = (unseal(STATE_VERSION, state) if state is not None else None) or _State(
            cluster_id, start, start, b"", {}, {}, {}, hold, start == 0, None
        )
        if hold and not kept.hold:
            raise ValueError(
                "recovery.contents was 'snapshot' and is now 'replay', which would lose the windows that are open: "
                "set it back, or start with a new recovery directory, and windows.generation raised by 1"
            )
        self.moved_from = kept.cluster_id if is_elsewhere(kept.cluster_id, cluster_id) else None
        """Where the state's offsets belong to, if that is elsewhere: they are not used."""
        if self.moved_from is not None:
            kept.held = kept.position = start
            kept.whole = start == 0
            kept.reached = None  # what is there once more is to be taken once more
        self.next_offset = kept.held
        """Where to read on."""
        self._replay_until = kept.position
        self._tells_replayed = bool(kept.watermarks_us)
        """Whether the shards have still to be told of the replay's end."""
        self._whole = kept.whole
        self._held = kept.held
        self._producers = Producers(kept.producers)
        self._reached = kept.reached
        """Producers as of a replay's end; None after it."""
        self._watermarks_us = dict(kept.watermarks_us)
        self._newest_us = dict(kept.newest_us)
        self._seen_us = dict.fromkeys(self._watermarks_us, now_us)
        self._rebuilding: set[StreamName] = set()
        """Streams of which nothing has been sent but what is read again: their shards retire nothing of it yet."""
        self._segments: deque[_Segment] = deque()
        self._segment = _Segment(self.next_offset)
        self._counters = Counters(f"partition {number}", kept.totals)
        self._singles = Singles()
        self._marked_us = now_us
        self._letters_second = self._letters = 0
        self._invalid_run = 0
        self._recent = self._recent_invalid = 0
        self._latest_record_us = 0
        self._read_us = now_us
        """Wall time of the last `read`."""
        self.warnings: list[str] = []
        """For the operator, of those that were not told yet."""
        self._warned_us = now_us - WARN_EVERY_US
        self._evicted_for: str | None = None
        """The service that one was last forgotten for, since the last warning."""

    marks_silence = True

    # -- reading ------------------------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Up to here everything has been counted."""
        return max(self.next_offset, self._replay_until)

    @property
    def replaying(self) -> bool:
        """Whether what comes next was counted before a restart."""
        return self.next_offset < self._replay_until

    def restart_at(self, offset: int, cluster_id: str) -> None:
        """The offsets so far belong to another topic of the same name: reads from `offset`, nothing is a replay."""
        self.next_offset = self._held = self._replay_until = offset
        self._cluster_id = cluster_id
        # What they hold cannot be read again.
        self._segments.clear()
        self._segment = _Segment(offset)
        if self._reached is not None:
            self._end_replay()
        self._producers.release_all()
        self._whole = offset == 0

    def gap(self, low: int) -> int:
        """The broker's first offset is `low`: skips what is gone, and returns how many records that is.

        Counts those that were never read. What was in the others, the shards count when they miss it.
        """
        gone = max(0, low - self.next_offset)
        if gone:
            self._counters.add("", "", Count.GAP_RECORDS, max(0, low - self.position))
            self.next_offset = low
            self._whole = False
            if not self._producers.changed and not self._segment.newest_us:
                self._segment.start = low
        return gone

    def read(self, records: Iterable[Record], now_us: int) -> tuple[list[Keyed], list[DeadLetter]]:
        """Takes records in the order of their offsets.

        Raises:
            PoisonedError: too many in a row, or too large a share, cannot be read.
        """
        self._read_us = now_us
        groups: _Groups = {}
        letters: list[DeadLetter] = []
        ended: dict[StreamName, int] = {}
        for record in records:
            replayed = record.offset < self._replay_until
            self.next_offset = record.offset + 1
            if record.time_us > self._latest_record_us:
                self._latest_record_us = min(record.time_us, MAX_TIME_US)
            self._recent += 1
            if self._recent > RATIO_RECORDS:
                self._recent = self._recent_invalid = 0
            if self._singles.take(record, replayed):
                self._invalid_run = 0
                continue
            self._sort(record, replayed, groups, letters, ended)
        chunks, others = self._singles.chunks(self.number, self.config.max_future_us)
        for record in others:
            self._sort(record, record.offset < self._replay_until, groups, letters, ended)
        built, refusals = build_chunks(
            self.number, [(name[3], group) for name, group in groups.items()], max_future_us=self.config.max_future_us
        )
        chunks += built
        chunks.sort(key=lambda chunk: not chunk.replayed)  # so that a replay's end is the same here and in the shard
        refusals = [one for one in refusals if one.arrival.offset >= self._replay_until]
        letters += [self._refuse(one) for one in refusals]
        ahead = [
            Ahead(one.arrival.batch.service, one.samples)
            for one in refusals
            if one.reason is Reason.TOO_FAR_IN_FUTURE and not one.arrival.batch.stream
        ]
        self._advance(chunks, ended, now_us)
        # A service that has sent no sample cannot fall silent: an empty chunk would never be followed by an idle mark.
        items: list[Keyed] = [(shard_of(chunk.service), chunk) for chunk in chunks if chunk.value.size]
        items += [(shard_of(one.service), one) for one in ahead]
        for service, stream in ended:
            self._watermarks_us[(service, stream)] = AFTER_ALL
            self._newest_us.pop((service, stream), None)
            self._rebuilding.discard((service, stream))
            items.append((shard_of(service), Mark(self.number, service, stream, 0)))
        if self._tells_replayed and not self.replaying:
            items += self._replayed_marks()
        return items, letters

    def _sort(
        self,
        record: Record,
        replayed: bool,
        groups: _Groups,
        letters: list[DeadLetter],
        ended: dict[StreamName, int],
    ) -> None:
        """Decodes a record, and puts it where it belongs."""
        batch = decode(record.value)
        if isinstance(batch, Rejection):
            if not replayed:
                letters.append(self._reject(record, batch))
            return
        self._invalid_run = 0
        if batch.sequence >= 0 and self._is_duplicate(batch, replayed):
            return
        value = record.value or b""
        self._singles.learn(value, batch)
        group = (batch.service, batch.stream, batch.table.encoded, replayed)
        groups.setdefault(group, []).append(Arrival(record.offset, record.time_us, batch, value))
        if batch.end_of_stream:
            ended.setdefault((batch.service, batch.stream), record.offset)

    def _is_duplicate(self, batch: SampleBatch, replayed: bool) -> bool:
        if self._reached is not None and not replayed:
            self._end_replay()
        name = (batch.service, batch.stream, batch.producer_id)
        seen, missing, evicted = self._producers.observe(
            name, batch.sequence, self._latest_record_us, self._now_us(self._read_us), whole=self._whole
        )
        if evicted and not replayed:
            self._counters.add("", "", Count.EVICTED_PRODUCERS, evicted)
            self._evicted_for = batch.service
        if not replayed and (missing or seen is not Seen.NEW):
            counts = {
                Count.MISSING_BATCHES: missing,
                Count.RECOVERED_BATCHES: int(seen is Seen.RECOVERED),
                Count.DUPLICATE_BATCHES: int(seen is Seen.DUPLICATE),
                Count.DUPLICATE_SAMPLES: batch.samples if seen is Seen.DUPLICATE else 0,
            }
            for count, value in counts.items():
                self._counters.add(batch.service, batch.stream, count, value)
        return seen is Seen.DUPLICATE

    def _advance(self, chunks: list[Chunk], ended: dict[StreamName, int], now_us: int) -> None:
        """Gives each batch the watermark before it, in the order of offsets, and moves the watermarks on.

        `ended`: the offset of the batch that ended a stream.
        """
        by_stream: dict[StreamName, list[Chunk]] = {}
        for chunk in chunks:
            by_stream.setdefault((chunk.service, chunk.stream), []).append(chunk)
        for name, group in by_stream.items():
            before = self._watermarks_us.get(name, UNKNOWN_US)
            maxima = joined([chunk.newest_us for chunk in group])
            if maxima.size == 1 and name not in ended:
                group[0].watermarks_us[0] = before
                self._watermarks_us[name] = max(before, int(maxima[0]) - self.config.disorder_us)
            else:
                self._watermarks_us[name] = self._place(group, maxima, before, ended.get(name))
            newest = int(maxima.max())
            if newest > UNKNOWN_US:
                self._newest_us[name] = max(newest, self._newest_us.get(name, newest))
                self._segment.newest_us[name] = max(newest, self._segment.newest_us.get(name, newest))
            # What is late moves nothing: a service of which nothing else comes is silent, since its clock is behind.
            if newest > before - self.config.lateness_us:
                self._seen_us[name] = now_us
            else:
                self._seen_us.setdefault(name, now_us)
            sent = [chunk.replayed for chunk in group if chunk.value.size]
            if sent and all(sent):
                self._rebuilding.add(name)
            elif sent:
                self._rebuilding.discard(name)

    def _place(self, chunks: list[Chunk], maxima: Any, before: int, ended: int | None) -> int:
        """Gives the batches of one stream their watermarks, from `before` on; returns the one after them."""
        offsets = joined([chunk.offsets for chunk in chunks])
        order = np.argsort(offsets, kind="stable")
        after = np.maximum.accumulate(np.maximum(maxima[order] - self.config.disorder_us, before))
        watermarks = np.empty_like(after)
        watermarks[order] = np.concatenate([[before], after[:-1]])
        if ended is not None:
            watermarks[offsets > ended] = AFTER_ALL
        at = 0
        for chunk in chunks:
            chunk.watermarks_us = watermarks[at : at + chunk.offsets.size]
            at += chunk.offsets.size
        return int(after[-1])

    def _end_replay(self) -> None:
        """What could not be read again has been seen all the same: it is not missing, and a duplicate if it comes."""
        self._producers.reach(self._reached or b"")
        self._reached = None

    def _replayed_marks(self) -> list[Keyed]:
        """For all that was known before the restart: of some there may have been nothing to read again."""
        self._tells_replayed = False
        return [(shard_of(name[0]), Mark(self.number, *name, 0, replayed=True)) for name in self._seen_us]

    # -- silence ------------------------------------------------------------------------------------

    def idle_marks(self, now_us: int) -> list[Keyed]:
        """Marks for the services that have been silent for `idle`, or for a day, and one that all that was in the
        partition at this time is read."""
        items = self._replayed_marks() if self._tells_replayed else []
        if now_us - self._marked_us < MARK_EVERY_US:
            return items
        self._marked_us = now_us
        items.append((shard_of(EVERY_SERVICE), ReadUntil(self.number, self._partitions, now_us)))
        for name, newest_us in list(self._newest_us.items()):
            silence_us = now_us - self._seen_us[name]
            if silence_us < self.config.idle_us:
                continue
            retire = not name[1] or silence_us >= BACKFILL_IDLE_US
            items.append((shard_of(name[0]), Mark(self.number, *name, now_us, retire)))
            self._rebuilding.discard(name)
            if not retire:
                continue
            # The shard retires what exists as wall time passes it; this side must not be ahead of it.
            limit_us = self.config.retired_after_us(newest_us)
            reached_us = min(now_us - self.config.disorder_us, limit_us)
            self._watermarks_us[name] = max(self._watermarks_us.get(name, UNKNOWN_US), reached_us)
            if reached_us == limit_us:
                del self._newest_us[name]
        # Here, since as long as there is more to read nobody knows who is silent.
        silent = [name for name, seen_us in self._seen_us.items() if now_us - seen_us > FORGET_US]
        for name in [name for name in silent if name not in self._newest_us]:
            del self._seen_us[name]
            self._watermarks_us.pop(name, None)
            items.append((shard_of(name[0]), Mark(self.number, *name, now_us, forget=True)))
        return items

    # -- recovery -----------------------------------------------------------------------------------

    def snapshot(self, now_us: int) -> bytes:
        """The state for recovery. Cost: what changed since the last one, and pickling what is before `held`."""
        if self._reached is not None and not self.replaying:
            self._end_replay()
        segment = self._segment
        self._producers.forget(self._now_us(now_us))
        segment.producers = self._producers.changes()
        if segment.newest_us or segment.producers.rows:  # nothing else needs to be read again
            self._segments.append(segment)
        self._segment = _Segment(self.next_offset)
        while self._segments and (not self._hold or self._released(self._segments[0])):
            if (changes := self._segments.popleft().producers) is not None:
                self._producers.release(changes)
        self._held = self._segments[0].start if self._segments else self.next_offset
        self._warn(now_us)
        state = _State(
            self._cluster_id,
            self._held,
            self.position,
            self._producers.packed(),
            self._watermarks_us,
            self._newest_us,
            self._counters.totals,
            self._hold,
            self._whole,
            self._reached if self._reached is not None else self._producers.reached(),
        )
        return seal(STATE_VERSION, state)

    @property
    def held(self) -> int:
        """Where a replay would start, as of the last snapshot."""
        return self._held

    def counter_rows(self, now_us: int) -> Any:
        """A record batch of COUNTERS that changed, or None."""
        return self._counters.rows(now_us) if self._counters.changed else None

    def _released(self, segment: _Segment) -> bool:
        return all(
            name not in self._rebuilding
            and self.config.retired_after_us(newest_us) <= self._watermarks_us.get(name, AFTER_ALL)
            for name, newest_us in segment.newest_us.items()
        )

    def _now_us(self, now_us: int) -> int:
        """The time that producers are forgotten by."""
        # The records', so that a backlog forgets what it would have; but no bad clock makes it forget more.
        return min(self._latest_record_us, now_us)

    def _warn(self, now_us: int) -> None:
        if self._evicted_for is not None and now_us >= self._warned_us + WARN_EVERY_US:
            self._warned_us = now_us
            self.warnings.append(
                f"{self.topic}[{self.number}] has more than {MAX_PRODUCERS} producers a day, or {MAX_MISSING} batches "
                f"that they skipped (each run of a process is a producer; the last was one of {self._evicted_for!r}): "
                "those that were silent longest are forgotten (evicted_producers), and a batch of theirs that is sent "
                "again could be counted twice"
            )
            self._evicted_for = None

    # -- dead letters -------------------------------------------------------------------------------

    def _reject(self, record: Record, rejection: Rejection) -> DeadLetter:
        self._invalid_run += 1
        self._recent_invalid += 1
        self._counters.add("", "", dead_letters(rejection.reason), 1)
        too_many = self._recent_invalid > MAX_INVALID_RATIO * RATIO_RECORDS
        if too_many or self._invalid_run >= MAX_INVALID_RUN:
            raise PoisonedError(
                f"{self.topic}[{self.number}]: {self._recent_invalid} of the last {self._recent} records up to offset "
                f"{record.offset} cannot be read (the last: {rejection.reason}, {rejection.detail}). "
                "Is this the topic of samples? The flow stops rather than discard a stream."
            )
        return self._letter(
            record.offset, record.time_us, record.value or b"", "", rejection.reason, rejection.detail, 0
        )

    def _refuse(self, refusal: Refusal) -> DeadLetter:
        arrival = refusal.arrival
        batch = arrival.batch
        self._counters.add(batch.service, batch.stream, dead_letters(refusal.reason), refusal.samples)
        return self._letter(
            arrival.offset,
            arrival.record_time_us,
            arrival.record,
            batch.service,
            refusal.reason,
            refusal.detail,
            refusal.samples,
        )

    def _letter(
        self, offset: int, time_us: int, value: bytes, service: str, reason: Reason, detail: str, samples: int
    ) -> DeadLetter:
        second = time_us // 1_000_000
        if second != self._letters_second:
            self._letters_second, self._letters = second, 0
        self._letters += 1
        kept = value[:MAX_PAYLOAD_BYTES] if self._letters <= MAX_PAYLOADS_PER_SECOND else b""
        return DeadLetter(
            self.topic, self.number, offset, time_us, service, reason, detail, samples, len(value), kept
        )  # fmt: skip
