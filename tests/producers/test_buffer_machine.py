"""The buffer and the packer under any interleaving of what threads, brokers and forks do to them, against a receiver
that knows only the messages.
"""

from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tailrace_flows.core.sequences import Producer, Seen, observe
from tailrace_producers.buffer import Buffer, Drop, SeriesRef
from tailrace_producers.packing import Message, Packer
from tailrace_schemas.samples import SampleBatch, Series, decode

T0 = 1_700_000_000_000_000_000
CHUNK = 10
MAX_SAMPLES = 40
REFS = [
    SeriesRef(Series("g", "gauge")),
    SeriesRef(Series("deploy", "event")),  # a message of its own
    SeriesRef(Series("", "gauge"), Drop.INVALID),
]


class Sent(NamedTuple):
    """A message under way."""

    chunk: int
    message: Message


class Process(RuleBasedStateMachine):
    """One process, and after `fork` the child: its parent's samples are no longer its business."""

    def __init__(self) -> None:
        super().__init__()
        for ref in REFS:
            ref.index = -1
        self.buffer = Buffer(MAX_SAMPLES, CHUNK)
        self.packer = Packer("shop", {}, "0")
        self.processes = 1
        self.become_another()

    def become_another(self) -> None:
        self.recorded = self.received = 0
        self.closed = False
        self.last_taken = -1
        self.under_way: list[Sent] = []
        self.producer = Producer()
        self.missing = 0
        self.numbers: list[bytes | None] = []
        """What each sequence number was given to: a message, or a chunk that was dropped before it became one."""
        self.arrived: set[bytes] = set()

    @rule(samples=st.integers(1, 25), ref=st.sampled_from(REFS))
    def record(self, samples: int, ref: SeriesRef) -> None:
        for _ in range(samples):
            self.buffer.rows.extend((1.0, T0, ref))
            if len(self.buffer.rows) >= self.buffer.row_limit:
                self.buffer.cut_if_full()
        self.recorded += samples

    @rule()
    def cut(self) -> None:
        self.buffer.cut()

    @rule()
    def send(self) -> None:
        chunk = self.buffer.take()
        if chunk is None:
            return
        self.numbers += [None] * (chunk.number - self.last_taken - 1)  # chunks are numbered one after the other
        self.last_taken = chunk.number
        self.packer.skip(chunk.lost_before)
        messages, dropped = self.packer.pack(chunk.rows)
        for drop, samples in dropped.items():
            self.buffer.settle(chunk.number, samples, drop)
        self.numbers += [message.payload for message in messages]
        self.under_way += [Sent(chunk.number, message) for message in messages]

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100), copies=st.integers(1, 2))
    def arrive(self, which: int, copies: int) -> None:
        sent = self.under_way.pop(which % len(self.under_way))
        for _ in range(copies):
            batch = decode(sent.message.payload)
            assert isinstance(batch, SampleBatch)
            seen, newly_missing = observe(self.producer, batch.sequence)
            self.missing += newly_missing - (seen is Seen.RECOVERED)
            if seen is not Seen.DUPLICATE:
                self.received += batch.samples
        self.arrived.add(sent.message.payload)
        self.buffer.settle(sent.chunk, sent.message.samples)

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 100))
    def fail(self, which: int) -> None:
        sent = self.under_way.pop(which % len(self.under_way))
        self.buffer.settle(sent.chunk, sent.message.samples, Drop.UNDELIVERED)

    @rule()
    def fork(self) -> None:
        self.buffer.reset()
        self.packer.start_over(str(self.processes))
        self.processes += 1
        self.become_another()

    @rule()
    def close(self) -> None:
        self.buffer.close()
        self.closed = True

    @invariant()
    def every_sample_is_held_delivered_or_dropped(self) -> None:
        stats = self.buffer.stats()
        assert stats.recorded == self.recorded == stats.held + stats.delivered + sum(stats.dropped.values())
        assert 0 <= stats.held <= MAX_SAMPLES + CHUNK
        assert not (self.closed and stats.held)
        given_up = stats.dropped.get(Drop.SHUTDOWN, 0)  # may still arrive
        assert stats.delivered <= self.received <= stats.delivered + given_up

    @invariant()
    def every_lost_message_before_the_last_one_is_missed(self) -> None:
        known = self.numbers[: self.producer.highest + 1]
        assert self.missing == sum(number not in self.arrived for number in known)


TestProcess = Process.TestCase
TestProcess.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
