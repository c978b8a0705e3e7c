"""The live view of `tailrace up`: a screen on a terminal, a log line every 10 s elsewhere."""

from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tailrace_infra.overview import Active, Anomaly, Gauge, Objective, Overview, Top
from tailrace_infra.visible import visible

__all__ = ["human_rate", "human_value", "line", "screen"]

# Document 002's thresholds; yellow begins at four fifths of them.
LIMITS = {
    "system.cpu.utilization": 0.80,
    "system.memory.utilization": 0.85,
    "system.paging.utilization": 0.85,
    "system.filesystem.utilization": 0.90,
}

COLUMNS = {"service": 3, "metric": 7, "attributes": 6, "rate": 0, "p50": 0, "p95": 0, "p99": 0}
"""Which shares of the width that the numbers leave the texts have."""

_PROBLEMS = {
    "late_samples": "late",
    "duplicate_batches": "duplicates",
    "missing_batches": "missing",
    "evicted_producers": "producers forgotten",
    "gap_records": "gap",
    "unreplayed_samples": "not replayed",
    "series_limit_samples": "over the series limit",
    "shard_limit_samples": "over a shard's series limit",
    "event_limit_samples": "events left out",
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


def human_age(seconds: int) -> str:
    """12 s, 4 min, 3 h."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


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
    parts += [f"alert={one.name.replace(' ', '_')}({one.severity})" for one in overview.alerts]
    parts += [f"anomaly={one.detector}({one.service})" for one in overview.anomalies]
    for top in overview.top[:1]:
        parts.append(f"busiest={top.metric} p99={human_value(top.p99, top.unit).replace(' ', '')}")
    return visible(" ".join(parts), one_line=True)


def screen(overview: Overview, rate: float, where: str, height: int = 40) -> RenderableType:
    """The whole screen: on a low terminal fewer series and gauges, the worst of each kind first."""
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
    # Beside the rows themselves: head 2 or 3, frame 2, table 4, and one that stays free for the cursor.
    rows = max(6, height - 11)
    alerts, objectives = overview.alerts[: rows // 4], overview.objectives[: rows // 6]
    anomalies = overview.anomalies[: rows // 8] if rows >= 16 else []  # an alert tells of them, too
    panels = (_alerts(alerts), _anomalies(anomalies), _objectives(objectives, overview.health))
    said = [part for part in panels if part is not None]
    rows -= len(alerts) + len(anomalies) + len(objectives) + 2 * len(said) + bool(overview.health)
    top = overview.top[: max(2, rows // 2)]
    gauges = _worst_first(overview.gauges)[: max(1, rows - len(top))]
    return Group(head, *said, Panel(_gauges(gauges), title="host"), _top(top))


def _shown(text: str, style: str = "") -> Text:
    """Names, attributes and descriptions are texts of others: one line, with nothing that a terminal obeys."""
    return Text(visible(text, one_line=True), style)


SHADES = {"critical": "bold red", "error": "red", "warning": "yellow", "info": "cyan"}


def _alerts(alerts: list[Active]) -> RenderableType | None:
    """Active alerts, the gravest first."""
    if not alerts:
        return None
    table = Table.grid(padding=(0, 1), expand=True)
    rows = [(one.severity, one.name, human_age(one.seconds)) for one in alerts]
    for column in zip(*rows, strict=True):
        table.add_column(no_wrap=True, width=max(map(len, column)))
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for one, (severity, name, age) in zip(alerts, rows, strict=True):
        state = "" if one.status == "active" else f"{one.status}: "
        table.add_row(
            Text(severity, SHADES.get(severity, "")), Text(name, "bold"), age, _shown(state + one.description)
        )
    return Panel(table, title="alerts", border_style=SHADES.get(alerts[0].severity, ""))


def _anomalies(anomalies: list[Anomaly]) -> RenderableType | None:
    """Series flagged lately, the latest first."""
    if not anomalies:
        return None
    table = Table.grid(padding=(0, 1), expand=True)
    rows = [(_shown(one.service), one.detector, human_age(one.seconds)) for one in anomalies]
    for column in zip(*rows, strict=True):
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(map(len, column)))
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    for one, (service, detector, age) in zip(anomalies, rows, strict=True):
        table.add_row(service, Text(detector, "bold"), age, _shown(one.reason))
    return Panel(table, title="anomalies of the last 15 minutes", border_style="cyan")


def _objectives(objectives: list[Objective], health: Mapping[str, str]) -> RenderableType | None:
    """What is left of error budgets, and which services do not fare well."""
    if not objectives and not health:
        return None
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column()  # on a narrow terminal it is the bar that becomes shorter
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for one in objectives:
        left = one.budget_remaining
        shade = "red" if left < 0.1 else "yellow" if left < 0.5 else "green"
        done = min(1.0, max(0.0, left))
        bar = ProgressBar(total=1.0, completed=done, width=20, complete_style=shade, finished_style=shade)
        burn = "" if one.burn_rate_1h is None else f", burning at {one.burn_rate_1h:.3g}"
        table.add_row(Text(one.name), bar, Text(f"{left:.1%}", shade), f"of the budget left{burn}")
    shades = {"degraded": "yellow", "unhealthy": "red"}
    ill = [_shown(f"{name} {status}", shades[status]) for name, status in health.items() if status in shades]
    well = len(health) - len(ill)
    fares = Text("  ", overflow="ellipsis", no_wrap=True).join([*ill, Text(f"{well} healthy", "green" if well else "")])
    fares.no_wrap, fares.overflow = True, "ellipsis"
    return Panel(Group(table, fares) if health else table, title="objectives and health")


def _worst(gauges: list[Gauge]) -> list[Gauge]:
    worst: dict[str, Gauge] = {}
    for gauge in gauges:
        if gauge.metric not in worst or gauge.value > worst[gauge.metric].value:
            worst[gauge.metric] = gauge
    return list(worst.values())


def _worst_first(gauges: list[Gauge]) -> list[Gauge]:
    worst = _worst(gauges)
    return worst + [gauge for gauge in gauges if gauge not in worst]


def _gauges(gauges: list[Gauge]) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column()  # on a narrow terminal it is the bar that becomes shorter
    table.add_column(justify="right", no_wrap=True)
    for gauge in gauges:
        name = gauge.metric.removeprefix("system.").removesuffix(".utilization")
        of = gauge.attributes.get("system.filesystem.mountpoint") or gauge.attributes.get("cpu.logical_number", "")
        shade = colour(gauge)
        bar = ProgressBar(
            total=1.0, completed=min(1.0, gauge.value), width=30, complete_style=shade, finished_style=shade
        )
        table.add_row(_shown(f"{name} {of}".strip()), bar, Text(f"{gauge.value:.0%}", shade))
    return table


def _top(top: list[Top]) -> Table:
    table = Table(title="busiest distributions, last minute", expand=True, box=SIMPLE_HEAD, padding=0)
    rows = []
    for one in top:
        attributes = " ".join(f"{key}={value}" for key, value in one.attributes.items() if key != "host.name")
        values = [human_value(value, one.unit) for value in (one.p50, one.p95, one.p99)]
        rows.append([one.service, one.metric, attributes, human_rate(one.samples_per_second), *values])
    for number, (name, share) in enumerate(COLUMNS.items()):
        if share:
            if name != "attributes" or any(row[number] for row in rows):
                table.add_column(name, overflow="ellipsis", no_wrap=True, ratio=share)
        else:  # a number that is cut off says nothing: the texts share what is left
            width = max([len(name), *(len(row[number]) for row in rows)])
            table.add_column(name, justify="right", no_wrap=True, width=width)
    for row in rows:
        cells = [_shown(cell) for cell in row]
        table.add_row(*(cells if len(table.columns) == len(cells) else cells[:2] + cells[3:]))
    return table
