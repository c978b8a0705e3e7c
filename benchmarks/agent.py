"""What the host agent takes: a collection, a process of it for minutes, and the collections of a whole day.

Real processes: so many `sleep`s, a hundred to a shell, each shell a group. CPU is the agent's own, whatever else runs.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from tailrace_infra.child import start_child
from tailrace_producers import Telemetry
from tailrace_producers.agent import Agent
from tailrace_producers.collectors import Group, default_collectors

from benchmarks.common import say

A_GROUP = 100
SIZES = ((500, 5), (5000, 50))
"""Processes and groups."""
INTERVALS_S = (5.0, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", default="collection,process,day", help="which of collection, process, day")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long each process of the agent runs")
    parser.add_argument("--passes", type=int, default=17_280, help="of the day: one every 5 s")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    parts = options.parts.split(",")
    results: list[dict[str, Any]] = []
    broker = start_child("tailrace_infra.broker")
    bootstrap = str(broker.ready["bootstrap_servers"])
    try:
        if "collection" in parts:
            for processes, groups in SIZES:
                with sleepers(processes) as rules:
                    results.append(collection(bootstrap, processes, rules[:groups]))
        if "process" in parts:
            with sleepers(SIZES[0][0]) as rules:
                results += agents(bootstrap, rules, options.seconds)
        if "day" in parts:
            results.append(day(bootstrap, options.passes))
    finally:
        broker.stop()
    return [{"benchmark": "agent", **result} for result in results]


@contextmanager
def sleepers(count: int) -> Iterator[list[Group]]:
    """So many sleeping processes, by hundreds; a group for each hundred."""
    say(f"starting {count} processes")
    shells = []
    rules = []
    try:
        for number in range(count // A_GROUP):
            name = f"tailrace-bench-{number}"
            script = f"for i in $(seq {A_GROUP - 1}); do sleep 36000 & done; echo; wait"
            command = ["sh", "-c", script, name]
            shells.append(subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True))
            rules.append(Group(name, command_line=f"{name}$"))
        for shell in shells:
            assert shell.stdout is not None
            shell.stdout.readline()
        yield rules
    finally:
        for shell in shells:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
            assert shell.stdout is not None
            shell.stdout.close()


def collection(bootstrap: str, processes: int, groups: list[Group]) -> dict[str, Any]:
    """CPU of a pass in its thread, and how long until the broker has confirmed it."""
    cpu_ms: list[float] = []
    delivered_ms: list[float] = []
    readings = 0
    with Telemetry("host", bootstrap_servers=bootstrap) as telemetry:
        collectors = default_collectors(groups)
        agent = Agent(telemetry, collectors=collectors)
        for number in range(33):
            now_s = 5.0 * number
            before_s, began_s = time.thread_time(), time.perf_counter()
            found = agent.collect(now_s)
            cpu_ms.append(1000 * (time.thread_time() - before_s))
            agent.record(found, time.time_ns() // 1000)
            telemetry.flush()
            delivered_ms.append(1000 * (time.perf_counter() - began_s))
            readings = len(found)
        by_collector = {}
        for one in collectors:
            before_s = time.thread_time()
            list(one.collect(5.0 * 34))
            by_collector[one.name] = round(1000 * (time.thread_time() - before_s), 2)
    say(f"CPU of a pass by collector, ms: {by_collector}")
    return {
        "part": "collection",
        "processes": len(psutil.pids()),
        "groups": len(groups),
        "in_groups": processes,
        "readings": readings,
        "first_cpu_ms": cpu_ms[0],
        "cpu_ms": statistics.median(cpu_ms[3:]),
        "cpu_ms_max": max(cpu_ms[3:]),
        "delivered_ms": statistics.median(delivered_ms[3:]),
    }


def agents(bootstrap: str, groups: list[Group], seconds: float) -> list[dict[str, Any]]:
    """`tailrace agent` as it is run, all intervals at the same time: CPU as a share of a core, resident memory."""
    text = '[agent]\nprobes = ["127.0.0.1:1"]\n' + "".join(
        f'[[agent.groups]]\nname = "{group.name}"\ncommand_line = "{group.command_line}"\n' for group in groups
    )
    with tempfile.TemporaryDirectory() as directory:
        settings = Path(directory) / "tailrace.toml"
        settings.write_text(text)
        environment = {
            **os.environ,
            "TAILRACE_CONFIG": str(settings),
            "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "TAILRACE_LOG": "ERROR",
        }
        running = {
            interval_s: subprocess.Popen(
                [sys.executable, "-m", "tailrace_infra.cli", "agent", "--interval", str(interval_s)], env=environment
            )
            for interval_s in INTERVALS_S
        }
        try:
            pause(20.0, "starting agents")
            before = {interval_s: cpu_s(one.pid) for interval_s, one in running.items()}
            resident_mb = {interval_s: memory_mb(one.pid) for interval_s, one in running.items()}
            began_s = time.monotonic()
            pause(seconds, "agents running")
            took_s = time.monotonic() - began_s
            return [
                {
                    "part": "process",
                    "processes": len(psutil.pids()),
                    "groups": len(groups),
                    "in_groups": len(groups) * A_GROUP,
                    "interval_s": interval_s,
                    "cpu_percent": 100 * (cpu_s(one.pid) - before[interval_s]) / took_s,
                    "resident_mb_start": resident_mb[interval_s],
                    "resident_mb": memory_mb(one.pid),
                    "seconds": took_s,
                }
                for interval_s, one in running.items()
            ]
        finally:
            for one in running.values():
                one.terminate()
                one.wait()


def day(bootstrap: str, passes: int) -> dict[str, Any]:
    """All collections of a day, recorded and sent, one after the other: what grows?"""
    me = psutil.Process()
    figures = []
    with Telemetry("host", bootstrap_servers=bootstrap) as telemetry:
        agent = Agent(telemetry, collectors=default_collectors([Group("python", process="python*")]))
        began_s = time.monotonic()
        for number in range(passes):
            now_s = 5.0 * number
            agent.record(agent.collect(now_s), time.time_ns() // 1000)
            if (number + 1) % max(1, passes // 12) == 0:
                telemetry.flush()
                figures.append((memory_mb(me.pid), me.num_fds(), me.num_threads()))
                say(f"{number + 1} of {passes} passes: {figures[-1][0]:.1f} MB, {figures[-1][1]} files")
        took_s = time.monotonic() - began_s
        telemetry.flush()
        stats = telemetry.stats
    after_a_twelfth, at_end = figures[0], figures[-1]
    return {
        "part": "day",
        "passes": passes,
        "seconds": took_s,
        "samples": stats.recorded,
        "dropped": sum(stats.dropped.values()),
        "resident_mb_start": after_a_twelfth[0],
        "resident_mb": at_end[0],
        "files_start": after_a_twelfth[1],
        "files": at_end[1],
        "threads": at_end[2],
    }


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def memory_mb(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 1e6


def pause(seconds: float, what: str) -> None:
    """Waits, and says so every minute."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        say(f"{what}: {left_s:.0f} s left")
        threading.Event().wait(min(60.0, left_s))
