"""One embedded ClickHouse for the tests of this folder; each has a database of its own in it."""

from collections.abc import Iterator

import pytest

from tests.system.harness import clickhouse_process


@pytest.fixture(scope="session")
def clickhouse_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with clickhouse_process(tmp_path_factory.mktemp("clickhouse")) as url:
        yield url
