"""Topic names, and how messages and state are spread over them."""

from dataclasses import dataclass
from zlib import crc32

__all__ = ["SHARDS", "Topics", "shard_of"]

SHARDS = 64
"""State is keyed by shard. Fixed: changing it would orphan the state of every running flow."""


def shard_of(service: str) -> str:
    """The state key of a service, two digits: independent of Kafka's partitions and partitioners."""
    return f"{crc32(service.encode()) % SHARDS:02d}"


@dataclass(frozen=True)
class Topics:
    """The topics of one installation; `prefix` lets several share a Kafka cluster."""

    prefix: str = "tailrace"

    @property
    def samples(self) -> str:
        """`SampleBatch` and `Sample`, Avro single-object encoding, key = service.name."""
        return f"{self.prefix}.samples"

    @property
    def aggregates(self) -> str:
        """`WindowRows`, Avro single-object encoding around an Arrow stream, key = service.name."""
        return f"{self.prefix}.aggregates"

    @property
    def alerts(self) -> str:
        """Alert events, JSON, key = alert id."""
        return f"{self.prefix}.alerts"

    @property
    def commands(self) -> str:
        """Acknowledge, resolve, annotate, silence; JSON, key = alert id."""
        return f"{self.prefix}.commands"

    @property
    def notifications(self) -> str:
        """`Notification`: who is to be told what, JSON, key = group key."""
        return f"{self.prefix}.notifications"

    @property
    def config(self) -> str:
        """Rules, SLOs, routes; JSON, compacted, key = kind/name."""
        return f"{self.prefix}.config"

    @property
    def dead_letters(self) -> str:
        """`DeadLetter`, Avro single-object encoding: what could not be read, from where, and why."""
        return f"{self.prefix}.dead-letters"

    @property
    def logs(self) -> str:
        """Structured logs."""
        return f"{self.prefix}.logs"

    @property
    def clock(self) -> str:
        """Empty records, on which the broker puts its time: a flow that starts learns it so."""
        return f"{self.prefix}.clock"

    def all(self) -> tuple[str, ...]:
        """Every topic, in the order in which they are created."""
        return (
            self.samples, self.aggregates, self.alerts, self.commands, self.notifications, self.config,
            self.dead_letters, self.logs, self.clock,
        )  # fmt: skip
