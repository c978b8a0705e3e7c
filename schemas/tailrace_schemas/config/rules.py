"""Alert rules: groups of conditions on aggregates of metrics. docs/rules.md says what a user writes."""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from math import inf
from string import Formatter
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tailrace_schemas.alerts import Operator, Severity
from tailrace_schemas.config.aggregate import FORMS, Aggregate, AggregateText, How, check_kind
from tailrace_schemas.config.base import ConfigModel, Duration, Name, duration_text, wrong
from tailrace_schemas.config.expression import Expression
from tailrace_schemas.config.matcher import Label, Tags, Where, matchers_of

__all__ = ["AUTO", "Condition", "NoData", "Query", "Rule", "RuleGroup", "RuleOperator"]

STEP_S: Final = 10
"""Rules see windows of 10 s: windows and intervals are multiples of it."""
MAX_WINDOW_S: Final = 24 * 3600
"""All rows of a window are kept in memory; longer questions are those of an SLO, which keeps rings."""


def _windows(seconds: float) -> float:
    if seconds <= 0 or seconds % STEP_S:
        raise ValueError(f"{duration_text(seconds)} is no multiple of {STEP_S}s, which is how often there are rows")
    return seconds


def _bounded(seconds: float) -> float:
    if seconds > MAX_WINDOW_S:
        raise ValueError(f"a rule looks back {duration_text(MAX_WINDOW_S)} at most; an SLO looks back further")
    return seconds


MAX_FORM: Final = 1000
"""Width and precision of a format: a gigabyte of blanks would be made before it is cut."""

AUTO: Final = "auto"
"""A threshold that follows each series."""


def _number_or_auto(value: Any) -> Any:
    if value == AUTO or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < inf):
        return value
    raise ValueError(f"must be a finite number, without quotes, or {AUTO}")


RuleThreshold = Annotated[float | Literal["auto"], BeforeValidator(_number_or_auto)]
Interval = Annotated[Duration, AfterValidator(_windows)]
Window = Annotated[Duration, AfterValidator(_windows), AfterValidator(_bounded)]
Kind = Literal["distribution", "counter", "cumulative", "gauge", "event"]


def _parses(text: str) -> str:
    Expression(text)
    return text


ExpressionText = Annotated[str, AfterValidator(_parses)]
MetricName = Annotated[str, Field(min_length=1, max_length=300)]


class RuleOperator(StrEnum):
    """How a rule compares: as `Operator`; or not at all, if it is about there being no data."""

    GT = "gt"
    GTE = "gte"
    LT = "lt"
    LTE = "lte"
    EQ = "eq"
    NE = "ne"
    ABSENT = "absent"


class NoData(StrEnum):
    """What becomes of a label set without data."""

    KEEP = "keep"
    """It stays as it is: unmeasured time is no evidence."""
    OK = "ok"
    """Its alert ends."""
    ALERT = "alert"
    """The missing data are an alert."""


class Query(ConfigModel):
    """An aggregate of a metric over (t - window, t]."""

    metric: MetricName
    aggregate: AggregateText
    window_s: Window | None = Field(default=None, alias="window")
    """None: the rule's."""
    where: Where = Field(default_factory=dict)
    """Besides the rule's."""
    kind: Kind | None = None
    """Only series of this kind; None: of any."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.kind is not None:
            _check_kind(self.aggregate, self.kind)
        return self


class Condition(ConfigModel):
    """A further condition that must hold too."""

    value: ExpressionText
    op: Operator
    threshold: float


class Rule(ConfigModel):
    """When an alert is active, and what it says."""

    alert: Name
    severity: Severity = Severity.WARNING
    metric: MetricName | None = None
    aggregate: AggregateText | None = None
    kind: Kind | None = None
    queries: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], Query] = Field(default_factory=dict)
    value: ExpressionText | None = None
    window_s: Window = Field(default=STEP_S, alias="window")
    where: Where = Field(default_factory=dict)
    by: tuple[Label, ...] = ()
    op: RuleOperator
    threshold: RuleThreshold | None = None
    """AUTO: the edge of the band in which the values of each label set usually lie."""
    clear_threshold: float | None = None
    also: tuple[Condition, ...] = Field(default=(), alias="and")
    for_s: Duration = Field(default=0, alias="for")
    keep_firing_for_s: Duration = Field(default=0, alias="keep_firing_for")
    no_data: NoData = NoData.KEEP
    description: Annotated[str, Field(max_length=2000)] = ""
    tags: Tags = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.metric is not None and self.queries:
            raise wrong("give one `metric`, or several `queries` and a `value`, not both", "queries")
        if len(set(self.by)) < len(self.by):
            raise wrong("names a label twice", "by")
        if self.comparison is None:
            self._check_absent()
        else:
            self._check_comparison()
        _check_description(self.description, {"value", *self.label_names()})
        return self

    def _check_absent(self) -> None:
        if self.metric is None:
            raise wrong("`op: absent` needs a `metric`", "op")
        for name in ("aggregate", "value", "threshold", "clear_threshold", "no_data", "also"):
            if name in self.model_fields_set:
                key = type(self).model_fields[name].alias or name
                raise wrong("has no meaning with `op: absent`, which is about there being no data at all", key)

    def _check_comparison(self) -> None:
        if self.threshold is None:
            raise wrong(f"`op: {self.op}` needs a `threshold`", "op")
        if self.metric is not None:
            if self.aggregate is None:
                raise wrong(f"needs an `aggregate`; there are: {FORMS}", "metric")
            if self.value is not None:
                raise wrong("is for `queries`; a `metric` is its own value", "value")
        elif self.aggregate is not None:
            raise wrong("belongs to a `metric`; those of `queries` are in each of them", "aggregate")
        elif self.kind is not None:
            raise wrong("belongs to a `metric`; those of `queries` are in each of them", "kind")
        elif self.value is None:
            raise ValueError("needs a `metric`, or `queries` and a `value`")
        if self.aggregate is not None and self.kind is not None:
            _check_kind(self.aggregate, self.kind)
        self._check_names()
        self._check_clear()
        self._check_reachable()

    def _check_names(self) -> None:
        used: set[str] = set()
        queries = self.all_queries()
        places: list[tuple[Expression, tuple[str | int, ...]]] = [(self.expression(), ("value",))]
        places += [(Expression(one.value), ("and", number, "value")) for number, one in enumerate(self.also)]
        for expression, key in places:
            for name in expression.names:
                if name not in queries:
                    raise wrong(f"there is no query {name!r}; there is: {', '.join(queries) or 'none'}", *key)
                used.add(name)
        if unused := [name for name in queries if name not in used]:
            raise wrong("is used neither by `value` nor by `and`", "queries", unused[0])
        for name, query in queries.items():
            for label, text in self.where.items():
                if query.where.get(label, text) != text:
                    raise wrong("contradicts the rule's own `where`", "queries", name, "where", label)
            if query.aggregate.how is How.PREDICT_LINEAR and (query.window_s or self.window_s) <= STEP_S:
                raise wrong("predict_linear needs two points at least, a window of 20s or more", "window")

    def _check_clear(self) -> None:
        clear, threshold = self.clear_threshold, self.threshold
        if threshold == AUTO:
            self._check_auto()
        if clear is None or not isinstance(threshold, float):
            return
        if self.comparison in (Operator.EQ, Operator.NE):
            raise wrong(f"has no meaning with `op: {self.op}`", "clear_threshold")
        above = self.comparison in (Operator.GT, Operator.GTE)
        if clear == threshold or (clear > threshold) == above:
            side = "below" if above else "above"
            raise wrong(f"must be {side} `threshold`, which is {threshold:g}: the alert ends there", "clear_threshold")

    def _check_auto(self) -> None:
        if self.comparison in (Operator.EQ, Operator.NE):
            raise wrong("`threshold: auto` is the edge of a band: `op` is gt, gte, lt or lte", "op")
        if self.clear_threshold is not None:
            raise wrong("has no meaning with `threshold: auto`", "clear_threshold")
        if not self.all_queries():
            raise wrong("a constant has no usual values; it needs `queries`", "value")
        for query in self.all_queries().values():
            if query.aggregate.how is How.PREDICT_LINEAR:
                raise wrong("`threshold: auto` learns what was, predict_linear says what will be", "threshold")

    def _check_reachable(self) -> None:
        expression, op = self.expression(), self.comparison
        if not isinstance(self.threshold, float):
            return
        assert op is not None
        if not expression.names:
            try:
                value = expression.evaluate({})
            except ZeroDivisionError:
                raise wrong("divides by zero", "value") from None
            if not _holds(op, value, self.threshold):
                raise wrong(f"never fires: {value:g} is not {_WORDS[op]} {self.threshold:g}", "value")
            return
        if not expression.is_name:
            return
        low, high = _range(self.all_queries()[expression.names[0]])
        if not _reachable(op, self.threshold, low, high):
            raise wrong(f"never fires: the value lies in {low:g}..{high:g}", "threshold")
        if _certain(op, self.threshold, low, high):
            raise wrong(f"always fires: the value lies in {low:g}..{high:g}", "threshold")

    @property
    def comparison(self) -> Operator | None:
        """How the value is compared; None: the rule is about absence."""
        return None if self.op is RuleOperator.ABSENT else Operator(self.op)

    # -- what follows from it ------------------------------------------------------------------------

    def all_queries(self) -> dict[str, Query]:
        """The queries by name; that of the short form is `value`."""
        if self.metric is not None and self.aggregate is not None:
            return {"value": Query(metric=self.metric, aggregate=self.aggregate, kind=self.kind)}
        return self.queries

    def expression(self) -> Expression:
        """What is compared with the threshold."""
        return Expression("value" if self.value is None else self.value)

    def label_names(self) -> set[str]:
        """The labels that its alerts may have: those of `by`, and those that `where` fixes."""
        return {*self.by, *(one.label for one in matchers_of(self.where) if one.operator == "=" and one.value)}

    def sentence(self) -> str:
        """What it means."""
        parts = [f"{self.alert} ({self.severity}) fires when {self.subject()}"]
        if self.by:
            parts.append(f", for each {_and(self.by)},")
        if self.comparison is None:
            parts.append(f" has no data over {duration_text(self.window_s)}")
        else:
            usual = "what is usual, as learned from its own past"
            limit = usual if self.threshold == AUTO else f"{self.threshold:g}"
            parts.append(f" is {_WORDS[self.comparison]} {limit}")
        parts += [f" and {one.value} is {_WORDS[one.op]} {one.threshold:g}" for one in self.also]
        if self.for_s:
            parts.append(f" for {duration_text(self.for_s)}")
        parts += [f"; {one}" for one in self._endings()]
        return "".join(parts) + "."

    def subject(self) -> str:
        """What it looks at."""
        where = _and([str(one) for one in matchers_of(self.where)])
        where = f" where {where}" if where else ""
        if self.metric is not None:
            if self.aggregate is None:
                return f"{self.metric}{where}"
            return self.aggregate.sentence(self.metric, self.window_s) + where
        said = []
        for name, query in self.queries.items():
            own = _and([str(one) for one in matchers_of(query.where)])
            what = query.aggregate.sentence(query.metric, query.window_s or self.window_s)
            said.append(f"{name} is {what}" + (f" where {own}" if own else ""))
        return f"{self.value} ({'; '.join(said)}){where}" if said else str(self.value)

    def _endings(self) -> list[str]:
        found = []
        if self.clear_threshold is not None and self.comparison is not None:
            found.append(f"it ends when the value is not {_WORDS[self.comparison]} {self.clear_threshold:g}")
        if self.keep_firing_for_s:
            found.append(f"it stays for {duration_text(self.keep_firing_for_s)} after its condition ended")
        if self.comparison is not None and self.all_queries():
            said = {
                NoData.KEEP: "without data it stays as it is",
                NoData.OK: "without data it ends",
                NoData.ALERT: "it fires without data too",
            }
            found.append(said[self.no_data])
        return found


class RuleGroup(ConfigModel):
    """Rules that are evaluated together, every `interval` of event time."""

    name: Name
    interval_s: Interval = Field(default=STEP_S, alias="interval")
    rules: Annotated[tuple[Rule, ...], Field(min_length=1, max_length=10_000)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        seen: set[str] = set()
        for number, rule in enumerate(self.rules):
            if rule.alert in seen:
                message = f"another rule of the group is named {rule.alert!r}: their alerts could not be told apart"
                raise wrong(message, "rules", number, "alert")
            seen.add(rule.alert)
        return self

    def sentences(self) -> Sequence[str]:
        return [f"{self.name}/{rule.sentence()}" for rule in self.rules]


_WORDS: Final[Mapping[Operator, str]] = {
    Operator.GT: "above",
    Operator.GTE: "at least",
    Operator.LT: "below",
    Operator.LTE: "at most",
    Operator.EQ: "equal to",
    Operator.NE: "other than",
}
_FRACTIONS: Final = re.compile(r"system\.(cpu|cpu\.mode|cpu\.logical|memory|filesystem|paging|disk)\.utilization")
"""Metrics of the host agent that are shares, so that a percentage is a slip."""


def _check_kind(aggregate: Aggregate, kind: str) -> None:
    try:
        check_kind(aggregate, kind)
    except ValueError as error:
        raise wrong(str(error), "aggregate") from None


def _check_description(template: str, known: set[str]) -> None:
    try:
        fields = [parts[1:] for parts in Formatter().parse(template) if parts[1] is not None]
        for name, form, conversion in fields:
            if conversion:
                raise ValueError(f"!{conversion} has no meaning in a description")
            if name not in known:
                raise ValueError(f"there is no {{{name}}}; there is: {', '.join(sorted(known))}")
            if any(int(digits) > MAX_FORM for digits in re.findall("[0-9]+", form or "")):
                raise ValueError(f"{{{name}:{form}}} is wider than {MAX_FORM} characters")
            format(0.5 if name == "value" else "text", form or "")
    except ValueError as error:
        raise wrong(str(error), "description") from None


def _range(query: Query) -> tuple[float, float]:
    """Between which values its value lies, both included."""
    how = query.aggregate.how
    if how in (How.FRACTION_ABOVE, How.FRACTION_BELOW):
        return 0, 1
    if how in (How.COUNT, How.INCREASE, How.RATE):
        return 0, inf
    if _FRACTIONS.fullmatch(query.metric) and how not in (How.SUM, How.PREDICT_LINEAR):
        return 0, 1
    return -inf, inf


def _holds(op: Operator, value: float, threshold: float) -> bool:
    return {
        Operator.GT: value > threshold,
        Operator.GTE: value >= threshold,
        Operator.LT: value < threshold,
        Operator.LTE: value <= threshold,
        Operator.EQ: value == threshold,
        Operator.NE: value != threshold,
    }[op]


def _reachable(op: Operator, threshold: float, low: float, high: float) -> bool:
    """Whether some value of low..high fulfils it."""
    if op is Operator.EQ:
        return low <= threshold <= high
    return _holds(op, low, threshold) or _holds(op, high, threshold)


def _certain(op: Operator, threshold: float, low: float, high: float) -> bool:
    """Whether every value of low..high fulfils it."""
    if op is Operator.EQ:
        return False
    outside = threshold < low or threshold > high
    return outside if op is Operator.NE else _holds(op, low, threshold) and _holds(op, high, threshold)


def _and(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))
