"""The network between the flow's host and the others: hosts are network namespaces, with a cable between them.

`python -m tests.reliability.network` is the attack within a user and network namespace of its own.
"""

import json
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from tailrace_schemas.clock import now_us

from tests.reliability.attack import Result, Run, attack
from tests.reliability.kraft import nodes
from tests.reliability.traffic import S, Traffic
from tests.reliability.world import World, check_rows, finish, python, starts_on_window, why_no_kafka
from tests.system.proxy import Mode, proxy_to, proxy_to_kafka

HERE, THERE = "10.77.0.1", "10.77.0.2"
KINDS = (
    "cable",
    *(f"{link}: {kind}" for kind in ("latency", "reset", "half-open") for link in ("ClickHouse", "Kafka")),
)
IDLE_S, LATENESS_S = 3, 6
"""The flow's."""
DELAY_S = 0.2
"""Of a slow link, each way."""
LONG_CUT_S = 4 + LATENESS_S + 6
"""From 4 s before the end of a minute: by wall time its windows take nothing any more, 4 s before the cut ends."""


@attack(
    name="network",
    promise="Links may be cut, hang half-open, be slow or reset: every sample that Kafka has confirmed is in one row.",
    what="The flow runs in a network namespace of its own. Its cable to Kafka and ClickHouse is pulled for 2 to 12 s, "
    f"once for {LONG_CUT_S} s, more than windows.idle_s and lateness_s, while producers reach Kafka (packets vanish, "
    "connections stay half-open on both sides); the connections to ClickHouse, or those to Kafka, are slow, are reset, "
    "and hang in a TCP proxy; under live load.",
    unit="faults",
    short=7,
    long=42,
)
def network(run: Run) -> Result:
    if missing := why_no_kafka() or _why_no_namespaces():
        return Result(skipped=missing)
    inside = python("-m", "tests.reliability.network", str(run.directory), str(run.size), str(run.seed))
    done = subprocess.run(["unshare", "-rn", *inside], capture_output=True, text=True, check=False, timeout=3600)
    if done.returncode:
        return Result(0, [run.seed], failures=[run.failure(done.stderr[-4000:])])
    return Result(run.size, [run.seed], json.loads(done.stdout))


def _why_no_namespaces() -> str:
    if not (shutil.which("unshare") and shutil.which("ip") and shutil.which("nsenter") and shutil.which("ss")):
        return "unshare, nsenter (util-linux), ip and ss (iproute2) are needed"
    tried = subprocess.run(
        ["unshare", "-rn", "ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def _ip(*arguments: str, at: int | None = None) -> None:
    command = ["nsenter", "-t", str(at), "-n", "ip", *arguments] if at else ["ip", *arguments]
    subprocess.run(command, check=True)


def _reached(at: int) -> set[str]:
    """Whom the flow's host is connected to."""
    command = ["nsenter", "-t", str(at), "-n", "ss", "-Htn", "state", "established"]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[3] for line in found.splitlines()}


def _attack(directory: Path, size: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)
    host = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
    try:
        threading.Event().wait(0.5)  # until it has its namespace
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "v0", "type", "veth", "peer", "name", "v1")
        _ip("link", "set", "v1", "netns", str(host.pid))
        _ip("addr", "add", f"{HERE}/24", "dev", "v0")
        _ip("link", "set", "v0", "up")
        for words in (f"addr add {THERE}/24 dev v1", "link set v1 up", "link set lo up"):
            _ip(*words.split(), at=host.pid)
        brokers = nodes(directory / "cluster", 1, HERE)
        with (
            World.of(
                directory, "network", brokers=brokers,
                TAILRACE_WINDOWS__IDLE_S=str(IDLE_S), TAILRACE_WINDOWS__LATENESS_S=str(LATENESS_S),
                TAILRACE_WINDOWS__MAX_FUTURE_S=str(LATENESS_S),
            ) as world,
            proxy_to(world.bench.settings.clickhouse.url, HERE) as to_clickhouse,
            proxy_to_kafka(brokers[0].address, HERE) as to_kafka,
        ):  # fmt: skip
            world.add(
                "windows",
                ["nsenter", "-t", str(host.pid), "-n", *python("-m", "tailrace_infra.run", "windows")],
                TAILRACE_CLICKHOUSE__URL=to_clickhouse.url, TAILRACE_KAFKA__BOOTSTRAP_SERVERS=to_kafka.address,
            )  # fmt: skip
            traffic = Traffic(seed, starts_on_window(now_us()), (60 + LONG_CUT_S + size * 12) // 10 * 10, samples=200)
            world.add_traffic(traffic)
            world.until(lambda: world.bench.counters().get("samples"), "samples are counted")
            done: Counter[str] = Counter()
            cut_s = 0.0
            for number in range(size):
                threading.Event().wait(rng.uniform(1, 4) if number else (56 - now_us() / S) % 60)
                kind, for_s = KINDS[number % len(KINDS)], rng.uniform(2, 12) if number else LONG_CUT_S
                done[kind] += 1
                if kind == "cable":
                    cut_s += for_s
                    _ip("link", "set", "v0", "down")
                    threading.Event().wait(for_s)
                    _ip("link", "set", "v0", "up")
                    continue
                proxy = to_kafka if kind.startswith("Kafka") else to_clickhouse
                if kind.endswith("latency"):
                    proxy.delay_s = DELAY_S
                else:
                    proxy.mode = Mode.REFUSE if kind.endswith("reset") else Mode.HANG
                threading.Event().wait(for_s / 2)
                proxy.delay_s, proxy.mode = 0.0, Mode.PASS
            world.until(lambda: to_kafka.address in _reached(host.pid), "the flow is connected again")
            assert brokers[0].address not in _reached(host.pid), "the flow goes around the proxy"
            made = finish(world, traffic)
            rows = check_rows(world.bench, made)
        return {
            **{f"faults: {kind}": count for kind, count in done.items()}, "seconds without a cable": cut_s,
            "samples": made.counters["samples"], "rows equal to the oracle": rows,
            "connections reset": to_clickhouse.resets + to_kafka.resets,
            "starts of the flow again": world.ended["windows"],
        }  # fmt: skip
    finally:
        host.kill()
        host.wait()


if __name__ == "__main__":
    json.dump(_attack(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])), sys.stdout)
