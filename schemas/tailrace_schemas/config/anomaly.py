"""Detectors: which series are judged against their own past. docs/anomalies.md says what a user writes."""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from tailrace_schemas.config.aggregate import AggregateText
from tailrace_schemas.config.base import ConfigModel, Name, duration_text, wrong
from tailrace_schemas.config.expression import Expression
from tailrace_schemas.config.matcher import Label, Where
from tailrace_schemas.config.rules import ExpressionText, Interval, MetricName, Query, Rule, RuleOperator, Window

__all__ = ["ANOMALY_FLAGS", "ANOMALY_SCORE", "DetectorSpec"]

ANOMALY_SCORE = "anomaly.score"
"""A gauge of each judged series, 0..1: its labels, `detector` and `metric`."""
ANOMALY_FLAGS = "anomaly.flags"
"""A counter, of the same labels: the flags."""
ALONE = ("direction", "min_deviation", "min_relative_deviation")
"""Keys of detectors of one value."""
Word = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
OWN_LABELS = ("detector", "metric")
"""What those metrics say besides the labels of `by`."""


class DetectorSpec(ConfigModel):
    """A value, written as a rule's, whose every label set is a series with a detector of its own."""

    name: Name
    metric: MetricName | None = None
    aggregate: AggregateText | None = None
    queries: dict[Word, Query] = Field(default_factory=dict)
    value: ExpressionText | None = None
    signals: dict[Word, ExpressionText] = Field(default_factory=dict)
    """Expressions of `queries`, in place of `value`: judged together."""
    where: Where = Field(default_factory=dict)
    by: tuple[Label, ...] = ()
    interval_s: Interval = Field(default=60, alias="interval")
    """A point of each series so often."""
    window_s: Window | None = Field(default=None, alias="window")
    """How far a point looks back; None: the interval."""
    direction: Literal["above", "below", "both"] = "both"
    """Which deviations are flagged."""
    min_deviation: Annotated[float, Field(ge=0)] = 0.0
    """A flag needs at least this distance from what was expected ..."""
    min_relative_deviation: Annotated[float, Field(ge=0)] = 0.1
    """... and at least this share of what was expected."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.signals:
            self._check(self.question)
            return self
        for name in ("metric", "aggregate", "value", *ALONE):
            if name in self.model_fields_set:
                raise wrong("has no meaning with `signals`, which are judged together", name)
        if len(self.signals) < 2:
            raise wrong("one signal is a `value`; several are judged together", "signals")
        used = {name for text in self.signals.values() for name in Expression(text).names}
        if unused := [name for name in self.queries if name not in used]:
            raise wrong("is used by none of the `signals`", "queries", unused[0])
        if "signal" in self.by:
            raise wrong("'signal' is a label of what was learned: it would be there twice", "by")
        for name, text in self.signals.items():
            for query in Expression(text).names:
                if query not in self.queries:
                    there = ", ".join(self.queries) or "none"
                    raise wrong(f"there is no query {query!r}; there is: {there}", "signals", name)
        for part in self.parts().values():
            self._check(part.question)
        return self

    @staticmethod
    def _check(ask: Callable[[], Rule]) -> None:
        try:
            question = ask()
        except ValidationError as error:
            first = error.errors()[0]
            context = first.get("ctx", {})
            raise wrong(str(context.get("error", first["msg"])), *context.get("key", ())) from None
        if not question.all_queries():
            raise wrong("a constant has no anomalies; it needs `queries`", "value")
        for query in question.all_queries().values():
            if query.metric in (ANOMALY_SCORE, ANOMALY_FLAGS):
                raise ValueError(f"{query.metric} is what detectors say; it is for rules")
        for label in OWN_LABELS:
            if label in question.label_names():
                raise wrong(f"{label!r} is a label of {ANOMALY_SCORE}: it would be there twice", "by")

    @property
    def what(self) -> str:
        """The metric, the expression of several, or the names of the signals."""
        return str(self.metric or self.value or ", ".join(self.signals))

    def parts(self) -> dict[str, "DetectorSpec"]:
        """Of `signals`: each of them as a detector of its own."""
        return {
            name: self.model_copy(
                update={
                    "signals": {},
                    "value": text,
                    "queries": {query: one for query, one in self.queries.items() if query in Expression(text).names},
                }
            )
            for name, text in self.signals.items()
        }

    def question(self) -> Rule:
        """The rule with the same value: what it is compared with has no meaning here."""
        given = {name: value for name in ("metric", "aggregate", "value") if (value := getattr(self, name)) is not None}
        given |= {"queries": self.queries, "where": self.where, "by": self.by}
        window = duration_text(self.window_s or self.interval_s)
        return Rule.model_validate(
            given | {"alert": self.name, "op": RuleOperator.GT, "threshold": 0.0, "window": window}
        )

    def sentences(self) -> Sequence[str]:
        each = f", for each {', '.join(self.by)}," if self.by else ""
        if self.signals:
            said = "; ".join(f"{name}: {part.question().subject()}" for name, part in self.parts().items())
            return [
                f"{self.name}: every {duration_text(self.interval_s)}, {self.what} ({said}){each} are judged by their "
                "own past, and flagged when they are unusual together."
            ]
        least = f"{self.min_relative_deviation:.0%} of what was expected"
        if self.min_deviation:
            least += f" and {self.min_deviation:g}"
        side = "off" if self.direction == "both" else self.direction
        return [
            f"{self.name}: every {duration_text(self.interval_s)}, {self.question().subject()}{each} is judged by its "
            f"own past; flagged when {side} by at least {least}."
        ]
