"""`tailrace apply` and `tailrace config`: files to the config topic, and what is in force."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer
from confluent_kafka import KafkaException
from tailrace_flows.config_topic import publish, read_changes, read_config
from tailrace_flows.private_files import write_private
from tailrace_flows.settings import KafkaSettings
from tailrace_schemas.config import Config, ConfigError, ConfigModel, Record, load, model_of, record_of
from tailrace_sinks.kafka import KafkaWriter

from tailrace_infra.errors import kafka_reason, reason
from tailrace_infra.output import Format, write_rows

__all__ = ["CONFIG_FILE", "Change", "changes_of", "default_config", "publish_config", "register", "stored_config"]

DEFAULTS: Final = files("tailrace_infra") / "defaults"
CONFIG_FILE: Final = "config.json"
"""In the directory of an embedded stack: what its broker, which keeps nothing, is told at its next start."""

config_app = typer.Typer(help="What is in force: rules, SLOs, routes and the rest.", no_args_is_help=True)

Files = Annotated[list[Path], typer.Argument(exists=True, dir_okay=False, help="YAML files, as one configuration.")]
DataDir = Annotated[
    Path | None, typer.Option("--data-dir", help="Directory of an embedded stack.", file_okay=False, show_default=False)
]
FormatOption = Annotated[Format, typer.Option("--format", "-f", help="How rows are printed.")]
Prune = Annotated[bool, typer.Option("--prune", help="Remove what the files do not have, Tailrace's defaults too.")]


class Change(NamedTuple):
    """One thing, and what applying the files does to it."""

    state: str
    """added, changed, unchanged, removed; or kept, which the files do not have."""
    record: Record


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("apply")(apply)
    app.add_typer(config_app, name="config")


def apply(
    files: Files,
    prune: Prune = False,
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Validate files and put them in force: running flows take the changes within two seconds.

    What is already in force and not in the files stays, unless --prune is given. --prune removes Tailrace's defaults
    too, and names them first; `tailrace config diff --prune` does only that. To keep them, name their files too.

    Examples:

        tailrace apply rules.yaml slos.yaml

        tailrace apply --prune /etc/tailrace/*.yaml
    """
    from tailrace_infra.cli import DATA_DIR, fail, reach_kafka, resolved_settings

    settings = resolved_settings(data_dir)
    config = load_files(files)
    reach_kafka(settings.kafka)
    try:
        changes = changes_of(config, read_config(settings.kafka.client(), settings.kafka.topics.config), prune=prune)
        _tell_of_defaults(changes)
        publish_config(settings.kafka, (one.record for one in changes if one.state in ("added", "changed", "removed")))
        remember(data_dir or DATA_DIR, settings.kafka)
    except (KafkaException, OSError) as error:
        fail(kafka_reason(settings.kafka, error))
    _write(changes, format)


@config_app.command("list")
def list_config(data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Show what is in force, and what it means: a row for each sentence.

    Examples:

        tailrace config list

        tailrace config list --format json
    """
    rows = []
    for key, model in sorted(_in_force(data_dir).items()):
        kind, _, name = key.partition("/")
        rows += [[kind, name, sentence] for sentence in model.sentences() or [""]]
    write_rows(["kind", "name", "meaning"], rows, format)


@config_app.command("diff")
def diff(files: Files, prune: Prune = False, data_dir: DataDir = None, format: FormatOption = Format.TABLE) -> None:
    """Show what `tailrace apply` would change. Exit code 1 if that is anything.

    Examples:

        tailrace config diff rules.yaml
    """
    config = load_files(files)
    changes = changes_of(config, _in_force(data_dir), prune=prune)
    _tell_of_defaults(changes)
    _write(changes, format)
    if any(one.state in ("added", "changed", "removed") for one in changes):
        raise typer.Exit(1)


@config_app.command("history")
def history(
    name: Annotated[str, typer.Argument(help="Only of this thing: a kind, or kind/name.")] = "",
    data_dir: DataDir = None,
    format: FormatOption = Format.TABLE,
) -> None:
    """Show the changes that the config topic still holds: Kafka keeps the last of each thing, and others for a while.

    Examples:

        tailrace config history

        tailrace config history rule_group/host
    """
    from tailrace_infra.cli import fail, reach_kafka, resolved_settings

    kafka = reach_kafka(resolved_settings(data_dir).kafka)
    rows = []
    try:
        for time_ms, change in sorted(read_changes(kafka.client(), kafka.topics.config), key=lambda one: one[0]):
            if name in ("", change.kind, change.key):
                at = datetime.fromtimestamp(time_ms / 1000, UTC)
                rows.append([at, change.key, "removed" if change.model is None else "set", _json(change.model)])
    except KafkaException as error:
        fail(kafka_reason(kafka, error))
    write_rows(["time", "key", "change", "value"], rows, format)


def load_files(files: Iterable[Path]) -> Config:
    """The files' configuration; ends the command with all that is wrong in them, by file and line."""
    from tailrace_infra.cli import fail

    try:
        return load(files)
    except ConfigError as error:
        fail("\n".join(["the configuration is wrong:", *(f"  {problem}" for problem in error.problems)]))
    except OSError as error:
        fail(reason(error))


def changes_of(config: Config, in_force: dict[str, ConfigModel], *, prune: bool) -> list[Change]:
    """What applying the configuration changes, by key."""
    wanted = {record.key: (record, item.model) for item in config.items for record in [record_of(item)]}
    found = []
    for key in sorted({*wanted, *in_force}):
        if key not in wanted:
            found.append(Change("removed" if prune else "kept", Record(key, None)))
            continue
        record, model = wanted[key]
        state = "added" if key not in in_force else "unchanged" if in_force[key] == model else "changed"
        found.append(Change(state, record))
    return found


def publish_config(kafka: KafkaSettings, records: Iterable[Record]) -> None:
    """Writes records to the config topic. Raises KafkaException."""
    publish(KafkaWriter(kafka.client()), kafka.topics.config, records)


def remember(data_dir: Path, kafka: KafkaSettings) -> None:
    """Keeps what is in force for the next start of the embedded stack that runs on the directory, if one does."""
    from tailrace_infra.stack import running_endpoints

    endpoints = running_endpoints(data_dir)
    if endpoints is None or endpoints.bootstrap_servers != kafka.bootstrap_servers:
        return
    values = {key: json.loads(_json(model)) for key, model in read_config(kafka.client(), kafka.topics.config).items()}
    write_private(data_dir / CONFIG_FILE, json.dumps(values, indent=1, ensure_ascii=False))


def stored_config(data_dir: Path) -> list[Record] | None:
    """What `remember` kept; None: nothing was ever applied.

    Raises:
        ValueError: the file was damaged; names it.
    """
    path = data_dir / CONFIG_FILE
    try:
        values = json.loads(path.read_text())
        for key, value in values.items():
            model_of(key, value)
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error} - remove it to start with the defaults") from None
    return [Record(key, value) for key, value in values.items()]


def _tell_of_defaults(changes: Iterable[Change]) -> None:
    """Says on stderr which of Tailrace's defaults are removed, and how to keep them."""
    shipped = {record.key for record in default_config()}
    gone = [one.record.key for one in changes if one.state == "removed" and one.record.key in shipped]
    if gone:
        typer.echo(
            f"--prune removes {len(gone)} of Tailrace's defaults: {', '.join(gone)}. "
            f"To keep them, name their files too: {DEFAULTS}/*.yaml",
            err=True,
        )


def default_config() -> list[Record]:
    """What Tailrace ships: rules, objectives and checks of hosts and HTTP services."""
    texts = [(one.name, one.read_text("utf-8")) for one in DEFAULTS.iterdir() if one.name.endswith(".yaml")]
    return [record_of(item) for item in load(sorted(texts)).items]


def _in_force(data_dir: Path | None) -> dict[str, ConfigModel]:
    from tailrace_infra.cli import fail, reach_kafka, resolved_settings

    kafka = reach_kafka(resolved_settings(data_dir).kafka)
    try:
        return read_config(kafka.client(), kafka.topics.config)
    except KafkaException as error:
        fail(kafka_reason(kafka, error))


def _json(model: ConfigModel | None) -> str:
    return "" if model is None else model.model_dump_json(by_alias=True, exclude_unset=True)


def _write(changes: Iterable[Change], format: Format) -> None:
    rows: list[list[Any]] = [[one.state, *one.record.key.split("/", 1)] for one in changes]
    write_rows(["state", "kind", "name"], rows, format)
