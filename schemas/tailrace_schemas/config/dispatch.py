"""Who is told of alerts, when, and when not: routes, teams, escalations, inhibitions, silences, time intervals.

Names and meaning are those of Alertmanager's configuration where it has the thing
(https://prometheus.io/docs/alerting/latest/configuration/); durations are text such as `5m` or seconds.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Final, Self, TypeVar
from zoneinfo import ZoneInfo

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field, model_validator

from tailrace_schemas.config.base import ConfigModel, Duration, Name, duration_text, wrong
from tailrace_schemas.config.matcher import Matcher, Where, matchers_of
from tailrace_schemas.config.receivers import Receiver
from tailrace_schemas.config.source import Item, Problem

__all__ = [
    "DispatchConfig", "Escalation", "FlapDamping", "Inhibition", "Interval", "Matchers", "Route", "Routing", "Silence",
    "Step", "Team", "TimeInterval", "TimeRange", "check_references",
]  # fmt: skip


class Matchers:
    """What a `where` asks of an alert: all must match. A label that is missing is empty.

    Besides an alert's own labels there are `alertname`, `severity` and `source`.
    """

    def __init__(self, where: Mapping[str, str]) -> None:
        self._matchers: Sequence[Matcher] = matchers_of(where)

    def match(self, labels: Mapping[str, str]) -> bool:
        return all(one.matches(labels.get(one.label, "")) for one in self._matchers)

    def __str__(self) -> str:
        return " and ".join(map(str, self._matchers)) or "every alert"


RangeText = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]
"""`2026` needs no quotes."""


class Interval(ConfigModel):
    """A repeating time; what is given must all hold, of each list one. As in Alertmanager."""

    times: tuple["TimeRange", ...] = ()
    weekdays: tuple[RangeText, ...] = ()
    """`monday`, or `monday:friday`, both included."""
    days_of_month: tuple[RangeText, ...] = ()
    """`1`, `1:5`, or `-3:-1`: the last three days."""
    months: tuple[RangeText, ...] = ()
    """`january`, `5`, `may:august`."""
    years: tuple[RangeText, ...] = ()
    """`2026`, `2026:2028`."""
    location: str = "UTC"
    """Of the IANA time zone database."""

    @model_validator(mode="after")
    def _readable(self) -> Self:
        _ = self.parsed
        try:
            ZoneInfo(self.location)
        except (KeyError, ValueError, OSError):
            raise wrong(f"there is no time zone {self.location!r}; write one as Europe/Paris", "location") from None
        return self

    @cached_property
    def parsed(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """The ranges as numbers, both ends included; weekdays from Sunday = 0."""
        return {
            "weekdays": tuple(_range("weekdays", text, _WEEKDAYS, 0, 6) for text in self.weekdays),
            "days_of_month": tuple(_days(text) for text in self.days_of_month),
            "months": tuple(_range("months", text, _MONTHS, 1, 12) for text in self.months),
            "years": tuple(_range("years", text, {}, 1970, 9999) for text in self.years),
        }


class TimeRange(ConfigModel):
    """Of a day: `start_time` included, `end_time` not; `24:00` is its end."""

    start_time: Annotated[str, Field(pattern=r"^(?:[01]\d|2[0-3]):[0-5]\d$|^24:00$")]
    end_time: Annotated[str, Field(pattern=r"^(?:[01]\d|2[0-3]):[0-5]\d$|^24:00$")]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.start_minute >= self.end_minute:
            raise wrong(
                f"{self.start_time} is not before end_time {self.end_time}: "
                "a time over midnight is two ranges, to 24:00 and from 00:00",
                "start_time",
            )
        return self

    @property
    def start_minute(self) -> int:
        return int(self.start_time[:2]) * 60 + int(self.start_time[3:])

    @property
    def end_minute(self) -> int:
        return int(self.end_time[:2]) * 60 + int(self.end_time[3:])


_WEEKDAYS: Final = {
    name: number
    for number, name in enumerate(("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"))
}
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november",
         "december"), 1,
    )
}  # fmt: skip


def _number(what: str, text: str, names: Mapping[str, int]) -> int:
    name = text.strip().lower()
    if name in names:
        return names[name]
    if not re.fullmatch(r"-?\d{1,4}", name) or names is _WEEKDAYS:
        raise ValueError(f"{what}: {text!r} is not one" + (f"; there are: {', '.join(names)}" if names else ""))
    return int(name)


def _range(what: str, text: str, names: Mapping[str, int], low: int, high: int) -> tuple[int, int]:
    first, _, last = text.partition(":")
    begin = _number(what, first, names)
    end = _number(what, last, names) if last else begin
    if not low <= begin <= end <= high:
        first_name, last_name = (next((n for n, v in names.items() if v == at), at) for at in (low, high))
        raise ValueError(f"{what}: {text!r} is not within {first_name}:{last_name}, or ends before it begins")
    return begin, end


def _days(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    begin = _number("days_of_month", first, {})
    end = _number("days_of_month", last, {}) if last else begin
    if not (1 <= abs(begin) <= 31 and 1 <= abs(end) <= 31) or (begin < 0 < end):
        raise ValueError(f"days_of_month: {text!r} is not within 1:31 or -31:-1")
    shortest = 28  # as Alertmanager does: refuse what is empty in every month
    if (begin + shortest if begin < 0 else begin) > (end + shortest if end < 0 else end):
        raise ValueError(f"days_of_month: {text!r} ends before it begins")
    return begin, end


class TimeInterval(ConfigModel):
    """A named set of intervals, for the mute and active times of routes."""

    name: Name
    time_intervals: Annotated[tuple[Interval, ...], Field(min_length=1)]


class Route(ConfigModel):
    """A node of the routing tree. What is not given comes from the parent, but for `where`, `continue` and times."""

    model_config = ConfigDict(populate_by_name=True)

    receiver: Name | None = None
    team: Name | None = None
    """Instead of a receiver: all receivers of the team."""
    where: Where = Field(default_factory=dict)
    continue_: Annotated[bool, Field(alias="continue")] = False
    """Go on to the following siblings after this one matched."""
    group_by: tuple[str, ...] | None = None
    """Labels; alerts that agree in them share a notification. `...`: every alert for itself. Nothing: all together."""
    group_wait: Duration | None = None
    """Before the first notification of a group; default 30 s."""
    group_interval: Annotated[Duration, Field(ge=0.1)] | None = None
    """Between notifications of a group that has changed; default 5 m."""
    repeat_interval: Duration | None = None
    """Before a group that has not changed is told again; default 4 h."""
    cooldown: Duration | None = None
    """How long a receiver that was told of an alert is not told that it fires anew; default 0."""
    escalation: Name | None = None
    mute_time_intervals: tuple[Name, ...] = ()
    active_time_intervals: tuple[Name, ...] = ()
    routes: tuple["Route", ...] = ()

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.receiver is not None and self.team is not None:
            raise wrong(f"there is a receiver, {self.receiver}, already; a route has one of them", "team")
        return self


class FlapDamping(ConfigModel):
    """An alert that changes state too often is shown as firing, once, until it is calm; see docs/notifications.md."""

    window: Annotated[Duration, Field(gt=0)] = 3600
    start: Annotated[int, Field(ge=2, le=1000)] = 6
    """So many changes (to firing or to resolved) within the window: it flaps."""
    stop: Annotated[int, Field(ge=0, le=1000)] = 2
    """So many or fewer: it is calm again."""

    @model_validator(mode="after")
    def _hysteresis(self) -> Self:
        if self.stop >= self.start:
            raise wrong(f"must be less than start, which is {self.start}", "stop")
        return self


class Routing(Route):
    """The root of the tree: what no child takes goes to it."""

    flap_damping: FlapDamping | None = FlapDamping()
    """null: none."""

    def sentences(self) -> Sequence[str]:
        return list(_route_sentences(self, "every alert that no other route takes"))

    @model_validator(mode="after")
    def _root(self) -> Self:
        if self.receiver is None and self.team is None:
            raise ValueError("the root route needs a receiver or a team: what no other route takes goes there")
        for key in ("where", "mute_time_intervals", "active_time_intervals"):
            if getattr(self, key):
                raise wrong("the root route takes every alert at any time: only routes below it can have this", key)
        return self


class Team(ConfigModel):
    """People who are told together."""

    name: Name
    receivers: Annotated[tuple[Name, ...], Field(min_length=1)]
    description: str = ""

    def sentences(self) -> Sequence[str]:
        return [f"the team {self.name} is told through {', '.join(self.receivers)}"]


class Step(ConfigModel):
    """One step of an escalation: wait, or tell a receiver (a webhook is one) or a team."""

    wait: Duration | None = None
    notify: Name | None = None
    team: Name | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(one is not None for one in (self.wait, self.notify, self.team)) != 1:
            raise ValueError("a step is one of: wait (a duration), notify (a receiver), team (a team)")
        return self


class Escalation(ConfigModel):
    """What follows the first notification, step by step, for alerts that nobody acknowledges."""

    name: Name
    steps: Annotated[tuple[Step, ...], Field(min_length=1, max_length=50)]

    def sentences(self) -> Sequence[str]:
        found, after_s = [], 0.0
        for step in self.steps:
            after_s += step.wait or 0
            if step.wait is None:
                whom = step.notify or f"the team {step.team}"
                found.append(f"{whom} {duration_text(after_s)} after the first notification")
        return [f"{self.name}: while nobody acknowledges, tells {', then '.join(found)}"]

    @model_validator(mode="after")
    def _ends_in_telling(self) -> Self:
        if self.steps[-1].wait is not None:
            raise wrong("the last step waits for nothing", "steps", len(self.steps) - 1)
        return self


class Inhibition(ConfigModel):
    """While an alert of `source` fires, those of `target` with the same `equal` labels are not told."""

    name: Name
    source: Annotated[Where, Field(min_length=1)]
    target: Annotated[Where, Field(min_length=1)]
    equal: tuple[str, ...] = ()

    def sentences(self) -> Sequence[str]:
        same = f" and has the same {', '.join(self.equal)}" if self.equal else ""
        return [
            f"{self.name}: an alert where {Matchers(self.target)} is held back while one fires where "
            f"{Matchers(self.source)}{same}"
        ]


class Silence(ConfigModel):
    """Alerts that match are not told from `start` (included) to `end` (not included)."""

    name: Name
    where: Annotated[Where, Field(min_length=1)]
    start: AwareDatetime
    end: AwareDatetime
    author: Annotated[str, Field(min_length=1, max_length=200)]
    comment: Annotated[str, Field(max_length=10_000)] = ""

    def sentences(self) -> Sequence[str]:
        return [
            f"{self.name}: alerts where {Matchers(self.where)} are held back from {self.start.isoformat()} to "
            f"{self.end.isoformat()}, by {self.author}"
        ]

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.start >= self.end:
            raise wrong(f"must be later than the start, {self.start.isoformat()}", "end")
        if Matchers(self.where).match({}):
            raise wrong("this matches every alert that lacks these labels: name at least one value", "where")
        return self


Part = TypeVar("Part", Receiver, Team, Escalation, Inhibition, Silence, TimeInterval)


class DispatchConfig(ConfigModel):
    """All of it, by name."""

    routing: Routing | None = None
    """None: nobody is told of anything."""
    receivers: dict[str, Receiver] = Field(default_factory=dict)
    teams: dict[str, Team] = Field(default_factory=dict)
    escalations: dict[str, Escalation] = Field(default_factory=dict)
    inhibitions: dict[str, Inhibition] = Field(default_factory=dict)
    silences: dict[str, Silence] = Field(default_factory=dict)
    time_intervals: dict[str, TimeInterval] = Field(default_factory=dict)

    @classmethod
    def of(cls, models: Iterable[ConfigModel]) -> Self:
        """What of a whole configuration is the dispatcher's; the rest is left out."""
        given = list(models)

        def named(kind: type[Part]) -> dict[str, Part]:
            return {model.name: model for model in given if isinstance(model, kind)}

        return cls(
            routing=next((model for model in given if isinstance(model, Routing)), None),
            receivers=named(Receiver),
            teams=named(Team),
            escalations=named(Escalation),
            inhibitions=named(Inhibition),
            silences=named(Silence),
            time_intervals=named(TimeInterval),
        )


def _route_sentences(route: Route, what: str) -> Iterator[str]:
    whom = route.receiver or (f"the team {route.team}" if route.team else "whom the route above tells")
    parts = [f"{what} is told to {whom}"]
    if route.group_by is not None:
        parts.append(f"grouped by {', '.join(route.group_by)}" if route.group_by else "all in one group")
    for key, words in (
        ("group_wait", "first after"),
        ("group_interval", "on changes at most every"),
        ("repeat_interval", "again after"),
        ("cooldown", "anew not within"),
    ):
        if (seconds := getattr(route, key)) is not None:
            parts.append(f"{words} {duration_text(seconds)}")
    if route.escalation:
        parts.append(f"escalated by {route.escalation}")
    if route.mute_time_intervals:
        parts.append(f"never during {', '.join(route.mute_time_intervals)}")
    if route.active_time_intervals:
        parts.append(f"only during {', '.join(route.active_time_intervals)}")
    yield "; ".join(parts)
    for child in route.routes:
        yield from _route_sentences(child, f"an alert where {Matchers(child.where)}")


def check_references(items: Sequence[Item]) -> Iterator[Problem]:
    """References to what does not exist."""
    names: dict[type[ConfigModel], list[str]] = {}
    for item in items:
        names.setdefault(type(item.model), []).append(item.name)

    def needed(item: Item, model: type[ConfigModel], name: str | None, *key: str | int) -> Iterator[Problem]:
        there = names.get(model, [])
        if name is not None and name not in there:
            what = re.sub(r"(?<!^)([A-Z])", r" \1", model.__name__).lower()
            yield item.problem(f"there is no {what} {name!r}; there are: {', '.join(sorted(there)) or 'none'}", *key)

    def in_route(item: Item, route: Route, key: tuple[str | int, ...]) -> Iterator[Problem]:
        yield from needed(item, Receiver, route.receiver, *key, "receiver")
        yield from needed(item, Team, route.team, *key, "team")
        yield from needed(item, Escalation, route.escalation, *key, "escalation")
        for field in ("mute_time_intervals", "active_time_intervals"):
            for number, name in enumerate(getattr(route, field)):
                yield from needed(item, TimeInterval, name, *key, field, number)
        for number, child in enumerate(route.routes):
            yield from in_route(item, child, (*key, "routes", number))

    for item in items:
        model = item.model
        if isinstance(model, Routing):
            yield from in_route(item, model, ())
        elif isinstance(model, Team):
            for number, name in enumerate(model.receivers):
                yield from needed(item, Receiver, name, "receivers", number)
        elif isinstance(model, Escalation):
            for number, step in enumerate(model.steps):
                yield from needed(item, Receiver, step.notify, "steps", number, "notify")
                yield from needed(item, Team, step.team, "steps", number, "team")
