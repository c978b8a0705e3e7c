"""`TelemetryMiddleware` for ASGI applications: FastAPI, Starlette, Django's `get_asgi_application()`, any other.

    app = TelemetryMiddleware(app, telemetry)

Guarantee: the application sees the messages and exceptions that it would see without; what cannot be measured is
left out. Cost: see `python -m benchmarks middleware`.
"""

import re
from asyncio import to_thread
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from threading import Thread
from typing import Any, Final, NamedTuple

from tailrace_schemas.clock import monotonic_s

from tailrace_producers.http_server import KEY, OTHER, HttpServer, Request, WebSocket, error_type
from tailrace_producers.telemetry import Telemetry

__all__ = ["TelemetryMiddleware"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

CLIENT_DISCONNECT: Final = "client_disconnect"
"""`error.type` of a request whose client left before the response was complete."""
PROTOCOL_CODES: Final = range(1000, 1016)
"""Of a WebSocket's end (RFC 6455 7.4.1). Of others a client may make up thousands; the application's own are kept."""
FLUSH_S: Final = 2.0
"""How long an application's shutdown waits for the broker."""
INCOMPLETE: Final = "incomplete_response"
"""`error.type` where the application returned without completing its response."""


class TelemetryMiddleware:
    """Records duration, status, error, sizes of each request and how many are under way; WebSockets too.

    A request lasts from the call to the end of its response's body, however long the application goes on in the
    background. Of nested middlewares the outermost counts. When the application has shut down (`lifespan`), what
    was recorded is sent, for at most `FLUSH_S`: servers end by a signal then, and run no exit handlers.
    """

    def __init__(self, app: App, telemetry: Telemetry) -> None:
        self.app = app
        self._telemetry = telemetry
        self._server = HttpServer.of(telemetry)
        self._routes = _Routes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: _Http | _WebSocket
        if KEY in scope or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, self._flushing(send) if scope["type"] == "lifespan" else send)
            return
        if self._server.port is None:
            self._server.port = _port(scope)
        if scope["type"] == "http":
            exchange = _Http(self._server, self._routes, scope, receive, send)
        else:
            exchange = _WebSocket(self._server, self._routes, scope, receive, send)
        scope[KEY] = exchange.request
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except BaseException as error:  # cancellation and interpreter exit too: told, and passed on
            exchange.end(error)
            raise
        exchange.end(None)

    def _flushing(self, send: Send) -> Send:
        async def flush_and_send(message: Message) -> None:
            if message.get("type") == "lifespan.shutdown.complete":
                try:
                    await to_thread(self._flush)
                except RuntimeError:  # no event loop of asyncio's: trio. There is nothing left to hold up
                    self._flush()
            await send(message)

        return flush_and_send

    def _flush(self) -> None:
        deadline_s = monotonic_s() + FLUSH_S
        # What the host observes may hang, and must not hold up its end.
        collecting = Thread(target=self._telemetry.collect, name="tailrace-collect", daemon=True)
        collecting.start()
        collecting.join(FLUSH_S / 2)
        self._telemetry.flush(max(0.0, deadline_s - monotonic_s()))


class _Http:
    """One request: counts what passes."""

    __slots__ = ("_headers", "_left", "_receive", "_routes", "_scope", "_send", "_trailers", "done", "request")

    def __init__(self, server: HttpServer, routes: "_Routes", scope: Scope, receive: Receive, send: Send) -> None:
        self.request: Final[Request] = server.begin(scope.get("method"), scope.get("scheme", "http"))
        self._scope = scope
        self._routes = routes
        self._receive = receive
        self._send = send
        self._left = False
        self._headers: Iterable[Any] = ()
        self._trailers = False
        self.done = False

    async def receive(self) -> Message:
        message = await self._receive()
        kind = message.get("type")
        if kind == "http.request":
            self.request.request_bytes += len(message.get("body") or b"")
        elif kind == "http.disconnect":
            self._left = True
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)  # first: it also judges the message
        kind = message.get("type")
        request = self.request
        if kind == "http.response.body":
            if request.response_bytes is not None:
                request.response_bytes += len(message.get("body") or b"")
            if not message.get("more_body", False) and not self._trailers:
                self._complete()
        elif kind == "http.response.start":
            request.status = _status(message)
            self._headers = message.get("headers", ())
            self._trailers = message.get("trailers", False)
        elif kind == "http.response.trailers":
            if not message.get("more_trailers", False):
                self._complete()
        elif kind in ("http.response.pathsend", "http.response.zerocopysend"):  # the server sends a file by itself
            request.response_bytes = _content_length(self._headers)
            if not message.get("more_body", False) and not self._trailers:
                self._complete()

    def _complete(self) -> None:
        self.request.end()
        if self.request.status is None or self.request.status < 500:
            self._record()
        # Otherwise an exception may follow, which frameworks raise anew when they have answered: it tells more.

    def end(self, error: BaseException | None) -> None:
        """The application has returned, or raised."""
        request = self.request
        if self.done:
            return
        if error is not None:
            request.error = error_type(error)
        elif request.end_s is None:
            request.error = CLIENT_DISCONNECT if self._left else INCOMPLETE
        if request.status is None and not self._left:
            request.status = 500  # that is what servers answer then
        self._record()

    def _record(self) -> None:
        self.done = True
        if self.request.route is None:
            self.request.route = self._routes.route(self._scope)
        self.request.finish()


class _WebSocket:
    """One WebSocket: its handshake is a request, and once accepted it is an open connection."""

    __slots__ = ("_code", "_open", "_receive", "_routes", "_scope", "_send", "_server", "done", "request")

    def __init__(self, server: HttpServer, routes: "_Routes", scope: Scope, receive: Receive, send: Send) -> None:
        self.request: Final[Request] = server.begin("GET", scope.get("scheme", "ws"))
        self.request.response_bytes = None
        self._server = server
        self._scope = scope
        self._routes = routes
        self._receive = receive
        self._send = send
        self._open: WebSocket | None = None
        self._code: int | str | None = None
        self.done = False
        """The handshake is recorded."""

    async def receive(self) -> Message:
        message = await self._receive()
        if message.get("type") == "websocket.disconnect" and self._code is None:
            code = message.get("code", 1005)  # 1005: none was given (RFC 6455 7.4.1)
            self._code = code if code in PROTOCOL_CODES else OTHER
        return message

    async def send(self, message: Message) -> None:
        await self._send(message)
        kind = message.get("type")
        if kind == "websocket.accept":
            self._answer(101)
            self._open = WebSocket(self._server, self._scope.get("scheme", "ws"))
        elif kind == "websocket.close":
            if self._open is None:
                self._answer(403)  # "the server must close with a 403", says the specification of ASGI
            elif self._code is None:
                self._code = message.get("code", 1000)
        elif kind == "websocket.http.response.start":
            self._answer(_status(message))

    def _answer(self, status: int | None, error: str | None = None) -> None:
        if self.done:
            return
        self.done = True
        self.request.status = status
        self.request.error = error
        if self.request.route is None:
            self.request.route = self._routes.route(self._scope)
        self.request.finish()

    def end(self, error: BaseException | None) -> None:
        """The application has returned, or raised."""
        kind = None if error is None else error_type(error)
        if self._open is not None:
            self._open.finish(self.request.route, self._code, kind)
        elif not self.done and self._code is not None:
            self._answer(None, kind or CLIENT_DISCONNECT)
        elif not self.done:
            self._answer(500, kind or INCOMPLETE)


def _port(scope: Scope) -> int | None:
    match scope.get("server"):
        case [_, int(port)]:
            return port
    return None


def _status(message: Message) -> int | None:
    status = message.get("status")
    return status if isinstance(status, int) else None


def _content_length(headers: Iterable[Any]) -> int | None:
    with suppress(Exception):  # whatever the application gave for headers
        for name, value in headers:
            if name.lower() == b"content-length":
                return int(value)
    return None


class _Routes:
    """Finds the template of the route that Starlette or FastAPI matched, with those of mounts and routers around it.

    They leave route and endpoint in the scope. A route's own template lacks its mounts', and `root_path` has those
    as they were asked for, ids and all. So the tree of routes is walked once, and routes are known by identity.
    """

    MAX_WALKS: Final = 100
    """The tree is walked again when it lacks a route, since applications may add some: that often at most."""

    def __init__(self) -> None:
        self._known: dict[int, _Templates] = {}
        """By the id of a route, context or endpoint."""
        self._walks = 0

    def route(self, scope: Scope) -> str | None:
        """None: not known. Raises nothing."""
        try:
            return self._route(scope)
        except Exception:  # noqa: BLE001 - objects of some framework, in a scope that anybody may write to
            return None

    def _route(self, scope: Scope) -> str | None:
        leaf = _leaf(scope)
        if leaf is None:
            return None
        known = self._known.get(id(leaf))
        if known is None and self._walks < self.MAX_WALKS:
            self._walks += 1
            self._known = {}
            self._walk(getattr(scope.get("router"), "routes", ()), "", 0)
            known = self._known.get(id(leaf))
            if known is None:  # a router that we do not know: what the route says itself
                self._add(leaf, getattr(leaf, "path_format", None) or getattr(leaf, "path", None))
                known = self._known[id(leaf)]
        if known is None:
            return None
        if len(known.templates) == 1:
            return known.templates[0]
        path = scope.get("path", "")
        return next((one for one in known.templates if re.fullmatch(_PARAMETER.sub(".+", re.escape(one)), path)), None)

    def _walk(self, routes: Iterable[Any], prefix: str, depth: int) -> None:
        for route in routes:
            contexts = getattr(route, "effective_route_contexts", None)  # of a router that FastAPI includes
            for context in contexts() if contexts else (route,):
                effective = getattr(context, "starlette_route", None) or context
                template = prefix + getattr(effective, "path_format", "")
                for one in (
                    context,
                    effective,
                    getattr(effective, "endpoint", None) or getattr(effective, "app", None),
                ):
                    self._add(one, template or None)
                inner = getattr(effective, "routes", None)  # of a Mount or Host
                if inner and depth < 10:
                    self._walk(inner, template.removesuffix("/{path}"), depth + 1)

    def _add(self, leaf: object, template: object) -> None:
        known = self._known.setdefault(id(leaf), _Templates(leaf, []))
        if isinstance(template, str) and template not in known.templates:
            known.templates.append(template)


class _Templates(NamedTuple):
    """Those of one route or endpoint; several where it is mounted more than once, or serves several paths."""

    leaf: object
    """Kept, so that its id is not given to another."""
    templates: list[str]


_PARAMETER: Final = re.compile(r"\\\{.*?\\\}")
"""A template's parameter, after `re.escape`."""


def _leaf(scope: Scope) -> object:
    """The innermost route that was matched, or its endpoint where the scope's route is that of a mount around it."""
    endpoint = scope.get("endpoint")
    route = scope.get("route")
    if endpoint is None:
        return route
    context = (scope.get("fastapi") or {}).get("effective_route_context")  # FastAPI since 0.137: with all prefixes
    for one in (context, route):
        if one is not None and _endpoint(one) is endpoint:
            return one
    return endpoint


def _endpoint(route: object) -> object:
    """What serves a route; of a mount, its application."""
    return getattr(route, "endpoint", None) or getattr(route, "app", None)
