"""The live view of `tailrace up`: a screen on a terminal, a log line every 10 s elsewhere."""

from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tailrace_infra.overview import Gauge, Overview, Top

__all__ = ["human_rate", "human_value", "line", "screen"]

# Document 002's thresholds; yellow begins at four fifths of them.
LIMITS = {
    "system.cpu.utilization": 0.80,
    "system.memory.utilization": 0.85,
    "system.paging.utilization": 0.85,
    "system.filesystem.utilization": 0.90,
}

_PROBLEMS = {
    "late_samples": "late",
    "duplicate_batches": "duplicates",
    "missing_batches": "missing",
    "gap_records": "gap",
    "series_limit_samples": "over the series limit",
}


def colour(gauge: Gauge) -> str:
    """green, yellow or red by the metric's limit."""
    limit = LIMITS.get(gauge.metric, 0.9)
    if gauge.value >= limit:
        return "red"
    return "yellow" if gauge.value >= 0.8 * limit else "green"


def human_rate(per_second: float) -> str:
    """12.3 k/s."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if per_second >= size:
            return f"{per_second / size:.1f} {unit}/s"
    return f"{per_second:.1f} /s"


def human_value(value: float, unit: str) -> str:
    """A value in its UCUM unit, scaled: 0.0123 s is 12.3 ms."""
    if unit == "s":
        for size, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e9:.3g} ns"
    if unit == "By":
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{value / size:.3g} {name}"
        return f"{value:.3g} B"
    return f"{value:.4g}" + (f" {unit}" if unit and unit != "1" else "")


def problems(counters: Mapping[str, int]) -> dict[str, int]:
    """What was lost, late or left out, by a short name; only what is not zero."""
    found = {label: counters[name] for name, label in _PROBLEMS.items() if counters.get(name)}
    dead = sum(value for name, value in counters.items() if name.startswith("dead_letters."))
    return found | ({"dead letters": dead} if dead else {})


def line(overview: Overview, rate: float) -> str:
    """One line for a log."""
    parts = [f"samples={overview.counters.get('samples', 0)}", f"rate={human_rate(rate)}"]
    if overview.lag is not None:
        parts.append(f"lag_records={overview.lag.records}")
    parts += [f"{name.replace(' ', '_')}={value}" for name, value in problems(overview.counters).items()]
    for gauge in _worst(overview.gauges):
        parts.append(f"{gauge.metric}={gauge.value:.2f}")
    for top in overview.top[:1]:
        parts.append(f"busiest={top.metric} p99={human_value(top.p99, top.unit).replace(' ', '')}")
    return " ".join(parts)


def screen(overview: Overview, rate: float, where: str) -> RenderableType:
    """The whole screen."""
    head = Text.assemble(
        ("Tailrace", "bold"), f"  {where}\n",
        f"{overview.counters.get('samples', 0):,} samples, {human_rate(rate)}",
        f"  ·  lag {overview.lag.records:,} records" if overview.lag is not None else "",
    )  # fmt: skip
    trouble = problems(overview.counters)
    if trouble:
        head.append("\n" + "  ·  ".join(f"{value:,} {name}" for name, value in trouble.items()), "yellow")
    else:
        head.append("  ·  nothing late, missing or rejected", "green")
    if overview.newest_window_end is None:
        waiting = Text("The first windows close about 12 s after the first samples ...", "dim")
        return Group(head, waiting)
    return Group(head, Panel(_gauges(overview.gauges), title="host"), _top(overview.top))


def _worst(gauges: list[Gauge]) -> list[Gauge]:
    worst: dict[str, Gauge] = {}
    for gauge in gauges:
        if gauge.metric not in worst or gauge.value > worst[gauge.metric].value:
            worst[gauge.metric] = gauge
    return list(worst.values())


def _gauges(gauges: list[Gauge]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(width=30)
    table.add_column(justify="right")
    for gauge in gauges[:12]:
        name = gauge.metric.removeprefix("system.").removesuffix(".utilization")
        of = gauge.attributes.get("system.filesystem.mountpoint") or gauge.attributes.get("cpu.logical_number", "")
        shade = colour(gauge)
        bar = ProgressBar(
            total=1.0, completed=min(1.0, gauge.value), width=30, complete_style=shade, finished_style=shade
        )
        table.add_row(f"{name} {of}".strip(), bar, Text(f"{gauge.value:.0%}", shade))
    return table


def _top(top: list[Top]) -> Table:
    table = Table(title="busiest distributions, last minute", expand=True)
    for name in ("service", "metric", "attributes"):
        table.add_column(name, overflow="ellipsis", no_wrap=True)
    for name in ("rate", "p50", "p95", "p99"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in top:
        attributes = " ".join(f"{key}={value}" for key, value in one.attributes.items() if key != "host.name")
        values = [human_value(value, one.unit) for value in (one.p50, one.p95, one.p99)]
        table.add_row(one.service, one.metric, attributes, human_rate(one.samples_per_second), *values)
    return table
