"""Every benchmark one after another, with settings that make the whole less than 20 minutes on an idle machine.

One that fails is said so, and the others still run. Each is a process of its own, so none inherits another's memory.
"""

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from benchmarks.common import say, show

QUICK: Mapping[str, tuple[str, ...]] = {
    "agent": ("--parts", "collection,process", "--seconds", "60"),
    "alerts": ("--steps", "12"),
    "anomaly": ("--part", "cost"),
    "curves": ("--scale", "0.2"),
    "middleware": ("--rounds", "15"),
    "peers": ("--samples", "4000000"),
    "pipeline": ("--series", "1000,100000", "--samples", "20000000", "--brokers", "kafka"),
    "producer": ("--part", "record", "--part", "bytes"),
    "query": ("--rows", "1000000"),
    "rules": ("--steps", "15"),
    "slo": ("--windows", "60"),
}
"""Options where the defaults take long; the figures are of the same kind, with more noise or of fewer parts."""
TIMEOUT_S = 600
STOP_S = 30


def add_arguments(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    parser.add_argument("--only", metavar="NAMES", help=f"comma-separated, of {', '.join(names)}")
    parser.add_argument("--no-history", action="store_true", help="do not append to benchmarks/history.jsonl")


def run(options: argparse.Namespace, names: Sequence[str]) -> int:
    """The exit code: 0 if all ran. Their tables go to stdout, the progress to stderr."""
    chosen = options.only.split(",") if options.only else list(names)
    unknown = sorted(set(chosen) - set(names))
    if unknown:
        say(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(names)}")
        return 2
    started = time.monotonic()
    done: list[dict[str, Any]] = []
    for number, name in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}, {time.monotonic() - started:.0f} s] {name} {' '.join(QUICK.get(name, ()))}")
        done.append(_one(name, options.no_history))
        say(f"    {done[-1]['result']} after {done[-1]['seconds']:.0f} s")
    show(done, f"{time.monotonic() - started:.0f} s in all")
    return int(any(one["result"] != "done" for one in done))


def _one(name: str, no_history: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks", name, *QUICK.get(name, ()), *(["--no-history"] * no_history)]
    began = time.monotonic()
    process = subprocess.Popen(command)
    try:
        code = process.wait(TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # so that it stops the Kafka that it started
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
        result = f"stopped: more than {TIMEOUT_S} s"
    else:
        result = "done" if code == 0 else f"failed, exit code {code}"
    return {"name": name, "result": result, "seconds": time.monotonic() - began}
