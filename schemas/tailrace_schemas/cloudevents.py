"""JSON messages of the alerts, commands and notifications topics, with CloudEvents' attributes as Kafka headers.

Source: CloudEvents 1.0, Kafka protocol binding 1.0.2, "binary content mode".
"""

from datetime import datetime
from math import isfinite
from typing import Final, NamedTuple

from tailrace_schemas.alerts import AlertEvent, Command, time_of
from tailrace_schemas.notifications import Notification
from tailrace_schemas.samples import MAX_TIME_US, MIN_TIME_US

__all__ = [
    "Message", "command_message", "event_message", "notification_message", "read_command", "read_event",
    "read_notification",
]  # fmt: skip

MAX_BYTES: Final = 1_000_000
"""Of a message that is read, as of one that Kafka takes by default."""
MAX_SEQUENCE: Final = 2**31
"""Of an alert's events: one more has a place in 32 bits."""
_FIRST: Final = time_of(MIN_TIME_US)
_LAST: Final = time_of(MAX_TIME_US)


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
    event = AlertEvent.model_validate_json(value)
    alert = event.alert
    if event.sequence > MAX_SEQUENCE:
        raise ValueError(f"the sequence is {event.sequence}, more than {MAX_SEQUENCE}")
    if alert is not None:
        if alert.threshold is not None and not (isfinite(alert.threshold.value) and isfinite(alert.threshold.duration)):
            raise ValueError("the threshold is no finite number")
        _check_times(alert.timestamp, alert.acknowledged_at, alert.resolved_at)
        _check_times(*(one.timestamp for one in alert.annotations))
    _check_times(event.time)
    return event


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
    command = Command.model_validate_json(value)
    _check_times(command.time)
    return command


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


def _check_times(*times: datetime | None) -> None:
    """Sums and zones of times at the ends of the calendar have no place in it."""
    for one in times:
        if one is not None and not _FIRST <= one <= _LAST:
            raise ValueError(f"the time {one.isoformat()} is not within {_FIRST:%Y-%m-%d} and {_LAST:%Y-%m-%d}")


def _check_size(value: bytes) -> None:
    if len(value) > MAX_BYTES:
        raise ValueError(f"the message has {len(value)} bytes, more than {MAX_BYTES}")
