"""One process of the window flow and then two, on a real Kafka, with the broker's and ClickHouse's CPU shown apart.

The same samples each time: `even`, 128 services of 100 series, and `hot`, where one service sends half of all messages
(a service is one shard, so it cannot be divided). Nothing is pinned: on two cores two processes compete with Kafka.
"""

import argparse
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, KafkaException, TopicPartition
from tailrace_flows.settings import Settings
from tailrace_infra.ports import free_ports
from tailrace_infra.topics import ensure_topics
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from benchmarks.common import say
from benchmarks.curves import environment, flow_settings, stack
from benchmarks.synthetic import Load, messages, send

PARTITIONS = 16
TIMEOUT_S = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--processes", default="1,2", help="comma-separated")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    with stack() as (bootstrap_servers, url, directory):
        for name, hot in (("even", 0.0), ("hot", 0.5)):
            settings = flow_settings(bootstrap_servers, url, name)
            ensure_topics(settings.kafka.client(), settings.kafka.topics, PARTITIONS)
            say(f"{name}: sending {options.samples:,} samples ...")
            load = Load(samples=options.samples, series=12_800, each=100, hot=hot)
            send(settings.kafka.client(), settings.kafka.topics.samples, messages(load))
            with connect(settings.clickhouse) as client:
                migrate(client, settings.clickhouse)
            for processes in map(int, options.processes.split(",")):
                say(f"{name}: {processes} ...")
                own = settings.model_copy(
                    update={"kafka": settings.kafka.model_copy(update={"group_id": f"{name}-{processes}"})}
                )
                env = environment(own, directory / f"recovery-{name}-{processes}")
                env["TAILRACE_CLICKHOUSE__DATABASE"] = name
                results.append(
                    {"benchmark": "processes", "load": name, "processes": processes, "samples": options.samples}
                    | _measure(own, env, processes, options.samples)
                )
    for one in results:
        alone = next(r for r in results if r["load"] == one["load"])
        one["times_one"] = one["samples_per_second"] / alone["samples_per_second"]
    return results


def _measure(settings: Settings, env: dict[str, str], processes: int, samples: int) -> dict[str, float]:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(processes)] if processes > 1 else None
    Path(env["TAILRACE_RECOVERY__DIRECTORY"]).mkdir(parents=True)
    others = {one: sum(one.cpu_times()[:2]) for one in psutil.Process().children() if one.is_running()}
    members = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.curves_child", "member",
             json.dumps({"process": number, "addresses": addresses})],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(processes)
    ]  # fmt: skip
    try:
        wait_until_committed(settings, members)
        cpu = {name_of(one): sum(one.cpu_times()[:2]) - before for one, before in others.items()}
    finally:
        for one in members:
            assert one.stdin is not None
            one.stdin.close()
        texts = [one.stdout.read() for one in members if one.stdout is not None]
        for one in members:
            one.wait()
    seen = [json.loads(text.splitlines()[-1]) for text in texts]
    if sum(one["samples"] for one in seen) != samples:
        raise RuntimeError(f"{[one['samples'] for one in seen]} samples were read of {samples}")
    read = [one for one in seen if one["samples"]]
    seconds = max(one["last_s"] for one in read) - min(one["first_s"] for one in read)
    return {
        "samples_per_second": samples / seconds,
        "cpu_seconds_per_million": sum(one["cpu_s"] for one in seen) / samples * 1e6,
        "largest_share": max(one["samples"] for one in seen) / samples,
        "kafka_cpu_s_per_million": cpu.get("kafka", 0.0) / samples * 1e6,
        "clickhouse_cpu_s_per_million": cpu.get("clickhouse", 0.0) / samples * 1e6,
        "peak_mb": max(one["peak_mb"] for one in seen),
    }


def name_of(process: psutil.Process) -> str:
    return "kafka" if "java" in process.name() else "clickhouse"


def wait_until_committed(settings: Settings, members: list[subprocess.Popen[str]]) -> None:
    """Until everything that is in the topic is committed."""
    topic = settings.kafka.topics.samples
    consumer = Consumer({**settings.kafka.client(), "group.id": settings.kafka.group_id, "enable.auto.commit": False})
    places = [TopicPartition(topic, number) for number in consumer.list_topics(topic, 10).topics[topic].partitions]
    ends = {place.partition: consumer.get_watermark_offsets(place, 10)[1] for place in places}
    deadline_s = monotonic_s() + TIMEOUT_S
    behind = True
    while behind:
        with suppress(KafkaException):  # its coordinator may still be starting
            behind = any(max(0, place.offset) < ends[place.partition] for place in consumer.committed(places, 10))
        if monotonic_s() > deadline_s or any(one.poll() is not None for one in members):
            raise RuntimeError("the flow ended, or did not read everything in time")
        consumer.poll(0.2)
    consumer.close()
