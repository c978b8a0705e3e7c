"""Maintenance calendars: when what happens counts neither as good nor as bad. docs/slo.md says what a user writes."""

from collections.abc import Sequence
from datetime import time
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, PlainSerializer, model_validator

from tailrace_schemas.config.base import ConfigModel, Name

__all__ = ["DAYS", "Interval", "Maintenance", "Weekly"]

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _time_of_day(value: Any) -> Any:
    if isinstance(value, time):
        return value
    hours, colon, minutes = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and hours.isdecimal() and minutes.isdecimal() and len(minutes) == 2 and len(hours) <= 2):
        raise ValueError(f'{value!r} is no time of day; write "02:30", in quotes')
    if int(hours) > 23 or int(minutes) > 59:
        raise ValueError(f"{value!r} is no time of day")
    return time(int(hours), int(minutes))


TimeOfDay = Annotated[
    time,
    BeforeValidator(_time_of_day, json_schema_input_type=str),
    PlainSerializer(lambda value: f"{value:%H:%M}", return_type=str),
]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # what it raises for unknown names, and for odd ones such as ".."
        raise ValueError(f"{name!r} is no time zone of the IANA database, such as Europe/Paris") from None
    return name


class Interval(ConfigModel):
    """Once, from `start` to before `end`."""

    start: AwareDatetime
    end: AwareDatetime

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start >= self.end:
            raise ValueError(f"it ends at {self.end.isoformat()}, not after its start")
        return self


class Weekly(ConfigModel):
    """Every week, in the calendar's time zone. An `end` that is not after `start` is on the next day."""

    days: Annotated[
        tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...], Field(min_length=1, max_length=7)
    ]
    """On which it starts."""
    start: TimeOfDay
    end: TimeOfDay


class Maintenance(ConfigModel):
    """A calendar, for some services or for all."""

    name: Name
    services: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] | None = None
    """None: all."""
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    once: Annotated[tuple[Interval, ...], Field(max_length=1000)] = ()
    weekly: Annotated[tuple[Weekly, ...], Field(max_length=100)] = ()

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.once and not self.weekly:
            raise ValueError("it has neither `once` nor `weekly`: no time would be maintenance")
        if self.services == ():
            raise ValueError("`services` is empty; leave it out for all services")
        return self

    def sentences(self) -> Sequence[str]:
        whose = "all services" if self.services is None else ", ".join(self.services)
        times = [f"from {one.start.isoformat()} to {one.end.isoformat()}" for one in self.once]
        zone = self.time_zone
        times += [f"{', '.join(one.days)} from {one.start:%H:%M} to {one.end:%H:%M} {zone}" for one in self.weekly]
        return [f"{self.name}: maintenance of {whose}: {'; '.join(times)}"]
