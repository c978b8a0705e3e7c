"""One key of the evaluation: configuration, rows and commands in; alert events and statuses out.

A plain state machine; wall time (`now_us`) is given by the caller and only says which services are waited for. What is
judged are *units*: a rule group, an objective, the health of all services. Each belongs to one key by its name.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol, Self, runtime_checkable
from zlib import crc32

import pyarrow as pa
import pyarrow.compute as pc
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Status, Transition, us_of
from tailrace_schemas.config import ConfigModel, model_of
from tailrace_schemas.rows import EVERY_SERVICE, WINDOW_ROWS, WindowRows

from tailrace_flows.core.alerting.clock import DELAY, STALL_US, EvaluationClock
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_flows.core.alerting.store import MAX_SPAN_US, STEP_US, Keep, WindowStore
from tailrace_flows.core.alerting.told import Told
from tailrace_flows.core.chunk import UNKNOWN_US
from tailrace_flows.core.counters import Counters
from tailrace_flows.core.sealed import seal, unseal
from tailrace_flows.core.table import AFTER_ALL

__all__ = ["EVALUATORS", "Evaluator", "Findings", "Plan", "Unit"]

EVALUATORS: Final = 8
"""Keys that units are spread over. Fixed: changing it would orphan the state of every running flow."""
BACKLOG_US: Final = 3600 * 1_000_000
"""So much is judged step by step when evaluation is behind, or begins anew; what lies before that is passed over."""
AT_ONCE: Final = 60
"""Steps that are worked out together. With 1,000 rules over 10,000 series an hour at once takes ten times as long."""
LATENESS_US: Final = 60_000_000
"""Rows are kept so much longer than looked back at: a revised row must find the one it replaces."""
COUNTERS_US: Final = 2_000_000
STATE_VERSION: Final = 1

_GONE: Final = "it is no longer in the configuration"
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Findings(NamedTuple):
    """What judging gives."""

    events: Sequence[AlertEvent] = ()
    rows: Mapping[str, list[dict[str, Any]]] = MappingProxyType({})
    """Table -> rows for it, besides those of events."""
    counters: Any = None
    """A record batch of COUNTERS, or None."""
    blocks: Sequence[WindowRows] = ()
    """Rows of metrics that were found by judging, for the aggregates topic; they say nothing of closed windows."""

    def __bool__(self) -> bool:
        return bool(self.events or self.rows or self.counters is not None or self.blocks)


class Moment(NamedTuple):
    """What a unit judges by."""

    store: WindowStore
    t_us: int
    until_us: int
    """It will be judged at all multiples of its interval up to here, before the rows change."""
    changed: Sequence[tuple[str, int]]
    """The (metric, window end) of its metrics whose rows are new or revised since the last time."""
    tally: Callable[..., None]
    """`tally(name, n)` counts what was done."""


class Unit(Protocol):
    """What is judged. Its methods are called in event time."""

    @property
    def interval_us(self) -> int:
        """It is judged at multiples of this."""

    @property
    def keep(self) -> Mapping[str, Keep]:
        """Which metrics it looks at, and how far back."""

    @property
    def by_change(self) -> bool:
        """Whether it wants to know which rows changed."""

    def judge(self, now: Moment) -> Findings:
        """Judges at a time later than before."""

    def command(self, command: Command) -> list[AlertEvent] | None:
        """What a command brings about; None: it is about no alert of this unit."""

    def recall(self, told: Told) -> list[AlertEvent] | None:
        """After a restart, what the topic has of an alert; None: it is of no rule of this unit."""

    def close(self, t_us: int, reason: str, successor: Any = None) -> list[AlertEvent]:
        """The unit is no longer wanted: resolves its alerts, but for those that a changed unit goes on with."""

    def republish(self) -> list[AlertEvent]:
        """The last events of its active alerts again."""

    def snapshot(self) -> Any:
        """Its state, to be pickled."""


@runtime_checkable
class DelayUnit(Protocol):
    """A unit that also tells how late evaluation is, by wall time: event time stands still when that is needed."""

    @property
    def interval_us(self) -> int:
        """As of `Unit`."""

    @property
    def delay_keep(self) -> Mapping[str, Keep]:
        """Which metrics that part of it looks at, and how far back: DELAY, or none."""

    def judge_delays(self, now: Moment) -> list[AlertEvent]:
        """Judges that part, at a wall time."""


class Plan(NamedTuple):
    """A unit that the configuration asks for."""

    signature: Any
    """Equal as long as the unit need not be built anew."""
    build: Callable[[Any], Unit]
    """From a snapshot of the unit before it, or None."""


@dataclass
class _Slot:
    signature: Any
    unit: Unit
    changed: set[tuple[str, int]] = field(default_factory=set)

    def take(self, t_us: int) -> Sequence[tuple[str, int]]:
        """What changed of windows up to a time, in order; it is no longer here then."""
        if not self.changed:
            return ()
        found = sorted(one for one in self.changed if one[1] <= t_us)
        self.changed.difference_update(found)
        return found


class Evaluator:
    """See the module. `number`: which key it is; None: it judges all units. `plan` says which units a configuration
    asks for, by key.

    Raises:
        ValueError: the state was written by another version of this format.
    """

    def __init__(
        self,
        number: int | None,
        plan: Callable[[Mapping[str, ConfigModel]], Mapping[str, Plan]],
        config: Mapping[str, ConfigModel],
        now_us: int,
        state: bytes | None = None,
        *,
        live: bool = True,
        told: Callable[[int | None], Iterable[Told]] = lambda _: (),
    ) -> None:
        """`live`: wall time says who is there, and how late it is; not so where the past is judged. `told` gives, for
        the wall time of a state, what the alerts topic has of that time and since of units that `plan` may ask for; for
        None, without a state, those that stand."""
        self.number = number
        self._plan = plan
        self._config: dict[str, ConfigModel] = {}
        self._texts: dict[str, str] = {}
        """Of `_config`, as JSON: a model's class may have other fields when it is read."""
        self._slots: dict[str, _Slot] = {}
        self._counters_us = now_us
        self._live, self._began_us = live, now_us
        self._clock = EvaluationClock(now_us) if live else EvaluationClock(now_us, settle_us=0)
        self._delays_from_us = (UNKNOWN_US if state else now_us) if live else AFTER_ALL
        """Who begins anew begins with the past hour, which is not late."""
        self._judged_us: int | None = None
        """Everything up to this time has been judged."""
        self._first: list[AlertEvent] = []
        """What the next call gives: after a restart, the events of what is active again."""
        self._counters = Counters(f"evaluator {number}")
        self._store = WindowStore({})
        self._delays = WindowStore({})
        """What is judged by wall time. It is not kept over a restart."""
        self._delays_us = UNKNOWN_US
        """The last time that has a row there."""
        state_us = None if state is None else self._restore(state, now_us)
        unknown = [one for one in told(state_us) if self._owns(one.unit)]
        if state is not None:
            unknown = self._recall(unknown)
        self._first += self._configure(config)
        for one in self._recall(unknown):
            self._first += _end(one, self._now_us())

    @classmethod
    def restored(
        cls,
        plan: Callable[[Mapping[str, ConfigModel]], Mapping[str, Plan]],
        config: Mapping[str, ConfigModel],
        now_us: int,
        state: bytes,
        told: Callable[[int | None], Iterable[Told]] = lambda _: (),
    ) -> Self:
        """From a snapshot, which knows its number; `told` as of the class. Raises as the class does."""
        return cls(unseal(STATE_VERSION, state)[0], plan, config, now_us, state, told=told)

    def _restore(self, state: bytes, now_us: int) -> int:
        """As it was, with the configuration that it had; what has changed since is then a change like any other.

        Returns:
            A wall time, no later than the state is of.
        """
        self.number, self._clock, self._judged_us, totals, rows, config, units = unseal(STATE_VERSION, state)
        state_us = self._clock.latest_us
        self._clock.resume(now_us)
        self._counters = Counters(self._counters.scope, totals)
        kept: dict[str, ConfigModel] = {}
        for key, text in config.items():
            with suppress(ValueError):  # what a newer Tailrace refuses is gone, as it is for who reads the topic
                kept[key] = model_of(key, text)
        self._configure(kept, units)
        self._store = WindowStore(self._store.keep, rows)
        for slot in self._slots.values():
            self._first += slot.unit.republish()
        return state_us

    def _recall(self, every: Iterable[Told]) -> list[Told]:
        """Says what was told to the units that there are; returns what is of none of their rules."""
        unknown = []
        for told in every:
            slot = self._slots.get(told.unit)
            events = None if slot is None else slot.unit.recall(told)
            if events is None:
                unknown.append(told)
            else:
                self._first += events
        return unknown

    def _owns(self, key: str) -> bool:
        return self.number is None or crc32(key.encode()) % EVALUATORS == self.number

    @property
    def units(self) -> Mapping[str, Unit]:
        """What is judged, by key."""
        return {key: slot.unit for key, slot in self._slots.items()}

    # -- what comes ------------------------------------------------------------------------------------

    def on_change(self, key: str, model: ConfigModel | None, now_us: int) -> Findings:
        """A record of the configuration changed; None: it was removed. What it does not touch keeps its state."""
        if self._config.get(key) == model:
            return Findings()
        config = dict(self._config)
        if model is None:
            config.pop(key, None)
        else:
            config[key] = model
        return self._answer(self._configure(config, {}), {}, now_us)

    def on_command(self, command: Command, now_us: int) -> Findings:
        """A person's command; nothing, if it is about an alert of another key, or about who is told."""
        if command.kind in (CommandKind.SILENCE, CommandKind.UNSILENCE):
            return Findings()
        for slot in self._slots.values():
            events = slot.unit.command(command)
            if events is not None:
                return self._answer(events, {}, now_us)
        return Findings()

    def on_rows(self, block: WindowRows, now_us: int) -> Findings:
        """Rows of closed windows. Only the live stream is judged, and only rows of 10 s."""
        if block.stream:
            return Findings()
        if self._live and block.service == EVERY_SERVICE:
            self._clock.go_on(block.watermark_us, now_us)
            return self.on_time(now_us)
        if block.window_seconds * 1_000_000 == STEP_US:
            changed = self._store.add(block.stream, self._of_now(block.rows, now_us) if self._live else block.rows)
            for slot in self._slots.values():
                if slot.unit.by_change:
                    keep = slot.unit.keep
                    slot.changed.update(one for one in changed if one[0] in keep)
            if changed and (self._judged_us is None or self._clock.reached_us is None):
                first_us = min(end_us for _, end_us in changed) - STEP_US  # of all that there is
                self._judged_us = first_us if self._judged_us is None else min(self._judged_us, first_us)
        if block.watermark_us > UNKNOWN_US:
            self._clock.hear(block.service, block.watermark_us, now_us)
        return self.on_time(now_us)

    def _of_now(self, rows: Any, now_us: int) -> Any:
        """Without those of a clock that is far ahead: a metric's first one would keep out all others of that metric.

        Ahead of what is judged, too: where all services are ahead, it is the host's clock that is behind.
        """
        latest_us = max(now_us, self._clock.reached_us or 0) + MAX_SPAN_US
        good = pc.less_equal(rows.column("window_start").cast(pa.int64()), latest_us // 1_000_000)
        if pc.all(good).as_py():
            return rows
        of_now = rows.filter(good)
        self._count("rows_of_the_future", rows.num_rows - of_now.num_rows)
        return of_now

    def on_reading(self, at_us: int, now_us: int) -> Findings:
        """At a wall time rows were being read, or there were no more: only then is silence silence."""
        return self.on_time(now_us) if self._clock.listen(at_us) else Findings()

    def on_time(self, now_us: int) -> Findings:
        """Judges what has become due."""
        events: list[AlertEvent] = []
        rows: dict[str, list[dict[str, Any]]] = {}
        blocks: list[WindowRows] = []
        due = self._due(now_us)
        behind_us = self._clock.behind_us(now_us)
        events += self._judge_delays(now_us, behind_us)
        if DELAY in self._store.keep and behind_us is not None:
            for t_us in due:
                if t_us >= self._delays_from_us:
                    self._store.add("", _delay_row(t_us, behind_us / 1e6))
        for part in (due[first : first + AT_ONCE] for first in range(0, len(due), AT_ONCE)):
            for t_us in part:
                for slot in self._slots.values():
                    if t_us % slot.unit.interval_us:
                        continue
                    found = slot.unit.judge(Moment(self._store, t_us, part[-1], slot.take(t_us), self._count))
                    events += found.events
                    blocks += found.blocks
                    for table, more in found.rows.items():
                        rows.setdefault(table, []).extend(more)
                self._judged_us = t_us
            self._store.forget(part[-1])
        return self._answer(events, rows, now_us)._replace(blocks=blocks)

    def next_us(self, now_us: int) -> int:
        """When `on_time` is wanted, in wall time."""
        due_us = self._clock.next_us(now_us)
        if self._first:
            return now_us
        if self._delays.keep:
            due_us = min(due_us, now_us - now_us % STEP_US + STEP_US)
        return min(due_us, self._counters_us) if self._counters.changed else due_us

    def snapshot(self) -> bytes:
        """The state for recovery."""
        units = {key: (slot.unit.snapshot(), slot.changed) for key, slot in self._slots.items()}
        rows, totals = self._store.snapshot(), self._counters.totals
        return seal(STATE_VERSION, (self.number, self._clock, self._judged_us, totals, rows, self._texts, units))

    # --------------------------------------------------------------------------------------------------

    def _judge_delays(self, now_us: int, behind_us: int | None) -> list[AlertEvent]:
        """Judges by wall time how late evaluation is, once in a step.

        Not while what was told before a start is still to be read; there is as much time for it as for who is silent.
        """
        t_us = now_us - now_us % STEP_US
        if not self._delays.keep or t_us <= self._delays_us:
            return []
        if now_us < self._began_us + STALL_US and (self._clock.reached_us or UNKNOWN_US) < self._began_us:
            return []
        units = [slot.unit for slot in self._slots.values() if isinstance(slot.unit, DelayUnit)]
        if behind_us is not None:
            longest_us = max(unit.interval_us for unit in units)
            # Also of the steps in which there was no time for it: what is judged now may be as of one of them.
            for step_us in range(max(self._delays_us + STEP_US, t_us - longest_us), t_us + 1, STEP_US):
                self._delays.add("", _delay_row(step_us, behind_us / 1e6))
        self._delays_us = t_us
        now = Moment(self._delays, t_us, t_us, (), self._count)
        events = [event for unit in units for event in unit.judge_delays(now)]
        self._delays.forget(t_us)
        return events

    def _due(self, now_us: int) -> range:
        """The multiples of a step that can be judged now."""
        reached_us = self._clock.advance(now_us)
        if reached_us is None or not self._slots:
            return range(0)
        last_us = reached_us - reached_us % STEP_US
        if self._judged_us is None:
            return range(last_us, last_us + 1)
        judged_us = max(self._judged_us, last_us - BACKLOG_US)
        return range(judged_us - judged_us % STEP_US + STEP_US, last_us + 1, STEP_US)

    def _configure(
        self, config: Mapping[str, ConfigModel], kept: Mapping[str, tuple[Any, set[tuple[str, int]]]] = _NOTHING
    ) -> list[AlertEvent]:
        """Builds what is new or changed, and closes what is no longer wanted. `kept`: units of before a restart."""
        self._texts = {
            key: self._texts[key] if self._config.get(key) is model else _text(model) for key, model in config.items()
        }
        self._config = dict(config)
        plans = {key: one for key, one in self._plan(config).items() if self._owns(key)}
        events: list[AlertEvent] = []
        for key in [key for key in self._slots if key not in plans]:
            events += self._slots.pop(key).unit.close(self._now_us(), _GONE)
        for key, plan in plans.items():
            slot = self._slots.get(key)
            if slot is not None and slot.signature == plan.signature:
                continue
            state, changed = kept.get(key) or (slot.unit.snapshot() if slot else None, set())
            unit = plan.build(state)
            if slot is not None:
                events += slot.unit.close(self._now_us(), _GONE, unit)
            self._slots[key] = _Slot(plan.signature, unit, changed)
        self._slots = dict(sorted(self._slots.items()))  # in which they are judged
        self._store.keep = _widest(slot.unit.keep for slot in self._slots.values())
        units = [slot.unit for slot in self._slots.values() if self._live and isinstance(slot.unit, DelayUnit)]
        self._delays.keep = _widest(unit.delay_keep for unit in units)
        return events

    def _now_us(self) -> int:
        return self._judged_us or self._clock.started_us

    def _count(self, name: str, value: int = 1, service: str = "") -> None:
        self._counters.add(service, "", name, value)

    def _answer(self, events: list[AlertEvent], rows: dict[str, list[dict[str, Any]]], now_us: int) -> Findings:
        for event in events:
            if event.transition is Transition.ACTIVE:
                self._count("alerts_created")
            elif event.transition is Transition.REJECTED:
                self._count("commands_rejected")
        events, self._first = self._first + events, []
        counters = None
        if self._counters.changed and now_us >= self._counters_us:
            self._counters_us = now_us + COUNTERS_US
            counters = self._counters.rows(now_us)
        return Findings(events, rows, counters)


def _end(told: Told, t_us: int) -> list[AlertEvent]:
    """The end of an alert whose rule is gone, if it has none yet."""
    alert = told.event.alert
    assert alert is not None
    if alert.status is Status.RESOLVED:
        return []
    text = alert.description.replace("{", "{{").replace("}", "}}")
    alerts = RuleAlerts(AlertSpec(alert.name, alert.source, alert.severity, text))
    at_us = max(t_us, us_of(told.event.time) if told.due_us is None else told.due_us)
    alerts.recall(told._replace(due_us=at_us))
    return alerts.close(at_us, _GONE)


def _text(model: ConfigModel) -> str:
    return model.model_dump_json(by_alias=True, exclude_unset=True)


def _delay_row(t_us: int, delay_s: float) -> pa.RecordBatch:
    row = {
        "metric": DELAY, "service": "tailrace", "series_id": 0, "attributes": [], "kind": "gauge", "unit": "s",
        "stream": "", "window_start": t_us // 1_000_000 - STEP_US // 1_000_000, "count": 1, "sum": delay_s,
        "min": delay_s, "max": delay_s, "last": delay_s, "bucket_index": [], "bucket_count": [], "version": 1,
    }  # fmt: skip
    return pa.RecordBatch.from_pylist([row], WINDOW_ROWS)


def _widest(keeps: Iterable[Mapping[str, Keep]]) -> dict[str, Keep]:
    """What all of them need, and the lateness."""
    widest: dict[str, Keep] = {}
    for keep in keeps:
        for metric, one in keep.items():
            known = widest.get(metric, Keep(0))
            widest[metric] = Keep(*map(max, known, one))
    return {
        metric: Keep(one.rows_us + LATENESS_US, one.sketches_us + LATENESS_US if one.sketches_us else 0)
        for metric, one in widest.items()
    }
