"""What rules compute from the rows of a window: one of a few aggregates, written as one word."""

import re
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Final, NamedTuple, Self

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from tailrace_schemas.config.base import duration_text, parse_duration

__all__ = ["ADDITIVE", "FORMS", "KINDS_OF", "Aggregate", "AggregateText", "How", "check_kind"]


class How(StrEnum):
    """What an aggregate computes from the rows of a window."""

    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"
    LAST = "last"
    INCREASE = "increase"
    RATE = "rate"
    QUANTILE = "quantile"
    FRACTION_ABOVE = "fraction_above"
    FRACTION_BELOW = "fraction_below"
    PREDICT_LINEAR = "predict_linear"


ADDITIVE: Final = frozenset({How.COUNT, How.SUM, How.INCREASE, How.RATE})
"""Those of nothing are 0."""
_SKETCHED: Final = frozenset({How.QUANTILE, How.FRACTION_ABOVE, How.FRACTION_BELOW})
KINDS_OF: Final[Mapping[How, frozenset[str]]] = {
    How.SUM: frozenset({"distribution", "counter", "gauge", "event"}),
    How.MIN: frozenset({"distribution", "gauge"}),
    How.MAX: frozenset({"distribution", "gauge"}),
    How.MEAN: frozenset({"distribution", "gauge"}),
    How.LAST: frozenset({"gauge", "cumulative"}),
    How.PREDICT_LINEAR: frozenset({"gauge", "cumulative"}),
    How.INCREASE: frozenset({"counter", "cumulative", "event"}),
    How.RATE: frozenset({"counter", "cumulative", "event"}),
    **dict.fromkeys(_SKETCHED, frozenset({"distribution"})),
}
"""Which kinds of series have what an aggregate needs; all of them, where it is not here."""
_PLAIN: Final = tuple(how.value for how in How if how not in _SKETCHED and how is not How.PREDICT_LINEAR)
FORMS: Final = f"{', '.join(_PLAIN)}, p50, p99.9, fraction_above(0.3), fraction_below(0.3), predict_linear(4h)"


class Aggregate(NamedTuple):
    """An aggregate, and its argument: a quantile 0..1, a limit, or seconds ahead."""

    how: How
    argument: float = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `mean`, `p99.9`, `fraction_above(0.3)`, `predict_linear(4h)`.

        Raises:
            ValueError: it is none of them.
        """
        if text in _PLAIN:
            return cls(How(text))
        if found := re.fullmatch(r"p([0-9]{1,3}(?:\.[0-9]+)?)", text):
            q = Decimal(found[1]) / 100
            if q <= 1:
                return cls(How.QUANTILE, float(q))
        if found := re.fullmatch(
            r"fraction_(above|below)\(\s*([-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)\s*\)", text
        ):
            return cls(How(f"fraction_{found[1]}"), float(found[2]))
        if found := re.fullmatch(r"predict_linear\(\s*(\w+)\s*\)", text):
            return cls(How.PREDICT_LINEAR, parse_duration(found[1]))
        raise ValueError(f"{text!r} is no aggregate; there are: {FORMS}")

    def __str__(self) -> str:
        # With all digits: so it goes to the config topic.
        if self.how is How.QUANTILE:
            return f"p{(Decimal(repr(self.argument)) * 100).normalize():f}"
        if self.how in _SKETCHED:
            return f"{self.how}({repr(self.argument).removesuffix('.0')})"
        if self.how is How.PREDICT_LINEAR:
            return f"predict_linear({duration_text(self.argument)})"
        return self.how.value

    def sentence(self, metric: str, window_s: float) -> str:
        """the mean of METRIC over 1m"""
        over = f"over {duration_text(window_s)}"
        match self.how:
            case How.FRACTION_ABOVE | How.FRACTION_BELOW:
                side = self.how.removeprefix("fraction_")
                return f"the share of {metric} {side} {self.argument:g} {over}"
            case How.PREDICT_LINEAR:
                return f"what {metric} will be in {duration_text(self.argument)}, by its trend {over}"
            case How.RATE:
                return f"the rate of {metric} per second {over}"
            case How.COUNT:
                return f"the number of samples of {metric} {over}"
        word = {How.MIN: "least", How.MAX: "greatest", How.LAST: "last value"}.get(self.how, str(self))
        return f"the {word} of {metric} {over}"


def _aggregate(value: object) -> object:
    return Aggregate.parse(value) if isinstance(value, str) else value


AggregateText = Annotated[
    Aggregate, BeforeValidator(_aggregate), PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string"})
]
"""An aggregate as users write it."""


def check_kind(aggregate: Aggregate, kind: str) -> None:
    """Refuses an aggregate of a kind whose rows do not have what it needs.

    Raises:
        ValueError: the aggregate is not for that kind.
    """
    kinds = KINDS_OF.get(aggregate.how)
    if kinds is not None and kind not in kinds:
        raise ValueError(f"a {kind} has no {aggregate}; it is for {', '.join(sorted(kinds))}")
