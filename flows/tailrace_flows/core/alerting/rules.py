"""Alert rules, evaluated over the rows of windows at times of event time.

A query looks at windows whose end is in (t - window, t]. The queries of a rule are joined by their labels, the value is
computed and compared for all label sets at once, and only those that are past the threshold, or have an alert, become
Python objects. Two results cannot have the same labels, since the labels are what groups are made by.

**No samples** mean one of two things. A counter, an event or a distribution without any did not happen: for 5 minutes
(and an interval) after its last row was in the window, its count, sum, increase and rate are 0, and so are those of a
query that has no series at all for labels that another query of the rule has. Anything else without a row in its
window is no data, as is a division of 0 by 0; the rule's no-data policy then decides.
"""

from collections.abc import Iterable, Mapping
from math import nan
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Labels, Operator, Threshold, Transition
from tailrace_schemas.config.aggregate import ADDITIVE, KINDS_OF
from tailrace_schemas.config.expression import Expression
from tailrace_schemas.config.matcher import matchers_of
from tailrace_schemas.config.rules import AUTO, NoData, Query, Rule, RuleGroup
from tailrace_schemas.samples import KINDS

from tailrace_flows.core.alerting.baselines import AutoThreshold
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_flows.core.alerting.select import LabelSets, Selector, joined
from tailrace_flows.core.alerting.store import Keep, WindowStore

__all__ = ["AlertGroup", "AlertRule", "Comparison", "Selectors", "keep_by_metric", "keep_of"]

_LEARNED: Final = {"metric", "aggregate", "kind", "queries", "value", "window_s", "where", "by", "op"}
"""Keys of a rule with `threshold: auto` whose change means that what was learned is of something else."""
KNOWN_US: Final = 300_000_000
"""A label set is known to a rule for so long, and an interval, after the last row in its window."""

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

    def values(self, store: WindowStore, t_us: int, known_us: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """The value of each group, NaN without data, and which groups are known."""
        after_us = t_us - self.window_us
        groups = self.selector.groups(store)
        found = self.selector.aggregate(store, self.aggregate, after_us, t_us)
        missing = np.isnan(found)
        if not missing.any():
            return found, ~missing
        members = self.selector.present(store, after_us - known_us, t_us)
        if self.additive:
            found[missing & groups.any(members & groups.delta)] = 0
        return found, groups.any(members)


class Comparison:
    """The comparison part of a rule: for each label set a value, and which conditions hold."""

    def __init__(self, rule: Rule, by: tuple[str, ...], known_us: int, selectors: Selectors) -> None:
        assert rule.comparison is not None
        assert rule.threshold is not None
        self._queries = {name: _Query(query, rule, by, selectors) for name, query in rule.all_queries().items()}
        self._known_us = known_us
        self._expression = rule.expression()
        self._compare, self._clear = _COMPARE[rule.comparison], rule.clear_threshold
        self._threshold = nan if rule.threshold == AUTO else rule.threshold
        self._also = [(Expression(one.value), _COMPARE[one.op], one.threshold) for one in rule.also]
        self._joined: tuple[tuple[LabelSets, ...], LabelSets, list[NDArray[np.int64]]] | None = None

    def keep(self) -> Iterable[tuple[str, Keep]]:
        """What the store must keep for it."""
        for query in self._queries.values():
            sketched = KINDS_OF.get(query.aggregate.how) == frozenset({"distribution"})
            yield query.selector.metric, Keep(query.window_us + self._known_us, query.window_us if sketched else 0)

    def evaluate(
        self, store: WindowStore, t_us: int, auto: AutoThreshold | None = None
    ) -> tuple[
        LabelSets,
        NDArray[np.float64],
        NDArray[np.bool_],
        NDArray[np.bool_],
        NDArray[np.bool_],
        float | NDArray[np.float64],
    ]:
        """Label sets; their values (NaN: no data); which are past the threshold, which hold, which are known; the
        threshold, of each if it is `auto`, which then learns the values."""
        sets, places = self._join(store)
        values, known = self._values(store, t_us, sets, places)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            value = _full(self._expression.evaluate(values), len(sets))
            further = np.ones(len(sets), np.bool_)
            for expression, compare, limit in self._also:
                other = _full(expression.evaluate(values), len(sets))
                value = np.where(np.isnan(other), nan, value)
                further &= compare(other, limit)
        measured = ~np.isnan(value)
        threshold: float | NDArray[np.float64] = self._threshold if auto is None else auto.limits(t_us, sets, value)
        past = measured & further & self._compare(value, threshold)
        holds = past if self._clear is None else measured & further & self._compare(value, self._clear)
        return sets, value, past, holds, known, threshold

    def _join(self, store: WindowStore) -> tuple[LabelSets, list[NDArray[np.int64]]]:
        groups = tuple(query.selector.groups(store) for query in self._queries.values())
        if not groups:
            return LabelSets((), (), np.empty((1, 0), np.int32)), []
        if self._joined is None or any(one is not other for one, other in zip(groups, self._joined[0], strict=True)):
            self._joined = (groups, *joined(groups))
        return self._joined[1:]

    def _values(
        self, store: WindowStore, t_us: int, sets: LabelSets, places: list[NDArray[np.int64]]
    ) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_]]:
        """The values of each query by label set, and which sets some query knows."""
        values: dict[str, NDArray[np.float64]] = {}
        known_to: dict[str, NDArray[np.bool_]] = {}
        for (name, query), place in zip(self._queries.items(), places, strict=True):
            of_groups, known_groups = query.values(store, t_us, self._known_us)
            if len(self._queries) == 1:
                return {name: of_groups}, known_groups
            values[name] = np.full(len(sets), nan)
            values[name][place] = of_groups
            known_to[name] = np.zeros(len(sets), np.bool_)
            known_to[name][place] = known_groups
        measured = np.zeros(len(sets), np.bool_)
        known = np.zeros(len(sets), np.bool_)
        for name in values:
            measured |= ~np.isnan(values[name])
            known |= known_to[name]
        for name, query in self._queries.items():
            if query.additive:
                values[name][measured & ~known_to[name]] = 0
        return values, known


def _full(value: Any, size: int) -> NDArray[np.float64]:
    """A constant is the same for all label sets."""
    found: NDArray[np.float64] = np.broadcast_to(np.asarray(value, np.float64), (size,))
    return found


class AlertRule:
    """One rule: what it finds at a time, and the alerts that come of it."""

    def __init__(self, group: RuleGroup, rule: Rule, selectors: Selectors, state: object = None) -> None:
        """Anew, or from `snapshot`; the rule may have been changed since.

        Raises:
            ValueError: the state is of another format.
        """
        self.rule = rule
        known_us = KNOWN_US + _us(group.interval_s)
        self._fixed: Labels = tuple(
            sorted((one.label, one.value) for one in matchers_of(rule.where) if one.operator == "=" and one.value)
        )
        self._by = tuple(sorted({*rule.by, *dict(self._fixed)}))
        self._grouped = bool(set(rule.by) - set(dict(self._fixed)))
        self._comparison = None if rule.comparison is None else Comparison(rule, self._by, known_us, selectors)
        self._absence = None
        if rule.comparison is None:
            kinds = frozenset(KINDS) if rule.kind is None else frozenset({rule.kind})
            assert rule.metric is not None
            self._absence = selectors.get(rule.metric, rule.where, self._by, kinds)
        self._window_us, self._known_us = _us(rule.window_s), known_us
        learned: Any = None
        if isinstance(state, Mapping):  # of `threshold: auto`
            learned, state = state["learned"], state["alerts"]
        interval_us = _us(group.interval_s)
        period_us = -(-max(self._window_us, interval_us) // interval_us) * interval_us
        self._learns = (rule.model_dump_json(include=_LEARNED), period_us)
        self.auto: AutoThreshold | None = None
        """Of `threshold: auto`: what was learned."""
        if rule.threshold == AUTO:
            above = rule.comparison in (Operator.GT, Operator.GTE)
            kept = learned is not None and learned[0] == self._learns
            self.auto = AutoThreshold(above=above, period_us=period_us, state=learned[1] if kept else None)
        self.alerts = RuleAlerts(spec_of(group, rule), state)

    def keep(self) -> Iterable[tuple[str, Keep]]:
        """What the store must keep for it."""
        if self._absence is not None:
            yield self._absence.metric, Keep(self._window_us + self._known_us)
        if self._comparison is not None:
            yield from self._comparison.keep()

    def evaluate(self, store: WindowStore, t_us: int) -> list[AlertEvent]:
        """Judges the rule at `t_us`, which must be later than before.

        Costs some 50 us, and what its selectors say; an event costs 15 us, a live alert 2 us.
        """
        if self._comparison is not None:
            return self._compare(self._comparison, store, t_us)
        assert self._absence is not None
        return self._absent(self._absence, store, t_us)

    def _compare(self, comparison: Comparison, store: WindowStore, t_us: int) -> list[AlertEvent]:
        sets, value, past, holds, known, threshold = comparison.evaluate(store, t_us, self.auto)
        limits: dict[Labels, float] = {}
        if isinstance(threshold, np.ndarray):
            limits = {sets.labels(number): float(threshold[number]) for number in np.flatnonzero(past).tolist()}
        breached = {sets.labels(number): float(value[number]) for number in np.flatnonzero(past).tolist()}
        if self.rule.no_data is NoData.ALERT:
            missing = np.flatnonzero(known & np.isnan(value)).tolist()
            breached |= {sets.labels(number): nan for number in missing}
            if not self._grouped and np.isnan(value).all():
                breached[self._fixed] = nan
        holding: dict[Labels, float] = {}
        silent: set[Labels] = set()
        for labels in self.alerts.held():
            if labels in breached:
                continue
            number = sets.find(labels)
            if number < 0 or np.isnan(value[number]):
                if self.alerts.quenched(labels) and (number < 0 or not known[number]):
                    continue  # what a person resolved is let go with its series
                if self.rule.no_data is NoData.KEEP:
                    silent.add(labels)
                elif self.rule.no_data is NoData.ALERT:
                    breached[labels] = nan
            elif holds[number]:
                holding[labels] = float(value[number])
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

    def _absent(self, selector: Selector, store: WindowStore, t_us: int) -> list[AlertEvent]:
        groups = selector.groups(store)
        present = groups.any(selector.present(store, t_us - self._window_us, t_us))
        if not self._grouped:
            return self.alerts.evaluate(t_us, {} if present.any() else {self._fixed: nan})
        known = groups.any(selector.present(store, t_us - self._window_us - self._known_us, t_us))
        breached = {groups.labels(number): nan for number in np.flatnonzero(known & ~present).tolist()}
        for labels in self.alerts.held():
            number = groups.find(labels)
            # What a person resolved is let go with its series: it may come back, and go again.
            if (number < 0 or not present[number]) and not self.alerts.quenched(labels):
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

    def evaluate(self, store: WindowStore, t_us: int) -> list[AlertEvent]:
        """Judges all rules at `t_us`, a multiple of the interval."""
        return [event for rule in self.rules.values() for event in rule.evaluate(store, t_us)]

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


def keep_of(groups: Iterable[AlertGroup]) -> dict[str, Keep]:
    """What a store must keep for these groups: of each metric as much as any rule looks back."""
    return keep_by_metric(one for group in groups for rule in group.rules.values() for one in rule.keep())


def keep_by_metric(wanted: Iterable[tuple[str, Keep]]) -> dict[str, Keep]:
    """Of each metric as much as anything that is wanted."""
    found: dict[str, Keep] = {}
    for metric, keep in wanted:
        found[metric] = Keep(*map(max, found.get(metric, Keep(0)), keep))
    return found
