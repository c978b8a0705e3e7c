"""JSON messages of the alerts, commands and notifications topics, with CloudEvents' attributes as Kafka headers.

Source: CloudEvents 1.0, Kafka protocol binding 1.0.2, "binary content mode".
"""

from datetime import datetime
from typing import Final, NamedTuple

from tailrace_schemas.alerts import AlertEvent, Command
from tailrace_schemas.notifications import Notification

__all__ = [
    "Message", "command_message", "event_message", "notification_message", "read_command", "read_event",
    "read_notification",
]  # fmt: skip

MAX_BYTES: Final = 1_000_000
"""Of a message that is read, as of one that Kafka takes by default."""


class Message(NamedTuple):
    """What is produced."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


def message(
    kind: str, identity: str, source: str, subject: str, time: datetime, value: str, *, key: str | None = None
) -> Message:
    """A message; its key is the subject unless given."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": identity,
        "ce_source": source,
        "ce_type": kind,
        "ce_subject": subject,
        "ce_time": time.isoformat(),
        "content-type": "application/json",
    }
    return Message(
        (subject if key is None else key).encode(),
        value.encode(),
        [(name, text.encode()) for name, text in headers.items()],
    )


def event_message(event: AlertEvent) -> Message:
    """For the alerts topic: `ce_type` is `tailrace.alert.active` and so on, `ce_subject` and the key the alert's id."""
    alert = event.alert
    source = f"/tailrace/{alert.source}" if alert else "/tailrace"
    subject = alert.id if alert else ""
    kind = f"tailrace.alert.{event.transition}"
    return message(kind, event.id, source, subject, event.time, event.model_dump_json())


def read_event(value: bytes) -> AlertEvent:
    """The event of a message.

    Raises:
        ValueError: it is none.
    """
    _check_size(value)
    return AlertEvent.model_validate_json(value)


def command_message(command: Command) -> Message:
    """For the commands topic: `ce_type` is `tailrace.command.acknowledge` and so on, the key the alert's id."""
    kind = f"tailrace.command.{command.kind}"
    return message(kind, command.id, "/tailrace/people", command.alert_id, command.time, command.model_dump_json())


def read_command(value: bytes) -> Command:
    """The command of a message.

    Raises:
        ValueError: it is none.
    """
    _check_size(value)
    return Command.model_validate_json(value)


def notification_message(notification: Notification) -> Message:
    """For the notifications topic: `ce_type` is `tailrace.notification.first` and so on, the key the group's."""
    kind = f"tailrace.notification.{notification.reason}"
    return message(
        kind, notification.id, "/tailrace/dispatch", notification.receiver, notification.time,
        notification.model_dump_json(), key=notification.group_key,
    )  # fmt: skip


def read_notification(value: bytes) -> Notification:
    """The notification of a message.

    Raises:
        ValueError: it is none.
    """
    _check_size(value)
    return Notification.model_validate_json(value)


def _check_size(value: bytes) -> None:
    if len(value) > MAX_BYTES:
        raise ValueError(f"the message has {len(value)} bytes, more than {MAX_BYTES}")
