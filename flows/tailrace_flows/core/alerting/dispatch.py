"""From alert events to notifications: routing, grouping, what holds back, escalation.

A plain state machine; time is wall time, given by the caller, in microseconds. Give it all events at hand, then call
`on_time`, and again when `next_us` has come:

    dispatcher = Dispatcher(config)
    dispatcher.on_event(event, now_us)
    notifications = dispatcher.on_time(now_us)

Guarantee: an alert that fires and is not held back is told within `group_wait`, or `group_interval` where its group has
been told before, and the time until `on_time` is called. A restart from a snapshot, with the same input given again,
gives the same notifications by id. Events may come twice, and late ones of an earlier life of an alert are known.
"""

import pickle
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from tailrace_schemas.alerts import (
    Alert,
    AlertEvent,
    Command,
    CommandKind,
    Severity,
    Status,
    Transition,
    event_id,
    time_of,
    us_of,
)
from tailrace_schemas.config.dispatch import DispatchConfig, Silence
from tailrace_schemas.notifications import Notification, NotifiedAlert, notification_id

from tailrace_flows.core.alerting.groups import Draft, Group, Held, Identity, Tracked
from tailrace_flows.core.alerting.holding import FlapDetector, Inhibitor, Silencer, microseconds
from tailrace_flows.core.alerting.routing import Node, Router, pairs_text
from tailrace_flows.core.alerting.times import contains
from tailrace_flows.core.sealed import foreign

__all__ = ["ALERTS_MAX", "Dispatcher"]

ALERTS_MAX: Final = 200
BYTES_MAX: Final = 400_000
"""Of alerts in one notification: Kafka takes 1 MB by default. No alert has more, see `lifecycle.MAX_ALERT_BYTES`."""
ENDED_KEPT: Final = 20_000
ENDED_KEPT_US: Final = 3_600_000_000
"""Alerts that are over are remembered for so long (and so many), to know their events when they come again."""
LATE_US: Final = 1_000_000
"""What comes late waits so long for what comes late with it, instead of another `group_wait`."""
STATE_VERSION: Final = 1
_SEVERITIES: Final = {severity.value: rank for rank, severity in enumerate(Severity)}


class Dispatcher:
    """State: 0.6 kB an alert. An event costs 20 to 60 us, a look at a group 10 us an alert that is told."""

    def __init__(self, config: DispatchConfig, state: bytes | None = None, now_us: int = 0) -> None:
        """Anew, or from `snapshot`'s bytes; the configuration may be another one than then.

        Raises:
            ValueError: the state is of another format.
        """
        self._alerts: dict[Identity, Tracked] = {}
        self._groups: dict[str, Group] = {}
        self._changes: dict[Identity, tuple[int, ...]] = {}
        """Times of each alert's last changes of state, in event time; see FlapDetector."""
        self._ended: dict[str, tuple[int, int]] = {}
        """Alert id -> (last sequence, when it ended), oldest first."""
        self._silences: dict[str, Silence] = {}
        """Those made by commands; by the command's id."""
        if state is not None:
            version, *parts = pickle.loads(state)  # noqa: S301 - our own recovery state
            if version != STATE_VERSION:
                raise foreign(version, STATE_VERSION, "the dispatcher's state")
            self._alerts, self._groups, self._changes, self._ended, self._silences = parts
        self._config = config
        self._next_us: int | None = None
        """When a group is due, or earlier: so that an event costs the same however many groups there are."""
        self._build(now_us)

    def snapshot(self) -> bytes:
        """The state; independent of what happens later."""
        parts = (STATE_VERSION, self._alerts, self._groups, self._changes, self._ended, self._silences)
        return pickle.dumps(parts, protocol=pickle.HIGHEST_PROTOCOL)

    # -- input -------------------------------------------------------------------------------------------

    def on_config(self, config: DispatchConfig, now_us: int) -> None:
        """Takes another configuration. Groups whose route and labels stay the same keep what they have told."""
        if config == self._config:
            return
        before, self._config = self._nodes, config
        self._build(now_us)
        for group in self._groups.values() if self._router.root else ():
            self._escalate(group, self._nodes[group.node], before.get(group.node), now_us)
            self._next_us = group.due_us() if self._next_us is None else min(self._next_us, group.due_us())

    def _escalate(self, group: Group, node: Node, before: Node | None, now_us: int) -> None:
        """By the steps that the route has now. What was told when it had none begins to climb."""
        group.plan(node)
        if before is None or before.climbs:
            return
        for identity in group.members:
            if self._alerts[identity].firing and not self._alerts[identity].acknowledged:
                group.go_on_climbing(identity, node, now_us)

    def on_event(self, event: AlertEvent, now_us: int) -> None:
        """Takes one event of the alerts topic."""
        alert = event.alert
        if alert is None or event.transition is Transition.REJECTED:
            return
        identity = (alert.source, tuple(sorted(alert.labels.items())))
        known = self._alerts.get(identity)
        firing = alert.status is not Status.RESOLVED
        began_us = us_of(alert.timestamp)
        if known is not None and known.id == alert.id:
            seen = known.sequence
        else:
            seen, _ = self._ended.get(alert.id, (-1, 0))
            if known is not None and began_us < known.began_us:
                return  # of an earlier life
        ends = known is not None and known.id == alert.id and known.firing and not firing
        if event.sequence <= seen and not ends:  # an end is an end, also where a crash had it numbered anew
            return
        if known is None and not firing:  # nobody has heard that it fires
            self._remember_end(alert.id, event.sequence, now_us)
            return
        labels = alert.labels | {
            "alertname": alert.name, "severity": alert.severity.value, "source": alert.source,
        }  # fmt: skip
        fires_anew = known is not None and known.id != alert.id
        if known is None or known.id != alert.id:
            known = self._activate(identity, known, alert, event, labels)
        self._update(identity, known, alert, event, firing, now_us)
        if firing:
            self._enter(identity, known, labels, now_us)
            if fires_anew and not known.acknowledged:
                self._go_on_climbing(identity, known, now_us)
        elif not known.groups:
            self._drop(identity)

    def on_command(self, command: Command, now_us: int) -> AlertEvent | None:
        """Silences one alert for a while, or ends that; None: other commands are not for the dispatcher.

        Returns the answer, which is REJECTED where it cannot be done.
        """
        if command.kind not in (CommandKind.SILENCE, CommandKind.UNSILENCE):
            return None
        found = next((one for one in self._alerts.values() if one.id == command.alert_id), None)
        if found is None:
            return _rejected(command, "there is no such alert now")
        where = {name: f"=~{re.escape(value)}" for name, value in found.labels.items()}
        if command.kind is CommandKind.SILENCE:
            end_us = us_of(command.time) + round((command.duration_s or 0) * 1e6)
            if end_us <= max(now_us, us_of(command.time)):
                return _rejected(command, "the silence is over before it begins: it needs a duration")
            try:
                self._silences[command.id] = Silence(
                    name=f"alert-{found.id}", where=where, start=command.time, end=time_of(end_us),
                    author=command.author, comment=command.message,
                )  # fmt: skip
            except ValueError:  # the alert is none of ours: ids and labels of rules always can be
                return _rejected(command, "an alert with such an id or such labels cannot be silenced")
        else:
            ended = [name for name, one in self._silences.items() if one.where == where]
            if not ended:
                return _rejected(command, "no command has silenced this alert; silences of the configuration stay")
            for name in ended:
                del self._silences[name]
        self._silencer = Silencer((*self._config.silences.values(), *self._silences.values()))
        transition = Transition.SILENCED if command.kind is CommandKind.SILENCE else Transition.UNSILENCED
        return _answer(command, transition, found.sequence, Alert.model_validate_json(found.body))

    # -- time --------------------------------------------------------------------------------------------

    def next_us(self) -> int | None:
        """When `on_time` has something to do; None: not before the next event."""
        return self._next_us

    def on_time(self, now_us: int) -> list[Notification]:
        """What is to be sent now, in the order in which it was due."""
        if self._next_us is None or now_us < self._next_us:
            return []
        due = sorted(
            (group for group in self._groups.values() if group.due_us() <= now_us),
            key=lambda group: (group.due_us(), group.key),
        )
        found: list[Notification] = []
        if due:
            self._expire_silences(now_us)
            self._calm_down(now_us)
            held = self._held(now_us)
        for group in due:
            node = self._nodes[group.node]
            before = list(group.members)
            drafts = []
            if group.next_us <= now_us:
                drafts += group.flush(node, self._alerts, held, now_us, self._router.receivers)
            if group.climb_us is not None and group.climb_us <= now_us:
                drafts += group.climb(node, self._alerts, held, now_us)
            found += [self._write(group, draft, now_us) for draft in drafts]
            for identity in before:
                if identity not in group.members:
                    self._leave(identity, group.key)
            if group.empty(node, now_us):
                del self._groups[group.key]
        self._next_us = min((group.due_us() for group in self._groups.values()), default=None)
        return found

    def _held(self, now_us: int) -> Held:
        inhibited = self._inhibitor.over(one.labels for one in self._alerts.values() if one.told_as_firing)
        silenced = self._silencer.at(now_us)
        within: dict[str, bool] = {}

        def times(node: Node) -> bool:
            if node.key not in within:
                intervals = self._config.time_intervals
                active = [intervals[name] for name in node.active if name in intervals]
                mute = [intervals[name] for name in node.mute if name in intervals]
                within[node.key] = bool(active and not contains(active, now_us)) or contains(mute, now_us)
            return within[node.key]

        return Held(lambda labels: inhibited(labels) or silenced(labels), inhibited, times)

    # -- bookkeeping -------------------------------------------------------------------------------------

    def _build(self, now_us: int) -> None:
        """Everything that follows from the configuration; puts the alerts into their groups.

        Without routing nobody is told anything, but who was told what stays known, for when there is some again.
        """
        self._router = Router(self._config)
        self._nodes = self._router.nodes()
        self._inhibitor = Inhibitor(self._config)
        self._silencer = Silencer((*self._config.silences.values(), *self._silences.values()))
        self._flaps = FlapDetector(self._config.routing.flap_damping if self._config.routing else None)
        if self._router.root is None:
            self._next_us = None
            return
        for identity, alert in list(self._alerts.items()):
            self._enter(identity, alert, alert.labels, now_us)
        for group in list(self._groups.values()):
            if group.node not in self._nodes:
                for identity in list(group.members):
                    self._leave(identity, group.key)
                del self._groups[group.key]
        self._next_us = min((group.due_us() for group in self._groups.values()), default=None)

    def _activate(
        self, identity: Identity, known: Tracked | None, alert: Alert, event: AlertEvent, labels: dict[str, str]
    ) -> Tracked:
        """A new life of an alert: it keeps its groups and its changes of state."""
        was_firing = known is not None and known.firing
        found = Tracked(
            id=alert.id, sequence=-1, began_us=us_of(alert.timestamp), fired_us=us_of(event.time),
            severity=_SEVERITIES[alert.severity.value], labels=labels, body=b"", firing=was_firing,
            acknowledged=bool(known and known.flapping and known.acknowledged),
            flapping=bool(known and known.flapping), groups=known.groups if known else (),
        )  # fmt: skip
        self._alerts[identity] = found
        return found

    def _update(
        self, identity: Identity, known: Tracked, alert: Alert, event: AlertEvent, firing: bool, now_us: int
    ) -> None:
        if firing != known.firing:
            changes = self._flaps.changed(self._changes.get(identity, ()), us_of(event.time))
            if changes:  # without damping there are none, and without groups nobody would look after them
                self._changes[identity] = changes
            known.flapping = self._flaps.is_flapping(known.flapping, changes, now_us)
        known.sequence = max(event.sequence, known.sequence)
        known.severity = _SEVERITIES[alert.severity.value]
        known.body = alert.model_dump_json().encode()
        known.firing = firing
        known.acknowledged |= alert.status is Status.ACKNOWLEDGED
        if known.acknowledged:  # what is over climbs no more either, but may fire again before anybody hears of it
            self._stop_climbs(identity, known)
        if not firing:
            self._remember_end(alert.id, known.sequence, now_us)

    def _enter(self, identity: Identity, alert: Tracked, labels: dict[str, str], now_us: int) -> None:
        """Puts an alert into the groups it belongs to now, and takes it out of others.

        What is over enters no group, unless it leaves one that has told of it: its end is told by the new one.
        """
        alert.labels = labels
        if self._router.root is None:
            return
        wanted: dict[str, tuple[Node, tuple[tuple[str, str], ...]]] = {}
        for node in self._router.route(labels):
            group_labels = node.group_labels(labels)
            wanted[f"{node.key}:{pairs_text(group_labels)}"] = (node, group_labels)
        left = [self._groups[key] for key in alert.groups if key not in wanted and key in self._groups]
        believing = {receiver for group in left for receiver in group.hand_over(identity)}
        if not alert.firing and not believing:
            wanted = {key: one for key, one in wanted.items() if key in alert.groups and key in self._groups}
        for key, (node, group_labels) in wanted.items():
            group = self._groups.get(key)
            if group is None:
                group = self._groups[key] = Group(key, node.key, group_labels, now_us + node.group_wait_us)
            group.members.setdefault(identity)
            if not group.flushed and alert.fired_us + node.group_wait_us < now_us:
                # It has waited long enough elsewhere; but so have others that come with it.
                group.next_us = min(group.next_us, now_us + LATE_US)
            self._next_us = group.next_us if self._next_us is None else min(self._next_us, group.next_us)
        alert.groups = tuple(wanted)
        for receiver in sorted(believing):
            tells = (key for key, (node, _) in wanted.items() if receiver in {one.receiver for one in node.addresses})
            self._groups[next(tells, alert.groups[0])].take_over(identity, receiver)
        if not alert.groups and not alert.firing:
            self._drop(identity)

    def _leave(self, identity: Identity, key: str) -> None:
        alert = self._alerts[identity]
        alert.groups = tuple(one for one in alert.groups if one != key)
        if not alert.groups and not alert.firing:
            self._drop(identity)

    def _drop(self, identity: Identity) -> None:
        self._alerts.pop(identity, None)

    def _stop_climbs(self, identity: Identity, alert: Tracked) -> None:
        for key in alert.groups:
            if key in self._groups:
                self._groups[key].stop_climb(identity)

    def _go_on_climbing(self, identity: Identity, alert: Tracked, now_us: int) -> None:
        """Who was told that it fires, and not that it was over, is not told again: no notification begins a climb."""
        for key in alert.groups if self._router.root else ():
            group = self._groups[key]
            group.go_on_climbing(identity, self._nodes[group.node], now_us)
            self._next_us = group.due_us() if self._next_us is None else min(self._next_us, group.due_us())

    def _remember_end(self, alert: str, sequence: int, now_us: int) -> None:
        self._ended.pop(alert, None)
        self._ended[alert] = (sequence, now_us)
        excess = max(0, len(self._ended) - ENDED_KEPT)
        old = [one for one, (_, at_us) in islice(self._ended.items(), excess + 2) if at_us < now_us - ENDED_KEPT_US]
        for one in {*islice(self._ended, excess), *old}:
            del self._ended[one]

    def _calm_down(self, now_us: int) -> None:
        for identity, changes in list(self._changes.items()):
            alert = self._alerts.get(identity)
            if alert is not None and alert.flapping:
                alert.flapping = self._flaps.is_flapping(True, changes, now_us)
                if alert.firing and alert.acknowledged and not alert.flapping:
                    self._ask_again(identity, alert, now_us)
            if self._flaps.is_over(changes, now_us):
                del self._changes[identity]

    def _ask_again(self, identity: Identity, alert: Tracked, now_us: int) -> None:
        """While it flapped, it was acknowledged for all of its lives; what stays is one that may not be."""
        alert.acknowledged = Alert.model_validate_json(alert.body).status is Status.ACKNOWLEDGED
        if not alert.acknowledged:
            self._go_on_climbing(identity, alert, now_us)

    def _expire_silences(self, now_us: int) -> None:
        over = [name for name, silence in self._silences.items() if microseconds(silence)[1] <= now_us]
        for name in over:
            del self._silences[name]

    # -- output ------------------------------------------------------------------------------------------

    def _write(self, group: Group, draft: Draft, now_us: int) -> Notification:
        firing, resolved = ([(one, self._alerts[one]) for one in side] for side in (draft.firing, draft.resolved))
        shown = [
            *((True, alert) for _, alert in sorted(firing, key=_gravest)),
            *((False, alert) for _, alert in sorted(resolved, key=_gravest)),
        ]
        alerts: list[NotifiedAlert] = []
        room = BYTES_MAX
        for counts, alert in shown[:ALERTS_MAX]:
            room -= len(alert.body)
            if room < 0 and alerts:
                break
            body = Alert.model_validate_json(alert.body)
            alerts.append(NotifiedAlert(firing=counts, flapping=alert.flapping, alert=body))
        parts = [draft.reason.value, str(draft.step), str(draft.sequence)]
        parts += [f"{alert.id}:{counts}" for counts, alert in shown]
        return Notification(
            id=notification_id(group.key, draft.address.receiver, parts),
            receiver=draft.address.receiver,
            team=draft.address.team,
            status="firing" if draft.firing else "resolved",
            reason=draft.reason,
            step=draft.step,
            time=time_of(now_us),
            group_key=group.key,
            group_labels=dict(group.labels),
            common_labels=_common(alert.labels for _, alert in shown),
            firing=len(firing),
            resolved=len(resolved),
            truncated=len(shown) - len(alerts),
            alerts=tuple(alerts),
        )


def _gravest(pair: tuple[Identity, Tracked]) -> tuple[int, int, Identity]:
    identity, alert = pair
    return -alert.severity, -alert.fired_us, identity


def _common(labels: Iterable[Mapping[str, str]]) -> dict[str, str]:
    sets = iter(labels)
    common = dict(next(sets))
    for one in sets:
        common = {name: value for name, value in common.items() if one.get(name) == value}
    return common


def _rejected(command: Command, reason: str) -> AlertEvent:
    return _answer(command, Transition.REJECTED, 0, None, reason)


def _answer(
    command: Command, transition: Transition, sequence: int, alert: Alert | None, reason: str = ""
) -> AlertEvent:
    cause = f"command:{command.id}"
    return AlertEvent(
        id=event_id(command.alert_id, transition, cause), transition=transition, time=command.time, cause=cause,
        sequence=sequence, reason=reason, alert=alert,
    )  # fmt: skip
