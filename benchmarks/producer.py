"""What recording costs a service: ns a value, samples/s without loss, bytes a sample, latency under load.

Beside Tailrace's SDK: prometheus_client, OpenTelemetry's SDK, a statsd client. They come with the extra `bench`;
what is not installed is left out, and said so.
"""

import argparse
import gc
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from tailrace_infra.child import start_child
from tailrace_producers import Telemetry
from tailrace_schemas.clock import monotonic_s, now_ns

from benchmarks import producer_bytes, producer_service
from benchmarks.common import say

VALUES = 20_000
"""Recorded at once by all threads together: fewer than are kept at most, so that nothing is dropped."""
ROUNDS = 15
Record = Callable[[int], object]
"""Records so many values."""
PARTS = ("record", "throughput", "bytes", "service")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be repeated")
    parser.add_argument("--seconds", type=float, default=10.0, help="of `throughput` (default: 10)")
    parser.add_argument("--pairs", type=int, default=10, help="of runs with and without it in `service` (default: 10)")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs the parts one after the other, each against an embedded broker in a process of its own."""
    parts = options.part or PARTS
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        child = start_child("tailrace_infra.broker", log=Path(directory, "broker.log"), timeout_s=30.0)
        try:
            broker = str(child.ready["bootstrap_servers"])
            if "record" in parts:
                results += _record_costs(broker)
            if "throughput" in parts:
                for threads, max_samples in ((1, 200_000), (1, 2_000_000), (16, 2_000_000)):
                    results.append(_throughput(broker, threads, max_samples, options.seconds))
            if "bytes" in parts:
                results += producer_bytes.run()
            if "service" in parts:
                results += producer_service.run(broker, options.pairs)
        finally:
            child.stop()
    return [{"benchmark": "producer", **result} for result in results]


# ns a value


def _record_costs(broker: str) -> list[dict[str, Any]]:
    results = []
    for name, open_system in _systems(broker):
        for threads in (1, 16):
            say(f"recording with {name}, {threads} threads")
            with open_system() as (record, settle):
                results.append({"part": "record", "system": name, **_cost(record, settle, threads)})
    return results


def _cost(record: Record, settle: Callable[[], object], threads: int) -> dict[str, Any]:
    """CPU, not wall time: what else runs on the machine counts little. The loop around the call is taken off."""
    loop = min(_thread_cpu_ns(_nothing, VALUES) for _ in range(ROUNDS)) / VALUES
    calling, everything = [], []
    record(VALUES)  # what is new is resolved, connections are made
    settle()
    gc.collect()
    for _ in range(ROUNDS):
        before = time.process_time_ns()
        spent = _spent(record, threads)
        settle()
        recorded = VALUES // threads * threads
        calling.append(sum(spent) / recorded - loop)
        everything.append((time.process_time_ns() - before) / recorded - loop)
    return {"threads": threads, "ns_calling": median(calling), "ns_all": median(everything), "ns_best": min(calling)}


def _spent(record: Record, threads: int) -> list[int]:
    """CPU ns of each thread."""
    if threads == 1:
        return [_thread_cpu_ns(record, VALUES)]
    spent: list[int] = []
    workers = [
        threading.Thread(target=lambda: spent.append(_thread_cpu_ns(record, VALUES // threads))) for _ in range(threads)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return spent


def _thread_cpu_ns(record: Record, values: int) -> int:
    before = time.thread_time_ns()
    record(values)
    return time.thread_time_ns() - before


def _nothing(values: int) -> None:
    for _ in range(values):
        pass


Opened = tuple[Record, Callable[[], object]]


def _systems(broker: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    for how in ("bound", "1 attribute", "2 attributes", "2 keywords", "per-thread buffers"):
        yield f"tailrace, {how}", partial(_tailrace, broker, how)
    if _installed("prometheus_client"):
        yield "prometheus_client, bound", partial(_prometheus, bound=True)
        yield "prometheus_client, 2 labels", partial(_prometheus, bound=False)
    if _installed("opentelemetry.sdk"):
        yield "opentelemetry, 2 attributes", _opentelemetry
    if _installed("statsd"):
        yield "statsd", _statsd


def _installed(module: str) -> bool:
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:
        found = False
    if not found:
        say(f"{module} is not installed, and left out: pip install 'tailrace[bench]'")
    return found


@contextmanager
def _tailrace(broker: str, how: str) -> Iterator[Opened]:
    with Telemetry("bench", bootstrap_servers=broker) as telemetry:
        latency = telemetry.distribution("http.server.request.duration", "s")
        bound = telemetry.distribution("bound", "s").bind(route="/x", method="GET").record
        one, two = {"route": "/x"}, {"route": "/x", "method": "GET"}
        in_thread, collect = _per_thread(telemetry)

        def record(values: int) -> None:
            match how:
                case "bound":
                    for _ in range(values):
                        bound(0.0123)
                case "1 attribute":
                    for _ in range(values):
                        latency.record(0.0123, one)
                case "2 attributes":
                    for _ in range(values):
                        latency.record(0.0123, two)
                case "2 keywords":
                    for _ in range(values):
                        latency.record(0.0123, route="/x", method="GET")
                case _:
                    for _ in range(values):
                        in_thread(0.0123)

        def settle() -> None:
            collect()
            if not telemetry.flush(30) or telemetry.stats.dropped:
                raise RuntimeError(f"samples were lost: {telemetry.stats}")

        yield record, settle


def _per_thread(telemetry: Telemetry) -> tuple[Callable[[float], None], Callable[[], None]]:
    """The usual design, to compare with: each thread has a list of its own, found through `threading.local`."""
    shared, local, lists = telemetry._buffer, threading.local(), []
    row_limit, ref = shared.row_limit, telemetry._registry.ref("distribution", "per_thread", "s", {})

    def collect() -> None:
        for rows in lists:
            length = len(rows)
            shared.rows.extend(rows[:length])
            del rows[:length]

    def record(value: float, time_us: int | None = None) -> None:
        try:
            rows = local.rows
        except AttributeError:
            rows = local.rows = []
            lists.append(rows)
        rows.extend((value, now_ns() if time_us is None else 1000 * time_us, ref))
        if len(rows) >= row_limit:
            collect()

    return record, collect


@contextmanager
def _prometheus(bound: bool) -> Iterator[Opened]:
    from prometheus_client import CollectorRegistry, Histogram

    histogram = Histogram("duration", "seconds", ["route", "method"], registry=CollectorRegistry())
    child = histogram.labels("/x", "GET")

    def record(values: int) -> None:
        if bound:
            for _ in range(values):
                child.observe(0.0123)
        else:
            for _ in range(values):
                histogram.labels("/x", "GET").observe(0.0123)

    yield record, lambda: None


@contextmanager
def _opentelemetry() -> Iterator[Opened]:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    histogram = provider.get_meter("bench").create_histogram("http.server.request.duration", "s")
    attributes = {"route": "/x", "method": "GET"}

    def record(values: int) -> None:
        for _ in range(values):
            histogram.record(0.0123, attributes)

    try:
        yield record, reader.collect
    finally:
        provider.shutdown()


@contextmanager
def _statsd() -> Iterator[Opened]:
    from statsd import StatsClient

    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind(("127.0.0.1", 0))  # nobody reads: what does not fit is dropped, as UDP does
        client = StatsClient("127.0.0.1", server.getsockname()[1])

        def record(values: int) -> None:
            for _ in range(values):
                client.timing("duration.x.GET", 12.3)

        yield record, lambda: None
        client.close()


# Samples/s


def _throughput(broker: str, threads: int, max_samples: int, seconds: float) -> dict[str, Any]:
    """A million samples/s, evenly, from one process. The default of `max_samples` keeps a fifth of a second of that.

    A thread that did not get to run for a while goes on at its pace: to make up for it would be a burst of 5 M/s.
    """
    say(f"a million samples/s for {seconds:g} s from {threads} threads")
    goal = 1_000_000
    telemetry = Telemetry("throughput", bootstrap_servers=broker, max_samples=max_samples)
    record = telemetry.timer("http.server.request.duration").bind(route="/x").record
    record(0.0123)
    telemetry.flush()  # connected
    start_s, cpu_ns = monotonic_s(), time.process_time_ns()

    def work() -> None:
        last_s = monotonic_s()
        while last_s < start_s + seconds:
            time.sleep(0.005)
            now_s = monotonic_s()
            for _ in range(int(min(now_s - last_s, 0.05) * goal / threads)):
                record(0.0123)
            last_s = now_s

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    recorded_s = monotonic_s() - start_s
    flushed = telemetry.flush(30)
    cpu_s = (time.process_time_ns() - cpu_ns) / 1e9
    stats = telemetry.stats
    telemetry.close()
    return {
        "part": "throughput", "system": "tailrace", "threads": threads, "max_samples": max_samples,
        "samples_per_second": stats.recorded / recorded_s, "cpu_cores": cpu_s / recorded_s,
        "lost": stats.recorded - stats.delivered if flushed else None,
    }  # fmt: skip
