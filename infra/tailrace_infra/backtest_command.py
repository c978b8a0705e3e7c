"""`tailrace backtest`: what a configuration would have said about past data."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import pyarrow as pa
import typer
from confluent_kafka import KafkaException
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from tailrace_flows.backtest import Backtest, Samples, Step, windows_of
from tailrace_flows.incident_score import Incident, active_times, score
from tailrace_producers.replay import (
    BadLines,
    Catalogue,
    FileBytes,
    ReplayError,
    ReplayOptions,
    read_blocks,
    times_of,
)
from tailrace_schemas.alerts import time_of
from tailrace_schemas.config import model_of, record_of
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.stored_windows import stored_windows

from tailrace_infra.errors import EXPECTED, kafka_reason, reason
from tailrace_infra.sql import SqlError, server
from tailrace_infra.topic_windows import TopicWindows, TopicWindowsError
from tailrace_infra.visible import visible

__all__ = ["read_incidents", "register"]

stderr = Console(stderr=True)

MAX_SAMPLES: Final = 100_000_000
"""All samples are held in memory: 20 bytes each, 50 where they have to be sorted."""
MAX_BAD_RATIO: Final = 0.1
COUNTERS: Final = ("counter", "cumulative")
"""Whose values are not negative."""

_INCIDENT_COLUMNS: Final = ("start", "end", "labels", "name")


class SummaryFormat(StrEnum):
    """How the summary is printed."""

    TEXT = "text"
    """On standard error."""
    JSON = "json"
    """As the last line of standard output."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("backtest")(backtest)


def backtest(
    data: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="CSV or Parquet of samples, or access logs, as for replay."),
    ] = None,
    rules: Annotated[
        list[Path] | None,
        typer.Option("--rules", exists=True, dir_okay=False, help="YAML of rules, SLOs, health; may be repeated."),
    ] = None,
    incidents: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="CSV: start, end; optional name, labels, a column a label."),
    ] = None,
    first: Annotated[str, typer.Option("--from", help="Instead of files: stored 10 s rows from this time on...")] = "",
    end: Annotated[str, typer.Option("--to", help="...to this time (RFC 3339, or Unix seconds).")] = "",
    stream: Annotated[str, typer.Option(help="Which stream of stored rows; default: what was live.")] = "",
    topic: Annotated[
        str, typer.Option(help="Not from ClickHouse but from this topic of window rows: tailrace.aggregates.")
    ] = "",
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Rows of this embedded stack, running or not; with --topic, running.",
            file_okay=False,
            show_default=False,
        ),
    ] = None,
    service: Annotated[str, typer.Option(help="Service where a file names none; default: the file's name.")] = "",
    metric: Annotated[str, typer.Option(help="Metric where a file names none.")] = "",
    kind: Annotated[str, typer.Option(help="Kind where a file names none.")] = "distribution",
    time_column: Annotated[str, typer.Option(help="Which column holds the time.")] = "time",
    value_column: Annotated[str, typer.Option(help="Which column holds the value.")] = "value",
    time_unit: Annotated[str, typer.Option(help="Of plain numbers since 1970: s, ms, us or ns.")] = "s",
    duration_field: Annotated[str, typer.Option(help="Access logs: which field holds the duration.")] = "",
    format: Annotated[SummaryFormat, typer.Option("--format", "-f", help="How the summary is printed.")] = (
        SummaryFormat.TEXT
    ),
) -> None:
    """Run rules, SLOs, health checks and detectors over past data, as fast as possible, and tell nobody.

    Prints each change of an alert as a JSON line: time, rule, labels, from, to, value. With --incidents, a summary says
    how many of them were found, how fast, and how many alerts were about none. The same input gives the same output.

    Examples:

        tailrace backtest --rules rules.yaml samples.csv

        tailrace backtest --rules rules.yaml --incidents incidents.csv january.parquet february.parquet

        tailrace backtest --rules rules.yaml --from 2026-01-01T00:00:00Z --to 2026-01-02T00:00:00Z

        tailrace backtest --rules rules.yaml --topic tailrace.aggregates --from 1767225600 --to 1767312000
    """
    from tailrace_infra.cli import fail
    from tailrace_infra.config_command import load_files

    _check_usage(data, rules, first, end, topic)
    config = [record_of(item) for item in load_files(rules or []).items]
    run = Backtest({one.key: model_of(one.key, one.value) for one in config if one.value is not None})
    if not run.keep:
        fail("nothing to judge: the files have no rules, no SLOs, no health checks and no detectors")
    try:
        known = read_incidents(incidents) if incidents else None
        if data:
            options = ReplayOptions(
                service=service, metric=metric, kind=kind, time_column=time_column, value_column=value_column,
                time_unit=time_unit, duration_field=duration_field,
            )  # fmt: skip
            with _progress("reading", sum(path.stat().st_size for path in data)) as advance:
                samples = _read(data, options, set(run.keep), advance)
            steps, until_us = _judge(run, windows_of(samples), int(samples.time_us.min()), int(samples.time_us.max()))
        else:
            first_s, end_s = (
                _microseconds(text, name) // 1_000_000 for text, name in ((first, "--from"), (end, "--to"))
            )
            if end_s <= first_s:
                raise ReplayError("--to is not after --from")
            if topic:
                steps, until_us = _judge_topic(run, topic, data_dir, first_s, end_s, stream)
            else:
                steps, until_us = _judge_stored(run, data_dir, first_s, end_s, stream)
    except BrokenPipeError:  # the reader of what is printed has seen enough
        raise
    except (ReplayError, SqlError, TopicWindowsError, *EXPECTED) as error:
        fail(reason(error))
    except KeyboardInterrupt:
        fail("interrupted")
    _summarize(steps, known, until_us, format)


def _check_usage(data: list[Path] | None, rules: list[Path] | None, first: str, end: str, topic: str) -> None:
    if not rules:
        raise typer.BadParameter("give at least one --rules FILE", param_hint="--rules")
    if data and (first or end):
        raise typer.BadParameter("give files or a time range, not both", param_hint="--from")
    if data and topic:
        raise typer.BadParameter("give files or a topic, not both", param_hint="--topic")
    if topic and not (first and end):
        raise typer.BadParameter("give --from and --to as well", param_hint="--topic")
    if not data and not (first and end):
        raise typer.BadParameter("give files, or --from and --to for stored rows", param_hint="DATA")


# -- what is judged ---------------------------------------------------------------------------------------


def _read(paths: Sequence[Path], options: ReplayOptions, metrics: set[str], advance: Callable[[int], None]) -> Samples:
    """The samples of these metrics in all of the files.

    Raises:
        ReplayError: a file cannot be read; nothing of it is about these metrics; too many samples.
    """
    catalogue = Catalogue(", ".join(map(str, paths)))
    found: list[Any] = []
    count = done = negative = 0
    wanted = counts = np.empty(0, np.bool_)
    for path in paths:
        source = FileBytes.of(str(path))
        bad = BadLines(str(path), MAX_BAD_RATIO)
        for block, position in read_blocks(source, options, catalogue, bad):
            new = catalogue.series[wanted.size :]
            wanted = np.append(wanted, np.array([one.metric in metrics for one in new], np.bool_))
            counts = np.append(counts, np.array([one.kind in COUNTERS for one in new], np.bool_))
            chosen = block.rows(wanted[block.series])
            refused = counts[chosen.series] & (chosen.value < 0)
            if refused.any():
                negative += int(refused.sum())
                chosen = chosen.rows(~refused)
            count += chosen.value.size
            if count > MAX_SAMPLES:
                raise ReplayError(
                    f"{path}: more than {MAX_SAMPLES:,} samples of the metrics of the rules; all are held in memory: "
                    "give fewer files at a time, or store them and use --from and --to"
                )
            found.append(chosen)
            advance(done + position)
        bad.finish()
        for line in bad.examples:
            shown = visible(f"{path}: line {line.line}: {line.reason}: {line.text}", one_line=True)
            stderr.print(shown, style="yellow", markup=False)
        if bad.total:
            stderr.print(f"{path}: {bad.total:,} of {bad.lines:,} lines left out", style="yellow", markup=False)
        done += source.size
    if negative:
        stderr.print(f"{negative:,} negative values of counters left out", style="yellow")
    if not count:
        there = ", ".join(sorted({one.metric for one in catalogue.series})[:20]) or "none"
        raise ReplayError(f"no samples of the metrics of the rules ({', '.join(sorted(metrics))}); found: {there}")
    services = [catalogue.services[number] for number in catalogue.service_of]
    columns = (np.concatenate([getattr(block, name) for block in found]) for name in ("time_us", "series", "value"))
    return Samples(list(zip(services, catalogue.series, strict=True)), *columns)


def _judge_stored(
    run: Backtest, data_dir: Path | None, first_s: int, end_s: int, stream: str
) -> tuple[list[Step], int]:
    from tailrace_infra.cli import DATA_DIR, load_settings

    sketched = [metric for metric, keep in run.keep.items() if keep.sketches_us]
    with (
        server(load_settings(), data_dir or DATA_DIR, data_dir is not None) as settings,
        connect(settings.clickhouse) as client,
    ):
        rows = stored_windows(client, run.keep, sketched, first_s, end_s, stream)
        steps, until_us = _judge(run, rows, first_s * 1_000_000, end_s * 1_000_000)
    if until_us == first_s * 1_000_000:
        raise SqlError(f"no rows of {', '.join(sorted(run.keep))} are stored of that time and stream {stream!r}")
    return steps, until_us


def _judge_topic(
    run: Backtest, topic: str, data_dir: Path | None, first_s: int, end_s: int, stream: str
) -> tuple[list[Step], int]:
    from tailrace_infra.cli import reach_kafka, resolved_settings

    settings = resolved_settings(data_dir)
    kafka = reach_kafka(settings.kafka)
    try:
        found = TopicWindows(
            kafka.client(), topic, run.keep, first_s, end_s, stream=stream, early_s=settings.windows.max_future_s
        )
        with _progress("reading", found.total) as advance:
            found.read(advance)
    except KafkaException as error:
        raise TopicWindowsError(f"--topic {topic}: {kafka_reason(kafka, error)}") from error
    except TopicWindowsError as error:
        raise TopicWindowsError(f"--topic {topic}: {error}") from error
    for example in found.examples:
        stderr.print(visible(example), style="yellow", markup=False, soft_wrap=True)
    if found.unreadable:
        stderr.print(f"{topic}: {found.unreadable:,} of {found.records:,} records left out", style="yellow")
    if found.clipped:
        stderr.print(f"{topic}: older records are deleted, some may have been of this time", style="yellow")
    steps, until_us = _judge(run, found.batches(), first_s * 1_000_000, end_s * 1_000_000)
    if until_us == first_s * 1_000_000:
        raise TopicWindowsError(
            f"--topic {topic}: no rows of {', '.join(sorted(run.keep))} of that time and stream {stream!r} in the "
            f"{found.records:,} records read"
        )
    return steps, until_us


def _judge(run: Backtest, windows: Iterable[Any], first_us: int, last_us: int) -> tuple[list[Step], int]:
    """Prints each step as it happens; returns them, and the time that was reached."""
    steps: list[Step] = []
    until_us = first_us
    with _progress("judging", last_us - first_us) as advance:
        for rows in windows:
            for step in run.feed(rows):
                steps.append(step)
                sys.stdout.write(_line(step))
            if rows.num_rows:
                until_us = rows.column("window_start")[-1].cast(pa.int64()).as_py() * 1_000_000 + 10_000_000
            advance(until_us - first_us)
    return steps, until_us


def _line(step: Step) -> str:
    shown = {
        "time": _time(step.time_us), "rule": step.rule, "labels": dict(step.labels),
        "from": step.before, "to": step.after, "value": step.value,
    }  # fmt: skip
    return json.dumps(shown, ensure_ascii=False) + "\n"


def _time(t_us: int) -> str:
    return time_of(t_us).isoformat().replace("+00:00", "Z")


# -- incidents --------------------------------------------------------------------------------------------


def read_incidents(path: Path) -> list[Incident]:
    """The incidents of a CSV file: `start` and `end`, optionally `name` and `labels` (`service=a;zone=b`); any other
    column is a label, where it is not empty.

    Raises:
        ReplayError: it is not such a file; names the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in ("start", "end") if name not in (reader.fieldnames or ())]
            if missing:
                raise ReplayError(
                    f"{path}: no column {missing[0]!r}. Incidents have the columns start and end, may have name and "
                    "labels, and any other column is a label"
                )
            return [_incident(row, f"{path}:{reader.line_num}") for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReplayError(f"{path} cannot be read as CSV: {error}") from error


def _incident(row: dict[str | None, Any], place: str) -> Incident:
    if None in row or None in row.values():
        raise ReplayError(f"{place}: another number of columns than the header has")
    start_us, end_us = (_microseconds(row[name], f"{place}: {name}") for name in ("start", "end"))
    if end_us < start_us:
        raise ReplayError(f"{place}: the incident ends before it starts")
    labels = {name: value for name, value in row.items() if name and name not in _INCIDENT_COLUMNS and value}
    for pair in filter(None, (one.strip() for one in (row.get("labels") or "").split(";"))):
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise ReplayError(f"{place}: labels: {pair!r} is not of the form name=value; several are parted by ;")
        labels[name.strip()] = value.strip()
    return Incident(start_us, end_us, tuple(sorted(labels.items())), row.get("name") or "")


def _microseconds(text: str, place: str) -> int:
    times, understood = times_of(pa.array([text]), "s")
    if not understood[0] or times[0] < 0:
        raise ReplayError(f"{place}: {text!r} is no time: RFC 3339 with a zone (2026-01-01T00:00:00Z), or Unix seconds")
    return int(times[0])


# -- the summary ------------------------------------------------------------------------------------------


def _summarize(steps: list[Step], known: list[Incident] | None, until_us: int, format: SummaryFormat) -> None:
    active = active_times(steps, until_us)
    if known is None:
        found: dict[str, Any] = {"alerts": len(active)}
    else:
        found = score(active, known).summary()
    found["still_active"] = len(active) - sum(step.after == "resolved" for step in steps)
    found["until"] = _time(until_us)
    if format is SummaryFormat.JSON:
        sys.stdout.write(json.dumps({"summary": found}, ensure_ascii=False) + "\n")
        return
    for name, value in found.items():
        shown = ", ".join(value) or "-" if isinstance(value, list) else "-" if value is None else value
        stderr.print(f"{name:<26}{shown}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    columns = (TextColumn(what), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(what, total=max(1, total))
        yield lambda done: progress.update(task, completed=done)
