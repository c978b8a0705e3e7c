"""What every benchmark shares: where it ran, and how results are shown and kept."""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tailrace_schemas import clock

HISTORY = Path(__file__).parent / "history.jsonl"
PACKAGES = (
    "bytewax", "confluent-kafka", "numpy", "pyarrow", "fastavro", "chdb", "clickhouse-connect", "ddsketch", "pathway",
    "quixstreams",
)  # fmt: skip
RESULTS = ("benchmarks/history.jsonl", "tests/reliability/results.json", "docs/reliability-report.*")
CHANGES = ("status", "--porcelain", "-uno", "--", ":(top)", *(f":(top,exclude){name}" for name in RESULTS))
"""Asks git what differs from the commit, but for results of runs before."""


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def environment() -> dict[str, Any]:
    """Machine, versions, commit and time of a run."""
    return {
        "time": datetime.fromtimestamp(clock.now_us() // 1_000_000, UTC).isoformat(),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+" if _git(*CHANGES) else ""),
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def publish(results: list[dict[str, Any]], *, as_json: bool, history: bool) -> None:
    """Prints the results, a table for each `part` they may name, and appends them to the history."""
    where = environment()
    lines = [json.dumps(result | where) for result in results]
    if history:
        with HISTORY.open("a") as file:
            file.writelines(line + "\n" for line in lines)
    if as_json:
        print("\n".join(lines))
        return
    for _, part in groupby(results, key=lambda result: result.get("part")):
        show(list(part), f"{where['machine']}, Python {where['python']}, commit {where['commit']}")


def show(results: list[dict[str, Any]], caption: str) -> None:
    """Prints a table, unless there is nothing to show."""
    if not results:
        return
    names = list(dict.fromkeys(name for result in results for name in result))
    table = Table(*names, caption=caption)
    for result in results:
        table.add_row(*(_cell(result.get(name)) for name in names))
    Console(width=None if sys.stdout.isatty() else 220).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
