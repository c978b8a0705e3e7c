"""Kafka nodes of a cluster, or with users: what `tailrace kafka` does not start."""

import base64
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata
from tailrace_infra import kafka
from tailrace_infra.ports import free_port

from tests.reliability.world import Process

__all__ = ["Node", "are_in_sync", "nodes"]

JVM = ("-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
       "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")  # fmt: skip
CLUSTER_ID = base64.urlsafe_b64encode(b"reliability-0001").decode().rstrip("=")


class Node(Process):
    """One node, broker and controller."""

    def __init__(
        self, number: int, directory: Path, config: Mapping[str, str], address: str, sasl_address: str
    ) -> None:
        directory.mkdir(parents=True)
        java, jars = kafka.find_java(), kafka.find_jars()
        base = (Path(kafka.__file__).parent / "kafka_files" / "server.properties").read_text()
        path = directory / "server.properties"
        path.write_text(base + "\n" + "".join(f"{key}={value}\n" for key, value in config.items()))
        self._java = [java, *JVM, "-cp", f"{jars}/*"]
        done = subprocess.run(
            [*self._java, "kafka.tools.StorageTool", "format", "-c", str(path), "-t", CLUSTER_ID],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        super().__init__(f"broker-{number}", [*self._java, "kafka.Kafka", str(path)], {}, directory / "kafka.log")
        self.number, self.address, self.sasl_address = number, address, sasl_address

    def metadata(self) -> ClusterMetadata | None:
        """The cluster as this node knows it; None: it does not run, or does not answer.

        librdkafka may ask any broker that it has heard of: what another one says is asked again.
        """
        for _ in range(10 if self.pid else 0):
            try:
                found = AdminClient({"bootstrap.servers": self.address, "log_level": 0}).list_topics(timeout=5)
            except KafkaException:
                return None
            if found.orig_broker_id in (-1, self.number):  # -1: the address it was given
                return found
        return None

    def state(self) -> str:
        if (found := self.metadata()) is None:
            return ", does not answer"
        poor = [
            f"{topic.topic}-{one.id} is led by {one.leader}, in sync {sorted(one.isrs)} of {sorted(one.replicas)}"
            for topic in found.topics.values() for one in topic.partitions.values() if len(one.isrs) < len(one.replicas)
        ]  # fmt: skip
        return "; ".join([f", knows brokers {sorted(found.brokers)}", *poor])


def are_in_sync(brokers: Sequence[Node]) -> bool:
    """All partitions are in sync on exactly these brokers, as each of them says itself.

    What one of them says may be long over: nothing says that a broker has died before its session expired, nor while
    there is no majority of controllers. But one that was started again answers only when it knows of its own
    registration, which took it off those in sync. So what the last of them to start says, holds.
    """
    wanted = sorted(one.number for one in brokers)
    for broker in brokers:
        if (found := broker.metadata()) is None:
            return False
        if any(sorted(one.isrs) != wanted for topic in found.topics.values() for one in topic.partitions.values()):
            return False
    return True


def nodes(directory: Path, count: int, host: str = "127.0.0.1") -> list[Node]:
    """A cluster that is not yet started. Each node also listens for SCRAM-SHA-256; who comes without is a superuser."""
    controllers, plain, sasl = ([free_port() for _ in range(count)] for _ in range(3))
    quorum = ",".join(f"{n + 1}@127.0.0.1:{port}" for n, port in enumerate(controllers))
    found = []
    for n in range(count):
        listeners = (
            f"PLAINTEXT://{host}:{plain[n]},SASL_PLAINTEXT://{host}:{sasl[n]},CONTROLLER://127.0.0.1:{controllers[n]}"
        )
        config = {
            "process.roles": "broker,controller",
            "node.id": str(n + 1),
            "controller.quorum.voters": quorum,
            "listeners": listeners,
            "advertised.listeners": listeners.rpartition(",")[0],
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.sasl_plaintext.scram-sha-256.sasl.jaas.config":
                "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "log.dirs": str(directory / f"node-{n + 1}" / "logs"),
            "default.replication.factor": str(min(3, count)),
            "offsets.topic.replication.factor": str(min(3, count)),
            "min.insync.replicas": str(min(2, count)),
        }  # fmt: skip
        found.append(Node(n + 1, directory / f"node-{n + 1}", config, f"{host}:{plain[n]}", f"{host}:{sasl[n]}"))
    return found
