"""`tailrace replay`: a file through Kafka and the flow into ClickHouse."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from tailrace_flows.settings import Settings
from tailrace_producers.replay import CommittedOffsets, ReplayError, ReplayOptions, ReplayResult, replay, wait_stored
from tailrace_producers.replay import Progress as Position
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.clickhouse import connect

from tailrace_infra.errors import EXPECTED, reason
from tailrace_infra.output import Format, write_rows
from tailrace_infra.stack import embedded_stack, names_servers, running_endpoints

__all__ = ["register"]

log = logging.getLogger(__name__)
stderr = Console(stderr=True)

DATA_DIR = Path("tailrace-data")
STORED_TIMEOUT_S = 120.0
STORED_POLL_S = 0.25

_STORED = """
SELECT name, sum(value) AS total FROM counters
WHERE stream = {stream:String} AND service IN {services:Array(String)} GROUP BY name
"""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("replay")(replay_file)


def replay_file(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="CSV, Parquet or access log; .gz, .zst, .bz2.")
    ],
    embedded: Annotated[bool, typer.Option("--embedded", help="Start broker, flow and ClickHouse for this.")] = False,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            help="Of an embedded stack, running or not. [default: tailrace-data]", file_okay=False, show_default=False
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(min=0, help="1: real time, 60: a minute a second, 0: as fast as possible.")
    ] = 0,
    stream: Annotated[str, typer.Option(help="Name of the stream; default: a hash of file and options.")] = "",
    file_format: Annotated[str, typer.Option("--file-format", help="auto, csv, parquet or access_log.")] = "auto",
    service: Annotated[str, typer.Option(help="Service where the file names none; default: the file's name.")] = "",
    metric: Annotated[str, typer.Option(help="Metric where the file names none.")] = "",
    kind: Annotated[
        str, typer.Option(help="Kind: distribution, counter, cumulative, gauge or event, where the file names none.")
    ] = "distribution",
    unit: Annotated[str, typer.Option(help="Unit (UCUM: s, By, 1) where the file names none.")] = "",
    time_column: Annotated[str, typer.Option(help="Which column holds the time.")] = "time",
    value_column: Annotated[str, typer.Option(help="Which column holds the value.")] = "value",
    metric_column: Annotated[str, typer.Option(help="Which column holds the metric's name.")] = "metric",
    service_column: Annotated[str, typer.Option(help="Which column holds the service's name.")] = "service",
    count_column: Annotated[str, typer.Option(help="Which column says for how many equal samples a row stands.")] = "",
    time_unit: Annotated[str, typer.Option(help="Of plain numbers since 1970: s, ms, us or ns.")] = "s",
    attribute_columns: Annotated[
        str, typer.Option(help="Comma-separated; default: every other column.", show_default=False)
    ] = "*",
    log_format: Annotated[str, typer.Option(help="nginx log_format or Apache LogFormat.")] = "",
    duration_field: Annotated[str, typer.Option(help="Access logs: which field holds the duration.")] = "",
    duration_unit: Annotated[str, typer.Option(help="Access logs: s, ms or us.")] = "",
    path_segments: Annotated[int, typer.Option(help="Access logs: path segments kept as url.path.")] = 1,
    max_bad_ratio: Annotated[float, typer.Option(min=0, max=1, help="More unreadable lines are an error.")] = 0.1,
    format: Annotated[Format, typer.Option("--format", "-f", help="How the summary is printed.")] = Format.TABLE,
) -> None:
    """Push a file's samples through Kafka; with --embedded, store them too and return when they are.

    The CSV columns are time (RFC 3339 or Unix seconds), metric, value; optionally kind, unit, service; every other
    column is an attribute. The same file twice leaves the same rows.

    Examples:

        tailrace replay samples.csv --embedded --data-dir /tmp/demo

        tailrace replay access.log.gz --embedded --duration-field request_time

        TAILRACE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 tailrace replay samples.parquet --speed 1
    """
    from tailrace_infra.cli import fail, load_settings, reach_kafka

    try:
        options = ReplayOptions(
            format=file_format, service=service, metric=metric, kind=kind, unit=unit, time_column=time_column,
            value_column=value_column, metric_column=metric_column, service_column=service_column,
            count_column=count_column, time_unit=time_unit,
            attribute_columns=None if attribute_columns == "*" else tuple(filter(None, attribute_columns.split(","))),
            log_format=log_format, duration_field=duration_field, duration_unit=duration_unit,
            path_segments=path_segments,
        )  # fmt: skip
        with _target(load_settings(), embedded, data_dir) as (settings, paced):
            reach_kafka(settings.kafka)
            result = _push(file, settings, options, stream, speed, max_bad_ratio, paced)
            counted = _await_rows(settings, result) if paced else {}
    except (ReplayError, *EXPECTED) as error:
        fail(reason(error))
    except KeyboardInterrupt:
        fail("interrupted; run the same command again to go on: what was sent is recognised")
    _report(result, counted, format)


@contextmanager
def _target(settings: Settings, embedded: bool, data_dir: Path | None) -> Iterator[tuple[Settings, bool]]:
    """The settings to push to, and whether it is an embedded stack, which needs pacing.

    Raises:
        ReplayError: no stack runs on the directory given, and none is to be started.
    """
    if not embedded and data_dir is None and names_servers(settings):
        yield settings, False
        return
    directory = data_dir or DATA_DIR
    running = running_endpoints(directory)
    if running is not None:
        yield running.apply(settings), True
    elif embedded:
        with embedded_stack(
            settings, directory, clickhouse_port=0, say=lambda text: stderr.print(text, style="dim")
        ) as stack:
            yield stack.settings, True
    elif data_dir is not None:
        raise ReplayError(f"no stack runs on {data_dir}: --embedded starts one for this file")
    else:
        yield settings, False


def _push(
    file: Path, settings: Settings, options: ReplayOptions, stream: str, speed: float, max_bad_ratio: float, paced: bool
) -> ReplayResult:
    with _bar("pushing") as advance:

        def progress(position: Position) -> None:
            advance(position.position, position.size)

        return replay(
            str(file),
            bootstrap_servers=settings.kafka.bootstrap_servers,
            options=options,
            topics=settings.kafka.topics,
            stream=stream,
            speed=speed,
            max_bad_ratio=max_bad_ratio,
            pace=paced,
            group=settings.kafka.group_id,
            properties={key: value for key, value in settings.kafka.client().items() if key != "bootstrap.servers"},
            progress=progress,
        )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; nothing elsewhere."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True, disable=not stderr.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _await_rows(settings: Settings, result: ReplayResult) -> dict[str, int]:
    """Waits until the flow has read everything and every stream has ended in ClickHouse; what was counted of it.

    Raises:
        ReplayError: the flow makes no progress.
    """
    with CommittedOffsets(
        settings.kafka.bootstrap_servers, result.topic, settings.kafka.group_id, settings.kafka.client()
    ) as committed:
        wait_stored(result, committed)
    until_s = monotonic_s() + STORED_TIMEOUT_S
    with connect(settings.clickhouse) as client:
        while True:
            parameters = {"stream": result.stream, "services": list(result.services)}
            counted = {name: int(total) for name, total in client.query(_STORED, parameters=parameters).result_rows}
            if counted.get("ended", 0) >= len(result.services):
                return counted
            if monotonic_s() > until_s:
                raise ReplayError("the flow has read everything but its rows do not appear in ClickHouse; see its log")
            threading.Event().wait(STORED_POLL_S)


def _report(result: ReplayResult, counted: dict[str, int], format: Format) -> None:
    for bad in result.bad_examples:
        log.warning("line %d: %s: %s", *bad)
    if result.future_samples:
        log.warning("%d samples lie in the future: the flow refuses them", result.future_samples)
    rows = [
        ("stream", result.stream),
        ("samples_sent", result.samples),
        ("services", len(result.services)),
        *((f"bad_lines.{reason}", count) for reason, count in result.bad_lines.items()),
        *((name, total) for name, total in sorted(counted.items()) if name != "ended"),
    ]
    write_rows(["figure", "value"], rows, format)
