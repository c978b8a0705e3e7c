"""The alert dataflow: window rows, configuration and commands -> alert events, statuses, notifications.

`tailrace_flows.slo`, `.health` and `.anomaly` are the same dataflow with other parts.
`python -m bytewax.run tailrace_flows.alerts:flow` runs it with the settings of the environment; `tailrace run alerts`
adds recovery and clean stops. See docs/alerting.md.
"""

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from functools import cache, partial
from typing import Any, TypeGuard

import bytewax.operators as op
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic
from tailrace_schemas.alerts import AlertEvent, Command
from tailrace_schemas.cloudevents import read_command, read_event
from tailrace_schemas.config import ConfigModel
from tailrace_schemas.deadletter import DeadLetter
from tailrace_schemas.rows import WindowRows, decode_window_rows

from tailrace_flows import host_clock
from tailrace_flows.adapters import Adapters
from tailrace_flows.alert_rows import incident_row
from tailrace_flows.config_topic import ConfigChange, decode_change, read_config
from tailrace_flows.core.alerting.evaluator import EVALUATORS, Evaluator, Findings
from tailrace_flows.core.alerting.responder import Responder, Response
from tailrace_flows.core.alerting.told import Told, standing_of, told_of
from tailrace_flows.core.alerting.units import plan
from tailrace_flows.core.feed import Reading, TopicFeed
from tailrace_flows.core.shard import Output
from tailrace_flows.outputs import AggregatesSink, DeadLettersSink, EventsSink, FindingsSink, NotificationsSink
from tailrace_flows.settings import Settings
from tailrace_flows.slo_past import History, SloPast
from tailrace_flows.source import Place, TopicSource
from tailrace_flows.topic_reader import read_topic

__all__ = ["add_alerts", "build_flow", "flow"]

LOOKBACK_S = 3600
"""How old the records are, at most, with which a flow begins that has no state."""

TOLD_MARGIN_S = 60
"""By so much more than a state says, the alerts topic is read back: hosts' clocks differ."""
KINDS = {"rules": "rule_group", "slo": "slo", "health": "health"}
"""Part -> the kind of its units."""

Judged = WindowRows | Reading | ConfigChange | Command
"""What an evaluator takes."""
Heard = AlertEvent | ConfigChange | Command
"""What the responder takes."""
Config = Callable[[], Mapping[str, ConfigModel]]
"""Reads the config topic to its end, once a process."""
Recall = Callable[[int | None], Iterable[Told]]
"""What the alerts topic has of a wall time and since; None: what stands."""


class _Evaluate(StatefulBatchLogic[tuple[int, Judged], Findings, bytes]):
    """Wall time and Bytewax's callbacks around an `Evaluator`, which is made when its number is known."""

    def __init__(
        self, parts: Collection[str], config: Config, history: History, recall: Recall, state: bytes | None
    ) -> None:
        self._plan = partial(plan, parts)
        self._config = config
        self._recall = recall
        self._past = SloPast(history)
        self._evaluator: Evaluator | None = None
        if state is not None:
            self._evaluator = Evaluator.restored(self._plan, config(), host_clock.now_us(), state, recall)
            self._past.prime(self._evaluator.units)

    def on_batch(self, values: list[tuple[int, Judged]]) -> tuple[Iterable[Findings], bool]:
        if self._evaluator is None:
            self._evaluator = Evaluator(
                values[0][0], self._plan, self._config(), host_clock.now_us(), told=self._recall
            )
        self._past.prime(self._evaluator.units)
        found = []
        for _, value in values:
            now_us = host_clock.now_us()
            if isinstance(value, WindowRows):
                found.append(self._evaluator.on_rows(value, now_us))
            elif isinstance(value, Reading):
                found.append(self._evaluator.on_reading(value.time_us, now_us))
            elif isinstance(value, ConfigChange):
                found.append(self._evaluator.on_change(value.key, value.model, now_us))
                self._past.prime(self._evaluator.units)
            else:
                found.append(self._evaluator.on_command(value, now_us))
        return [one for one in found if one], self.RETAIN

    def on_notify(self) -> tuple[Iterable[Findings], bool]:
        if self._evaluator is None:
            return (), self.RETAIN
        self._past.prime(self._evaluator.units)
        found = self._evaluator.on_time(host_clock.now_us())
        return (found,) if found else (), self.RETAIN

    def on_eof(self) -> tuple[Iterable[Findings], bool]:
        return (), self.RETAIN

    def notify_at(self) -> datetime | None:
        if self._evaluator is None:
            return None
        now_us = host_clock.now_us()
        due_us, past_us = self._evaluator.next_us(now_us), self._past.next_us(now_us)
        return host_clock.as_datetime(due_us if past_us is None else min(due_us, past_us))

    def snapshot(self) -> bytes:
        assert self._evaluator is not None
        return self._evaluator.snapshot()


class _Respond(StatefulBatchLogic[Heard, Response, bytes]):
    """Wall time and Bytewax's callbacks around the `Responder`."""

    def __init__(self, config: Config, state: bytes | None) -> None:
        self._responder = Responder(config(), host_clock.now_us(), state)

    def on_batch(self, values: list[Heard]) -> tuple[Iterable[Response], bool]:
        for value in values:
            now_us = host_clock.now_us()
            if isinstance(value, AlertEvent):
                self._responder.on_event(value, now_us)
            elif isinstance(value, ConfigChange):
                self._responder.on_change(value.key, value.model, now_us)
            else:
                self._responder.on_command(value, now_us)
        return self.on_notify()

    def on_notify(self) -> tuple[Iterable[Response], bool]:
        found = self._responder.on_time(host_clock.now_us())
        return (found,) if found else (), self.RETAIN

    def on_eof(self) -> tuple[Iterable[Response], bool]:
        return (), self.RETAIN

    def notify_at(self) -> datetime | None:
        due_us = self._responder.next_us()
        return None if due_us is None else host_clock.as_datetime(due_us)

    def snapshot(self) -> bytes:
        return self._responder.snapshot()


def build_flow(
    settings: Settings,
    *,
    stop: threading.Event | None = None,
    hurry: Callable[[], bool] | None = None,
    process: int = 0,
) -> Any:
    """The dataflow. Step ids are part of the recovery state: renaming one loses it (a test pins them).

    Args: as of `tailrace_flows.windows.build_flow`.
    """
    dataflow = Dataflow("tailrace_alerts")
    add_alerts(dataflow, Adapters(settings, stop, hurry), ("rules", "response"))
    return dataflow


def add_alerts(dataflow: Dataflow, adapters: Adapters, parts: Collection[str]) -> None:
    """The steps of an alert dataflow.

    `parts`: of `rules`, `slo`, `health`, `anomaly`, and `response` to all alert events.
    """
    topics = adapters.settings.kafka.topics
    client = adapters.settings.kafka.client()

    @cache
    def config() -> Mapping[str, ConfigModel]:
        return read_config(client, topics.config)

    known: dict[int, list[Told]] = {}

    @cache
    def standing() -> list[Told]:
        return standing_of(event for _, event in read_topic(client, topics.alerts, lambda _, value: read_event(value)))

    def recall(state_us: int | None) -> list[Told]:
        if state_us is None:
            found = standing()
        else:
            since_us = state_us - TOLD_MARGIN_S * 1_000_000
            if not any(at_us <= since_us for at_us in known):  # all keys' states are of about the same time
                events = read_topic(client, topics.alerts, lambda _, value: read_event(value), since_us)
                known[since_us] = told_of(event for _, event in events)
            found = next(every for at_us, every in known.items() if at_us <= since_us)
        kinds = {KINDS[part] for part in parts if part in KINDS}
        return [one for one in found if one.unit.partition("/")[0] in kinds]

    def read(
        name: str, topic: str, decode: Callable[[bytes | None, bytes], Any], *, anew: bool = False,
        marks_silence: bool = False,
    ) -> Any:  # fmt: skip
        """The items of a topic, and its dead letters; `anew`: always from its start; `marks_silence`: as of a feed."""
        since_us = 0 if anew else host_clock.now_us() - LOOKBACK_S * 1_000_000

        def build(place: Place, state: bytes | None) -> TopicFeed[Any]:
            start = place.low if anew else place.recent
            return TopicFeed(
                place.number, place.topic, decode, cluster_id=place.cluster_id, start=start,
                state=None if anew else state, since_us=since_us, marks_silence=marks_silence,
            )  # fmt: skip

        group = f"{adapters.settings.kafka.topic_prefix}-{dataflow.flow_id.removeprefix('tailrace_')}"
        source = TopicSource(client, topic, group, build, stop=adapters.stop, since_us=since_us or None)
        sides = op.branch(f"{name}_counts", op.input(name, dataflow, source), _is_counts)
        counts.append(op.map(f"{name}_counted", sides.trues, _counted))
        kinds = op.branch(f"{name}_good", sides.falses, _is_good)
        return kinds.trues, op.key_on(f"{name}_letter_key", kinds.falses, lambda letter: str(letter.partition))

    counts: list[Any] = []
    changes, letters = read("config", topics.config, decode_change, anew=True)
    commands, more = read("commands", topics.commands, lambda _, value: read_command(value))
    all_letters = [letters, more]
    found = []
    if judged := [part for part in parts if part != "response"]:
        rows, more = read("rows", topics.aggregates, lambda _, value: decode_window_rows(value), marks_silence=True)
        all_letters.append(more)
        every = op.flat_map("every_evaluator", op.merge("judged", rows, changes, commands), _for_every_evaluator)
        findings = op.stateful_batch(
            "evaluate", every, lambda state: _Evaluate(judged, config, adapters.slo_history, recall, state)
        )
        op.output("alerts", findings, EventsSink(adapters.kafka, topics.alerts))
        if "anomaly" in judged:
            op.output("scores", findings, AggregatesSink(adapters.kafka, topics.aggregates))
        found.append(findings)
    if "response" in parts:
        events, more = read("events", topics.alerts, lambda _, value: read_event(value))
        all_letters.append(more)
        heard = op.key_on("responder_key", op.merge("heard", events, changes, commands), lambda _: "00")
        responses = op.stateful_batch("respond", heard, lambda state: _Respond(config, state))
        op.output("notifications", responses, NotificationsSink(adapters.kafka, topics.notifications, topics.alerts))
        found.append(op.map_value("answers", responses, _stored))
    op.output("findings", op.merge("all_findings", *found, *counts), FindingsSink(adapters.behind))
    op.output("letters", op.merge("all_letters", *all_letters), DeadLettersSink(adapters.kafka, topics.dead_letters))


def _stored(response: Response) -> Findings:
    """What of a response goes to ClickHouse."""
    incidents = [incident_row(one) for one in response.incidents]
    return Findings(response.events, {"incident_rows": incidents} if incidents else {})


def _is_counts(item: Judged | Heard | DeadLetter | Output) -> TypeGuard[Output]:
    return isinstance(item, Output)


def _counted(counts: Output) -> tuple[str, Findings]:
    """What a source has counted, for ClickHouse."""
    return "00", Findings(counters=counts.counters)


def _is_good(item: Judged | Heard | DeadLetter) -> TypeGuard[Judged | Heard]:
    return not isinstance(item, DeadLetter)


def _for_every_evaluator(item: Judged) -> list[tuple[str, tuple[int, Judged]]]:
    if isinstance(item, WindowRows) and item.stream:
        return []  # a replay of old data raises no alerts
    return [(f"{number:02d}", (number, item)) for number in range(EVALUATORS)]


def flow() -> Any:
    """The dataflow with the settings of the environment, for `python -m bytewax.run`."""
    return build_flow(Settings())
