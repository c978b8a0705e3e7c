"""A run beside the last one of the same benchmark, two runs of the history, and a run as samples in Tailrace."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tailrace_producers import Telemetry

__all__ = ["Run", "compare", "last_results", "ratios", "record", "runs", "select"]

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


@dataclass
class Run:
    """What one run of a benchmark appended to the history."""

    benchmark: str
    time: str
    commit: str
    results: list[dict[str, Any]] = field(default_factory=list)


def runs(history: Iterable[str]) -> list[Run]:
    """The runs in the lines of a history, the oldest first. Raises ValueError: a line is no JSON."""
    found: list[Run] = []
    for line in history:
        result = json.loads(line)
        if not found or (found[-1].benchmark, found[-1].time) != (result["benchmark"], result["time"]):
            found.append(Run(result["benchmark"], result["time"], result["commit"]))
        found[-1].results.append(result)
    return found


def select(history: list[Run], reference: str) -> list[Run]:
    """The runs that a reference names.

    It is a number (1 the oldest, -1 the last), the name of a benchmark (its last run; `NAME~1` the one before that),
    or the beginning of a commit (its runs). Raises ValueError: there is none.
    """
    name, _, back = reference.partition("~")
    named = [run for run in history if run.benchmark == name]
    try:
        if named:
            return [named[-1 - int(back or 0)]]
        if re.fullmatch(r"-?[1-9]\d{0,4}", reference):
            return [history[int(reference) - (int(reference) > 0)]]
    except (IndexError, ValueError):
        found = []
    else:
        found = [run for run in history if len(reference) >= 4 and run.commit.startswith(reference)]
    if not found:
        raise ValueError(
            f"{reference}: no such run in the history; give a number from 1 to {len(history)} or from -{len(history)} "
            f"to -1, a commit, or one of {', '.join(sorted({run.benchmark for run in history}))} (~1: the run before)"
        )
    return found


def ratios(one: list[Run], other: list[Run]) -> list[dict[str, Any]]:
    """A line for each figure that both have of the same case: its value in either, and the second by the first.

    Of several runs of one benchmark on a side the last counts.
    """

    def by_case(chosen: list[Run]) -> dict[tuple[str, str], dict[str, Any]]:
        return {(run.benchmark, case(result)): result for run in chosen for result in run.results}

    before, after = by_case(one), by_case(other)
    return [
        {
            "benchmark": key[0], "case": key[1], "figure": name, "a": before[key][name], "b": value,
            "b_by_a": value / before[key][name],
        }
        for key, result in after.items()
        if key in before
        for name, value in figures(result).items()
        if before[key].get(name)
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
