"""What the ASGI and the WSGI middleware record of a request: OpenTelemetry's metrics of HTTP servers.

Names, units, attributes and folding follow https://opentelemetry.io/docs/specs/semconv/http/http-metrics/; metrics
marked with ° in docs/middleware.md are ours. No attribute holds what a client made up: an unknown method is `_OTHER`,
a path is never recorded, a route is the template that the framework matched, and combinations are bounded.
"""

import os
from threading import RLock
from typing import Final, NamedTuple, Protocol
from weakref import WeakValueDictionary

from tailrace_schemas.clock import monotonic_s, now_us

from tailrace_producers.process import ProcessMetrics, connections_at
from tailrace_producers.telemetry import Gauge, Telemetry

__all__ = ["KEY", "METHODS", "OTHER", "HttpServer", "Request", "WebSocket", "error_type"]

KEY: Final = "tailrace.request"
"""Where ASGI scopes and WSGI environments hold the `Request`: to name its route, and to count it once."""
METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"))
SCHEMES: Final = frozenset(("http", "https", "ws", "wss"))
OTHER: Final = "_OTHER"
MAX_COMBINATIONS: Final = 2000
"""Of method, route, status, scheme and error that are told apart; of further ones route and error are `_OTHER`."""


class _Record(Protocol):
    def __call__(self, value: float, time_us: int | None = None) -> None: ...


class _Recorders(NamedTuple):
    """The series of one combination of attributes."""

    duration: _Record
    request_size: _Record
    response_size: _Record


class _Active:
    """How many are under way, and the most since `observe`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._lock = RLock()  # of a body that is collected as garbage the end may come within `begin`

    def begin(self, key: tuple[str, str]) -> None:
        with self._lock:
            count = self._counts.setdefault(key, [0, 0])
            count[0] += 1
            count[1] = max(count)

    def end(self, key: tuple[str, str]) -> None:
        with self._lock:
            if key in self._counts:  # not if it began before a fork
                self._counts[key][0] -= 1

    def observe(self) -> list[tuple[tuple[str, str], int, int]]:
        """Key, now, peak."""
        with self._lock:
            found = [(key, now, peak) for key, (now, peak) in self._counts.items()]
            for count in self._counts.values():
                count[1] = count[0]
        return found


class Request:
    """One HTTP request under way, in the ASGI scope or WSGI environment under `KEY`.

    A host may set `route`, to a template and never to a path, and `raised` where no framework tells them.
    """

    __slots__ = (
        "_key", "_server", "_start_s", "end_s", "error", "raised", "request_bytes", "response_bytes", "route", "status",
    )  # fmt: skip

    def __init__(self, server: "HttpServer", method: object, scheme: object) -> None:
        self._server = server
        self._key = (_known(method, METHODS), _known(scheme, SCHEMES))
        self.route: str | None = None
        self.status: int | None = None
        self.error: str | None = None
        """`error.type`; None: `raised`, or the status itself, if that is 500 or more."""
        self.raised: str | None = None
        """The class of an exception that the framework has answered: an error if it did so by 500 or more."""
        self.request_bytes = 0
        self.response_bytes: int | None = 0
        """None: not known."""
        self.end_s: float | None = None
        server._requests.begin(self._key)
        self._start_s = monotonic_s()

    def end(self) -> None:
        """The response is complete, now. What `finish` records may still become more telling."""
        if self.end_s is None:
            self.end_s = monotonic_s()
            self._server._requests.end(self._key)

    def finish(self) -> None:
        """Record it; once."""
        self.end()
        assert self.end_s is not None
        self._server._record(self, *self._key, self.end_s - self._start_s)


class WebSocket:
    """One open WebSocket."""

    __slots__ = ("_key", "_server", "_start_s")

    def __init__(self, server: "HttpServer", scheme: object) -> None:
        self._server = server
        self._key = (_known(scheme, SCHEMES), "")
        server._websockets.begin(self._key)
        self._start_s = monotonic_s()

    def finish(self, route: str | None, close_code: int | str | None, error: str | None) -> None:
        """It is closed; once."""
        self._server._websockets.end(self._key)
        self._server._websocket_duration.record(
            monotonic_s() - self._start_s,
            {
                "http.route": route,
                "url.scheme": self._key[0],
                "websocket.close.code": close_code,
                "error.type": error,
            },
        )


class HttpServer:
    """The metrics of all requests of one `Telemetry`; middlewares that share that share this. For any thread."""

    @classmethod
    def of(cls, telemetry: Telemetry) -> "HttpServer":
        """The one of this `Telemetry`; its process is observed from now on."""
        server = _servers.get(id(telemetry))
        if server is None:
            server = _servers[id(telemetry)] = cls(telemetry)
        return server

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry  # kept alive: `of` knows it by its id
        self._duration = telemetry.distribution("http.server.request.duration", "s")
        self._request_size = telemetry.distribution("http.server.request.body.size", "By")
        self._response_size = telemetry.distribution("http.server.response.body.size", "By")
        self._active_requests = telemetry.gauge("http.server.active_requests", "{request}")
        self._open_connections = telemetry.gauge("http.server.open_connections", "{connection}")
        self._websocket_duration = telemetry.distribution("websocket.server.connection.duration", "s")
        self._active_websockets = telemetry.gauge("websocket.server.active_connections", "{connection}")
        self._recorders: dict[tuple[object, ...], _Recorders] = {}
        self._process = ProcessMetrics(telemetry)
        self.port: int | None = None
        """Where the server listens, once a request has told."""
        self.start_over()
        self._active_requests.observe(self.observe)

    def start_over(self) -> None:
        """Nothing is under way: at the start, and in a forked child, whose parent has the requests."""
        self._requests = _Active()
        self._websockets = _Active()

    def begin(self, method: object, scheme: object) -> Request:
        """A request has come. Method and scheme that are not known are folded."""
        return Request(self, method, scheme)

    def _record(self, request: Request, method: str, scheme: str, duration_s: float) -> None:
        error = request.error
        status = request.status
        if error is None and status is not None and status >= 500:
            error = request.raised or str(status)
        key = (method, request.route, status, scheme, error)
        recorders = self._recorders.get(key) or self._bind(key)
        time_us = now_us()
        recorders.duration(duration_s, time_us)
        if request.request_bytes:
            recorders.request_size(request.request_bytes, time_us)
        if request.response_bytes is not None:
            recorders.response_size(request.response_bytes, time_us)

    def _bind(self, key: tuple[object, ...]) -> _Recorders:
        method, route, status, scheme, error = key
        if len(self._recorders) >= MAX_COMBINATIONS:
            key = (method, route and OTHER, status, scheme, error and OTHER)
            known = self._recorders.get(key)
            if known is not None:
                return known
            method, route, status, scheme, error = key
        attributes = {
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
            "url.scheme": scheme,
            "error.type": error,
        }
        found = self._recorders[key] = _Recorders(
            self._duration.bind(attributes).record,
            self._request_size.bind(attributes).record,
            self._response_size.bind(attributes).record,
        )
        return found

    def observe(self) -> None:
        """Record what is under way and what the process takes, as the telemetry's observers call for it."""
        pid = os.getpid()
        requests = self._requests.observe()
        self._gauge(self._active_requests, requests, ("http.request.method", "url.scheme"), pid)
        websockets = self._websockets.observe()
        self._gauge(self._active_websockets, websockets, ("url.scheme",), pid)
        if self.port is not None and (total := connections_at(self.port)) is not None:
            busy = min(total, sum(now for _, now, _ in requests + websockets))
            for state, count in (("active", busy), ("idle", total - busy)):
                self._open_connections.set(count, {"http.connection.state": state, "process.pid": pid})
        self._process.observe()

    def _gauge(
        self, gauge: Gauge, found: list[tuple[tuple[str, str], int, int]], names: tuple[str, ...], pid: int
    ) -> None:
        """A gauge is of one process, so it needs the process's id: those of several add up, and do not mix."""
        time_us = now_us()
        for key, now, peak in found:
            attributes = {**dict(zip(names, key, strict=False)), "process.pid": pid}
            if peak > now:
                gauge.set(peak, attributes, time_us - 1)
            gauge.set(now, attributes, time_us)


def _known(value: object, known: frozenset[str]) -> str:
    return value if isinstance(value, str) and value in known else OTHER


def error_type(error: BaseException | type[BaseException]) -> str:
    """The class's name, with its module unless that is `builtins`."""
    kind = error if isinstance(error, type) else type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_servers: "WeakValueDictionary[int, HttpServer]" = WeakValueDictionary()


def _after_fork() -> None:
    for server in list(_servers.values()):
        server.start_over()


os.register_at_fork(after_in_child=_after_fork)
