"""ClickHouse over HTTP: clients for everyone, and the writer that holds back a flow's commit."""

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import clickhouse_connect
import pyarrow as pa
from clickhouse_connect.driver.exceptions import DataError, NotSupportedError, OperationalError, ProgrammingError
from clickhouse_connect.driver.exceptions import Error as DriverError
from clickhouse_connect.driver.summary import QuerySummary
from urllib3.exceptions import HTTPError

__all__ = [
    "ClickHouseTarget",
    "ClickHouseWriter",
    "StoppedError",
    "TlsFiles",
    "WriteRejectedError",
    "WriterStats",
    "connect",
    "execute",
]

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5
READ_TIMEOUT_S: Final = 300
"""Of a query; the server sends progress meanwhile."""
WRITE_TIMEOUT_S: Final = 120
"""Of an insert, a few seconds on a busy server. Past it the insert is sent again."""

INSERT_ROWS: Final = 100_000
INSERT_BYTES: Final = 64 * 1024 * 1024
"""Of one insert, as Arrow: bounds what the server holds in memory, and what a retry costs."""

BACKOFF_S: Final = 0.1
BACKOFF_MAX_S: Final = 10.0
STOP_POLL_S: Final = 0.2

INSERT_SETTINGS: Final = {
    # Answered when the rows are in a part, not when they are queued.
    "async_insert": 0,
    # Rows of one insert hardly ever replace each other; to look for that costs as much as the rest of it.
    "optimize_on_insert": 0,
    # A replayed file may span years, and has a partition a day.
    "max_partitions_per_insert_block": 0,
}

UNKNOWN_TABLE: Final = 60
UNKNOWN_DATABASE: Final = 81
HOPELESS: Final = frozenset(
    {
        8, 10, 16, 20,  # columns missing, unknown, or of another number
        36, 43, 44, 47, 48, 50, 53, 70, 190, 349,  # types that do not fit
        6, 27, 38, 41, 69, 72, 117, 321, 469,  # values that do not fit
        62, 73, 115, 229, 452,  # syntax, format, settings, size
        UNKNOWN_TABLE, UNKNOWN_DATABASE,
        164, 192, 193, 194, 195, 291, 497, 516,  # read-only, users and rights
    }
)  # fmt: skip
"""ClickHouse's error codes that no repetition cures (src/Common/ErrorCodes.cpp). All others are tried again: to wait
for an operator loses nothing."""


class Secret(Protocol):
    """A pydantic SecretStr."""

    def get_secret_value(self) -> str: ...


class ClickHouseTarget(Protocol):
    """Where ClickHouse is: `Settings.clickhouse`."""

    @property
    def url(self) -> str: ...
    @property
    def database(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def password(self) -> Secret: ...
    @property
    def ca_file(self) -> Path | None: ...
    @property
    def certificate_file(self) -> Path | None: ...
    @property
    def key_file(self) -> Path | None: ...


class StoppedError(Exception):
    """The process was told to stop while something was not yet durable: it is done again after the restart."""


class WriteRejectedError(Exception):
    """ClickHouse will never take these rows; with its own message, and what to do about it."""


class TlsFiles(NamedTuple):
    """PEM files for https; None: the authorities are well-known ones, and no certificate is ours."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class _Address(NamedTuple):
    secure: bool
    host: str
    port: int
    user: str
    database: str


def _parse(url: str, database: str, user: str) -> _Address:
    """`http[s]://[user@]host[:port][/database]`; what the URL names wins.

    Raises:
        ValueError: it is no such URL, or has a password in it, where logs would show it.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a ClickHouse URL is http[s]://[user@]host[:port][/database]")
    if parts.password is not None:
        raise ValueError("a ClickHouse URL has no password in it: it is a setting of its own")
    secure = parts.scheme == "https"
    port = parts.port or (8443 if secure else 8123)
    return _Address(secure, parts.hostname, port, parts.username or user, parts.path.strip("/") or database)


def _client(address: _Address, password: str, timeout_s: int, tls: TlsFiles) -> Any:
    files: dict[str, Any] = {}
    if address.secure:  # verified by default, the host's name too
        named = {"ca_cert": tls.ca, "client_cert": tls.certificate, "client_cert_key": tls.key}
        files = {name: str(path) for name, path in named.items() if path}
        if tls.certificate and password:
            files["tls_mode"] = "strict"  # the certificate opens the connection, the password is who we are
    local = address.host in ("localhost", "127.0.0.1", "::1")
    client = clickhouse_connect.create_client(
        host=address.host,
        port=address.port,
        secure=address.secure,
        username=address.user,
        password=password,
        connect_timeout=CONNECT_TIMEOUT_S,
        send_receive_timeout=timeout_s,
        # Compressing costs more than loopback saves.
        compress=not local,
        # Without a session a client may run several queries at once.
        autogenerate_session_id=False,
        client_name="tailrace",
        **files,
    )
    # Set only now: the client's first queries, about the server, would fail while the database does not exist.
    client.database = address.database
    return client


def connect(target: ClickHouseTarget, *, read_timeout_s: int = READ_TIMEOUT_S) -> Any:
    """A clickhouse-connect client: a context manager, safe to use from several threads.

    The database need not exist yet (`migrate` makes it). About 20 ms.

    Raises:
        ValueError: the URL is not one.
        clickhouse_connect.driver.exceptions.Error: the server does not answer, or refuses the user.
    """
    address = _parse(target.url, target.database, target.user)
    tls = TlsFiles(target.ca_file, target.certificate_file, target.key_file)
    return _client(address, target.password.get_secret_value(), read_timeout_s, tls)


def execute(client: Any, statement: str, **options: Any) -> None:
    """Runs a statement that gives no rows; `options` are those of the client's `command`.

    Raises:
        clickhouse_connect.driver.exceptions.Error: ClickHouse's own, or something else has answered.
    """
    _check_answer(client.command(statement, **options))


def _check_answer(answer: Any) -> None:
    """The driver takes any answer of status 200 for success, as the page of a proxy; ClickHouse names the query."""
    if not isinstance(answer, QuerySummary) or not answer.query_id():
        raise OperationalError("the answer is not ClickHouse's: it has no X-ClickHouse-Query-Id")


@dataclass
class WriterStats:
    """What a writer has done since it was made."""

    rows: int = 0
    inserts: int = 0
    retries: int = 0
    last_error: str = ""


class ClickHouseWriter:
    """Writes record batches to ClickHouse's tables.

    Guarantee: when `write` returns, every row is in a part on the server's disk (which survives a kill of the server; a
    power cut only if the operator sets `fsync_after_insert`). While the server is away, hangs or is overloaded, `write`
    tries again without end, with back-off and jitter, until `stop()` is true. An insert whose answer was lost is simply
    sent again: the tables keep the highest version of each row, so at least once is exact. Nothing is kept between
    calls.

    Cost: 0.1 us a row here and 1 us in the server, and 0.01 and 0.05 us a bucket. For one thread.
    """

    def __init__(
        self,
        url: str,
        *,
        database: str = "tailrace",
        user: str = "default",
        password: str = "",
        tls: TlsFiles = TlsFiles(),  # noqa: B008 - immutable
        stop: Callable[[], bool] = lambda: False,
        timeout_s: int = WRITE_TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Does not connect yet.

        Args:
            jitter: a number in 0..1 that spreads the retries of several writers.

        Raises:
            ValueError: the URL is not one.
        """
        self._address = _parse(url, database, user)
        self._password = password
        self._tls = tls
        self._stop = stop
        self._timeout_s = timeout_s
        self._sleep = sleep
        self._jitter = jitter
        self._client: Any = None
        self.stats = WriterStats()

    def write(self, table: str, batches: Sequence[pa.RecordBatch]) -> None:
        """Returns when the rows are stored. Inserts have at most 100,000 rows and 64 MB.

        Raises:
            StoppedError: the process is stopping; any part of the rows may be stored.
            WriteRejectedError: ClickHouse will never take them.
        """
        rows = pa.Table.from_batches(batches).combine_chunks() if batches else None
        if rows is None or not rows.num_rows:
            return
        step = min(INSERT_ROWS, max(1, rows.num_rows * INSERT_BYTES // max(1, rows.nbytes)))
        for start in range(0, rows.num_rows, step):
            self._insert(table, rows.slice(start, step))

    def close(self) -> None:
        """Lets the connection go; the writer may be used again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _insert(self, table: str, rows: pa.Table) -> None:
        attempt = 0
        while True:
            try:
                if self._client is None:
                    self._client = _client(self._address, self._password, self._timeout_s, self._tls)
                _check_answer(self._client.insert_arrow(table, rows, settings=INSERT_SETTINGS))
            except (DriverError, HTTPError, OSError, ValueError, TypeError) as error:
                # The last two are the driver's and urllib3's where a header of the answer is malformed.
                self._note(table, error)
                self._back_off(table, attempt)
                attempt += 1
            else:
                self.stats.rows += rows.num_rows
                self.stats.inserts += 1
                return

    def _note(self, table: str, error: Exception) -> None:
        code = getattr(error, "code", None)
        # What the driver itself refuses has no code.
        if code in HOPELESS or isinstance(error, (ProgrammingError, DataError, NotSupportedError)):
            advice = ": run `tailrace migrate`" if code in (UNKNOWN_TABLE, UNKNOWN_DATABASE) else ""
            raise WriteRejectedError(f"{table} does not take the rows{advice}. {error}") from error
        self.stats.retries += 1
        self.stats.last_error = str(error)

    def _back_off(self, table: str, attempt: int) -> None:
        delay_s = min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** min(attempt, 20)) * (0.5 + self._jitter() / 2)
        log.warning("%s: not written, again in %.1f s: %s", table, delay_s, self.stats.last_error)
        while delay_s > 0:
            if self._stop():
                raise StoppedError(f"ClickHouse has not confirmed the rows of {table}: {self.stats.last_error}")
            self._sleep(min(delay_s, STOP_POLL_S))
            delay_s -= STOP_POLL_S
