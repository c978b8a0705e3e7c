"""`TelemetryMiddleware` for WSGI applications: Flask, Django's `get_wsgi_application()`, any other.

    app.wsgi_app = TelemetryMiddleware(app.wsgi_app, telemetry)

Guarantee: server and application see what they would see without; what cannot be measured is left out. Cost: see
`python -m benchmarks middleware`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from tailrace_producers.http_server import KEY, HttpServer, Request, error_type
from tailrace_producers.telemetry import Telemetry

__all__ = ["TelemetryMiddleware"]

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]
App = Callable[[Environ, StartResponse], Iterable[bytes]]

CLIENT_DISCONNECT: Final = "client_disconnect"
"""`error.type` of a response that the server gave up before its end, as it does when the client has left."""


class TelemetryMiddleware:
    """Records duration, status, error, sizes of each request and how many are under way.

    A request lasts from the call until the server has taken and closed the response's body (PEP 3333). Of nested
    middlewares the outermost counts.
    """

    def __init__(self, app: App, telemetry: Telemetry) -> None:
        self.app = app
        self._server = HttpServer.of(telemetry)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if KEY in environ:
            return self.app(environ, start_response)
        if self._server.port is None:
            self._server.port = _number(environ.get("SERVER_PORT"))
        response = _Response(self._server, environ, start_response)
        environ[KEY] = response.request
        try:
            body = self.app(environ, response.start)
        except BaseException as error:  # told, and passed on
            response.end(error)
            raise
        return response.wrap(body)


class _Response:
    """One request and its response: counts what passes."""

    __slots__ = ("_environ", "_headers", "_start_response", "_write", "done", "request")

    def __init__(self, server: HttpServer, environ: Environ, start_response: StartResponse) -> None:
        self.request: Final[Request] = server.begin(environ.get("REQUEST_METHOD"), environ.get("wsgi.url_scheme"))
        length = environ.get("CONTENT_LENGTH")
        if length:
            self.request.request_bytes = _number(length) or 0
        self._environ = environ
        self._start_response = start_response
        self._headers: Sequence[tuple[str, str]] = ()
        self._write: Callable[[bytes], object] | None = None
        self.done = False

    def start(self, status: str, headers: Sequence[tuple[str, str]], *exc_info: Any) -> Callable[[bytes], object]:
        """The `start_response` that the application calls."""
        self._write = self._start_response(status, headers, *exc_info)  # first: it also judges its arguments
        request = self.request
        request.status = _number(status[:3])
        self._headers = headers
        if request.route is None:
            request.route = _flask_route(self._environ)
        if exc_info and exc_info[0]:
            request.error = error_type(exc_info[0][0])
        return self._counting_write

    def _counting_write(self, data: bytes) -> object:
        assert self._write is not None  # it is what `start` returns
        result = self._write(data)
        self.count(len(data))
        return result

    def _announced(self) -> int | None:
        """The response's `Content-Length`."""
        return next((_number(value) for name, value in self._headers if name.lower() == "content-length"), None)

    def wrap(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """What the server gets in place of the body."""
        wrapper = self._environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):
            return self._wrap_file(body)
        # A server asks for the length: of one block it can tell the Content-Length.
        return (_SizedBody if hasattr(body, "__len__") else _Body)(self, body)

    def _wrap_file(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The server knows its own class and sends the file by itself: only its closing can be seen."""
        self.request.response_bytes = self._announced()
        close = getattr(body, "close", None)

        def closing() -> None:
            self.end(None)
            if close is not None:
                close()

        try:
            body.close = closing  # type: ignore[attr-defined]  # PEP 3333 has servers call what is there
        except AttributeError:
            self.end(None)  # not to be observed: the response ends where the server takes over
        return body

    def count(self, size: int) -> None:
        """So many bytes of the body have been passed on."""
        if self.request.response_bytes is not None:
            self.request.response_bytes += size

    def end(self, error: BaseException | None) -> None:
        """The response is complete, or the application has raised. Once."""
        if self.done:
            return
        self.done = True
        request = self.request
        if error is not None:
            request.error = error_type(error)
            if not request.response_bytes:
                request.status = 500  # nothing was sent, so that is what servers answer
        request.finish()

    def close(self, *, exhausted: bool) -> None:
        """The server has closed the body."""
        if not exhausted and not self.done and not self._is_complete() and self.request.error is None:
            self.request.error = CLIENT_DISCONNECT
        self.end(None)

    def _is_complete(self) -> bool:
        """Whether a server that did not ask for more has all it needs."""
        announced = self._announced()
        return self._environ.get("REQUEST_METHOD") == "HEAD" or (
            announced is not None and (self.request.response_bytes or 0) >= announced
        )


class _Body:
    """A response's body, passed on block by block."""

    __slots__ = ("_body", "_exhausted", "_iterator", "_response")

    def __init__(self, response: _Response, body: Iterable[bytes]) -> None:
        self._response = response
        self._body = body
        self._iterator: Iterator[bytes] | None = None
        self._exhausted = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            if self._iterator is None:
                self._iterator = iter(self._body)
            block = next(self._iterator)
        except StopIteration:
            self._exhausted = True
            self._response.request.end()
            raise
        except BaseException as error:
            self._response.end(error)
            raise
        self._response.count(len(block))
        return block

    def close(self) -> None:
        """Close the application's body, as a server has to."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        except BaseException as error:
            self._response.end(error)
            raise
        self._response.close(exhausted=self._exhausted)

    def __del__(self) -> None:
        self._response.close(exhausted=self._exhausted)  # a server that forgot to; does nothing after `close`


class _SizedBody(_Body):
    """A body whose number of blocks is known."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]  # that is why it is of this class


def _number(text: object) -> int | None:
    if isinstance(text, str) and text.isdecimal() and text.isascii() and len(text) < 20:  # int() refuses thousands
        return int(text)
    return None


def _flask_route(environ: Environ) -> str | None:
    """The rule that Flask matched: its request is in the environment, until it has answered."""
    try:
        rule = environ["werkzeug.request"].url_rule.rule
    except Exception:  # noqa: BLE001 - no Flask, no match, or an object of somebody else
        return None
    return rule if isinstance(rule, str) else None
