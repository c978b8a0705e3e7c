"""The embedded broker: librdkafka's mock cluster, which is real Kafka protocol over a loopback socket.

It comes with confluent-kafka, starts in 0.1 s and needs no Java. It can produce, fetch, tell watermarks, keep
consumer groups and committed offsets. Its limits, as measured with librdkafka 2.16:

- **Memory only.** When it ends, everything is gone, committed offsets too, and the next one has another port
  and cluster id.
- **5 MiB a partition**, counted as stored (after compression, about 70 bytes more a batch). Older batches are
  evicted *even if unread*; a consumer then gets "offset out of range". Producers must pace themselves.
- **Batches above 2.5 MiB can vanish on arrival**: when everything else has to be evicted to make room, the
  new batch becomes unreadable too. librdkafka's default of 1 MB for `message.max.bytes` and `batch.size` is
  safe.
- **A topic has 4 partitions** and appears when a producer or an admin client first asks for its metadata; a
  consumer that comes earlier sees UNKNOWN_TOPIC_OR_PART. `tailrace_infra.topics.ensure_topics` asks for all
  of them.
- **A consumer group takes 3 s to form**: it waits for more members. Consumers that assign themselves do not.
- **No CreateTopics, no configuration, no retention by time, no offsets by time** (`offsets_for_times` always
  answers "the end"). Admin requests that need a controller time out.

`python -m tailrace_infra.broker` serves one, see `tailrace_infra.child` for the conventions.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Producer

from tailrace_infra.child import announce_ready, exit_with_parent
from tailrace_infra.signals import StopSignal

__all__ = ["embedded_broker", "is_embedded"]

START_TIMEOUT_S = 10.0


def is_embedded(cluster_id: str | None) -> bool:
    """Whether a cluster id (from the metadata) is that of an embedded broker: librdkafka names them so."""
    return cluster_id is not None and cluster_id.startswith("mockCluster")


@contextmanager
def embedded_broker() -> Iterator[str]:
    """Serve a broker from this process while the context lasts; yields its bootstrap address.

    It runs in threads of librdkafka, which do not need the GIL.
    """
    # The mock cluster lives in the client that asked for it. Only its errors are of interest: level 3.
    owner = Producer({"test.mock.num.brokers": 1, "log_level": 3})
    brokers = owner.list_topics(timeout=START_TIMEOUT_S).brokers.values()
    yield ",".join(f"{broker.host}:{broker.port}" for broker in brokers)


def main() -> None:
    """Serve until SIGTERM, SIGINT, or the end of the parent."""
    with StopSignal() as stop:
        exit_with_parent()
        with embedded_broker() as bootstrap_servers:
            announce_ready(bootstrap_servers=bootstrap_servers)
            stop.wait()


if __name__ == "__main__":
    main()
