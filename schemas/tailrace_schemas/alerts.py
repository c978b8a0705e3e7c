"""Alerts, the events of their lives, and the commands people give: JSON on the alerts and commands topics.

Field names of `Alert` are those of document 001 in snake_case; `active` is what Prometheus calls firing. Times are
RFC 3339 in JSON, with microseconds.

Needs pydantic; a service that embeds a producer does not load this.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from hashlib import blake2b
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "ABOUT_LEARNING", "PUBLISHED", "Alert", "AlertEvent", "Annotation", "Command", "CommandKind", "Labels", "Operator",
    "Severity", "Status", "Threshold", "Transition", "alert_id", "event_id", "json_schema", "time_of",
    "us_of",
]  # fmt: skip

_EPOCH = datetime.fromtimestamp(0, UTC)

Labels = tuple[tuple[str, str], ...]
"""Sorted by name; without the alert's name, which is the rule's."""


class Severity(StrEnum):
    """How bad. Document 002's low, medium and high are info, warning and error."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


class Status(StrEnum):
    """Where an alert is in its life. Pending ones are not alerts yet: nobody hears of them."""

    ACTIVE = "active"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"


class Operator(StrEnum):
    """How a value is compared with a threshold."""

    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    EQ = "eq"
    NE = "ne"


class Transition(StrEnum):
    """What an event tells."""

    ACTIVE = "active"
    ACKNOWLEDGED = "acknowledged"
    RESOLVED = "resolved"
    ANNOTATED = "annotated"
    MARKED = "marked"
    """As a false positive, by a person."""
    SILENCED = "silenced"
    """By a person: nobody is told of it for a while. Its alert is as its last other event left it."""
    UNSILENCED = "unsilenced"
    REJECTED = "rejected"
    """A command that could not be carried out; `reason` says why."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)  # a field that a later version adds does not stop an older subscriber


class Threshold(_Model):
    """The rule's condition."""

    operator: Operator
    value: float
    duration: float = 0
    """Seconds for which it must hold (`for`)."""


class Annotation(_Model):
    """What somebody wrote on an alert."""

    id: str
    timestamp: AwareDatetime
    author: str
    message: str
    type: Literal["note", "action", "resolution"] = "note"


class Alert(_Model):
    """One alert, as it stands after an event. Its identity is the rule, the full label set and when it began."""

    id: str
    name: str
    description: str = ""
    severity: Severity
    status: Status
    source: str
    """The rule: `rule_group/rule`, `slo/name` or `health/service`."""
    metric: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    threshold: Threshold | None = None
    current_value: float | None = None
    timestamp: AwareDatetime
    """When the condition began to hold: the end of the first window in which it did."""
    acknowledged_at: AwareDatetime | None = None
    acknowledged_by: str | None = None
    resolved_at: AwareDatetime | None = None
    resolved_by: str | None = None
    """Who resolved it; None: the condition ended by itself."""
    false_positive: bool | None = None
    tags: tuple[str, ...] = ()
    annotations: tuple[Annotation, ...] = ()


class AlertEvent(_Model):
    """One message of the alerts topic; key = alert id. The same event, sent again after a crash, has the same id."""

    id: str
    transition: Transition
    time: AwareDatetime
    """Event time: the end of the window that decided, or when a command was given."""
    cause: str
    """`window:` and its end in microseconds, or `command:` and the command's id."""
    sequence: int = Field(ge=0)
    """Counts the transitions of one alert from 0."""
    reason: str = ""
    alert: Alert | None
    """None where a rejected command named no alert that is known."""


class CommandKind(StrEnum):
    """What people can do to alerts."""

    ACKNOWLEDGE = "acknowledge"
    RESOLVE = "resolve"
    ANNOTATE = "annotate"
    MARK = "mark"
    SILENCE = "silence"
    """Nobody is told of this one alert for `duration_s`. The configuration's silences are for more than one."""
    UNSILENCE = "unsilence"
    FEEDBACK = "feedback"
    """A flag was a false alarm: `alert_id` is an anomaly's id, and no alert event answers it."""
    RESET = "reset"
    """What was learned of a series is forgotten: `alert_id` is a baseline's id, and no alert event answers it."""


ABOUT_LEARNING = frozenset({CommandKind.FEEDBACK, CommandKind.RESET})
"""Commands that are about what was learned of a series, not about an alert."""


class Command(_Model):
    """One message of the commands topic; key = alert id."""

    model_config = ConfigDict(extra="forbid")

    id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    kind: CommandKind
    alert_id: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    time: AwareDatetime
    author: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    message: Annotated[str, StringConstraints(max_length=10_000)] = ""
    annotation: Literal["note", "action", "resolution"] = "note"
    false_positive: bool = True
    """Of MARK: false takes the mark back."""
    duration_s: Annotated[float, Field(gt=0, le=366 * 86_400)] | None = None
    """Of SILENCE, which needs it: how long, from `time`."""


def alert_id(source: str, labels: Labels, active_at_us: int) -> str:
    """16 hexadecimal digits, equal on every replay."""
    return _hash([source, *(part for pair in labels for part in pair), str(active_at_us)])


def event_id(alert: str, transition: Transition, cause: str) -> str:
    """16 hexadecimal digits, equal on every replay."""
    return _hash([alert, transition.value, cause])


def _hash(parts: Iterable[str]) -> str:
    return blake2b(repr(list(parts)).encode(), digest_size=8).hexdigest()


def time_of(t_us: int) -> datetime:
    """Microseconds since the Unix epoch as a time in UTC."""
    seconds, microseconds = divmod(t_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)


def us_of(time: datetime) -> int:
    """A time as microseconds since the Unix epoch, exactly; the inverse of `time_of`."""
    return (time - _EPOCH) // timedelta(microseconds=1)


PUBLISHED: dict[str, type[BaseModel]] = {"AlertEvent": AlertEvent, "Command": Command}
"""The models whose JSON Schemas are files: `json/NAME.schema.json`."""


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a message: of AlertEvent as it is written, of Command as it may be given."""
    model = PUBLISHED[name]
    schema = model.model_json_schema(mode="serialization" if model is AlertEvent else "validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
