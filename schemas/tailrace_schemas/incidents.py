"""Incidents: what alerts of one service add up to. Field names follow document 001's `SLAIncident` in snake_case.

Needs pydantic; a service that embeds a producer does not load this.
"""

from enum import StrEnum
from hashlib import blake2b

from pydantic import AwareDatetime, BaseModel, ConfigDict

__all__ = ["Impact", "Incident", "IncidentStatus", "Stretch", "incident_id"]


class Impact(StrEnum):
    """How bad an incident is: that of its gravest alert (warning, error, critical)."""

    MINOR = "minor"
    MAJOR = "major"
    CRITICAL = "critical"


class IncidentStatus(StrEnum):
    """Where an incident is in its life."""

    OPEN = "open"
    RESOLVED = "resolved"
    WITHDRAWN = "withdrawn"
    """It is part of another now, or there never was one: an event told of it came late."""


class Stretch(BaseModel):
    """A stretch of time; still going on without an end."""

    model_config = ConfigDict(frozen=True)

    start: AwareDatetime
    end: AwareDatetime | None = None


class Incident(BaseModel):
    """One incident, as it stands after an alert event. A higher version of the same id replaces it."""

    model_config = ConfigDict(frozen=True)

    id: str
    service: str
    status: IncidentStatus
    severity: Impact
    start_time: AwareDatetime
    end_time: AwareDatetime | None = None
    description: str = ""
    """That of its gravest alert; of several the first."""
    impact: str = ""
    resolution: str = ""
    """What a person wrote down as such, or how its last alert ended."""
    alerts: tuple[str, ...] = ()
    """Their ids, by when they began."""
    false_positives: int = 0
    """How many of them a person marked so; with all of them it is no incident that counts."""
    downtime: tuple[Stretch, ...] = ()
    """When an alert of severity critical was active."""
    acknowledged_at: AwareDatetime | None = None
    acknowledged_by: str | None = None
    interventions: int = 0
    """What people did by hand: annotations that are actions or resolutions, and alerts resolved by command."""
    version: int = 0

    @property
    def counts(self) -> bool:
        """Whether it is one: not withdrawn, nor a false alarm as a whole."""
        return self.status is not IncidentStatus.WITHDRAWN and self.false_positives < len(self.alerts)


def incident_id(service: str, start_us: int) -> str:
    """16 hexadecimal digits, equal on every replay."""
    return blake2b(repr(("incident", service, start_us)).encode(), digest_size=8).hexdigest()
