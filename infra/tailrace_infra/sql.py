"""`tailrace sql`: a query against whatever ClickHouse is meant."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
from clickhouse_connect.driver.exceptions import ClickHouseError
from pydantic import SecretStr
from tailrace_flows.settings import Settings
from tailrace_schemas.clock import monotonic_s
from tailrace_sinks.clickhouse import connect
from urllib3.exceptions import HTTPError

from tailrace_infra.child import Child, ChildError
from tailrace_infra.errors import clickhouse_reason, reason
from tailrace_infra.stack import names_servers, running_endpoints, start_clickhouse

__all__ = ["SqlError", "query_rows", "server"]

READONLY = 164
"""ClickHouse's code for a statement that would change something."""
BUSY_S = 10.0
BUSY_POLL_S = 0.2


class SqlError(Exception):
    """The query failed, or there is no ClickHouse to ask; for people."""


@contextmanager
def query_rows(
    settings: Settings, data_dir: Path, text: str, *, explicit: bool, write: bool
) -> Iterator[tuple[Sequence[str], Iterator[Sequence[Any]]]]:
    """Columns and rows of a query, read as they are asked for, so that a result may be of any size.

    Without `write`, ClickHouse refuses what would change something. Asked are, in this order: the server that the
    settings name, unless the directory was given; the stack that runs on the directory; the directory itself, for as
    long as the query takes (about 2 s more); the default server.

    Raises:
        SqlError: with ClickHouse's own text.
    """
    if not text.strip():
        raise SqlError("the query is empty")
    with server(settings, data_dir, explicit) as chosen:
        try:
            with connect(chosen.clickhouse) as client:
                context = client.create_query_context(text, settings={} if write else {"readonly": 2})
                if context.is_command or context.is_insert:
                    client.command(text, settings=context.settings)
                    yield (), iter(())
                    return
                # Times with their offsets; a FixedString is text, not bytes.
                with client.query_row_block_stream(
                    text, settings=context.settings, tz_mode="aware", query_formats={"FixedString": "string"}
                ) as blocks:
                    unread = True

                    def rows() -> Iterator[Sequence[Any]]:
                        nonlocal unread
                        for block in blocks:
                            yield from block
                        unread = False

                    try:
                        yield blocks.source.column_names, rows()
                    finally:
                        if unread:
                            _hang_up(chosen.clickhouse.url)
        except (ClickHouseError, HTTPError) as error:
            raise SqlError(_explain(error, chosen)) from error
        except ValueError as error:
            raise SqlError(str(error)) from error


def _hang_up(url: str) -> None:
    """Cuts this process' connections to the server's port.

    The driver reads an answer to its end before it lets go of it, and the server makes it: of one that nobody wants any
    more, as of `tailrace sql ... | head`, that takes minutes, or never ends.
    """
    port = urlsplit(url).port or (8443 if url.startswith("https:") else 8123)
    with suppress(psutil.Error):
        for one in psutil.Process().net_connections("tcp"):
            if one.fd >= 0 and one.raddr and one.raddr[1] == port:
                with suppress(OSError), socket.socket(fileno=os.dup(one.fd)) as connection:
                    connection.shutdown(socket.SHUT_RDWR)


def _explain(error: Exception, settings: Settings) -> str:
    text = reason(error)
    if getattr(error, "code", None) == READONLY:
        return f"{text}\nQueries only read unless --write is given."
    if "failed at position" in text and "(FORMAT)" in text:
        return f"{text}\nLeave out FORMAT: --format chooses how rows are printed."
    return text if "DB::Exception" in text else clickhouse_reason(settings.clickhouse, error)


@contextmanager
def server(settings: Settings, data_dir: Path, explicit: bool) -> Iterator[Settings]:
    """The settings of the ClickHouse that is meant, see `query_rows`, which may run only for as long as this.

    Raises:
        SqlError: there is none.
    """
    stored = data_dir / "clickhouse"
    if not explicit and names_servers(settings):
        yield settings
        return
    found = _running_or_started(settings, data_dir) if stored.exists() else None
    if found is None:
        if explicit:
            raise SqlError(
                f"{data_dir} holds no data: `tailrace up --data-dir {data_dir}` or `tailrace replay` makes some"
            )
        yield settings
        return
    chosen, child = found
    try:
        yield chosen
    finally:
        if child is not None:
            child.stop()


def _running_or_started(settings: Settings, data_dir: Path) -> tuple[Settings, Child | None]:
    """The stack that runs on the directory, or ClickHouse alone, started for this query.

    Another query may have the directory, or a stack that just starts or stops: it is waited for.
    """
    until_s = monotonic_s() + BUSY_S
    while True:
        running = running_endpoints(data_dir)
        if running is not None:
            return running.apply(settings), None
        try:
            child = start_clickhouse(data_dir, 0)
        except (ChildError, OSError) as error:
            if "is in use by" not in str(error) or monotonic_s() > until_s:
                raise SqlError(reason(error)) from error
            threading.Event().wait(BUSY_POLL_S)
        else:
            url = f"http://127.0.0.1:{child.ready['port']}"
            here = {"url": url, "user": "default", "password": SecretStr("")}  # it has no users
            return settings.model_copy(update={"clickhouse": settings.clickhouse.model_copy(update=here)}), child
