"""What the models of the configuration share: strictness, durations, names, sentences."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer
from pydantic_core import PydanticCustomError

__all__ = ["MAX_DURATION_S", "ConfigModel", "Duration", "Name", "duration_text", "parse_duration", "wrong"]

_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
MAX_DURATION_S: Final = 366 * 86_400
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])")
_DURATION: Final = re.compile(f"(?:{_PART.pattern})+")


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `5m`, `1h30m`, `250ms`, `7d`, `2w`.

    Raises:
        ValueError: it is none.
    """
    if not _DURATION.fullmatch(text):
        raise ValueError(f'{text!r} is no duration; write "30s", "5m", "1h30m" or "7d"')
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def duration_text(seconds: float) -> str:
    """The shortest way to write it: 5400 -> `1h30m`."""
    rest_ms = round(seconds * 1000)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        number, rest_ms = divmod(rest_ms, round(_UNITS[unit] * 1000))
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        seconds = parse_duration(value)
        rest_ms = seconds * 1000 % 1 if seconds < MAX_DURATION_S else 0.0
        if 1e-3 < rest_ms < 1 - 1e-3:  # more than an error of the arithmetic
            raise ValueError(f"{value!r} is no whole number of milliseconds")
        return seconds
    raise ValueError(f'a duration has a unit; write "30s", "5m", "1h30m" or "7d", not {value!r}')


Duration = Annotated[
    float,
    BeforeValidator(_seconds, json_schema_input_type=str),
    Field(le=MAX_DURATION_S),
    PlainSerializer(duration_text, return_type=str),
]
"""Seconds; written as `30s`, `5m`, `1h30m`."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,99}$")]
"""Of a thing in the configuration: part of its key on the config topic."""


def wrong(message: str, *key: str | int) -> PydanticCustomError:
    """What a validator of a whole model raises, so that the error names the line of what is at `key` within it."""
    return PydanticCustomError("wrong", "{message}", {"message": message, "key": key})


class ConfigModel(BaseModel):
    """A part of the configuration: immutable, strict in types, and without keys that it does not know.

    Validate it from JSON or through `load`, where a list stands for a tuple and a text for an enum's member.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def sentences(self) -> Sequence[str]:
        """What it means, a sentence for each thing in it: for `tailrace check`."""
        return ()
