"""The I/O report: lines of operations and caches, rendered as text, Markdown or JSON. Pure."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal, get_args

__all__ = ["CacheLine", "IoReport", "OperationLine", "ReportFormat"]

ReportFormat = Literal["text", "markdown", "json"]

OPERATION_COLUMNS: Final = ("operation", "count", "errors", "total", "mean", "p50", "p95", "max", "")
CACHE_COLUMNS: Final = ("cache", "lookups", "hit ratio", "memory")


@dataclass(frozen=True, slots=True)
class OperationLine:
    """One kind of operation on one target; seconds."""

    kind: str
    target: str
    count: int
    errors: int
    total_s: float
    mean_s: float
    p50_s: float
    p95_s: float
    max_s: float
    threshold_s: float | None = None


@dataclass(frozen=True, slots=True)
class CacheLine:
    """One cache."""

    name: str
    hits: int
    misses: int
    memory_bytes: float | None
    """None: it does not tell."""


@dataclass(frozen=True, slots=True)
class IoReport:
    """What some source knows of the last `period_s`."""

    source: str
    period_s: float
    operations: Sequence[OperationLine]
    caches: Sequence[CacheLine]

    def render(self, format: ReportFormat) -> str:
        """As text for a terminal, a Markdown section, or a JSON object; what took longest in all comes first.

        Raises:
            ValueError: another format.
        """
        if format not in get_args(ReportFormat):
            raise ValueError(f"{format!r} is no format of a report; there are: {', '.join(get_args(ReportFormat))}")
        operations = sorted(self.operations, key=lambda one: (-one.total_s, one.kind, one.target))
        caches = sorted(self.caches, key=lambda one: one.name)
        if format == "json":
            return json.dumps(
                {
                    "source": self.source,
                    "period_s": self.period_s,
                    "operations": [asdict(one) for one in operations],
                    "caches": [{**asdict(one), "hit_ratio": _hit_ratio(one)} for one in caches],
                },
                indent=2,
            )
        title = f"I/O of {self.source}, last {_duration(self.period_s)}"
        table = _markdown if format == "markdown" else _aligned
        parts = [f"## {title}" if format == "markdown" else title]
        if operations:
            parts.append(table(OPERATION_COLUMNS, [_operation_cells(one) for one in operations]))
        if caches:
            parts.append(table(CACHE_COLUMNS, [_cache_cells(one) for one in caches]))
        if not operations and not caches:
            parts.append("Nothing was tracked.")
        return "\n\n".join(parts)


def _operation_cells(one: OperationLine) -> list[str]:
    times = (one.total_s, one.mean_s, one.p50_s, one.p95_s, one.max_s)
    slow = one.threshold_s is not None and one.max_s > one.threshold_s
    mark = f"over {_duration(one.threshold_s)}" if slow and one.threshold_s is not None else ""
    return [f"{one.kind} {one.target}".strip(), f"{one.count:,}", f"{one.errors:,}", *map(_duration, times), mark]


def _cache_cells(one: CacheLine) -> list[str]:
    ratio = _hit_ratio(one)
    return [
        one.name,
        f"{one.hits + one.misses:,}",
        "" if ratio is None else f"{ratio:.1%}",
        "" if one.memory_bytes is None else _bytes(one.memory_bytes),
    ]


def _hit_ratio(one: CacheLine) -> float | None:
    lookups = one.hits + one.misses
    return one.hits / lookups if lookups else None


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [columns, *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    escaped = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *escaped))


def _duration(seconds: float) -> str:
    for limit, unit, factor in ((1e-3, "us", 1e6), (1.0, "ms", 1e3), (120.0, "s", 1.0)):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds / 60:.0f} min"


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.3g} {unit}" if unit != "B" else f"{size:.0f} B"
        size /= 1024
    return f"{size:.3g} GiB"
