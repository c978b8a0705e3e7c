"""What the flow depends on goes away, comes back, or is another one: nothing is lost, doubled or silently left out."""

import math
import os
import random
import signal
import subprocess
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Consumer, TopicPartition
from tailrace_infra import kafka as kafka_server
from tailrace_infra.broker import embedded_broker as serve_broker
from tailrace_infra.child import Child
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.deadletter import decode_dead_letter
from tailrace_schemas.samples import Rejection, SampleBatch, Series, decode, encode_batch, encode_series_table

from tests.infra.waiting import eventually
from tests.system.harness import Bench, bench, start_clickhouse
from tests.system.proxy import Mode, proxy_to
from tests.system.workload import JUNK, START_US, Workload, assert_same, expected_rows, make_workload, stored_rows

DISTRIBUTION = encode_series_table([Series("http.server.request.duration", "distribution", "s", ())])


def batch_of(
    values: list[float], base_us: int, *, service: str = "svc", producer: str = "producer", sequence: int = -1
) -> bytes:
    """A message of a distribution's samples, a microsecond apart."""
    return encode_batch(
        service=service,
        producer_id=producer,
        sequence=sequence,
        base_time_us=base_us,
        series_table=DISTRIBUTION,
        series_index=array("I", [0] * len(values)).tobytes(),
        time_offset_us=array("i", range(len(values))).tobytes(),
        value=array("d", values).tobytes(),
    )


def assert_stored(b: Bench, made: Workload, **more: int) -> None:
    """Everything is counted once, and in the rows once; `more` counters than those of the workload."""
    expected = {**made.counters, **more}
    b.await_ended(made.counters["ended"], 90)
    b.await_counters(expected)
    assert_same(stored_rows(b.clickhouse, "windows"), expected_rows(made, 10))
    assert_same(stored_rows(b.clickhouse, "windows_1m"), expected_rows(made, 60))


@contextmanager
def flow_of(b: Bench, **environment: str) -> Iterator[Child]:
    """A flow that drains at the end; killed where the test fails."""
    flow = b.start_flow(**environment)
    try:
        yield flow
        assert flow.stop() == 0, b.log()[-2000:]
    finally:
        flow.process.kill()
        flow.stop()


def kill(flow: Child) -> None:
    flow.process.kill()
    flow.stop()


def stop(flow: Child, number: int = signal.SIGTERM) -> float:
    """Stops the flow by a signal; how long that took."""
    began_s = monotonic_s()
    flow.process.send_signal(number)
    with suppress(subprocess.TimeoutExpired):
        flow.process.wait(60)
    took_s = monotonic_s() - began_s
    assert flow.stop() == 0
    return took_s


STOP_S = 2 * 5.0
"""A stop takes 5 s at most, and as long again on a loaded machine; what waits for a dead server takes 30 s or more."""


# -- ClickHouse -------------------------------------------------------------------------------------


def test_rows_are_exact_when_clickhouse_refuses_hangs_and_cuts_inserts_it_took(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=21, services=2, steps=240)
    with (
        proxy_to(clickhouse_url) as proxy,
        bench(embedded_broker, clickhouse_url, tmp_path, "fails", "replay") as b,
        flow_of(b, TAILRACE_CLICKHOUSE__URL=proxy.url),
        b.sending(made.messages, 9),
    ):
        counted = 0
        for mode in (Mode.CUT, Mode.HANG, Mode.REFUSE):
            counted = await_more_than(b, counted)
            proxy.mode = mode
            if mode is Mode.REFUSE:
                refused = b.log().count("not written, again")
                eventually(lambda refused=refused: b.log().count("not written, again") >= refused + 4, 60)
            else:
                eventually(lambda mode=mode: proxy.cuts >= 4 if mode is Mode.CUT else proxy.held, 60)
            proxy.mode = Mode.PASS
        await_more_than(b, counted)
        assert_stored(b, made)


def await_more_than(b: Bench, counted: int) -> int:
    """Until more samples are counted; how many."""
    return eventually(lambda: (now := b.counters().get("samples", 0)) > counted and now, 60)


def test_rows_are_exact_when_clickhouse_is_killed_and_started_again(embedded_broker: str, tmp_path: Path) -> None:
    made = make_workload(seed=22, services=2, steps=160)
    server = start_clickhouse(tmp_path / "clickhouse")
    port = server.ready["port"]
    try:
        with (
            bench(embedded_broker, f"http://127.0.0.1:{port}", tmp_path, "reborn", "replay") as b,
            flow_of(b),
            b.sending(made.messages, 3),
        ):
            eventually(lambda: b.counters().get("samples"), 60)
            kill(server)
            eventually(lambda: "not written, again" in b.log(), 60)
            server = start_clickhouse(tmp_path / "clickhouse", port)
            assert_stored(b, made)
    finally:
        server.stop()


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG])
def test_a_stop_while_clickhouse_is_away_is_quick_and_loses_nothing(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, mode: Mode
) -> None:
    made = make_workload(seed=23, services=2, steps=120)
    half, prefix = len(made.messages) // 2, f"away_{mode.value}"
    with proxy_to(clickhouse_url) as proxy, bench(embedded_broker, clickhouse_url, tmp_path, prefix, "snapshot") as b:
        producer = b.producer()
        proxy.mode = mode
        b.send(producer, made.messages[:half])
        flow = b.start_flow(TAILRACE_CLICKHOUSE__URL=proxy.url)
        eventually(lambda: "not written, again" in b.log() or proxy.held, 60)
        assert stop(flow) < STOP_S
        assert b.counters() == {}
        proxy.mode = Mode.PASS
        b.send(producer, made.messages[half:])
        with flow_of(b, TAILRACE_CLICKHOUSE__URL=proxy.url):
            assert_stored(b, made)


# -- Kafka ------------------------------------------------------------------------------------------


@pytest.mark.kafka
def test_rows_are_exact_when_kafka_is_killed_and_started_again(
    kafka_jars: None, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=24, services=2, steps=160)
    server = kafka_server.start(tmp_path / "kafka", 0)
    port = int(server.bootstrap_servers.rpartition(":")[2])
    try:
        with (
            bench(server.bootstrap_servers, clickhouse_url, tmp_path, "broker", "replay") as b,
            flow_of(b),
            b.sending(made.messages, 4),
        ):
            eventually(lambda: b.counters().get("samples"), 60)
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: kafka_server.status(tmp_path / "kafka") is None)
            server = kafka_server.start(tmp_path / "kafka", port)
            assert_stored(b, made)
    finally:
        kafka_server.stop(tmp_path / "kafka")


FLOOD_SAMPLES = 5_000


def flood(b: Bench, first: int, count: int) -> None:
    """Numbered batches of one service, 60 kB each and impossible to compress, a second of event time apart."""
    random_values = np.random.default_rng(first).random((count, FLOOD_SAMPLES))
    base_us = [START_US + (first + n) * 1_000_000 for n in range(count)]
    batches = [batch_of(values.tolist(), base_us[n], sequence=first + n) for n, values in enumerate(random_values)]
    b.send(b.producer(), [("svc", batch) for batch in batches])


def bounds(b: Bench) -> tuple[int, int]:
    """The first and the end offset of the partition that `flood` fills."""
    topic = b.settings.kafka.topics.samples
    consumer = Consumer({**b.settings.kafka.client(), "group.id": "bounds", "log_level": 0})
    try:
        places = [TopicPartition(topic, number) for number in consumer.list_topics(topic, 10).topics[topic].partitions]
        return max((consumer.get_watermark_offsets(place, 10) for place in places), key=lambda found: found[1])
    finally:
        consumer.close()


def stored_samples(b: Bench) -> int:
    return int(b.clickhouse.query("SELECT sum(count) FROM windows").first_row[0])


def test_records_evicted_while_the_flow_was_stopped_are_counted_and_named(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "evicted", "snapshot") as b:
        flood(b, 0, 10)
        with flow_of(b):
            eventually(lambda: b.counters().get("samples") == 10 * FLOOD_SAMPLES, 60)
        flood(b, 10, 150)
        low, high = bounds(b)
        assert 10 < low < high == 160
        gap, read = low - 10, (160 - low + 10) * FLOOD_SAMPLES
        with flow_of(b):
            b.await_counters({"samples": read, "gap_records": gap, "missing_batches": gap})
            assert f"no longer has offsets 10 to {low - 1}; going on at {low} ({gap} records are lost" in b.log()
        assert stored_samples(b) == read


def test_records_evicted_before_a_slow_flow_has_read_them_are_counted(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "slow", "replay") as b:
        flood(b, 0, 10)
        with flow_of(b) as flow:
            eventually(lambda: b.counters().get("samples") == 10 * FLOOD_SAMPLES, 60)
            flow.process.send_signal(signal.SIGSTOP)
            flood(b, 10, 150)
            flow.process.send_signal(signal.SIGCONT)
            eventually(lambda: b.counters().get("gap_records", 0), 60)
            flood(b, 160, 5)
            # What had been fetched before the eviction was read too: how much that is, only the flow can say.
            eventually(lambda: b.committed() == 165, 60)
            gap = eventually(lambda: b.counters().get("missing_batches", 0))
            counters = {"samples": (165 - gap) * FLOOD_SAMPLES, "gap_records": gap, "missing_batches": gap}
            b.await_counters(counters)
        assert stored_samples(b) == counters["samples"]


@pytest.mark.parametrize("mirrored", [True, False], ids=["a_mirror", "an_empty_one"])
def test_a_new_cluster_is_read_from_its_start_without_counting_twice(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, mirrored: bool
) -> None:
    made, prefix = make_workload(seed=25, services=2, steps=120), f"moved_{mirrored}"
    half = len(made.messages) // 2
    with bench(embedded_broker, clickhouse_url, tmp_path, prefix, "snapshot") as b:
        b.send(b.producer(), made.messages[:half])
        with flow_of(b):
            eventually(lambda: b.counters().get("samples", 0) > 0, 60)
            eventually(lambda: b.committed() == half, 60)
    before = made_of(made.messages[:half])
    with serve_broker() as other, bench(other, clickhouse_url, tmp_path, prefix, "snapshot") as b:
        b.send(b.producer(), made.messages if mirrored else made.messages[half:])
        with flow_of(b):
            more = before if mirrored else {}
            assert_stored(b, made, **{name: made.counters[name] + count for name, count in more.items()})
            assert "the state came from mockCluster" in b.log()


def made_of(messages: list[tuple[str, bytes]]) -> dict[str, int]:
    """What sending messages again adds to the counters."""
    batches = [decode(value) for _, value in messages]
    rejected = sum(isinstance(batch, Rejection) for batch in batches)
    return {
        "duplicate_batches": len(batches) - rejected,
        "duplicate_samples": sum(batch.samples for batch in batches if isinstance(batch, SampleBatch)),
        "dead_letters.unknown_schema": rejected,
    }


# -- what cannot be used ----------------------------------------------------------------------------


def spoil(made: Workload, seed: int) -> tuple[list[tuple[str, bytes]], dict[bytes, str]]:
    """The messages with others between them that must be counted and left out; the reason of each of those."""
    rng = random.Random(seed)
    messages: list[tuple[str, bytes]] = []
    reasons: dict[bytes, str] = {}
    for number, (service, value) in enumerate(made.messages):
        messages.append((service, value))
        if value == JUNK:
            reasons[value] = "unknown_schema"
        elif number > len(made.messages) // 4 and rng.random() < 0.1:
            bad, reason = _spoilt(rng, service, value, number)
            messages.append((service, bad))
            reasons[bad] = reason
    return messages, reasons


def _spoilt(rng: random.Random, service: str, value: bytes, number: int) -> tuple[bytes, str]:
    base_us = START_US - 3_600_000_000  # an hour before all others
    return rng.choice(
        [
            (value[: rng.randrange(20, len(value) - 1)], "truncated"),
            (batch_of([math.nan, number], base_us, service=service), "not_finite"),
            (batch_of([1.0, number], now_us() + 3_600_000_000, service=service), "too_far_in_future"),
            (batch_of([2.0, number], base_us, service=service), "late_samples"),
        ]
    )


def test_bad_and_late_samples_are_counted_once_although_the_flow_is_killed(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=26, services=2, steps=240)
    messages, reasons = spoil(made, seed=26)
    more: Counter[str] = Counter()
    for reason in reasons.values():
        if reason == "truncated":
            more["dead_letters.truncated"] += 1
        elif reason == "not_finite":
            more += Counter({"dead_letters.not_finite": 1, "late_samples": 1})
        elif reason == "too_far_in_future":
            more["dead_letters.too_far_in_future"] += 2
        elif reason == "late_samples":
            more["late_samples"] += 2
    with bench(embedded_broker, clickhouse_url, tmp_path, "spoilt", "replay") as b:
        with b.sending(messages, 5):
            flow = b.start_flow()
            eventually(lambda: b.counters().get("samples", 0) > 5_000, 60)
            kill(flow)
            with flow_of(b):
                assert_stored(b, made, **more)
        topics = b.settings.kafka.topics
        expected = {
            (record.partition(), record.offset(), reasons[record.value()])
            for record in b.read_topic(topics.samples)
            if reasons.get(record.value(), "late_samples") != "late_samples"
        }
        letters = [decode_dead_letter(record.value()) for record in b.read_topic(topics.dead_letters)]
        assert {letter.topic for letter in letters} == {topics.samples}
        assert {(letter.partition, letter.offset, letter.reason) for letter in letters} == expected


def test_wall_time_closes_the_windows_of_a_silent_service(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "silent", "replay") as b:
        first = (now_us() // 10_000_000 - 1) * 10_000_000
        settings = {"TAILRACE_WINDOWS__IDLE_S": "0.5", "TAILRACE_WINDOWS__DISORDER_S": "0.1"}
        # Before the flow starts, so that one poll brings them and the end of the partition.
        b.send(b.producer(), [("svc", batch_of([1.0, 2.0], first)), ("svc", batch_of([3.0], now_us()))])
        with flow_of(b, **settings):
            eventually(lambda: stored_samples(b) >= 2, 60)
            # The drain stores it: nothing else closes the window that holds now.
            assert stored_samples(b) == 2 or now_us() > first + 20_000_000
        assert stored_samples(b) == 3


# -- stops ------------------------------------------------------------------------------------------


def test_stops_during_load_are_quick_and_leave_no_gap_and_no_double_count(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    made = make_workload(seed=27, services=2, steps=300)
    with (
        bench(embedded_broker, clickhouse_url, tmp_path, "stops", "replay") as b,
        b.sending(made.messages, 6),
    ):
        counted = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            flow = b.start_flow()
            await_more_than(b, counted)
            assert stop(flow, number) < STOP_S
            counted = b.counters()["samples"]
        with flow_of(b):
            assert_stored(b, made)


def test_a_table_that_is_missing_stops_the_flow_with_what_to_do(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "dropped", "replay") as b:
        b.clickhouse.command("DROP TABLE counter_rows")
        flow = b.start_flow()
        b.send(b.producer(), [("svc", batch_of([1.0], START_US))])
        with suppress(subprocess.TimeoutExpired):
            flow.process.wait(60)
        assert flow.stop() == 1
        assert "counter_rows does not take the rows: run `tailrace migrate`" in b.log()
