"""`tailrace io-report`: what ClickHouse knows of the I/O that is tracked; and `tailrace exec`, by its name."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from tailrace_producers.io_report import CacheLine, IoReport, OperationLine

from tailrace_infra.cli import DATA_DIR, DataDir, fail, load_settings
from tailrace_infra.exec_command import HELP, main
from tailrace_infra.sql import SqlError, query_rows
from tailrace_infra.visible import json_visible, visible

__all__ = ["register"]

_OPERATIONS = """
SELECT attributes['io.operation.kind'] AS kind, attributes['io.operation.target'] AS target, sum(count) AS operations,
       sumIf(count, attributes['error.type'] != '') AS errors, sum(sum) AS total_s, total_s / operations AS mean_s,
       tailrace_quantile(0.5, bucket_index, bucket_count, scale) AS p50_s,
       tailrace_quantile(0.95, bucket_index, bucket_count, scale) AS p95_s, max(max) AS max_s
FROM windows
WHERE metric = 'io.operation.duration' AND window_start >= now() - {seconds} {service}
GROUP BY kind, target
"""
_LOOKUPS = """
SELECT attributes['cache.name'] AS cache, sumIf(increase, attributes['cache.result'] = 'hit') AS hits,
       sumIf(increase, attributes['cache.result'] = 'miss') AS misses
FROM windows
WHERE metric = 'cache.lookups' AND window_start >= now() - {seconds} {service}
GROUP BY cache
"""
_MEMORY = """
SELECT cache, sum(bytes) FROM (
    SELECT attributes['cache.name'] AS cache, argMax(last, window_start) AS bytes
    FROM windows
    WHERE metric = 'cache.memory.usage' AND window_start >= now() - least({seconds}, 60) {service}
    GROUP BY cache, service, attributes['process.pid'])
GROUP BY cache
"""
"""Of the processes that live: they tell every 5 s."""


class ReportChoice(StrEnum):
    """How a report is printed."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    as_they_are = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command("exec", help=HELP, context_settings=as_they_are)(exec_command)
    app.command("io-report")(io_report)


def exec_command(context: typer.Context) -> None:
    main(context.args)


def io_report(
    minutes: Annotated[int, typer.Option(min=1, max=10_080, help="How far back.")] = 60,
    service: Annotated[str, typer.Option(help="Of one service; default: all.", show_default=False)] = "",
    format: Annotated[ReportChoice, typer.Option("--format", "-f", help="How it is printed.")] = ReportChoice.TEXT,
    data_dir: DataDir = None,
) -> None:
    """Report tracked I/O: operations and commands by the time they took in all, caches by hits and memory.

    Examples:

        tailrace io-report --minutes 1440 --format markdown

        tailrace io-report --service shop --format json
    """

    def rows(query: str) -> Iterator[Sequence[Any]]:
        quoted = service.replace("\\", "\\\\").replace("'", "\\'")
        text = query.format(seconds=minutes * 60, service=f"AND service = '{quoted}'" if service else "")
        with query_rows(load_settings(), data_dir or DATA_DIR, text, explicit=data_dir is not None, write=False) as (
            _,
            found,
        ):
            yield from found

    try:
        operations = [OperationLine(*row) for row in rows(_OPERATIONS)]
        memory: dict[str, float] = {row[0]: row[1] for row in rows(_MEMORY)}
        caches = [CacheLine(name, int(hits), int(misses), memory.get(name)) for name, hits, misses in rows(_LOOKUPS)]
    except SqlError as error:
        fail(str(error))
    source = f"service {service}" if service else "all services"
    shown = json_visible if format is ReportChoice.JSON else visible
    typer.echo(shown(IoReport(source, minutes * 60.0, operations, caches).render(format.value)))
