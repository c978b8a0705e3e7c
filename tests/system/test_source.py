"""The Kafka source against a real consumer and the embedded broker."""

import threading
from array import array
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from tailrace_flows import host_clock
from tailrace_flows import source as source_module
from tailrace_flows.adapters import Adapters
from tailrace_flows.core import partition as partition_module
from tailrace_flows.core.chunk import Chunk, Mark, ReadUntil
from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.partition import MARK_EVERY_US
from tailrace_flows.settings import KafkaSettings, Settings
from tailrace_flows.source import sample_source
from tailrace_flows.topic_reader import read_topic
from tailrace_infra.kafka import start as start_kafka
from tailrace_infra.kafka import stop as stop_kafka
from tailrace_infra.ports import free_port
from tailrace_infra.topics import ensure_topics
from tailrace_schemas.clock import now_us
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tests.infra.waiting import eventually, logged
from tests.system.proxy import Mode, proxy_to_kafka


def send(client: dict[str, Any], topic: str, batches: int, first: int = 0) -> None:
    """So many batches of one sample, to partition 0; numbered from `first`."""
    producer = Producer(client)
    for sequence in range(first, first + batches):
        batch = encode_batch(
            service="svc", producer_id=topic, sequence=sequence, base_time_us=now_us(),
            series_table=encode_series_table([Series("latency", "distribution", "s", ())]),
            series_index=bytes(4), time_offset_us=bytes(4), value=array("d", [1.0]).tobytes(),
        )  # fmt: skip
        producer.produce(topic, batch, partition=0)
    assert producer.flush(10) == 0


def read(reader: Any, batches: int) -> list[Chunk]:
    """The chunks that hold so many batches."""
    chunks: list[Chunk] = []

    def enough() -> bool:
        chunks.extend(item[1] for item in reader.next_batch() if isinstance(item, tuple) and isinstance(item[1], Chunk))
        return sum(chunk.lengths.size for chunk in chunks) >= batches

    eventually(enough)
    return chunks


def test_a_topic_that_was_made_anew_is_no_replay_of_the_old_one(embedded_broker: str) -> None:
    """Its end lies before the stored position, though after the offset that was held back."""
    client = {"bootstrap.servers": embedded_broker, "log_level": 0}
    send(client, "old", 5)
    send(client, "new", 3)  # under the old one's name, as far as the state can tell
    sources = [
        sample_source(client, topic, "group", WindowConfig(), hold=True, stop=threading.Event())
        for topic in ("old", "new")
    ]
    reader = sources[0].build_part("samples", "00000", None)
    read(reader, 5)
    state = reader.snapshot()
    reader.close()
    reader = sources[1].build_part("samples", "00000", state)
    try:
        assert not any(chunk.replayed for chunk in read(reader, 3))
    finally:
        reader.close()


def test_a_partition_read_to_its_end_by_one_poll_is_known_to_be_at_its_end(embedded_broker: str) -> None:
    client = {"bootstrap.servers": embedded_broker, "log_level": 0}
    send(client, "samples", 1)
    config = WindowConfig(idle_s=0.1)
    source = sample_source(client, "samples", "group", config, hold=False, stop=threading.Event())
    reader = source.build_part("samples", "00000", None)
    try:
        threading.Event().wait(0.5)  # the record and the end of the partition are fetched, and taken by one poll
        taken = [item for item in reader.next_batch() if isinstance(item, tuple)]
        assert [type(item) for _, item in taken if isinstance(item, Chunk | Mark)] == [Chunk]
        eventually(lambda: [item for item in reader.next_batch() if isinstance(item[-1], Mark)])
    finally:
        reader.close()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG])
def test_nobody_is_silent_while_the_broker_cannot_be_reached(
    embedded_broker: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What producers have sent meanwhile is read before any window is closed by wall time."""
    monkeypatch.setattr(source_module, "ENDS_TIMEOUT_S", 1.0)
    direct = {"bootstrap.servers": embedded_broker, "log_level": 0}
    topic = f"cut-{mode.value}"
    send(direct, topic, 1)
    with proxy_to_kafka(embedded_broker) as proxy:
        client = {"bootstrap.servers": proxy.address, "log_level": 0, "reconnect.backoff.max.ms": 200}
        source = sample_source(client, topic, "group", WindowConfig(idle_s=0.1), hold=False, stop=threading.Event())
        reader = source.build_part("samples", "00000", None)

        def look() -> list[type[Any]]:
            items = [item[-1] for item in reader.next_batch() if isinstance(item, tuple)]
            return [type(item) for item in items if isinstance(item, Chunk | Mark)]

        try:
            read(reader, 1)
            assert eventually(look) == [Mark]
            proxy.mode = mode
            until_us = now_us() + 2 * MARK_EVERY_US
            while now_us() < until_us:
                assert not look()
                threading.Event().wait(0.01)
            send(direct, topic, 2)
            proxy.mode = Mode.PASS
            assert eventually(look) == [Chunk]
            assert eventually(look) == [Mark]
        finally:
            proxy.mode = Mode.PASS  # or closing waits for the broker
            reader.close()


def test_a_partition_that_always_brings_something_says_as_of_when_it_is_read(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "MARK_EVERY_US", 50_000)
    monkeypatch.setattr(partition_module, "MARK_EVERY_US", 50_000)
    client = {"bootstrap.servers": embedded_broker, "log_level": 0}
    send(client, "busy", 1)
    source = sample_source(client, "busy", "group", WindowConfig(), hold=False, stop=threading.Event())
    reader = source.build_part("samples", "00000", None)
    sent = iter(range(1, 1_000))

    def told() -> ReadUntil | None:
        send(client, "busy", 1, next(sent))
        items = [item[-1] for item in reader.next_batch() if isinstance(item, tuple)]
        until = [item for item in items if isinstance(item, ReadUntil)]
        assert all(item.until_us <= now_us() for item in until)
        return until[0] if until and any(isinstance(item, Chunk) for item in items) else None

    try:
        first = eventually(told)
        assert eventually(told).until_us > first.until_us
        assert (first.partition, first.partitions) == (0, 4)  # as the embedded broker makes them
    finally:
        reader.close()


@pytest.mark.kafka
def test_who_is_silent_is_known_again_after_a_broker_restarted(tmp_path: Path) -> None:
    """Partitions have another leader epoch then."""
    client = {"bootstrap.servers": start_kafka(tmp_path, port := free_port()).bootstrap_servers, "log_level": 0}
    source = sample_source(client, "samples", "group", WindowConfig(idle_s=0.1), hold=False, stop=threading.Event())
    try:
        admin = AdminClient(client)
        admin.create_topics([NewTopic("samples", 1, 1)])["samples"].result()
        reader = source.build_part("samples", "00000", None)

        def marked() -> bool:
            return any(isinstance(item, tuple) and isinstance(item[-1], Mark) for item in reader.next_batch())

        try:
            for sequence in range(2):
                send(client, "samples", 1, sequence)
                read(reader, 1)
                assert eventually(marked, 30)
                if sequence == 0:
                    stop_kafka(tmp_path)
                    start_kafka(tmp_path, port)
        finally:
            reader.close()
    finally:
        stop_kafka(tmp_path)


def test_offsets_of_a_topic_that_is_gone_are_not_committed_to_the_new_one(embedded_broker: str) -> None:
    client = {"bootstrap.servers": embedded_broker, "log_level": 0}
    send(client, "samples", 3)
    source = sample_source(client, "samples", "group", WindowConfig(), hold=False, stop=threading.Event())
    reader = source.build_part("samples", "00000", None)
    consumer = Consumer({**client, "group.id": "group"})

    def committed() -> int:
        (found,) = consumer.committed([TopicPartition("samples", 0)], 10)
        return int(found.offset)

    def goes_on_to(offset: int) -> bool:
        list(reader.next_batch())
        reader.snapshot()
        return committed() == offset

    try:
        eventually(lambda: goes_on_to(3))
        reader.begin(0, 2)  # it ends before what was read
        reader.snapshot()
        eventually(lambda: committed() == 0)
        eventually(lambda: goes_on_to(3))
    finally:
        reader.close()
        consumer.close()


def test_a_batch_that_unfolds_hugely_holds_up_nothing(embedded_broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """120 MB in 4 kB: librdkafka refuses to unfold them, and would stop there for ever."""
    client = {"bootstrap.servers": embedded_broker, "log_level": 0}
    send(client, "samples", 2)
    bomber = Producer(
        {**client, "compression.type": "zstd", "message.max.bytes": 10**9, "batch.size": 10**9, "linger.ms": 1000}
    )
    for _ in range(3):
        bomber.produce("samples", bytes(40_000_000), partition=0)
    assert bomber.flush(30) == 0
    send(client, "samples", 2, first=2)
    source = sample_source(client, "samples", "group", WindowConfig(), hold=True, stop=threading.Event())
    reader = source.build_part("samples", "00000", None)
    said = logged(monkeypatch, source_module)
    try:
        assert sum(chunk.lengths.size for chunk in read(reader, 4)) == 4
        counted = {row["name"]: row["value"] for row in reader._partition.counter_rows(now_us()).to_pylist()}
        assert counted["gap_records"] == 3
    finally:
        reader.close()
    (told,) = [text for text in said if "cannot be read" in text]
    assert told.startswith("samples[0]: the batch at offset 2 cannot be read, and is left out (gap_records):")


@pytest.mark.parametrize("broker", ["embedded_broker", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_what_a_topic_has_since_a_time_is_read_to_its_end(broker: str, request: pytest.FixtureRequest) -> None:
    kafka = KafkaSettings(bootstrap_servers=request.getfixturevalue(broker), topic_prefix="since")
    ensure_topics(kafka.client(), kafka.topics)
    client, topic = {**kafka.client(), "log_level": 0}, kafka.topics.alerts
    start_us = now_us()
    producer = Producer(client)
    for number in range(10):
        producer.produce(topic, str(number).encode(), str(number).encode(), timestamp=start_us // 1000 + number)
    producer.produce(topic, b"not a number", timestamp=start_us // 1000 + 10)
    assert producer.flush(30) == 0

    def read_since(milliseconds: int) -> list[int]:
        since_us = (start_us // 1000 + milliseconds) * 1000
        return sorted(item for _, item in read_topic(client, topic, lambda _, value: int(value), since_us))

    assert read_since(0) == list(range(10))
    assert read_since(7) == [7, 8, 9]
    assert read_since(11) == []


def test_what_a_flow_writes_has_the_time_that_it_goes_by(embedded_broker: str) -> None:
    """That of the host's clock, which may have been set ahead, would be refused by Kafka, or confirm it to a reader."""
    settings = Settings(kafka={"bootstrap_servers": embedded_broker})
    writer = Adapters(settings).kafka()
    host_clock.begin(host_clock.offset_us() - 3_600_000_000)  # of a process before, since when the clock is ahead
    try:
        writer.write("written", b"key", b"value")
        writer.flush()
    finally:
        host_clock.begin()
    ((time_ms, value),) = read_topic(settings.kafka.client(), "written", lambda _, value: value)
    assert value == b"value"
    assert 3_600_000 <= now_us() // 1000 - time_ms < 3_660_000


def test_a_message_that_cannot_be_written_is_told_with_its_topic(embedded_broker: str) -> None:
    writer = Adapters(Settings(kafka={"bootstrap_servers": embedded_broker})).kafka()
    with pytest.raises(KafkaException, match=r"topic written: .*Message size too large"):
        writer.write("written", b"key", bytes(2_000_000))
