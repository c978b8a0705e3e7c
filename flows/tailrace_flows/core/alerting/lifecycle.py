"""The alerts of one rule, from the first evaluation in which its condition holds to their end.

The states are those of Prometheus (rules/alerting.go, `AlertingRule.Eval`), with `active` for firing, and a person's
acknowledgement on top:

    inactive -> pending -> active -> acknowledged -> resolved

Where this differs, and why:

- **No data freezes** (`silent`): nothing begins, nothing ends, and no clock runs: `for` and `keep_firing_for` count
  measured time alone. Prometheus resolves an alert whose series vanish (prometheus#17482). What is pending, of which
  nobody knows yet, is let go after a day: label sets come and go, and would fill the rule.
- **A clear threshold** (`holding`): a value between the two thresholds keeps an active alert and drops a pending one.
- **Told before a crash** (`recall`): what the topic says of an alert stands once its time has been judged again.
- **Resolved by command while the condition holds**: the label set is quenched; it does not fire again until its
  condition has been false once. Else the next evaluation would undo what a person did.
"""

from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from math import isfinite, isnan, nan
from string import Formatter
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from tailrace_schemas.alerts import (
    ABOUT_LEARNING,
    Alert,
    AlertEvent,
    Annotation,
    Command,
    CommandKind,
    Labels,
    Severity,
    Status,
    Threshold,
    Transition,
    alert_id,
    event_id,
    time_of,
    us_of,
)

from tailrace_flows.core.alerting.told import Told
from tailrace_flows.core.sealed import foreign

__all__ = ["AlertSpec", "RuleAlerts", "describe"]

MAX_ALERTS: Final = 10_000
"""Of a rule at a time, pending ones included: some 6 MB of state. What is past the threshold beyond that is refused."""
PENDING_SILENT_US: Final = 24 * 3600 * 1_000_000
"""What is pending and was without data for longer than this, and than `for`, is gone."""
RESOLVED_KEPT: Final = 100
"""Alerts of a rule that can still be annotated and marked after their end; the oldest make room."""
RESOLVED_KEPT_US: Final = 7 * 24 * 3600 * 1_000_000
MAX_ANNOTATIONS: Final = 100
MAX_ALERT_BYTES: Final = 300_000
"""Of an alert as JSON: what would make it longer is not annotated. Kafka takes 1 MB, of an event and of a notification,
which has the labels three times more."""
MAX_DESCRIPTION_CHARS: Final = 10_000
COMMANDS_KEPT: Final = 100
"""Command ids remembered for each alert, to know a command that is delivered twice."""
STATE_VERSION: Final = 1

_UNFOUND: Final = "it was not found again after a restart"
_NOTHING: Final[Mapping[Labels, float]] = MappingProxyType({})


class AlertSpec(NamedTuple):
    """What a rule says of all of its alerts."""

    name: str
    source: str
    """The rule: `rule_group/rule`, `slo/name` or `health/service`; part of each alert's identity."""
    severity: Severity
    description: str = ""
    """A template, see `describe`."""
    metric: str = ""
    threshold: Threshold | None = None
    """With a value of NaN: each alert has its own."""
    for_us: int = 0
    keep_firing_for_us: int = 0
    tags: tuple[str, ...] = ()


def describe(template: str, labels: Labels, value: float) -> str:
    """The description: `{value}` and `{label.name}` replaced, with a format as in `{value:.0%}`.

    A label that an alert does not have is the empty text, a value that is not known (NaN) is "no data". Nothing but
    these names is looked up. It is cut after MAX_DESCRIPTION_CHARS: labels may be long, and named often.

    Raises:
        ValueError: braces without a partner, or a format that a number or a text does not take.
    """
    names: dict[str, Any] = dict(labels) | {"value": value}
    parts = []
    for literal, name, form, conversion in Formatter().parse(template):
        parts.append(literal)
        if name is not None:
            if conversion:
                raise ValueError(f"!{conversion} has no meaning in a description")
            if name == "value" and isnan(value):
                parts.append("no data")
                continue
            parts.append(format(names[name], form or "") if name in names else "")
    return "".join(parts)[:MAX_DESCRIPTION_CHARS]


@dataclass
class _Life:
    """One alert, and what is remembered of it for commands."""

    labels: Labels
    event: AlertEvent
    """The last one, rejected commands apart."""
    sequence: int = 0
    commands: deque[str] = field(default_factory=lambda: deque(maxlen=COMMANDS_KEPT))
    _text: tuple[AlertEvent | None, str] = (None, "")

    def text(self) -> str:
        """The event as JSON, made once: every epoch asks for it."""
        if self._text[0] is not self.event:
            self._text = (self.event, self.event.model_dump_json())
        return self._text[1]

    @property
    def alert(self) -> Alert:
        assert self.event.alert is not None
        return self.event.alert


@dataclass
class _Instance:
    """One label set whose condition holds, or whose alert has not ended."""

    active_at_us: int
    value: float
    paused_us: int = 0
    """Time without data since it began: not counted by `for`."""
    absent_us: int | None = None
    """How long the condition of an active alert has not held; None: it holds."""
    life: _Life | None = None
    """None: pending, or quenched."""
    quenched: bool = False
    """Resolved by command; waits for the condition to end."""


class RuleAlerts:
    """The alerts of one rule. State: about 2 kB an alert; `evaluate` costs 15 us an event, and next to nothing else."""

    def __init__(self, spec: AlertSpec, state: object = None) -> None:
        """Anew, or from `snapshot`; the spec may be a changed one of the same source: what is active stays so.

        Raises:
            ValueError: the state is of another format.
        """
        self.spec = spec
        self._last_us: int | None = None
        self._instances: dict[Labels, _Instance] = {}
        self._lives: dict[str, _Life] = {}
        """By alert id: all that are active or acknowledged, and the last ones resolved."""
        self._resolved: deque[tuple[int, str]] = deque()
        """When those were, and their ids, oldest first."""
        self._told: dict[str, Told] = {}
        """By alert id: what was told before a crash, of times that have not been judged again yet."""
        self.refused = 0
        """Label sets that the last evaluation did not take, since the rule has MAX_ALERTS."""
        if state is not None:
            self._restore(state)

    # -- evaluation ------------------------------------------------------------------------------------

    @property
    def judged_us(self) -> int | None:
        """When it was evaluated last."""
        return self._last_us

    def evaluate(
        self,
        t_us: int,
        breached: Mapping[Labels, float],
        holding: Mapping[Labels, float] = _NOTHING,
        *,
        silent: bool | Container[Labels] = False,
        limits: Mapping[Labels, float] = _NOTHING,
    ) -> list[AlertEvent]:
        """Judges the condition at event time `t_us`; returns what changed, ordered by labels.

        Args:
            t_us: later than in all calls before.
            breached: label sets past the threshold, with their values.
            holding: label sets not past it, but not past the clear threshold either: they keep what is active.
            silent: for which label sets there is no data (True: for all that are in neither mapping): they are frozen.
            limits: the thresholds that were passed, where each label set has its own.

        Raises:
            ValueError: `t_us` is not later than before.
        """
        if self._last_us is not None and t_us <= self._last_us:
            raise ValueError(f"{self.spec.source} was evaluated at {self._last_us} us already, now at {t_us} us")
        begins = self._last_us is None
        elapsed_us = 0 if self._last_us is None else t_us - self._last_us
        self._last_us = t_us
        self.refused = 0
        if self._resolved:
            self._forget(t_us)
        if not breached and not self._instances and not self._told:
            return []
        # What is found anew would have another id. Of the others, who calls did not ask yet whether they have data.
        events = self._meet_due(t_us) if begins else []
        for labels in sorted(breached if begins else {*breached, *self._instances}):
            instance = self._instances.get(labels)
            if labels in breached:
                event = self._breached(t_us, labels, breached[labels], instance, limits.get(labels))
            else:
                assert instance is not None
                frozen = silent if isinstance(silent, bool) else labels in silent
                event = self._not_breached(t_us, elapsed_us, labels, instance, holding.get(labels), frozen=frozen)
            if event is not None:
                events.append(event)
        return events + self._meet_due(t_us)

    def _breached(
        self, t_us: int, labels: Labels, value: float, instance: _Instance | None, limit: float | None
    ) -> AlertEvent | None:
        if instance is None:
            if len(self._instances) >= MAX_ALERTS:
                self.refused += 1
                return None
            instance = self._instances[labels] = _Instance(t_us, value)
        instance.value = value
        instance.absent_us = None
        if instance.quenched or instance.life is not None:
            return None
        if t_us - instance.active_at_us - instance.paused_us < self.spec.for_us:
            return None
        alert = self._new_alert(labels, instance, limit)
        event = _event(alert, Transition.ACTIVE, f"window:{t_us}", t_us, sequence=0)
        instance.life = self._lives[alert.id] = _Life(labels, event)
        return event

    def _not_breached(
        self, t_us: int, elapsed_us: int, labels: Labels, instance: _Instance, held: float | None, *, frozen: bool
    ) -> AlertEvent | None:
        if held is not None and (instance.life is not None or instance.quenched):
            instance.value = held
            instance.absent_us = None
            return None
        if frozen and held is None:
            instance.paused_us += elapsed_us
            is_pending = instance.life is None and not instance.quenched
            if is_pending and instance.paused_us > max(PENDING_SILENT_US, self.spec.for_us):
                del self._instances[labels]
            return None
        if instance.life is not None:
            # Counted from the first evaluation without the condition, as Prometheus does.
            instance.absent_us = 0 if instance.absent_us is None else instance.absent_us + elapsed_us
            if instance.absent_us < self.spec.keep_firing_for_us:
                return None
            current = self._current(instance.life, instance)
            return self._resolve(instance.life, instance, current, t_us, f"window:{t_us}")
        del self._instances[labels]
        return None

    def close(self, t_us: int, reason: str, which: Callable[[Labels], bool] = lambda _: True) -> list[AlertEvent]:
        """The rule is gone, or looks no longer at `which` label sets: resolves their alerts, saying why."""
        events = []
        last_us = {}
        for name, told in list(self._told.items()):
            if which(_labels_of(told)):
                del self._told[name]
                last_us[name] = max(t_us, told.due_us or 0)
                events += self._meet(told, last_us[name])
        for labels, one in sorted(self._instances.items()):
            if not which(labels):
                continue
            if one.life is None:
                del self._instances[labels]
                continue
            alert = self._current(one.life, one)
            at_us = last_us.get(alert.id, t_us)
            events.append(self._resolve(one.life, one, alert, at_us, f"window:{at_us}", reason=reason))
        return events

    def renew(self, t_us: int, next_us: int, reason: str) -> list[AlertEvent]:
        """Resolves all alerts, saying why; they begin anew with the evaluation at `next_us` if their condition goes on.

        What has held for `for` need not once more.
        """
        events = []
        for labels, one in sorted(self._instances.items()):
            if one.life is not None:
                alert, value = self._current(one.life, one), one.value
                events.append(self._resolve(one.life, one, alert, t_us, f"window:{t_us}", reason=reason))
                self._instances[labels] = _Instance(next_us, value, paused_us=-self.spec.for_us)
        return events

    # -- after a crash ---------------------------------------------------------------------------------

    def recall(self, told: Told) -> list[AlertEvent]:
        """What the topic has of an alert, which this state may not know; to be said once, when it was restored.

        An alert that has not ended there, and is not found again, goes on as if it had been; one that has ended there,
        and goes on here, has ended. The event is given again: that it is on the topic does not say that it is stored.
        """
        if self._last_us is None or (told.due_us is not None and told.due_us > self._last_us):
            self._told[_alert_of(told).id] = told
            return []
        return [] if _alert_of(told).status is Status.RESOLVED else self._meet(told, self._last_us)

    def _meet_due(self, t_us: int) -> list[AlertEvent]:
        events = []
        for told in [one for one in self._told.values() if (one.due_us or 0) <= t_us]:
            events += self._meet(self._told.pop(_alert_of(told).id), t_us)
        return events

    def _meet(self, told: Told, t_us: int) -> list[AlertEvent]:
        """Evaluation has come to where the alert was told of, or never will."""
        event, alert = told.event, _alert_of(told)
        ended = alert.status is Status.RESOLVED
        life = self._lives.get(alert.id)
        labels = _labels_of(told) if life is None else life.labels
        instance = self._instances.get(labels)
        if life is None and not ended:
            life = self._lives[alert.id] = _Life(labels, event, told.sequence, deque(told.commands, COMMANDS_KEPT))
            if instance is not None and (instance.life is not None or instance.quenched):
                changes = {"status": Status.RESOLVED, "resolved_at": time_of(t_us)}
                over = alert.model_copy(update=changes)
                self._resolved.append((t_us, alert.id))
                return [event, self._next(life, over, Transition.RESOLVED, f"window:{t_us}", t_us, _UNFOUND)]
            if instance is None:
                instance = self._instances[labels] = _Instance(us_of(alert.timestamp), _value_of(alert))
            instance.active_at_us, instance.life = us_of(alert.timestamp), life
            return [event]
        if life is None:
            return [event]
        goes_on = instance is not None and instance.life is life
        if told.sequence <= life.sequence or not goes_on or alert.resolved_by is not None:
            return []  # as a replay of the commands will have it again
        life.event, life.sequence = event, told.sequence
        life.commands.extend(one for one in told.commands if one not in life.commands)
        if ended:
            del self._instances[labels]
            self._resolved.append((t_us, alert.id))
        return [event]

    def _new_alert(self, labels: Labels, instance: _Instance, limit: float | None) -> Alert:
        spec = self.spec
        threshold = spec.threshold
        if threshold is not None and isnan(threshold.value):
            threshold = None if limit is None else threshold.model_copy(update={"value": limit})
        return Alert(
            id=alert_id(spec.source, labels, instance.active_at_us),
            name=spec.name,
            description=describe(spec.description, labels, instance.value),
            severity=spec.severity,
            status=Status.ACTIVE,
            source=spec.source,
            metric=spec.metric,
            labels=dict(labels),
            threshold=threshold,
            current_value=_json_number(instance.value),
            timestamp=time_of(instance.active_at_us),
            tags=spec.tags,
        )

    def _resolve(
        self, life: _Life, instance: _Instance, alert: Alert, t_us: int, cause: str, *, by: str | None = None,
        reason: str = "",
    ) -> AlertEvent:  # fmt: skip
        changes = {"status": Status.RESOLVED, "resolved_at": time_of(t_us), "resolved_by": by}
        instance.life = None
        instance.quenched = by is not None
        if not instance.quenched:
            del self._instances[life.labels]
        self._resolved.append((t_us, alert.id))
        return self._next(life, alert.model_copy(update=changes), Transition.RESOLVED, cause, t_us, reason)

    def _current(self, life: _Life, instance: _Instance) -> Alert:
        """The alert with the value and description of now."""
        value = instance.value
        text = describe(self.spec.description, life.labels, value)
        return life.alert.model_copy(update={"current_value": _json_number(value), "description": text})

    def _next(
        self, life: _Life, alert: Alert, transition: Transition, cause: str, t_us: int, reason: str = ""
    ) -> AlertEvent:
        life.sequence += 1
        event = _event(alert, transition, cause, t_us, sequence=life.sequence, reason=reason)
        if transition is not Transition.REJECTED:
            life.event = event
        return event

    def _forget(self, t_us: int) -> None:
        """Drops resolved alerts that are old or too many."""
        while self._resolved and (
            len(self._resolved) > RESOLVED_KEPT or self._resolved[0][0] <= t_us - RESOLVED_KEPT_US
        ):
            del self._lives[self._resolved.popleft()[1]]

    # -- commands --------------------------------------------------------------------------------------

    def command(self, command: Command) -> list[AlertEvent] | None:
        """Carries out what a person asked for.

        Returns:
            The event that answers it, which is REJECTED with the reason if it cannot be done; none if it was delivered
            before; None if no alert of this rule has that id, or the alert's end was long ago.
        """
        life = self._lives.get(command.alert_id)
        if life is None or command.kind in ABOUT_LEARNING:
            return None
        if command.id in life.commands:
            return []
        life.commands.append(command.id)
        cause = f"command:{command.id}"
        t_us = _us_of(command)
        alert = life.alert
        instance = None
        if alert.status is not Status.RESOLVED:
            instance = self._instances[life.labels]
            alert = self._current(life, instance)
        refusal = _refusal(command, alert)
        if refusal:
            return [self._next(life, alert, Transition.REJECTED, cause, t_us, refusal)]
        alert = _with_message(alert, command)
        match command.kind:
            case CommandKind.RESOLVE:
                assert instance is not None
                return [self._resolve(life, instance, alert, t_us, cause, by=command.author)]
            case CommandKind.ACKNOWLEDGE:
                changes = {
                    "status": Status.ACKNOWLEDGED,
                    "acknowledged_at": command.time,
                    "acknowledged_by": command.author,
                }
                return [self._next(life, alert.model_copy(update=changes), Transition.ACKNOWLEDGED, cause, t_us)]
            case CommandKind.MARK:
                marked = alert.model_copy(update={"false_positive": command.false_positive})
                return [self._next(life, marked, Transition.MARKED, cause, t_us)]
            case CommandKind.SILENCE | CommandKind.UNSILENCE:
                # The dispatcher's business; here it leaves its trace, if something was said.
                return [self._next(life, alert, Transition.ANNOTATED, cause, t_us)] if command.message else []
            case _:
                return [self._next(life, alert, Transition.ANNOTATED, cause, t_us)]

    # -- views -----------------------------------------------------------------------------------------

    def alerts(self) -> list[Alert]:
        """Those that are active or acknowledged, with the values of the last evaluation."""
        return [self._current(one.life, one) for _, one in sorted(self._instances.items()) if one.life is not None]

    def __bool__(self) -> bool:
        """Whether there is any label set in `held`."""
        return bool(self._instances)

    def held(self) -> list[Labels]:
        """The label sets that are pending, active or acknowledged, or were resolved by command and hold still."""
        return list(self._instances)

    def quenched(self, labels: Labels) -> bool:
        """Whether a person resolved that label set's alert, and its condition has not ended since."""
        found = self._instances.get(labels)
        return found is not None and found.quenched

    def republish(self) -> list[AlertEvent]:
        """The last transition of each active or acknowledged alert again, the very same event.

        After a restart, so that subscribers converge.
        """
        return [one.life.event for _, one in sorted(self._instances.items()) if one.life is not None]

    # -- state -----------------------------------------------------------------------------------------

    def snapshot(self) -> object:
        """The state for recovery: plain values that pickle, independent of this object."""
        instances = [
            (
                labels, one.active_at_us, one.value, one.paused_us, one.absent_us,
                None if one.life is None else one.life.alert.id, one.quenched,
            )
            for labels, one in self._instances.items()
        ]  # fmt: skip
        lives = [(one.labels, one.text(), one.sequence, tuple(one.commands)) for one in self._lives.values()]
        told = [(*one[:1], one.event.model_dump_json(), *one[2:]) for one in self._told.values()]
        resolved = tuple(alert for _, alert in self._resolved)
        return (STATE_VERSION, self._last_us, instances, lives, resolved, told)

    def _restore(self, state: Any) -> None:
        version, *contents = state
        if version != STATE_VERSION:
            raise foreign(version, STATE_VERSION, f"the state of {self.spec.source}")
        self._last_us, instances, lives, resolved, *more = contents
        for unit, event, *rest in more[0] if more else ():  # states of before had none
            told = Told(unit, AlertEvent.model_validate_json(event), *rest)
            self._told[_alert_of(told).id] = told
        for labels, event, sequence, commands in lives:
            life = _Life(labels, AlertEvent.model_validate_json(event), sequence, deque(commands, COMMANDS_KEPT))
            self._lives[life.alert.id] = life
        for labels, active_at_us, value, paused_us, absent_us, alert, quenched in instances:
            found = None if alert is None else self._lives[alert]
            self._instances[labels] = _Instance(active_at_us, value, paused_us, absent_us, found, quenched)
        for alert in resolved:
            resolved_at = self._lives[alert].alert.resolved_at
            assert resolved_at is not None
            self._resolved.append((us_of(resolved_at), alert))


def _alert_of(told: Told) -> Alert:
    assert told.event.alert is not None
    return told.event.alert


def _labels_of(told: Told) -> Labels:
    return tuple(sorted(_alert_of(told).labels.items()))


def _event(
    alert: Alert, transition: Transition, cause: str, t_us: int, *, sequence: int, reason: str = ""
) -> AlertEvent:
    return AlertEvent(
        id=event_id(alert.id, transition, cause),
        transition=transition,
        time=time_of(t_us),
        cause=cause,
        sequence=sequence,
        reason=reason,
        alert=alert,
    )


def _refusal(command: Command, alert: Alert) -> str:
    """Why a command cannot be carried out; empty: it can."""
    if alert.status is Status.RESOLVED and command.kind in (CommandKind.ACKNOWLEDGE, CommandKind.RESOLVE):
        by = f" by {alert.resolved_by}" if alert.resolved_by else ""
        return f"the alert was resolved{by} at {alert.resolved_at:%Y-%m-%d %H:%M:%S} UTC"
    if alert.status is Status.ACKNOWLEDGED and command.kind is CommandKind.ACKNOWLEDGE:
        return f"{alert.acknowledged_by} acknowledged it at {alert.acknowledged_at:%Y-%m-%d %H:%M:%S} UTC"
    if command.kind is CommandKind.ANNOTATE and not command.message:
        return "an annotation needs a message"
    if command.kind is CommandKind.MARK and (alert.false_positive or False) == command.false_positive:
        return "it is marked so already" if command.false_positive else "it is not marked as a false positive"
    if command.message and len(alert.annotations) >= MAX_ANNOTATIONS:
        return f"the alert has {MAX_ANNOTATIONS} annotations, the most it takes"
    if command.message and len(_with_message(alert, command).model_dump_json().encode()) > MAX_ALERT_BYTES:
        return (
            f"the alert has no room for it: with all that was written on it, it has {MAX_ALERT_BYTES:,} bytes at most"
        )
    return ""


def _with_message(alert: Alert, command: Command) -> Alert:
    """With what was said along with a command, of any kind, as an annotation."""
    if not command.message:
        return alert
    note = Annotation(
        id=command.id,
        timestamp=command.time,
        author=command.author,
        message=command.message,
        type="resolution" if command.kind is CommandKind.RESOLVE else command.annotation,
    )
    return alert.model_copy(update={"annotations": (*alert.annotations, note)})


def _us_of(command: Command) -> int:
    seconds = int(command.time.timestamp() // 1)
    return seconds * 1_000_000 + command.time.microsecond


def _value_of(alert: Alert) -> float:
    return nan if alert.current_value is None else alert.current_value


def _json_number(value: float) -> float | None:
    return value if isfinite(value) else None
