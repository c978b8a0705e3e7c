"""The window flow as a process of its own, on a broker and a ClickHouse of the test's."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from tailrace_flows.settings import Settings
from tailrace_infra.child import Child, start_child
from tailrace_infra.topics import ensure_topics
from tailrace_producers.replay import CommittedOffsets, ReplayOptions, ReplayResult, replay
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from tests.infra.waiting import eventually

T = TypeVar("T")
ANSWER_S = 10.0
"""For one answer of Kafka."""
PATIENCE_S = 120.0
"""In all: a broker that has just started may lead no partition yet, and one on a busy machine be away for a moment."""


def patiently(ask: Callable[[], T], timeout_s: float = PATIENCE_S) -> T:
    """What Kafka answers; asked again while it cannot, but not longer than that.

    Raises:
        confluent_kafka.KafkaException, AssertionError: the last of it.
    """
    pause, end_s = threading.Event(), monotonic_s() + timeout_s
    while True:
        try:
            return ask()
        except (KafkaException, AssertionError):
            if monotonic_s() > end_s:
                raise
        pause.wait(0.5)


@dataclass
class Bench:
    """What a test of the flow needs."""

    settings: Settings
    clickhouse: Any
    """A clickhouse-connect client."""
    directory: Path
    environment: dict[str, str]

    def start_flow(self, flow: str = "windows", **more: str) -> Child:
        return start_child(
            "tailrace_infra.run", flow, log=self.directory / "flow.log", environment={**self.environment, **more}
        )

    def producer(self) -> Producer:
        return Producer(
            {
                **self.settings.kafka.client(),
                "enable.idempotence": True,
                "partitioner": "murmur2_random",
                "linger.ms": 1,
                "log_level": 0,
            }
        )

    def send(self, producer: Producer, messages: list[tuple[str, bytes]]) -> None:
        for service, value in messages:
            producer.produce(self.settings.kafka.topics.samples, value, service.encode())
            producer.poll(0)
        assert producer.flush(30) == 0

    @contextmanager
    def sending(self, messages: list[tuple[str, bytes]], over_s: float) -> Iterator[None]:
        """Sends in the background, spread over time; at the end of the context all is sent."""

        def send() -> None:
            producer, pause = self.producer(), threading.Event()
            step = max(1, len(messages) // 50)
            for at in range(0, len(messages), step):
                self.send(producer, messages[at : at + step])
                pause.wait(over_s / 50)

        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(send)
            yield
            sent.result()

    def counters(self) -> dict[str, int]:
        rows = self.clickhouse.query("SELECT name, sum(value) FROM counters GROUP BY name").result_rows
        return {name: int(value) for name, value in rows}

    def await_counters(self, expected: dict[str, int], timeout_s: float = 60.0) -> None:
        """Until the counters are these; the assertion error says what they are instead, and what the flow said last."""
        try:
            eventually(lambda: self.counters() == expected, timeout_s)
        except AssertionError:
            pytest.fail(f"counters: {self.counters()}, expected {expected}; the flow's log ends\n{self.log()[-6000:]}")

    def replay(self, path: Path, stream: str, options: ReplayOptions, speed: float = 0.0) -> ReplayResult:
        """The product's own replay, paced by what the flow has committed."""
        return replay(
            str(path),
            bootstrap_servers=self.settings.kafka.bootstrap_servers,
            options=options,
            topics=self.settings.kafka.topics,
            stream=stream,
            speed=speed,
            pace=True,
            group=self.settings.kafka.group_id,
        )

    def await_stream(self, sent: ReplayResult, timeout_s: float = 60.0) -> None:
        """Until a replay's rows are stored."""
        ended = "SELECT count() FROM counters WHERE name = 'ended' AND stream = {stream:String}"
        parameters = {"stream": sent.stream}
        eventually(
            lambda: self.clickhouse.query(ended, parameters=parameters).first_row[0] == len(sent.services), timeout_s
        )

    def read_topic(self, topic: str) -> list[Message]:
        """Every record of a topic, partition by partition; again where the broker is away for a moment."""
        return patiently(lambda: self._read_topic(topic))

    def _read_topic(self, topic: str) -> list[Message]:
        consumer = Consumer({**self.settings.kafka.client(), "group.id": "reader", "log_level": 0})
        try:
            messages: list[Message] = []
            for partition in consumer.list_topics(topic, ANSWER_S).topics[topic].partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), ANSWER_S)
                consumer.assign([TopicPartition(topic, partition, low)])
                while low < high:
                    found = consumer.consume(min(1_000, high - low), ANSWER_S)
                    assert found, f"{topic}[{partition}] cannot be read from {low}"
                    assert all(message.error() is None for message in found)
                    messages += found
                    low = found[-1].offset() + 1
            return messages
        finally:
            consumer.close()

    def committed(self) -> int:
        """How many records the flow has committed."""
        topic, kafka = self.settings.kafka.topics.samples, self.settings.kafka
        with CommittedOffsets(kafka.bootstrap_servers, topic, kafka.group_id) as committed:
            return sum(committed(range(4)).values())

    def log(self) -> str:
        """What the flow has said since the first start."""
        return (self.directory / "flow.log").read_text()

    def await_ended(self, streams: int, timeout_s: float = 60.0) -> None:
        """Until so many streams have ended and their rows are stored."""
        eventually(lambda: self.counters().get("ended", 0) >= streams, timeout_s)


def start_clickhouse(directory: Path, port: int = 0) -> Child:
    """An embedded ClickHouse that the caller stops."""
    pytest.importorskip("chdb")
    arguments = ("--data-dir", str(directory), "--port", str(port))
    return start_child("tailrace_infra.clickhouse", *arguments, timeout_s=60.0)


@contextmanager
def clickhouse_process(directory: Path) -> Iterator[str]:
    """The URL of an embedded ClickHouse."""
    child = start_clickhouse(directory)
    try:
        yield f"http://127.0.0.1:{child.ready['port']}"
    finally:
        child.stop()


@contextmanager
def bench(
    bootstrap_servers: str, clickhouse_url: str, directory: Path, prefix: str, contents: str, replication: int = 1
) -> Iterator[Bench]:
    """Topics and tables of their own, by `prefix`."""
    environment = {
        "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers,
        "TAILRACE_KAFKA__TOPIC_PREFIX": prefix,
        "TAILRACE_KAFKA__GROUP_ID": prefix,
        "TAILRACE_CLICKHOUSE__URL": clickhouse_url,
        "TAILRACE_CLICKHOUSE__DATABASE": prefix,
        "TAILRACE_RECOVERY__DIRECTORY": str(directory / "recovery"),
        "TAILRACE_RECOVERY__CONTENTS": contents,
        "TAILRACE_RECOVERY__EPOCH_S": "0.2",
    }
    settings = Settings(
        kafka={"bootstrap_servers": bootstrap_servers, "topic_prefix": prefix, "group_id": prefix},
        clickhouse={"url": clickhouse_url, "database": prefix},
    )
    ensure_topics(settings.kafka.client(), settings.kafka.topics, 4, replication)
    with connect(settings.clickhouse) as client:
        migrate(client, settings.clickhouse)
        yield Bench(settings, client, directory, environment)
