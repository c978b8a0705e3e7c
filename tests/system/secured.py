"""Tailrace on a secured Kafka and ClickHouse: users, the rights that the docs give them, and their secrets."""

import itertools
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, Message, TopicPartition
from confluent_kafka.admin import AclOperation, ResourceType
from tailrace_flows.settings import ClickHouseSettings, KafkaSettings, Settings
from tailrace_schemas.topics import Topics

from tests.infra.canaries import showing, shows_canary
from tests.infra.command import COMMAND
from tests.infra.secure_kafka import ADMIN, Acl, SecureKafka

__all__ = ["PROCESSES", "Running", "Secured", "documented_rights"]

_numbers = itertools.count()
DOCS = Path(__file__).parents[2] / "docs" / "security.md"
PROCESSES = {
    "sdk": "SDK,",
    "replay": "`tailrace replay`",
    "windows": "`tailrace run windows`",
    "alerts": "`tailrace run alerts",
    "notify": "`tailrace notify`",
    "apply": "`tailrace apply`",
    "ack": "`tailrace alerts ack`",
    "backtest": "`tailrace backtest --topic`",
    "status": "`tailrace status`",
    "topics": "`tailrace topics`",
}
"""User -> how the row of the docs' table begins that has its rights."""
_KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "cluster": ResourceType.BROKER}
_OPERATIONS = {
    "Read": AclOperation.READ, "Write": AclOperation.WRITE, "Create": AclOperation.CREATE,
    "Describe": AclOperation.DESCRIBE, "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}  # fmt: skip


def documented_rights() -> dict[str, list[Acl]]:
    """User -> its ACLs, as docs/security.md lists them."""
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", DOCS.read_text(), re.M)
    found = {}
    for user, begins in PROCESSES.items():
        [text] = [acls for process, acls in rows if process.startswith(begins)]
        found[user] = [
            (_KINDS[kind], name, _OPERATIONS[operation])
            for part in text.split("; ")
            for kind, names, operations in [_right(part)]
            for name in names
            for operation in operations
        ]
    return found


def _right(part: str) -> tuple[str, tuple[str, ...], list[str]]:
    """`topic `a`: Read, Write`; `every topic: Describe`."""
    what, _, operations = part.partition(": ")
    if what == "every topic":
        return "topic", Topics().all(), operations.split(", ")
    kind, _, name = what.partition(" ")
    return kind, (name.strip("`"),), operations.split(", ")


@dataclass
class Secured:
    """Two secured servers, and the processes that work with them."""

    kafka: SecureKafka
    clickhouse_url: str
    directory: Path
    passwords: Mapping[str, str]
    """By user, of Kafka."""
    clickhouse_password: str
    arguments: set[str] = field(default_factory=set)
    """Every argument list that was seen among our processes."""

    def environment(self, user: str, **more: str) -> dict[str, str]:
        """The settings of a process of this user; its passwords are in files."""
        secrets = self.directory / "secrets"
        secrets.mkdir(exist_ok=True, mode=0o700)
        for name, value in (("kafka", self.passwords[user]), ("clickhouse", self.clickhouse_password)):
            (secrets / f"{user}-{name}").write_text(value + "\n")
        return {
            "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": self.kafka.sasl_ssl,
            "TAILRACE_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "TAILRACE_KAFKA__SASL_MECHANISM": "SCRAM-SHA-512",
            "TAILRACE_KAFKA__USERNAME": user,
            "TAILRACE_KAFKA__PASSWORD_FILE": str(secrets / f"{user}-kafka"),
            "TAILRACE_KAFKA__CA_FILE": str(self.kafka.certificates.ca),
            "TAILRACE_KAFKA__PARTITIONS": "2",
            "TAILRACE_CLICKHOUSE__URL": self.clickhouse_url,
            "TAILRACE_CLICKHOUSE__USER": "tailrace",
            "TAILRACE_CLICKHOUSE__PASSWORD_FILE": str(secrets / f"{user}-clickhouse"),
            "TAILRACE_CLICKHOUSE__CA_FILE": str(self.kafka.certificates.ca),
            "TAILRACE_RECOVERY__DIRECTORY": str(self.directory / "recovery"),
            "TAILRACE_RECOVERY__EPOCH_S": "0.2",
            **more,
        }

    def kafka_settings(self, user: str, **changes: Any) -> KafkaSettings:
        given: dict[str, Any] = {
            "bootstrap_servers": self.kafka.sasl_ssl, "security_protocol": "SASL_SSL", "username": user,
            "sasl_mechanism": "SCRAM-SHA-512", "password": self.passwords[user], "ca_file": self.kafka.certificates.ca,
        }  # fmt: skip
        return KafkaSettings(**{**given, **changes})

    def clickhouse_settings(self, **changes: Any) -> ClickHouseSettings:
        given: dict[str, Any] = {
            "url": self.clickhouse_url, "user": "tailrace", "password": self.clickhouse_password,
            "ca_file": self.kafka.certificates.ca,
        }  # fmt: skip
        return ClickHouseSettings(**{**given, **changes})

    def settings(self, user: str) -> Settings:
        return Settings(kafka=self.kafka_settings(user), clickhouse=self.clickhouse_settings())

    def say(self, user: str, *arguments: str, code: int = 0, **environment: str) -> str:
        """Runs the command to its end; what it printed."""
        with self.start(user, *arguments, **environment) as running:
            running.process.wait(90)
        assert running.process.returncode == code, running.output()
        return running.output()

    @contextmanager
    def start(self, user: str, *arguments: str, **environment: str) -> Iterator["Running"]:
        """The command as a process; stopped at the end if it still runs."""
        (self.directory / "out").mkdir(exist_ok=True)
        out = self.directory / "out" / f"{next(_numbers)}-{user}.txt"
        with out.open("wb") as stream:
            process = subprocess.Popen(
                [*COMMAND, *arguments], env={**os.environ, **self.environment(user, **environment)},
                cwd=self.directory, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip
        try:
            yield Running(process, out)
        finally:
            self.look()
            if process.poll() is None:
                process.terminate()
                process.wait(30)

    def look(self) -> None:
        """What `ps` shows of us now."""
        for child in psutil.Process().children(recursive=True):
            try:
                self.arguments.add(" ".join(child.cmdline()))
            except psutil.Error:
                continue

    def assert_no_secret(self) -> None:
        """Neither in what our processes printed, nor in what `ps` showed of them, nor on any topic or in a table."""
        assert list((self.directory / "out").glob("*.txt"))
        # Where they are given, and a server of somebody else, whose records are read below.
        found = showing(self.directory, ("secrets", "kafka"))
        found += [one for one in self.arguments if shows_canary(one.encode())]
        for message in self.records():
            parts = message.key(), message.value(), *(value for _, value in message.headers() or [])
            found += [f"{message.topic()} {message.offset()}" for part in parts if part and shows_canary(part)]
        assert not found

    def records(self) -> list[Message]:
        """All that the cluster holds for us."""
        consumer = Consumer({**self.kafka.client(*ADMIN), "group.id": "all", "enable.partition.eof": True})
        try:
            topics = consumer.list_topics(timeout=10).topics
            places = [TopicPartition(name, number, 0) for name in Topics().all() for number in topics[name].partitions]
            consumer.assign(places)
            messages, ended = [], 0
            while ended < len(places):
                for message in consumer.consume(1000, 10):
                    ended += message.error() is not None
                    messages += [message] if message.error() is None else []
            return messages
        finally:
            consumer.close()


@dataclass
class Running:
    """A process, and the file of what it prints."""

    process: "subprocess.Popen[bytes]"
    out: Path

    def output(self) -> str:
        return self.out.read_text()
