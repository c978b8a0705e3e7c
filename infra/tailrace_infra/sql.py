"""`tailrace sql`: a query against whatever ClickHouse is meant."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clickhouse_connect.driver.exceptions import ClickHouseError
from tailrace_flows.settings import Settings
from tailrace_sinks.clickhouse import connect

from tailrace_infra.child import ChildError, start_child
from tailrace_infra.stack import running_endpoints

__all__ = ["SqlError", "run_query"]


class SqlError(Exception):
    """The query failed, or there is no ClickHouse to ask; for people."""


def run_query(
    settings: Settings, data_dir: Path, text: str, *, explicit: bool, write: bool
) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
    """Columns and rows of a query. Without `write`, ClickHouse refuses what would change something.

    Asked are, in this order: the stack that runs on the directory; the server of the settings, unless the directory
    was given; the directory itself, for as long as the query takes (about 2 s more).

    Raises:
        SqlError: with ClickHouse's own text.
    """
    with _server(settings, data_dir, explicit) as chosen:
        try:
            with connect(chosen.clickhouse) as client:
                result = client.query(text, settings={} if write else {"readonly": 2})
                return result.column_names, result.result_rows
        except ClickHouseError as error:
            raise SqlError(str(error)) from error


@contextmanager
def _server(settings: Settings, data_dir: Path, explicit: bool) -> Iterator[Settings]:
    running = running_endpoints(data_dir)
    if running is not None:
        yield running.apply(settings)
        return
    stored = data_dir / "clickhouse"
    if not explicit and ("clickhouse" in settings.model_fields_set or not stored.exists()):
        yield settings
        return
    if not stored.exists():
        raise SqlError(f"{data_dir} holds no data: `tailrace up --data-dir {data_dir}` or `tailrace replay` makes some")
    try:
        child = start_child("tailrace_infra.clickhouse", "--data-dir", str(stored), "--port", "0", timeout_s=60.0)
    except ChildError as error:
        raise SqlError(str(error)) from error
    try:
        url = f"http://127.0.0.1:{child.ready['port']}"
        yield settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update={"url": url})})
    finally:
        child.stop()
