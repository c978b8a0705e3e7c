"""A broker that is absent, lost, hanging and back again before a real `Telemetry`: every sample is accounted for."""

import random
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError
from tailrace_flows.core.sequences import Producer, Seen, observe
from tailrace_producers import Telemetry, sender
from tailrace_producers.buffer import CHUNK_SAMPLES
from tailrace_producers.packing import PAGE
from tailrace_producers.sender import DROPPED

from tests.infra.waiting import eventually
from tests.producers.reading import read_topic, samples_of
from tests.system.proxy import Mode, Proxy, proxy_to_kafka

QUICK = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50, "linger.ms": 0}


@pytest.fixture
def proxy(embedded_broker: str) -> Iterator[Proxy]:
    with proxy_to_kafka(embedded_broker) as one:
        yield one


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drops are reported as soon as there are any."""
    monkeypatch.setattr(sender, "REPORT_EVERY_S", 0.0)


class Received:
    """What a flow knows of the producers of a topic."""

    def __init__(self, bootstrap_servers: str) -> None:
        self.values: Counter[float] = Counter()
        self.reported: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        """Batches, by producer."""
        producers: dict[str, Producer] = defaultdict(Producer)
        for read in read_topic(bootstrap_servers):
            seen, newly_missing = observe(producers[read.batch.producer_id], read.batch.sequence)
            self.missing[read.batch.producer_id] += newly_missing - (seen is Seen.RECOVERED)
            if seen is Seen.DUPLICATE:
                continue
            for sample in samples_of(read.batch):
                if sample.series.metric == DROPPED:
                    self.reported[dict(sample.series.attributes)["tailrace.reason"]] += int(sample.value)
                else:
                    self.values[sample.value] += 1


def test_a_broker_that_comes_later_gets_everything(proxy: Proxy, embedded_broker: str) -> None:
    proxy.mode = Mode.REFUSE
    with Telemetry("shop", bootstrap_servers=proxy.address, properties=QUICK) as shop:
        add = shop.counter("c").bind().add
        for value in range(3 * CHUNK_SAMPLES):
            add(value)
        assert not shop.flush(0.1)
        assert shop.stats.held == 3 * CHUNK_SAMPLES
        proxy.mode = Mode.PASS
        assert shop.flush(20)
        proxy.mode = Mode.REFUSE  # lost
        for value in range(3 * CHUNK_SAMPLES, 5 * CHUNK_SAMPLES):
            add(value)
        assert not shop.flush(0.1)
        proxy.mode = Mode.HANG
        assert not shop.flush(0.1)
        proxy.mode = Mode.PASS
        assert shop.flush(20)
        assert shop.stats == (5 * CHUNK_SAMPLES, 5 * CHUNK_SAMPLES, 0, {})
    received = Received(embedded_broker)
    assert received.values == Counter(map(float, range(5 * CHUNK_SAMPLES)))
    assert received.missing.total() == 0


def test_a_broker_that_hangs_holds_up_neither_recording_nor_close(proxy: Proxy, embedded_broker: str) -> None:
    shop = Telemetry("shop", bootstrap_servers=proxy.address, properties=QUICK)
    record = shop.timer("t").bind().record
    record(1)
    assert shop.flush(20)
    proxy.mode = Mode.HANG
    for _ in range(300_000):
        record(2)
    assert not shop.flush(0.1)
    assert shop.stats.held <= 200_000 + CHUNK_SAMPLES
    shop.close(0.2)
    stats = shop.stats
    assert (stats.recorded, stats.held) == (300_001, 0)
    assert stats.delivered + stats.dropped["queue_full"] + stats.dropped["shutdown"] == 300_001
    assert stats.dropped["queue_full"] >= 300_000 - 200_000 - CHUNK_SAMPLES


def test_what_is_dropped_while_a_report_is_under_way_is_reported_before_the_end(
    proxy: Proxy, embedded_broker: str
) -> None:
    shop = Telemetry("shop", bootstrap_servers=proxy.address, properties=QUICK)
    record = shop.gauge("g").bind().set
    record(1)
    assert shop.flush(20)
    proxy.mode = Mode.HANG
    record(float("nan"))
    eventually(lambda: shop._sender._reports_in_flight)
    record(float("nan"))
    closing = threading.Thread(target=shop.close, args=(20,))
    closing.start()
    eventually(lambda: shop.stats.dropped.get("invalid") == 2)
    proxy.mode = Mode.PASS
    closing.join()
    assert Received(embedded_broker).reported == {"invalid": 2}


def test_drops_are_reported_where_their_reasons_came_a_thousand_series_apart(
    proxy: Proxy, embedded_broker: str
) -> None:
    """Their series are in two tables then, and one message has one."""
    with Telemetry("shop", bootstrap_servers=proxy.address, properties=QUICK, max_samples=CHUNK_SAMPLES) as shop:
        gauge = shop.gauge("g")
        gauge.set(float("nan"))
        eventually(lambda: shop._sender._reported == {"invalid": 1})
        for number in range(PAGE):
            gauge.set(0, {"number": number})
        assert shop.flush(20)
        proxy.mode = Mode.HANG
        gauge.set(float("nan"))
        eventually(lambda: shop._sender._reports_in_flight)
        gauge.set(float("nan"))
        eventually(lambda: shop.stats.dropped.get("invalid") == 3)
        for _ in range(3 * CHUNK_SAMPLES):
            gauge.set(1)
        eventually(lambda: shop.stats.dropped.get("queue_full"))
        proxy.mode = Mode.PASS
        assert shop.flush(20)
        eventually(lambda: shop._sender._reported == shop.stats.dropped)
    received = Received(embedded_broker)
    assert received.reported == shop.stats.dropped
    assert received.missing.total() <= shop.stats.dropped["queue_full"] // CHUNK_SAMPLES


ENDS = """
import sys
from tailrace_producers import Telemetry
shop = Telemetry("shop", bootstrap_servers=sys.argv[1])
shop.counter("c").add()
assert shop.flush(20)
print("sent", flush=True)
sys.stdin.readline()
shop.counter("c").add()
shop.close(0.2)
print(shop.stats.dropped)
"""


def test_a_process_ends_while_the_broker_hangs(proxy: Proxy) -> None:
    command = [sys.executable, "-W", "error", "-c", ENDS, proxy.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        proxy.mode = Mode.HANG
        output, _ = process.communicate("go on\n", timeout=60)
    assert (process.returncode, output) == (0, "{'shutdown': 1}\n")


def test_the_flow_can_prove_what_was_dropped(
    proxy: Proxy, embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "SEND_INTERVAL_S", 3600.0)  # full chunks only, so that they can be counted
    proxy.mode = Mode.REFUSE
    chunks = 20
    with Telemetry("shop", bootstrap_servers=proxy.address, properties=QUICK, max_samples=4 * CHUNK_SAMPLES) as shop:
        record = shop.gauge("g").bind().set
        for number in range(chunks):
            for _ in range(CHUNK_SAMPLES):
                record(number)
        record(float("nan"))
        proxy.mode = Mode.PASS
        assert shop.flush(20)
        dropped = shop.stats.dropped
        eventually(lambda: sum(shop._sender._reported.values()) == sum(dropped.values()))
    received = Received(embedded_broker)
    assert dropped["invalid"] == 1
    # A gap in the sequence for each chunk, which has more than CHUNK_SAMPLES where the sender was just looking.
    assert chunks - 8 <= received.missing.total() <= dropped["queue_full"] // CHUNK_SAMPLES
    assert received.reported == Counter(dropped), "and how many samples it had"
    assert received.values.total() == chunks * CHUNK_SAMPLES - dropped["queue_full"]
    assert received.values[chunks - 1.0] == CHUNK_SAMPLES, "the oldest went first"


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_broker_does_each_sample_arrives_or_is_counted(
    proxy: Proxy, embedded_broker: str, seed: int
) -> None:
    """What was counted as `undelivered` or `shutdown` may have arrived; all else is exact."""
    dice = random.Random(seed)
    properties = {**QUICK, "delivery.timeout.ms": 300, "retry.backoff.ms": 10}
    shop = Telemetry("shop", bootstrap_servers=proxy.address, properties=properties, max_samples=2 * CHUNK_SAMPLES)
    record = shop.distribution("d").bind().record
    recorded: Counter[float] = Counter()
    for step in range(30):
        match dice.choice(["record", "record", "record", "burst", "flush", "proxy"]):
            case "record":
                for _ in range(dice.randrange(1, 2000)):
                    record(step)
                    recorded[step] += 1
            case "burst":
                for _ in range(3 * CHUNK_SAMPLES):
                    record(step)
                recorded[step] += 3 * CHUNK_SAMPLES
            case "flush":
                shop.flush(dice.choice([0.0, 0.05, 0.4]))
            case _:
                proxy.mode = dice.choice([Mode.PASS, Mode.PASS, Mode.PASS, Mode.REFUSE, Mode.HANG])
        stats = shop.stats
        assert stats.recorded == recorded.total() == stats.held + stats.delivered + sum(stats.dropped.values())
    if dice.random() < 0.7:
        proxy.mode = Mode.PASS
        shop.flush(5)
    shop.close(1)
    proxy.mode = Mode.PASS

    stats = shop.stats
    assert stats.held == 0
    assert recorded.total() == stats.delivered + sum(stats.dropped.values())
    received = Received(embedded_broker)
    unsure = stats.dropped.get("undelivered", 0) + stats.dropped.get("shutdown", 0)
    assert stats.delivered <= received.values.total() <= stats.delivered + unsure
    assert received.values <= recorded
    assert set(stats.dropped) <= {"queue_full", "undelivered", "shutdown"}


def test_a_client_that_has_failed_for_good_is_replaced(embedded_broker: str) -> None:
    with Telemetry("shop", bootstrap_servers=embedded_broker) as shop:
        counter = shop.counter("c")
        counter.add(1)
        assert shop.flush(10)
        failed = shop._sender._producer
        shop._sender._on_error(KafkaError(KafkaError._FATAL, "out of order", fatal=True))
        counter.add(2)
        assert shop.flush(10)
        assert shop._sender._producer is not failed
        assert shop.stats == (2, 2, 0, {})
    received = Received(embedded_broker)
    assert (received.values, received.missing.total()) == (Counter([1.0, 2.0]), 0)
