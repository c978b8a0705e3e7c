"""Deterministic load: what a fleet sends, second by second, and the alert events that must come of it.

`python -m tests.reliability.traffic` is a process that sends it, writes down how far Kafka has confirmed it, and,
killed and started again, goes on from there: what it sends twice is known by its sequence.
"""

import json
import os
import random
import sys
import threading
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from tailrace_schemas.clock import now_us
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

__all__ = ["CONFIG", "Event", "S", "Traffic"]

S = 1_000_000
WINDOW_S = 10
FOR_S = 10
BUSY, CALM = 0.95, 0.5
JUNK = b"not a message of ours"
CONFIG = """
groups:
- name: fleet
  rules:
  - alert: Busy
    severity: error
    metric: cpu
    aggregate: mean
    by: [service, host]
    op: gt
    threshold: 0.9
    for: 10s
    description: "{host} is at {value:.0%}"
slos:
- name: cool
  service: svc-0
  objective: 90%
  period: 30d
  indicator: {good: {metric: cool}, total: {metric: requests}}
  alerts: []
health_checks:
- {name: alive, service: svc-0, heartbeat: {metric: cpu}}
"""
Event = tuple[str, int, str, str]
"""(transition, seconds, service, host)."""


@dataclass(frozen=True)
class Traffic:
    """`seconds` of event time from `start_us`, which is a multiple of 10 s."""

    seed: int
    start_us: int
    seconds: int
    services: int = 2
    hosts: int = 6
    samples: int = 40
    """A second and service, besides those of hosts and counters."""
    ahead_us: int = 0
    """How far the event times are ahead of wall time when they are sent."""
    speed: float = 1.0
    """Seconds of event time in a second of wall time."""
    shape: Sequence[float] = (1.0,)
    """`samples` times this: the time is divided into as many equal parts."""

    def series(self) -> list[Series]:
        return [
            *(Series("cpu", "gauge", "1", (("host", f"h{n}"),)) for n in range(self.hosts)),
            Series("requests", "counter", "{request}", ()),
            Series("cool", "counter", "{request}", ()),
            *(Series("rpc.server.duration", "distribution", "s", (("rpc.method", f"r{n}"),)) for n in range(8)),
            *(Series("system.disk.io", "cumulative", "By", (("system.device", f"sd{n}"),)) for n in range(3)),
        ]  # fmt: skip

    def busy(self) -> dict[tuple[str, str], list[bool]]:
        """(service, host) -> whether it is busy in each window; calm in the first and the last three."""
        rng = random.Random(f"busy {self.seed}")
        windows = self.seconds // WINDOW_S
        found = {}
        for service in range(self.services):
            for host in range(self.hosts):
                states, now = [], False
                for window in range(windows):
                    now ^= rng.random() < 0.25
                    states.append(now and 0 < window < windows - 3)
                found[f"svc-{service}", f"h{host}"] = states
        return found

    def messages(self, since: int = 0) -> Iterator[tuple[int, str, bytes]]:
        """(second, key, message), in the order in which they are sent, from a second on.

        Each second has numbers of its own, so that a sender that was killed is soon where it was: one that has to make
        two days anew for that is killed again before it sends anything.
        """
        disks = random.Random(f"disks {self.seed}")
        series, table = self.series(), encode_series_table(self.series())
        busy = self.busy()
        totals: dict[tuple[int, int], float] = defaultdict(float)
        first_duration, first_disk = self.hosts + 2, self.hosts + 10
        for second in range(self.seconds):
            for key in product(range(self.services), range(first_disk, len(series))):
                totals[key] = (totals[key] if disks.random() >= 0.01 else 0.0) + int(disks.random() * 1000)
            if second < since:
                continue
            rng = random.Random(f"{self.seed} {second}")
            base_us = self.start_us + second * S
            for number in range(self.services):
                service = f"svc-{number}"
                rows = []
                for host in range(self.hosts):
                    state = busy[service, f"h{host}"][second // WINDOW_S]
                    rows.append((host, rng.randrange(S), BUSY if state else CALM))
                requests = rng.randrange(1, 20)
                rows += [(self.hosts, 0, float(requests)), (self.hosts + 1, 0, float(requests - (rng.random() < 0.02)))]
                for _ in range(round(self.samples * self.shape[second * len(self.shape) // self.seconds])):
                    rows.append((first_duration + rng.randrange(8), rng.randrange(S), rng.lognormvariate(-4, 1)))
                for device in range(first_disk, len(series)):
                    rows.append((device, 500_000, totals[number, device]))
                yield second, service, encode_batch(
                    service=service, producer_id=f"fleet-{number}", sequence=second, base_time_us=base_us,
                    series_table=table,
                    series_index=array("I", [row for row, _, _ in rows]).tobytes(),
                    time_offset_us=array("i", [at for _, at, _ in rows]).tobytes(),
                    value=array("d", [value for _, _, value in rows]).tobytes(),
                )  # fmt: skip
            if rng.random() < 0.05:
                yield second, f"junk-{second}", JUNK  # over all partitions: one of nothing else stops a flow

    def events(self) -> list[Event]:
        """What is told of alerts, by time."""
        found: list[Event] = []
        for (service, host), states in self.busy().items():
            since_s: int | None = None
            active = False
            for window, state in enumerate(states):
                end_s = self.start_us // S + (window + 1) * WINDOW_S
                if state:
                    since_s = end_s if since_s is None else since_s
                    if not active and end_s - since_s >= FOR_S:
                        active = True
                        found.append(("active", end_s, service, host))
                else:
                    since_s = None
                    if active:
                        active = False
                        found.append(("resolved", end_s, service, host))
        return sorted(found, key=lambda one: (one[1], one))


def main() -> None:
    """Sends: arguments are the topic, the file of what is confirmed, and the fields of a `Traffic`, as JSON."""
    topic, confirmed, fields = sys.argv[1:]
    traffic, path = Traffic(**json.loads(fields)), Path(confirmed)
    begin = int(path.read_text()) if path.exists() else 0
    producer = Producer(
        {
            "bootstrap.servers": os.environ["TAILRACE_KAFKA__BOOTSTRAP_SERVERS"],
            "enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 1, "log_level": 0,
            "message.timeout.ms": 0, "reconnect.backoff.max.ms": 500,
        }
    )  # fmt: skip
    never = threading.Event()
    last = -1

    def judge(error: KafkaError | None, _message: Message) -> None:
        if error is not None:  # Kafka refuses it: nothing after it is to be taken for confirmed
            raise KafkaException(error)

    def confirm(upto: int) -> None:
        while producer.flush(1):
            pass
        new = path.with_suffix(".new")
        new.write_text(str(upto))
        new.replace(path)

    for second, service, message in traffic.messages(begin):
        if second != last:
            if last >= 0:
                confirm(second)
            last = second
            never.wait(max(0.0, (traffic.start_us + second * S / traffic.speed - traffic.ahead_us - now_us()) / S))
        at_us = (
            traffic.start_us + second * S if traffic.speed > 1 else now_us()
        )  # a clock that ran as fast would say so
        producer.produce(topic, message, service.encode(), timestamp=at_us // 1000, on_delivery=judge)
    confirm(traffic.seconds)


def command(traffic: Traffic, topic: str, confirmed: Path) -> list[str]:
    """That process."""
    return [sys.executable, "-m", "tests.reliability.traffic", topic, str(confirmed), json.dumps(asdict(traffic))]


if __name__ == "__main__":
    main()
