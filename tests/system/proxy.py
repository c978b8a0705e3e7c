"""A TCP proxy in front of an HTTP server or a Kafka broker, which can fail in the ways a network and a server do."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from urllib.parse import urlsplit

CHUNK = 1 << 16
POLL_S = 0.02


class Mode(Enum):
    """What the proxy does with connections, old and new."""

    PASS = "pass"
    REFUSE = "refuse"
    """Nothing listens; what was connected is reset."""
    HANG = "hang"
    """Everything is accepted, and nothing goes through, until the mode changes: then it goes on."""
    CUT = "cut"
    """Inserts reach the server, and their connection is reset instead of the server's `200 OK`."""


class Proxy:
    """Made by `proxy_to`."""

    def __init__(self, upstream: tuple[str, int], host: str = "127.0.0.1") -> None:
        self._upstream = upstream
        self._host = host
        self._known_as = upstream[0].encode(), upstream[1]
        self._listener = socket.create_server((host, 0))
        self._port: int = self._listener.getsockname()[1]
        self.url = f"http://{host}:{self._port}"
        self.address = f"{host}:{self._port}"
        self.mode = Mode.PASS
        self.replace: tuple[bytes, bytes] | None = None
        """What the server says, and what the client is to hear instead."""
        self.held = 0
        """Requests, or parts of them, that have waited in HANG."""
        self.cuts = 0
        self.resets = 0
        """Connections that REFUSE has ended."""
        self.delay_s = 0.0
        """Of each piece that passes, in both directions."""
        self._closing = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """Ends all threads."""
        self._closing = True
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        listener: socket.socket | None = self._listener
        while not self._closing:
            if self.mode is Mode.REFUSE:
                if listener is not None:
                    listener.close()
                    listener = None
                threading.Event().wait(POLL_S)
                continue
            if listener is None:
                listener = socket.create_server((self._host, self._port))
            listener.settimeout(POLL_S)
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()
        if listener is not None:
            listener.close()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                return _reset(client)
            with server, selectors.DefaultSelector() as selector:
                selector.register(client, selectors.EVENT_READ, server)
                selector.register(server, selectors.EVENT_READ, client)
                try:
                    self._relay(client, selector)
                except OSError:
                    _reset(client)

    def _relay(self, client: socket.socket, selector: selectors.BaseSelector) -> None:
        """Until one side ends."""
        inserting = False
        while not self._closing:
            for key, _ in selector.select(POLL_S):
                source, target = key.fileobj, key.data
                assert isinstance(source, socket.socket)
                if self.mode is Mode.HANG:
                    self.held += 1
                    while self.mode is Mode.HANG and not self._closing:
                        threading.Event().wait(POLL_S)
                if self.delay_s:
                    threading.Event().wait(self.delay_s)
                data = source.recv(CHUNK)
                if not data:
                    return
                if source is client:
                    inserting = b"INSERT" in data or (inserting and not data.startswith((b"GET ", b"POST ")))
                elif inserting and self.mode is Mode.CUT and data.startswith(b"HTTP/1.1 200"):
                    self.cuts += 1
                    return _reset(client)
                if source is client and self._host != "127.0.0.1":
                    # The embedded ClickHouse answers to loopback's name alone.
                    data = data.replace(f"Host: {self.address}".encode(), b"Host: %b:%d" % self._known_as)
                if source is not client and self.replace:
                    data = data.replace(*self.replace)
                target.sendall(data)
            if self.mode is Mode.REFUSE:
                self.resets += 1
                return _reset(client)


def _reset(client: socket.socket) -> None:
    """Ends a connection with an error for the other side, not politely."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


@contextmanager
def proxy_to(url: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy in front of a server on loopback; it listens on an address of `host`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy((parts.hostname, parts.port), host)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def proxy_to_kafka(bootstrap_servers: str, host: str = "127.0.0.1") -> Iterator[Proxy]:
    """A proxy in front of a broker on the same `host`. In its metadata the broker's address becomes the proxy's."""
    with proxy_to(f"kafka://{bootstrap_servers}", host) as proxy:
        addresses = [bootstrap_servers, proxy.address]
        broker, own = (host.encode() + int(one.rpartition(":")[2]).to_bytes(4, "big") for one in addresses)
        proxy.replace = (broker, own)
        yield proxy
