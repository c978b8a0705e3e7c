"""Create Tailrace's topics, and say how existing ones differ. Nothing that exists is changed."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, NewTopic, TopicMetadata
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.kafka_errors import advice
from tailrace_schemas.topics import Topics

from tailrace_infra.broker import is_embedded

__all__ = ["TopicState", "TopicsError", "ensure_topics"]

TIMEOUT_S = 15.0

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


class TopicsError(RuntimeError):
    """The broker cannot be reached, or refused to create a topic. The message has its reason."""


@dataclass(frozen=True)
class TopicState:
    """One topic after `ensure_topics`."""

    name: str
    state: Literal["created", "exists"]
    partitions: int
    differences: tuple[str, ...] = ()
    """What is not as Tailrace would create it, for people; empty for a topic just as wanted."""


@dataclass(frozen=True)
class _Wanted:
    partitions: int
    config: Mapping[str, str]


def _wanted(topics: Topics, partitions: int) -> dict[str, _Wanted]:
    """Samples and their aggregates are spread; the rest is small, and one partition keeps it in one order."""

    def kept(days: int) -> dict[str, str]:
        return {"cleanup.policy": "delete", "retention.ms": str(days * _DAY_MS)}

    return {
        topics.samples: _Wanted(partitions, kept(days=1)),
        topics.aggregates: _Wanted(partitions, kept(days=7)),
        topics.alerts: _Wanted(1, kept(days=30)),
        topics.commands: _Wanted(1, kept(days=30)),
        topics.notifications: _Wanted(1, kept(days=7)),
        # Whoever starts reads all of it: compacted soon, so that it stays as short as what it says.
        topics.config: _Wanted(1, {"cleanup.policy": "compact", "segment.ms": str(_HOUR_MS)}),
        topics.dead_letters: _Wanted(1, kept(days=14)),
        topics.logs: _Wanted(1, kept(days=3)),
        topics.clock: _Wanted(1, kept(days=1) | {"message.timestamp.type": "LogAppendTime"}),
    }


def ensure_topics(
    client: Mapping[str, Any], topics: Topics, partitions: int = 12, replication_factor: int = 1
) -> list[TopicState]:
    """Create what is missing, and return when every topic can be used. Idempotent.

    `client` is librdkafka's configuration, with `bootstrap.servers`; `partitions` is for samples and aggregates.
    The answer has the order of `topics.all()`. A topic that exists is never changed (partitions cannot shrink, and
    retention may be an operator's choice): what differs is reported. The embedded broker has no CreateTopics:
    there topics appear by being asked for, with as many partitions as it likes, which is reported too.
    `TopicsError` when the broker does not answer or refuses.
    """
    reasons: list[str] = []
    # Its log is silenced: what it would say is in the exceptions.
    config = {"log_level": 0, **client, "error_cb": lambda error: reasons.append(error.str())}
    try:
        admin = AdminClient(config)
    except KafkaException as error:
        raise TopicsError(f"librdkafka's properties: {error.args[0].str()}") from error
    try:
        before = admin.list_topics(timeout=TIMEOUT_S)
        wanted = _wanted(topics, partitions)
        if is_embedded(before.cluster_id):
            return _ask_for(admin, wanted, before)
        missing = {name: want for name, want in wanted.items() if name not in before.topics}
        created = _create(admin, missing, replication_factor)
        present = [name for name in wanted if name not in created]
        after = _await_leaders(admin, wanted)
        configs = _configs(admin, present)
    except KafkaException as error:
        admin.poll(0)
        reasons.insert(0, error.args[0].str())
        told = [f"{text} - {said}" for text in reasons if (said := advice(text))]
        raise TopicsError(f"Kafka at {client.get('bootstrap.servers')}: {(told or reasons)[-1]}") from error
    states = []
    for name, want in wanted.items():
        topic = after.topics[name]
        if name in present:
            differences = _differences(want, topic, replication_factor, configs[name])
            states.append(TopicState(name, "exists", len(topic.partitions), differences))
        else:
            states.append(TopicState(name, "created", len(topic.partitions)))
    return states


def _ask_for(admin: AdminClient, wanted: Mapping[str, _Wanted], before: ClusterMetadata) -> list[TopicState]:
    """The embedded broker: a topic appears when an admin client asks for its metadata."""
    states = []
    for name, want in wanted.items():
        count = len(admin.list_topics(name, timeout=TIMEOUT_S).topics[name].partitions)
        differences = ["the embedded broker keeps 5 MiB a partition and knows no retention"]
        if count != want.partitions:
            differences.insert(0, f"{count} partitions, not {want.partitions}: the embedded broker's choice")
        states.append(TopicState(name, "exists" if name in before.topics else "created", count, tuple(differences)))
    return states


def _create(admin: AdminClient, missing: Mapping[str, _Wanted], replication_factor: int) -> set[str]:
    """The names of the topics that this call created: somebody else may have been faster."""
    created: set[str] = set()
    if not missing:
        return created
    new = [
        NewTopic(name, want.partitions, replication_factor, config=dict(want.config)) for name, want in missing.items()
    ]
    for name, future in admin.create_topics(new, request_timeout=TIMEOUT_S).items():
        try:
            future.result()
            created.add(name)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                text = error.args[0].str()
                told = " - the user lacks the right to create topics (ACL: Create)" if "uthoriz" in text else ""
                raise TopicsError(f"topic {name} was not created: {text}{told}") from error
    return created


def _await_leaders(admin: AdminClient, names: Mapping[str, _Wanted]) -> ClusterMetadata:
    """Metadata in which every partition has a leader: a topic is created before it can be used."""
    deadline_s = monotonic_s() + TIMEOUT_S
    while True:
        metadata = admin.list_topics(timeout=TIMEOUT_S)
        unready = [name for name in names if not _has_leaders(metadata.topics.get(name))]
        if not unready:
            return metadata
        if monotonic_s() >= deadline_s:
            raise TopicsError(f"no leader after {TIMEOUT_S:g} s: {', '.join(unready)}")
        time.sleep(0.02)


def _has_leaders(topic: TopicMetadata | None) -> bool:
    return topic is not None and bool(topic.partitions) and all(p.leader >= 0 for p in topic.partitions.values())


def _configs(admin: AdminClient, names: list[str]) -> dict[str, Mapping[str, str] | str]:
    """The configuration of each topic, or why it cannot be read: that right is often not granted."""
    if not names:
        return {}
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in names]
    found: dict[str, Mapping[str, str] | str] = {}
    for resource, future in admin.describe_configs(resources, request_timeout=TIMEOUT_S).items():
        try:
            found[resource.name] = {key: entry.value for key, entry in future.result().items()}
        except KafkaException as error:
            found[resource.name] = error.args[0].str()
    return found


def _differences(
    want: _Wanted, topic: TopicMetadata, replication_factor: int, config: Mapping[str, str] | str
) -> tuple[str, ...]:
    found = []
    if len(topic.partitions) != want.partitions:
        found.append(f"{len(topic.partitions)} partitions, not {want.partitions}")
    replicas = min(len(partition.replicas) for partition in topic.partitions.values())
    if replicas != replication_factor:
        found.append(f"replication factor {replicas}, not {replication_factor}")
    if isinstance(config, str):
        found.append(f"configuration not readable: {config}")
    else:
        found += [f"{k}={config.get(k)}, not {v}" for k, v in want.config.items() if config.get(k) != v]
    return tuple(found)
