"""The routing tree: which nodes take an alert, and with which options."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tailrace_schemas.alerts import Labels
from tailrace_schemas.config.dispatch import DispatchConfig, Matchers, Route

__all__ = ["Address", "Climb", "Node", "Router", "pairs_text"]

EACH: Final = "..."
"""In `group_by`: every alert for itself."""


@dataclass(frozen=True)
class Address:
    """A receiver, and the team through which it was chosen."""

    receiver: str
    team: str
    send_resolved: bool


@dataclass(frozen=True)
class Climb:
    """One telling step of an escalation: when, counted from the first notification, and whom."""

    step: int
    """Its place among the policy's steps, from 1."""
    after_us: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class Node:
    """A route with what it inherits."""

    key: str
    """The matchers from the root to here: stable as long as they are."""
    matchers: Matchers
    continue_: bool
    addresses: tuple[Address, ...]
    group_by: tuple[str, ...]
    group_wait_us: int
    group_interval_us: int
    repeat_interval_us: int
    cooldown_us: int
    climbs: tuple[Climb, ...]
    mute: tuple[str, ...]
    active: tuple[str, ...]
    children: tuple["Node", ...]

    def group_labels(self, labels: Mapping[str, str]) -> Labels:
        """What the alerts of one group have in common. A label that an alert lacks is left out, as there."""
        if EACH in self.group_by:
            return tuple(sorted(labels.items()))
        return tuple((name, labels[name]) for name in sorted(self.group_by) if name in labels)


DEFAULTS: Final = Node(
    key="",
    matchers=Matchers({}),
    continue_=False,
    addresses=(),
    group_by=(),
    group_wait_us=30_000_000,
    group_interval_us=300_000_000,
    repeat_interval_us=4 * 3_600_000_000,
    cooldown_us=0,
    climbs=(),
    mute=(),
    active=(),
    children=(),
)
"""What the root inherits: Alertmanager's defaults (dispatch/route.go, `DefaultRouteOpts`)."""


class Router:
    """The tree of a configuration.

    What a route refers to and does not exist fails towards telling: an unknown team or receiver becomes a notification
    to that name, which the notifier counts; an unknown interval mutes nothing; an unknown escalation is none.
    """

    def __init__(self, config: DispatchConfig) -> None:
        self._config = config
        self.receivers = {name: self._address(name, "") for name in config.receivers}
        """All that the configuration has, by name."""
        self.root = None if config.routing is None else self._node(config.routing, DEFAULTS, 0)

    def route(self, labels: Mapping[str, str]) -> list[Node]:
        """The nodes that take it: depth first, the first child that matches unless it continues, else the node."""
        return [] if self.root is None else list(_take(self.root, labels))

    def nodes(self) -> dict[str, Node]:
        """All of them by key."""
        found: dict[str, Node] = {}
        waiting = [self.root] if self.root else []
        while waiting:
            node = waiting.pop()
            found[node.key] = node
            waiting += node.children
        return found

    def _node(self, route: Route, parent: Node, place: int) -> Node:
        # Siblings that ask for the same are told apart by their place among those.
        key = f"{parent.key}/" * bool(parent.key) + pairs_text(route.where.items()) + f"#{place}" * bool(place)
        node = replace(
            parent,
            key=key,
            matchers=Matchers(route.where),
            continue_=route.continue_,
            addresses=self._addresses(route.receiver, route.team) or parent.addresses,
            group_by=parent.group_by if route.group_by is None else route.group_by,
            group_wait_us=_us(route.group_wait, parent.group_wait_us),
            group_interval_us=_us(route.group_interval, parent.group_interval_us),
            repeat_interval_us=_us(route.repeat_interval, parent.repeat_interval_us),
            cooldown_us=_us(route.cooldown, parent.cooldown_us),
            climbs=parent.climbs if route.escalation is None else self._climbs(route.escalation),
            mute=route.mute_time_intervals,
            active=route.active_time_intervals,
        )
        seen: Counter[str] = Counter()
        children = []
        for child in route.routes:
            same = pairs_text(child.where.items())
            children.append(self._node(child, node, seen[same]))
            seen[same] += 1
        return replace(node, children=tuple(children))

    def _addresses(self, receiver: str | None, team: str | None) -> tuple[Address, ...]:
        """Whom a receiver or a team stands for; nobody where neither is given."""
        if receiver is not None:
            return (self._address(receiver, ""),)
        if team is None:
            return ()
        found = self._config.teams.get(team)
        return tuple(self._address(name, team) for name in (found.receivers if found else (team,)))

    def _address(self, receiver: str, team: str) -> Address:
        found = self._config.receivers.get(receiver)
        return Address(receiver, team, found.send_resolved if found else True)

    def _climbs(self, name: str) -> tuple[Climb, ...]:
        policy = self._config.escalations.get(name)
        found, after_s = [], 0.0
        for place, step in enumerate(policy.steps if policy else (), 1):
            if step.wait is not None:
                after_s += step.wait
            else:
                found.append(Climb(place, round(after_s * 1e6), self._addresses(step.notify, step.team)))
        return tuple(found)


def pairs_text(pairs: Iterable[tuple[str, str]]) -> str:
    """`{a="x",b="y"}`, so that different pairs give different text."""
    return "{" + ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(pairs)) + "}"


def _take(node: Node, labels: Mapping[str, str]) -> Iterator[Node]:
    taken = False
    for child in node.children:
        if child.matchers.match(labels):
            taken = True
            yield from _take(child, labels)
            if not child.continue_:
                break
    if not taken:
        yield node


def _us(own_s: float | None, inherited_us: int) -> int:
    return inherited_us if own_s is None else round(own_s * 1e6)
