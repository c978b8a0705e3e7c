"""How well alerts found known incidents."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from tailrace_schemas.alerts import Labels, Transition, time_of

from tailrace_flows.backtest import Step

__all__ = ["Active", "Incident", "Score", "active_times", "score"]


class Incident(NamedTuple):
    """What really happened; both ends belong to it."""

    start_us: int
    end_us: int
    labels: Labels = ()
    """An alert with another value of one of these is about something else."""
    name: str = ""


class Active(NamedTuple):
    """A time during which an alert was active."""

    rule: str
    labels: Labels
    start_us: int
    end_us: int
    """Exclusive; of an alert that was still active: the end of the data."""


def active_times(steps: Iterable[Step], until_us: int) -> list[Active]:
    """When each alert was active, in the order in which they began."""
    begun: dict[str, Step] = {}
    ended: dict[str, int] = {}
    for step in steps:
        if step.after == Transition.ACTIVE:
            begun[step.alert] = step
        elif step.after == Transition.RESOLVED:
            ended[step.alert] = step.time_us
    return [Active(one.rule, one.labels, one.time_us, ended.get(key, until_us)) for key, one in begun.items()]


class Score(NamedTuple):
    """Incidents found and missed, alerts about nothing."""

    found: list[tuple[Incident, float]]
    """With the delay of detection in seconds: from the incident's start to its first alert; 0: it was active before."""
    missed: list[Incident]
    false_alarms: list[Active]
    """Alerts that were active during no incident that they may be about."""
    alerts: int

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        delays = [delay_s for _, delay_s in self.found]
        return {
            "incidents": len(self.found) + len(self.missed),
            "hits": len(self.found),
            "misses": len(self.missed),
            "missed": [_named(one) for one in self.missed],
            "alerts": self.alerts,
            "false_alarms": len(self.false_alarms),
            "detection_delay_median_s": median(delays) if delays else None,
            "detection_delay_max_s": max(delays, default=None),
        }


def _named(incident: Incident) -> str:
    start = time_of(incident.start_us).isoformat().replace("+00:00", "Z")
    return " ".join([incident.name or start, *(f"{name}={value}" for name, value in incident.labels)])


def score(active: Sequence[Active], incidents: Sequence[Incident]) -> Score:
    """Compares alerts with incidents: an incident is found when an alert that may be about it was active during it.

    Cost: alerts times incidents.
    """
    found: list[tuple[Incident, float]] = []
    missed = []
    useful: set[int] = set()
    for incident in incidents:
        about = [number for number, one in enumerate(active) if _about(one, incident)]
        useful.update(about)
        if about:
            first_us = min(active[number].start_us for number in about)
            found.append((incident, max(0, first_us - incident.start_us) / 1e6))
        else:
            missed.append(incident)
    false_alarms = [one for number, one in enumerate(active) if number not in useful]
    return Score(found, missed, false_alarms, len(active))


def _about(active: Active, incident: Incident) -> bool:
    if active.start_us > incident.end_us or active.end_us <= incident.start_us:
        return False
    labels = dict(active.labels)
    return all(labels.get(name, value) == value for name, value in incident.labels)
