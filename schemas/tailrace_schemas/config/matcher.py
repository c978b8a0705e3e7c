"""Conditions on labels."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, NamedTuple

import re2
from pydantic import AfterValidator, Field

__all__ = ["Label", "Matcher", "Tags", "Where", "matchers_of"]


_OPTIONS: Final = re2.Options()
_OPTIONS.dot_nl = True
_OPTIONS.never_capture = True
_OPTIONS.log_errors = False  # on stderr, beside the error that we raise


@lru_cache(maxsize=1000)
def _compiled(expression: str) -> Any:
    """RE2's, as in ClickHouse and Prometheus: its time is linear in the value, which comes from anywhere."""
    return re2.compile(expression.encode(), _OPTIONS)


class Matcher(NamedTuple):
    """A condition on one label; a label that a series does not have is empty."""

    label: str
    operator: Literal["=", "!=", "=~", "!~"]
    value: str
    """A regular expression (RE2) matches the whole value."""

    def matches(self, value: str) -> bool:
        if self.operator in ("=", "!="):
            return (value == self.value) == (self.operator == "=")
        return (_compiled(self.value).fullmatch(value.encode()) is not None) == (self.operator == "=~")

    def __str__(self) -> str:
        words = {"=": "is", "!=": "is not", "=~": "matches", "!~": "does not match"}
        return f"{self.label} {words[self.operator]} {self.value or 'empty'}"


def _matcher(label: str, text: str) -> Matcher:
    for operator in ("!=", "=~", "!~"):
        if text.startswith(operator):
            return Matcher(label, operator, text[2:])
    return Matcher(label, "=", text)


def _compiles(text: str) -> str:
    matcher = _matcher("", text)
    if "~" in matcher.operator:
        try:
            _compiled(matcher.value)
        except re2.error as error:
            reason = error.args[0].decode(errors="replace")
            raise ValueError(f"{matcher.value!r} is no regular expression of RE2: {reason}") from None
    return text


Label = Annotated[str, Field(min_length=1, max_length=200)]
Tags = Annotated[tuple[Label, ...], Field(max_length=100)]
"""Every alert has them, and has to have room in a message of Kafka."""
Where = dict[Label, Annotated[str, AfterValidator(_compiles)]]
"""Label -> `value`, `!=value`, `=~expression` or `!~expression` (RE2)."""


def matchers_of(where: Mapping[str, str]) -> tuple[Matcher, ...]:
    """The matchers that a `where` says."""
    return tuple(_matcher(label, text) for label, text in where.items())
