"""The `tailrace` command. Data goes to stdout, everything else to stderr; exit codes: 0 ok, 1 failure, 2 usage."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from tailrace_flows.settings import KafkaSettings, Settings
from tailrace_flows.settings import load_settings as read_settings

from tailrace_infra.logs import configure_logging
from tailrace_infra.output import Format, write_rows
from tailrace_infra.stack import CLICKHOUSE_PORT, names_servers, running_endpoints
from tailrace_infra.visible import visible

__all__ = ["app", "run_app"]

app = typer.Typer(
    name="tailrace",
    help="Real-time performance monitoring: samples in Kafka, exact windows, quantiles in ClickHouse.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
kafka_app = typer.Typer(help="A real Apache Kafka on loopback, for development.", no_args_is_help=True)
app.add_typer(kafka_app, name="kafka")

stderr = Console(stderr=True)
Result = TypeVar("Result")

DATA_DIR = Path("tailrace-data")
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]


def _show_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        number = version("tailrace")
    except PackageNotFoundError:  # run from its sources
        number = "(not installed)"
    typer.echo(f"tailrace {number}")
    raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def complain(message: str) -> None:
    """Prints a message on stderr; what a terminal would obey in it is shown."""
    stderr.print(Text("tailrace: ", "red").append(visible(message), "default"), soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Ends the command with exit code 1 and one clear message."""
    complain(message)
    raise typer.Exit(1)


def load_settings() -> Settings:
    """Settings of `tailrace.toml` and the environment; a usage error names the key and what is allowed."""
    try:
        return read_settings()
    except ValueError as error:
        complain(str(error))
    raise typer.Exit(2)


def resolved_settings(data_dir: Path | None) -> Settings:
    """Settings that point at the servers meant.

    These are the stack that runs on the directory; without one given, the servers that the settings name; and where
    they name none, the stack on the default directory, if one runs.
    """
    settings = load_settings()
    if data_dir is None and names_servers(settings):
        return settings
    found = running_endpoints(data_dir or DATA_DIR)
    if found is not None:
        return found.apply(settings)
    if data_dir is not None:
        fail(f"no stack runs on {data_dir}: start one with `tailrace up --data-dir {data_dir}`")
    return settings


def reach_kafka(kafka: KafkaSettings) -> KafkaSettings:
    """The same settings, when Kafka has answered.

    Where it does not, the command ends within 5 s, and says which setting it may be: librdkafka's own calls wait up to
    half a minute each, in which Ctrl-C is not heard.
    """
    from confluent_kafka import KafkaException

    from tailrace_infra.errors import kafka_metadata, kafka_reason

    try:
        kafka_metadata(kafka, lambda: complain(f"waiting for Kafka at {kafka.bootstrap_servers} ..."))
    except KafkaException as error:
        fail(kafka_reason(kafka, error, asked=True))
    return kafka


@app.command()
def up(
    data_dir: Annotated[Path, typer.Option(help="Where everything is stored.", file_okay=False)] = DATA_DIR,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to run; default: until Ctrl-C.")] = None,
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between collections of the host agent; default: 5.")
    ] = None,
    clickhouse_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of ClickHouse's HTTP interface; 0: any free one.")
    ] = CLICKHOUSE_PORT,
) -> None:
    """Run everything on this machine: broker, ClickHouse, flow, host agent, live view.

    Nothing but this package is needed. Ctrl-C stops it; what was read is stored.

    Examples:

        tailrace up

        tailrace up --duration 60 --data-dir /tmp/demo
    """
    from tailrace_infra.up import run_up

    run_up(load_settings(), data_dir, duration, interval, clickhouse_port, fail)


@app.command()
def run(
    flow: Annotated[
        str, typer.Argument(help="windows, alerts, slo, health, anomaly; several in one process as alerts,slo; or all.")
    ],
    processes: Annotated[int, typer.Option(min=1, max=64, help="Bytewax processes on this host.")] = 1,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to run; default: until stopped.")] = None,
) -> None:
    """Run a dataflow against Kafka and ClickHouse, with recovery. SIGTERM and Ctrl-C drain it within 5 s.

    Examples:

        tailrace run windows

        tailrace run alerts,slo,health,anomaly

        TAILRACE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 tailrace run windows --processes 4
    """
    from tailrace_infra.errors import EXPECTED, reason
    from tailrace_infra.run import FlowError, names_of, run_flow

    try:
        names_of(flow)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="FLOW") from None
    try:
        run_flow(flow, load_settings(), processes, duration)
    except (FlowError, *EXPECTED) as error:
        fail(reason(error))


@app.command()
def agent(
    interval: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds between collections; default: agent.interval_s, 5.")
    ] = None,
    service: Annotated[
        str | None, typer.Option(help="service.name of the host's metrics; default: agent.service, host.")
    ] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds to run; default: until stopped.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Show what one collection gives; send nothing.")] = False,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Collect this host's metrics and push them to Kafka. What it collects is set in `[agent]` of tailrace.toml.

    SIGHUP reads the settings again; if they are wrong it says why and goes on with those it has.

    Examples:

        tailrace agent --interval 1

        tailrace agent --once

        TAILRACE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 tailrace agent
    """
    from tailrace_infra.agent import collect_once, replace_by_agent

    if once:
        rows = collect_once(load_settings().agent)
        write_rows(["metric", "attributes", "kind", "value", "unit"], rows, format)
        return
    replace_by_agent(resolved_settings(data_dir), interval, service, duration)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(help="The query; - reads it from standard input.")],
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
    write: Annotated[bool, typer.Option("--write", help="Allow statements that change something.")] = False,
) -> None:
    """Query ClickHouse: the server of the settings, or an embedded stack's, running or not.

    The views are windows, windows_1m, windows_1h, windows_1d, events and counters. JSON and CSV keep every digit.

    Examples:

        tailrace sql "SELECT metric, count, p99 FROM windows ORDER BY window_start DESC LIMIT 10"

        tailrace sql --data-dir /tmp/demo --format json "SELECT * FROM counters"

        tailrace sql --format csv - < query.sql
    """
    from tailrace_infra.sql import SqlError, query_rows

    text = sys.stdin.read() if query == "-" else query
    explicit = data_dir is not None
    try:
        with query_rows(load_settings(), data_dir or DATA_DIR, text, explicit=explicit, write=write) as (columns, rows):
            write_rows(columns, rows, format)
    except SqlError as error:
        fail(str(error))


@app.command()
def migrate(data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Create or update ClickHouse's tables, views and functions. Idempotent.

    Examples:

        TAILRACE_CLICKHOUSE__URL=http://clickhouse:8123 tailrace migrate
    """
    from tailrace_sinks.clickhouse import connect
    from tailrace_sinks.migrate import migrate as apply

    from tailrace_infra.errors import EXPECTED, clickhouse_reason

    settings = resolved_settings(data_dir)
    try:
        with connect(settings.clickhouse) as client:
            applied = apply(client, settings.clickhouse)
    except (ValueError, *EXPECTED) as error:
        fail(clickhouse_reason(settings.clickhouse, error))
    write_rows(["migration", "state"], [[name, "applied"] for name in applied] or [["all", "up to date"]], format)


@app.command()
def topics(data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Create Kafka's topics where they are missing; say how existing ones differ from what Tailrace wants.

    Examples:

        TAILRACE_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 TAILRACE_KAFKA__PARTITIONS=48 tailrace topics
    """
    from tailrace_infra.topics import TopicsError, ensure_topics

    kafka = reach_kafka(resolved_settings(data_dir).kafka)
    try:
        states = ensure_topics(kafka.client(), kafka.topics, kafka.partitions, kafka.replication_factor)
    except TopicsError as error:
        fail(str(error))
    rows = [[one.name, one.state, one.partitions, "; ".join(one.differences)] for one in states]
    write_rows(["topic", "state", "partitions", "differences"], rows, format)


@app.command()
def check(
    files: Annotated[
        list[Path] | None,
        typer.Argument(exists=True, dir_okay=False, help="YAML files to check, as one configuration, instead."),
    ] = None,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Check the settings, Kafka, its topics, ClickHouse and its tables; or files, and say what they mean.

    Files are alert rules, SLOs, routes and the rest of the configuration; nothing is asked of any server. Each error
    names file, line and key. Exit code 1 if anything is wrong.

    Examples:

        tailrace check

        tailrace check rules.yaml slos.yaml
    """
    from tailrace_infra.check import meanings, run_checks
    from tailrace_infra.config_command import load_files

    if files:
        write_rows(["place", "kind", "name", "meaning"], meanings(load_files(files)), format)
        return
    results = run_checks(resolved_settings(data_dir))
    write_rows(["check", "ok", "detail"], [[one.name, one.ok, one.detail] for one in results], format)
    if not all(one.ok for one in results):
        raise typer.Exit(1)


@app.command()
def status(data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Show what is counted, late, missing or rejected, and how far the flow is behind.

    Examples:

        tailrace status --format json
    """
    from tailrace_infra.check import status_rows
    from tailrace_infra.errors import EXPECTED, clickhouse_reason

    settings = resolved_settings(data_dir)
    try:
        rows = status_rows(settings)
    except (ValueError, *EXPECTED) as error:
        fail(clickhouse_reason(settings.clickhouse, error))
    write_rows(["figure", "value"], rows, format)


@kafka_app.command("start")
def kafka_start(
    data_dir: Annotated[Path, typer.Option(help="Where it stores its data.")] = Path("tailrace-data/kafka"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any free one.")] = 9092,
) -> None:
    """Start Kafka 4 (KRaft) on 127.0.0.1 from Maven Central's jars, or KAFKA_HOME. Needs Java 17.

    Examples:

        tailrace kafka start

        tailrace kafka start --port 0 --data-dir /tmp/kafka
    """
    from tailrace_infra.kafka import start

    running = _kafka(lambda: start(data_dir, port, progress=lambda text: stderr.print(text, highlight=False)))
    typer.echo(running.bootstrap_servers)


@kafka_app.command("stop")
def kafka_stop(
    data_dir: Annotated[Path, typer.Option(help="Where it stores its data.")] = Path("tailrace-data/kafka"),
) -> None:
    """Stop the Kafka that `tailrace kafka start` started.

    Examples:

        tailrace kafka stop
    """
    from tailrace_infra.kafka import stop

    if not _kafka(lambda: stop(data_dir)):
        fail(f"no Kafka runs on {data_dir}")


def _kafka(action: Callable[[], Result]) -> Result:
    from tailrace_infra.kafka import KafkaServerError

    try:
        return action()
    except (KafkaServerError, OSError) as error:
        fail(str(error))


PARTS: Final = {
    "replay_command": ("replay",),
    "config_command": ("apply", "config"),
    "alerts_command": ("alerts",),
    "slo_command": ("slo",),
    "health_command": ("health",),
    "incidents_command": ("incidents",),
    "anomalies_command": ("anomalies",),
    "notify_command": ("notify",),
    "io_command": ("exec", "io-report"),
    "detect_command": ("detect", "forecast"),
    "backtest_command": ("backtest",),
    "verify_command": ("verify",),
}
"""Modules of this package that add commands with `register`, in the order of --help, and how those are called."""


def commands_of(app: typer.Typer) -> set[str]:
    """The names of its commands and groups of commands."""
    commands = {one.name or getattr(one.callback, "__name__", "") for one in app.registered_commands}
    return commands | {str(group.name) for group in app.registered_groups}


def complete_app(command: str | None = None) -> typer.Typer:
    """The command with the parts that have modules of their own; to load them all takes half a second of CPU time.

    Args:
        command: the one that will be run, which needs its own part alone; any other text, or None, gives all.
    """
    needed = [module for module, commands in PARTS.items() if command in commands]
    if not needed and command not in commands_of(app):
        needed = list(PARTS)
    for module in needed:
        import_module(f"tailrace_infra.{module}").register(app)
    return app


def run_app() -> None:
    """The command, with logging set up."""
    configure_logging()
    command = complete_app(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        try:
            command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except OSError as error:
        # Commands tell what they meet elsewhere; a reader that has seen enough ends them quietly.
        complain(f"what is printed cannot be written: {error.strerror or error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter tries once more
        sys.exit(1)


if __name__ == "__main__":
    run_app()
