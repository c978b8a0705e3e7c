"""`ensure_topics`, on the embedded broker and on a real Kafka."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic
from tailrace_infra import topics as topics_module
from tailrace_infra.topics import TopicsError, ensure_topics
from tailrace_schemas.topics import Topics

ALL = [
    f"tailrace.{name}"
    for name in (
        "samples",
        "aggregates",
        "alerts",
        "commands",
        "notifications",
        "config",
        "dead-letters",
        "logs",
        "clock",
    )
]


@pytest.fixture
def topics() -> Topics:
    """Names that no other test uses."""
    return Topics(f"test-{uuid4().hex[:8]}")


def create(kafka: str, name: str, partitions: int, config: Mapping[str, str]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})
    admin.create_topics([NewTopic(name, partitions, 1, config=dict(config))])[name].result()


def config_of(kafka: str, name: str) -> dict[str, str]:
    resource = ConfigResource(ConfigResource.Type.TOPIC, name)
    admin = AdminClient({"bootstrap.servers": kafka})
    return {key: entry.value for key, entry in admin.describe_configs([resource])[resource].result().items()}


def test_embedded_topics_appear_with_four_partitions_and_it_says_so(embedded_broker: str) -> None:
    states = ensure_topics({"bootstrap.servers": embedded_broker}, Topics())
    assert [(s.name, s.state, s.partitions) for s in states] == [(name, "created", 4) for name in ALL]
    assert states[0].differences == (
        "4 partitions, not 12: the embedded broker's choice",
        "the embedded broker keeps 5 MiB a partition and knows no retention",
    )
    consumer = Consumer({"bootstrap.servers": embedded_broker, "group.id": "g", "log_level": 0})
    assert sorted(consumer.list_topics(timeout=5).topics) == sorted(ALL)
    consumer.close()


def test_embedded_topics_exist_the_second_time(embedded_broker: str) -> None:
    ensure_topics({"bootstrap.servers": embedded_broker}, Topics())
    states = ensure_topics({"bootstrap.servers": embedded_broker}, Topics(), partitions=4)
    assert {s.state for s in states} == {"exists"}
    assert states[0].differences == ("the embedded broker keeps 5 MiB a partition and knows no retention",)


@pytest.mark.kafka
def test_topics_are_created_once_with_their_retention(kafka: str, topics: Topics) -> None:
    client = {"bootstrap.servers": kafka}
    states = ensure_topics(client, topics, partitions=3)
    assert [(s.name, s.state, s.partitions, s.differences) for s in states] == [
        (name, "created", 3 if name in (topics.samples, topics.aggregates) else 1, ()) for name in topics.all()
    ]
    samples, config = config_of(kafka, topics.samples), config_of(kafka, topics.config)
    assert (samples["cleanup.policy"], samples["retention.ms"]) == ("delete", "86400000")
    assert config["cleanup.policy"] == "compact"
    assert config_of(kafka, topics.clock)["message.timestamp.type"] == "LogAppendTime"
    again = ensure_topics(client, topics, partitions=3)
    assert [(s.state, s.differences) for s in again] == [("exists", ())] * len(ALL)


@pytest.mark.kafka
def test_of_several_at_a_time_one_creates_each_topic(kafka: str, topics: Topics) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: ensure_topics({"bootstrap.servers": kafka}, topics, partitions=1), range(3)))
    for states in zip(*results, strict=True):
        assert sorted(state.state for state in states) == ["created", "exists", "exists"]
        assert {state.differences for state in states} == {()}


@pytest.mark.kafka
def test_what_exists_is_left_alone_and_its_differences_are_told(kafka: str, topics: Topics) -> None:
    create(kafka, topics.samples, 5, {"retention.ms": "1000"})
    states = ensure_topics({"bootstrap.servers": kafka}, topics, partitions=3)
    assert states[0].state == "exists"
    assert states[0].differences == ("5 partitions, not 3", "retention.ms=1000, not 86400000")
    assert {s.state for s in states[1:]} == {"created"}
    assert config_of(kafka, topics.samples)["retention.ms"] == "1000"


@pytest.mark.kafka
def test_a_broker_that_refuses_is_quoted(kafka: str, topics: Topics) -> None:
    with pytest.raises(TopicsError, match=r"topic test-\S+\.samples was not created: .*[Rr]eplication factor"):
        ensure_topics({"bootstrap.servers": kafka}, topics, replication_factor=2)


@pytest.mark.kafka
def test_another_replication_factor_and_an_unreadable_configuration_are_told(
    kafka: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_topics({"bootstrap.servers": kafka}, topics, partitions=1)
    real = topics_module._configs
    unreadable = "no-such-topic"
    monkeypatch.setattr(
        topics_module, "_configs", lambda admin, names: dict.fromkeys(names, real(admin, [unreadable])[unreadable])
    )
    states = ensure_topics({"bootstrap.servers": kafka}, topics, partitions=1, replication_factor=3)
    for state in states:
        replication, configuration = state.differences
        assert replication == "replication factor 1, not 3"
        assert configuration.startswith("configuration not readable: ")


@pytest.mark.kafka
def test_topics_without_leaders_are_an_error(kafka: str, topics: Topics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics_module, "TIMEOUT_S", 1.0)
    monkeypatch.setattr(topics_module, "_has_leaders", lambda topic: topic is not None and ".logs" not in topic.topic)
    with pytest.raises(TopicsError, match=r"^no leader after 1 s: test-\S+\.logs$"):
        ensure_topics({"bootstrap.servers": kafka}, topics, partitions=1)


def test_a_broker_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topics_module, "TIMEOUT_S", 0.5)
    with pytest.raises(TopicsError, match=r"Kafka at 127\.0\.0\.1:1: .*Connection refused"):
        ensure_topics({"bootstrap.servers": "127.0.0.1:1"}, Topics())


def test_a_property_that_librdkafka_does_not_know() -> None:
    with pytest.raises(TopicsError, match=r'librdkafka.s properties: No such configuration property: "no\.such"'):
        ensure_topics({"bootstrap.servers": "127.0.0.1:1", "no.such": "1"}, Topics())
