"""What people may do: `tailrace sql` reads, and infra/clickhouse/users.sql makes users that can do no more."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clickhouse_connect.driver.exceptions import ClickHouseError
from tailrace_flows.settings import Settings
from tailrace_infra.sql import SqlError, query_rows

from tests.infra.command import embedded

USERS = Path(__file__).parents[2] / "infra" / "clickhouse" / "users.sql"


def statements() -> list[str]:
    text = re.sub(r"^--.*\n", "", USERS.read_text(), flags=re.M)
    return [one.strip() for one in text.split(";") if one.strip()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readonly")


@pytest.fixture(scope="module")
def client(data_dir: Path) -> Iterator[Any]:
    pytest.importorskip("chdb")
    with embedded(data_dir) as client:
        client.command("CREATE DATABASE tailrace", use_database=False)
        client.command("CREATE TABLE default.kept (x UInt8) ENGINE = MergeTree ORDER BY x")
        client.command("INSERT INTO default.kept VALUES (1)")
        yield client


@pytest.mark.parametrize("statement", statements(), ids=lambda one: " ".join(one.split()[:4]))
def test_clickhouse_parses_the_users(client: Any, statement: str) -> None:
    parsed = client.query("SELECT formatQuery({text:String})", parameters={"text": statement}).first_row[0]
    assert parsed.split()[:2] == statement.split()[:2]


def test_the_limits_for_people_hold(client: Any) -> None:
    (profile,) = [one for one in statements() if one.startswith("CREATE SETTINGS PROFILE")]
    found = dict(re.findall(r"(\w+) = (\d+)", profile))
    assert found["readonly"] == "2"
    # The engine's own limits, tightened so that the test takes no half a minute: as they may be, down to MAX.
    settings = {**found, "max_execution_time": "1", "max_memory_usage": "100000000"}

    def refused(query: str, why: str) -> None:
        with pytest.raises(ClickHouseError, match=why):
            client.query(query, settings=settings)

    assert client.query("SELECT count() FROM default.kept", settings=settings).first_row == (1,)
    refused("SELECT sum(sipHash64(number)) FROM numbers(1000000000000)", "TIMEOUT_EXCEEDED")
    refused("SELECT groupArray(number) FROM numbers(100000000)", "MEMORY_LIMIT_EXCEEDED")
    for setting in ("readonly = 0", "readonly = 1"):
        refused(f"SELECT 1 FROM default.kept SETTINGS {setting}", "READONLY")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO default.kept VALUES (2)",
        "INSERT INTO FUNCTION file('out.csv', 'CSV', 'x UInt8') SELECT 1",
        "INSERT INTO default.kept SELECT 2 SETTINGS readonly = 0",
        "CREATE TABLE default.other (x UInt8) ENGINE = Memory",
        "CREATE FUNCTION f AS x -> x",
        "DROP TABLE default.kept",
        "TRUNCATE TABLE default.kept",
        "ALTER TABLE default.kept DELETE WHERE 1",
        "OPTIMIZE TABLE default.kept",
        "SET readonly = 0",
        "SYSTEM STOP MERGES",
        "KILL QUERY WHERE 1",
        "SELECT 1 SETTINGS readonly = 0",
        "SELECT 1; DROP TABLE default.kept",
        "/* SELECT */ DROP TABLE default.kept",
        "WITH 1 AS y INSERT INTO default.kept SELECT y",
        "SELECT 1 INTO OUTFILE 'out.csv'",
    ],
)
def test_sql_changes_nothing_unless_asked(client: Any, data_dir: Path, statement: str) -> None:

    settings = Settings(clickhouse={"url": client.url})
    with pytest.raises(SqlError), query_rows(settings, data_dir, statement, explicit=False, write=False) as (_, rows):
        list(rows)
    assert client.query("SELECT groupArray(x) FROM default.kept").first_row == ([1],)
    assert client.query("SELECT count() FROM system.tables WHERE database = 'default'").first_row == (1,)
    assert not list(data_dir.rglob("out.csv"))
