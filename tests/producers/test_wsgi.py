"""The WSGI middleware, by what servers and applications do."""

import sys
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from typing import Any
from wsgiref.util import FileWrapper
from wsgiref.validate import validator

import pytest
from tailrace_producers.wsgi import TelemetryMiddleware

from tests.producers.http_recording import Recorder, recorder

__all__ = ["recorder"]  # a fixture

DURATION, REQUEST_SIZE, RESPONSE_SIZE = (
    "http.server.request.duration",
    "http.server.request.body.size",
    "http.server.response.body.size",
)

App = Callable[[dict[str, Any], Any], Iterable[bytes]]


class OddityError(Exception):
    """What an application may raise."""


class Body:
    """Blocks, or an exception in their midst; remembers being closed."""

    def __init__(self, *blocks: bytes | Exception, close_raises: bool = False) -> None:
        self.blocks = blocks
        self.close_raises = close_raises

    def __iter__(self) -> Iterator[bytes]:
        for block in self.blocks:
            if isinstance(block, Exception):
                raise block
            yield block

    def close(self) -> None:
        if self.close_raises:
            raise OddityError


def answer(make: Callable[[], Iterable[bytes]], status: str = "200 OK", headers: Any = ()) -> App:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response(status, list(headers))
        return make()

    return app


def raises(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise OddityError


def writes(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    write = start_response("200 OK", [])
    write(b"old ")
    write(b"style")
    return []


def answers_its_own_error(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    try:
        raise OddityError
    except OddityError:
        start_response("500 Sorry", [], sys.exc_info())
    return [b"sorry"]


def starts_late(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("201 Created", [])
    yield b"lazy"


def sends_file(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Length", "6")])
    body: Iterable[bytes] = environ["wsgi.file_wrapper"](BytesIO(b"abcdef"), 4)
    return body


def serve(app: App, environ: dict[str, Any], blocks: int | None = None) -> tuple[list[Any], type | None]:
    """What a server that follows PEP 3333 sees; it stops after so many blocks if its client leaves."""
    seen: list[Any] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen.append((status, headers, bool(exc_info)))
        return seen.append

    body: Any = None
    try:
        body = app(environ, start_response)
        seen.append(len(body) if hasattr(body, "__len__") else None)
        if isinstance(body, environ["wsgi.file_wrapper"]):
            seen.append(body.filelike.read())  # a server's own way
        else:
            for number, block in enumerate(body):
                seen.append(block)
                if number + 1 == blocks:
                    break
    except Exception as error:  # noqa: BLE001 - to compare it
        return seen, type(error)
    finally:
        try:
            if hasattr(body, "close"):
                body.close()
        except OddityError:
            seen.append("close raised")
    return seen, None


OK = {"method": "GET", "scheme": "http", "status": "200"}
FAILED = OK | {"status": "500", "error": f"{__name__}.OddityError"}
ANNOUNCED = [("Content-Length", "3")]
SCENARIOS: dict[str, tuple[App, dict[str, Any], int | None, dict[str, str], float | None, float | None]] = {
    # application, environment, blocks until the client leaves -> attributes, bytes of request and response
    "one block": (answer(lambda: [b"hello"]), {}, None, OK, None, 5),
    "streamed": (answer(lambda: Body(b"abc", b"", b"defg")), {}, None, OK, None, 7),
    "no body": (answer(list, "204 No Content"), {}, None, OK | {"status": "204"}, None, 0),
    "generator that starts late": (starts_late, {}, None, OK | {"status": "201"}, None, 4),
    "written the old way": (writes, {}, None, OK, None, 9),
    "upload": (answer(lambda: [b"x"]), {"REQUEST_METHOD": "PUT", "CONTENT_LENGTH": "12"}, None,
               OK | {"method": "PUT"}, 12, 1),
    "odd environment": (answer(lambda: [b"x"]), {"REQUEST_METHOD": None, "CONTENT_LENGTH": "-1",
                                                 "wsgi.url_scheme": 7, "SERVER_PORT": "x"}, None,
                        OK | {"method": "_OTHER", "scheme": "_OTHER"}, None, 1),
    "odd status": (answer(lambda: [b"x"], "oops"), {}, None, {"method": "GET", "scheme": "http"}, None, 1),
    "error status": (answer(lambda: [b"x"], "503 Later"), {}, None, OK | {"status": "503", "error": "503"}, None, 1),
    "raised": (raises, {}, None, FAILED, None, 0),
    "raised before the first block": (answer(lambda: Body(b"", OddityError())), {}, None, FAILED, None, 0),
    "raised within the body": (
        answer(lambda: Body(b"abc", OddityError())), {}, None, FAILED | {"status": "200"}, None, 3,
    ),
    "raised when closed": (
        answer(lambda: Body(b"abc", close_raises=True)), {}, None, FAILED | {"status": "200"}, None, 3,
    ),
    "answered by the application": (answers_its_own_error, {}, None, FAILED, None, 5),
    "client left": (answer(lambda: Body(b"abc", b"def")), {}, 1, OK | {"error": "client_disconnect"}, None, 3),
    "all that was announced is sent": (answer(lambda: Body(b"abc", b""), headers=ANNOUNCED), {}, 1, OK, None, 3),
    "HEAD": (answer(lambda: Body(b"abc", b"def")), {"REQUEST_METHOD": "HEAD"}, 1, OK | {"method": "HEAD"}, None, 3),
    "lengths of 5,000 digits": (
        answer(lambda: Body(b"abc", b"def"), headers=[("Content-Length", "9" * 5000)]), {"CONTENT_LENGTH": "9" * 5000},
        1, OK | {"error": "client_disconnect"}, None, 3,
    ),
    "file": (sends_file, {}, None, OK, None, 6),
}  # fmt: skip


def environment(**fields: Any) -> dict[str, Any]:
    return {"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "wsgi.file_wrapper": FileWrapper, **fields}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, recorder: Recorder) -> None:
    app, fields, blocks, attributes, request_bytes, response_bytes = SCENARIOS[name]
    without = serve(app, environment(**fields), blocks)
    measured = serve(TelemetryMiddleware(app, recorder.telemetry), environment(**fields), blocks)
    assert measured == without
    found = recorder.samples(DURATION, REQUEST_SIZE, RESPONSE_SIZE)
    assert {one.metric: one.value for one in found if one.metric != DURATION} == {
        metric: size
        for metric, size in ((REQUEST_SIZE, request_bytes), (RESPONSE_SIZE, response_bytes))
        if size is not None
    }
    assert all(one.attributes == attributes for one in found)
    assert [0 <= one.value < 5 for one in found if one.metric == DURATION] == [True]


def test_pep_3333_is_kept(recorder: Recorder) -> None:
    """wsgiref's validator on both sides of the middleware raises at each deviation."""
    app = answer(lambda: [b"hello"], headers=[("Content-Type", "text/plain")])
    checked = validator(TelemetryMiddleware(validator(app), recorder.telemetry))  # type: ignore[arg-type]
    full = environment(
        SERVER_NAME="a", SERVER_PORT="80", PATH_INFO="/", QUERY_STRING="", SCRIPT_NAME="",
    ) | {
        "wsgi.version": (1, 0), "wsgi.input": BytesIO(), "wsgi.errors": sys.stderr, "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False,
    }  # fmt: skip
    body = checked(full, lambda *_: lambda data: None)  # type: ignore[arg-type]
    assert list(body) == [b"hello"]
    body.close()  # type: ignore[attr-defined]
    assert len(recorder.samples(DURATION)) == 1


def test_a_request_lasts_until_the_server_has_taken_the_body(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("tailrace_producers.http_server.monotonic_s", lambda: now_s[0])
    middleware = TelemetryMiddleware(answer(lambda: Body(b"abc")), recorder.telemetry)
    body: Any = middleware(environment(), lambda *_: None)
    now_s[0] += 2
    assert next(body) == b"abc"
    middleware._server.observe()
    now_s[0] += 0.5
    assert next(body, None) is None
    now_s[0] += 60  # until it is closed: no more of the response
    body.close()
    middleware._server.observe()
    found = recorder.samples(DURATION, "http.server.active_requests")
    assert [one.value for one in found if one.metric == DURATION] == [2.5]
    assert [one.value for one in found if one.metric != DURATION] == [1, 1, 0]


def test_a_body_that_is_never_closed_counts_when_it_is_forgotten(recorder: Recorder) -> None:
    middleware = TelemetryMiddleware(answer(lambda: Body(b"abc")), recorder.telemetry)
    body: Any = middleware(environment(), lambda *_: None)
    assert list(body) == [b"abc"]
    del body
    assert [one.attributes for one in recorder.samples(DURATION)] == [OK]


def test_of_nested_middlewares_the_outermost_counts(recorder: Recorder) -> None:
    inner = TelemetryMiddleware(answer(lambda: [b"x"]), recorder.telemetry)
    serve(TelemetryMiddleware(inner, recorder.telemetry), environment())
    assert len(recorder.samples(DURATION)) == 1
