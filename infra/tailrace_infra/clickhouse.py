"""ClickHouse for one machine: chDB, the real engine as a library, behind ClickHouse's HTTP interface on 127.0.0.1.

`python -m tailrace_infra.clickhouse --data-dir DIR [--port N]` serves one directory, see `tailrace_infra.child` for
the conventions (ready line with `port`, signals, end of the parent). Any ClickHouse client can talk to it: curl,
clickhouse-connect, JDBC, Grafana.

- **Each request is a session**: its own connection to the engine, so settings, `USE` and `readonly` end with it, and a
  long query does not block a short one. `session_id` is accepted and keeps nothing.
- **Inserts** are read to their end before the engine sees a byte: a client that dies halfway inserts nothing. What was
  answered with 200 survives a kill -9 of this process (not a power cut: ClickHouse does not fsync by default).
- **Results** in `chdb_engine.STREAMED_FORMATS` (Native is one) are sent as the engine makes them, in constant memory;
  others (Arrow, JSON, Parquet...) are held in memory once, whole. A read whose client hangs up is cancelled.
- **Read-only** (`readonly=1|2`, and any GET, as in ClickHouse) is enforced by the engine, and here for what writes
  outside its tables.
- **Who may connect**: there are no users and no passwords, as in a fresh ClickHouse. Only loopback can reach it, and
  other names in `Host` (DNS rebinding) or `Origin` (a web page; or `Sec-Fetch-Site`) are refused. But every local user
  can, with the file access of the user who runs it (`file()`): do not run it on a machine you share with people you
  distrust.

Not supported, and refused: several statements at once, temporary tables, external data, `input()`, `INTO OUTFILE`,
`FROM INFILE`, `compress=1` and `decompress=1` (compression of HTTP works: lz4, zstd, gzip, br).
"""

import argparse
import faulthandler
import logging
import os
import re
import secrets
import select
import socket
import socketserver
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from email.parser import BytesParser
from email.policy import HTTP as EMAIL_POLICY
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tailrace_flows.private_files import private_umask
from tailrace_schemas.clock import monotonic_s

from tailrace_infra.chdb_engine import ClickHouseError, Engine, StartError, Statement, quote, split_insert
from tailrace_infra.child import announce_ready, exit_with_parent
from tailrace_infra.http_bodies import Body, Decompressed, Reply, take, take_text, too_large
from tailrace_infra.signals import StopSignal

__all__ = ["ClickHouseServer", "StartError", "main", "serve"]

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
LOOPBACK_NAMES = frozenset({"localhost", HOST, "::1"})

BODY_BYTES_MAX = 256 << 20  # of an insert, decompressed
HEAD_BYTES = 256 << 10  # in which an INSERT must come to its data
HELD_BYTES = 1 << 20  # of a result before its first byte is sent: an error in here still has its HTTP status
HELD_BYTES_WAIT_END = 64 << 20  # the same with wait_end_of_query=1
QUERIES_MAX = 32  # at once; more wait
QUEUE_WAIT_S = 10.0
CONNECTIONS_MAX = 256  # each has a thread; what comes beyond is closed at once
# `tailrace up` promises to be gone within 5 s. The engine's first exception takes a while: it loads its symbols.
STOP_GRACE_S = 3.0
CANCEL_S = 1.5
STOP_S = 9.0  # whatever hangs; less than `Child.stop` waits, so that the log says what it was
IDLE_S = 600.0
HANG_UP_POLL_S = 0.5

# Of HTTP, and what pyarrow calls them; by their cost to the CPU, for on loopback there is no bandwidth to save.
CODECS = {"lz4": "lz4", "zstd": "zstd", "gzip": "gzip", "br": "brotli"}
CONTENT_TYPES = {
    "json": "application/json; charset=UTF-8",
    "tabseparated": "text/tab-separated-values; charset=UTF-8",
    "csv": "text/csv; charset=UTF-8; header=absent",
}
# As ClickHouse's exceptionCodeToHTTPStatus.cpp has them; 503 for 202 and 236 lets clients try reads again.
STATUS_OF_CODE = {
    **dict.fromkeys((6, 8, 15, 25, 26, 27, 36, 38, 41, 44, 53, 62, 72, 117, 168, 321, 376, 427), 400),
    **dict.fromkeys((46, 47, 50, 56, 60, 63, 73, 78, 81, 115, 336, 511), 404),
    **{48: 501, 159: 408, 195: 403, 202: 503, 209: 503, 229: 413, 236: 503, 439: 503, 497: 403},
}
# Parameters of the interface; every other one is a setting of the query.
INTERFACE_PARAMETERS = frozenset(
    {"query", "database", "default_format", "query_id", "session_id", "session_timeout", "session_check"}
    | {"close_session", "user", "password", "quota_key", "role", "compress", "decompress", "buffer_size"}
    | {"wait_end_of_query", "stacktrace", "client_protocol_version"}
)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    server_version = "ClickHouse"
    sys_version = ""
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    timeout = IDLE_S
    server: "ClickHouseServer"

    def do_GET(self) -> None:
        """A health check or a query: read-only, unless it is posted."""
        body: Body | None = None
        try:
            with self.server.request():
                try:
                    self._check_loopback()
                    body = self._body()
                    self._route(body)
                    self.close_connection |= not body.ended  # else the rest of it would be taken for a request
                except ClickHouseError as error:
                    self._fail(error, body)
                self.wfile.flush()
        except ClickHouseError as error:  # shutting down
            self._fail(error, body)

    do_POST = do_HEAD = do_GET  # noqa: N815 -- the names that http.server looks for

    def handle_expect_100(self) -> bool:
        """Tell a client that asks to go on sending; the parent forgets it in our buffer."""
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def finish(self) -> None:
        """Close both files, or the socket stays open: the parent stops at the first, when a client is gone."""
        with closing(self.rfile), suppress(ConnectionError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Into our log instead of stderr."""
        logger.debug(format, *args)

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def reply(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        """Send a whole response."""
        self.head(status, {**headers, "Content-Length": str(len(data))})
        if self.command != "HEAD":
            self.wfile.write(data)

    def _fail(self, error: ClickHouseError, body: Body | None) -> None:
        logger.info("%s", str(error).splitlines()[0][:300])
        unread = body is None or not body.ended
        self.close_connection |= unread
        text = f"{error} (version {self.server.engine.version})\n"
        headers = {"Content-Type": "text/plain; charset=UTF-8", "X-ClickHouse-Exception-Code": str(error.code)}
        self.reply(STATUS_OF_CODE.get(error.code, 500), text.encode(), headers)
        if unread:  # a client that is still sending would not see the answer
            self.wfile.flush()
            self.connection.settimeout(2.0)
            left = 4 * BODY_BYTES_MAX
            with suppress(OSError):
                while body and left > 0 and (data := body.read(1 << 20)):
                    left -= len(data)

    def _check_loopback(self) -> None:
        """Refuse the names that a hostile web page would have to use."""
        for header in ("Host", "Origin"):
            value = self.headers.get(header, HOST)
            try:
                name = urlsplit(value if "//" in value else f"//{value}").hostname
            except ValueError:
                name = None
            if name not in LOOPBACK_NAMES:
                message = f"{header} {value!r} is not allowed: the embedded ClickHouse serves http://{HOST} only"
                raise ClickHouseError(195, "IP_ADDRESS_NOT_ALLOWED", message)
        # What a page GETs as a link or an image has no Origin, but could read files here and send them on by `url()`.
        if "Origin" not in self.headers and self.headers.get("Sec-Fetch-Site") == "cross-site":
            message = f"A web page of another site may not use it: the embedded ClickHouse serves http://{HOST} only"
            raise ClickHouseError(195, "IP_ADDRESS_NOT_ALLOWED", message)

    def _body(self) -> Body:
        chunked = self.headers.get("Transfer-Encoding", "").strip().lower() == "chunked"
        length = self.headers.get("Content-Length", "0").strip()
        if not length.isdecimal() or len(length) > 18:
            raise ClickHouseError(36, "BAD_ARGUMENTS", f"Content-Length {length[:30]!r} is not a number of bytes")
        return Body(self.rfile, chunked=chunked, length=0 if chunked else int(length))

    def _route(self, body: Body) -> None:
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            raise ClickHouseError(36, "BAD_ARGUMENTS", f"The request's address cannot be read: {error}") from None
        params = dict(parse_qsl(url.query, keep_blank_values=True))
        if url.path == "/ping" or (url.path == "/" and self.command != "POST" and "query" not in params):
            self.reply(200, b"Ok.\n", {"Content-Type": "text/html; charset=UTF-8"})
        elif url.path == "/" and self.command != "HEAD":
            self._query(params, body)
        else:
            text = f"There is no handle {url.path}\n\nUse / or /ping for health checks.\nSend queries to /\n"
            self.reply(404, text.encode(), {"Content-Type": "text/plain; charset=UTF-8"})

    def _query(self, params: dict[str, str], body: Body) -> None:
        """Find the statement and its data in URL and body, and run it."""
        if "1" in (params.get("compress"), params.get("decompress")):
            message = "compress=1 and decompress=1 are not supported by the embedded ClickHouse; use HTTP compression"
            raise ClickHouseError(48, "NOT_IMPLEMENTED", message)
        source = self._decompressed(body)
        if self.headers.get_content_type() == "multipart/form-data":
            params |= self._form(take_text(source))
            sent = b""
        else:
            sent = take(source, HEAD_BYTES)
        text = b"\n".join(part for part in (params.get("query", "").encode(), sent) if part)
        insert = split_insert(text)
        if insert is None:
            text += take_text(source)
            if split_insert(text):
                raise ClickHouseError(62, "SYNTAX_ERROR", f"The data of an INSERT starts beyond {HEAD_BYTES} bytes")
            self._run(Statement.parse(text), params)
        else:
            with self._spool(text[insert.data_at :], source) as file:
                self._run(insert.reading(file), params)

    def _decompressed(self, body: Body) -> Body | Decompressed:
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding == "identity" or body.ended:
            return body
        if encoding not in CODECS:
            message = f"Unknown compression method: {encoding}; known are {', '.join(CODECS)}"
            raise ClickHouseError(89, "UNKNOWN_COMPRESSION_METHOD", message)
        return Decompressed(body, CODECS[encoding])

    def _form(self, data: bytes) -> dict[str, str]:
        """The fields of a multipart form: so clients send long parameters."""
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        fields = {}
        for part in BytesParser(policy=EMAIL_POLICY).parsebytes(head + data).iter_parts():
            if part.get_filename() is not None:
                message = "External data is not supported by the embedded ClickHouse; insert it into a table"
                raise ClickHouseError(48, "NOT_IMPLEMENTED", message)
            name = part.get_param("name", header="Content-Disposition")
            payload = part.get_payload(decode=True)
            fields[str(name)] = payload.decode("utf-8", "replace") if isinstance(payload, bytes) else ""
        return fields

    def _spool(self, start: bytes, source: Body | Decompressed) -> Any:
        """An insert's data in a file without a name: a crash leaves nothing behind, and mostly no disk ever sees it."""
        left = self.server.body_bytes_max
        directory = self.server.engine.data_dir
        try:
            with ExitStack() as stack:
                # Unbuffered, for a buffer that does not fit on the disk would fail once more when it is closed.
                file = stack.enter_context(tempfile.TemporaryFile(dir=directory, buffering=0))
                while start:
                    left -= len(start)
                    if left < 0:
                        raise too_large(self.server.body_bytes_max)
                    rest = memoryview(start)
                    while rest:
                        rest = rest[file.write(rest) :]
                    start = take(source, 1 << 20)
                file.seek(0)
                stack.pop_all()
                return file
        except (ConnectionError, TimeoutError):
            raise
        except OSError as error:
            message = f"Cannot keep the insert's data in {directory}: {error.strerror}"
            raise ClickHouseError(243, "NOT_ENOUGH_SPACE", message) from None

    def _settings(self, params: Mapping[str, str], query_id: str) -> dict[str, str]:
        settings = {"log_comment": query_id}  # by which the query is found again, to cancel it
        for name, value in params.items():
            if name not in INTERFACE_PARAMETERS and not name.startswith("param_"):
                if not re.fullmatch(r"\w+", name, re.ASCII):
                    raise ClickHouseError(115, "UNKNOWN_SETTING", f"Unknown setting {quote(name)}")
                settings[name] = value
        if self.command == "GET" and settings.get("readonly") != "1":
            settings["readonly"] = "2"
        return settings

    def _codec(self, params: Mapping[str, str]) -> str | None:
        """The compression of the result: as in ClickHouse, only if the setting asks for it too."""
        accepted = {part.split(";")[0].strip() for part in self.headers.get("Accept-Encoding", "").lower().split(",")}
        wanted = params.get("enable_http_compression") in ("1", "true")
        return next((name for name in CODECS if wanted and name in accepted), None)

    def _run(self, statement: Statement, params: Mapping[str, str]) -> None:
        """Run one statement and send its result."""
        engine = self.server.engine
        query_id = params.get("query_id") or str(uuid.uuid4())
        settings = self._settings(params, query_id)
        database = params.get("database") or self.headers.get("X-ClickHouse-Database") or ""
        default = self.headers.get("X-ClickHouse-Format") or params.get("default_format") or "TabSeparated"
        fmt = statement.format or default
        codec = self._codec(params)
        tag = secrets.token_hex(8)
        headers = {
            "Content-Type": CONTENT_TYPES.get(fmt.lower(), "application/octet-stream"),
            "X-ClickHouse-Server-Display-Name": "tailrace",
            "X-ClickHouse-Query-Id": re.sub(r"[^ -~]", "?", query_id),
            "X-ClickHouse-Timezone": engine.timezone,
            "X-ClickHouse-Exception-Tag": tag,
        }
        if codec:
            headers["Content-Encoding"] = codec
        values = {name[6:]: value for name, value in params.items() if name.startswith("param_")}
        progress: dict[str, int] = {}
        held_max = HELD_BYTES_WAIT_END if params.get("wait_end_of_query") == "1" else HELD_BYTES
        with Reply(self, headers, progress, held_max, CODECS[codec] if codec else None) as reply:
            with engine.session(database, settings, progress) as session:
                reads = session.changes_nothing(statement)
                if reads:  # clients tell by it whether there is a result
                    headers["X-ClickHouse-Format"] = fmt
                watch = reads and settings["log_comment"] == query_id
                with (
                    self.server.watched(self.connection, query_id) if watch else nullcontext(),
                    closing(session.run(statement, default, values, reads=reads)) as pieces,
                ):
                    try:
                        for piece in pieces:
                            reply.send(piece)
                    except ClickHouseError as error:
                        if not reply.started:
                            raise
                        reply.abort(f"{error} (version {engine.version})", tag)
                        return
            reply.finish()


class ClickHouseServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1 and has the directory open, from construction on; `serve_forever` answers. One per process.

    Raises `StartError` when the port or the directory cannot be had.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        *,
        body_bytes_max: int = BODY_BYTES_MAX,
        queries_max: int = QUERIES_MAX,
        queue_wait_s: float = QUEUE_WAIT_S,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self.body_bytes_max = body_bytes_max
        self._connections_max = connections_max
        self._connections: set[Any] = set()
        self._running = 0
        self._stopping = False
        self._changed = threading.Condition()
        self._watched: dict[socket.socket, str] = {}
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            remedy = "stop what uses it, or choose another port (tailrace up: --clickhouse-port)"
            raise StartError(f"cannot listen on {HOST}:{port}: {reason}; {remedy}") from None
        try:
            self.engine = Engine(data_dir, queries_max=queries_max, queue_wait_s=queue_wait_s)
        except BaseException:
            self.server_close()
            raise

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    def server_bind(self) -> None:
        """Bind, without the parent's look-up of our name in the DNS."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.port

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the connection is served, for one that has just come."""
        return len(self._connections) < self._connections_max

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection, in a thread of its own."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """A connection is over, or is none of ours."""
        self._connections.discard(request)
        super().shutdown_request(request)

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is running: `stop` waits for it. Raises `ClickHouseError` 236 when it comes too late."""
        with self._changed:
            if self._stopping:
                raise ClickHouseError(236, "ABORTED", "The embedded ClickHouse is shutting down")
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def watched(self, connection: socket.socket, query_id: str) -> Iterator[None]:
        """Cancel this query when its client hangs up. For reads only: an insert is finished, as in ClickHouse."""
        self._watched[connection] = query_id
        try:
            yield
        finally:
            self._watched.pop(connection, None)

    def service_actions(self) -> None:
        """Called by `serve_forever` at least every `HANG_UP_POLL_S`."""
        for connection, query_id in list(self._watched.items()):
            if _hung_up(connection):  # again at the next call if it goes on: it may not have started yet
                logger.debug("client hung up, cancelling query %s", query_id)
                self.engine.cancel(f"Settings['log_comment'] = {quote(query_id)}")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error of ours."""
        if isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            logger.debug("connection lost", exc_info=True)
        else:
            logger.exception("request failed")

    def stop(self, grace_s: float = STOP_GRACE_S) -> bool:
        """Take no more requests, let running ones end, cancel the rest after `grace_s`, close the engine.

        Returns whether it could be closed; if not, a query did not react within `CANCEL_S`, and the process should
        just exit: what was acknowledged is safe. `serve_forever` must be running in another thread.
        """
        ends_s = monotonic_s() + grace_s
        with self._changed:
            self._stopping = True
        self.shutdown()
        self.server_close()
        idle = self._idle_by(ends_s)
        ends_s = monotonic_s() + CANCEL_S
        while not idle and monotonic_s() < ends_s:
            self.engine.cancel("1")  # again, for what had not begun yet
            idle = self._idle_by(monotonic_s() + HANG_UP_POLL_S)
        if idle:
            self.engine.close()
        return idle

    def _idle_by(self, until_s: float) -> bool:
        """Whether no request is running, waiting for it until this time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._running == 0, max(0.0, until_s - monotonic_s()))


def _hung_up(connection: socket.socket) -> bool:
    poll = select.poll()
    try:
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0)) and not connection.recv(1, socket.MSG_PEEK)
    except (OSError, ValueError):  # reset by the client, or closed by its handler meanwhile
        return True


@contextmanager
def serve(data_dir: Path, port: int = 0, **limits: Any) -> Iterator[ClickHouseServer]:
    """A server in threads of this process while the context lasts. `limits` are those of `ClickHouseServer`."""
    server = ClickHouseServer(data_dir, port, **limits)
    threading.Thread(target=server.serve_forever, args=(HANG_UP_POLL_S,), name="clickhouse", daemon=True).start()
    try:
        yield server
    finally:
        server.stop()


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM, SIGINT, or the end of the parent. Exit code 1 and one line on stderr if it cannot."""
    parser = argparse.ArgumentParser(prog="python -m tailrace_infra.clickhouse", description="Serve chDB over HTTP.")
    parser.add_argument("--data-dir", type=Path, required=True, help="directory of the tables; made if missing")
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 (the default) takes a free one")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    private_umask()
    with StopSignal() as stop:
        exit_with_parent()
        try:
            server = ClickHouseServer(options.data_dir.absolute(), options.port)
        except StartError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        threading.Thread(target=server.serve_forever, args=(HANG_UP_POLL_S,), name="clickhouse", daemon=True).start()
        announce_ready(port=server.port, url=f"http://{HOST}:{server.port}", version=server.engine.version)
        stop.wait()
        # Of the C library, so that it does not need the GIL, which the engine might hold: stacks into the log, exit 1.
        faulthandler.dump_traceback_later(STOP_S, exit=True)
        if not server.stop():
            os._exit(0)  # a query hangs in the engine: an ordinary exit would wait for it
    return 0


if __name__ == "__main__":
    sys.exit(main())
