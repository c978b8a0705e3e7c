"""Scenarios of one rule's alerts as text, in the manner of Prometheus' promqltest.

    for 1m, keep_firing_for 30s
      0s | a=91 b=95        |
     1m  | a=92 b~75        | active a
     2m  | ack a            | acknowledged a
     3m  | restart          |
     4m  |                  | resolved a

Each line: a time; what is given; which events come out. `a=91` is a value past the threshold, `a~75` one that holds an
alert (not past the clear threshold), `a?` no data for it, `?` no data for all the rest. A line with neither of them nor
a command is an evaluation where nothing is past the threshold. Commands stand alone: `ack a`, `resolve a`, `note a`,
`mark a`, `unmark a`, each by "ann" for the alert that the label had last; `again` delivers the last command once more.
`restart` goes through a pickled snapshot. `republish` sends what is active.
"""

import pickle
import re
from dataclasses import dataclass, field

from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Labels, Severity, Transition, time_of

__all__ = ["Player", "S", "labels_of", "play", "seconds"]

S = 1_000_000
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
KINDS = {
    "ack": CommandKind.ACKNOWLEDGE,
    "resolve": CommandKind.RESOLVE,
    "note": CommandKind.ANNOTATE,
    "mark": CommandKind.MARK,
    "unmark": CommandKind.MARK,
}


def seconds(text: str) -> int:
    """5m30s -> 330."""
    parts = re.findall(r"(\d+)([smhd])", text)
    assert parts, text
    assert "".join(number + unit for number, unit in parts) == text, text
    return sum(int(number) * UNITS[unit] for number, unit in parts)


def labels_of(name: str) -> Labels:
    return (("series", name),)


@dataclass
class Player:
    """Feeds a rule's alerts, and keeps what came out."""

    spec: AlertSpec
    alerts: RuleAlerts = field(init=False)
    ids: dict[str, str] = field(default_factory=dict)
    """The last alert id of each series."""
    events: list[AlertEvent] = field(default_factory=list)
    last: Command | None = None
    commands: int = 0

    def __post_init__(self) -> None:
        self.alerts = RuleAlerts(self.spec)

    def evaluate(
        self, t_us: int, breached: dict[str, float], holding: dict[str, float], silent: bool | set[str] = False
    ) -> list[AlertEvent]:
        found = self.alerts.evaluate(
            t_us,
            {labels_of(name): value for name, value in breached.items()},
            {labels_of(name): value for name, value in holding.items()},
            silent=silent if isinstance(silent, bool) else {labels_of(name) for name in silent},
        )
        for event in found:
            if event.transition is Transition.ACTIVE:
                assert event.alert is not None
                self.ids[event.alert.labels["series"]] = event.alert.id
        self.events += found
        return found

    def command(self, t_us: int, verb: str, name: str) -> list[AlertEvent] | None:
        self.commands += 1
        self.last = Command(
            id=f"command-{self.commands}",
            kind=KINDS[verb],
            alert_id=self.ids.get(name, "unknown"),
            time=time_of(t_us),
            author="ann",
            message="seen" if verb == "note" else "",
            false_positive=verb == "mark",
        )
        return self.again()

    def again(self) -> list[AlertEvent] | None:
        assert self.last is not None
        found = self.alerts.command(self.last)
        self.events += found or []
        return found

    def restart(self) -> None:
        self.alerts = RuleAlerts(self.spec, pickle.loads(pickle.dumps(self.alerts.snapshot())))


def play(text: str) -> None:
    """Plays a scenario; fails at the first line whose events differ."""
    header, *lines = [line for line in text.strip().splitlines() if line.strip()]
    given = {}
    for part in filter(None, (one.strip() for one in header.split(","))):
        name, value = part.split()
        given[name] = seconds(value) * S
    spec = AlertSpec(
        "Rule",
        "group/Rule",
        Severity.WARNING,
        for_us=given.get("for", 0),
        keep_firing_for_us=given.get("keep_firing_for", 0),
    )
    player = Player(spec)
    for line in lines:
        when, what, *expected = (part.strip() for part in line.split("|"))
        assert len(expected) == 1, f"three columns are needed: {line}"
        found = _step(player, seconds(when) * S, what)
        assert found == expected[0], f"{line}\n  gave: {found or 'nothing'}"


def _step(player: Player, t_us: int, what: str) -> str:
    words = what.split()
    if words == ["restart"]:
        player.restart()
        return ""
    if words == ["republish"]:
        return _told(player.alerts.republish())
    if words == ["again"]:
        return _told(player.again())
    if words and words[0] in KINDS:
        return _told(player.command(t_us, words[0], words[1]))
    breached: dict[str, float] = {}
    holding: dict[str, float] = {}
    silent: set[str] = set()
    for word in words:
        name, sign, value = re.fullmatch(r"(\w*)([=~?])([\d.]*)", word).groups()  # type: ignore[union-attr]  # or fail
        if sign == "?":
            silent.add(name)
        else:
            (breached if sign == "=" else holding)[name] = float(value)
    return _told(player.evaluate(t_us, breached, holding, True if "" in silent else silent))


def _told(events: list[AlertEvent] | None) -> str:
    if events is None:
        return "unknown"
    told = []
    for event in events:
        name = event.alert.labels["series"] if event.alert else ""
        told.append(f"{event.transition} {name}" + (f": {event.reason}" if event.reason else ""))
    return ", ".join(told)
