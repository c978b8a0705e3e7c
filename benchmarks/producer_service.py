"""What recording does to a service under load: uvicorn, with wrk as the clients.

Each request answers 2 kB of JSON; with the SDK it also records its duration and counts itself, with two attributes.
`saturated` keeps the server's core busy all the time, so that what a request costs more is waited for by all. `waiting`
has each request wait 5 ms for something else first, as most do. Runs with and without the SDK alternate; the medians
over pairs are told, since a single p99 varies by far more than 1 %.
"""

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import psutil
from tailrace_producers import Telemetry
from tailrace_schemas.clock import monotonic_s

from benchmarks.common import say

SECONDS = 5


class Load(NamedTuple):
    """How the service is used."""

    name: str
    connections: int
    wait_s: float


LOADS = (Load("saturated", 16, 0.0), Load("waiting", 8, 0.005))


class Run(NamedTuple):
    """Of one server."""

    p99_ms: float
    requests_per_second: float
    cpu_us: float
    """Of the server, a request."""


def run(broker: str, pairs: int) -> list[dict[str, Any]]:
    """One row a load: medians, and by how much the SDK changes them."""
    if shutil.which("wrk") is None or find_spec("uvicorn") is None:
        say("wrk (apt-get install wrk) or uvicorn (pip install 'tailrace[bench]') is missing: no service under load")
        return []
    return [_compare(load, broker, pairs) for load in LOADS]


def _compare(load: Load, broker: str, pairs: int) -> dict[str, Any]:
    found: dict[str, list[Run]] = {"": [], broker: []}
    _measure(load, "")  # the machine warms up
    for pair in range(pairs):
        say(f"a service under load, {load.name}, {pair + 1} of {pairs}")
        for setting in ("", broker) if pair % 2 else (broker, ""):
            found[setting].append(_measure(load, setting))
    without, with_sdk = found[""], found[broker]

    def change(of: Callable[[Run], float]) -> float:
        return 100 * (median(of(b) / of(a) for a, b in zip(without, with_sdk, strict=True)) - 1)

    return {
        "part": "service", "system": f"uvicorn, {load.name}", "pairs": pairs,
        "requests_per_second": median(one.requests_per_second for one in without),
        "p99_ms": median(one.p99_ms for one in without), "p99_change_percent": change(lambda one: one.p99_ms),
        "cpu_us": median(one.cpu_us for one in without), "cpu_change_percent": change(lambda one: one.cpu_us),
    }  # fmt: skip


def _measure(load: Load, broker: str) -> Run:
    with _server(load, broker) as (port, process):
        before_s = sum(process.cpu_times()[:2])
        done = subprocess.run(
            ["wrk", "-t1", f"-c{load.connections}", f"-d{SECONDS}s", "--latency", f"http://127.0.0.1:{port}/orders/7"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        cpu_s = sum(process.cpu_times()[:2]) - before_s
    requests = int(_found(r"(\d+) requests in", done.stdout)[1])
    p99 = _found(r"99%\s+([\d.]+)(us|ms|s)", done.stdout)
    p99_ms = float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]]
    return Run(p99_ms, requests / SECONDS, 1e6 * cpu_s / requests)


def _found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None or "Non-2xx" in text:
        raise RuntimeError(f"wrk says: {text}")
    return match


@contextmanager
def _server(load: Load, broker: str) -> Iterator[tuple[int, psutil.Process]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", f"{__name__}:app", "--port", str(port), "--no-access-log"]
    command += ["--log-level", "warning"]
    environment = {**os.environ, "BENCH_BROKER": broker, "BENCH_WAIT_S": str(load.wait_s)}
    child = subprocess.Popen(command, env=environment)
    try:
        deadline_s = monotonic_s() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if monotonic_s() > deadline_s or child.poll() is not None:
                    raise
        yield port, psutil.Process(child.pid)
    finally:
        child.terminate()
        child.wait(20)


# The service: `uvicorn benchmarks.producer_service:app`

_BROKER = os.environ.get("BENCH_BROKER")
_ORDERS = [{"id": number, "name": f"order {number}", "price": number * 1.5, "tags": ["a", "b"]} for number in range(30)]


_WAIT_S = float(os.environ.get("BENCH_WAIT_S", "0"))


async def _answer(send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    if _WAIT_S:
        await asyncio.sleep(_WAIT_S)
    body = json.dumps({"orders": _ORDERS}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if _BROKER:
    _telemetry = Telemetry("bench", bootstrap_servers=_BROKER)
    _duration = _telemetry.timer("http.server.request.duration")
    _requests = _telemetry.counter("http.server.requests", "{request}")


async def app(scope: dict[str, Any], _receive: Any, send: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
    """Answers every request alike."""
    if scope["type"] != "http":
        return
    if not _BROKER:
        await _answer(send)
        return
    with _duration.time({"http.route": "/orders/{id}", "http.request.method": scope["method"]}):
        await _answer(send)
    _requests.add(1, {"http.route": "/orders/{id}", "http.response.status_code": 200})
