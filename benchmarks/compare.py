"""A run beside the last one of the same benchmark, and as samples in Tailrace."""

import json
from collections.abc import Iterable
from typing import Any

from tailrace_producers import Telemetry

__all__ = ["compare", "last_results", "record"]

ABOUT = frozenset(("time", "commit", "machine", "python", "versions"))
"""Fields of the history that say where a result comes from."""


def case(result: dict[str, Any]) -> str:
    """What a result is of: its texts and whole numbers. Its figures are the floats."""
    return ", ".join(
        f"{name} {value}" if isinstance(value, int) else value
        for name, value in result.items()
        if name not in ABOUT and name != "benchmark" and isinstance(value, int | str) and not isinstance(value, bool)
    )


def figures(result: dict[str, Any]) -> dict[str, float]:
    """What a result has measured."""
    return {name: value for name, value in result.items() if name not in ABOUT and isinstance(value, float)}


def last_results(history: Iterable[str], benchmark: str) -> dict[str, dict[str, Any]]:
    """The last result of each case of a benchmark in the lines of a history. Raises ValueError: a line is no JSON."""
    found = {}
    for line in history:
        result = json.loads(line)
        if result.get("benchmark") == benchmark:
            found[case(result)] = result
    return found


def compare(results: list[dict[str, Any]], before: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each figure that was measured before too: then, now, and the change in percent."""
    return [
        {
            "case": case(result), "figure": name, "last": before[case(result)][name], "now": value,
            "change_percent": 100 * (value / before[case(result)][name] - 1), "commit": before[case(result)]["commit"],
            "time": before[case(result)]["time"],
        }
        for result in results
        if case(result) in before
        for name, value in figures(result).items()
        if before[case(result)].get(name)
    ]  # fmt: skip


def record(results: list[dict[str, Any]], bootstrap_servers: str) -> bool:
    """Sends each figure as a sample of `benchmark.result`. False: the broker did not take all of them in 5 s."""
    with Telemetry("benchmarks", bootstrap_servers=bootstrap_servers) as telemetry:
        gauge = telemetry.gauge("benchmark.result")
        for result in results:
            for name, value in figures(result).items():
                attributes = {
                    "benchmark": result["benchmark"],
                    "benchmark.case": case(result),
                    "benchmark.figure": name,
                }
                gauge.set(value, attributes)
    return not telemetry.stats.dropped
