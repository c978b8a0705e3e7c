"""`tailrace check` and `tailrace status`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from clickhouse_connect.driver.exceptions import ClickHouseError
from confluent_kafka import KafkaException
from tailrace_flows.settings import Settings
from tailrace_schemas.config import Config
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import pending
from urllib3.exceptions import HTTPError

from tailrace_infra.errors import clickhouse_reason, kafka_metadata, kafka_reason, reason
from tailrace_infra.overview import LagReader, read_overview

__all__ = ["Check", "check_kafka", "meanings", "run_checks", "status_rows"]


LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


def run_checks(settings: Settings) -> list[Check]:
    """Looks at everything a flow needs; nothing is changed."""
    kafka, clickhouse = check_kafka(settings), _check("clickhouse", lambda: _clickhouse(settings))
    return [
        _check("settings", lambda: _settings(settings)),
        kafka,
        _check("topics", lambda: _topics(settings)) if kafka.ok else Check("topics", False, "not known without Kafka"),
        clickhouse,
        _check("tables", lambda: _tables(settings))
        if clickhouse.ok
        else Check("tables", False, "not known without ClickHouse"),
    ]


def meanings(config: Config) -> list[list[str]]:
    """A row for each sentence that the configuration says: file and line, kind, name, sentence."""
    return [
        [f"{item.document.file}:{item.document.line(item.key)}", item.kind, item.name, sentence]
        for item in config.items
        for sentence in item.model.sentences() or [""]
    ]


def check_kafka(settings: Settings) -> Check:
    """Whether Kafka answers, within 5 s."""
    return _check("kafka", lambda: _kafka(settings))


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Exception as error:  # noqa: BLE001 - whatever is wrong is what the user asked for
        return Check(name, False, reason(error).splitlines()[0])


def _settings(settings: Settings) -> str:
    windows = settings.windows
    return (
        f"disorder {windows.disorder_s:g} s, lateness {windows.lateness_s:g} s, scale {windows.scale}, "
        f"recovery in {settings.recovery.directory}{_in_the_clear(settings)}"
    )


def _in_the_clear(settings: Settings) -> str:
    """Which passwords would go over a network as they are; empty where none does."""
    kafka, clickhouse = settings.kafka, settings.clickhouse
    client = kafka.client()
    hosts = [one.strip().rpartition(":")[0].strip("[]") for one in kafka.bootstrap_servers.split(",")]
    exposed = []
    if "sasl.password" in client and "SSL" not in str(client["security.protocol"]).upper():
        exposed += [] if LOOPBACK.issuperset(hosts) else ["kafka.password (kafka.security_protocol = SASL_SSL)"]
    url = urlsplit(clickhouse.url)
    if url.scheme == "http" and clickhouse.password.get_secret_value() and url.hostname not in LOOPBACK:
        exposed.append("clickhouse.password (clickhouse.url = https://...)")
    return f"; NOT ENCRYPTED on the network: {', '.join(exposed)}" if exposed else ""


def _kafka(settings: Settings) -> str:
    try:
        found = kafka_metadata(settings.kafka)
    except KafkaException as error:
        raise ValueError(kafka_reason(settings.kafka, error, asked=True)) from error
    return f"{settings.kafka.bootstrap_servers}: cluster {found.cluster_id}, {len(found.brokers)} broker(s)"


def _topics(settings: Settings) -> str:
    found = kafka_metadata(settings.kafka).topics
    missing = [name for name in settings.kafka.topics.all() if name not in found]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)} - `tailrace topics` creates them")
    return f"{settings.kafka.topics.samples} has {len(found[settings.kafka.topics.samples].partitions)} partitions"


def _clickhouse(settings: Settings) -> str:
    try:
        with connect(settings.clickhouse) as client:
            return f"{settings.clickhouse.url}: version {client.server_version}"
    except (ClickHouseError, HTTPError) as error:
        raise ValueError(clickhouse_reason(settings.clickhouse, error)) from error


def _tables(settings: Settings) -> str:
    with connect(settings.clickhouse) as client:
        missing = pending(client, settings.clickhouse)
    if missing:
        raise ValueError(f"not applied: {', '.join(missing)} - `tailrace migrate` applies them")
    return f"database {settings.clickhouse.database} is up to date"


def status_rows(settings: Settings) -> list[tuple[str, Any]]:
    """(figure, value) of everything that is counted.

    Raises:
        clickhouse_connect's and urllib3's errors: ClickHouse does not answer.
    """
    lag = LagReader(settings.kafka)
    try:
        with connect(settings.clickhouse) as client:
            found = read_overview(client, lag)
    finally:
        lag.close()
    rows: list[tuple[str, Any]] = [
        ("lag_records", None if found.lag is None else found.lag.records),
        ("newest_window_end", found.newest_window_end),
        ("rows_last_hour", found.rows_last_hour),
    ]
    return rows + sorted(found.counters.items())
