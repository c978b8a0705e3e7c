"""The Kafka source: one Bytewax partition for each partition of a topic, its records taken by a `Feed`.

Guarantee: every record from the resume offset on is taken once, in order; what the broker no longer has is counted
as a gap. Unlike the stock source it does not jump to the end of the topic, does not wait on idle partitions, and
reads from where the feed wants it, which for samples is held back for windows that are to be rebuilt
(`tailrace_flows.core.partition`).
"""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from tailrace_schemas.deadletter import DeadLetter
from tailrace_schemas.kafka_errors import SecurityWarnings
from tailrace_sinks.kafka import about, is_hopeless

from tailrace_flows import host_clock
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.ends import Ends
from tailrace_flows.core.feed import Feed, Record
from tailrace_flows.core.partition import MARK_EVERY_US, Partition
from tailrace_flows.core.shard import Output

__all__ = ["Place", "Side", "TopicSource", "Turns", "sample_source"]

log = logging.getLogger(__name__)

MAX_RECORDS = 2_000
MAX_BYTES = 8 * 1024 * 1024
"""A poll's size, aimed at: one call of the windows gets thousands of samples, and memory stays bounded."""
MAX_ROUND_BYTES = 16 * 1024 * 1024
"""A round's size, aimed at: what all partitions of a process bring before any of it is worked off."""
IDLE_POLL = timedelta(milliseconds=10)
COUNTERS_US = 2_000_000
METADATA_TIMEOUT_S = 30.0
ENDS_TIMEOUT_S = 5.0
LEADERS_MS = 4_000
"""For so long it is believed which broker leads a partition, by who asks for its end."""
_UNREADABLE = (KafkaError._BAD_COMPRESSION, KafkaError._BAD_MSG)
"""A batch unfolds to more than librdkafka takes (`receive.message.max.bytes`, of zstd alone), or is damaged."""
ORIGIN_US = 2_000_000
"""How often a topic's id is looked at while it brings nothing; a look costs 0.4 ms, 0.9 ms with 64 partitions."""
SAME_US = 300_000
"""Records are taken if the topic was the same so long before they were read: it was not made anew in less."""
ORIGIN_TIMEOUT_S = 2.0
EMBEDDED = "mockCluster"
"""How the embedded broker's cluster ids begin. It does not say what a topic's id is, and forgets all topics at once."""

Side = DeadLetter | Output
"""What a source yields besides keyed items: it goes to the dead letters, or is counters for ClickHouse."""


class Place(NamedTuple):
    """A partition, as it stands when a source begins to read it."""

    topic: str
    number: int
    partitions: int
    """How many the topic has."""
    cluster_id: str
    """`cluster/topic id`; without the latter where the broker gives none: what its offsets belong to."""
    low: int
    """The first offset that the broker still has."""
    recent: int
    """Where to begin without a state: `low`, or about the first record of the source's `since_us`."""


class TopicSource(FixedPartitionedSource[Any, bytes]):
    """Reads `topic` with the librdkafka configuration `client`.

    `build` makes the feed of a partition, from the state that its `snapshot` gave before; `stop` ends all partitions
    after their current poll. `since_us`: who has no state begins with about the records of that time.
    """

    def __init__(
        self,
        client: dict[str, Any],
        topic: str,
        group_id: str,
        build: Callable[[Place, bytes | None], Feed[Any]],
        *,
        stop: threading.Event,
        since_us: int | None = None,
    ) -> None:
        self._client = client
        self._topic = topic
        self._group_id = group_id
        self._build = build
        self._stop = stop
        self._since_us = since_us
        self._partitions = 0
        """How many were listed; a topic may grow before the last one is built."""
        self._origin = _Origin(client, topic)
        self._ends = _Ends(client, topic)
        self._turns = Turns(MAX_ROUND_BYTES)

    def list_parts(self) -> list[str]:
        consumer = self._consumer()
        try:
            found = consumer.list_topics(self._topic, METADATA_TIMEOUT_S).topics[self._topic]
        finally:
            consumer.close()
        if found.error is not None:
            raise about(self._topic, found.error)
        self._partitions = len(found.partitions)
        return [f"{number:05d}" for number in found.partitions]

    def build_part(self, step_id: str, for_part: str, resume_state: bytes | None) -> "_Reader":
        consumer = self._consumer()
        number = int(for_part)
        origin = self._origin.read()
        known = consumer.list_topics(self._topic, METADATA_TIMEOUT_S)  # it has to know the partition's leader, too
        partitions = self._partitions or len(known.topics[self._topic].partitions)
        place = TopicPartition(self._topic, number)
        low, high = consumer.get_watermark_offsets(place, METADATA_TIMEOUT_S)
        recent = low if resume_state else self._recent(consumer, place, low)
        partition = self._build(Place(self._topic, number, partitions, origin, low, recent), resume_state)
        if partition.moved_from is not None:
            log.warning(
                "%s[%d] is now %s, the state came from %s (cluster/topic id): reading from its start",
                *place_of(place), origin, partition.moved_from,
            )  # fmt: skip
        reader = _Reader(consumer, partition, self._origin, self._ends, self._turns, self._stop)
        reader.begin(low, high)
        return reader

    def _recent(self, consumer: Consumer, place: TopicPartition, low: int) -> int:
        if self._since_us is None:
            return low
        wanted = TopicPartition(place.topic, place.partition, self._since_us // 1000)
        (found,) = consumer.offsets_for_times([wanted], METADATA_TIMEOUT_S)
        # The embedded broker knows no times, and says that there is nothing so new: the feed then skips what is old.
        offset: int = found.offset
        return max(low, offset)

    def _consumer(self) -> Consumer:
        return Consumer(
            {
                "group.id": self._group_id,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "auto.offset.reset": "error",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 100,
                "queued.max.messages.kbytes": 32 * 1024,
                "fetch.queue.backoff.ms": 5,
                "error_cb": SecurityWarnings(log, f"reading {self._topic}"),
                "logger": logging.getLogger("tailrace.librdkafka"),
                **self._client,
            }
        )


def sample_source(
    client: dict[str, Any], topic: str, group_id: str, config: WindowConfig, *, hold: bool, stop: threading.Event
) -> TopicSource:
    """The source of the window flow; with `hold`, windows that are open are rebuilt by reading them again."""

    def build(place: Place, state: bytes | None) -> Partition:
        return Partition(
            place.number,
            place.topic,
            config,
            host_clock.now_us(),
            partitions=place.partitions,
            hold=hold,
            cluster_id=place.cluster_id,
            start=place.low,
            state=state,
        )

    return TopicSource(client, topic, group_id, build, stop=stop)


def place_of(place: TopicPartition) -> tuple[str, int]:
    return place.topic, place.partition


class _Origin:
    """Which topic this is: a deleted one that was made anew has the same name, and other offsets.

    Shared by the partitions that one process reads.
    """

    def __init__(self, client: dict[str, Any], topic: str) -> None:
        self._client = {
            "logger": logging.getLogger("tailrace.librdkafka"),
            "reconnect.backoff.max.ms": 1000,  # records wait for what it is told
            **client,
        }
        self._topic = topic
        self._admin: AdminClient | None = None
        self._cluster = ""
        self._asked: Future[Any] | None = None
        self._asked_us = 0
        self.known = ""
        """What was found last."""
        self.known_us = 0
        """When the question was put that this answers."""

    def read(self) -> str:
        """Asks the broker.

        Raises:
            KafkaException: it does not answer, or has no such topic.
        """
        if self._admin is None:
            self._admin = AdminClient(self._client)
            self._cluster = self._admin.list_topics(self._topic, METADATA_TIMEOUT_S).cluster_id or ""
            self.known = self._cluster
        self.known_us = host_clock.now_us()
        if not self._cluster.startswith(EMBEDDED):
            self.known = self._named(self._ask(METADATA_TIMEOUT_S).result())
        return self.known

    def look(self, now_us: int, *, busy: bool) -> str:
        """What it was at `known_us`, which is less than SAME_US ago while one is `busy`, if the broker answers.

        Never waits.
        """
        if self._cluster.startswith(EMBEDDED):
            self.known_us = now_us
        elif self._asked is not None and self._asked.done():
            # While the broker is away, or the topic is, nothing has changed.
            if self._asked.exception() is None:
                self.known, self.known_us = self._named(self._asked.result()), self._asked_us
            self._asked = None
        elif self._asked is None and now_us >= self._asked_us + (SAME_US // 2 if busy else ORIGIN_US):
            self._asked, self._asked_us = self._ask(ORIGIN_TIMEOUT_S), now_us
        return self.known

    def _ask(self, timeout_s: float) -> "Future[Any]":
        assert self._admin is not None
        wanted = TopicCollection([self._topic])
        asked: Future[Any] = self._admin.describe_topics(wanted, request_timeout=timeout_s)[self._topic]
        return asked

    def _named(self, description: Any) -> str:
        return f"{self._cluster}/{description.topic_id}"


class _Ends:
    """Where the partitions that one process reads ended, and when: who is cut off from the broker has not read all.

    Asked for all at once, by a client of its own, and never waited for: on a consumer's connection the answer comes
    after that of the fetch before it, which takes up to `fetch.wait.max.ms` (measured: 4 s for 64 partitions).
    """

    def __init__(self, client: dict[str, Any], topic: str) -> None:
        self._client = {
            "logger": logging.getLogger("tailrace.librdkafka"),
            # Or it asks with the leader epoch of before a broker restarted, and is refused, for 15 minutes.
            "metadata.max.age.ms": LEADERS_MS,
            **client,
        }
        self._topic = topic
        self._admin: AdminClient | None = None
        self._asked: dict[TopicPartition, Future[Any]] = {}
        self._asked_us = self._next_us = 0
        self._known: dict[int, Ends] = {}

    def read_until_us(self, number: int, offset: int, now_us: int) -> int | None:
        """Who has read the partition to before `offset` has read all that was in it at this time, if that is known."""
        self._look(number, now_us)
        return self._known[number].read_until_us(offset)

    def _look(self, number: int, now_us: int) -> None:
        self._known.setdefault(number, Ends())
        if self._asked:
            if not all(one.done() for one in self._asked.values()):
                return
            for place, one in self._asked.items():
                # Where a broker that hangs gave no answer in time, the offset is negative.
                if one.exception() is None and (end := one.result().offset) >= 0:
                    self._known[place.partition].found(end, self._asked_us)
            self._asked = {}
        if now_us >= self._next_us:
            self._asked_us, self._next_us = now_us, now_us + MARK_EVERY_US
            if self._admin is None:
                self._admin = AdminClient(self._client)
            wanted = {TopicPartition(self._topic, one): OffsetSpec.latest() for one in self._known}
            # Committed, as the consumers read: what is behind an open transaction is not there yet.
            self._asked = self._admin.list_offsets(
                wanted, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=ENDS_TIMEOUT_S
            )


class Turns:
    """Which of a process' partitions may read, so that a round of them brings about `max_bytes`.

    Bytewax asks all partitions, in the order of their numbers, and has what they brought worked off before it asks
    again. Under a backlog a round of many partitions would take a second and hundreds of megabytes, and in a cluster
    the others would wait for its end at each epoch. Who had no turn goes first in the next round.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left = max_bytes
        self._asked = -1
        self._first = self._next_first = 0

    def may_read(self, number: int) -> bool:
        """To be called for each partition of a round, ascending."""
        if number <= self._asked:
            self._first, self._next_first = self._next_first, 0
            self._left = self._max_bytes
        self._asked = number
        if number < self._first:
            return False
        if self._left <= 0 and not self._next_first:
            self._next_first = number
        return self._left > 0

    def took(self, size: int) -> None:
        """So many bytes were read."""
        self._left -= size


class _Reader(StatefulSourcePartition[Any, bytes]):
    """Reads one partition for its feed, with a consumer of its own."""

    def __init__(
        self,
        consumer: Consumer,
        partition: Feed[Any],
        origin: "_Origin",
        ends: "_Ends",
        turns: Turns,
        stop: threading.Event,
    ) -> None:
        self._consumer = consumer
        self._partition = partition
        self._place = TopicPartition(partition.topic, partition.number)
        self._origin = origin
        self._known = origin.known
        self._ends = ends
        self._turns = turns
        self._stop = stop
        self._end = -1
        """Where the partition ended when it was read to there: after the last record there may be what is none, as the
        markers of transactions."""
        self._read: list[Message] = []
        """What was read last, until it is known to be of the same topic as that before it."""
        self._read_us = 0
        self._empty = False
        self._records = 100
        self._committed = -1
        self._skipped = -1
        """Where the last record that was left out ends."""
        self._snapshotted = partition.next_offset
        self._counters_us = 0

    def begin(self, low: int, high: int) -> None:
        """Reads on, in a partition that has the offsets from `low` to before `high`."""
        partition = self._partition
        if partition.position > high:
            # The topic was made anew, or has lost its end: the offsets mean nothing here.
            log.warning(
                "%s[%d] ends at %d, before the offset that was reached: reading it from its start",
                *place_of(self._place), high,
            )  # fmt: skip
            self._restart(low)
        wanted, position = partition.next_offset, partition.position
        if partition.gap(low):
            if wanted < position:
                log.error(
                    "%s[%d]: the broker no longer has offsets %d to %d, which were counted before and are wanted again "
                    "for windows that were open: what rows lack of them is in unreplayed_samples",
                    *place_of(self._place), wanted, min(low, position) - 1,
                )  # fmt: skip
            if low > position:
                log.error(
                    "%s[%d]: the broker no longer has offsets %d to %d; going on at %d (%d records are lost)",
                    *place_of(self._place), position, low - 1, low, low - position,
                )  # fmt: skip
        self._end = -1
        self._consumer.assign([TopicPartition(partition.topic, partition.number, partition.next_offset)])

    def _restart(self, low: int) -> None:
        """The offsets so far belong to another topic of the same name, and those committed too."""
        self._partition.restart_at(low, self._known)
        self._committed, self._snapshotted = -1, low

    def next_batch(self) -> Iterable[Any]:
        now_us = host_clock.now_us()
        if self._stop.is_set():
            counters = self._partition.counter_rows(now_us)
            if counters is None:
                raise StopIteration
            return [Output([], None, counters)]
        if not self._turns.may_read(self._partition.number):
            self._empty = False
            return []
        busy = bool(self._read) or not self._empty
        if (origin := self._origin.look(now_us, busy=busy)) != self._known:
            self._known = origin
            log.warning(
                "%s[%d] was deleted and made anew, and is now %s (cluster/topic id): reading it from its start",
                *place_of(self._place), origin,
            )  # fmt: skip
            low, high = self._consumer.get_watermark_offsets(self._place, METADATA_TIMEOUT_S)
            self._read = []
            self._restart(low)
            self.begin(low, high)
            return []
        if not self._read:
            self._read, self._read_us = self._consumer.consume(self._records, 0), now_us
        if self._origin.known_us < self._read_us - SAME_US and not all(message.error() for message in self._read):
            self._empty = True
            return []
        messages, self._read = self._read, []
        records: list[Record] = []
        errors: list[KafkaError] = []
        size = 0
        for message in messages:
            error = message.error()
            if error is not None:
                errors.append(error)
                if error.code() == KafkaError._PARTITION_EOF:
                    self._end = message.offset()
                continue
            value = message.value()
            size += len(value) if value is not None else 0
            records.append(Record(message.offset(), message.timestamp()[1] * 1000, value, message.key()))
        self._turns.took(size)
        out: list[Any] = []
        self._empty = not records
        if records:
            host_clock.hear(min(record.time_us for record in records))
            self._records = min(MAX_RECORDS, max(10, MAX_BYTES * len(records) // max(size, 1)))
            items, letters = self._partition.read(records, now_us)
            out += items
            out += letters
        if self._partition.marks_silence:
            read = max(self._partition.next_offset, self._end)
            if (until_us := self._ends.read_until_us(self._partition.number, read, now_us)) is not None:
                out += self._partition.idle_marks(until_us)
        for error in errors:  # after the records that came before them: where a gap begins depends on those
            if error.code() != KafkaError._PARTITION_EOF:
                self._handle(error)
            if error.code() in _UNREADABLE:
                break  # those that follow are of the same place, which is behind us now
        if now_us >= self._counters_us:
            counters = self._partition.counter_rows(now_us)
            if counters is not None:
                self._counters_us = now_us + COUNTERS_US
                out.append(Output([], None, counters))
        return out

    def next_awake(self) -> datetime | None:
        return host_clock.as_datetime(host_clock.now_us()) + IDLE_POLL if self._empty else None

    def _handle(self, error: KafkaError) -> None:
        code = error.code()
        if code in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self.begin(*self._consumer.get_watermark_offsets(self._place, METADATA_TIMEOUT_S))
        elif code in _UNREADABLE:
            self._skip(error)
        elif is_hopeless(error):
            raise about(self._partition.topic, error)
        else:
            # librdkafka goes on by itself: a broker that is away, a leader that moves.
            log.warning("%s[%d]: %s", self._partition.topic, self._partition.number, error.str())

    def _skip(self, error: KafkaError) -> None:
        """Leaves out a record of a batch that librdkafka cannot unpack: it would stop at it for ever.

        How many records the batch has is not known. So one is left out at a time, until what follows can be read.
        """
        offset = self._partition.next_offset
        if offset != self._skipped:
            log.error(
                "%s[%d]: the batch at offset %d cannot be read, and is left out (gap_records): %s",
                *place_of(self._place), offset, error.str(),
            )  # fmt: skip
        self._skipped = offset + 1
        self._partition.gap(self._skipped)
        self._consumer.assign([TopicPartition(self._partition.topic, self._partition.number, self._skipped)])

    def snapshot(self) -> bytes:
        state = self._partition.snapshot(host_clock.now_us())
        for warning in self._partition.warnings:
            log.warning("%s", warning)
        self._partition.warnings.clear()
        # What the last snapshot covered is durable by now, or will be before the next: good enough for lag and pacing.
        self._commit(self._snapshotted)
        self._snapshotted = self._partition.next_offset
        return state

    def _commit(self, offset: int) -> None:
        if offset <= self._committed or self._partition.replaying:
            return
        place = TopicPartition(self._partition.topic, self._partition.number, offset)
        try:
            self._consumer.commit(offsets=[place], asynchronous=True)
            self._committed = offset
        except KafkaException as error:  # only lag tools and pacing read it
            log.warning("%s[%d]: cannot commit: %s", *place_of(place), error)

    def close(self) -> None:
        self._commit(self._snapshotted)
        self._consumer.close()
