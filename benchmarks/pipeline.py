"""Samples/s on one core from Kafka to ClickHouse rows, recovery on; beside it the limits. (`peers`: beside others.)

Each system runs in a process of its own, pinned to core 0, and reads the same topic from its start; Kafka and
ClickHouse have the other core. `consume` only polls; `consume_decode` also decodes and checks. Embedded: the sender
runs at the same time, paced, with fewer samples; there open windows are stored at each epoch, since that broker keeps
too little.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tailrace_flows.settings import Settings
from tailrace_infra.child import start_child
from tailrace_infra.kafka import running_kafka
from tailrace_infra.topics import ensure_topics
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from benchmarks import load
from benchmarks.common import say

SYSTEMS = ("consume", "consume_decode", "tailrace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", default="100,1000,100000", help="comma-separated")
    parser.add_argument("--samples", type=int, default=30_000_000, help="for each number of series")
    parser.add_argument("--brokers", default="kafka,embedded", help="kafka, embedded or both")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="comma-separated")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as name:
        directory = Path(name)
        say("starting ClickHouse (chDB) ...")
        clickhouse = start_child(
            "tailrace_infra.clickhouse", "--data-dir", str(directory / "clickhouse"), "--port", "0", timeout_s=60
        )
        try:
            url = f"http://127.0.0.1:{clickhouse.ready['port']}"
            if "kafka" in options.brokers:
                say("starting Kafka ...")
                with running_kafka(directory / "kafka") as kafka:
                    for series in map(int, options.series.split(",")):
                        results += _on_kafka(kafka.bootstrap_servers, url, directory, series, options)
            if "embedded" in options.brokers:
                for series in map(int, options.series.split(",")):
                    fewer = 100 if series >= 100_000 else 10
                    results.append(_on_embedded(url, directory, series, options.samples // fewer))
        finally:
            clickhouse.stop()
    return results


def _on_kafka(
    bootstrap_servers: str, url: str, directory: Path, series: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    settings = settings_for(bootstrap_servers, url, f"bench_{series}")
    ensure_topics(settings.kafka.client(), settings.kafka.topics, 4)
    say(f"{series} series: sending {options.samples:,} samples ...")
    load.send(settings.kafka.client(), settings.kafka.topics.samples, series, options.samples)
    create_tables(settings)
    found = []
    for system in options.systems.split(","):
        environment = environment_for(settings, directory / f"recovery-{series}", "replay", 1.0)
        found.append(_measure("kafka", system, series, options.samples, environment))
    return found


def _on_embedded(url: str, directory: Path, series: int, samples: int) -> dict[str, Any]:
    broker = start_child("tailrace_infra.broker")
    try:
        settings = settings_for(broker.ready["bootstrap_servers"], url, f"embedded_{series}")
        ensure_topics(settings.kafka.client(), settings.kafka.topics)
        create_tables(settings)
        environment = environment_for(settings, directory / f"recovery-embedded-{series}", "snapshot", 0.2)
        sender = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pipeline_child", "send", str(series), str(samples)],
            env=environment, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return _measure("embedded", "tailrace", series, samples, environment)
        finally:
            sender.terminate()
            sender.wait()
    finally:
        broker.stop()


def _measure(broker: str, system: str, series: int, samples: int, environment: dict[str, str]) -> dict[str, Any]:
    say(f"{series} series, {broker}: {system} ...")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline_child", system, str(series), str(samples)],
        env=environment, stdout=subprocess.PIPE, check=True, text=True,
    )  # fmt: skip
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        "benchmark": "pipeline",
        "broker": broker,
        "system": system,
        "series": series,
        "samples": measured["samples"],
        "samples_per_second": measured["samples"] / measured["seconds"],
        "cpu_seconds_per_million": measured["cpu_seconds"] / measured["samples"] * 1e6,
        "peak_mb": measured["peak_mb"],
    }


def settings_for(bootstrap_servers: str, url: str, name: str) -> Settings:
    return Settings(
        kafka={"bootstrap_servers": bootstrap_servers, "topic_prefix": name, "group_id": name},
        clickhouse={"url": url, "database": name},
    )


def create_tables(settings: Settings) -> None:
    with connect(settings.clickhouse) as client:
        migrate(client, settings.clickhouse)


def environment_for(settings: Settings, recovery: Path, contents: str, epoch_s: float) -> dict[str, str]:
    import os

    return {
        **os.environ,
        "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "TAILRACE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "TAILRACE_KAFKA__GROUP_ID": settings.kafka.group_id,
        "TAILRACE_CLICKHOUSE__URL": settings.clickhouse.url,
        "TAILRACE_CLICKHOUSE__DATABASE": settings.clickhouse.database,
        "TAILRACE_RECOVERY__DIRECTORY": str(recovery),
        "TAILRACE_RECOVERY__CONTENTS": contents,
        "TAILRACE_RECOVERY__EPOCH_S": str(epoch_s),
        "OMP_NUM_THREADS": "1",
    }
