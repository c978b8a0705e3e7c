"""An HTTP proxy that lets everything through, but does to inserts, one after the other, what it was told."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote_plus, urlsplit

__all__ = ["Answer", "CutAfter", "CutBefore", "CutDuring", "Hang", "Proxy", "proxy_to"]


@dataclass(frozen=True)
class Hang:
    """The server takes the insert and says nothing."""


@dataclass(frozen=True)
class CutBefore:
    """The connection ends before the server sees anything."""


@dataclass(frozen=True)
class CutDuring:
    """The connection ends when the server has half of the body."""


@dataclass(frozen=True)
class CutAfter:
    """The connection ends when the server has stored the rows, before it says so."""


@dataclass(frozen=True)
class Answer:
    """This comes back, of ClickHouse if it has a code, or else of something in between; the server sees nothing."""

    status: int
    code: int = 0
    text: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class Proxy:
    """The script: one fault for each insert, until none is left."""

    url: str
    faults: list[Any] = field(default_factory=list)
    inserts: int = 0
    ended: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server.proxy
        fault = None
        if "INSERT INTO" in unquote_plus(self.path) or body.startswith(b"INSERT INTO"):
            proxy.inserts += 1
            fault = proxy.faults.pop(0) if proxy.faults else None
        if isinstance(fault, Answer):
            code = {"X-ClickHouse-Exception-Code": str(fault.code)} if fault.code else {}
            return self._reply(fault.status, code | dict(fault.headers), fault.text.encode())
        if fault is None or isinstance(fault, CutAfter):
            answer = self._forward(body)
            if fault is None:
                return self._reply(*answer)
        elif isinstance(fault, CutDuring):
            self._forward_half(body)
        elif isinstance(fault, Hang):
            proxy.ended.wait()
        self.close_connection = True
        return None

    def _reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Content-Length")}
        upstream = http.client.HTTPConnection(*self.server.upstream)
        try:
            upstream.request("POST", self.path, body, headers)
            answer = upstream.getresponse()
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.startswith("X-ClickHouse") or name in ("Content-Encoding", "Content-Type")
            }
            return answer.status, kept, answer.read()
        finally:
            upstream.close()

    def _forward_half(self, body: bytes) -> None:
        with socket.create_connection(self.server.upstream) as upstream:
            head = f"POST {self.path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            upstream.sendall(head.encode() + body[: len(body) // 2])

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def __init__(self, upstream: tuple[str, int], port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.upstream = upstream
        self.proxy = Proxy(f"http://127.0.0.1:{self.server_port}")


@contextmanager
def proxy_to(url: str, port: int = 0) -> Iterator[Proxy]:
    """A proxy in front of a server on loopback."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    server = _Server((parts.hostname, parts.port), port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.proxy
    finally:
        server.proxy.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
