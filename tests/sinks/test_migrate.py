"""Migrations: idempotent, recorded, checked; and the tables they make are those that the code declares."""

from typing import Any

import pyarrow as pa
import pytest
from pydantic import ValidationError
from tailrace_flows.settings import ClickHouseSettings
from tailrace_schemas.rows import (
    ALERT_EVENTS,
    ANOMALIES,
    BASELINES,
    COUNTERS,
    EVENTS,
    HEALTH,
    INCIDENTS,
    SLO_STATUS,
    WINDOW_ROWS,
)
from tailrace_sinks import migrate as module
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import RETENTION_OF, MigrationError, migrate, pending

from tests.sinks.storage import START_S, Storage, distribution, row

FILES = [
    "0001_tables",
    "0002_functions",
    "0003_views",
    "0004_alerts",
    "0005_slo",
    "0006_health",
    "0007_anomalies",
    "0008_baselines",
    "0009_sketch_codecs",
    "0010_alert_ends",
    "0011_attributes_index",
]
TTLS = [
    "alert_event_rows: keep 395 days", "anomaly_rows: keep 45 days", "baseline_rows: keep 7 days",
    "event_rows: keep 395 days", "health_rows: keep 395 days", "incident_rows: keep 395 days", "rows_10s: keep 7 days",
    "rows_1d: keep 395 days", "rows_1h: keep 395 days", "rows_1m: keep 45 days", "slo_status_rows: keep 45 days",
]  # fmt: skip
TABLES = {
    "rows_10s": WINDOW_ROWS, "rows_1m": WINDOW_ROWS, "rows_1h": WINDOW_ROWS, "rows_1d": WINDOW_ROWS,
    "event_rows": EVENTS, "counter_rows": COUNTERS, "alert_event_rows": ALERT_EVENTS,
    "slo_status_rows": SLO_STATUS, "health_rows": HEALTH, "incident_rows": INCIDENTS, "anomaly_rows": ANOMALIES,
    "baseline_rows": BASELINES,
}  # fmt: skip
VIEW_COLUMNS = [
    "metric", "service", "attributes", "kind", "unit", "stream", "window_start", "window_end", "window_seconds",
    "count", "sum", "min", "max", "mean", "last", "increase", "rate", "resets", "p50", "p90", "p95", "p99", "p999",
    "bucket_index", "bucket_count", "scale", "version", "series_id",
]  # fmt: skip


def everything(storage: Storage) -> list[tuple[Any, ...]]:
    return storage.ask(
        "SELECT name, create_table_query FROM system.tables WHERE database = currentDatabase() ORDER BY 1"
    )


def test_applies_all_once(bare: Storage) -> None:
    assert pending(bare.client, bare.settings) == FILES
    assert migrate(bare.client, bare.settings) == FILES + TTLS
    assert pending(bare.client, bare.settings) == []
    made = everything(bare)
    assert migrate(bare.client, bare.settings) == []
    assert everything(bare) == made
    assert bare.ask(
        "SELECT number, name, length(sha256), applied_at > now() - 60 FROM schema_migrations ORDER BY 1"
    ) == [(number, name, 64, 1) for number, name in enumerate(FILES, 1)]


def test_goes_on_where_it_was_interrupted(bare: Storage) -> None:
    migrate(bare.client, bare.settings)
    whole = everything(bare)
    statements = [(migration, statement) for migration in module._known() for statement in migration.statements()]
    for stop in range(0, len(statements), 10):
        bare.client.command(f"DROP DATABASE {bare.settings.database}", use_database=False)
        bare.client.command(f"CREATE DATABASE {bare.settings.database}", use_database=False)
        for _, statement in statements[:stop]:
            bare.client.command(statement)
        assert migrate(bare.client, bare.settings) == FILES + TTLS
        assert everything(bare) == whole


@pytest.mark.parametrize(
    ("dropped", "first"),
    [
        ("TABLE rows_10s", 1), ("TABLE rows_1h", 1), ("TABLE counter_rows", 1), ("VIEW windows", 3),
        ("TABLE incident_rows", 6), ("VIEW alerts", 4),
    ],
)  # fmt: skip
def test_what_was_dropped_is_made_again(bare: Storage, dropped: str, first: int) -> None:
    """As the writer says where a table is gone: run `tailrace migrate`."""
    migrate(bare.client, bare.settings)
    made = everything(bare)
    bare.write("rows_1m", [row("gauge", last=1.0)])
    bare.client.command(f"DROP {dropped} SYNC")
    assert pending(bare.client, bare.settings) == FILES[first - 1 :]
    migrate(bare.client, bare.settings)
    assert (pending(bare.client, bare.settings), everything(bare)) == ([], made)
    assert bare.one("SELECT count() FROM windows_1m") == 1


def test_functions_that_the_server_lacks_are_made_again(storage: Storage) -> None:
    """As those of a database that was restored on another server."""
    storage.write("rows_10s", [distribution([1.0, 2.0])])
    storage.client.command("DROP FUNCTION tailrace_bucket_value")
    try:
        assert pending(storage.client, storage.settings) == FILES[1:]
    finally:
        migrate(storage.client, storage.settings)
    assert storage.one("SELECT p50 FROM windows") == pytest.approx(1.0, rel=0.0055)


def test_retention_follows_the_settings(storage: Storage) -> None:
    shorter = storage.settings.model_copy(update={"retention_10s_days": 3, "retention_1h_days": 400})
    changes = [
        "alert_event_rows: keep 400 days",
        "baseline_rows: keep 3 days",
        "event_rows: keep 400 days",
        "health_rows: keep 400 days",
        "incident_rows: keep 400 days",
        "rows_10s: keep 3 days",
        "rows_1d: keep 400 days",
        "rows_1h: keep 400 days",
    ]
    assert pending(storage.client, shorter) == changes
    assert migrate(storage.client, shorter) == changes
    assert migrate(storage.client, shorter) == []


def test_rows_age_from_when_they_were_stored(storage: Storage) -> None:
    """So that a replay of old data can be looked at."""
    storage.write("rows_10s", [row("gauge", START_S - 10 * 365 * 86_400, last=1.0), row("gauge", last=2.0)])
    assert storage.one("SELECT count() FROM windows") == 2
    columns = ", ".join(WINDOW_ROWS.names)
    next_day = columns.replace("window_start", "window_start + 86400")
    storage.client.command(
        f"INSERT INTO rows_10s ({columns}, stored_at) SELECT {next_day}, now() - INTERVAL 7 DAY - 1 FROM rows_10s"
    )
    storage.client.command("OPTIMIZE TABLE rows_10s FINAL")
    assert storage.one("SELECT groupArray(last) FROM (SELECT last FROM windows ORDER BY last)") == [1.0, 2.0]


def test_no_retention_ends_before_it_begins(storage: Storage) -> None:
    """Where a server's times end, the days that are added begin anew with 1970."""
    for name in set(RETENTION_OF.values()):
        for days in (10_001, 36_500, 10**12):
            with pytest.raises(ValidationError, match=name):
                ClickHouseSettings.model_validate({name: days})
        settings = ClickHouseSettings.model_validate({name: 10_000})
        assert storage.one(f"SELECT now() + INTERVAL {getattr(settings, name)} DAY > now() + INTERVAL 27 YEAR")


def test_an_applied_file_that_changed_is_an_error(storage: Storage) -> None:
    storage.client.insert(
        "schema_migrations", [[2, "0002_functions", "0" * 64]], column_names=["number", "name", "sha256"]
    )
    for look in (migrate, pending):
        with pytest.raises(MigrationError, match="0002_functions was applied to the database with other contents"):
            look(storage.client, storage.settings)


def test_a_database_of_a_newer_version_is_an_error(storage: Storage) -> None:
    storage.client.insert(
        "schema_migrations", [[900, "0900_future", "0" * 64]], column_names=["number", "name", "sha256"]
    )
    with pytest.raises(MigrationError, match="migration 900, which this Tailrace does not know"):
        migrate(storage.client, storage.settings)


def test_databases_on_one_server_do_not_mix(storage: Storage) -> None:
    other = ClickHouseSettings(url=storage.settings.url, database=storage.settings.database + "_other")
    with connect(other) as client:
        migrate(client, other)
        Storage(client, other).write("rows_10s", [row("gauge", last=1.0)])
        client.command(f"DROP DATABASE {other.database}", use_database=False)
    assert storage.one("SELECT count() FROM windows") == 0


def clickhouse_type(field: pa.Field) -> str:
    """The type that takes an Arrow field as it is."""
    plain = {
        pa.string(): "String",
        pa.uint64(): "UInt64",
        pa.uint32(): "UInt32",
        pa.int8(): "Int8",
        pa.float64(): "Float64",
        pa.bool_(): "Bool",
        pa.timestamp("s", "UTC"): "DateTime('UTC')",
        pa.timestamp("us", "UTC"): "DateTime64(6, 'UTC')",
        pa.list_(pa.string()): "Array(String)",
        pa.list_(pa.int32()): "Array(Int32)",
        pa.list_(pa.uint64()): "Array(UInt64)",
        pa.map_(pa.string(), pa.string()): "Map(String, String)",
    }[field.type]
    return f"Nullable({plain})" if field.nullable else plain


@pytest.mark.parametrize("table", TABLES)
def test_tables_have_the_declared_columns(functions: Storage, table: str) -> None:
    found = functions.ask(
        "SELECT name, replace(type, 'LowCardinality(String)', 'String') FROM system.columns "
        "WHERE database = currentDatabase() AND table = {table:String} AND name != 'stored_at' ORDER BY position",
        table=table,
    )
    assert found == [(field.name, clickhouse_type(field)) for field in TABLES[table]]


@pytest.mark.parametrize("view", ["windows", "windows_1m", "windows_1h", "windows_1d"])
def test_views_have_the_contract_s_columns(functions: Storage, view: str) -> None:
    assert list(functions.client.query(f"SELECT * FROM {view} LIMIT 0").column_names) == VIEW_COLUMNS


def test_the_rows_partition_is_a_function_of_their_key(functions: Storage) -> None:
    rows = functions.ask(
        "SELECT name, sorting_key, partition_key FROM system.tables "
        "WHERE database = currentDatabase() AND engine = 'ReplacingMergeTree' AND partition_key != ''"
    )
    assert len(rows) == 6
    for name, sorting, partition in rows:
        column = partition.split("(")[1].rstrip(")")
        assert column in sorting.split(", "), name
