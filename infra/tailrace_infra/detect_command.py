"""`tailrace detect`: the detector of the flow on one series in a file."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from tailrace_flows.core.anomaly import AnomalyConfig, Detector, Direction

from tailrace_infra.errors import reason
from tailrace_infra.output import Format, write_rows
from tailrace_infra.series_file import SeriesFile, SeriesFileError, read_series

__all__ = ["register"]

stderr = Console(stderr=True)

COLUMNS = ("timestamp", "value", "anomaly_score", "flag", "expected", "low", "high")
DEFAULTS = AnomalyConfig()


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("detect")(detect_file)


def detect_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV with timestamp and value; .gz too.")],
    column: Annotated[str, typer.Option(help="Which column holds the value.")] = "value",
    time_column: Annotated[
        str, typer.Option(help="Which column holds the time. [default: timestamp, else time]", show_default=False)
    ] = "",
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Every row goes here; only flagged ones are printed.")
    ] = None,
    direction: Annotated[Direction, typer.Option(help="Which deviations may be flagged.")] = DEFAULTS.direction,
    min_deviation: Annotated[
        float, typer.Option(min=0, help="A flag needs this distance from the expected value ...")
    ] = DEFAULTS.min_deviation,
    min_relative_deviation: Annotated[
        float, typer.Option(min=0, help="... and this share of it.")
    ] = DEFAULTS.min_relative_deviation,
    format: Annotated[
        Format | None,
        typer.Option(
            "--format", "-f", help="How rows are printed. [default: csv, or table with --out]", show_default=False
        ),
    ] = None,
) -> None:
    """Score every point of a series, by itself and the points before it, and flag where episodes begin.

    Rows keep their order and gain anomaly_score (0 to 1), flag (0 or 1), and what was expected: a value and its band.

    Examples:

        tailrace detect cpu.csv --out scores.csv

        tailrace detect requests.csv --column rate --direction below --format json
    """
    from tailrace_infra.cli import fail

    try:
        series = read_series(file, column, time_column)
        config = AnomalyConfig(
            direction=direction, min_deviation=min_deviation, min_relative_deviation=min_relative_deviation
        )
        if out is None:
            write_rows(COLUMNS, _judged(series, config), format or Format.CSV)
        else:
            write_rows(COLUMNS, _written(_judged(series, config), out), format or Format.TABLE)
    except (SeriesFileError, OSError, ValueError) as error:
        fail(reason(error))
    except KeyboardInterrupt:
        fail("interrupted")
    notes = [f"{len(series.times)} rows, of which the first {min(len(series.times), config.warmup_points)} warm up"]
    if series.missing:
        notes.append(f"{series.missing} without a number: score 0")
    stderr.print("; ".join(notes), style="dim", highlight=False, soft_wrap=True)


def _judged(series: SeriesFile, config: AnomalyConfig) -> Iterator[tuple[Any, ...]]:
    detector = Detector(config)
    rows = zip(series.times, series.values, series.times_us, series.numbers, strict=True)
    for time, text, time_us, number in track(
        rows, "detecting", len(series.times), console=stderr, transient=True, disable=not stderr.is_terminal
    ):
        verdict = detector.update(time_us, number)
        yield time, text, verdict.score, int(verdict.flag), verdict.expected, verdict.low, verdict.high


def _written(rows: Iterator[tuple[Any, ...]], out: Path) -> list[tuple[Any, ...]]:
    """Writes every row; returns those with a flag."""
    flagged = []
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow("" if cell != cell else cell for cell in row)
            if row[3]:
                flagged.append(row)
    return flagged
