"""Replays through a broker: whole, repeatable, paced."""

import itertools
import json
import logging
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from tailrace_infra import broker
from tailrace_producers.replay import CommittedOffsets, Progress, ReplayError, ReplayOptions, push, replay, wait_stored
from tailrace_schemas.samples import SampleBatch
from tailrace_schemas.topics import Topics

from tests.data import data_file
from tests.producers.reading import Read, read_topic
from tests.producers.replay_oracle import Row, by_service, read_rows, rows_of

FIRST_S = 1661140330


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """30,000 samples of three services over 30 s."""
    path = tmp_path / "shop.csv"
    services = ("cart", "pay", "ship")
    lines = [f"{FIRST_S + i / 1000:.3f},m,{i},{services[i * 7 % 3]},/{i % 5}" for i in range(30_000)]
    path.write_text("time,metric,value,service,route\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """600,000 samples of one service: 9.6 MB in one partition."""
    rows = 600_000
    columns = {
        "time": pa.array(FIRST_S * 10**6 + np.arange(rows), pa.timestamp("us", tz="UTC")),
        "metric": pa.array(["m"] * rows),
        "value": np.random.default_rng(1).integers(1000, size=rows),  # well compressed: 5 MB are kept
    }
    pq.write_table(pa.table(columns), tmp_path / "large.parquet")
    return tmp_path / "large.parquet"


def rows_by_service(reads: Iterable[Read]) -> dict[str, list[Row]]:
    return by_service(rows_of(read.batch for read in reads))


def deduplicated(reads: Iterable[Read]) -> list[Read]:
    """As a flow does it: a sequence number that was seen is dropped; what it drops must be the same, byte by byte."""
    seen: dict[tuple[str, str, str, int], Read] = {}
    for read in reads:
        batch = read.batch
        assert seen.setdefault((batch.service, batch.producer_id, batch.stream, batch.sequence), read) == read
    return list(seen.values())


def test_a_file_arrives_whole_under_its_stream(embedded_broker: str, shop: Path) -> None:
    seen: list[Progress] = []
    result = replay(str(shop), bootstrap_servers=embedded_broker, progress=seen.append)
    reads = read_topic(embedded_broker)
    assert rows_by_service(reads) == by_service(read_rows(shop)[0])
    assert {(read.batch.stream, read.batch.producer_id) for read in reads} == {(result.stream, result.stream)}
    assert len(result.stream) == 16
    assert all(read.key.decode() == read.batch.service for read in reads)
    assert (result.samples, result.batches, result.lines, result.bad_lines) == (30_000, len(reads), 30_000, {})
    assert result.services == ("cart", "pay", "ship")
    assert (result.first_time_us, result.last_time_us) == (FIRST_S * 10**6, FIRST_S * 10**6 + 29_999_000)
    counts: dict[int, int] = defaultdict(int)
    for read in reads:
        counts[read.partition] += 1
    assert result.end_offsets == dict(sorted(counts.items()))
    assert [p.samples for p in seen] == sorted(p.samples for p in seen)
    assert seen[-1] == Progress(shop.stat().st_size, shop.stat().st_size, 30_000, 0)


def test_a_second_replay_sends_the_same_messages(embedded_broker: str, shop: Path) -> None:
    first = replay(str(shop), bootstrap_servers=embedded_broker)
    second = replay(str(shop), bootstrap_servers=embedded_broker)
    assert second.stream == first.stream
    assert second.end_offsets == {partition: 2 * end for partition, end in first.end_offsets.items()}
    assert len(deduplicated(read_topic(embedded_broker))) == first.batches


@pytest.mark.parametrize("end", ["interrupt", "kill"])
def test_an_interrupted_replay_is_completed_by_the_next(embedded_broker: str, shop: Path, end: str) -> None:
    script = """
import json, os, signal, sys
from tailrace_producers.replay import replay
from tailrace_schemas.samples import decode

def progress(done):
    if done.samples > 10_000:
        os.kill(os.getpid(), signal.SIGINT if sys.argv[3] == "interrupt" else signal.SIGKILL)

replay(sys.argv[1], bootstrap_servers=sys.argv[2], progress=progress, properties={"linger.ms": 0})
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(shop), embedded_broker, end], capture_output=True, text=True, check=False
    )
    assert ended.returncode == (-2 if end == "interrupt" else -9), ended.stderr
    result = replay(str(shop), bootstrap_servers=embedded_broker)
    reads = read_topic(embedded_broker)
    assert rows_by_service(deduplicated(reads)) == by_service(read_rows(shop)[0])
    assert len(reads) >= result.batches


def test_the_stream_is_of_content_and_options(embedded_broker: str, tmp_path: Path) -> None:
    def stream(name: str, value: int = 1, speed: float = 0.0, **options: Any) -> str:
        (tmp_path / name).write_text(f"time,metric,value\n1,m,{value}\n")
        return replay(
            str(tmp_path / name), bootstrap_servers=embedded_broker, options=ReplayOptions(**options), speed=speed
        ).stream

    same = stream("a.csv", service="x")
    assert stream("b.csv", service="x") == same
    others = [
        stream("a.csv", 2, service="x"),
        stream("a.csv"),
        stream("b.csv"),
        stream("a.csv", service="x", unit="s"),
        stream("a.csv", service="x", speed=10.0),
    ]
    assert len({same, *others}) == 6


def test_a_given_stream_keeps_the_files_own_sequences(embedded_broker: str, tmp_path: Path) -> None:
    """Two files of one service in one stream must not pass for duplicates of each other."""
    for day in (1, 2):
        (tmp_path / f"{day}.csv").write_text(f"time,metric,value,service\n{day},m,{day},shop\n")
        result = replay(
            str(tmp_path / f"{day}.csv"), bootstrap_servers=embedded_broker, stream="backfill", topics=Topics("own")
        )
        assert (result.stream, result.topic) == ("backfill", "own.samples")
    reads = read_topic(embedded_broker, "own.samples")
    assert {read.batch.stream for read in reads} == {"backfill"}
    assert len(deduplicated(reads)) == 4


def test_bad_lines_are_reported(embedded_broker: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("time,metric,value\n1,m,1\nx,m,1\n")
    result = replay(str(path), bootstrap_servers=embedded_broker)
    assert (result.samples, result.lines, json.dumps(result.bad_lines)) == (1, 2, '{"bad_time": 1}')
    assert [(example.line, example.text) for example in result.bad_examples] == [(3, "x,m,1")]
    path.write_text("time,metric,value\n" + "1,m,1\n" * 9000 + "x,m,1\n" * 2000)
    with pytest.raises(ReplayError, match="2,000 of 11,000 lines are bad"):
        replay(str(path), bootstrap_servers=embedded_broker)
    assert replay(str(path), bootstrap_servers=embedded_broker, max_bad_ratio=0.5).samples == 9000


def test_a_file_without_samples_is_replayed_in_no_time(embedded_broker: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time,metric,value\n")
    result = replay(str(tmp_path / "x.csv"), bootstrap_servers=embedded_broker)
    assert (result.samples, result.batches, result.services, result.end_offsets) == (0, 0, (), {})
    wait_stored(result, lambda partitions: {})


def test_samples_from_the_future_are_counted_and_warned_of(
    embedded_broker: str, shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The clock is 61 s before the file's last sample: the first 29 s of it may pass.
    now = (FIRST_S - 31) * 10**6
    with caplog.at_level(logging.WARNING):
        result = replay(str(shop), bootstrap_servers=embedded_broker, wall_us=lambda: now)
    assert result.future_samples == 999
    assert [record.message for record in caplog.records if "future" in record.message] == [
        "the file has samples from the future, which the flow will refuse"
    ]


# -- pace -------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes when someone waits."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_real_time_sends_nothing_before_its_time(embedded_broker: str, shop: Path) -> None:
    clock = Clock()
    sent: list[tuple[float, int]] = []
    result = replay(
        str(shop), bootstrap_servers=embedded_broker, speed=10.0, clock=clock, wait=clock.wait,
        progress=lambda p: sent.append((clock.now - 1000.0, p.samples)),
    )  # fmt: skip
    assert clock.now - 1000.0 == pytest.approx(29.999 / 10.0)
    # A sample a millisecond, ten times as fast: at 1 s the first 10,001 may have been sent, and 10 % fewer must.
    for elapsed, samples in sent:
        assert samples <= elapsed * 10_000 + 1 + 1e-6
    assert all(later - earlier < 0.6 for (earlier, _), (later, _) in itertools.pairwise(sent))
    reads = read_topic(embedded_broker)
    assert rows_by_service(reads) == by_service(read_rows(shop)[0])
    assert len(reads) == result.batches >= 3 * 6


@pytest.mark.parametrize("speed", [-1.0, float("inf"), float("nan")])
def test_speed_is_a_factor(shop: Path, speed: float) -> None:
    with pytest.raises(ReplayError, match="is not a factor"):
        replay(str(shop), bootstrap_servers="x", speed=speed)


class Flow:
    """A consumer group that commits everything that has arrived, each time someone waits for it."""

    def __init__(self, bootstrap_servers: str, topic: str = "tailrace.samples") -> None:
        self._topic = topic
        self._consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": push.GROUP, "log_level": 0})
        self.committed = [0] * 4
        self.seen: list[tuple[int, int, int]] = []
        """(partition, committed before, end at that time)."""

    def step(self, _: float) -> None:
        for partition in range(4):
            place = TopicPartition(self._topic, partition)
            end = self._consumer.get_watermark_offsets(place)[1]
            if end > self.committed[partition]:
                self.seen.append((partition, self.committed[partition], end))
                self._consumer.commit(offsets=[TopicPartition(self._topic, partition, end)], asynchronous=False)
                self.committed[partition] = end

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
def flow(embedded_broker: str) -> Iterator[Flow]:
    flow = Flow(embedded_broker)
    yield flow
    flow.close()


def test_pace_keeps_less_than_2_mb_ahead_of_the_flow(embedded_broker: str, large: Path, flow: Flow) -> None:
    result = replay(str(large), bootstrap_servers=embedded_broker, pace=True, wait=flow.step)
    assert result.samples == 600_000
    reads = read_topic(embedded_broker)
    (partition,) = result.end_offsets
    sizes = [len(read.batch.value) * 2 for read in reads]
    ahead = [sum(sizes[start:end]) for at, start, end in flow.seen if at == partition]
    assert sum(ahead) > 7_000_000  # all but what was sent since the last look
    assert max(ahead) < 2_000_000


def test_a_flow_that_stands_still_is_a_clear_error(embedded_broker: str, large: Path) -> None:
    clock = Clock()
    with pytest.raises(ReplayError, match=r"group 'other' has not committed anything of 'tailrace.samples' for 60 s"):
        replay(
            str(large), bootstrap_servers=embedded_broker, pace=True, group="other", clock=clock,
            wait=lambda _: clock.wait(0.5),
        )  # fmt: skip


def test_committed_offsets_are_asked_without_joining(
    embedded_broker: str, shop: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = replay(str(shop), bootstrap_servers=embedded_broker)
    with CommittedOffsets(embedded_broker, result.topic, properties={"log_level": 0}) as committed:
        assert committed(result.end_offsets.keys()) == dict.fromkeys(result.end_offsets, 0)
        flow.step(0)
        assert committed(result.end_offsets.keys()) == result.end_offsets
    wait_stored(result, lambda partitions: result.end_offsets)


def test_a_broker_that_is_away_leaves_the_offsets_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_COMMITTED_S", 0.2)
    with CommittedOffsets("127.0.0.1:1", "t", properties={"log_level": 0}) as committed:
        assert committed([0, 1]) == {0: 0, 1: 0}


# -- stored -----------------------------------------------------------------------------------------------


def stored_by(*steps: dict[int, int]) -> Callable[[Collection[int]], dict[int, int]]:
    left = iter(steps)
    return lambda partitions: next(left)


def test_stored_is_when_every_end_is_committed(embedded_broker: str, shop: Path) -> None:
    result = replay(str(shop), bootstrap_servers=embedded_broker)
    clock = Clock()
    seen: list[tuple[int, int]] = []
    nothing: dict[int, int] = {}
    partition, end = next(iter(result.end_offsets.items()))
    wait_stored(
        result,
        stored_by(nothing, {partition: end}, result.end_offsets, nothing),
        progress=lambda done, total: seen.append((done, total)),
        clock=clock,
        wait=clock.wait,
    )
    assert seen == [(0, result.batches), (end, result.batches), (result.batches, result.batches)]


def test_stored_waits_for_a_flow_that_moves_and_no_longer(embedded_broker: str, shop: Path) -> None:
    result = replay(str(shop), bootstrap_servers=embedded_broker)
    clock = Clock()
    partition = next(iter(result.end_offsets))
    moves = iter([{partition: 1}] * 300 + [{partition: 2}] * 10_000)
    with pytest.raises(ReplayError, match=r"has not stored anything for 60 s, and \d+ records are left"):
        wait_stored(result, lambda _: next(moves), clock=clock, wait=clock.wait)
    assert clock.now == pytest.approx(1000 + 30 + 60, abs=1)


# -- Kafka --------------------------------------------------------------------------------------------------


def test_no_broker_is_a_clear_error(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_CONNECT_S", 0.5)
    with pytest.raises(ReplayError, match=r"no Kafka broker answers at 127.0.0.1:1: .*refused"):
        replay(str(shop), bootstrap_servers="127.0.0.1:1", properties={"log_level": 0})


def test_a_broker_that_goes_away_is_a_clear_error(large: Path) -> None:
    with ExitStack() as stack:
        bootstrap_servers = stack.enter_context(broker.embedded_broker())
        with pytest.raises(ReplayError, match="a batch of 'large' was not delivered"):
            replay(
                str(large), bootstrap_servers=bootstrap_servers, progress=lambda _: stack.close(),
                properties={"log_level": 0, "delivery.timeout.ms": 500, "linger.ms": 0},
            )  # fmt: skip


def test_a_message_that_is_too_large_is_a_clear_error(embedded_broker: str, shop: Path) -> None:
    with pytest.raises(ReplayError, match=r"a batch of 'cart' cannot be sent: .*too large"):
        replay(str(shop), bootstrap_servers=embedded_broker, properties={"message.max.bytes": 1000, "log_level": 0})


def test_a_full_queue_only_waits(embedded_broker: str, shop: Path) -> None:
    result = replay(str(shop), bootstrap_servers=embedded_broker, properties={"queue.buffering.max.messages": 1})
    assert len(read_topic(embedded_broker)) == result.batches


class NoTopics(Producer):
    """The embedded broker makes any topic on demand; a cluster that does not answers so."""

    def list_topics(self, topic: str, timeout: float) -> Any:
        metadata = super().list_topics(topic, timeout)
        metadata.topics[topic].error = KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        return metadata


def test_a_topic_that_is_not_there_is_a_clear_error(
    embedded_broker: str, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "Producer", NoTopics)
    with pytest.raises(ReplayError, match=r"topic 'tailrace.samples' at .*: Broker: Unknown topic or partition"):
        replay(str(shop), bootstrap_servers=embedded_broker)


# -- every format -------------------------------------------------------------------------------------------


FILES: list[tuple[str, dict[str, Any]]] = [
    ("apache_access_first5000.log.gz", {}),
    (
        "hdr/ycsb_read_first300s.csv.gz",
        {
            "time_column": "interval_start_s", "value_column": "value_highest", "count_column": "count",
            "metric": "db.duration", "unit": "us", "attribute_columns": (),
        },
    ),
    (
        "nezha_traces/2022-08-22_03_53.csv.gz",
        {
            "time_column": "end_unix_ns", "time_unit": "ns", "value_column": "duration_us", "metric": "rpc.duration",
            "unit": "us", "service_column": "pod", "attribute_columns": ("operation",),
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), FILES, ids=["access log", "histograms", "spans"])
def test_real_files_arrive_whole(embedded_broker: str, name: str, settings: dict[str, Any]) -> None:
    path, options = data_file(f"latency/{name}"), ReplayOptions(**settings)
    result = replay(str(path), bootstrap_servers=embedded_broker, options=options)
    reads = read_topic(embedded_broker)
    assert rows_by_service(reads) == by_service(read_rows(path, options, block_bytes=1 << 22)[0])
    assert sum(read.batch.samples for read in reads) == result.samples
    ends = [read.batch for read in reads if read.batch.end_of_stream]
    assert sorted(batch.service for batch in ends) == sorted(result.services)
    assert all(isinstance(batch, SampleBatch) and not batch.table.series for batch in ends)
