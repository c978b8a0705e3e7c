"""The ASGI middleware, by the messages that servers and applications exchange."""

import asyncio
from collections.abc import Awaitable, Callable
from threading import Event, Thread
from typing import Any

import pytest
from tailrace_producers import asgi
from tailrace_producers.asgi import TelemetryMiddleware
from tailrace_producers.http_server import KEY, MAX_COMBINATIONS

from tests.producers.http_recording import Recorder, recorder

__all__ = ["recorder"]  # a fixture

DURATION, REQUEST_SIZE, RESPONSE_SIZE = (
    "http.server.request.duration",
    "http.server.request.body.size",
    "http.server.response.body.size",
)
WEBSOCKET = "websocket.server.connection.duration"

Message = dict[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]

START = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Length", b"70000")]}
BODY = {"type": "http.response.body", "body": b"hello"}
MORE = {"type": "http.response.body", "body": b"123", "more_body": True}
DISCONNECT = {"type": "http.disconnect"}
CONNECT = {"type": "websocket.connect"}
ACCEPT = {"type": "websocket.accept"}


def status(code: int) -> Message:
    return {"type": "http.response.start", "status": code, "headers": []}


class OddityError(Exception):
    """What an application may raise."""


def script(*steps: Any) -> App:
    """An application that sends messages, awaits some (by number), and raises."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for step in steps:
            if isinstance(step, dict):
                await send(step)
            elif isinstance(step, int):
                for _ in range(step):
                    await receive()
            else:
                raise step

    return app


async def drive(app: App, scope: Message, incoming: list[Message]) -> tuple[list[Message], BaseException | None]:
    """What the server saw of the application: its messages, and what it raised."""
    sent: list[Message] = []
    queue = iter(incoming)

    async def receive() -> Message:
        return next(queue)

    async def send(message: Message) -> None:
        if message["type"] == "refused":
            raise OSError("the client is gone")
        sent.append(message)

    try:
        await app(scope, receive, send)
    except BaseException as error:  # noqa: BLE001 - to compare it
        return sent, error
    return sent, None


def http(**fields: Any) -> Message:
    return {"type": "http", "method": "GET", "scheme": "http", "path": "/u/17", "headers": [], **fields}


OK = {"method": "GET", "scheme": "http", "status": "200"}
SCENARIOS: dict[str, tuple[App, Message, list[Message], dict[str, str], float | None, float | None]] = {
    # application, scope, what the client sends -> attributes, bytes of request and response (None: not recorded)
    "plain": (script(START, BODY), http(), [], OK, None, 5),
    "streamed": (script(START, MORE, MORE, BODY), http(), [], OK, None, 11),
    "no body": (script(status(204), {"type": "http.response.body"}), http(), [], OK | {"status": "204"}, None, 0),
    "uploaded in parts": (
        script(2, START, BODY), http(method="POST"),
        [{"type": "http.request", "body": b"12", "more_body": True}, {"type": "http.request", "body": b"345"}],
        OK | {"method": "POST"}, 5, 5,
    ),
    "trailers": (
        script(START | {"trailers": True}, BODY, {"type": "http.response.trailers", "headers": []}, OddityError()),
        http(), [], OK, None, 5,
    ),
    "file sent by the server": (script(START, {"type": "http.response.pathsend", "path": "x"}), http(), [], OK, None,
                                70000),
    "file of unknown size": (script(status(200), {"type": "http.response.zerocopysend", "file": 3}), http(), [], OK,
                             None, None),
    "not found": (script(status(404), BODY), http(), [], OK | {"status": "404"}, None, 5),
    "made-up method and scheme": (
        script(START, BODY), http(method="H4CK", scheme="gopher"), [],
        OK | {"method": "_OTHER", "scheme": "_OTHER"}, None, 5,
    ),
    "known method in lower case": (script(START, BODY), http(method="get"), [], OK | {"method": "_OTHER"}, None, 5),
    "raised before the response": (
        script(OddityError()), http(), [],
        OK | {"status": "500", "error": f"{__name__}.OddityError"}, None, 0,
    ),
    "raised within the response": (
        script(START, MORE, ValueError()), http(), [], OK | {"error": "ValueError"}, None, 3,
    ),
    "raised in the background": (script(START, BODY, OddityError()), http(), [], OK, None, 5),
    "answered by 500": (script(status(503), BODY), http(), [], OK | {"status": "503", "error": "503"}, None, 5),
    "answered by 500, then raised": (
        script(status(500), BODY, OddityError()), http(), [],
        OK | {"status": "500", "error": f"{__name__}.OddityError"}, None, 5,
    ),
    "cancelled": (
        script(START, MORE, asyncio.CancelledError()), http(), [],
        OK | {"error": "asyncio.exceptions.CancelledError"}, None, 3,
    ),
    "the client left before the response": (
        script(1), http(), [DISCONNECT], {"method": "GET", "scheme": "http", "error": "client_disconnect"}, None, 0,
    ),
    "the client left within the response": (
        script(START, MORE, 1), http(), [DISCONNECT], OK | {"error": "client_disconnect"}, None, 3,
    ),
    "the client left after the response": (script(START, BODY, 1), http(), [DISCONNECT], OK, None, 5),
    "the server could not send": (
        script(START, MORE, {"type": "refused"}), http(), [], OK | {"error": "OSError"}, None, 3,
    ),
    "no response": (
        script(), http(), [], OK | {"status": "500", "error": "incomplete_response"}, None, 0,
    ),
    "unfinished response": (script(START, MORE), http(), [], OK | {"error": "incomplete_response"}, None, 3),
    "hostile fields": (
        script({"type": "http.response.start", "status": "200"}, {"type": "http.response.body", "body": None}),
        http(method=["GET"], scheme=None, server="x"), [],
        {"method": "_OTHER", "scheme": "_OTHER"}, None, 0,
    ),
    "a route object of some other framework": (
        script(START, BODY), http(route=type("Route", (), {"path": "/u/{id}"})()), [], OK | {"route": "/u/{id}"},
        None, 5,
    ),
    "a route that is none": (script(START, BODY), http(route=object(), endpoint=3, router=4), [], OK, None, 5),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_http(name: str, recorder: Recorder) -> None:
    app, scope, incoming, attributes, request_bytes, response_bytes = SCENARIOS[name]
    without = asyncio.run(drive(app, dict(scope), incoming))
    measured = asyncio.run(drive(TelemetryMiddleware(app, recorder.telemetry), dict(scope), incoming))
    assert measured[0] == without[0]
    assert type(measured[1]) is type(without[1])
    found = recorder.samples(DURATION, REQUEST_SIZE, RESPONSE_SIZE)
    assert {one.metric: one.value for one in found if one.metric != DURATION} == {
        metric: size
        for metric, size in ((REQUEST_SIZE, request_bytes), (RESPONSE_SIZE, response_bytes))
        if size is not None
    }
    assert all(one.attributes == attributes for one in found)
    assert [0 <= one.value < 5 for one in found if one.metric == DURATION] == [True]


def websocket(**fields: Any) -> Message:
    return {"type": "websocket", "scheme": "ws", "path": "/live/17", "headers": [], **fields}


UPGRADE = {"method": "GET", "scheme": "ws", "status": "101"}
REFUSED = UPGRADE | {"status": "403"}
WEBSOCKETS: dict[str, tuple[App, list[Message], dict[str, str], dict[str, str] | None]] = {
    # application, what the client sends -> attributes of the handshake and of the connection
    "closed by the client": (
        script(1, ACCEPT, 2), [CONNECT, {"type": "websocket.receive", "text": "x"},
                               {"type": "websocket.disconnect", "code": 1001}],
        UPGRADE, {"scheme": "ws", "code": "1001"},
    ),
    "closed with a code that the client made up": (
        script(1, ACCEPT, 1), [CONNECT, {"type": "websocket.disconnect", "code": 3417}],
        UPGRADE, {"scheme": "ws", "code": "_OTHER"},
    ),
    "closed without a code": (
        script(1, ACCEPT, 1), [CONNECT, {"type": "websocket.disconnect"}], UPGRADE, {"scheme": "ws", "code": "1005"},
    ),
    "closed by the application": (
        script(1, ACCEPT, {"type": "websocket.send", "text": "x"}, {"type": "websocket.close", "code": 4000}, 1),
        [CONNECT, {"type": "websocket.disconnect", "code": 1005}], UPGRADE, {"scheme": "ws", "code": "4000"},
    ),
    "raised when open": (
        script(1, ACCEPT, OddityError()), [CONNECT], UPGRADE, {"scheme": "ws", "error": f"{__name__}.OddityError"},
    ),
    "refused": (script(1, {"type": "websocket.close"}), [CONNECT], REFUSED, None),
    "refused by a response": (
        script(1, {"type": "websocket.http.response.start", "status": 401, "headers": []},
               {"type": "websocket.http.response.body", "body": b"no"}),
        [CONNECT], UPGRADE | {"status": "401"}, None,
    ),
    "raised before": (
        script(1, OddityError()), [CONNECT], UPGRADE | {"status": "500", "error": f"{__name__}.OddityError"}, None,
    ),
    "no answer": (script(1), [CONNECT], UPGRADE | {"status": "500", "error": "incomplete_response"}, None),
    "the client left before": (
        script(2), [CONNECT, {"type": "websocket.disconnect", "code": 1006}],
        {"method": "GET", "scheme": "ws", "error": "client_disconnect"}, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WEBSOCKETS)
def test_websockets(name: str, recorder: Recorder) -> None:
    app, incoming, handshake, connection = WEBSOCKETS[name]
    without = asyncio.run(drive(app, websocket(), incoming))
    measured = asyncio.run(drive(TelemetryMiddleware(app, recorder.telemetry), websocket(), incoming))
    assert measured[0] == without[0]
    assert type(measured[1]) is type(without[1])
    found = recorder.samples(DURATION, WEBSOCKET, REQUEST_SIZE, RESPONSE_SIZE)
    assert [(one.metric, one.attributes) for one in found] == [
        (DURATION, handshake),
        *([(WEBSOCKET, connection)] if connection is not None else []),
    ]


def test_lifespan_and_other_scopes_pass_through(recorder: Recorder) -> None:
    complete = [{"type": "lifespan.startup.complete"}, {"type": "lifespan.shutdown.complete"}]
    incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    for scope in ({"type": "lifespan"}, {"type": "of the future"}):
        app = script(1, complete[0], 1, complete[1], OddityError())
        given = dict(scope)
        sent, error = asyncio.run(drive(TelemetryMiddleware(app, recorder.telemetry), given, incoming))
        assert (sent, type(error), given) == (complete, OddityError, scope)


def test_an_observation_that_hangs_does_not_hold_up_the_end(recorder: Recorder, monkeypatch: Any) -> None:
    monkeypatch.setattr(asgi, "FLUSH_S", 0.1)
    go_on = Event()
    recorder.telemetry.gauge("pool").observe(lambda: float(go_on.wait(30)))
    app = script(1, {"type": "lifespan.shutdown.complete"})
    measured = TelemetryMiddleware(app, recorder.telemetry)
    try:
        thread = Thread(
            target=lambda: asyncio.run(drive(measured, {"type": "lifespan"}, [{"type": "lifespan.shutdown"}])),
            daemon=True,
        )
        thread.start()
        thread.join(15)
        assert not thread.is_alive()
    finally:
        go_on.set()


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr("tailrace_producers.http_server.monotonic_s", one)
    return one


def test_a_request_lasts_to_the_end_of_its_body_and_is_active_so_long(recorder: Recorder, clock: Clock) -> None:
    server: Any = None
    active: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        clock.now_s += 0.25
        await send(START)
        clock.now_s += 0.5
        await send(MORE)
        clock.now_s += 0.25
        server.observe()
        await send(BODY)
        clock.now_s += 60  # a background task: the client has its answer
        server.observe()

    middleware = TelemetryMiddleware(app, recorder.telemetry)
    server = middleware._server
    asyncio.run(drive(middleware, http(), []))
    found = recorder.samples(DURATION, "http.server.active_requests")
    assert [one.value for one in found if one.metric == DURATION] == [1.0]
    active = [int(one.value) for one in found if one.metric != DURATION]
    assert active == [1, 1, 0]  # of the second look its peak and the last
    assert {one.attributes["method"] for one in found} == {"GET"}
    assert all("process.pid" in one.attributes for one in found if one.metric != DURATION)


def test_peaks_between_two_looks_are_seen(recorder: Recorder) -> None:
    held = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await held.wait()
        await send(START)
        await send(BODY)

    middleware = TelemetryMiddleware(app, recorder.telemetry)

    async def run() -> None:
        calls = [asyncio.create_task(drive(middleware, http(), [])) for _ in range(7)]
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(*calls)

    asyncio.run(run())
    middleware._server.observe()
    middleware._server.observe()
    assert [one.value for one in recorder.samples("http.server.active_requests")] == [7, 0, 0]


def test_of_nested_middlewares_the_outermost_counts(recorder: Recorder) -> None:
    inner = TelemetryMiddleware(script(START, BODY), recorder.telemetry)
    outer = TelemetryMiddleware(inner, recorder.telemetry)
    asyncio.run(drive(outer, http(), []))
    assert len(recorder.samples(DURATION)) == 1


def test_an_application_may_name_its_route(recorder: Recorder) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[KEY].route = "/mine/{id}"
        await script(START, BODY)(scope, receive, send)

    asyncio.run(drive(TelemetryMiddleware(app, recorder.telemetry), http(), []))
    assert [one.attributes["route"] for one in recorder.samples(DURATION)] == ["/mine/{id}"]


def test_combinations_are_bounded(recorder: Recorder) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope[KEY].route = scope["path"]  # what nobody should do
        await script(START, BODY)(scope, receive, send)

    middleware = TelemetryMiddleware(app, recorder.telemetry)

    async def run() -> None:
        for number in range(MAX_COMBINATIONS + 500):
            await drive(middleware, http(path=f"/{number}"), [])

    asyncio.run(run())
    routes = [one.attributes["route"] for one in recorder.samples(DURATION)]
    assert len(routes) == MAX_COMBINATIONS + 500
    assert len(set(routes)) == MAX_COMBINATIONS + 1
    assert routes.count("_OTHER") == 500
