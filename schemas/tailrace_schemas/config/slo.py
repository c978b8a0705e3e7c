"""Service level objectives: what counts as good, how much must be, and when to tell. docs/slo.md is for users."""

import tomllib
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from tailrace_schemas.alerts import Severity
from tailrace_schemas.config.base import ConfigModel, Duration, Name, duration_text, parse_duration, wrong
from tailrace_schemas.config.health import HEALTH_RUNS
from tailrace_schemas.config.matcher import Tags, Where

__all__ = [
    "STEP_S", "BurnAlert", "Count", "Indicator", "Latency", "SloSpec", "default_alerts", "percent_text",
]  # fmt: skip

STEP_S: Final = 10
"""Objectives see windows of 10 s."""
DAY_S: Final = 86_400
MAX_PERIOD_DAYS: Final = 90


def _share(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        if not value.endswith("%"):
            raise InvalidOperation
        return float(Decimal(value.removesuffix("%").strip()) / 100)
    except ArithmeticError:  # of decimals: no number, or one beyond all bounds
        raise ValueError(f'{value!r} is no share; write "99.9%" or 0.999') from None


Share = Annotated[float, BeforeValidator(_share, json_schema_input_type=str | float)]
"""0..1; may be written in percent."""


def percent_text(share: float) -> str:
    """0.999 -> `99.9 %`."""
    return f"{float(Decimal(repr(share)) * 100):.10g} %"


def _limit(value: Any) -> Any:
    return parse_duration(value) if isinstance(value, str) else value


def _steps(seconds: float) -> float:
    if seconds <= 0 or seconds % STEP_S:
        raise ValueError(f"{duration_text(seconds)} is no multiple of {STEP_S}s, which is how often there are rows")
    return seconds


Window = Annotated[Duration, AfterValidator(_steps)]
MetricName = Annotated[str, Field(min_length=1, max_length=300)]


class Count(ConfigModel):
    """Events: the increase of counters, cumulative counters and events, or the samples of distributions."""

    metric: MetricName
    where: Where = Field(default_factory=dict)
    """Matchers on labels; `service` is the objective's, unless it is among them."""


class Latency(ConfigModel):
    """Samples of a distribution, good where they are not above a limit."""

    metric: MetricName
    below: Annotated[float, BeforeValidator(_limit, json_schema_input_type=str | float)]
    """A duration is in seconds; a number is in the metric's unit."""
    where: Where = Field(default_factory=dict)


class Indicator(ConfigModel):
    """What is counted, in one of four forms: good and total, bad and total, latency, health."""

    good: Count | None = None
    bad: Count | None = None
    total: Count | None = None
    latency: Latency | None = None
    health: Name | None = None
    """A health check: its runs that do not find the service unhealthy are good."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if given not in ({"good", "total"}, {"bad", "total"}, {"latency"}, {"health"}):
            raise ValueError("give `good` and `total`, or `bad` and `total`, or `latency`, or `health`")
        part = self.good or self.bad
        if part is not None and part == self.total:
            raise ValueError("both count the same: then every event would be alike")
        return self

    def counts(self) -> tuple[Count, Count]:
        """What is counted as bad or good (see `counts_bad`), and the total: also of `health`.

        Raises:
            ValueError: it is a latency, whose events are told apart by their values.
        """
        if self.health is not None:
            where = {"service": "=~.*", "health.check.name": self.health}
            unhealthy = where | {"health.check.status": "unhealthy"}
            return Count(metric=HEALTH_RUNS, where=unhealthy), Count(metric=HEALTH_RUNS, where=where)
        part = self.good or self.bad
        if part is None or self.total is None:
            raise ValueError("a latency has no counts")
        return part, self.total

    @property
    def counts_bad(self) -> bool:
        """Whether the first of `counts` is the bad events."""
        return self.good is None

    def sentence(self) -> str:
        if self.latency is not None:
            return f"{self.latency.metric}{_where(self.latency.where)} not above {self.latency.below:g}"
        if self.health is not None:
            return f"runs of the health check {self.health} that do not find it unhealthy"
        part, total = self.counts()
        side = "bad" if self.counts_bad else "good"
        return f"{total.metric}{_where(total.where)}, {side} where {part.metric}{_where(part.where)}"


def _where(where: Mapping[str, str]) -> str:
    return " {" + ", ".join(f"{label}: {text}" for label, text in where.items()) + "}" if where else ""


class BurnAlert(ConfigModel):
    """Told while both windows burn the budget faster than the factor."""

    severity: Severity
    long_s: Window = Field(alias="long")
    short_s: Window | None = Field(default=None, alias="short")
    """None: the long window alone."""
    budget: Share | None = None
    """The share of the period's budget that is spent within the long window at that rate."""
    factor: Annotated[float, Field(gt=0)] | None = None
    """The burn rate itself."""
    for_s: Duration = Field(default=0, alias="for")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.budget is None) == (self.factor is None):
            raise ValueError("give either `budget`, a share of the period's budget, or `factor`, a burn rate")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ValueError("`budget` is a share between 0 and 100%")
        if self.short_s is not None and self.short_s >= self.long_s:
            raise ValueError(f"`short` {duration_text(self.short_s)} is not below `long` {duration_text(self.long_s)}")
        return self

    def threshold(self, period_s: float) -> float:
        """The burn rate above which it is told: budget * period / long."""
        if self.factor is not None:
            return self.factor
        assert self.budget is not None
        return self.budget * period_s / self.long_s


@lru_cache(maxsize=1)
def default_alerts() -> tuple[BurnAlert, ...]:
    """Those of `burn_rates.toml`, which says where they come from."""
    text = files("tailrace_schemas.config").joinpath("burn_rates.toml").read_text("utf-8")
    return tuple(BurnAlert.model_validate(one, strict=False) for one in tomllib.loads(text)["alerts"])


class SloSpec(ConfigModel):
    """An objective: this share of the events of a rolling period is to be good."""

    name: Name
    service: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=2000)] = ""
    objective: Share
    period_s: Duration = Field(default=30 * DAY_S, alias="period")
    indicator: Indicator
    alerts: tuple[BurnAlert, ...] | None = None
    """None: `default_alerts`; empty: none."""
    budget_low: Share | None = 0.1
    """Told when less than this share of the budget is left; None: never."""
    minimum_events: Annotated[int, Field(ge=1)] = 100
    """Of a long window, and of the period for `budget_low`: with fewer, nothing begins to be told."""
    tags: Tags = ()

    @property
    def allowed(self) -> float:
        """The error ratio that the objective allows, without the last digits that 1 - 0.999 would leave."""
        return float(1 - Decimal(repr(self.objective)))

    def burn_alerts(self) -> tuple[BurnAlert, ...]:
        """Its own, or those recommended."""
        return default_alerts() if self.alerts is None else self.alerts

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.objective == 1:
            raise wrong("an objective of 100% has no error budget: nothing can be measured against it", "objective")
        if not 0 < self.objective < 1:
            raise wrong(f'{self.objective:g} is not between 0 and 1; write "99.9%" or 0.999', "objective")
        if self.period_s % DAY_S or not DAY_S <= self.period_s <= MAX_PERIOD_DAYS * DAY_S:
            message = f"{duration_text(self.period_s)} is no whole number of days from 1d to {MAX_PERIOD_DAYS}d"
            raise wrong(message, "period")
        if self.budget_low is not None and not 0 <= self.budget_low < 1:
            raise wrong("is a share from 0 to below 100%", "budget_low")
        waits: dict[Severity, float] = {}
        for number, alert in enumerate(self.burn_alerts()):
            place = () if self.alerts is None else ("alerts", number)
            self._check_reachable(alert, place)
            if waits.setdefault(alert.severity, alert.for_s) != alert.for_s:
                raise wrong(f"all of severity {alert.severity} are one alert: give them the same `for`", *place, "for")
        return self

    def _check_reachable(self, alert: BurnAlert, place: tuple[str | int, ...]) -> None:
        own = "" if self.alerts is not None else "; give `alerts` of your own, or [] for none"
        if alert.long_s > self.period_s:
            window, period = duration_text(alert.long_s), duration_text(self.period_s)
            raise wrong(f"an alert looks back {window}, further than the period of {period}{own}", *place)
        factor = alert.threshold(self.period_s)
        if factor * self.allowed >= 1:
            raise wrong(
                f"a burn rate above {factor:.4g} over {duration_text(alert.long_s)} cannot be reached: at an objective "
                f"of {percent_text(self.objective)} it means that more than {factor * self.allowed:.0%} of the events "
                f"are bad{own}",
                *place,
            )

    def sentences(self) -> Sequence[str]:
        period = duration_text(self.period_s)
        found = [
            f"{self.name}: {percent_text(self.objective)} of {self.service}'s events over {period} are to be good: "
            f"{self.indicator.sentence()}"
        ]
        for alert in self.burn_alerts():
            factor = alert.threshold(self.period_s)
            windows = duration_text(alert.long_s)
            if alert.short_s is not None:
                windows += f" and over {duration_text(alert.short_s)}"
            spent = percent_text(round(factor * alert.long_s / self.period_s, 4))
            found.append(
                f"{self.name}: {alert.severity} while more than {percent_text(round(factor * self.allowed, 10))} of "
                f"the events are bad over {windows} (a burn rate of {factor:.4g}: {spent} of the budget in "
                f"{duration_text(alert.long_s)})"
            )
        if self.budget_low is not None:
            found.append(f"{self.name}: warning while less than {percent_text(self.budget_low)} of the budget is left")
        return found
