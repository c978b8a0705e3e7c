"""`tailrace anomalies`: series that stood out from their own past, what was learned of them, and feedback on flags."""

from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from confluent_kafka import KafkaException
from tailrace_schemas.alerts import CommandKind
from tailrace_schemas.cloudevents import command_message
from tailrace_schemas.config import parse_duration
from tailrace_sinks.kafka import KafkaWriter

from tailrace_infra.alerts_command import ask, new_command
from tailrace_infra.compare_command import compare_event
from tailrace_infra.errors import kafka_reason
from tailrace_infra.output import Format, write_rows

__all__ = ["register"]

anomalies_app = typer.Typer(help="Series that stood out from their own past.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]

_LIST: Final = """
SELECT id, window_end, detector, service, labels, score, flag, reason, marked_by
FROM anomalies
WHERE window_end > now() - {seconds:UInt32} AND (flag OR {scores:Bool})
ORDER BY window_end DESC, detector, labels LIMIT {limit:UInt32}
"""
# A detector remembers its latest 100 flags (tailrace_flows.core.alerting.units.MARKABLE).
_FIND: Final = """
SELECT id, flag, marked_by, later
FROM (SELECT *, sum(flag) OVER (PARTITION BY detector ORDER BY window_end DESC, id
                                ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS later FROM anomalies)
WHERE startsWith(id, {start:String}) LIMIT 2
"""
MARKABLE: Final = 100
_BASELINES: Final = """
SELECT id, source, labels, time, points, warming_up, expected, low, high, bar, held
FROM baselines WHERE {source:String} IN ('', source, splitByChar(':', source, 2)[2])
ORDER BY source, labels LIMIT {limit:UInt32}
"""
_FIND_BASELINE: Final = "SELECT id, source, labels FROM baselines WHERE startsWith(id, {start:String}) LIMIT 2"


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    anomalies_app.command("compare")(compare_event)
    app.add_typer(anomalies_app, name="anomalies")


@anomalies_app.command("list")
def list_anomalies(
    since: Annotated[str, typer.Option("--since", help="How far back: 30m, 24h, 7d.")] = "24h",
    scores: Annotated[bool, typer.Option("--scores", help="Points with a score of 0.9 or more too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show what was flagged, the latest first.

    Examples:

        tailrace anomalies list

        tailrace anomalies list --since 1h --scores --format json
    """
    try:
        seconds = round(parse_duration(since))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--since") from None
    write_rows(*ask(data_dir, _LIST, {"seconds": min(seconds, 10**9), "scores": scores, "limit": limit}), format)


@anomalies_app.command("feedback")
def feedback(
    anomaly: Annotated[str, typer.Argument(help="The anomaly's id; its first characters will do.")],
    verdict: Annotated[Literal["false-positive"], typer.Argument(help="What it was.")],
    message: Annotated[str, typer.Option("--message", "-m", help="Kept with the command.")] = "",
    author: Annotated[str | None, typer.Option("--author", help="Who says so.", show_default="you")] = None,
    data_dir: DataDir = None,
) -> None:
    """Say that a flag was a false alarm: its series needs more evidence for the next one, for some weeks.

    Takes effect with the detector's next evaluation; `tailrace anomalies list` then says who marked it.

    Examples:

        tailrace anomalies feedback 3f9c2a1b false-positive -m "nightly backup"
    """
    from tailrace_infra.cli import complain, fail

    _, rows = ask(data_dir, _FIND, {"start": anomaly})
    if len(rows) != 1:
        fail(f"{'no anomaly has' if not rows else 'several anomalies have'} an id that begins with {anomaly!r}")
    whole, flag, marked_by, later = rows[0]
    if not flag:
        fail("it was not flagged, so there is nothing to be wrong about")
    if marked_by:
        fail(f"{marked_by} marked it already")
    if later >= MARKABLE:
        fail(f"its detector has flagged {later} others since; it remembers the latest {MARKABLE}")
    _send(data_dir, CommandKind.FEEDBACK, whole, message, author)
    complain(f"{verdict} sent: {whole}; the detector takes it with its next evaluation")


@anomalies_app.command("baseline")
def baseline(
    source: Annotated[
        str, typer.Argument(help="Only of this: a detector's name, or GROUP/ALERT of a rule with `threshold: auto`.")
    ] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 1_000,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show what was learned of each series: what is expected of it now, its band, and its bar.

    It is told every 5 minutes. `held`: for so many points the threshold has stood still, since it is passed.

    Examples:

        tailrace anomalies baseline

        tailrace anomalies baseline shop/CheckoutSlow --format json
    """
    write_rows(*ask(data_dir, _BASELINES, {"source": source, "limit": limit}), format)


@anomalies_app.command("reset")
def reset(
    baselines: Annotated[list[str], typer.Argument(help="Ids of `tailrace anomalies baseline`; their beginnings do.")],
    author: Annotated[str | None, typer.Option("--author", help="Who says so.", show_default="you")] = None,
    data_dir: DataDir = None,
) -> None:
    """Forget what was learned of series: they warm up again.

    Examples:

        tailrace anomalies reset 7be01d4c
    """
    from tailrace_infra.cli import complain, fail

    whole = []
    for start in baselines:
        _, rows = ask(data_dir, _FIND_BASELINE, {"start": start})
        if len(rows) != 1:
            fail(f"{'no baseline has' if not rows else 'several baselines have'} an id that begins with {start!r}")
        whole.append(rows[0])
    for found, source, labels in whole:
        _send(data_dir, CommandKind.RESET, found, "", author)
        of = ", ".join(f"{name}={value}" for name, value in sorted(labels.items()))
        complain(f"reset sent: {source}{f' {{{of}}}' if of else ''}")


def _send(data_dir: Path | None, kind: CommandKind, about: str, message: str, author: str | None) -> None:
    """Puts a command on its topic; ends the command where the broker does not take it."""
    from tailrace_infra.cli import fail, reach_kafka, resolved_settings

    command = new_command(kind, about, message, author)
    kafka = reach_kafka(resolved_settings(data_dir).kafka)
    sent = command_message(command)
    try:
        writer = KafkaWriter(kafka.client())
        writer.write(kafka.topics.commands, sent.key, sent.value, sent.headers)
        writer.flush()
    except KafkaException as error:
        fail(kafka_reason(kafka, error))
