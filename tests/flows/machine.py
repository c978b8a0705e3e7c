"""The window flow without Bytewax, Kafka and ClickHouse: partitions feed shards, epochs commit, a crash goes back.

`Machine` does what `tailrace_flows.windows` does, step by step and with a clock of its own: what a poll brings goes to
the shards; what they emit is written some time before the epoch commits; a commit stores the states of all of them
together; a crash loses everything since, but for any part of what was emitted. Written rows are kept as ClickHouse
keeps them.
"""

import pickle
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import isinf
from random import Random
from typing import Any

from tailrace_flows.core.chunk import Ahead, Chunk, Mark, ReadUntil
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.ends import Ends
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import Keyed, Partition
from tailrace_flows.core.series import series_id
from tailrace_flows.core.shard import Output, Shard
from tailrace_schemas.deadletter import DeadLetter
from tailrace_schemas.rows import COUNTERS, EVENTS, WINDOW_ROWS
from tailrace_schemas.samples import Series

from tests.flows.oracle import Entry, Expected, Key, Row

S = 1_000_000
START_US = 1_700_000_040 * S
"""The first microsecond of a minute, where tests begin."""


class Machine:
    """Partitions with the logs `logs`, and the shards they feed.

    Args:
        hold: recover by replay; otherwise windows are in the snapshots.
        low: the broker's first offset.
    """

    def __init__(
        self,
        logs: Sequence[Sequence[Entry]],
        config: WindowConfig,
        *,
        hold: bool = True,
        now_us: int = START_US + 3600 * S,
        low: int = 0,
    ) -> None:
        self.config = config
        self.hold = hold
        self.now_us = now_us
        self.low = low
        self.kept_from = [low] * len(logs)
        self.logs: list[list[Record]] = []
        self.hidden = [0] * len(logs)
        """Records at the end of each log that have not been sent yet."""
        self.append(logs)
        self.rows: dict[Key, dict[str, Any]] = {}
        self.counters: dict[tuple[str, str, str, str], int] = {}
        self.last_counters: dict[tuple[str, str, str, str], int] = {}
        """As they were last written, where `counters` keeps the greatest total."""
        self.events: dict[int, dict[str, Any]] = {}
        self.letters: dict[tuple[int, int, str], DeadLetter] = {}
        self.written: list[dict[str, Any]] = []
        """Every row that was written, in order, with its Key as `key`."""
        self.closed_us: dict[tuple[str, str], int] = {}
        """(service, stream) -> the end of the windows that blocks have said to be closed, since the last crash."""
        self.scattered = False
        """Whether a service is in several partitions."""
        self.polls = 0
        self.crashes = 0
        self._emitted: list[Output | DeadLetter] = []
        self.committed: tuple[list[bytes | None], dict[str, bytes]] = ([None] * len(logs), {})
        self._restore()

    def append(self, logs: Sequence[Sequence[Entry]]) -> None:
        """Adds records to the ends of the logs."""
        for number, log in enumerate(logs):
            if number == len(self.logs):
                self.logs.append([])
            for entry in log:
                offset = self.low + len(self.logs[number])
                self.logs[number].append(Record(offset, entry.record_time_us, entry.encode()))

    # -- what happens -------------------------------------------------------------------------------

    def poll(self, number: int, records: int) -> int:
        """One call of a source's `next_batch`; returns how many records it found."""
        partition = self.partitions[number]
        partition.gap(self.kept_from[number])
        at = partition.next_offset - self.low
        sent = len(self.logs[number]) - self.hidden[number]
        found = self.logs[number][at : min(at + records, sent)]
        letters: list[DeadLetter] = []
        items: list[Keyed] = []
        if found:
            items, letters = partition.read(found, self.now_us)
        self.ends[number].found(self.low + sent, self.now_us)
        if (until_us := self.ends[number].read_until_us(partition.next_offset)) is not None:
            items += partition.idle_marks(until_us)
        self._emitted += letters
        counters = partition.counter_rows(self.now_us)
        if counters is not None:
            self._emitted.append(Output([], None, counters))
        self.polls += 1
        if self.polls % 2:  # as between processes
            items = pickle.loads(pickle.dumps(items))
        by_shard: dict[str, list[Chunk | Mark | Ahead | ReadUntil]] = defaultdict(list)
        for shard, item in items:
            by_shard[shard].append(item)
        self.now_us += 1  # a shard's clock is read after the source's
        for name, batch in by_shard.items():
            if name not in self.shards:
                self.shards[name] = Shard(self.config, self.now_us)
            self._emitted.append(self.shards[name].on_items(batch, self.now_us))
        return len(found)

    def hide(self) -> None:
        """None of the records has been sent yet."""
        self.hidden = [len(log) for log in self.logs]

    def send(self, number: int, records: int) -> None:
        """The next records of a partition are sent."""
        self.hidden[number] = max(0, self.hidden[number] - records)

    def delete_before(self, number: int, offset: int) -> None:
        """The broker deletes what is before this offset of a partition."""
        self.kept_from[number] = offset

    def wait(self, seconds: float) -> None:
        """Time passes; shards that asked to be woken are."""
        self.now_us += round(seconds * S)
        for shard in self.shards.values():
            due_us = shard.next_us()
            if due_us is not None and due_us <= self.now_us:
                self._emitted.append(shard.on_time(self.now_us))

    def commit(self) -> None:
        """The epoch ends: everything emitted is durable, and so are the states."""
        self._write(self._emitted)
        self._emitted = []
        self.committed = (
            [partition.snapshot(self.now_us) for partition in self.partitions],
            {name: shard.snapshot(contents=not self.hold) for name, shard in self.shards.items()},
        )

    def crash(self, seed: int = 0) -> None:
        """The process dies, with a part of what it emitted since the last commit written, and starts again."""
        random = Random(seed)
        share = random.choice([0, 0.5, 1])
        self._write([output for output in self._emitted if random.random() < share])
        self._emitted = []
        self.closed_us.clear()  # what this epoch has closed is open again
        self.crashes += 1
        self._restore()

    def drain(self) -> None:
        """A clean stop, and a start."""
        self._emitted += [shard.on_end(self.now_us) for shard in self.shards.values()]
        self.commit()
        self._restore()

    def read_all(self, records: int = 1000) -> None:
        """Polls all partitions to their ends, in turns."""
        while sum(self.poll(number, records) for number in range(len(self.logs))):
            self.wait(0.01)

    def finish(self, records: int = 1000) -> None:
        """Reads everything there is and drains."""
        self.hidden = [0] * len(self.logs)
        self.read_all(records)
        self.wait(3)
        self.drain()
        self.read_all(records)
        self.wait(3)
        self.drain()

    def _restore(self) -> None:
        partitions, shards = self.committed
        self.partitions = [
            Partition(
                number,
                "samples",
                self.config,
                self.now_us,
                partitions=len(partitions),
                hold=self.hold,
                cluster_id="one",
                start=self.kept_from[number],
                state=state,
            )
            for number, state in enumerate(partitions)
        ]
        self.ends = [Ends() for _ in partitions]
        self.shards = {name: Shard(self.config, self.now_us, state) for name, state in shards.items()}

    # -- what is written ----------------------------------------------------------------------------

    def _write(self, emitted: list[Output | DeadLetter]) -> None:
        for output in emitted:
            if isinstance(output, DeadLetter):
                self.letters[(output.partition, output.offset, output.reason)] = output
                continue
            for block in output.blocks:
                check_batch(block.rows, WINDOW_ROWS)
                name = (block.service, block.stream)
                self.closed_us[name] = max(block.watermark_us, self.closed_us.get(name, block.watermark_us))
                assert len(set(block.rows["series_id"].to_pylist())) == block.rows.num_rows
                for row in block.rows.to_pylist():
                    assert (row["service"], row["stream"]) == (block.service, block.stream)
                    self._write_row(block.window_seconds, row)
            if output.events is not None:
                check_batch(output.events, EVENTS)
                self.events |= {row["event_id"]: row for row in output.events.to_pylist()}
            if output.counters is not None:
                check_batch(output.counters, COUNTERS)
                for row in output.counters.to_pylist():
                    counter = (row["scope"], row["service"], row["stream"], row["name"])
                    self.last_counters[counter] = row["value"]
                    self.counters[counter] = max(row["value"], self.counters.get(counter, 0))

    def _write_row(self, seconds: int, row: dict[str, Any]) -> None:
        series = Series(row["metric"], row["kind"], row["unit"], tuple(row["attributes"]))
        assert row["series_id"] == series_id(row["service"], series)
        key = Key(seconds, row["service"], row["stream"], series, int(row["window_start"].timestamp()))
        known = self.rows.get(key)
        self.written.append({**row, "key": key})
        if known is not None:
            # A fuller row always wins, whatever order they come in. A cumulative counter's version counts earlier
            # points too: where another partition has still to bring some of them, it may be lower for a while.
            fuller = row["count"] > known["count"] and not (self.scattered and row["kind"] == "cumulative")
            assert not fuller or row["version"] > known["version"], (key, known, row)
        if known is None or row["version"] >= known["version"]:
            self.rows[key] = row


def check_batch(batch: Any, schema: Any) -> None:
    """The record batch is sound, has the schema, and no nulls where it allows none."""
    batch.validate(full=True)
    assert batch.schema.equals(schema)
    for column, field in zip(batch.columns, schema, strict=True):
        assert field.nullable or column.null_count == 0, field.name


def check(machine: Machine, expected: Expected) -> None:
    """The machine's rows, counters, events and dead letters are the expected ones."""
    check_rows(machine.rows, expected.rows, machine.config)
    check_events(machine, expected)
    assert machine.counters == expected.counters
    assert len(machine.letters) == expected.letters


def check_events(machine: Machine, expected: Expected) -> None:
    """Each occurrence of an event that is in a window has been written, once by its id."""
    found = [
        (
            row["service"],
            row["stream"],
            Series(row["name"], "event", row["unit"], tuple(row["attributes"])),
            round(row["time"].timestamp() * S),
            row["value"],
        )
        for row in machine.events.values()
    ]
    assert sorted(found) == sorted(tuple(sample) for sample in expected.samples if sample.series.kind == "event")


def check_rows(found: dict[Key, dict[str, Any]], expected: dict[Key, Row], config: WindowConfig) -> None:
    """Equal rows, as docs/architecture.md has it: sums to within 1e-9, everything else exactly."""
    assert found.keys() == expected.keys()
    for key, row in found.items():
        check_row(key, row, expected[key], config)


def check_row(key: Key, row: dict[str, Any], wanted: Row, config: WindowConfig) -> None:
    where = (key, row, wanted)
    exact = {name: row[name] for name in ("count", "min", "max", "last", "resets")}
    assert exact == {name: getattr(wanted, name) for name in exact}, where
    assert close(row["sum"], wanted.sum, wanted.sum_size), where
    assert close(row["increase"], wanted.increase, wanted.increase_size), where
    assert row["bucket_index"] == sorted(wanted.buckets), where
    assert dict(zip(row["bucket_index"], row["bucket_count"], strict=True)) == wanted.buckets, where
    assert row["scale"] == wanted.scale, where
    generation, version = divmod(row["version"], 1 << 48)
    assert generation == config.generation, where
    if key.series.kind == "cumulative":
        # The count of all points so far, as of the last time that the row changed.
        assert wanted.count <= version <= wanted.points, where
    else:
        assert version == wanted.count, where


def close(value: float | None, exact: Fraction | None, size: Fraction) -> bool:
    """Within 1e-9 of what was added up; an overflow is infinite."""
    if value is None or exact is None:
        return value is None and exact is None
    if isinf(value):
        return size > 1.7e308
    return abs(Fraction(value) - exact) <= size / 10**9
