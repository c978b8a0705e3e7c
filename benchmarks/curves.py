"""What a sample costs, and how much memory is held, as one thing grows: series, batch size, partitions and more.

Each point is a process of its own. Most parts measure the flow's core alone (decoding, checks, windows, rows), in CPU
seconds; `partitions`, `recovery` and `epoch` run the whole flow between a real Kafka and ClickHouse. `jump` is how many
times more CPU a sample costs than at the point before, for each doubling in between; above 2.2 it is a cliff and named.
`--plot FILE` draws the parts that ran (matplotlib).
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tailrace_flows.settings import Settings
from tailrace_infra.child import start_child
from tailrace_infra.kafka import running_kafka
from tailrace_infra.topics import ensure_topics
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from benchmarks.common import say
from benchmarks.synthetic import Load, messages, send

CLIFF = 2.2
Point = tuple[float | str, Load, dict[str, float]]
"""x, what is sent, settings of the windows."""


def _series() -> Iterator[Point]:
    for series in (10, 100, 1_000, 10_000, 100_000, 1_000_000):
        yield series, Load(samples=10_000_000, series=series, each=1_000), {}


def _batch() -> Iterator[Point]:
    for batch in (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000):
        yield batch, Load(samples=min(5_000_000, 100_000 * batch), series=100, batch=batch), {}


def _sample() -> Iterator[Point]:
    for series in (1, 10, 100, 1_000):
        yield series, Load(samples=200_000, series=series, batch=1, single=True), {}


def _attributes() -> Iterator[Point]:
    for number in (1, 2, 4, 8, 16, 32):
        yield number, Load(attributes=number), {}


def _disorder() -> Iterator[Point]:
    for disorder_s in (0, 1, 2, 4, 8, 16, 32):
        yield disorder_s, Load(per_second=80_000, disorder_s=disorder_s), {}


def _lateness() -> Iterator[Point]:
    for lateness_s in (15, 30, 60, 120, 240, 480, 960):
        load = Load(samples=4_000_000, per_second=3_500)
        yield lateness_s, load, {"lateness_s": lateness_s, "max_future_s": min(60, lateness_s)}


def _tables() -> Iterator[Point]:
    for tables in ("stable", "order", "one new", "all new"):
        yield tables, Load(samples=1_000_000, series=1_000, tables=tables), {}


def _memory() -> Iterator[Point]:
    # None is forgotten yet, so more windows of the same series show what one takes; 100 and 10 samples a row.
    for kind, series, each_window in (
        ("distribution", 10_000, 1_000_000),
        ("gauge", 50_000, 500_000),
        ("counter", 50_000, 500_000),
    ):
        for windows in (3, 11):
            samples = each_window * windows
            load = Load(samples=samples, series=series, per_second=each_window // 10, kind=kind)
            yield f"{kind}, {windows} windows", load, {}


CORE: dict[str, Callable[[], Iterator[Point]]] = {
    "series": _series, "batch": _batch, "sample": _sample, "attributes": _attributes, "disorder": _disorder,
    "lateness": _lateness, "tables": _tables, "memory": _memory,
}  # fmt: skip
FLOW = ("partitions", "recovery", "epoch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", action="append", choices=[*CORE, *FLOW], help="only this (may be repeated)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of samples: 0.1 for a quick look")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves into this PNG or SVG")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    chosen = options.part or [*CORE, *FLOW]
    results: list[dict[str, Any]] = []
    for part in chosen:
        if part in CORE:
            results += _core(part, options.scale)
    flows = [part for part in chosen if part in FLOW]
    if flows:
        with stack() as (bootstrap_servers, url, directory):
            for part in flows:
                results += _flow(part, bootstrap_servers, url, directory, options.scale)
    for one, after in pairwise(results):
        _compare(one, after)
    if options.plot:
        _plot(results, options.plot)
    return results


def _core(part: str, scale: float) -> Iterator[dict[str, Any]]:
    before_mb = 0.0
    for x, load, settings in CORE[part]():
        say(f"{part} {x} ...")
        load = load._replace(samples=max(load.batch, int(load.samples * scale)))
        measured = child("core", {"load": load._asdict(), "settings": settings})
        result = {"benchmark": "curves", "part": part, "x": str(x), "samples": load.samples} | measured
        result["rows"] = float(measured["rows"])
        if part == "memory":
            more = " 11 " in str(x)
            each = (measured["held_mb"] - before_mb) * 2**20 / load.series / 8
            result["bytes_per_series_and_window"] = each if more else None
            before_mb = measured["held_mb"]
        yield result


def _flow(part: str, bootstrap_servers: str, url: str, directory: Path, scale: float) -> Iterator[dict[str, Any]]:
    samples = int(10_000_000 * scale)
    points: dict[str, list[tuple[str, int, dict[str, Any], float]]] = {
        "partitions": [(str(number), number, {}, 1.0) for number in (1, 2, 4, 8, 16, 32, 64)],
        "recovery": [("off", 4, {"recovery": False}, 1.0), ("on", 4, {}, 1.0)] * 3,
        "epoch": [(f"{epoch_s:g}", 4, {}, epoch_s) for epoch_s in (0.1, 0.25, 0.5, 1, 2, 5, 10)],
    }
    sent: dict[int, Settings] = {}
    for number, (x, partitions, given, epoch_s) in enumerate(points[part]):
        settings = sent.get(partitions)
        if settings is None:
            settings = sent[partitions] = flow_settings(bootstrap_servers, url, f"{part}{partitions}")
            ensure_topics(settings.kafka.client(), settings.kafka.topics, partitions)
            # One service's data lies in one partition; all others are idle.
            load = Load(samples=samples, series=1_000, each=1_000 if part == "partitions" else 100)
            send(settings.kafka.client(), settings.kafka.topics.samples, messages(load))
            with connect(settings.clickhouse) as client:
                migrate(client, settings.clickhouse)
        say(f"{part} {x} ...")
        recovery = directory / f"recovery-{part}-{number}"
        measured = child("flow", {"samples": samples} | given, environment(settings, recovery, epoch_s))
        yield {"benchmark": "curves", "part": part, "x": x, "samples": samples} | measured


def _compare(one: dict[str, Any], after: dict[str, Any]) -> None:
    """How much more the later point costs, for a doubling of x."""
    try:
        doublings = math.log2(float(after["x"]) / float(one["x"]))
    except (ValueError, ZeroDivisionError):
        return
    if one["part"] == after["part"] and doublings > 0:
        after["jump"] = (after["cpu_seconds_per_million"] / one["cpu_seconds_per_million"]) ** (1 / doublings)
        if after["jump"] > CLIFF:
            say(f"cliff: {after['part']} from {one['x']} to {after['x']}: {after['jump']:.1f} times a doubling")


def _plot(results: list[dict[str, Any]], path: Path) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        say("--plot needs matplotlib: pip install matplotlib")
        return
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    parts = list(dict.fromkeys(result["part"] for result in results))
    figure, axes = plt.subplots(len(parts), 2, figsize=(9, 2.4 * len(parts)), squeeze=False)
    for row, part in zip(axes, parts, strict=True):
        points = [result for result in results if result["part"] == part]
        names = [result["x"] for result in points]
        numbers = all(name.replace(".", "", 1).isdigit() for name in names)
        places = [float(name) for name in names] if numbers else names
        for axis, name, label in (
            (row[0], "samples_per_second", "samples/s" if part in FLOW else "samples/s of CPU"),
            (row[1], "peak_mb", "peak MB"),
        ):
            line = "-" if numbers else ""
            axis.plot(places, [point[name] for point in points], line, marker="o", markersize=3)
            axis.set_ylabel(label)
            axis.set_xlabel(part)
            axis.set_ylim(bottom=0)
            if numbers and min(places) > 0:
                axis.set_xscale("log")
            axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    say(f"drawn: {path}")


# -- shared with the other benchmarks that run the flow ---------------------------------------------------


def child(what: str, given: dict[str, Any], env: dict[str, str] | None = None) -> dict[str, Any]:
    """The figures of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.curves_child", what, json.dumps(given)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=env)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def stack() -> Iterator[tuple[str, str, Path]]:
    """A real Kafka and ClickHouse (chDB): bootstrap servers, URL, a directory."""
    with tempfile.TemporaryDirectory(prefix="tailrace-bench-") as name:
        directory = Path(name)
        say("starting ClickHouse (chDB) and Kafka ...")
        clickhouse = start_child(
            "tailrace_infra.clickhouse", "--data-dir", str(directory / "clickhouse"), "--port", "0", timeout_s=120,
            log=directory / "clickhouse.log",
        )  # fmt: skip
        try:
            with running_kafka(directory / "kafka") as kafka:
                yield kafka.bootstrap_servers, f"http://127.0.0.1:{clickhouse.ready['port']}", directory
        finally:
            clickhouse.stop()


def flow_settings(bootstrap_servers: str, url: str, name: str) -> Settings:
    """Of a topic prefix and database of that name."""
    return Settings(
        kafka={"bootstrap_servers": bootstrap_servers, "topic_prefix": name, "group_id": name},
        clickhouse={"url": url, "database": name},
    )


def environment(settings: Settings, recovery: Path, epoch_s: float = 1.0) -> dict[str, str]:
    """Variables that give a child these settings."""
    import os

    return {
        **os.environ,
        "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "TAILRACE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
        "TAILRACE_KAFKA__GROUP_ID": settings.kafka.group_id,
        "TAILRACE_CLICKHOUSE__URL": settings.clickhouse.url,
        "TAILRACE_CLICKHOUSE__DATABASE": settings.clickhouse.database,
        "TAILRACE_RECOVERY__DIRECTORY": str(recovery),
        "TAILRACE_RECOVERY__EPOCH_S": str(epoch_s),
        "OMP_NUM_THREADS": "1",
    }
