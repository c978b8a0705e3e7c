"""Running one system on one topic in a process of its own."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tailrace_infra.topics import ensure_topics
from tailrace_sinks.clickhouse import connect

from benchmarks import load
from benchmarks.common import say
from benchmarks.peers.topics import fill
from benchmarks.pipeline import create_tables, environment_for, settings_for

TIMEOUT_S = 150


class MissingError(Exception):
    """What a peer needs is not there. The message says what."""


class FailedError(Exception):
    """A peer ended with an error, or took too long."""


@dataclass
class Bench:
    """What the systems run on, for one number of series."""

    bootstrap_servers: str
    clickhouse_url: str
    directory: Path
    series: int
    chdb_python: str | None
    filled: set[str] = field(default_factory=set)

    def topic(self, encoding: str, samples: int) -> str:
        """The name of a topic with the first so many samples; fills it at first."""
        name = f"{encoding}-{self.series}-{samples}"
        if name not in self.filled:
            say(f"{self.series:,} series: sending {samples:,} samples as {encoding} ...")
            fill({"bootstrap.servers": self.bootstrap_servers}, name, encoding, self.series, samples)
            self.filled.add(name)
        return name


Measured = tuple[dict[str, Any], Path | None]
"""What the process printed, and where its answers are, if it has any."""


def tailrace(system: str) -> Callable[[Bench, int], Measured]:
    """A system of `benchmarks.pipeline_child`: Tailrace itself, or a part of its work."""

    def measure(bench: Bench, samples: int) -> Measured:
        name = f"peers_{bench.series}"
        settings = settings_for(bench.bootstrap_servers, bench.clickhouse_url, name)
        if name not in bench.filled:
            ensure_topics(settings.kafka.client(), settings.kafka.topics, 4)
            say(f"{bench.series:,} series: sending {samples:,} samples as SampleBatch ...")
            load.send(settings.kafka.client(), settings.kafka.topics.samples, bench.series, samples)
            create_tables(settings)
            bench.filled.add(name)
        environment = environment_for(settings, bench.directory / f"recovery-{bench.series}", "replay", 1.0)
        command = [sys.executable, "-m", "benchmarks.pipeline_child", system, str(bench.series), str(samples)]
        measured = run_child(command, environment)
        if system != "tailrace":
            return measured, None
        out = bench.directory / "tailrace.csv"
        each = load.series_each(bench.series)
        with connect(settings.clickhouse) as client:
            out.write_bytes(
                client.raw_query(
                    f"SELECT toUInt32(substring(service, 9)) * {each}"
                    " + toUInt32(extract(attributes['http.route'], '[0-9]+$')),"
                    " intDiv(toUnixTimestamp(window_start), 10), count, sum, p50, p95, p99, p999 FROM windows",
                    fmt="CSV",
                )
            )
        return measured, out

    return measure


def python(module: str, encoding: str, needs: str = "", **options: Any) -> Callable[[Bench, int], Measured]:
    """A module of this package, which needs a package of the extra `peers`."""

    def measure(bench: Bench, samples: int) -> Measured:
        if needs and importlib.util.find_spec(needs) is None:
            raise MissingError(f"{needs} is not installed: pip install -e '.[dev,peers]'")
        return run_job([sys.executable, "-m", f"benchmarks.peers.{module}"], bench, encoding, samples, **options)

    return measure


def run_job(command: Sequence[str], bench: Bench, encoding_: str, samples: int, **options: Any) -> Measured:
    """Runs a command with the job (see `child.Job`) as its last argument."""
    out = bench.directory / "answers.csv"
    out.unlink(missing_ok=True)
    told = {
        "bootstrap_servers": bench.bootstrap_servers,
        "topic": bench.topic(encoding_, samples) if encoding_ else "",
        "series": bench.series, "samples": samples, "out": str(out),
        "options": options | {"directory": tempfile.mkdtemp(dir=bench.directory)},
    }  # fmt: skip
    return run_child([*command, json.dumps(told)]), out if encoding_ else None


def run_child(command: list[str], environment: dict[str, str] | None = None) -> dict[str, Any]:
    """What it printed in its last line. Raises FailedError, with the end of its log."""
    try:
        done = subprocess.run(
            command, env={**(environment or os.environ), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FailedError(f"not done after {TIMEOUT_S} s") from None
    if done.returncode:
        raise FailedError(f"exit code {done.returncode}: {done.stderr.strip()[-600:]}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
