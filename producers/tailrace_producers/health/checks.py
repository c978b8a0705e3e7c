"""Checks of what a service needs, each a plain function that returns when the thing works.

A check needs no account: it asks whether a server answers as its protocol demands, which PostgreSQL and Redis do
before they want a password. Nothing is written. What comes over the network is bounded: 64 kB are read at most. A check
ends by its timeout, but for the lookup of a name, and an HTTP server that drips its headers: then the runner reports
the timeout.
"""

import atexit
import os
import selectors
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ssl import SSLCertVerificationError, SSLError
from struct import Struct
from typing import Any, Final
from urllib.parse import urlsplit

from tailrace_schemas.clock import monotonic_s

__all__ = [
    "CheckFailedError", "Probe", "Status", "clickhouse", "command", "http", "kafka", "postgresql", "redis", "tcp",
]  # fmt: skip

MAX_READ_BYTES: Final = 64 * 1024
MAX_DETAIL_CHARS: Final = 200

Probe = Callable[[float], None]
"""Does a check within so many seconds; returns if all is well, raises `CheckFailedError` or OSError if not."""


class Status(StrEnum):
    """What a check finds, or a service is."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class CheckFailedError(Exception):
    """A check that did not find what it should."""

    def __init__(self, reason: str, detail: str = "", status: Status = Status.UNHEALTHY) -> None:
        """`reason` is one of few: it becomes the attribute `error.type`. `detail` is for people."""
        super().__init__(detail or reason)
        self.reason = reason
        self.detail = detail
        self.status = status


def reason_of(error: BaseException) -> tuple[str, str]:
    """Reason and detail of whatever a check raised; the detail in printable characters, at most 200."""
    reason, detail = _reason_of(error)
    return reason, "".join(one if one.isprintable() else " " for one in detail[:MAX_DETAIL_CHARS])


def _reason_of(error: BaseException) -> tuple[str, str]:
    if isinstance(error, CheckFailedError):
        return error.reason, error.detail
    if isinstance(error, TimeoutError):
        return "timeout", "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection_refused", str(error)
    if isinstance(error, ConnectionError):
        return "connection_lost", str(error)
    if isinstance(error, socket.gaierror):
        return "name_not_resolved", str(error)
    if isinstance(error, SSLCertVerificationError):
        return "bad_certificate", error.verify_message
    if isinstance(error, SSLError):
        return "tls", str(error)
    if isinstance(error, HTTPException):
        return "no_http", f"{type(error).__name__}: {error}"
    if isinstance(error, OSError):
        return "unreachable", error.strerror or str(error)
    return "check_error", f"{type(error).__name__}: {error}"


def tcp(host: str, port: int) -> Probe:
    """Whether a TCP connection is accepted."""

    def probe(timeout_s: float) -> None:
        socket.create_connection((host, port), timeout_s).close()

    return probe


def http(
    url: str, *, method: str = "GET", status: Sequence[int] = (), contains: str = "", headers: Mapping[str, str] = {}
) -> Probe:
    """Whether a URL answers with one of `status` (default: 200 to 399, as Kubernetes has it), and a text within 64 kB.

    Redirects are not followed: 3xx is an answer. Certificates are verified.

    Raises:
        ValueError: not an http or https URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{url!r} is not an http:// or https:// URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL with a user's name and password in it would show them to everybody")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    connect = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    host, port = parts.hostname, parts.port

    def probe(timeout_s: float) -> None:
        until_s = monotonic_s() + timeout_s
        connection = connect(host, port, timeout=timeout_s)
        try:
            connection.request(method, target, headers={"User-Agent": "tailrace-health", **headers})
            answer = connection.getresponse()
            body = b""
            wanted = contains.encode()
            while wanted and wanted not in body and len(body) < MAX_READ_BYTES:
                if monotonic_s() > until_s:
                    raise TimeoutError
                piece = answer.read1(MAX_READ_BYTES - len(body))
                if not piece:
                    break
                body += piece
        finally:
            connection.close()
        if answer.status not in status if status else not 200 <= answer.status < 400:
            raise CheckFailedError(f"http_{answer.status}", f"{answer.status} {answer.reason}")
        if wanted not in body:
            raise CheckFailedError("unexpected_answer", f"the answer does not contain {contains!r}")

    return probe


def clickhouse(url: str) -> Probe:
    """Whether ClickHouse's HTTP interface answers `/ping`."""
    return http(url.rstrip("/") + "/ping", status=(200,), contains="Ok.")


def kafka(bootstrap_servers: str, *, topic: str = "", properties: Mapping[str, object] = {}) -> Probe:
    """Whether a broker gives the cluster's metadata, and whether every partition of `topic` has a leader."""

    def probe(timeout_s: float) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        # Its errors while it connects would go to stderr; what matters is the exception.
        quiet: dict[str, Any] = {"log_level": 0, "error_cb": lambda _error: None, "socket.timeout.ms": 10_000}
        try:
            client = AdminClient({**quiet, **properties, "bootstrap.servers": bootstrap_servers})
            # Of all topics: to ask for one that does not exist may create it.
            metadata = client.list_topics(timeout=timeout_s)
        except KafkaException as error:
            told = error.args[0]
            raise CheckFailedError("kafka_unreachable", str(getattr(told, "str", lambda: told)())) from None
        if not topic:
            return
        found = metadata.topics.get(topic)
        if found is None or found.error is not None:
            raise CheckFailedError("no_topic", f"there is no topic {topic}")
        headless = [number for number, partition in found.partitions.items() if partition.leader < 0]
        if headless:
            raise CheckFailedError("no_leader", f"partitions without a leader: {headless}")

    return probe


_STARTUP: Final = Struct("!ii")
_PROTOCOL_3: Final = 196608
_STARTING: Final = {"57P03": "starting_or_stopping", "53300": "too_many_connections"}


def postgresql(host: str, port: int = 5432, *, user: str = "tailrace", database: str = "postgres") -> Probe:
    """Whether PostgreSQL takes connections, as `pg_isready` finds it: without logging in.

    A request for a password, or a refusal of this user or database, is an answer of a server that works.

    Source: PostgreSQL's documentation, chapter 55.2 (Message Flow, Start-up).
    """
    parameters = b"user\0" + user.encode() + b"\0database\0" + database.encode() + b"\0\0"
    hello = _STARTUP.pack(_STARTUP.size + len(parameters), _PROTOCOL_3) + parameters

    def probe(timeout_s: float) -> None:
        with _Connection(host, port, timeout_s) as connection:
            connection.send(hello)
            kind = connection.read(1)
            size = int.from_bytes(connection.read(4))
            if kind == b"R" and 8 <= size < 2000:
                return
            if kind != b"E" or not 4 < size <= MAX_READ_BYTES:
                raise CheckFailedError("unexpected_answer", "this is not PostgreSQL")
            # Fields of an error: a letter and a text that ends with a zero byte; C is the SQLSTATE, M the message.
            fields = {one[:1]: one[1:].decode(errors="replace") for one in connection.read(size - 4).split(b"\0")}
            state = fields.get(b"C", "")
            if state[:2] not in ("28", "3D"):  # invalid authorization, invalid catalog name
                raise CheckFailedError(_STARTING.get(state, f"sqlstate_{state}"), fields.get(b"M", ""))

    return probe


def redis(host: str, port: int = 6379) -> Probe:
    """Whether Redis answers PING; one that wants a password does.

    Degraded while it loads its data or has lost its master; without which Redis before 7 answers all the same.
    """

    def probe(timeout_s: float) -> None:
        with _Connection(host, port, timeout_s) as connection:
            connection.send(b"PING\r\n")
            answer = b""
            while not answer.endswith(b"\r\n") and len(answer) < 1000:
                answer += connection.read(1)
        word = answer.split(b" ")[0].strip().decode(errors="replace")
        if word in ("+PONG", "-NOAUTH"):
            return
        detail = answer.decode(errors="replace").strip()
        if word in ("-LOADING", "-MASTERDOWN"):
            raise CheckFailedError(word[1:].lower(), detail, Status.DEGRADED)
        raise CheckFailedError("unexpected_answer", detail)

    return probe


def _read_all(process: "subprocess.Popen[bytes]", until_s: float) -> bytes:
    """The first 64 kB that a process prints, read to its end. Raises TimeoutError and `subprocess.TimeoutExpired`."""
    assert process.stdout is not None
    kept = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left_s = until_s - monotonic_s()
            if left_s <= 0 or not selector.select(left_s):
                raise TimeoutError
            piece = os.read(process.stdout.fileno(), MAX_READ_BYTES)
            if not piece:
                break
            kept += piece[: MAX_READ_BYTES - len(kept)]
    process.wait(max(0.0, until_s - monotonic_s()))
    return kept


class _Connection:
    """A TCP connection that ends by a deadline, however slowly its peer talks."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._until_s = monotonic_s() + timeout_s
        self._socket = socket.create_connection((host, port), timeout_s)

    def __enter__(self) -> "_Connection":
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._limit()
        self._socket.sendall(data)

    def read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        data = b""
        while len(data) < size:
            self._limit()
            piece = self._socket.recv(size - len(data))
            if not piece:
                raise CheckFailedError("connection_lost", "the connection was closed before the answer")
            data += piece
        return data

    def _limit(self) -> None:
        left_s = self._until_s - monotonic_s()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)


_running: Final[set["subprocess.Popen[bytes]"]] = set()


@atexit.register
def _kill_running() -> None:
    """Commands have sessions of their own: nobody else would end those under way when this process ends."""
    for process in list(_running):
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def command(arguments: Sequence[str]) -> Probe:
    """A command's exit code as monitoring plugins have it: 0 healthy, 1 degraded, any other unhealthy.

    The first line that it prints is the detail. It runs without a shell; at the timeout, and when this
    process ends, it is killed, with all that it started.

    Source: monitoring-plugins.org, development guidelines, "Plugin Return Codes".

    Raises:
        ValueError: no command.
    """
    if not arguments:
        raise ValueError("a command needs at least its name")
    fixed = list(arguments)

    def probe(timeout_s: float) -> None:
        with subprocess.Popen(
            fixed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            _running.add(process)
            try:
                output = _read_all(process, monotonic_s() + timeout_s)
            except (TimeoutError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)
                raise TimeoutError from None
            finally:
                _running.discard(process)
        if process.returncode:
            said = output.decode(errors="replace").strip().splitlines()
            status = Status.DEGRADED if process.returncode == 1 else Status.UNHEALTHY
            raise CheckFailedError(f"exit_{process.returncode}", said[0] if said else "", status)

    return probe
