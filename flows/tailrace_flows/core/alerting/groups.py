"""One group of alerts of one route: when it is told to whom, and how it climbs an escalation.

The rules of notifying are those of Alertmanager (notify/dedup_stage.go, `needsUpdate`), by numbers as in its comments:
(1) never told: only if something fires; (2) what fires is not within what was told: yes; (3) nothing fires: only if the
last time something did; (4) what is resolved is not within what was told, and the receiver wants it: yes; (5) else only
after `repeat_interval`.

Where this differs, and why:

- An alert that resolves while it is held back (silence, inhibition, mute time) stays until it is no longer held back,
  if a receiver had been told that it fires. Alertmanager forgets it, and the receiver's incident stays open forever.
- A group whose firing alerts are all acknowledged is not repeated: somebody is on it.
- A receiver without `send_resolved` is told of an alert that fires again while others of its group do. Alertmanager
  keeps what it was told last, and repeats only.
- The repeat interval is over after exactly itself, not at the first tick later than it (4 h, not 4 h 5 min).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tailrace_schemas.alerts import Labels
from tailrace_schemas.notifications import Reason

from tailrace_flows.core.alerting.routing import Address, Node

__all__ = ["Draft", "Group", "Held", "Identity", "Tracked"]

Identity = tuple[str, Labels]
"""What makes an alert the same one when it fires again: its source and its labels."""


@dataclass(slots=True)
class Tracked:
    """What is known of one alert, whichever groups it is in."""

    id: str
    sequence: int
    began_us: int
    fired_us: int
    """Event time of the transition to active."""
    severity: int
    labels: dict[str, str]
    """Its own, with alertname, severity and source."""
    body: bytes
    """The alert as JSON: a snapshot then costs next to nothing."""
    firing: bool
    acknowledged: bool
    flapping: bool = False
    groups: tuple[str, ...] = ()

    @property
    def told_as_firing(self) -> bool:
        return self.firing or self.flapping


@dataclass(slots=True)
class Told:
    """What one receiver has been told of one group."""

    sequence: int = 0
    """Notifications so far."""
    at_us: int = 0
    firing: frozenset[Identity] = frozenset()
    resolved: frozenset[Identity] = frozenset()
    """Both as of the last notification."""
    open: frozenset[Identity] = frozenset()
    """What it has been told fires, and has not been told is over."""
    fired_at_us: dict[Identity, int] = field(default_factory=dict)
    """When it was told that an alert fires anew; kept for the cooldown."""


class Draft(NamedTuple):
    """A notification to be written out."""

    address: Address
    reason: Reason
    step: int | None
    sequence: int
    firing: tuple[Identity, ...]
    resolved: tuple[Identity, ...]


class Held(NamedTuple):
    """What holds back at one moment."""

    alert: Callable[[Mapping[str, str]], bool]
    """By inhibition or silence, given an alert's labels."""
    inhibited: Callable[[Mapping[str, str]], bool]
    """By inhibition."""
    times: Callable[[Node], bool]
    """By the route's active and mute times."""


@dataclass(slots=True)
class Group:
    """State: about 200 B an alert."""

    key: str
    node: str
    labels: Labels
    next_us: int
    """When it is looked at next."""
    flushed: bool = False
    members: dict[Identity, None] = field(default_factory=dict)
    told: dict[str, Told] = field(default_factory=dict)
    climbs: dict[Identity, tuple[int, int]] = field(default_factory=dict)
    """Of each alert that nobody has acknowledged: when it was first told, and how many steps have been taken."""
    climb_us: int | None = None
    """When the next step is due."""

    def due_us(self) -> int:
        return self.next_us if self.climb_us is None else min(self.next_us, self.climb_us)

    def empty(self, node: Node, now_us: int) -> bool:
        """Whether nothing needs to be remembered."""
        if self.members:
            return False
        return not any(
            at_us > now_us - node.cooldown_us for told in self.told.values() for at_us in told.fired_at_us.values()
        )

    def remove(self, identity: Identity) -> None:
        self.members.pop(identity, None)
        self.climbs.pop(identity, None)

    def hand_over(self, identity: Identity) -> list[str]:
        """It belongs elsewhere now; the receivers that believe that it fires."""
        self.remove(identity)
        found = [(receiver, told) for receiver, told in self.told.items() if identity in told.open]
        for _, told in found:
            told.open -= {identity}
            told.firing -= {identity}
        return [receiver for receiver, _ in found]

    def take_over(self, identity: Identity, receiver: str) -> None:
        """The receiver believes that it fires, and is to hear of its end from here."""
        told = self.told.setdefault(receiver, Told())
        told.open |= {identity}

    # -- the regular look --------------------------------------------------------------------------------

    def flush(
        self,
        node: Node,
        alerts: Mapping[Identity, Tracked],
        held: Held,
        now_us: int,
        receivers: Mapping[str, Address],
    ) -> list[Draft]:
        """Decides whom to tell now, and records it as told; then forgets what is over. `receivers`: all there are."""
        self.flushed = True
        self.next_us += node.group_interval_us
        if self.next_us <= now_us:  # the process was away
            self.next_us = now_us + node.group_interval_us
        drafts = []
        visible = set() if held.times(node) else {one for one in self.members if not held.alert(alerts[one].labels)}
        firing = frozenset(one for one in visible if alerts[one].told_as_firing)
        resolved = frozenset(visible) - firing
        if visible:
            for address in node.addresses:
                drafts += self._tell(address, node, alerts, firing, resolved, now_us)
            drafts += self._tell_others(node, firing, resolved, now_us, receivers)
        if drafts:
            self._begin_climbs(node, alerts, drafts, now_us)
        self._forget(node, alerts, visible, now_us)
        return drafts

    def _tell(
        self,
        address: Address,
        node: Node,
        alerts: Mapping[Identity, Tracked],
        firing: frozenset[Identity],
        resolved: frozenset[Identity],
        now_us: int,
    ) -> list[Draft]:
        told = self.told.get(address.receiver)
        if told is not None and node.cooldown_us:
            cool_us = now_us - node.cooldown_us
            firing = frozenset(
                one for one in firing if one in told.open or told.fired_at_us.get(one, cool_us) <= cool_us
            )
        watched = any(not alerts[one].acknowledged for one in firing)
        reason = _reason(told, firing, resolved, address.send_resolved, node.repeat_interval_us, watched, now_us)
        if reason is None:
            if told is not None:  # who is not to be told of an end is to be told if it fires again
                told.firing -= resolved
                told.open -= resolved
            return []
        told = self.told.setdefault(address.receiver, Told())
        if node.cooldown_us:
            told.fired_at_us |= dict.fromkeys(firing - told.open, now_us)
        told.sequence += 1
        told.at_us = now_us
        told.firing, told.resolved = firing, resolved
        told.open = (told.open | firing) - resolved
        shown = resolved if address.send_resolved else frozenset()
        if not firing and not shown:
            return []  # recorded, so that the next alert is told
        return [Draft(address, reason, None, told.sequence, _ordered(firing), _ordered(shown))]

    def _tell_others(
        self,
        node: Node,
        firing: frozenset[Identity],
        resolved: frozenset[Identity],
        now_us: int,
        receivers: Mapping[str, Address],
    ) -> list[Draft]:
        """Those who came in by an escalation, or were told before the configuration was changed.

        They hear when what they were told of is over, and of nothing else.
        """
        own = {address.receiver for address in node.addresses}
        by_name = {address.receiver: address for climb in node.climbs for address in climb.addresses}
        drafts = []
        for receiver in [name for name in self.told if name not in own]:
            told = self.told[receiver]
            address = by_name.get(receiver) or (receivers.get(receiver) if told.open else None)
            if address is None:  # neither the configuration nor an alert has it any more
                del self.told[receiver]
                continue
            over = told.open & resolved
            if not over:
                continue
            told.open -= over
            told.sequence += 1
            told.at_us = now_us
            if address.send_resolved:
                still = told.open & firing
                reason = Reason.CHANGED if still else Reason.RESOLVED
                drafts.append(Draft(address, reason, None, told.sequence, _ordered(still), _ordered(over)))
        return drafts

    def _forget(self, node: Node, alerts: Mapping[Identity, Tracked], visible: set[Identity], now_us: int) -> None:
        """Drops what is over and was told, or was never told of."""
        open_ = frozenset().union(*(told.open for told in self.told.values()))
        for identity in [one for one in self.members if not alerts[one].told_as_firing]:
            if identity in visible or identity not in open_:
                self.remove(identity)
        if node.cooldown_us:
            for told in self.told.values():
                for identity, at_us in list(told.fired_at_us.items()):
                    if at_us <= now_us - node.cooldown_us:
                        del told.fired_at_us[identity]

    # -- escalation --------------------------------------------------------------------------------------

    def _begin_climbs(
        self, node: Node, alerts: Mapping[Identity, Tracked], drafts: Iterable[Draft], now_us: int
    ) -> None:
        """An alert climbs from the first notification that has it; later ones change nothing."""
        if not node.climbs:
            return
        for identity in {one for draft in drafts for one in draft.firing}:
            if not alerts[identity].acknowledged:
                self.climbs.setdefault(identity, (now_us, 0))
        self.plan(node)

    def go_on_climbing(self, identity: Identity, node: Node, now_us: int) -> None:
        """It fires again, and whoever was told of it believes that it did all the time.

        So a climb that is under way goes on. There is none where somebody had acknowledged it, or a step was due while
        it was over: it begins anew.
        """
        if node.climbs and any(identity in told.open for told in self.told.values()):
            self.climbs.setdefault(identity, (now_us, 0))
            self.plan(node)

    def stop_climb(self, identity: Identity) -> None:
        """It was acknowledged."""
        self.climbs.pop(identity, None)

    def climb(self, node: Node, alerts: Mapping[Identity, Tracked], held: Held, now_us: int) -> list[Draft]:
        """Takes the steps that are due.

        What is silenced then climbs no more; told again later, it begins at the first step. While it is inhibited, and
        outside the route's times, a step waits for the next look at the group.
        """
        if held.times(node):
            self.climb_us = max(self.next_us, now_us + 1)
            return []
        due: dict[int, list[Identity]] = {}
        for identity, (since_us, taken) in list(self.climbs.items()):
            reached = sum(since_us + climb.after_us <= now_us for climb in node.climbs)
            if reached <= taken:
                continue
            alert = alerts[identity]
            if alert.acknowledged or not alert.told_as_firing:
                del self.climbs[identity]
                continue
            if held.alert(alert.labels):
                if not held.inhibited(alert.labels):
                    del self.climbs[identity]
                continue
            self.climbs[identity] = (since_us, reached)
            for number in range(taken, reached):
                due.setdefault(number, []).append(identity)
        drafts = []
        for number, identities in sorted(due.items()):
            climb = node.climbs[number]
            for address in climb.addresses:
                told = self.told.setdefault(address.receiver, Told())
                told.sequence += 1
                told.open |= frozenset(identities)
                drafts.append(Draft(address, Reason.ESCALATION, climb.step, told.sequence, _ordered(identities), ()))
        self.plan(node)
        if self.climb_us is not None and self.climb_us <= now_us:  # of what is inhibited
            self.climb_us = max(self.next_us, now_us + 1)
        return drafts

    def plan(self, node: Node) -> None:
        """When the next step is due, by the escalation that the route has now."""
        ahead = [
            since_us + node.climbs[taken].after_us
            for since_us, taken in self.climbs.values()
            if taken < len(node.climbs)
        ]
        self.climb_us = min(ahead) if ahead else None


def _reason(
    told: Told | None,
    firing: frozenset[Identity],
    resolved: frozenset[Identity],
    send_resolved: bool,
    repeat_us: int,
    watched: bool,
    now_us: int,
) -> Reason | None:
    """Why to tell now; None: there is no reason. `watched`: something fires that nobody has acknowledged."""
    if told is None:
        return Reason.FIRST if firing else None  # (1)
    if not firing <= told.firing:
        return Reason.CHANGED if told.firing else Reason.FIRST  # (2)
    if not firing:
        return Reason.RESOLVED if told.firing or told.open & resolved else None  # (3)
    if send_resolved and (not resolved <= told.resolved or told.open & resolved):
        return Reason.CHANGED  # (4)
    return Reason.REPEAT if watched and now_us - told.at_us >= repeat_us else None  # (5)


def _ordered(identities: Iterable[Identity]) -> tuple[Identity, ...]:
    return tuple(sorted(identities))
