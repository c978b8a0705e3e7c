"""From the end of a window and the disorder to the event on the alert topic, with 1,000 rules over 10,000 series.

Through Kafka, ClickHouse (chDB), and `tailrace run windows` and `run alerts`, a process each, recovery on.
The series and rules are those of `rules`, in 20 groups; each group has one rule more, whose gauge goes up and down
from window to window, so that each evaluation has 20 events. Event time is the clock's: 10,000 series send shortly
before a window's end, and each service one sample at window end + disorder, which closes the window. Latency is from
there until the event is read from the alert topic.
"""

import argparse
import json
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka import Consumer, Producer, TopicPartition
from tailrace_flows.settings import Settings
from tailrace_infra.child import Child, start_child
from tailrace_infra.config_command import publish_config
from tailrace_infra.kafka import running_kafka
from tailrace_infra.topics import ensure_topics
from tailrace_schemas import clock
from tailrace_schemas.config import load, record_of
from tailrace_schemas.samples import Series, encode_batch, encode_series_table
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from benchmarks.common import say
from benchmarks.rules import KINDS, ROUTES, SERVICES, rule_texts

GROUPS = len(KINDS)
PER_DISTRIBUTION = 10
"""Samples of a distribution in a window; 2 of anything else."""
WARM_STEPS = 12
STEP_US = 10_000_000
DISORDER_US = 2_000_000
BEFORE_END_US = 3_000_000
"""A window's samples are sent so long before its end."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rules", type=int, default=1000, help="how many rules (multiple of 20)")
    parser.add_argument("--steps", type=int, default=30, help="how many windows are measured")
    parser.add_argument("--epoch", type=float, default=1.0, help="seconds between snapshots (default %(default)s)")
    parser.add_argument("--broker", choices=["kafka", "embedded"], default="kafka")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        say("starting Kafka and ClickHouse (chDB) ...")
        clickhouse = _child(stack, "tailrace_infra.clickhouse", "--data-dir", f"{name}/clickhouse", "--port", "0")
        if options.broker == "kafka":
            servers = stack.enter_context(running_kafka(directory / "kafka")).bootstrap_servers
        else:
            servers = _child(stack, "tailrace_infra.broker").ready["bootstrap_servers"]
        url = f"http://127.0.0.1:{clickhouse.ready['port']}"
        settings = Settings(kafka={"bootstrap_servers": servers}, clickhouse={"url": url})
        ensure_topics(settings.kafka.client(), settings.kafka.topics, 1)
        with connect(settings.clickhouse) as client:
            migrate(client, settings.clickhouse)
        publish_config(settings.kafka, (record_of(item) for item in load([("rules", _config(options.rules))]).items))
        environment = {
            "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": servers,
            "TAILRACE_CLICKHOUSE__URL": url,
            "TAILRACE_RECOVERY__DIRECTORY": f"{name}/recovery",
            "TAILRACE_RECOVERY__CONTENTS": "replay" if options.broker == "kafka" else "snapshot",
            "TAILRACE_RECOVERY__EPOCH_S": str(options.epoch),
            "OMP_NUM_THREADS": "1",
        }
        _child(stack, "tailrace_infra.run", "windows", environment=environment)
        alerts = _child(stack, "tailrace_infra.run", "alerts", environment=environment)
        found = _Load(settings).measure(psutil.Process(alerts.process.pid), options.steps)
    return [
        {
            "benchmark": "alerts",
            "broker": options.broker,
            "rules": options.rules + GROUPS,
            "series": SERVICES * (ROUTES * len(KINDS) + 1),
            "epoch_s": options.epoch,
            "load_before": psutil.getloadavg()[1],
            **found,
        }
    ]


def _child(stack: ExitStack, module: str, *arguments: str, environment: dict[str, str] | None = None) -> Child:
    child = start_child(module, *arguments, timeout_s=60, environment=environment)
    stack.callback(child.stop)
    return child


def _config(rules: int) -> str:
    texts = rule_texts(rules)
    lines = ["groups:"]
    for number in range(GROUPS):
        where = f"where: {{service: s{number}}}"
        probe = f"- {{alert: Probe, metric: probe, aggregate: last, window: 10s, {where}, op: gt, threshold: 0.5}}"
        lines += [f"- name: g{number}", "  rules:", *(f"  {text}" for text in [*texts[number::GROUPS], probe])]
    return "\n".join(lines)


class _Load:
    """Sends windows, and hears what comes of them."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.kafka.topics.samples
        self._producer = Producer({**settings.kafka.client(), "linger.ms": 0})
        self._consumer = Consumer({**settings.kafka.client(), "group.id": "benchmark", "fetch.wait.max.ms": 5})
        alerts = self._consumer.list_topics(settings.kafka.topics.alerts, 10).topics[settings.kafka.topics.alerts]
        self._consumer.assign([TopicPartition(alerts.topic, number, 0) for number in alerts.partitions])
        self._rng = np.random.default_rng(7)
        series = [
            Series(f"m{metric}", kind, "", (("route", f"r{route}"),))
            for metric, kind in enumerate(KINDS)
            for route in range(ROUTES)
        ]
        self._table = encode_series_table([*series, Series("probe", "gauge", "", ())])
        self._probe = len(series)
        each = [PER_DISTRIBUTION if one.kind == "distribution" else 2 for one in series]
        self._index = np.repeat(np.arange(len(series)), each)
        self._sequences: defaultdict[str, int] = defaultdict(int)

    def measure(self, process: psutil.Process, steps: int) -> dict[str, Any]:
        """Sends windows as they pass, and hears the events of the last `steps`."""
        first_us = (clock.now_us() // STEP_US + 1) * STEP_US
        heard: list[tuple[int, float]] = []
        cpu_s: list[float] = []
        for step in range(WARM_STEPS + steps):
            before_s = sum(process.cpu_times()[:2])
            end_us = first_us + (step + 1) * STEP_US
            heard += self._hear(end_us - BEFORE_END_US)
            for service in range(SERVICES):
                self._send(f"s{service}", end_us - STEP_US, self._index, self._rng.lognormal(0, 1, self._index.size))
                self._send(f"s{service}", end_us - 1, np.array([self._probe]), np.array([step % 2]))
            self._producer.flush()
            heard += self._hear(end_us + DISORDER_US)
            for service in range(SERVICES):
                # Of the next window, in which the probe is set again later.
                self._send(f"s{service}", end_us + DISORDER_US, np.array([self._probe]), np.array([0]))
            self._producer.flush()
            cpu_s.append(sum(process.cpu_times()[:2]) - before_s)
            if step % 6 == 5:
                say(f"{step + 1} of {WARM_STEPS + steps} windows, {len(heard)} events")
        heard += self._hear(clock.now_us() + STEP_US)
        self._consumer.close()
        latency_s = [one_s for t_us, one_s in heard if t_us > first_us + WARM_STEPS * STEP_US]
        if len(latency_s) != steps * GROUPS:
            raise RuntimeError(f"{len(latency_s)} events came of {steps * GROUPS}")
        return {
            "events": len(latency_s),
            "p50_s": float(np.quantile(latency_s, 0.5)),
            "p99_s": float(np.quantile(latency_s, 0.99)),
            "max_s": max(latency_s),
            "cpu_s_per_evaluation": float(np.median(cpu_s[WARM_STEPS:])),
        }

    def _send(self, service: str, time_us: int, index: Any, value: Any) -> None:
        offsets = np.linspace(0, STEP_US - 2, index.size).astype("<i4") if index.size > 1 else np.zeros(1, "<i4")
        message = encode_batch(
            service=service, producer_id="benchmark", sequence=self._sequences[service], base_time_us=time_us,
            series_table=self._table, series_index=index.astype("<u4").tobytes(), time_offset_us=offsets.tobytes(),
            value=value.astype("<f8").tobytes(),
        )  # fmt: skip
        self._sequences[service] += 1
        self._producer.produce(self._topic, message, service.encode())

    def _hear(self, until_us: int) -> list[tuple[int, float]]:
        """The window ends of the probes' events, and the seconds after window end and disorder at which each came."""
        found = []
        while (left_us := until_us - clock.now_us()) > 0:
            message = self._consumer.poll(min(left_us / 1e6, 1.0))
            if message is None or message.error():
                continue
            now_us = clock.now_us()
            event = json.loads(message.value())
            if event["alert"]["name"] == "Probe":
                t_us = int(event["cause"].removeprefix("window:"))
                found.append((t_us, (now_us - t_us - DISORDER_US) / 1e6))
        return found
