"""Rules, objectives, alert lifecycles and dispatch in a virtual world, against plain dictionaries.

A world is made from its seed alone. Window rows of a few services come in some order, late, revised and twice; people
acknowledge, resolve, mark and silence; the configuration changes; the evaluators and the responder crash at any step
and go on from their last states. Every event must be the one that `Judge` finds with all rows at hand, and whoever is
notified must in the end know what is so.

In outages nothing can be read; what waited then is read one after the other, until its time is wall time again. In
every second world the windows flow says that it goes on, and is itself away in half of the outages.

In a *changing* world services are silent for so long that they are not waited for, and the configuration changes just
before a crash. What is found is then not found again; but every alert that was told of must end.
"""

import traceback
from collections import Counter
from functools import partial
from random import Random
from typing import Any
from zlib import crc32

from tailrace_flows.core.alerting.evaluator import EVALUATORS, Evaluator
from tailrace_flows.core.alerting.responder import Responder
from tailrace_flows.core.alerting.told import told_of
from tailrace_flows.core.alerting.units import plan
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Transition, time_of
from tailrace_schemas.config import ConfigModel, load, record_of
from tailrace_schemas.config.rules import NoData
from tailrace_schemas.notifications import Notification
from tailrace_schemas.rows import EVERY_SERVICE, WindowRows
from tailrace_schemas.samples import Series

from tests.flows.alerting.rows import Row, S, batch_of
from tests.reliability.alerts_oracle import ALL, GOOD, STEP_S, Judge
from tests.reliability.attack import Result, Run, attack
from tests.reliability.seeds import seeds

__all__ = ["play", "play_changing"]

START_S = 1_700_000_400
BACKLOG_STEPS_US = (10_000, 100_000, 500_000)
"""A window of a service that waited in Kafka is read so soon after the one before: 50 minutes of three services in 9 s
to 9 minutes, with those that end meanwhile."""
OUTAGES_S = (40, 300, 3000)
OUTAGES_OFTEN = (6, 3, 1)
OUTAGES_PER_US = 0.0036 / S
"""While windows are read; one is due every 3.3 s."""
SERVICES = ("web", "shop", "db")
CPU = tuple(Series("cpu", "gauge", "1", (("host", host),)) for host in ("a", "b"))
PLAN = partial(plan, ("rules", "slo"))
ROUTING = """
receivers: [{name: mail}, {name: pager}]
routing:
  receiver: mail
  group_by: [service]
  group_wait: 10s
  group_interval: 30s
  repeat_interval: 5m
  routes: [{where: {severity: critical}, receiver: pager, group_by: [alertname]}]
"""
SETTLED_US = (3600 + 30) * S
"""By then every silence is over, nothing flaps any more (1 h), and every group has been looked at since (30 s)."""

# -- the world's configuration ---------------------------------------------------------------------------


def _rules(random: Random) -> str:
    """A rule group: what its rules wait for, and what they make of missing data, differ from world to world.

    No mean of values equals a threshold, since the order in which floats are added up is nobody's promise.
    """
    waits = ("0s", "10s", "30s")
    lines = []
    for name, text in (
        ("Busy", "metric: cpu, aggregate: mean, by: [service], threshold: 0.9003"),
        ("Hot", "metric: cpu, aggregate: max, by: [host, service], threshold: 0.9503, clear_threshold: 0.6003"),
        ("Slow", "metric: cpu, aggregate: mean, window: 30s, by: [service], threshold: 0.8003, severity: critical"),
    ):
        if random.random() < 0.8:
            no_data = random.choice(tuple(NoData)).value
            extra = f"for: {random.choice(waits)}, keep_firing_for: {random.choice(waits)}, no_data: {no_data}"
            lines.append(f"  - {{alert: {name}, {text}, op: gt, {extra}}}")
    if not lines:
        return ""
    return "groups:\n- name: host\n  interval: 10s\n  rules:\n" + "\n".join(lines)


OBJECTIVE = """
slos:
- name: it
  service: web
  objective: 99%
  period: 1d
  budget_low: null
  minimum_events: 50
  indicator: {good: {metric: ok}, total: {metric: all}}
  alerts: [{severity: critical, long: 1h, short: 5m, factor: 14.4}]
"""


def _config(text: str) -> dict[str, ConfigModel]:
    return {record_of(item).key: item.model for item in load([("a.yaml", text)]).items}


def _first_few(random: Random, pending: list[Any]) -> list[Any]:
    """The same numbers are drawn whatever there is, so that a seed stays the same world."""
    return pending[: int(random.random() * (len(pending) + 1))]


# -- the machines ----------------------------------------------------------------------------------------

Item = WindowRows | Command


class _Evaluators:
    """The evaluators that have something to do, as one process: a commit stores all, a crash puts all back."""

    def __init__(self, config: dict[str, ConfigModel], now_us: int) -> None:
        self.config = dict(config)
        self.numbers = sorted({crc32(key.encode()) % EVALUATORS for key in ("rule_group/host", "slo/it")})
        self.every = [Evaluator(number, PLAN, config, now_us) for number in self.numbers]
        self.topic: list[AlertEvent] = []
        self._states = [one.snapshot() for one in self.every]
        self._pending: list[AlertEvent] = []
        """Given, but not yet sure to be on the topic."""
        self._since: list[Item] = []

    def take(self, item: Item, now_us: int) -> None:
        self._since.append(item)
        self._give(item, now_us)

    def _give(self, item: Item, now_us: int) -> None:
        for one in self.every:
            found = one.on_command(item, now_us) if isinstance(item, Command) else one.on_rows(item, now_us)
            self._pending += found.events

    def look(self, now_us: int) -> None:
        for one in self.every:
            self._pending += one.on_time(now_us).events

    def reads(self, now_us: int) -> None:
        for one in self.every:
            self._pending += one.on_reading(now_us, now_us).events

    def listens(self, now_us: int) -> bool:
        return any(one.next_us(now_us) <= now_us + S for one in self.every)

    def configure(self, config: dict[str, ConfigModel], now_us: int, *, stored: bool) -> None:
        """`stored`: between two commits. A crash may make a change come before a window that it came after at first."""
        if stored:
            self.commit()
        changed = {key for key in {*self.config, *config} if self.config.get(key) != config.get(key)}
        for key in sorted(changed):
            for one in self.every:
                self._pending += one.on_change(key, config.get(key), now_us).events
        self.config = dict(config)
        if stored:
            self.commit()

    def commit(self) -> None:
        self.topic += self._pending
        self._pending, self._since = [], []
        self._states = [one.snapshot() for one in self.every]

    def crash(self, random: Random, now_us: int) -> None:
        """A part of what was given since the last commit is on the topic."""
        self.topic += _first_few(random, self._pending)
        self._pending = []
        told = told_of(self.topic)
        self.every = [Evaluator.restored(PLAN, self.config, now_us, state, lambda _: told) for state in self._states]
        self.look(now_us)
        for item in self._since:
            self._give(item, now_us)


class _Response:
    """The responder, which reads the topic of events and that of commands."""

    def __init__(self, config: dict[str, ConfigModel], now_us: int) -> None:
        self.config = config
        self.responder = Responder(config, now_us)
        self.sent: list[Notification] = []
        self.answers: list[AlertEvent] = []
        self.heard = 0
        self._snapshots = [(self.responder.snapshot(), 0)]
        """The last two: while one is being stored, a crash goes back to the one before."""
        self._pending: list[Notification] = []

    def read(self, topic: list[AlertEvent], most: int, now_us: int) -> None:
        for event in topic[self.heard : self.heard + most]:
            self.responder.on_event(event, now_us)
            self.heard += 1
        self.look(now_us)

    def command(self, command: Command, now_us: int) -> None:
        self.responder.on_command(command, now_us)
        self.look(now_us)
        for _ in range(2):  # commands of a crashed responder come again after events; nobody promises their order
            self.commit()

    def look(self, now_us: int) -> None:
        found = self.responder.on_time(now_us)
        self._pending += found.notifications
        self.answers += found.events

    def commit(self) -> None:
        self.sent += self._pending
        self._pending = []
        self._snapshots = [*self._snapshots[-1:], (self.responder.snapshot(), self.heard)]

    def crash(self, random: Random, now_us: int) -> None:
        self.sent += _first_few(random, self._pending)
        self._pending = []
        state, self.heard = self._snapshots[-1 if random.random() < 0.5 else 0]
        self._snapshots = [(state, self.heard)]
        self.responder = Responder(self.config, now_us, state)


# -- the world -------------------------------------------------------------------------------------------


class World:
    """See the module. `play` runs it."""

    def __init__(self, seed: int, *, changing: bool = False) -> None:
        self.random = random = Random(seed)
        self.outages = Random(f"outages {seed}")  # its own: worlds of before they were thought of stay what they were
        self.flow = Random(f"flow {seed}")
        self.speaks = self.flow.random() < 0.5
        """Whether the windows flow says that it goes on, as those of before could not."""
        self.away = False
        """Whether it was away, and has not caught up yet."""
        self.changing = changing
        self.silent: dict[str, int] = {}
        """Of a changing world: service -> for how many windows it will still be silent."""
        self.calm = False
        text = "".join((_rules(random) or _always(), OBJECTIVE, ROUTING))
        self.config = _config(text)
        self.now_us = START_S * S
        self.judge = Judge(self.config)
        self.evaluators = _Evaluators(self.config, self.now_us)
        self.response = _Response(self.config, self.now_us)
        self.sent_blocks: list[WindowRows] = []
        self.held: list[tuple[str, int, list[Row]]] = []
        self.moods: dict[str, str] = dict.fromkeys(SERVICES, "calm")
        self.commands = 0
        self.steps = 0
        self.windows = 0
        self.backlog_step_us = BACKLOG_STEPS_US[0]
        self.done: Counter[str] = Counter()

    def pass_windows(self, n: int) -> None:
        """So many windows at their own time, and those in between that outages made wait."""
        while n:
            n -= not self._is_behind(self.windows + 1)
            self.window()

    def window(self) -> None:
        """The rows of all services of the next window, and whatever else happens meanwhile."""
        random = self.random
        self.windows += 1
        number, end_s = self.windows, START_S + self.windows * STEP_S
        waiting, self.held = self.held, []
        for service in random.sample(SERVICES, len(SERVICES)):
            rows = self._rows(service, end_s, whole=number == 1)
            self._pass_time(number)
            self.away = self.away and self._is_behind(number)
            if self.speaks and not self.away:
                read = WindowRows(EVERY_SERVICE, "", STEP_S, self.now_us, batch_of([]))
                self.evaluators.take(read, self.now_us)
            self.evaluators.reads(self.now_us)
            if self._is_silent(service, number):
                self.held += [*(one for one in waiting if one[0] == service), (service, end_s, rows)]
                continue
            for one in [one for one in waiting if one[0] == service]:
                self._deliver(*one)
            if not self.calm and random.random() < 0.1 and number > 1 and not any(one[0] == service for one in waiting):
                self.held.append((service, end_s, rows))
            else:
                self._deliver(service, end_s, rows)
            self._meanwhile()
        if self.judge.listening:
            self._listen()

    def _is_behind(self, number: int) -> bool:
        """Whether a window ended a while ago, and waits to be read."""
        return self.now_us > (START_S + number * STEP_S) * S

    def _pass_time(self, number: int) -> None:
        """The time until rows of a window can be read."""
        if self.judge.listening:
            self.now_us += S
            return
        behind = self._is_behind(number)
        step_us = self.backlog_step_us if behind else STEP_S * S // len(SERVICES)
        self.done["windows read late"] += behind
        self.now_us += step_us
        if not self.calm and self.outages.random() < OUTAGES_PER_US * step_us:
            self._pass_an_outage()

    def _pass_an_outage(self) -> None:
        """Nothing can be read for a while, or nothing comes: what was sent meanwhile comes when it is over."""
        self.away = self.speaks and self.flow.random() < 0.5
        (outage_s,) = self.outages.choices(OUTAGES_S, OUTAGES_OFTEN)
        until_us = self.now_us + outage_s * S
        while self.now_us < until_us:
            self.now_us += STEP_S * S
            if self.away:
                self.evaluators.reads(self.now_us)
            else:
                self.evaluators.look(self.now_us)
            self.response.look(self.now_us)
        self.done["outages of the windows flow"] += self.away
        self.backlog_step_us = self.outages.choice(BACKLOG_STEPS_US)
        self.done[f"outages of {outage_s} s"] += 1

    def _is_silent(self, service: str, number: int) -> bool:
        if not self.changing or self.calm or number == 1:
            return False
        if self.silent.get(service, 0) == 0 and self.random.random() < 0.03:
            self.silent[service] = self.random.randint(3, 8)
        self.silent[service] = max(0, self.silent.get(service, 0) - 1)
        return self.silent[service] > 0

    def _listen(self) -> None:
        """As long as it is listened who else there is, nothing else happens; states are stored more often than that."""
        while self.evaluators.listens(self.now_us):
            self.now_us += S
            self.evaluators.look(self.now_us)
        self.evaluators.commit()
        self.judge.listening = False
        if not self.changing:
            self.judge.reach()

    def _rows(self, service: str, end_s: int, *, whole: bool) -> list[Row]:
        random = self.random
        if self.calm:
            self.moods[service], whole = "calm", True
        elif random.random() < 0.08:
            self.moods[service] = random.choice(("calm", "busy", "between", "failing", "wild", "gone"))
        mood = self.moods[service]
        if mood == "gone" and not whole:
            return []
        levels = {"calm": (0.2, 0.5), "busy": (0.92, 0.99), "between": (0.7, 0.85), "failing": (0.3, 0.97)}
        low, high = levels.get(mood, (0.0, 1.0))
        rows = [
            Row(service, series, end_s, (random.choice((low, high, (low + high) / 2)),), 1)
            for series in CPU
            if whole or random.random() < 0.9
        ]
        if service == "web":
            total = random.choice((1, 10, 100))
            bad = random.randint(total // 5, total) if mood == "failing" else 0
            rows += [Row(service, ALL, end_s, (float(total),), 1), Row(service, GOOD, end_s, (float(total - bad),), 1)]
        return rows

    def _deliver(self, service: str, end_s: int, rows: list[Row]) -> None:
        self.steps += 1
        block = WindowRows(service, "", STEP_S, end_s * S, batch_of(rows))
        self.sent_blocks.append(block)
        self._hear(service, end_s, rows)
        self.evaluators.take(block, self.now_us)
        if not self.calm and self.random.random() < 0.05 and rows:  # revised, soon afterwards
            more = [row._replace(values=(self.random.random(),), version=2) for row in rows if row.series in CPU]
            self._hear(service, end_s, more)
            self.evaluators.take(block._replace(rows=batch_of(more)), self.now_us)

    def _hear(self, service: str, end_s: int, rows: list[Row]) -> None:
        if not self.changing:
            self.judge.hear(service, end_s, rows)

    def _meanwhile(self) -> None:
        random = self.random
        self.steps += 1
        chance = random.random()
        if chance < 0.06:
            self.evaluators.crash(random, self.now_us)
            self.done["crashes"] += 1
        elif chance < 0.25:
            self.evaluators.commit()
        elif chance < 0.33:
            self._command()
        elif chance < 0.36:
            again = random.choice(self.sent_blocks[-20:])
            self.evaluators.take(again, self.now_us)
        elif chance < (0.39 if self.changing else 0.37):
            self.config = _config("".join((_rules(random) or _always(), OBJECTIVE, ROUTING)))
            self.evaluators.configure(self.config, self.now_us, stored=not self.changing)
            if not self.changing:
                self.judge.configure(self.config)
            self.done["configurations"] += 1
        elif chance < 0.41:
            self.response.crash(random, self.now_us)
            self.done["crashes of the responder"] += 1
        elif chance < 0.60:
            self.response.commit()
        self.response.read(self.evaluators.topic, random.choice((1, 5, 100)), self.now_us)

    def _command(self) -> None:
        random = self.random
        alerts = dict.fromkeys(one.alert.id for one in self.evaluators.topic if one.alert) if self.changing else None
        alerts = self.judge.alerts if alerts is None else alerts
        if not alerts:
            return
        self.commands += 1
        kind = random.choice(
            (
                CommandKind.ACKNOWLEDGE,
                CommandKind.ACKNOWLEDGE,
                CommandKind.RESOLVE,
                CommandKind.MARK,
                CommandKind.SILENCE,
            )
        )
        command = Command(
            id=f"c{self.commands}", kind=kind, alert_id=random.choice(tuple(alerts)[-6:]),
            time=time_of(self.now_us), author="ann", duration_s=90 if kind is CommandKind.SILENCE else None,
            false_positive=random.random() < 0.7,
        )  # fmt: skip
        self.done["commands"] += 1
        self.response.command(command, self.now_us)
        if kind is not CommandKind.SILENCE:
            for _ in range(random.choice((1, 1, 2))):  # at least once
                self.evaluators.take(command, self.now_us)
            if not self.changing:
                self.judge.command(command)

    def settle(self) -> None:
        """Everything is delivered, read and due."""
        for one in self.held:
            self._deliver(*one)
        self.evaluators.commit()
        self.response.read(self.evaluators.topic, len(self.evaluators.topic), self.now_us)
        self.response.commit()  # also where nothing is due any more: what was given just now is sent
        until_us = self.now_us + SETTLED_US
        while (due_us := self.response.responder.next_us()) is not None and due_us <= until_us:
            self.now_us = max(self.now_us, due_us)
            self.response.look(self.now_us)
            self.response.commit()

    def check(self) -> None:
        """Events are those of the judge, in order, and everybody knows in the end what is so."""
        found: dict[str, tuple[str, str, int]] = {}
        for event in self.evaluators.topic:
            assert event.alert is not None
            what = (event.alert.id, event.transition.value, event.sequence)
            assert found.setdefault(event.id, what) == what
        assert found == self.judge.told
        last: dict[str, int] = {}
        for alert, _, sequence in found.values():  # in the order in which they came first
            assert sequence == last.get(alert, -1) + 1, alert
            last[alert] = sequence
        self._check_notifications()

    def check_ends(self) -> None:
        """Every alert that was told of has ended, once nothing is past a threshold any more, and everybody knows."""
        found: dict[str, tuple[str, str]] = {}
        last: dict[str, tuple[int, str]] = {}
        for event in self.evaluators.topic:
            assert event.alert is not None
            what = (event.alert.id, event.transition.value)
            assert found.setdefault(event.id, what) == what
            if event.transition is not Transition.REJECTED:
                one = (event.sequence, event.alert.status.value)
                last[event.alert.id] = max(last.get(event.alert.id, one), one)
        endless = {alert: status for alert, (_, status) in last.items() if status != "resolved"}
        assert not endless, endless
        assert not [event for one in self.evaluators.every for unit in one.units.values() for event in unit.republish()]
        self._check_notifications()

    def _check_notifications(self) -> None:
        final: dict[tuple[str, str], tuple[float, int, bool, bool]] = {}
        """(receiver, identity) -> when it began, sequence, whether it fires, whether somebody acknowledged it."""
        for event in self.evaluators.topic:
            if event.alert is None or event.transition is Transition.REJECTED:
                continue
            receiver = "pager" if event.alert.severity.value == "critical" else "mail"
            key = (receiver, f"{event.alert.source} {sorted(event.alert.labels.items())}")
            firing = event.alert.status.value != "resolved"
            one = (event.alert.timestamp.timestamp(), event.sequence, firing, event.alert.acknowledged_at is not None)
            final[key] = max(final.get(key, one), one)
        told: dict[tuple[str, str], bool] = {}
        contents: dict[str, list[tuple[str, bool]]] = {}
        for notification in self.response.sent:
            shown = [(one.alert.id, one.firing) for one in notification.alerts]
            assert contents.setdefault(notification.id, shown) == shown, "one id, two contents"
            for alert, firing in ((one.alert, one.firing) for one in notification.alerts):
                told[(notification.receiver, f"{alert.source} {sorted(alert.labels.items())}")] = firing
        assert told.keys() <= final.keys()
        for key, (_, _, firing, _) in final.items():
            if firing:
                assert told.get(key) is True, f"{key} fires, and nobody knows"
            else:
                assert not told.get(key, False), f"{key} is over, and nobody knows"
        self.done["notifications"] += len(contents)


def _always() -> str:
    return (
        "groups: [{name: host, interval: 10s, rules: "
        "[{alert: Busy, metric: cpu, aggregate: mean, by: [service], op: gt, threshold: 0.9003}]}]\n"
    )


CALM_WINDOWS = 60
"""By then an objective's short window (5 minutes), and whatever a rule waits for, is over."""


def play_changing(seed: int, windows: int = 100) -> tuple[int, Counter[str]]:
    """Lets the changing world of this seed happen, as `play`."""
    world = World(seed, changing=True)
    world.pass_windows(windows)
    world.calm = True
    world.pass_windows(CALM_WINDOWS)
    world.settle()
    world.check_ends()
    return world.steps, Counter({f"{name}, changing": value for name, value in world.done.items()})


def play(seed: int, windows: int = 100) -> tuple[int, Counter[str]]:
    """Lets the world of this seed happen. Returns its number of steps, and what was in it.

    Raises:
        AssertionError: something came out that should not have.
    """
    world = World(seed)
    world.pass_windows(windows)
    world.settle()
    world.check()
    world.done["events"] += len(world.judge.told)
    return world.steps, world.done


@attack(
    name="alerts",
    promise="Each transition of an alert reaches the topic at least once, with an id that makes it once; whoever is "
    "notified knows in the end what is so",
    what="Rules, objectives, alert lifecycles and dispatch in virtual worlds: crashes at any step, rows late, "
    "twice and revised, commands twice, new configurations; every event against plain dictionaries; and as many worlds "
    "in which silent services come back and rules change within a crash, after which every alert told of must end",
    unit="steps",
    short=40_000,
    long=1_000_000,
)
def alerts(run: Run) -> Result:
    """Worlds until there are enough steps, and of all seeds that failed before."""
    result = Result()
    done: Counter[str] = Counter()
    for seed in seeds(run, result):
        for one in (play, play_changing):
            try:
                steps, found = one(seed)
            except Exception:  # noqa: BLE001 - whatever it is, this seed does it again
                result.failures.append(run.failure(traceback.format_exc(), seed=seed, size=1))
                result.runs += 1
                continue
            result.runs += steps
            done += found
        if len(result.seeds) % 100 == 0:
            run.say(f"  {result.runs:,} steps, {len(result.seeds)} worlds")
    result.figures = {"worlds of each kind": len(result.seeds), **dict(sorted(done.items()))}
    return result
