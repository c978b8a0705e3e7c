"""`tailrace health run`: the checks of the configuration, done from here."""

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from tailrace_flows.settings import KafkaSettings
from tailrace_producers import health
from tailrace_schemas.config.health import RUNNER, HealthCheck

from tailrace_infra.alerts_command import ask
from tailrace_infra.config_command import load_files
from tailrace_infra.errors import EXPECTED, reason
from tailrace_infra.output import Format, write_rows
from tailrace_infra.signals import StopSignal

__all__ = ["checks_of", "register"]

log = logging.getLogger(__name__)

_SHOW = """
SELECT service, check, status, since, reason, response_time_s, root_causes
FROM health
ORDER BY indexOf(['unhealthy', 'degraded', 'unknown', 'healthy'], status), service, check
"""

DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]

health_app = typer.Typer(help="How services fare.", no_args_is_help=True)

POSTGRESQL_PORT = 5432
REDIS_PORT = 6379


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(health_app, name="health")


@health_app.command("show")
def show(data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Show how services and their checks fare, the worst first, with the root causes.

    Examples:

        tailrace health show
    """
    write_rows(*ask(data_dir, _SHOW, {}), format)


@health_app.command("run")
def run(
    files: Annotated[
        list[Path], typer.Argument(exists=True, dir_okay=False, help="YAML files; what else is in them is passed over.")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Run each check once, print what it found, send nothing.")
    ] = False,
    service: Annotated[str, typer.Option(help="service.name of the results.")] = RUNNER,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to run; default: until stopped.")] = None,
    data_dir: DataDir = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="How rows are printed, with --once.")] = Format.TABLE,
) -> None:
    """Run the health checks of files at their intervals and push what they find to Kafka.

    Checks are taken from files and never from Kafka, since a check may be a command. With --once the exit code is 1 if
    any check finds its service unhealthy.

    Examples:

        tailrace health run health.yaml --once

        tailrace health run health.yaml

        TAILRACE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 tailrace health run /etc/tailrace/*.yaml
    """
    from tailrace_infra.cli import fail, load_settings, resolved_settings

    models = [item.model for item in load_files(files).of("health_check")]
    settings = load_settings() if once else resolved_settings(data_dir)
    checks = checks_of((one for one in models if isinstance(one, HealthCheck)), settings.kafka)
    if not checks:
        fail("the files have no health checks to run (heartbeats are sent by the services themselves)")
    if once:
        _run_once(checks, format)
        return
    try:
        _run(checks, settings.kafka, service, duration)
    except (ValueError, *EXPECTED) as error:
        fail(reason(error))


def checks_of(models: Iterable[HealthCheck], kafka: KafkaSettings) -> list[health.Check]:
    """The checks that can be run: all but heartbeats. The Kafka of the settings is asked with their credentials."""
    return [
        health.Check(
            name=one.name,
            service=one.service,
            kind=one.kind,
            probe=_probe(one, kafka),
            interval_s=one.interval_s,
            timeout_s=one.timeout_s,
            degraded_above_s=one.degraded_above_s,
        )
        for one in models
        if one.heartbeat is None
    ]


def _probe(check: HealthCheck, kafka: KafkaSettings) -> health.Probe:
    if (http := check.http) is not None:
        return health.http(http.url, method=http.method, status=http.status, contains=http.contains)
    if (tcp := check.tcp) is not None:
        assert tcp.port is not None
        return health.tcp(tcp.host, tcp.port)
    if (cluster := check.kafka) is not None:
        own = cluster.bootstrap_servers == kafka.bootstrap_servers
        return health.kafka(cluster.bootstrap_servers, topic=cluster.topic, properties=kafka.client() if own else {})
    if check.clickhouse is not None:
        return health.clickhouse(check.clickhouse.url)
    if (database := check.postgresql) is not None:
        return health.postgresql(database.host, database.port or POSTGRESQL_PORT)
    if (cache := check.redis) is not None:
        return health.redis(cache.host, cache.port or REDIS_PORT)
    assert check.command is not None
    return health.command(check.command.arguments)


def _run_once(checks: list[health.Check], format: Format) -> None:
    """All at the same time, each reported at the latest a second after its timeout."""
    found: dict[str, health.Result] = {}
    done = threading.Event()

    def take(result: health.Result) -> None:
        found.setdefault(result.check.name, result)
        if len(found) == len(checks):
            done.set()

    health.Runner(checks, take).run(done)
    columns = ["check", "service", "kind", "status", "seconds", "reason", "detail"]
    results = [found[one.name] for one in checks]
    rows = [
        [one.check.name, one.check.service, one.check.kind, one.status, one.duration_s, one.reason, one.detail]
        for one in results
    ]
    write_rows(columns, rows, format)
    if any(one.status is health.Status.UNHEALTHY for one in results):
        raise typer.Exit(1)


def _run(checks: list[health.Check], kafka: KafkaSettings, service: str, duration_s: float | None) -> None:
    properties = {name: value for name, value in kafka.client().items() if name != "bootstrap.servers"}
    with StopSignal() as stop:
        timer = threading.Timer(duration_s or 0.0, stop.set)
        timer.daemon = True
        if duration_s is not None:
            timer.start()
        try:
            log.info("running %d checks", len(checks))
            stats = health.run_health(
                checks,
                stop,
                bootstrap_servers=kafka.bootstrap_servers,
                properties=properties,
                topics=kafka.topics,
                service=service,
            )
        finally:
            timer.cancel()
    log.info("health: %s", stats)
