"""One embedded ClickHouse for the tests of this folder; each test has a database of its own in it."""

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tailrace_flows.settings import ClickHouseSettings
from tailrace_infra.child import Child, start_child
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from tests.sinks.storage import Storage

numbers = itertools.count(1)


def start_clickhouse(directory: Path, port: int = 0) -> Child:
    if find_spec("chdb") is None:
        pytest.skip("the embedded ClickHouse needs chDB: pip install 'tailrace[embedded]'")
    arguments = ("--data-dir", str(directory), "--port", str(port))
    return start_child("tailrace_infra.clickhouse", *arguments, timeout_s=60.0)


@pytest.fixture(scope="session")
def clickhouse_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    child = start_clickhouse(tmp_path_factory.mktemp("clickhouse"))
    try:
        yield f"http://127.0.0.1:{child.ready['port']}"
    finally:
        child.stop()


@pytest.fixture
def bare(clickhouse_url: str) -> Iterator[Storage]:
    """A database that does not exist yet."""
    settings = ClickHouseSettings(url=clickhouse_url, database=f"test_{next(numbers)}")
    with connect(settings) as client:
        yield Storage(client, settings)
        client.command(f"DROP DATABASE IF EXISTS {settings.database}", use_database=False)


@pytest.fixture
def storage(bare: Storage) -> Storage:
    """An empty database with all tables."""
    migrate(bare.client, bare.settings)
    return bare


@pytest.fixture(scope="module")
def functions(clickhouse_url: str) -> Iterator[Storage]:
    """A database that the tests of a module share, to ask functions in it."""
    settings = ClickHouseSettings(url=clickhouse_url, database="test_functions")
    with connect(settings) as client:
        migrate(client, settings)
        yield Storage(client, settings)
