"""Scenarios of the dispatcher as text: alerts that come, and who is told when.

      0s | fire a service=web      |
     30s |                         | mail first a
     40s | resolve a; fire b       |
    330s |                         | mail changed b -a

Each line: a time (0s is Monday 2026-01-05 00:00 UTC), what comes in, and what is sent at exactly this time; in between
nothing may be sent. `fire NAME label=value ...` is an alert of the rule `rules/NAME`; `-a` in what is sent is over,
`~a` one that flaps, `+3` says how many had no room. Commands: `ack a`, `silence a 1h`, `unsilence a`, by "ann".
`again` gives all events so far once more. `config NAME` takes another configuration.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from tailrace_flows.core.alerting.dispatch import Dispatcher
from tailrace_schemas.alerts import (
    Alert,
    AlertEvent,
    Command,
    CommandKind,
    Severity,
    Status,
    Transition,
    alert_id,
    event_id,
    time_of,
    us_of,
)
from tailrace_schemas.config import load
from tailrace_schemas.config.dispatch import DispatchConfig
from tailrace_schemas.notifications import Notification

from tests.flows.alerting.scenario import S, seconds

__all__ = ["START_US", "World", "config_of", "play", "told"]

START_US = us_of(datetime(2026, 1, 5, tzinfo=UTC))


def config_of(text: str) -> DispatchConfig:
    """A configuration from YAML. What it names and has not is defined along: receivers, without anything to send by."""
    sections = yaml.safe_load(text)
    named = {one["name"] for one in sections.get("receivers", [])}
    missing = sorted(set(_receivers(sections)) - named)
    text = json.dumps(sections | {"receivers": sections.get("receivers", []) + [{"name": name} for name in missing]})
    return DispatchConfig.of(item.model for item in load([("test.yaml", text)]).items)


def _receivers(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (value[key] for key in ("receiver", "notify") if key in value)
        yield from (name for name in value.get("receivers", []) if isinstance(name, str))
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _receivers(one)


@dataclass
class World:
    """A dispatcher, its clock, and where the alerts of a scenario stand."""

    dispatcher: Dispatcher
    config: DispatchConfig
    now_us: int = START_US
    alerts: dict[str, Alert] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    events: list[AlertEvent] = field(default_factory=list)
    answers: list[AlertEvent] = field(default_factory=list)
    commands: int = 0

    @classmethod
    def of(cls, config: DispatchConfig) -> "World":
        return cls(Dispatcher(config), config)

    def fire(
        self, name: str, labels: Mapping[str, str], severity: str = "warning", at_us: int | None = None
    ) -> AlertEvent:
        """The rule's condition has begun to hold."""
        t_us = self.now_us if at_us is None else at_us
        source = f"rules/{name.split('/')[0]}"
        identifier = alert_id(source, tuple(sorted(labels.items())), t_us)
        alert = Alert(
            id=identifier, name=name.split("/")[0], severity=Severity(severity), status=Status.ACTIVE, source=source,
            labels=dict(labels), timestamp=time_of(t_us),
        )  # fmt: skip
        self.sequences[name] = -1
        return self._event(name, alert, Transition.ACTIVE, t_us)

    def change(self, name: str, transition: Transition, at_us: int | None = None) -> AlertEvent:
        t_us = self.now_us if at_us is None else at_us
        changes: dict[str, Any] = {"status": Status(transition.value)}
        if transition is Transition.RESOLVED:
            changes["resolved_at"] = time_of(t_us)
        return self._event(name, self.alerts[name].model_copy(update=changes), transition, t_us)

    def _event(self, name: str, alert: Alert, transition: Transition, t_us: int) -> AlertEvent:
        cause = f"window:{t_us}"
        self.alerts[name] = alert
        self.sequences[name] += 1
        event = AlertEvent(
            id=event_id(alert.id, transition, cause), transition=transition, time=time_of(t_us), cause=cause,
            sequence=self.sequences[name], alert=alert,
        )  # fmt: skip
        self.events.append(event)
        self.dispatcher.on_event(event, self.now_us)
        return event

    def command(self, kind: CommandKind, name: str, duration_s: float | None = None) -> AlertEvent | None:
        self.commands += 1
        alert = self.alerts[name].id if name in self.alerts else name
        answer = self.dispatcher.on_command(
            Command(
                id=f"command-{self.commands}", kind=kind, alert_id=alert, time=time_of(self.now_us), author="ann",
                duration_s=duration_s,
            ),
            self.now_us,
        )  # fmt: skip
        if answer is not None:
            self.answers.append(answer)
        return answer

    def advance(self, until_us: int) -> list[tuple[int, Notification]]:
        """Lets time pass, waking up as the dispatcher asks for; what is sent, and when."""
        found = []
        while (due_us := self.dispatcher.next_us()) is not None and due_us <= until_us:
            self.now_us = max(due_us, self.now_us)
            before = self.dispatcher.next_us()
            found += [(self.now_us, one) for one in self.dispatcher.on_time(self.now_us)]
            after = self.dispatcher.next_us()
            assert after is None or after > self.now_us or after != before, "it would wake up for ever"
        self.now_us = until_us
        return found

    def restart(self) -> None:
        self.dispatcher = Dispatcher(self.config, self.dispatcher.snapshot(), self.now_us)


def told(notification: Notification) -> str:
    """mail first a -b"""
    parts = [notification.receiver, notification.reason.value + (f"/{notification.step}" if notification.step else "")]
    for one in sorted(notification.alerts, key=lambda one: (not one.firing, one.alert.name, str(one.alert.labels))):
        parts += [("" if one.firing else "-") + ("~" if one.flapping else "") + one.alert.name]
    if notification.truncated:
        parts.append(f"+{notification.truncated}")
    return " ".join(parts)


def play(configs: str | Mapping[str, str], text: str, *, restarts: bool) -> World:
    """Plays a scenario, in a dispatcher that restarts before every line or never; fails at the first difference."""
    named = {"": configs} if isinstance(configs, str) else dict(configs)
    read = {name: config_of(one) for name, one in named.items()}
    world = World.of(next(iter(read.values())))
    for line in filter(str.strip, text.strip().splitlines()):
        when, what, expected = (part.strip() for part in line.split("|"))
        until_us = START_US + seconds(when) * S
        found = world.advance(until_us)
        if restarts:
            world.restart()
        for one in filter(None, (part.strip() for part in what.split(";"))):
            _do(world, one, read)
        found += world.advance(until_us)
        early = [(t_us, one) for t_us, one in found if t_us < until_us]
        assert not early, f"{line}\n  before: {[(timedelta(microseconds=t - START_US), told(n)) for t, n in early]}"
        sent = sorted(told(one) for _, one in found)
        wanted = sorted(filter(None, (part.strip() for part in expected.split(";"))))
        assert sent == wanted, f"{line}\n  sent: {'; '.join(sent) or 'nothing'}"
    return world


def _do(world: World, text: str, configs: Mapping[str, DispatchConfig]) -> None:
    verb, *words = text.split()
    if verb == "fire":
        pairs = dict(word.split("=") for word in words[1:])
        severity = pairs.pop("severity", "warning")
        world.fire(words[0], pairs, severity)
    elif verb in ("resolve", "ack"):
        world.change(words[0], Transition.RESOLVED if verb == "resolve" else Transition.ACKNOWLEDGED)
    elif verb == "silence":
        world.command(CommandKind.SILENCE, words[0], seconds(words[1]))
    elif verb == "unsilence":
        world.command(CommandKind.UNSILENCE, words[0])
    elif verb == "again":
        for event in list(world.events):
            world.dispatcher.on_event(event, world.now_us)
    else:
        assert verb == "config", text
        world.config = configs[words[0]]
        world.dispatcher.on_config(world.config, world.now_us)
