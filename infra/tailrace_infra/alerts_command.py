"""`tailrace alerts`: see alerts, and say what is done about them."""

import getpass
import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Self

import typer
from confluent_kafka import Consumer, KafkaException, TopicPartition
from pydantic import ValidationError
from tailrace_flows.settings import KafkaSettings, Settings
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, time_of
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.cloudevents import command_message, read_event
from tailrace_schemas.config import parse_duration
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.kafka import KafkaWriter, about, is_hopeless

from tailrace_infra.errors import EXPECTED, clickhouse_reason, kafka_reason
from tailrace_infra.output import Format, write_rows
from tailrace_infra.visible import json_visible

__all__ = ["ask", "new_command", "register"]

USUAL_S: Final = 2.0
"""A flow answers a command within a second or two."""
ANSWER_S: Final = 15.0
"""After this time it is not running."""

alerts_app = typer.Typer(help="See alerts, and say what is done about them.", no_args_is_help=True)

_WHOLE_ID: Final = re.compile("[0-9a-f]{16}")
AlertId = Annotated[str, typer.Argument(help="The alert's id; its first characters will do.")]
Message = Annotated[str, typer.Option("--message", "-m", help="Kept with the alert.")]
Author = Annotated[str | None, typer.Option("--author", help="Who says so.", show_default="you")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]

_LIST = """
SELECT id, severity, status, name, service, labels, current_value, started_at, description
FROM alerts
WHERE {where}
ORDER BY indexOf(['critical', 'error', 'warning', 'info'], severity), started_at DESC
LIMIT {{limit:UInt32}}
"""
_SHOW = """
SELECT time, transition, status, reason, current_value, threshold, acknowledged_by, resolved_by, description,
       annotations
FROM alert_events WHERE alert_id = {id:String} ORDER BY sequence, time
"""


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(alerts_app, name="alerts")


@alerts_app.command("list")
def list_alerts(
    every: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show the alerts that are active or acknowledged, the gravest first.

    Examples:

        tailrace alerts list

        tailrace alerts list --all --format json
    """
    where = "1" if every else "status != 'resolved'"
    write_rows(*ask(data_dir, _LIST.format(where=where), {"limit": limit}), format)


@alerts_app.command("show")
def show(alert: AlertId, data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Show the life of one alert, event by event.

    Examples:

        tailrace alerts show 3f9c2a1b
    """
    settings = _settings(data_dir)
    columns, rows = _query(settings, _SHOW, {"id": _whole_id(settings, alert)})
    write_rows(columns, rows, format)


@alerts_app.command("ack")
def acknowledge(alert: AlertId, message: Message = "", author: Author = None, data_dir: DataDir = None) -> None:
    """Take an alert on: it stays one alert, and nobody is called again while its condition holds.

    Examples:

        tailrace alerts ack 3f9c2a1b -m "looking into it"
    """
    _command(data_dir, alert, CommandKind.ACKNOWLEDGE, message, author)


@alerts_app.command("resolve")
def resolve(alert: AlertId, message: Message = "", author: Author = None, data_dir: DataDir = None) -> None:
    """End an alert by hand. While its condition holds it does not fire again.

    Examples:

        tailrace alerts resolve 3f9c2a1b -m "rolled back"
    """
    _command(data_dir, alert, CommandKind.RESOLVE, message, author)


@alerts_app.command("annotate")
def annotate(
    alert: AlertId,
    message: Annotated[str, typer.Argument(help="What to write on it.")],
    action: Annotated[bool, typer.Option("--action", help="It says what was done.")] = False,
    author: Author = None,
    data_dir: DataDir = None,
) -> None:
    """Write a note on an alert.

    Examples:

        tailrace alerts annotate 3f9c2a1b "restarted the pool" --action
    """
    _command(data_dir, alert, CommandKind.ANNOTATE, message, author, annotation="action" if action else "note")


@alerts_app.command("mark")
def mark(
    alert: AlertId,
    wrong: Annotated[
        bool, typer.Option("--false-positive/--not-false-positive", help="Whether it should not have fired.")
    ] = True,
    message: Message = "",
    author: Author = None,
    data_dir: DataDir = None,
) -> None:
    """Say that an alert should not have fired: counted in the accuracy of alerts. It raises a `threshold: auto`.

    Examples:

        tailrace alerts mark 3f9c2a1b --false-positive -m "load test"
    """
    _command(data_dir, alert, CommandKind.MARK, message, author, false_positive=wrong)


@alerts_app.command("silence")
def silence(
    alert: AlertId,
    duration: Annotated[str, typer.Option("--for", help="How long: 30m, 2h, 1d.")] = "1h",
    end: Annotated[bool, typer.Option("--end", help="End the silence instead.")] = False,
    message: Message = "",
    author: Author = None,
    data_dir: DataDir = None,
) -> None:
    """Tell nobody of an alert for a while. It goes on being evaluated and stored.

    Examples:

        tailrace alerts silence 3f9c2a1b --for 2h -m "known, fix is out tonight"

        tailrace alerts silence 3f9c2a1b --end
    """
    try:
        seconds = parse_duration(duration)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    if end:
        _command(data_dir, alert, CommandKind.UNSILENCE, message, author)
    else:
        _command(data_dir, alert, CommandKind.SILENCE, message, author, duration_s=seconds)


@alerts_app.command("watch")
def watch(
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds; default: until Ctrl-C.")] = None,
    data_dir: DataDir = None,
) -> None:
    """Print alert events as they come, a JSON object a line, as they are on the topic.

    Examples:

        tailrace alerts watch | jq '.alert.name'
    """
    from tailrace_infra.cli import fail, reach_kafka

    kafka = reach_kafka(_settings(data_dir).kafka)
    try:
        with _EventTail(kafka) as tail:
            for event in tail.events(duration):
                sys.stdout.write(json_visible(event.model_dump_json()) + "\n")
                sys.stdout.flush()
    except KafkaException as error:
        fail(kafka_reason(kafka, error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def ask(data_dir: Path | None, query: str, parameters: dict[str, Any]) -> tuple[list[str], list[Any]]:
    """Columns and rows of a query; ends the command where ClickHouse does not answer."""
    return _query(_settings(data_dir), query, parameters)


def _settings(data_dir: Path | None) -> Settings:
    from tailrace_infra.cli import resolved_settings

    return resolved_settings(data_dir)


def _query(settings: Settings, query: str, parameters: dict[str, Any]) -> tuple[list[str], list[Any]]:
    from tailrace_infra.cli import fail

    try:
        with connect(settings.clickhouse) as client:
            found = client.query(query, parameters=parameters)
    except (ValueError, *EXPECTED) as error:
        fail(clickhouse_reason(settings.clickhouse, error))
    return list(found.column_names), list(found.result_rows)


def _whole_id(settings: Settings, start: str) -> str:
    """The one alert whose id begins so; ends the command where there is none, or several."""
    from tailrace_infra.cli import fail

    _, rows = _query(settings, "SELECT id FROM alerts WHERE startsWith(id, {start:String}) LIMIT 2", {"start": start})
    if len(rows) != 1:
        fail(f"{'no alert has' if not rows else 'several alerts have'} an id that begins with {start!r}")
    return str(rows[0][0])


def new_command(kind: CommandKind, about: str, message: str, author: str | None, **more: Any) -> Command:
    """A command of this moment; ends ours where a text is too long, or a duration is none."""
    from tailrace_infra.cli import fail

    try:
        return Command(
            id=uuid.uuid4().hex, kind=kind, alert_id=about, time=time_of(now_us()), author=author or _user(),
            message=message, **more,
        )  # fmt: skip
    except ValidationError as error:
        fail("; ".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors()))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, ImportError, OSError):  # in a container a user often has a number and no name
        return f"uid {os.getuid()}"


def _command(
    data_dir: Path | None, alert: str, kind: CommandKind, message: str, author: str | None, **more: Any
) -> None:
    """Sends the command and waits for its answer, which it prints."""
    from tailrace_infra.cli import complain, fail, reach_kafka

    settings = _settings(data_dir)
    # One that is whole is not asked for: ClickHouse may be away, and the flow judges it itself.
    alert_id = alert if _WHOLE_ID.fullmatch(alert) else _whole_id(settings, alert)
    command = new_command(kind, alert_id, message, author, **more)
    kafka, cause = reach_kafka(settings.kafka), f"command:{command.id}"
    try:
        with _EventTail(kafka) as tail:
            sent = command_message(command)
            writer = KafkaWriter(kafka.client())
            writer.write(kafka.topics.commands, sent.key, sent.value, sent.headers)
            writer.flush()
            event = next((one for one in tail.events(USUAL_S) if one.cause == cause), None)
            if event is None:
                complain("sent; waiting for the flow to answer ...")
                event = next((one for one in tail.events(ANSWER_S - USUAL_S) if one.cause == cause), None)
    except KafkaException as error:
        fail(kafka_reason(kafka, error))
    if event is None:
        fail(f"no answer within {ANSWER_S:.0f} s: is `tailrace run alerts` (or `tailrace up`) running?")
    if event.reason:
        fail(event.reason)
    complain(f"{event.transition}: {event.alert.name if event.alert else alert}")


class _EventTail:
    """Reads the alerts topic from where it ends when this is made."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._topic = topic = kafka.topics.alerts
        self._consumer = Consumer(
            {**kafka.client(), "group.id": "tailrace-alerts-command", "enable.auto.commit": False, "log_level": 0}
        )
        found = self._consumer.list_topics(topic, ANSWER_S).topics[topic]
        if found.error is not None:
            raise about(topic, found.error)
        places = [TopicPartition(topic, number) for number in found.partitions]
        for place in places:
            place.offset = self._consumer.get_watermark_offsets(place, ANSWER_S)[1]
        self._consumer.assign(places)

    def events(self, seconds: float | None) -> Iterator[AlertEvent]:
        """What comes within so many seconds, or without end."""
        until_s = None if seconds is None else monotonic_s() + seconds
        while until_s is None or monotonic_s() < until_s:
            for message in self._consumer.consume(100, 0.1):
                error = message.error()
                if error is not None:
                    if is_hopeless(error):
                        raise about(self._topic, error)
                    continue  # librdkafka goes on by itself
                with suppress(ValueError):  # not an event: the flow makes it a dead letter
                    yield read_event(message.value() or b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()
