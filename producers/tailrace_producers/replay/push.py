"""A file into Kafka: paced, numbered, and harmless to repeat."""

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from time import sleep
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.kafka_errors import advice
from tailrace_schemas.samples import MAX_MESSAGE_BYTES
from tailrace_schemas.topics import Topics

from tailrace_producers.replay.batches import LAYOUT_VERSION, MAX_SPAN_US, Batcher, Message
from tailrace_producers.replay.model import BadLine, BadLines, Catalogue, ReplayError, ReplayOptions
from tailrace_producers.replay.readers import Reading, read_blocks
from tailrace_producers.replay.source import FileBytes, stem_of

__all__ = ["CommittedOffsets", "Progress", "ReplayResult", "replay", "wait_stored"]

GROUP: Final = "tailrace-windows"
"""The consumer group to which the windows flow commits."""
AHEAD_BYTES: Final = 2_000_000
"""Per partition, sent but not yet committed: the embedded broker keeps 5 MB, and evicts what was not read."""
STALL_S: Final = 60.0
MAX_FUTURE_US: Final = 60_000_000
"""The flow's default: what lies further after its record's timestamp becomes a dead letter."""
_CONNECT_S: Final = 10.0
_COMMITTED_S: Final = 5.0
_CHECK_S: Final = 0.02
_STORED_CHECK_S: Final = 0.1
_RECORD_BYTES: Final = 100
"""What a record takes besides its value, at most, with a short key."""
_REAL_TIME_STEP_US: Final = 500_000
"""In real time a batch spans half a second of the clock on the wall."""

_log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """How far a replay is."""

    position: int
    """Bytes of the file read, of `size`."""
    size: int
    samples: int
    """Sent so far."""
    bad_lines: int


@dataclass(frozen=True)
class ReplayResult:
    """What was sent, and where it ends."""

    stream: str
    topic: str
    samples: int
    batches: int
    services: tuple[str, ...]
    lines: int
    bad_lines: dict[str, int]
    """By reason (BadReason)."""
    bad_examples: tuple[BadLine, ...]
    future_samples: int
    """Samples that were more than a minute ahead of the clock: the flow will refuse them."""
    first_time_us: int
    """Least and greatest event time; 0 where there is no sample."""
    last_time_us: int
    end_offsets: dict[int, int]
    """Partition -> offset after its last batch of this replay."""


def replay(
    path: str,
    *,
    bootstrap_servers: str,
    options: ReplayOptions | None = None,
    topics: Topics | None = None,
    stream: str = "",
    speed: float = 0.0,
    max_bad_ratio: float = 0.1,
    pace: bool = False,
    group: str = GROUP,
    properties: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = monotonic_s,
    wall_us: Callable[[], int] = now_us,
    wait: Callable[[float], object] | None = None,
    stall_s: float = STALL_S,
) -> ReplayResult:
    """Send a file's samples, and return when Kafka has acknowledged them all.

    Guarantee: the same file, options and speed give the same messages under the same producer id and sequence
    numbers, so a flow recognises what it has had: a replay may be killed and repeated. Samples keep their order
    within a service, and their times. Each service's stream ends with an empty batch that closes its windows.

    `stream` "": derived from the file's content and the options. `speed` 0: as fast as possible; 1: in real time;
    60: a minute a second. `pace`: stay less than 2 MB a partition ahead of what `group` has committed; without it
    only librdkafka's queue (64 MB) holds back. `properties`: librdkafka's, for producer and consumer.
    `clock`, `wall_us` and `wait` (seconds) are for tests.

    Memory: a few blocks of 4 MB, the series seen, and less than 5,000 samples a service.

    Raises:
        ReplayError: the file, its columns, too many bad lines, no broker, a failed delivery, or a stalled flow.
        KeyboardInterrupt: passes through; what was queued is dropped.
    """
    span_us = _span_us(speed)
    options = options or ReplayOptions()
    source = FileBytes.of(path)
    producer_id = _identity(source, options, span_us)
    stream = stream or producer_id
    catalogue = Catalogue(path)
    bad = BadLines(path, max_bad_ratio)
    readings = read_blocks(source, options, catalogue, bad)
    batcher = Batcher(catalogue, producer_id=producer_id, stream=stream, max_span_us=span_us)
    totals = _Totals()

    def report(position: int) -> None:
        if progress is not None:
            progress(Progress(position, source.size, totals.sent, bad.total))

    topic = (topics or Topics()).samples
    sender = _Sender(bootstrap_servers, topic, properties or {}, group if pace else "", clock, wait, stall_s)
    with sender:
        for reading in readings:
            totals.see(reading, wall_us() + MAX_FUTURE_US)
            for message in _due(sender, batcher, reading, speed, totals.first_us):
                sender.send(message)
                totals.sent += message.samples
                report(reading.position)
            report(reading.position)
        bad.finish()
        for message in batcher.finish():
            sender.send(message)
            totals.sent += message.samples
        sender.flush()
    report(source.size)
    bad_lines = {str(reason): count for reason, count in bad.counts.items()}
    return ReplayResult(
        stream, topic, totals.sent, sender.batches, batcher.services, bad.lines,
        bad_lines, tuple(bad.examples), totals.future, totals.first_us, totals.last_us,
        dict(sorted(sender.end_offsets.items())),
    )  # fmt: skip


def _span_us(speed: float) -> int:
    if not 0.0 <= speed < float("inf"):
        raise ReplayError(f"speed {speed} is not a factor: 1 is real time, 0 as fast as possible")
    return min(MAX_SPAN_US, max(1, int(speed * _REAL_TIME_STEP_US))) if speed else MAX_SPAN_US


def _identity(source: FileBytes, options: ReplayOptions, span_us: int) -> str:
    """Of everything that decides the messages."""
    effective = asdict(options) | {"service": options.service or stem_of(source.path)}
    settings = json.dumps([LAYOUT_VERSION, span_us, effective], sort_keys=True)
    return hashlib.sha256(source.digest + settings.encode()).hexdigest()[:16]


@dataclass
class _Totals:
    sent: int = 0
    future: int = 0
    first_us: int = 0
    last_us: int = 0
    seen: bool = False

    def see(self, reading: Reading, future_us: int) -> None:
        """Account for samples read; warns at the first that lies beyond `future_us`."""
        time_us = reading.block.time_us
        if not len(time_us):
            return
        first_us, last_us = int(time_us.min()), int(time_us.max())
        self.first_us = min(self.first_us, first_us) if self.seen else first_us
        self.last_us = max(self.last_us, last_us)
        self.seen = True
        if last_us > future_us:
            if not self.future:
                _log.warning("the file has samples from the future, which the flow will refuse")
            self.future += int(np.count_nonzero(time_us > future_us))


def _due(sender: "_Sender", batcher: Batcher, reading: Reading, speed: float, first_us: int) -> Iterator[Message]:
    """The batches that a block completes; with a speed, every sample of it, when its time has come."""
    if not speed:
        yield from batcher.add(reading.block)
        return
    # A service's release times never go back, so the sort, being stable, keeps its batches in sequence.
    messages = [*batcher.add(reading.block), *batcher.flush()]
    for message in sorted(messages, key=lambda message: message.release_us):
        sender.wait_until((message.release_us - first_us) / 1e6 / speed)
        yield message


class CommittedOffsets:
    """What a consumer group has committed of a topic, asked without joining the group. Close it, or use `with`."""

    def __init__(
        self, bootstrap_servers: str, topic: str, group: str = GROUP, properties: Mapping[str, Any] | None = None
    ):
        self._topic = topic
        self._known: dict[int, int] = {}
        self._consumer = Consumer(
            {
                **(properties or {}),
                "bootstrap.servers": bootstrap_servers,
                "group.id": group,
                "enable.auto.commit": False,
                # Its complaints are many; the last one is in our own errors.
                "logger": logging.getLogger("tailrace.librdkafka"),
            }
        )

    def __call__(self, partitions: Collection[int]) -> dict[int, int]:
        """Partition -> next offset the group will read; 0: none yet. Takes 5 s at most."""
        try:
            places = [TopicPartition(self._topic, partition) for partition in partitions]
            answers = self._consumer.committed(places, timeout=_COMMITTED_S)
        except KafkaException as error:
            # A broker that is away for a moment; whoever waits has a limit of its own.
            _log.debug("the committed offsets cannot be read: %s", error)
        else:
            self._known |= {a.partition: max(0, a.offset) for a in answers if a.error is None}
        return {p: self._known.get(p, 0) for p in partitions}

    def close(self) -> None:
        """Leave nothing open."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait_stored(
    result: ReplayResult,
    committed: Callable[[Collection[int]], Mapping[int, int]],
    *,
    progress: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = monotonic_s,
    wait: Callable[[float], object] = sleep,
    stall_s: float = STALL_S,
) -> None:
    """Return when the flow has committed everything that a replay sent: a flow commits what it has stored.

    `committed`: a CommittedOffsets of the result's topic. `progress`: (batches stored, batches sent).

    Raises:
        ReplayError: no progress for `stall_s`.
    """
    least: int | None = None
    since = clock()
    while True:
        offsets = committed(result.end_offsets.keys())
        left = sum(max(0, end - offsets.get(partition, 0)) for partition, end in result.end_offsets.items())
        if progress is not None:
            progress(max(0, result.batches - left), result.batches)
        if not left:
            return
        if least is None or left < least:
            least, since = left, clock()
        elif clock() - since > stall_s:
            raise ReplayError(
                f"the flow has not stored anything for {stall_s:.0f} s, and {left} records are left: is it running? "
                "Replaying the same file again does no harm"
            )
        wait(_STORED_CHECK_S)


class _Ahead:
    """What was delivered and is not known to be committed, by partition."""

    def __init__(self) -> None:
        self._records: dict[int, deque[tuple[int, int]]] = {}
        self._bytes: dict[int, int] = {}

    @property
    def partitions(self) -> Collection[int]:
        """Those that have anything."""
        return [partition for partition, size in self._bytes.items() if size]

    def delivered(self, partition: int, offset: int, size: int) -> None:
        self._records.setdefault(partition, deque()).append((offset, size))
        self._bytes[partition] = self._bytes.get(partition, 0) + size

    def committed(self, partition: int, end: int) -> bool:
        """Forget what lies before `end`; says whether there was anything."""
        records = self._records[partition]
        before = len(records)
        while records and records[0][0] < end:
            self._bytes[partition] -= records.popleft()[1]
        return len(records) < before

    def bytes(self, partition: int | None) -> int:
        """Of a partition; None: of the one that has most."""
        if partition is None:
            return max(self._bytes.values(), default=0)
        return self._bytes.get(partition, 0)


class _LastError:
    """What librdkafka last complained of, not concerning a message; rather why than that no broker is there."""

    def __init__(self) -> None:
        self.text = ""

    def __call__(self, error: KafkaError) -> None:
        if told := advice(error.str()):
            self.text = f"{error.str()} - {told}"
        elif not advice(self.text):
            self.text = error.str()


class _Sender:
    """One producer, held back by what the flow has committed. Not for threads."""

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        properties: Mapping[str, Any],
        pace_by: str,
        clock: Callable[[], float],
        wait: Callable[[float], object] | None,
        stall_s: float,
    ) -> None:
        self._topic = topic
        self._bootstrap_servers = bootstrap_servers
        self._clock = clock
        self._stall_s = stall_s
        self._group = pace_by
        self._last_error = _LastError()
        self._failure = ""
        self._start_s: float | None = None
        self._in_flight = 0
        """Bytes handed to librdkafka and not yet delivered."""
        self._partition_of: dict[str, int] = {}
        self._ahead = _Ahead()
        self.batches = 0
        self.end_offsets: dict[int, int] = {}
        self._producer = Producer(
            {
                "compression.type": "zstd",
                "queue.buffering.max.kbytes": 64 * 1024,
                "delivery.timeout.ms": 60_000,
                "message.max.bytes": MAX_MESSAGE_BYTES,
                **properties,
                "bootstrap.servers": bootstrap_servers,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                # Not a method of this object: the producer ends, and its threads, when nothing refers to it.
                "error_cb": self._last_error,
                # Its complaints are many; the last one is in our own errors.
                "logger": logging.getLogger("tailrace.librdkafka"),
            }
        )
        self._waiting = wait
        self._check_topic()
        self._committed = CommittedOffsets(bootstrap_servers, topic, pace_by, properties) if pace_by else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # The next run sends everything again: do not keep the user waiting for what is queued.
            self._producer.purge()
            self._producer.flush(1.0)
        if self._committed is not None:
            self._committed.close()

    def wait_until(self, after_s: float) -> None:
        """Wait until so many seconds after the first call of this."""
        if self._start_s is None:
            self._start_s = self._clock()
        while (left := self._start_s + after_s - self._clock()) > 0:
            self._producer.poll(0)
            self._raise_failure()
            self._wait(min(left, 0.1))

    def send(self, message: Message) -> None:
        """Queue a batch, as soon as there is room for it.

        Raises:
            ReplayError: a batch could not be delivered, or the flow does not go on.
        """
        size = len(message.payload) + _RECORD_BYTES
        if self._committed is not None:
            self._hold_back(message.service, size, self._committed)

        def delivered(error: KafkaError | None, record: Any) -> None:
            self._in_flight -= size
            if error is not None:
                self._failure = self._failure or f"a batch of {message.service!r} was not delivered: {error.str()}"
                return
            partition, offset = record.partition(), record.offset()
            self._partition_of[message.service] = partition
            self.end_offsets[partition] = max(self.end_offsets.get(partition, 0), offset + 1)
            if self._committed is not None:
                self._ahead.delivered(partition, offset, size)

        while True:
            try:
                self._producer.produce(self._topic, message.payload, message.service, on_delivery=delivered)
                break
            except BufferError:
                self._producer.poll(0.1)
                self._raise_failure()
            except KafkaException as error:
                raise ReplayError(f"a batch of {message.service!r} cannot be sent: {error.args[0].str()}") from error
        self._in_flight += size
        self.batches += 1
        self._producer.poll(0)
        self._raise_failure()

    def flush(self) -> None:
        """Return when everything is delivered; librdkafka's delivery timeout bounds it.

        Raises:
            ReplayError: a batch could not be delivered.
        """
        while self._producer.flush(0.5):
            self._raise_failure()
        self._raise_failure()

    def _hold_back(self, service: str, size: int, committed: CommittedOffsets) -> None:
        since = self._clock()
        while True:
            # What is under way may be for any partition.
            ahead = self._in_flight + self._ahead.bytes(self._partition_of.get(service))
            if not ahead or ahead + size <= AHEAD_BYTES:
                return
            in_flight = self._in_flight
            self._producer.poll(0)
            self._wait(_CHECK_S)
            self._raise_failure()
            offsets = committed(self._ahead.partitions) if self._ahead.partitions else {}
            moved = [self._ahead.committed(partition, end) for partition, end in offsets.items()]
            if any(moved) or self._in_flight != in_flight:
                since = self._clock()
            elif self._clock() - since > self._stall_s:
                raise ReplayError(
                    f"the consumer group {self._group!r} has not committed anything of {self._topic!r} for "
                    f"{self._stall_s:.0f} s: is the windows flow running? Replaying the same file again does no harm"
                )

    def _check_topic(self) -> None:
        try:
            topic = self._producer.list_topics(self._topic, timeout=_CONNECT_S).topics[self._topic]
        except KafkaException as error:
            self._producer.poll(0)
            detail = self._last_error.text or error.args[0].str()
            raise ReplayError(f"no Kafka broker answers at {self._bootstrap_servers}: {detail}") from error
        if topic.error is not None:
            told = f" - {said}" if (said := advice(topic.error.str())) else ""
            raise ReplayError(f"topic {self._topic!r} at {self._bootstrap_servers}: {topic.error.str()}{told}")

    def _wait(self, seconds: float) -> None:
        (self._waiting or self._producer.poll)(seconds)

    def _raise_failure(self) -> None:
        if self._failure:
            raise ReplayError(self._failure + (f" ({self._last_error.text})" if self._last_error.text else ""))
