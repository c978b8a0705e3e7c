"""Incidents from alert events, and the figures that they give: downtime, availability, MTTR, accuracy of alerts.

The alerts of a service (label `service`; without it the alert's source) that overlap, or follow one another within five
minutes, are one incident. Alerts of severity info are none. What is known of an alert is its event of the highest
sequence, and incidents are worked out from the alerts anew: so the order in which events of different alerts come, and
how often they come, make no difference in the end. An event that is late can join two incidents into one or part one
into two; an id that stands for nothing any more is *withdrawn*.

An incident's version counts what is known of the service's alerts; events tell all incidents of their service that
are open or younger than a day anew, so that the highest version of each is right whatever came before.

State: 2 kB an alert, kept for 7 days after its incident's end, at most 1,000 of one service. A service of which no
event came for 8 days, and whose alerts have all ended, is forgotten.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from tailrace_schemas.alerts import Alert, AlertEvent, Severity, Transition
from tailrace_schemas.incidents import Impact, Incident, IncidentStatus, Stretch, incident_id

from tailrace_flows.core.sealed import foreign

__all__ = [
    "Availability", "Incidents", "accuracy", "availability", "down_stretches", "interventions", "mean_time_to_repair_s",
]  # fmt: skip

MERGE_GAP: Final = timedelta(minutes=5)
"""An alert that begins so soon after the last one's end belongs to the same incident."""
KEPT: Final = timedelta(days=7)
"""As long as alerts can be annotated and marked."""
TOLD: Final = timedelta(days=1)
MAX_ALERTS: Final = 1000
STATE_VERSION: Final = 1

_IMPACTS: Final = {Severity.WARNING: Impact.MINOR, Severity.ERROR: Impact.MAJOR, Severity.CRITICAL: Impact.CRITICAL}
_ORDER: Final = tuple(Impact)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Known(NamedTuple):
    """An alert, as of the highest sequence that was seen."""

    sequence: int
    alert: Alert


class _Service:
    def __init__(self) -> None:
        self.alerts: dict[str, _Known] = {}
        self.forgotten = 0
        """What alerts that were dropped had added to the version."""
        self.told: dict[str, Incident] = {}
        """The incidents as last told, by id."""
        self.newest = _EPOCH
        """The time of the newest event."""

    def version(self) -> int:
        return self.forgotten + sum(one.sequence + 1 for one in self.alerts.values())

    def drop(self, one: _Known) -> None:
        self.forgotten += one.sequence + 1
        del self.alerts[one.alert.id]


class Incidents:
    """All incidents. Called with events as they come; time is theirs."""

    def __init__(self, state: Any = None) -> None:
        """Anew, or from `snapshot`.

        Raises:
            ValueError: the state is of another format.
        """
        self._services: dict[str, _Service] = {}
        """Who was quiet longest first, but for those whose alerts go on."""
        self._judged = _EPOCH
        """The newest time that was judged; not that of a command, which is of a person's clock."""
        self.dropped = 0
        """The oldest alerts of services with more than MAX_ALERTS, which made room before their time."""
        if state is None:
            return
        version, self.dropped, services = state
        if version != STATE_VERSION:
            raise foreign(version, STATE_VERSION, "the state of incidents")
        for name, (forgotten, newest, alerts, told) in services.items():
            found = self._services[name] = _Service()
            found.forgotten, found.newest = forgotten, newest
            found.alerts = {key: _Known(number, Alert.model_validate_json(text)) for key, number, text in alerts}
            found.told = {key: Incident.model_validate_json(text) for key, text in told}

    def on_events(self, events: Iterable[AlertEvent]) -> list[Incident]:
        """The incidents to be told after some events; none where they say nothing new.

        Cost: some 2 us an event, and 20 us for each alert that is kept of their services: give a storm at once.
        """
        touched: dict[str, _Service] = {}
        for event in events:
            alert = event.alert
            if alert is None or event.transition is Transition.REJECTED or alert.severity not in _IMPACTS:
                continue
            name = alert.labels.get("service") or alert.source
            service = self._services.setdefault(name, _Service())
            known = service.alerts.get(alert.id)
            sequence = event.sequence
            if known is not None and known.sequence >= sequence:
                if alert.resolved_at is None or known.alert.resolved_at is not None:
                    continue
                sequence = known.sequence  # an end is an end, also where a crash had it numbered anew
            service.alerts[alert.id] = _Known(sequence, alert)
            service.newest = max(service.newest, event.time)
            if event.cause.startswith("window:"):
                self._judged = max(self._judged, event.time)
            touched[name] = service
        for name, service in touched.items():
            self._services[name] = self._services.pop(name)
            self._forget(service)
        self._forget_services()
        return [one for name, service in touched.items() for one in self._changes(name, service)]

    def _forget(self, service: _Service) -> None:
        """Drops incidents that ended 7 days ago, and where there are too many alerts those that ended first."""
        for group in _clusters(service.alerts.values()):
            ended = _end(group)
            if ended is None or ended > service.newest - KEPT:
                break
            service.told.pop(_id(group), None)
            for one in group:
                service.drop(one)
        never = datetime.max.replace(tzinfo=UTC)
        excess = len(service.alerts) - MAX_ALERTS
        if excess > 0:
            by_end = sorted(service.alerts.values(), key=lambda one: (one.alert.resolved_at or never, one.alert.id))
            for one in by_end[:excess]:
                service.drop(one)
            self.dropped += excess

    def _forget_services(self) -> None:
        """Drops services that were quiet for so long that nothing comes of their alerts any more."""
        for _ in range(len(self._services)):
            name, service = next(iter(self._services.items()))
            if service.newest > self._judged - KEPT - TOLD:
                break
            del self._services[name]
            if any(one.alert.resolved_at is None for one in service.alerts.values()):
                self._services[name] = service

    def _changes(self, name: str, service: _Service) -> Iterator[Incident]:
        version = service.version()
        found = {
            one.id: one for one in (_incident(name, group, version) for group in _clusters(service.alerts.values()))
        }
        for key, before in service.told.items():
            if key not in found:
                yield before.model_copy(update={"status": IncidentStatus.WITHDRAWN, "version": version})
        for key, one in found.items():
            before_it = service.told.get(key)
            same = before_it is not None and before_it.model_copy(update={"version": version}) == one
            if not same or one.end_time is None or one.end_time > service.newest - TOLD:
                yield one
        service.told = found

    def snapshot(self) -> object:
        """The state for recovery: plain values that pickle, independent of this object."""
        services = {
            name: (
                one.forgotten,
                one.newest,
                [(key, known.sequence, known.alert.model_dump_json()) for key, known in one.alerts.items()],
                [(key, told.model_dump_json()) for key, told in one.told.items()],
            )
            for name, one in self._services.items()
        }
        return (STATE_VERSION, self.dropped, services)


# -- from alerts to an incident ------------------------------------------------------------------------


def _clusters(alerts: Iterable[_Known]) -> Iterator[list[_Known]]:
    """The alerts of each incident, in order of time."""
    group: list[_Known] = []
    until = _EPOCH
    for one in sorted(alerts, key=lambda known: (known.alert.timestamp, known.alert.id)):
        if group and one.alert.timestamp > until:
            yield group
            group = []
        if not group:
            until = _EPOCH
        group.append(one)
        ended = one.alert.resolved_at
        until = datetime.max.replace(tzinfo=UTC) if ended is None else max(until, ended + MERGE_GAP)
    if group:
        yield group


def _end(group: Sequence[_Known]) -> datetime | None:
    ends = [one.alert.resolved_at for one in group]
    known = [one for one in ends if one is not None]
    return max(known) if len(known) == len(ends) else None


def _id(group: Sequence[_Known]) -> str:
    first = group[0].alert
    return incident_id(
        first.labels.get("service") or first.source, (first.timestamp - _EPOCH) // timedelta(microseconds=1)
    )


def _incident(service: str, group: Sequence[_Known], version: int) -> Incident:
    alerts = [one.alert for one in group]
    real = [one for one in alerts if not one.false_positive]
    gravest = max(real or alerts, key=lambda one: _ORDER.index(_IMPACTS[one.severity]))  # of equals the first
    ended = _end(group)
    acknowledged = min(
        (one for one in alerts if one.acknowledged_at is not None), key=lambda one: one.acknowledged_at or _EPOCH,
        default=None,
    )  # fmt: skip
    return Incident(
        id=_id(group),
        service=service,
        status=IncidentStatus.OPEN if ended is None else IncidentStatus.RESOLVED,
        severity=_IMPACTS[gravest.severity],
        start_time=alerts[0].timestamp,
        end_time=ended,
        description=gravest.description or gravest.name,
        impact=_impact(alerts),
        resolution=_resolution(alerts) if ended is not None else "",
        alerts=tuple(one.id for one in alerts),
        false_positives=len(alerts) - len(real),
        downtime=down_stretches(Stretch(start=one.timestamp, end=one.resolved_at) for one in real if _is_down(one)),
        acknowledged_at=None if acknowledged is None else acknowledged.acknowledged_at,
        acknowledged_by=None if acknowledged is None else acknowledged.acknowledged_by,
        interventions=sum(
            sum(note.type != "note" for note in one.annotations) + (one.resolved_by is not None) for one in alerts
        ),
        version=version,
    )


def _is_down(alert: Alert) -> bool:
    return alert.severity is Severity.CRITICAL


def _impact(alerts: Sequence[Alert]) -> str:
    """The alerts by name, the gravest first: `checkout is unhealthy (critical); slow answers (warning, 3 times)`."""
    counted: dict[tuple[str, Severity], int] = {}
    for one in sorted(alerts, key=lambda alert: -_ORDER.index(_IMPACTS[alert.severity])):
        counted[one.name, one.severity] = counted.get((one.name, one.severity), 0) + 1
    parts = [
        f"{name} ({severity}{f', {times} times' if times > 1 else ''})" for (name, severity), times in counted.items()
    ]
    more = len(parts) - 10
    return "; ".join(parts[:10]) + (f"; and {more} more" if more > 0 else "")


def _resolution(alerts: Sequence[Alert]) -> str:
    notes = [note for one in alerts for note in one.annotations if note.type == "resolution"]
    if notes:
        last = max(notes, key=lambda note: (note.timestamp, note.id))
        return f"{last.message} ({last.author})"
    last_alert = max(alerts, key=lambda one: (one.resolved_at or _EPOCH, one.id))
    return f"resolved by {last_alert.resolved_by}" if last_alert.resolved_by else "the condition ended"


def down_stretches(stretches: Iterable[Stretch]) -> tuple[Stretch, ...]:
    """Stretches that overlap or touch as one each, in order."""
    found: list[Stretch] = []
    for one in sorted(stretches, key=lambda stretch: stretch.start):
        last = found[-1] if found else None
        if last is None or (last.end is not None and one.start > last.end):
            found.append(one)
        elif last.end is not None:
            end = None if one.end is None else max(last.end, one.end)
            found[-1] = Stretch(start=last.start, end=end)
    return tuple(found)


# -- figures -------------------------------------------------------------------------------------------


class Availability(NamedTuple):
    """Of a service in a period: 1 - downtime / period."""

    availability: float
    downtime_s: float
    incidents: int


def availability(
    incidents: Iterable[Incident], start: datetime, end: datetime, weights: Mapping[str, float]
) -> tuple[float, dict[str, Availability]]:
    """The mean availability over the services of `weights`, weighted by them, and that of each.

    An incident that is open is down until `end`. Services without incidents are available.

    Raises:
        ValueError: the period is empty, or there are no services.
    """
    length_s = (end - start).total_seconds()
    if length_s <= 0 or not weights:
        raise ValueError("availability needs a period and at least one service")
    down: dict[str, list[Stretch]] = {service: [] for service in weights}
    counted = dict.fromkeys(weights, 0)
    for one in incidents:
        if (
            one.service in down
            and one.counts
            and one.start_time < end
            and (one.end_time is None or one.end_time > start)
        ):
            counted[one.service] += 1
            down[one.service] += [
                Stretch(start=max(part.start, start), end=min(part.end or end, end))
                for part in one.downtime
                if part.start < end and (part.end is None or part.end > start)
            ]
    found = {}
    for service, stretches in down.items():
        lost_s = sum(
            (part.end - part.start).total_seconds() for part in down_stretches(stretches) if part.end is not None
        )
        found[service] = Availability(1 - lost_s / length_s, lost_s, counted[service])
    total = sum(weights.values())
    return sum(found[service].availability * weight for service, weight in weights.items()) / total, found


def mean_time_to_repair_s(incidents: Iterable[Incident]) -> float | None:
    """MTTR: the mean time from start to end of incidents that are over and count; None: there is none."""
    times = [
        (one.end_time - one.start_time).total_seconds() for one in incidents if one.counts and one.end_time is not None
    ]
    return sum(times) / len(times) if times else None


def accuracy(incidents: Iterable[Incident]) -> float | None:
    """The share of alerts that nobody marked as a false positive; None: there were none."""
    alerts = false = 0
    for one in incidents:
        if one.status is not IncidentStatus.WITHDRAWN:
            alerts += len(one.alerts)
            false += one.false_positives
    return 1 - false / alerts if alerts else None


def interventions(incidents: Iterable[Incident]) -> int:
    """How often people stepped in by hand."""
    return sum(one.interventions for one in incidents if one.status is not IncidentStatus.WITHDRAWN)
