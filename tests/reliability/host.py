"""What a service pays for the SDK in it while the broker answers, hangs, and is absent.

`python -m tests.reliability.host BROKER SECONDS` is that service: requests one after the other, each with a timer and a
counter; what the two calls took is measured, and written to stdout as JSON with memory and counts when it has closed.
"""

import json
import subprocess
import sys
import threading
from array import array
from time import perf_counter_ns
from typing import Any

import psutil
from tailrace_infra.kafka import start, stop
from tailrace_infra.ports import free_port
from tailrace_infra.topics import ensure_topics
from tailrace_producers import Telemetry
from tailrace_schemas.clock import monotonic_s
from tailrace_schemas.topics import Topics

from tests.reliability.attack import Figure, Result, Run, attack
from tests.reliability.world import python, why_no_kafka
from tests.system.proxy import Mode, proxy_to_kafka

BATCH, PAUSE_S = 100, 0.01
"""Requests, and the pause after them: up to 10,000 requests a second, 20,000 samples. What is held while the broker is
away, 200,000 samples, is full after 10 s."""
CLOSE_S = 5.0
"""What `Telemetry.close` promises to take at most."""
MOST_P99_US = 100.0
"""Of the two calls in a request, on a busy machine: 2 to 5 µs are usual."""
MOST_GROWTH_MB = 60.0
"""From the first second to the end: 20 MB of samples, what librdkafka holds of them, buffers."""
CASES = ("answers", "hangs", "hangs after half", "absent")


@attack(
    name="host",
    promise="Producers never hurt their host: recording takes microseconds, memory is bounded, closing ends in time, "
    "no exception reaches it, and what was dropped is counted, whatever becomes of the broker.",
    what="A service with the SDK records up to 20,000 samples a second while the broker answers, hangs from the start, "
    "hangs after half of the time (SIGSTOP as its clients see it: connections stay, nothing is answered), and is "
    "absent.",
    unit="seconds of each",
    short=15,
    long=300,
)
def host(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    figures: dict[str, Figure] = {}
    failures = []
    running = start(run.directory / "kafka")
    try:
        ensure_topics({"bootstrap.servers": running.bootstrap_servers}, Topics(), 4)
        with proxy_to_kafka(running.bootstrap_servers) as proxy:
            for case in CASES:
                proxy.mode = Mode.HANG if case == "hangs" else Mode.PASS
                address = f"127.0.0.1:{free_port()}" if case == "absent" else proxy.address
                service = subprocess.Popen(
                    python("-m", "tests.reliability.host", address, str(run.size)),
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                try:
                    if case == "hangs after half":
                        threading.Event().wait(run.size / 2)
                        proxy.mode = Mode.HANG
                    out, err = service.communicate(timeout=run.size + 120)
                finally:
                    service.kill()  # it has ended, unless it hangs
                if service.returncode or "Traceback" in err:
                    failures.append(run.failure(f"broker {case}: exit code {service.returncode}\n{err[-2000:]}"))
                    continue
                found = json.loads(out)
                figures |= {f"broker {case}: {what}": value for what, value in found.items()}
                failures += [run.failure(f"broker {case}: {what}") for what in _wrong(case, found)]
    finally:
        stop(run.directory / "kafka")
    return Result(run.size, [run.seed], figures, failures)


def _wrong(case: str, found: dict[str, Any]) -> list[str]:
    wrong = []
    if found["p99 of recording, µs"] > MOST_P99_US:
        wrong.append(f"recording takes {found['p99 of recording, µs']:.0f} µs (p99)")
    if found["memory: growth, MB"] > MOST_GROWTH_MB:
        wrong.append(f"memory grew by {found['memory: growth, MB']:.0f} MB")
    if found["closing, s"] > CLOSE_S + 1:
        wrong.append(f"closing took {found['closing, s']:.1f} s")
    if found["recorded"] != found["delivered"] + found["dropped, counted"]:
        wrong.append(
            f"{found['recorded']} recorded, {found['delivered']} delivered, {found['dropped, counted']} dropped"
        )
    if case == "answers" and found["dropped, counted"]:
        wrong.append("samples were dropped though the broker answers")
    if case in ("answers", "hangs after half") and not found["delivered"]:
        wrong.append("nothing was delivered while the broker answered")
    return wrong


def _serve(broker: str, seconds: float) -> dict[str, Figure]:
    telemetry = Telemetry("shop", bootstrap_servers=broker)
    record = telemetry.timer("rpc.server.duration").bind({"rpc.method": "Get"}).record
    add = telemetry.counter("shop.orders", "{order}").bind({}).add
    # Taken at once: it is not to look like growth.
    took_ns, requests = array("q", bytes(8 * BATCH * int(1.1 * seconds / PAUSE_S + 1))), 0
    process, pause = psutil.Process(), threading.Event()
    began_s = monotonic_s()
    first_mb = most_mb = 0.0
    while (now_s := monotonic_s()) < began_s + seconds:
        for _ in range(BATCH):
            at_ns = perf_counter_ns()
            record(0.01)
            add(1)
            took_ns[requests] = perf_counter_ns() - at_ns
            requests += 1
        mb = process.memory_info().rss / 2**20
        if now_s < began_s + 1:
            first_mb = mb
        most_mb = max(most_mb, mb)
        pause.wait(PAUSE_S)
    closing_s = monotonic_s()
    telemetry.close()
    closed_s = monotonic_s() - closing_s
    stats = telemetry.stats
    ordered = sorted(took_ns[:requests])
    return {
        "requests": requests,
        **{f"{name} of recording, µs": ordered[int(requests * q)] / 1000
           for name, q in (("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999))},
        "recording at most, µs": ordered[-1] / 1000,
        "memory after the first second, MB": first_mb, "memory: growth, MB": most_mb - first_mb,
        "recorded": stats.recorded, "delivered": stats.delivered, "dropped, counted": sum(stats.dropped.values()),
        "closing, s": closed_s,
    }  # fmt: skip


if __name__ == "__main__":
    json.dump(_serve(sys.argv[1], float(sys.argv[2])), sys.stdout)
