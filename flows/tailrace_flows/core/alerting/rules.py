"""Alert rules, evaluated over the rows of windows at times of event time.

A query looks at windows whose end is in (t - window, t]. The queries of a rule are joined by their labels, the value is
computed and compared for all label sets at once, and only those that are past the threshold, or have an alert, become
Python objects. Two results cannot have the same labels, since the labels are what groups are made by.

**No samples** mean one of two things. A counter, an event or a distribution without any did not happen: for 5 minutes
(and an interval) after its last row was in the window, its count, sum, increase and rate are 0, and so are those of a
query that has no series at all for labels that another query of the rule has. Anything else without a row in its
window is no data, as is a division of 0 by 0; the rule's no-data policy then decides.
"""

from collections.abc import Callable, Iterable, Mapping
from math import nan
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Labels, Operator, Threshold, Transition
from tailrace_schemas.config.aggregate import ADDITIVE, KINDS_OF
from tailrace_schemas.config.expression import Expression
from tailrace_schemas.config.matcher import matchers_of
from tailrace_schemas.config.rules import AUTO, NoData, Query, Rule, RuleGroup
from tailrace_schemas.samples import KINDS

from tailrace_flows.core.alerting.baselines import AutoThreshold
from tailrace_flows.core.alerting.clock import DELAY
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_flows.core.alerting.select import Groups, LabelSets, Selector, joined
from tailrace_flows.core.alerting.store import Keep, WindowStore

__all__ = ["AlertGroup", "AlertRule", "Comparison", "Selectors", "keep_by_metric", "keep_of"]

_LEARNED: Final = {"metric", "aggregate", "kind", "queries", "value", "window_s", "where", "by", "op"}
"""Keys of a rule with `threshold: auto` whose change means that what was learned is of something else."""
Found = TypeVar("Found")

KNOWN_US: Final = 300_000_000
"""A label set is known to a rule for so long, and an interval, after the last row in its window."""

CELLS: Final = 1 << 17
"""So many values are worked out at once, ahead of time: they fit into a cache."""

_COMPARE: Final[Mapping[Operator, np.ufunc]] = {
    Operator.GT: np.greater,
    Operator.GTE: np.greater_equal,
    Operator.LT: np.less,
    Operator.LTE: np.less_equal,
    Operator.EQ: np.equal,
    Operator.NE: np.not_equal,
}


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)


class Selectors:
    """One selector for all queries that select the same."""

    def __init__(self) -> None:
        self._found: dict[tuple[object, ...], Selector] = {}

    def get(self, metric: str, where: Mapping[str, str], by: tuple[str, ...], kinds: frozenset[str]) -> Selector:
        """The selector of these."""
        matchers = matchers_of(where)
        return self._found.setdefault((metric, matchers, by, kinds), Selector(metric, matchers, by, kinds))


class _Query:
    """One query of a rule."""

    def __init__(self, query: Query, rule: Rule, by: tuple[str, ...], selectors: Selectors) -> None:
        self.aggregate = query.aggregate
        self.window_us = _us(query.window_s or rule.window_s)
        kinds = KINDS_OF.get(query.aggregate.how, frozenset(KINDS))
        if query.kind is not None:
            kinds &= {query.kind}
        where = {**rule.where, **query.where}
        self.selector = selectors.get(query.metric, where, by, kinds)
        self.additive = query.aggregate.how in ADDITIVE

    def values(self, store: WindowStore, times: range, known_us: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Times by groups: the values, NaN without data, and whether a group is known."""
        groups = self.selector.groups(store)
        found = self.selector.aggregate(store, self.aggregate, self.window_us, times)
        missing = np.isnan(found)
        if not missing.any():
            return found, ~missing
        members = self.selector.present(store, self.window_us + known_us, times)
        if self.additive:
            found[missing & groups.reduce(np.logical_or, members & groups.delta)] = 0
        return found, groups.reduce(np.logical_or, members)


class Compared(NamedTuple):
    """What a comparison finds at some times: times by label sets."""

    sets: LabelSets
    value: NDArray[np.float64]
    """NaN: no data."""
    past: NDArray[np.bool_]
    """Past the threshold."""
    holds: NDArray[np.bool_]
    """Past the clear threshold."""
    known: NDArray[np.bool_]
    further: NDArray[np.bool_] | None
    """Of which the further conditions are true; None: there are none."""
    some_past: list[bool]
    """By time, whether any is past the threshold."""
    some_missing: list[bool]
    """By time, whether any that is known has no data."""


class _Absences(NamedTuple):
    """What there is at some times: times by groups."""

    groups: Groups
    there: NDArray[np.bool_]
    """Which have rows."""
    gone: NDArray[np.bool_]
    """Which have none, but had some until lately."""
    some: list[bool]
    """By time, whether any has rows."""
    some_gone: list[bool]


class _Ahead(Generic[Found]):
    """What is found at times ahead at which the same rows will be looked at, worked out together.

    To ask for 60 times at once costs little more than to ask for one of them.
    """

    def __init__(
        self, interval_us: int, find: Callable[[WindowStore, range], Found], size: Callable[[WindowStore], int]
    ) -> None:
        """`find` gives what there is at some times; `size` is how many series are looked at for each of them."""
        self._interval_us = interval_us
        self._find, self._size = find, size
        self._store: WindowStore | None = None
        self._changes = 0
        self._times = range(0)
        self._found: Found | None = None

    def at(self, store: WindowStore, t_us: int, until_us: int) -> tuple[Found, int]:
        """What `find` gives of some times up to `until_us`, and the place of `t_us` among them."""
        if store is not self._store or store.changes != self._changes or t_us not in self._times or self._found is None:
            coming = range(t_us, max(t_us, until_us) + 1, self._interval_us)
            self._times = coming[: max(1, CELLS // max(1, self._size(store)))]
            self._found = self._find(store, self._times)
            self._store, self._changes = store, store.changes
        return self._found, (t_us - self._times.start) // self._interval_us


class Comparison:
    """The comparison part of a rule: for each label set a value, and which conditions hold."""

    def __init__(self, rule: Rule, by: tuple[str, ...], interval_us: int, selectors: Selectors) -> None:
        assert rule.comparison is not None
        assert rule.threshold is not None
        self._ahead = _Ahead(interval_us, self._at, self._size)
        self._queries = {name: _Query(query, rule, by, selectors) for name, query in rule.all_queries().items()}
        self._known_us = KNOWN_US + interval_us
        self._expression = rule.expression()
        self._compare, self.clear = _COMPARE[rule.comparison], rule.clear_threshold
        self._threshold = nan if rule.threshold == AUTO else rule.threshold
        self._also = [(Expression(one.value), _COMPARE[one.op], one.threshold) for one in rule.also]
        self._joined: tuple[tuple[LabelSets, ...], LabelSets, list[NDArray[np.int64]]] | None = None

    def keep(self) -> Iterable[tuple[str, Keep]]:
        """What the store must keep for it."""
        for query in self._queries.values():
            sketched = KINDS_OF.get(query.aggregate.how) == frozenset({"distribution"})
            yield query.selector.metric, Keep(query.window_us + self._known_us, query.window_us if sketched else 0)

    def evaluate(self, store: WindowStore, t_us: int, until_us: int = 0) -> tuple[Compared, int]:
        """What is found at some times, and the place of `t_us` among them. Where the caller will ask again at times up
        to `until_us`, a multiple of the interval apart, these are worked out together, as long as the store stays as it
        is."""
        return self._ahead.at(store, t_us, until_us)

    def _at(self, store: WindowStore, times: range) -> Compared:
        sets, places = self._join(store)
        values, known = self._values(store, times, sets, places)
        shape = known.shape
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = _full(self._expression.evaluate(values), shape)
            further = None
            for expression, compare, threshold in self._also:
                other = _full(expression.evaluate(values), shape)
                value = np.where(np.isnan(other), nan, value)
                also = compare(other, threshold)
                further = also if further is None else further & also
            past = self.past(self._threshold, value, further)
            holds = past if self.clear is None else self.past(self.clear, value, further)
        missing = _some(known & np.isnan(value))
        return Compared(sets, value, past, holds, known, further, _some(past), missing)

    def past(
        self, threshold: float | NDArray[np.float64], value: NDArray[np.float64], further: NDArray[np.bool_] | None
    ) -> NDArray[np.bool_]:
        """Which values are past a threshold, and have the further conditions true."""
        found: NDArray[np.bool_] = self._compare(value, threshold)
        if self._compare is np.not_equal:
            found &= ~np.isnan(value)
        return found if further is None else found & further

    def _size(self, store: WindowStore) -> int:
        return sum(query.selector.groups(store).members.size for query in self._queries.values())

    def _join(self, store: WindowStore) -> tuple[LabelSets, list[NDArray[np.int64]]]:
        groups = tuple(query.selector.groups(store) for query in self._queries.values())
        if not groups:
            return LabelSets((), (), np.empty((1, 0), np.int32)), []
        if self._joined is None or any(one is not other for one, other in zip(groups, self._joined[0], strict=True)):
            self._joined = (groups, *joined(groups))
        return self._joined[1:]

    def _values(
        self, store: WindowStore, times: range, sets: LabelSets, places: list[NDArray[np.int64]]
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
        """Times by label sets: the values of each query, and which sets some query knows."""
        values: dict[str, NDArray[np.float64]] = {}
        known_to: dict[str, NDArray[np.bool_]] = {}
        shape = (len(times), len(sets))
        for (name, query), place in zip(self._queries.items(), places, strict=True):
            of_groups, known_groups = query.values(store, times, self._known_us)
            if len(self._queries) == 1:
                return {name: of_groups}, known_groups
            values[name] = np.full(shape, nan)
            values[name][:, place] = of_groups
            known_to[name] = np.zeros(shape, np.bool_)
            known_to[name][:, place] = known_groups
        measured = np.zeros(shape, np.bool_)
        known = np.zeros(shape, np.bool_)
        for name in values:
            measured |= ~np.isnan(values[name])
            known |= known_to[name]
        for name, query in self._queries.items():
            if query.additive:
                values[name][measured & ~known_to[name]] = 0
        return values, known


def _some(of_sets: NDArray[np.bool_]) -> list[bool]:
    found: list[bool] = np.logical_or.reduce(of_sets, axis=1).tolist()
    return found


def _full(value: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A constant is the same for all label sets."""
    return value if isinstance(value, np.ndarray) else np.full(shape, value, np.float64)


class _Absence:
    """The absence part of a rule."""

    def __init__(self, selector: Selector, window_us: int, interval_us: int) -> None:
        self._selector, self._window_us, self._known_us = selector, window_us, KNOWN_US + interval_us
        self._ahead = _Ahead(interval_us, self._at, self._size)

    def keep(self) -> Iterable[tuple[str, Keep]]:
        """What the store must keep for it."""
        yield self._selector.metric, Keep(self._window_us + self._known_us)

    def evaluate(self, store: WindowStore, t_us: int, until_us: int) -> tuple[_Absences, int]:
        """As `Comparison.evaluate`."""
        return self._ahead.at(store, t_us, until_us)

    def _at(self, store: WindowStore, times: range) -> _Absences:
        groups = self._selector.groups(store)
        windows = (self._window_us, self._window_us + self._known_us)
        there, known = (
            groups.reduce(np.logical_or, self._selector.present(store, window_us, times)) for window_us in windows
        )
        gone = known & ~there
        return _Absences(groups, there, gone, _some(there), _some(gone))

    def _size(self, store: WindowStore) -> int:
        return self._selector.groups(store).members.size


class AlertRule:
    """One rule: what it finds at a time, and the alerts that come of it."""

    def __init__(self, group: RuleGroup, rule: Rule, selectors: Selectors, state: object = None) -> None:
        """Anew, or from `snapshot`; the rule may have been changed since.

        Raises:
            ValueError: the state is of another format.
        """
        self.rule = rule
        interval_us, window_us = _us(group.interval_s), _us(rule.window_s)
        self._where = matchers_of(rule.where)
        self._fixed: Labels = tuple(
            sorted((one.label, one.value) for one in self._where if one.operator == "=" and one.value)
        )
        self._by = tuple(sorted({*rule.by, *dict(self._fixed)}))
        self._grouped = bool(set(rule.by) - set(dict(self._fixed)))
        self._tells_missing = rule.no_data is NoData.ALERT
        self._comparison = None if rule.comparison is None else Comparison(rule, self._by, interval_us, selectors)
        self._absence = None
        if rule.comparison is None:
            kinds = frozenset(KINDS) if rule.kind is None else frozenset({rule.kind})
            assert rule.metric is not None
            selector = selectors.get(rule.metric, rule.where, self._by, kinds)
            self._absence = _Absence(selector, window_us, interval_us)
        learned: Any = None
        if isinstance(state, Mapping):  # of `threshold: auto`
            learned, state = state["learned"], state["alerts"]
        period_us = -(-max(window_us, interval_us) // interval_us) * interval_us
        self._learns = (rule.model_dump_json(include=_LEARNED), period_us)
        self.auto: AutoThreshold | None = None
        """Of `threshold: auto`: what was learned."""
        if rule.threshold == AUTO:
            above = rule.comparison in (Operator.GT, Operator.GTE)
            kept = learned is not None and learned[0] == self._learns
            self.auto = AutoThreshold(above=above, period_us=period_us, state=learned[1] if kept else None)
        self.alerts = RuleAlerts(spec_of(group, rule), state)

    def tells_apart_as(self, other: "AlertRule") -> bool:
        """Whether its alerts have the labels that the other's had: else none of those would be found again."""
        return (self._by, self._fixed) == (other._by, other._fixed)

    def leaves_out(self, labels: Labels) -> bool:
        """Whether an alert with these labels can never be found, by what `where` says of them."""
        given = dict(labels)
        return not all(one.matches(given.get(one.label, "")) for one in self._where if one.label in self._by)

    def begin_anew(self) -> None:
        """Forgets the alerts that the state had."""
        self.alerts = RuleAlerts(self.alerts.spec)

    @property
    def tells_delay(self) -> bool:
        """Whether it looks at nothing but how late evaluation is, and is judged by wall time."""
        return self.auto is None and {metric for metric, _ in self.keep()} == {DELAY}

    def keep(self) -> Iterable[tuple[str, Keep]]:
        """What the store must keep for it."""
        if self._absence is not None:
            yield from self._absence.keep()
        if self._comparison is not None:
            yield from self._comparison.keep()

    def evaluate(self, store: WindowStore, t_us: int, until_us: int = 0) -> list[AlertEvent]:
        """Judges the rule at `t_us`, which must be later than before; `until_us` as in `Comparison.evaluate`.

        Costs some 50 us, and what its selectors say; an event costs 15 us, a live alert 2 us.
        """
        if self._comparison is not None:
            found, number = self._comparison.evaluate(store, t_us, until_us)
            if self.auto is None and not (found.some_past[number] or self.alerts or self._tells_missing):
                return self.alerts.evaluate(t_us, {})
            return self._compare(self._comparison, found, number, t_us)
        assert self._absence is not None
        return self._absent(*self._absence.evaluate(store, t_us, until_us), t_us)

    def _compare(self, comparison: Comparison, found: Compared, number: int, t_us: int) -> list[AlertEvent]:
        sets, value, past, holds = found.sets, found.value[number], found.past[number], found.holds[number]
        breached: dict[Labels, float] = {}
        limits: dict[Labels, float] = {}
        if self.auto is not None:
            threshold = self.auto.limits(t_us, sets, value)
            past = comparison.past(threshold, value, None if found.further is None else found.further[number])
            holds = past if comparison.clear is None else holds
            limits = {sets.labels(place): float(threshold[place]) for place in np.flatnonzero(past).tolist()}
        if self.auto is not None or found.some_past[number]:
            breached = {sets.labels(place): float(value[place]) for place in np.flatnonzero(past).tolist()}
        if self._tells_missing:
            if found.some_missing[number]:
                missing = np.flatnonzero(found.known[number] & np.isnan(value)).tolist()
                breached |= {sets.labels(place): nan for place in missing}
            if not self._grouped and np.isnan(value).all():
                breached[self._fixed] = nan
        holding: dict[Labels, float] = {}
        silent: set[Labels] = set()
        for labels in self.alerts.held():
            if labels in breached:
                continue
            place = sets.find(labels)
            if place < 0 or np.isnan(value[place]):
                if self.alerts.quenched(labels) and (place < 0 or not found.known[number, place]):
                    continue  # what a person resolved is let go with its series
                if self.rule.no_data is NoData.KEEP:
                    silent.add(labels)
                elif self._tells_missing:
                    breached[labels] = nan
            elif holds[place]:
                holding[labels] = float(value[place])
        return self.alerts.evaluate(t_us, breached, holding, silent=silent, limits=limits)

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `RuleAlerts.command`; a false alarm raises the threshold that follows, RESET forgets what was learned."""
        if command.kind is CommandKind.RESET:
            return [] if self.auto is not None and self.auto.reset(self.learned_as, command.alert_id) else None
        events = self.alerts.command(command)
        if self.auto is not None and command.kind is CommandKind.MARK and command.false_positive:
            for event in events or ():
                if event.transition is Transition.MARKED and event.alert is not None:
                    self.auto.false_positive(tuple(sorted(event.alert.labels.items())))
        return events

    @property
    def learned_as(self) -> str:
        """What `baseline_id` calls it."""
        return f"rule:{self.alerts.spec.source}"

    def snapshot(self) -> object:
        """The state for recovery."""
        alerts = self.alerts.snapshot()
        return alerts if self.auto is None else {"alerts": alerts, "learned": (self._learns, self.auto.snapshot())}

    def _absent(self, found: _Absences, number: int, t_us: int) -> list[AlertEvent]:
        if not self._grouped:
            return self.alerts.evaluate(t_us, {} if found.some[number] else {self._fixed: nan})
        breached: dict[Labels, float] = {}
        if found.some_gone[number]:
            gone = np.flatnonzero(found.gone[number]).tolist()
            breached = {found.groups.labels(place): nan for place in gone}
        for labels in self.alerts.held():
            place = found.groups.find(labels)
            # What a person resolved is let go with its series: it may come back, and go again.
            if (place < 0 or not found.there[number, place]) and not self.alerts.quenched(labels):
                breached[labels] = nan
        return self.alerts.evaluate(t_us, breached)


class AlertGroup:
    """The rules of a group, evaluated together."""

    def __init__(self, group: RuleGroup, state: Mapping[str, object] | None = None) -> None:
        """Anew, or from `snapshot`; rules that were not there then begin anew.

        Raises:
            ValueError: the state is of another format.
        """
        self.group = group
        self.interval_us = _us(group.interval_s)
        states = state or {}
        selectors = Selectors()
        self.rules = {rule.alert: AlertRule(group, rule, selectors, states.get(rule.alert)) for rule in group.rules}

    def replaced(self, group: RuleGroup, t_us: int) -> tuple["AlertGroup", list[AlertEvent]]:
        """The group as it is now configured: alerts of rules that stay go on, those of rules that are gone end."""
        gone = [rule for name, rule in self.rules.items() if name not in {one.alert for one in group.rules}]
        events = [event for rule in gone for event in rule.alerts.close(t_us, "the rule was removed")]
        return AlertGroup(group, self.snapshot()), events

    def evaluate(
        self, store: WindowStore, t_us: int, until_us: int = 0, rules: Iterable[AlertRule] | None = None
    ) -> list[AlertEvent]:
        """Judges all rules, or those, at `t_us`, a multiple of the interval; `until_us` as in `Comparison.evaluate`."""
        chosen = self.rules.values() if rules is None else rules
        return [event for rule in chosen for event in rule.evaluate(store, t_us, until_us)]

    def command(self, command: Command) -> list[AlertEvent] | None:
        """As `AlertRule.command`, by the rule whose alert it is."""
        for rule in self.rules.values():
            answer = rule.command(command)
            if answer is not None:
                return answer
        return None

    def republish(self) -> list[AlertEvent]:
        """The last transition of everything that is active."""
        return [event for rule in self.rules.values() for event in rule.alerts.republish()]

    def snapshot(self) -> dict[str, object]:
        """The state for recovery, by rule."""
        return {name: rule.snapshot() for name, rule in self.rules.items()}


def spec_of(group: RuleGroup, rule: Rule) -> AlertSpec:
    """What the alerts of a rule have in common."""
    queries = rule.all_queries()
    names = rule.expression().names
    threshold = None
    if rule.comparison is not None:
        assert rule.threshold is not None
        limit = nan if rule.threshold == AUTO else rule.threshold
        threshold = Threshold(operator=rule.comparison, value=limit, duration=rule.for_s)
    return AlertSpec(
        name=rule.alert,
        source=f"{group.name}/{rule.alert}",
        severity=rule.severity,
        description=rule.description,
        metric=rule.metric or (queries[names[0]].metric if names else ""),
        threshold=threshold,
        for_us=_us(rule.for_s),
        keep_firing_for_us=_us(rule.keep_firing_for_s),
        tags=rule.tags,
    )


def keep_of(rules: Iterable[AlertRule]) -> dict[str, Keep]:
    """What a store must keep for these rules: of each metric as much as any of them looks back."""
    return keep_by_metric(one for rule in rules for one in rule.keep())


def keep_by_metric(wanted: Iterable[tuple[str, Keep]]) -> dict[str, Keep]:
    """Of each metric as much as anything that is wanted."""
    found: dict[str, Keep] = {}
    for metric, keep in wanted:
        found[metric] = Keep(*map(max, found.get(metric, Keep(0)), keep))
    return found
