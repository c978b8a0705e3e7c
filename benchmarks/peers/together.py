"""The table of systems, and their run one after another."""

import argparse
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from tailrace_infra.child import start_child
from tailrace_infra.kafka import running_kafka

from benchmarks import load
from benchmarks.common import say
from benchmarks.peers import clickhouse, kafka_streams, plot
from benchmarks.peers.bench import Bench, FailedError, Measured, MissingError, python, tailrace
from benchmarks.peers.exact import Exact, WrongError, errors, exact_of_load


@dataclass(frozen=True)
class System:
    measure: Callable[[Bench, int], Measured]
    share: tuple[float, float] = (1, 1)
    """Of the samples, up to 10,000 series and above."""


SYSTEMS = {
    "memory": System(python("memory", "")),
    "consume": System(tailrace("consume")),
    "consume_decode": System(tailrace("consume_decode")),
    "tailrace": System(tailrace("tailrace")),
    "clickhouse_insert_tdigest": System(partial(clickhouse.insert, sketch="tdigest", encoding="native")),
    "clickhouse_insert_dd": System(partial(clickhouse.insert, sketch="dd", encoding="native")),
    "clickhouse_kafka_tdigest": System(partial(clickhouse.engine, sketch="tdigest", encoding="native")),
    "clickhouse_kafka_dd": System(partial(clickhouse.engine, sketch="dd", encoding="native")),
    "clickhouse_kafka_json": System(partial(clickhouse.engine, sketch="tdigest", encoding="json_batch"), (0.2, 0.2)),
    "kafka_streams": System(partial(kafka_streams.measure, how="dsl"), (0.05, 0.05)),
    "kafka_streams_map": System(partial(kafka_streams.measure, how="map"), (0.15, 0.15)),
    "bytewax_fold_window": System(python("bytewax_fold", "json_batch", "ddsketch"), (0.02, 0.01)),
    "quix_window": System(python("quix_window", "json_each", "quixstreams"), (0.01, 0.005)),
    "pathway_window": System(python("pathway_window", "json_each", "pathway"), (0.01, 0.005)),
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    chosen = {
        name: system for name, system in SYSTEMS.items()
        if not options.only or any(fnmatch(name, pattern) for pattern in options.only)
    }  # fmt: skip
    if not chosen:
        raise SystemExit(f"--only: there are {', '.join(SYSTEMS)}")
    others = set(range(os.cpu_count() or 1)) - {0}
    if others:
        os.sched_setaffinity(0, others)  # Kafka and ClickHouse inherit it; what is measured goes to core 0
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="tailrace-peers-") as name:
        directory = Path(name)
        say("starting ClickHouse (chDB) and Kafka ...")
        server = start_child(
            "tailrace_infra.clickhouse", "--data-dir", str(directory / "clickhouse"), "--port", "0", timeout_s=60
        )
        try:
            with running_kafka(directory / "kafka") as kafka:
                for series in options.series or [1000, 100_000]:
                    bench = Bench(
                        kafka.bootstrap_servers, f"http://127.0.0.1:{server.ready['port']}", directory, series,
                        options.chdb_python,
                    )  # fmt: skip
                    results += _all_of(chosen, bench, options.samples)
        finally:
            server.stop()
    if options.plot:
        plot.draw(results, Path(options.plot))
    return results


def _all_of(systems: dict[str, System], bench: Bench, most: int) -> list[dict[str, Any]]:
    answers: dict[int, Exact] = {}
    found = []
    for name, system in systems.items():
        samples = max(1, round(most * system.share[bench.series > 10_000] / load.BATCH)) * load.BATCH
        result: dict[str, Any] = {"benchmark": "peers", "system": name, "series": bench.series, "samples": samples}
        try:
            measured, out = system.measure(bench, samples)
            if measured["samples"] != samples:
                raise WrongError(f"{measured['samples']:,} of {samples:,} samples were read")
            result |= {
                "samples_per_second": samples / measured["seconds"],
                "cpu_seconds_per_million": measured["cpu_seconds"] / samples * 1e6,
                "peak_mb": measured["peak_mb"],
            }
            if out is not None:
                if samples not in answers:
                    answers[samples] = exact_of_load(bench.series, samples)
                result |= errors(answers[samples], out)
        except (MissingError, FailedError, WrongError) as error:
            kind = type(error).__name__.removesuffix("Error").lower()
            result["note"] = f"{kind}: {error}"
        say(f"{bench.series:,} series: {_line(result)}")
        found.append(result)
    return found


def _line(result: dict[str, Any]) -> str:
    if "note" in result:
        return f"{result['system']}: {result['note']}"
    return (
        f"{result['system']}: {result['samples_per_second'] / 1e6:.3g} M samples/s, "
        f"{result['cpu_seconds_per_million']:.3g} CPU s a million, {result['peak_mb']:.0f} MB"
        + (f", error at most {result['error_max_percent']:.2f} %" if "error_max_percent" in result else "")
    )
