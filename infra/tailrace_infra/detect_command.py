"""`tailrace detect` and `tailrace forecast`: one series in a file."""

import csv
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import track
from tailrace_flows.core.anomaly import AnomalyConfig, Detector, Direction
from tailrace_flows.core.forecast import Forecast, forecast, least_squares

from tailrace_infra.errors import reason
from tailrace_infra.output import Format, write_rows
from tailrace_infra.series_file import SeriesFile, SeriesFileError, read_series

__all__ = ["register"]

stderr = Console(stderr=True)

COLUMNS = ("timestamp", "value", "anomaly_score", "flag", "expected", "low", "high")
DEFAULTS = AnomalyConfig()
DAY_S = 86_400


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("detect")(detect_file)
    app.command("forecast")(forecast_file)


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
    except BrokenPipeError:  # the reader of what is printed has seen enough
        raise
    except (SeriesFileError, OSError, ValueError) as error:
        fail(reason(error))
    except KeyboardInterrupt:
        fail("interrupted")
    notes = [f"{len(series.times)} rows, of which the first {min(len(series.times), config.warmup_points)} warm up"]
    if series.missing:
        notes.append(f"{series.missing} without a number: score 0")
    stderr.print("; ".join(notes), style="dim", highlight=False, soft_wrap=True)


def forecast_file(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="CSV with timestamp and value; .gz too.")],
    limit: Annotated[float, typer.Option(help="The value that must not be reached, from below or above.")],
    column: Annotated[str, typer.Option(help="Which column holds the value.")] = "value",
    time_column: Annotated[
        str, typer.Option(help="Which column holds the time. [default: timestamp, else time]", show_default=False)
    ] = "",
    days: Annotated[
        float | None, typer.Option(min=0, help="Look at this many days before the last row only; default: all rows.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How figures are printed.")] = Format.TABLE,
) -> None:
    """Say when a series first reaches a limit, from a robust slope, with an interval; never is left empty.

    A season of a day or a week is part of the forecast where the rows show one; else season_hours is 0.

    least_squares_at is what `predict_linear` of Prometheus would say of the same rows.

    Examples:

        tailrace forecast disk.csv --column used_bytes --limit 500e9 --days 30

        tailrace forecast memory.csv --limit 0 --format json
    """
    from tailrace_infra.cli import fail

    try:
        series = read_series(file, column, time_column)
        last_us = max((t for t, v in zip(series.times_us, series.numbers, strict=True) if isfinite(v)), default=0)
        since_us = -1 if days is None else last_us - days * DAY_S * 1e6
        rows = [
            ((time_us - last_us) / 1e6, number)
            for time_us, number in zip(series.times_us, series.numbers, strict=True)
            if isfinite(number) and time_us >= since_us
        ]
        if not rows:
            fail(f"{file}: no row has a number")
        times_s, values = zip(*rows, strict=True)
        found = forecast(times_s, values, limit)
    except (SeriesFileError, OSError, ValueError) as error:
        fail(reason(error))
    slope, value = least_squares(times_s, values)
    straight_s = (limit - value) / slope if slope else inf
    write_rows(["figure", "value"], _figures(found, last_us, straight_s, len(rows)), format)


def _figures(found: Forecast, last_us: int, straight_s: float, rows: int) -> list[tuple[Any, ...]]:
    return [
        ("rows", rows),
        ("last_time", _moment(last_us, 0)),
        ("value_now", found.level),
        ("change_per_day", found.slope * DAY_S),
        ("change_per_day_low", found.slope_low * DAY_S),
        ("change_per_day_high", found.slope_high * DAY_S),
        ("season_hours", len(found.season)),
        ("reached_at", _moment(last_us, found.reached_in_s)),
        ("earliest_at", _moment(last_us, found.earliest_in_s)),
        ("latest_at", _moment(last_us, found.latest_in_s)),
        ("least_squares_at", _moment(last_us, straight_s if straight_s >= 0 else inf)),
    ]


def _moment(last_us: int, ahead_s: float) -> datetime | None:
    """That many seconds after the last row; None: never, or after the year 9999."""
    if not isfinite(ahead_s):
        return None
    try:
        return datetime.fromtimestamp(last_us // 1_000_000, UTC) + timedelta(seconds=round(ahead_s))
    except OverflowError:
        return None


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
