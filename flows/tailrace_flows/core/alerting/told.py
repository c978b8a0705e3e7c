"""What the alerts topic has of alerts that a restored state may not know, or that there is no state of.

Events are sent before the state that they come from is stored. A flow that is killed in between judges the same
windows again, and mostly finds the same alerts. Where it does not, since a service is waited for again or a rule is
gone, who was told of an alert would never hear of its end. So a restart is told what the topic's last events say. And
so is a flow that begins anew, as with a new recovery directory, of all alerts that stand: nobody else would end them.
"""

from collections.abc import Iterable
from typing import NamedTuple

from tailrace_schemas.alerts import AlertEvent, Status, Transition, us_of

__all__ = ["Told", "standing_of", "told_of"]


class Told(NamedTuple):
    """An alert, as of its last event on the topic."""

    unit: str
    """The key of the unit that it comes from: `rule_group/name`, `slo/name` or `health`."""
    event: AlertEvent
    """The last one, rejected commands apart."""
    sequence: int
    """The highest, of rejected commands too."""
    due_us: int | None
    """Event time of its last transition that an evaluation brought about: once that time has been judged again, it is
    found again or never. None: there is no such event here, so it was before the state."""
    commands: tuple[str, ...]
    """Ids of those that it has had."""


def told_of(events: Iterable[AlertEvent]) -> list[Told]:
    """The alerts of some events, in any order and as often as they come."""
    by_alert: dict[str, dict[str, AlertEvent]] = {}
    for event in events:
        if event.alert is not None:
            by_alert.setdefault(event.alert.id, {}).setdefault(event.id, event)
    found = (_told(sorted(of_one.values(), key=lambda event: event.sequence)) for of_one in by_alert.values())
    return [one for one in found if one is not None]


def standing_of(events: Iterable[AlertEvent]) -> list[Told]:
    """Those of all events that a topic has whose alert has not ended; in the order in which they are there.

    Memory: the events of what stands, and 0.1 kB for each alert that has ended.
    """
    standing: dict[str, list[AlertEvent]] = {}
    ended: set[str] = set()
    for event in events:
        if event.alert is None or event.alert.id in ended:  # also where a restart has told of it again
            continue
        if event.alert.status is Status.RESOLVED:
            ended.add(event.alert.id)
            standing.pop(event.alert.id, None)
        else:
            standing.setdefault(event.alert.id, []).append(event)
    return told_of(event for of_one in standing.values() for event in of_one)


def _told(events: list[AlertEvent]) -> Told | None:
    done = [event for event in events if event.transition is not Transition.REJECTED]
    if not done:
        return None
    judged = [us_of(event.time) for event in done if event.cause.startswith("window:")]
    commands = [event.cause.partition(":")[2] for event in events if event.cause.startswith("command:")]
    return Told(_unit(done[-1]), done[-1], events[-1].sequence, max(judged, default=None), tuple(commands))


def _unit(event: AlertEvent) -> str:
    assert event.alert is not None
    kind, _, name = event.alert.source.partition("/")
    if kind in ("slo", "health") and event.alert.name != name:  # the alerts of a rule are called as the rule is
        return kind if kind == "health" else event.alert.source
    return f"rule_group/{kind}"
