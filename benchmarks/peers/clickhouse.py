"""ClickHouse as a peer: which Python runs it."""

import subprocess
import sys

from benchmarks.peers.bench import Bench, Measured, MissingError, run_job

CHILD = ("-m", "benchmarks.peers.clickhouse_child")
_PROBE = (
    "import sys; from chdb.session import Session;"
    " Session(sys.argv[1]).query(\"CREATE TABLE q (n UInt8) ENGINE = Kafka('127.0.0.1:1', 't', 'g', 'CSV')\")"
)


def insert(bench: Bench, samples: int, *, sketch: str, encoding: str) -> Measured:
    return run_job([sys.executable, *CHILD], bench, encoding, samples, how="insert", sketch=sketch, encoding=encoding)


def engine(bench: Bench, samples: int, *, sketch: str, encoding: str) -> Measured:
    python = bench.chdb_python or sys.executable
    done = subprocess.run(
        [python, "-c", _PROBE, str(bench.directory / f"probe-{bench.series}-{sketch}-{encoding}")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise MissingError(f"the Kafka engine of chDB: {done.stderr.strip().splitlines()[-1]} (see --chdb-python)")
    return run_job([python, *CHILD], bench, encoding, samples, how="engine", sketch=sketch, encoding=encoding)
