"""Brings a ClickHouse database up to date: numbered SQL files, each applied once and recorded with its checksum.

A file may be repeated from its start (a crash can leave it half done), so its statements are `IF NOT EXISTS` or
`OR REPLACE`. A file that was applied is never edited: the next number changes what it made. Retention is no migration:
it follows the settings whenever they change.
"""

import re
from collections.abc import Mapping, Set
from hashlib import sha256
from importlib.resources import files
from typing import Any, Final, NamedTuple, Protocol

from tailrace_sinks.clickhouse import execute

__all__ = ["MigrationError", "Retention", "migrate", "pending"]

RETENTION_OF: Final = {
    "rows_10s": "retention_10s_days",
    "rows_1m": "retention_1m_days",
    "rows_1h": "retention_1h_days",
    "rows_1d": "retention_1h_days",
    "event_rows": "retention_1h_days",
    "alert_event_rows": "retention_1h_days",
    "slo_status_rows": "retention_1m_days",
    "anomaly_rows": "retention_1m_days",
    "baseline_rows": "retention_10s_days",
    "health_rows": "retention_1h_days",
    "incident_rows": "retention_1h_days",
}
"""Which setting says how many days a table's rows are kept after they were stored."""

_RECORD = """
CREATE TABLE IF NOT EXISTS schema_migrations
(number UInt32, name String, sha256 FixedString(64), applied_at DateTime('UTC') DEFAULT now())
ENGINE = ReplacingMergeTree ORDER BY number
"""


class Retention(Protocol):
    """How long rows are kept: `Settings.clickhouse`."""

    @property
    def retention_10s_days(self) -> int: ...
    @property
    def retention_1m_days(self) -> int: ...
    @property
    def retention_1h_days(self) -> int: ...


class MigrationError(Exception):
    """The database was not made by these migrations; says which one differs, and what to do."""


class _Migration(NamedTuple):
    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        return sha256(self.text.encode()).hexdigest()

    def statements(self) -> list[str]:
        """A statement ends with a semicolon at the end of its line."""
        return [statement for statement in self.text.split(";\n") if statement.strip()]

    def makes(self) -> set[str]:
        """The names of its tables, views and functions."""
        return set(re.findall(r"^CREATE (?:TABLE IF NOT EXISTS|OR REPLACE (?:VIEW|FUNCTION)) (\w+)", self.text, re.M))


def _known() -> list[_Migration]:
    found = []
    for entry in files(__package__).joinpath("migrations").iterdir():
        name = entry.name.removesuffix(".sql")
        if name != entry.name:
            found.append(_Migration(int(name.split("_")[0]), name, entry.read_text()))
    return sorted(found)


def migrate(client: Any, retention: Retention) -> list[str]:
    """Applies what is missing to the client's database, which it creates; returns the names of what it did.

    A table, view or function that is gone is made again by its file and those after it; a table is empty then.

    Idempotent; two at once do no harm. `client` is a clickhouse-connect client with the right to create databases,
    tables, views and functions. Functions belong to the whole server: databases on one server share the newest.

    Raises:
        MigrationError: an applied file has changed, or the database was migrated by a newer Tailrace.
        clickhouse_connect.driver.exceptions.Error: ClickHouse's own.
    """
    execute(client, f"CREATE DATABASE IF NOT EXISTS `{client.database}`", use_database=False)
    execute(client, _RECORD)
    done = []
    for migration in _missing(_applied(client), _there(client)):
        for statement in migration.statements():
            execute(client, statement)
        client.insert(
            "schema_migrations",
            [[migration.number, migration.name, migration.checksum]],
            column_names=["number", "name", "sha256"],
        )
        done.append(migration.name)
    for table, days in _ttl_changes(client, retention).items():
        execute(client, f"ALTER TABLE {table} MODIFY TTL stored_at + INTERVAL {days} DAY")
        done.append(_ttl_name(table, days))
    return done


def pending(client: Any, retention: Retention) -> list[str]:
    """What `migrate` would do, in its words; changes nothing.

    Raises:
        As `migrate`.
    """
    databases = client.query(
        "SELECT count() FROM system.databases WHERE name = {name:String}",
        parameters={"name": client.database},
        settings={"database": "default"},
    )
    recorded = databases.result_rows[0][0] and client.command("EXISTS TABLE schema_migrations")
    names = [migration.name for migration in _missing(_applied(client) if recorded else {}, _there(client))]
    if not recorded:
        return names
    return names + [_ttl_name(*change) for change in _ttl_changes(client, retention).items()]


def _applied(client: Any) -> dict[int, str]:
    rows = client.query("SELECT number, sha256 FROM schema_migrations FINAL").result_rows
    return {number: checksum.decode() if isinstance(checksum, bytes) else checksum for number, checksum in rows}


def _there(client: Any) -> set[str]:
    """The names of tables and views in the database, and of functions on the server."""
    rows = client.query(
        "SELECT name FROM system.tables WHERE database = {name:String} "
        "UNION ALL SELECT name FROM system.functions WHERE origin = 'SQLUserDefined'",
        parameters={"name": client.database},
        settings={"database": "default"},
    ).result_rows
    return {name for (name,) in rows}


def _missing(applied: Mapping[int, str], there: Set[str]) -> list[_Migration]:
    known = _known()
    newer = applied.keys() - {migration.number for migration in known}
    if newer:
        raise MigrationError(
            f"the database has migration {max(newer)}, which this Tailrace does not know: it needs a newer one"
        )
    for migration in known:
        if applied.get(migration.number, migration.checksum) != migration.checksum:
            raise MigrationError(
                f"migration {migration.name} was applied to the database with other contents: restore the file, "
                "and change what it made by a new number"
            )
    # What was dropped since, or is not on the server that the database has moved to, is made again, and so is all
    # that later files have changed of it.
    gone = [migration.number for migration in known if migration.number in applied and migration.makes() - there]
    first_gone = min(gone, default=len(known) + 1)
    return [migration for migration in known if migration.number not in applied or migration.number >= first_gone]


def _ttl_changes(client: Any, retention: Retention) -> dict[str, int]:
    """Tables whose rows are to be kept for another number of days, and that number."""
    rows = client.query(
        "SELECT name, engine_full FROM system.tables WHERE database = {name:String}",
        parameters={"name": client.database},
    ).result_rows
    changes = {}
    for table, engine in rows:
        if table in RETENTION_OF:
            days: int = getattr(retention, RETENTION_OF[table])
            if not re.search(rf"\bTTL stored_at \+ toIntervalDay\({days}\)(?= SETTINGS|$)", engine):
                changes[table] = days
    return dict(sorted(changes.items()))


def _ttl_name(table: str, days: int) -> str:
    return f"{table}: keep {days} days"
