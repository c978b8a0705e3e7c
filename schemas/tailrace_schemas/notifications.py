"""What the dispatcher decided to tell a receiver: JSON on the notifications topic.

Needs pydantic; a service that embeds a producer does not load this.
"""

from collections.abc import Iterable
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from tailrace_schemas.alerts import Alert

__all__ = ["Notification", "NotifiedAlert", "Reason", "json_schema", "notification_id"]


class Reason(StrEnum):
    """Why the receiver is told now."""

    FIRST = "first"
    """Something of the group fires, and the receiver has not heard of the group, or heard that all was over."""
    CHANGED = "changed"
    """Something fires that the receiver has not heard of, or something that fired is over."""
    RESOLVED = "resolved"
    """All is over."""
    REPEAT = "repeat"
    """Nothing has changed for `repeat_interval`."""
    ESCALATION = "escalation"
    """Nobody has acknowledged it in time."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)  # a field that a later version adds does not stop an older subscriber


class NotifiedAlert(_Model):
    """One alert of the group."""

    firing: bool
    """What the receiver is to take it for: a flapping alert counts as firing until it is calm."""
    flapping: bool = False
    alert: Alert


class Notification(_Model):
    """One message of the notifications topic; key = group key.

    It has all of the group that fires, so a later one of the same group and receiver supersedes an earlier one, but for
    two things: that an alert is over is said once, and a step of an escalation is about some alerts only. Sent again
    after a crash it has the same id.
    """

    id: str
    receiver: str
    team: str = ""
    """The team through which the receiver was chosen, if by one."""
    status: Literal["firing", "resolved"]
    reason: Reason
    step: int | None = None
    """Of an escalation: which step of its policy, from 1."""
    time: AwareDatetime
    """Wall time of the decision."""
    group_key: str
    """The route and the group's labels: the same for all notifications about one thing."""
    group_labels: dict[str, str] = Field(default_factory=dict)
    common_labels: dict[str, str] = Field(default_factory=dict)
    """Labels, with alertname, severity and source, on which all alerts agree."""
    firing: int = Field(ge=0)
    """How many alerts of the group fire; also those for which there was no room."""
    resolved: int = Field(ge=0)
    truncated: int = Field(0, ge=0)
    """How many alerts are not in `alerts`: the gravest and newest are."""
    alerts: tuple[NotifiedAlert, ...]


def notification_id(group_key: str, receiver: str, parts: Iterable[str]) -> str:
    """16 hexadecimal digits, equal on every replay that leads to the same contents."""
    return blake2b(repr([group_key, receiver, *parts]).encode(), digest_size=8).hexdigest()


def json_schema() -> dict[str, Any]:
    """The JSON Schema, as published in `json/Notification.schema.json`."""
    schema = Notification.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
