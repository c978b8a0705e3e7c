"""A kill with 100,000 series, 60 s of backlog at 500,000 samples/s: how soon the flow has caught up.

Half of the samples are read first, by a flow that is then killed; the others are its backlog. The clock runs from the
start of the new process until it has read them all, and until their rows are durable; it also reads again what open
windows hold.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
from typing import Any

from tailrace_infra.topics import ensure_topics
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from benchmarks.common import say
from benchmarks.curves import child, environment, flow_settings, stack
from benchmarks.processes import wait_until_committed
from benchmarks.synthetic import START_US, Load, messages, send


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--series", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=60, help="of backlog, and before it (60)")
    parser.add_argument("--rate", type=int, default=500_000, help="samples a second")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    samples = options.seconds * options.rate
    load = Load(samples=2 * samples, series=options.series, per_second=options.rate)
    with stack() as (bootstrap_servers, url, directory):
        settings = flow_settings(bootstrap_servers, url, "restart")
        client = settings.kafka.client()
        ensure_topics(client, settings.kafka.topics, 4)
        with connect(settings.clickhouse) as database:
            migrate(database, settings.clickhouse)
        every = messages(load)
        env = environment(settings, directory / "recovery")
        say(f"sending {samples:,} samples, and reading them ...")
        half = START_US + options.seconds * 1_000_000
        after = []

        def before_half() -> Any:
            for message in every:
                if message.time_us > half:
                    after.append(message)
                    return
                yield message

        send(client, settings.kafka.topics.samples, before_half())
        first = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.curves_child", "member", json.dumps({"process": 0, "addresses": None})],
            env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            wait_until_committed(settings, [first])
        finally:
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
        say("killed; sending the backlog ...")
        counted = [0]

        def backlog() -> Any:
            for message in (*after, *every):
                counted[0] += 1
                yield message

        send(client, settings.kafka.topics.samples, backlog())
        say("starting again ...")
        measured = child("flow", {"samples": counted[0] * load.batch, "from_start": True}, env)
    return [
        {"benchmark": "restart", "series": options.series, "backlog_s": options.seconds, "rate": options.rate}
        | measured
        | {"goal_s": 15.0}
    ]
