"""Amazon's PetShop (github.com/amazon-science/petshop-root-cause-analysis): its wide CSVs as samples and incidents.

    python -m benchmarks.petshop ../shared/data/latency/petshop /tmp/petshop
    cd /tmp/petshop && tailrace backtest --rules petshop-rules.yaml --incidents incidents.csv samples.csv

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

__all__ = ["PERIOD_S", "Scenario", "convert", "read"]

PERIOD_S: Final = 300
P95: Final = ("latency", "p95")
REQUESTS: Final = ("requests", "Sum")
AVAILABILITY: Final = ("availability", "Average")

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
                requests = figures[REQUESTS]
                yield time, service, "requests", "counter", "{request}", requests
                if AVAILABILITY in figures:
                    errors = round(requests * (1 - figures[AVAILABILITY] / 100))
                    yield time, service, "errors", "counter", "{request}", errors
            if P95 in figures:
                yield time, service, "request.duration.p95", "gauge", "s", figures[P95]


if __name__ == "__main__":
    into = Path(sys.argv[2])
    into.mkdir(parents=True, exist_ok=True)
    for written in convert(read(Path(sys.argv[1])), into):
        print(written)
