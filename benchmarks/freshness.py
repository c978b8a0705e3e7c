"""From `record()` to the row: how long after window end + disorder SQL and the aggregates topic have it.

A probe records with `Telemetry` twenty times a second, beside the load of ten services, through a real Kafka and
`tailrace run windows`. Its row is asked for by SQL every 20 ms, and awaited on the topic.
"""

import argparse
import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, TopicPartition
from tailrace_flows.settings import Settings
from tailrace_infra.child import start_child
from tailrace_infra.kafka import running_kafka
from tailrace_infra.topics import ensure_topics
from tailrace_producers import Telemetry
from tailrace_schemas import clock
from tailrace_schemas.rows import decode_window_rows
from tailrace_schemas.samples import Series, encode_batch, encode_series_table
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from benchmarks.common import say
from benchmarks.curves import environment

STEP_US = 10_000_000
DISORDER_US = 2_000_000
BATCH = 1_000
SERVICES = 10
SERIES = 100
"""Of each service."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=int, default=500_000, help="samples a second beside the probe's")
    parser.add_argument("--windows", type=int, default=9, help="that are measured, after two that are not")
    parser.add_argument("--epoch", type=float, default=1.0, help="recovery.epoch_s")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    load_before = psutil.getloadavg()[1]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="tailrace-bench-")))
        say("starting ClickHouse (chDB), Kafka and the flow ...")
        clickhouse = start_child(
            "tailrace_infra.clickhouse", "--data-dir", str(directory / "clickhouse"), "--port", "0", timeout_s=120,
            log=directory / "clickhouse.log",
        )  # fmt: skip
        stack.callback(clickhouse.stop)
        kafka = stack.enter_context(running_kafka(directory / "kafka"))
        url = f"http://127.0.0.1:{clickhouse.ready['port']}"
        settings = Settings(kafka={"bootstrap_servers": kafka.bootstrap_servers}, clickhouse={"url": url})
        ensure_topics(settings.kafka.client(), settings.kafka.topics, 4)
        with connect(settings.clickhouse) as client:
            migrate(client, settings.clickhouse)
        flow = start_child(
            "tailrace_infra.run", "windows", timeout_s=120,
            environment=environment(settings, directory / "recovery", options.epoch),
        )  # fmt: skip
        stack.callback(flow.stop)
        seen, sent, behind_s = _measure(settings, options.rate, options.windows)
    results = []
    for where, latencies in seen.items():
        results.append(
            {
                "benchmark": "freshness", "where": where, "rate": options.rate, "epoch_s": options.epoch,
                "windows": len(latencies), "sent_per_second": sent, "sender_behind_s": behind_s,
                "p50_s": float(np.quantile(latencies, 0.5)), "p99_s": float(np.quantile(latencies, 0.99)),
                "goal_s": 1.5, "load_before": load_before,
            }
        )  # fmt: skip
    return results


def _measure(settings: Settings, rate: int, windows: int) -> tuple[dict[str, list[float]], float, float]:
    """Seconds after window end + disorder, by place; samples a second that were sent; how late the sender was."""
    first_us = (clock.now_us() // STEP_US + 2) * STEP_US
    last_us = first_us + (2 + windows) * STEP_US
    stop = threading.Event()
    seen: dict[str, dict[int, float]] = {"sql": {}, "topic": {}}
    sender = _Sender(settings, rate, stop)
    watchers = [
        threading.Thread(target=watch, args=(settings, seen[where], stop), daemon=True)
        for where, watch in (("sql", _by_sql), ("topic", _on_topic))
    ]
    for thread in (*watchers, sender):
        thread.start()
    # The probes: one value in each service's... one service, whose watermark is its own clock.
    with Telemetry("probe", bootstrap_servers=settings.kafka.bootstrap_servers) as telemetry:
        probe = telemetry.distribution("probe", "s").bind()
        while clock.now_us() < last_us + DISORDER_US + 5_000_000:
            probe.record(0.001)
            stop.wait(0.05)
    stop.set()
    for thread in (*watchers, sender):
        thread.join()
    measured = range(first_us + 2 * STEP_US, last_us, STEP_US)
    latencies = {}
    for where, found in seen.items():
        missing = [start for start in measured if start not in found]
        if missing:
            say(f"{where}: {len(missing)} of {len(measured)} windows were not seen in time")
        latencies[where] = [found[start] for start in measured if start in found] or [float("nan")]
    return latencies, sender.samples / ((clock.now_us() - sender.began_us) / 1e6), sender.behind_s


class _Sender(threading.Thread):
    """Batches at the rate, each with the clock's time."""

    def __init__(self, settings: Settings, rate: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        from confluent_kafka import Producer

        self._producer = Producer({**settings.kafka.client(), "linger.ms": 5, "compression.type": "lz4"})
        self._topic = settings.kafka.topics.samples
        self._rate = rate
        self._stopped = stop
        self.samples = 0
        self.behind_s = 0.0
        self.began_us = 0

    def run(self) -> None:
        rng = np.random.default_rng(1)
        table = encode_series_table(
            Series("http.server.request.duration", "distribution", "s", (("http.route", f"/{row}"),))
            for row in range(SERIES)
        )
        index = rng.integers(0, SERIES, BATCH).astype("<u4").tobytes()
        value = rng.lognormal(-4, 0.5, BATCH).astype("<f8").tobytes()
        offsets = np.zeros(BATCH, "<i4").tobytes()
        step_us = BATCH * 1_000_000 / self._rate
        self.began_us = clock.now_us()
        number = 0
        while not self._stopped.is_set():
            due_us = self.began_us + number * step_us
            now_us = clock.now_us()
            if due_us > now_us:
                self._producer.poll((due_us - now_us) / 1e6)
                continue
            self.behind_s = max(self.behind_s, (now_us - due_us) / 1e6)
            service = f"service-{number % SERVICES}"
            message = encode_batch(
                service=service, producer_id="benchmark", sequence=number // SERVICES, base_time_us=now_us,
                series_table=table, series_index=index, time_offset_us=offsets, value=value,
            )  # fmt: skip
            try:
                self._producer.produce(self._topic, message, service)
            except BufferError:
                self._producer.poll(0.05)
                continue
            self.samples += BATCH
            number += 1
        self._producer.flush(30)


def _by_sql(settings: Settings, seen: dict[int, float], stop: threading.Event) -> None:
    with connect(settings.clickhouse) as client:
        while not stop.wait(0.02):
            rows = client.query(
                "SELECT toUnixTimestamp(max(window_start)) FROM windows WHERE metric = 'probe' AND service = 'probe'"
            ).result_rows
            _note(seen, rows[0][0] * 1_000_000)


def _on_topic(settings: Settings, seen: dict[int, float], stop: threading.Event) -> None:
    topic = settings.kafka.topics.aggregates
    consumer = Consumer({**settings.kafka.client(), "group.id": "benchmark", "fetch.wait.max.ms": 5})
    consumer.assign(
        [TopicPartition(topic, number, 0) for number in consumer.list_topics(topic, 10).topics[topic].partitions]
    )
    while not stop.is_set():
        message = consumer.poll(0.2)
        if message is None or message.error() or message.key() != b"probe":
            continue
        found = decode_window_rows(message.value())
        if found.window_seconds == 10:
            for start in found.rows["window_start"].to_pylist():
                _note(seen, int(start.timestamp()) * 1_000_000)
    consumer.close()


def _note(seen: dict[int, float], start_us: int) -> None:
    if start_us:
        seen.setdefault(start_us, (clock.now_us() - start_us - STEP_US - DISORDER_US) / 1e6)
