"""Conditions on labels."""

import re
from collections.abc import Mapping
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field

__all__ = ["Label", "Matcher", "Tags", "Where", "matchers_of"]


class Matcher(NamedTuple):
    """A condition on one label; a label that a series does not have is empty."""

    label: str
    operator: Literal["=", "!=", "=~", "!~"]
    value: str
    """A regular expression matches the whole value."""

    def matches(self, value: str) -> bool:
        if self.operator in ("=", "!="):
            return (value == self.value) == (self.operator == "=")
        return (re.fullmatch(self.value, value, re.S) is not None) == (self.operator == "=~")

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
            re.compile(matcher.value)
        except (re.error, OverflowError, RecursionError) as error:  # the latter: a{9999999999}, ((((...
            raise ValueError(f"{matcher.value!r} is no regular expression: {error}") from None
    return text


Label = Annotated[str, Field(min_length=1, max_length=200)]
Tags = Annotated[tuple[Label, ...], Field(max_length=100)]
"""Every alert has them, and has to have room in a message of Kafka."""
Where = dict[Label, Annotated[str, AfterValidator(_compiles)]]
"""Label -> `value`, `!=value`, `=~expression` or `!~expression`."""


def matchers_of(where: Mapping[str, str]) -> tuple[Matcher, ...]:
    """The matchers that a `where` says."""
    return tuple(_matcher(label, text) for label, text in where.items())
