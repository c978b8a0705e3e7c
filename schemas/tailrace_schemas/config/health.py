"""Health checks, heartbeats, and which service needs which. docs/health.md says what a user writes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from tailrace_schemas.config.base import ConfigModel, Duration, Name, duration_text, wrong
from tailrace_schemas.config.matcher import Where
from tailrace_schemas.config.source import Item, Problem

__all__ = [
    "HEALTH_RUNS", "RUNNER", "ClickHouse", "Command", "Endpoint", "HealthCheck", "Heartbeat", "Http", "Kafka",
    "ServiceSpec", "cycle_of", "health_problems",
]  # fmt: skip

RUNNER: Final = "health"
"""The service whose samples the results of checks are, unless `tailrace health run --service` names another."""
HEALTH_RUNS: Final = "health.check.runs"
"""What `tailrace health run` counts, by `health.check.name` and `health.check.status`."""
STEP_S: Final = 10
"""A result is a 10 s window's: checks run at most as often."""
HEARTBEAT_WITHIN_S: Final = 60.0

ServiceName = Annotated[str, Field(min_length=1, max_length=200)]
Host = Annotated[str, Field(min_length=1, max_length=255)]
Port = Annotated[int, Field(ge=1, le=65535)]


def _http_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold a user's name or password: everybody who reads the configuration would see it")
    return text


Url = Annotated[str, Field(max_length=2000), AfterValidator(_http_url)]


class Http(ConfigModel):
    """A URL that answers; redirects are not followed."""

    url: Url
    method: Annotated[str, Field(pattern=r"^[A-Z]{1,20}$")] = "GET"
    status: tuple[Annotated[int, Field(ge=100, le=599)], ...] = ()
    """Empty: 200 to 399."""
    contains: Annotated[str, Field(max_length=1000)] = ""
    """A text within the first 64 kB."""


class Endpoint(ConfigModel):
    """A host and a port."""

    host: Host
    port: Port | None = None
    """None: the usual one of PostgreSQL (5432) or Redis (6379)."""


class Kafka(ConfigModel):
    """A cluster that gives its metadata; of `topic`, that every partition has a leader."""

    bootstrap_servers: Annotated[str, Field(min_length=1, max_length=2000)]
    topic: Annotated[str, Field(max_length=249)] = ""


class ClickHouse(ConfigModel):
    """A server that answers `/ping`."""

    url: Url


class Command(ConfigModel):
    """A monitoring plugin: exit code 0 is healthy, 1 degraded, any other unhealthy. No shell is involved."""

    arguments: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]


class Heartbeat(ConfigModel):
    """A sign of life that the service sends by itself: silence is a failure."""

    metric: Annotated[str, Field(min_length=1, max_length=300)] = "health.heartbeat"
    """Any metric: a sample of it is a beat."""
    where: Where = Field(default_factory=dict)
    """`service` is the check's, unless it is among these."""
    within_s: Duration = Field(default=HEARTBEAT_WITHIN_S, alias="within")
    """The longest silence that is healthy."""


KINDS: Final = ("http", "tcp", "kafka", "clickhouse", "postgresql", "redis", "command", "heartbeat")


class HealthCheck(ConfigModel):
    """One check of a service, of exactly one kind."""

    name: Name
    service: ServiceName
    http: Http | None = None
    tcp: Endpoint | None = None
    kafka: Kafka | None = None
    clickhouse: ClickHouse | None = None
    postgresql: Endpoint | None = None
    redis: Endpoint | None = None
    command: Command | None = None
    heartbeat: Heartbeat | None = None
    interval_s: Duration = Field(default=30, alias="interval")
    timeout_s: Duration = Field(default=5, alias="timeout")
    degraded_above_s: Duration | None = Field(default=None, alias="degraded_above")
    """A healthy answer that takes longer is degraded."""
    failure_threshold: Annotated[int, Field(ge=1, le=1000)] = 3
    """Worse results in a row before the status becomes worse (Kubernetes' failureThreshold)."""
    success_threshold: Annotated[int, Field(ge=1, le=1000)] = 1
    """Better results in a row before it becomes better."""

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def stale_s(self) -> float:
        """After so long without results nothing is known: three that should have been, and half a minute on the way."""
        return 3 * self.interval_s + 30

    @model_validator(mode="after")
    def _possible(self) -> Self:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = f"; it has {', '.join(given)}" if given else ""
            raise ValueError(f"must have exactly one of {', '.join(KINDS)}{found}")
        if self.tcp is not None and self.tcp.port is None:
            raise wrong("'port' is missing", "tcp")
        if self.interval_s < STEP_S:
            raise wrong(f"is at least {STEP_S}s: a result is of a window of {STEP_S}s", "interval")
        if not 0 < self.timeout_s <= self.interval_s:
            raise wrong(f"is not within the interval of {duration_text(self.interval_s)}", "timeout")
        if self.degraded_above_s is not None and self.degraded_above_s >= self.timeout_s:
            message = f"cannot be reached: after {duration_text(self.timeout_s)} the check has failed (`timeout`)"
            raise wrong(message, "degraded_above")
        if self.heartbeat is not None:
            extra = {"interval_s", "timeout_s", "degraded_above_s", "failure_threshold", "success_threshold"}
            for name in sorted(extra & self.model_fields_set):
                raise wrong("has no meaning for a heartbeat: it is late or it is not", name.removesuffix("_s"))
            if self.heartbeat.within_s < STEP_S:
                raise wrong(f"is at least {STEP_S}s", "heartbeat", "within")
        return self

    def sentences(self) -> Sequence[str]:
        if self.heartbeat is not None:
            within = duration_text(self.heartbeat.within_s)
            return [f"{self.name}: {self.service} is unhealthy after {within} without {self.heartbeat.metric}"]
        slow = f", degraded above {duration_text(self.degraded_above_s)}" if self.degraded_above_s is not None else ""
        return [
            f"{self.name}: {self.kind} check of {self.service} every {duration_text(self.interval_s)}{slow}: "
            f"worse after {self.failure_threshold} worse results in a row, better after {self.success_threshold}"
        ]


class ServiceSpec(ConfigModel):
    """What a service needs to work, and how much its availability counts."""

    name: Name
    depends_on: tuple[ServiceName, ...] = ()
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of its availability in the mean over services."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.depends_on)) < len(self.depends_on):
            raise wrong("names a service twice", "depends_on")
        return self

    def sentences(self) -> Sequence[str]:
        return [f"{self.name} needs {', '.join(self.depends_on)}"] if self.depends_on else []


def cycle_of(depends_on: Mapping[str, Iterable[str]]) -> list[str] | None:
    """The first service that needs itself, by way of which others: `[a, b, a]`. None: there is no such."""
    done: set[str] = set()
    for start in depends_on:
        path: list[str] = []
        pending: list[Iterator[str]] = [iter((start,))]
        while pending:
            service = next(pending[-1], None)
            if service is None:
                pending.pop()
                if path:
                    done.add(path.pop())
            elif service in path:
                return [*path[path.index(service) :], service]
            elif service not in done:
                path.append(service)
                pending.append(iter(depends_on.get(service, ())))
    return None


def health_problems(items: Sequence[Item]) -> Iterator[Problem]:
    """Cycles, and objectives on checks that there are not."""
    services = {item.name: item for item in items if isinstance(item.model, ServiceSpec)}
    cycle = cycle_of({item.name: item.model.depends_on for item in items if isinstance(item.model, ServiceSpec)})
    if cycle:
        yield services[cycle[0]].problem(
            f"the services need each other in a circle: {' -> '.join(cycle)}", "depends_on"
        )
    checks = {item.name for item in items if isinstance(item.model, HealthCheck)}
    for item in items:
        health = getattr(getattr(item.model, "indicator", None), "health", None)
        if health is not None and health not in checks:
            yield item.problem(f"there is no health check {health!r} in these files", "indicator", "health")
