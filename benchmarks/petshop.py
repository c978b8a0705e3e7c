"""Amazon's PetShop (github.com/amazon-science/petshop-root-cause-analysis): its wide CSVs as samples and incidents.

    python -m benchmarks.petshop ../shared/data/latency/petshop /tmp/petshop
    cd /tmp/petshop && tailrace backtest --rules petshop-rules.yaml --incidents incidents.csv samples.csv
    python -m benchmarks.petshop ../shared/data/latency/petshop     # thresholds chosen without what they are judged by

A row of 5 minutes is stamped with their start, and its figures are known at their end: the samples have that time, less
a second, so that they fall into the last 10 s window of the 5 minutes.
"""

import csv
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["PERIOD_S", "LeftOut", "Scenario", "convert", "left_out", "read"]

PERIOD_S: Final = 300
P95: Final = ("latency", "p95")
REQUESTS: Final = ("requests", "Sum")
AVAILABILITY: Final = ("availability", "Average")
FRONT: Final = "PetSite"

Figures = dict[tuple[str, str], float]
"""(metric, statistic) -> value."""


class Scenario(NamedTuple):
    """One file: an incident, or a time without any."""

    name: str
    group: str
    """high_traffic, low_traffic, temporal_traffic1, temporal_traffic2: one deployment of the shop, under one load."""
    rows: dict[int, dict[str, Figures]]
    """Start of the 5 minutes -> service -> figures."""
    target: str
    """The service in which the incident shows; empty: there is no incident."""
    signal: str
    """And in what: latency or availability."""
    onset_s: int

    @property
    def end_s(self) -> int:
        """When the last row is known."""
        return max(self.rows) + PERIOD_S


def read(directory: Path) -> list[Scenario]:
    """All scenarios, by name; the normal operation is `high_traffic_noissue`."""
    found = []
    for path in sorted([*directory.glob("*issue_*.csv"), *directory.glob("*noissue.csv.gz")]):
        name = path.name.split(".")[0]
        target = {"node": "", "metric": "", "timestamp": 0}
        if path.suffix == ".csv":
            target = json.loads(path.with_suffix(".json").read_text())["target"]
        group = name.split("_test_")[0].split("_train_")[0].removesuffix("_noissue")
        found.append(
            Scenario(name, group, _rows(path), str(target["node"]), str(target["metric"]), int(target["timestamp"]))
        )
    return found


def _rows(path: Path) -> dict[int, dict[str, Figures]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        services, metrics, statistics, *rows = csv.reader(file)
    found: dict[int, dict[str, Figures]] = {}
    for time, *cells in rows:
        if time == "unix_timestamp":
            continue
        by_service = found.setdefault(int(float(time)), {})
        for service, metric, statistic, cell in zip(services[1:], metrics[1:], statistics[1:], cells, strict=True):
            if cell:
                by_service.setdefault(service, {})[(metric, statistic)] = float(cell)
    return found


def convert(scenarios: list[Scenario], directory: Path) -> tuple[Path, Path]:
    """Writes `samples.csv` and `incidents.csv`; returns where."""
    samples, incidents = directory / "samples.csv", directory / "incidents.csv"
    with samples.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "service", "metric", "kind", "unit", "value"])
        writer.writerows(_samples(scenarios))
    with incidents.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "start", "end", "service"])
        writer.writerows([one.name, one.onset_s, one.end_s, one.target] for one in scenarios if one.target)
    return samples, incidents


def _samples(scenarios: list[Scenario]) -> Iterator[tuple[int, str, str, str, str, float]]:
    rows = {start: by_service for one in scenarios for start, by_service in one.rows.items()}
    for start, by_service in sorted(rows.items()):
        time = start + PERIOD_S - 1
        for service, figures in by_service.items():
            if REQUESTS in figures:
                yield time, service, "requests", "counter", "{request}", figures[REQUESTS]
                if AVAILABILITY in figures:
                    yield time, service, "errors", "counter", "{request}", _errors(figures)
            if P95 in figures:
                yield time, service, "request.duration.p95", "gauge", "s", figures[P95]


# -- thresholds that were chosen without the incidents they are judged by -----------------------------------


class LeftOut(NamedTuple):
    """What thresholds that were chosen on all other deployments do on one."""

    group: str
    error_ratio: float
    p95_s: float
    hits: int
    incidents: int
    false_samples: int
    normal_samples: int


def left_out(scenarios: list[Scenario]) -> list[LeftOut]:
    """For each deployment: thresholds for the front that find most incidents of the others, a miss weighing as much as
    20 false samples; in the middle of those that are equally good. False samples are those of normal operation."""
    found = []
    for group in sorted({one.group for one in scenarios}):
        others = [one for one in scenarios if one.group != group]
        own = [one for one in scenarios if one.group == group]
        chosen = {signal: _chosen(others, signal) for signal in ("availability", "latency")}
        incidents = [one for one in own if one.target]
        hits = sum(max(_values(one, one.signal, after=True)) >= chosen[one.signal] for one in incidents)
        normal = [
            value >= threshold
            for one in own
            if not one.target
            for signal, threshold in chosen.items()
            for value in _values(one, signal, after=False)
        ]
        figures = (hits, len(incidents), sum(normal), len(normal))
        found.append(LeftOut(group, chosen["availability"], chosen["latency"], *figures))
    return found


def _chosen(scenarios: list[Scenario], signal: str) -> float:
    peaks = [max(_values(one, signal, after=True)) for one in scenarios if one.signal == signal]
    normal = [value for one in scenarios for value in _values(one, signal, after=False)]
    candidates = [10 ** (step / 200) for step in range(-600, 101)]
    costs = [20 * sum(p < at for p in peaks) + sum(value >= at for value in normal) for at in candidates]
    best = [at for at, cost in zip(candidates, costs, strict=True) if cost == min(costs)]
    return (best[0] * best[-1]) ** 0.5


def _values(one: Scenario, signal: str, *, after: bool) -> list[float]:
    """What the rules compare, for the front: after the incident's onset, or in normal operation and before it."""
    found = []
    for start, by_service in sorted(one.rows.items()):
        front = by_service.get(FRONT, {})
        if REQUESTS not in front or (bool(one.target) and start + PERIOD_S > one.onset_s) != after:
            continue
        if signal == "latency":
            found.append(front[P95])
            continue
        before = one.rows.get(start - PERIOD_S, {}).get(FRONT, front)
        both = (_errors(front) + _errors(before)) / (front[REQUESTS] + before[REQUESTS])
        found.append(min(_errors(front) / front[REQUESTS], both))
    return found


def _errors(figures: Figures) -> int:
    return round(figures[REQUESTS] * (1 - figures[AVAILABILITY] / 100))


if __name__ == "__main__":
    every = read(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).mkdir(parents=True, exist_ok=True)
        for written in convert(every, Path(sys.argv[2])):
            print(written)
    else:
        for figures_of in left_out(every):
            print(figures_of)
