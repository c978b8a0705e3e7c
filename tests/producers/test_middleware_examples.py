"""The examples of docs/middleware.md, served as their page says and asked over real sockets."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tailrace_infra import broker
from websockets.sync.client import connect

from tests.infra.waiting import eventually
from tests.producers.http_recording import SHORT
from tests.producers.reading import read_topic, samples_of

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class Service(NamedTuple):
    name: str
    server: tuple[str, ...]
    order: str
    place: str
    placed: str
    """The path of a POST."""
    websocket: bool = False
    stop: signal.Signals = signal.SIGTERM


UVICORN = ("uvicorn", "--port", "0", "--log-level", "info")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:0", "--workers", "2", "--threads", "2", "--no-control-socket")
WAITRESS = ("waitress", "--listen", "127.0.0.1:0")
SERVICES = [
    Service("fastapi", (*UVICORN, "fastapi_app:app"), "/orders/{order_id}", "/orders", "/orders", websocket=True),
    Service("starlette", (*UVICORN, "starlette_app:app"), "/orders/{order_id}", "/orders/", "/orders/", websocket=True),
    Service("flask", (*GUNICORN, "flask_app:app"), "/orders/<int:order_id>", "/orders", "/orders"),
    Service(
        "flask, waitress",
        (*WAITRESS, "flask_app:app"),
        "/orders/<int:order_id>",
        "/orders",
        "/orders",
        stop=signal.SIGINT,
    ),
    Service("django", (*GUNICORN, "django_app:application"), "/orders/<int:order_id>", "/orders/", "/orders/"),
    Service(
        "django, asgi",
        (*UVICORN, "django_app:asgi_application"),
        "/orders/<int:order_id>",
        "/orders/",
        "/orders/",
        stop=signal.SIGINT,
    ),
]


@contextmanager
def serving(
    server: tuple[str, ...], stop: signal.Signals, bootstrap_servers: str, directory: Path = EXAMPLES
) -> Iterator[int]:
    """The port of a server that runs an example."""
    with subprocess.Popen(
        [sys.executable, "-m", *server],
        cwd=directory,
        env={**os.environ, "TAILRACE_KAFKA__BOOTSTRAP_SERVERS": bootstrap_servers},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            for line in process.stdout:
                said += line
                if found := re.search(r"http://[^\s]*:(\d+)", line):
                    break
            else:
                raise AssertionError(said)
            yield int(found[1])
        finally:
            process.send_signal(stop)
            process.communicate(timeout=20)


def ask(port: int, method: str, path: str, body: str | None = None) -> int:
    """The status of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()


@pytest.mark.parametrize("service", SERVICES, ids=lambda one: one.name)
def test_example(service: Service) -> None:
    with broker.embedded_broker() as bootstrap_servers:
        with serving(service.server, service.stop, bootstrap_servers) as port:
            assert [ask(port, "GET", f"/orders/{number}") for number in range(3)] == [200] * 3
            assert ask(port, "POST", service.place, '{"order": "17"}') == 200
            assert ask(port, "GET", "/report") == 200
            assert ask(port, "GET", "/fail") == 500
            assert ask(port, "GET", "/nowhere/17") == 404
            assert ask(port, "BREW", "/report") in (200, 400, 404, 405)  # as the framework likes
            if service.websocket:
                with connect(f"ws://127.0.0.1:{port}/echo/17") as websocket:
                    websocket.send("hello")
                    assert websocket.recv() == "hello"
        samples = [one for read in read_topic(bootstrap_servers) for one in samples_of(read.batch)]

    def recorded(metric: str) -> list[tuple[dict[str, str], float]]:
        return [
            ({SHORT.get(name, name): text for name, text in one.series.attributes}, one.value)
            for one in samples
            if one.series.metric == metric
        ]

    requests = sorted(
        (
            (one["method"], one.get("route"), one["status"], one.get("error"))
            for one, _ in recorded("http.server.request.duration")
            if one["method"] != "_OTHER"
        ),
        key=str,
    )
    assert requests == sorted(
        [
            *[("GET", service.order, "200", None)] * 3,
            ("POST", service.placed, "200", None),
            ("GET", "/report", "200", None),
            ("GET", "/fail", "500", "ZeroDivisionError"),
            ("GET", None, "404", None),
            *([("GET", "/echo/{room}", "101", None)] if service.websocket else []),
        ],
        key=str,
    )

    sizes = [value for one, value in recorded("http.server.response.body.size") if one.get("route") == "/report"]
    assert sizes.count(35) >= 1  # five lines of seven bytes, streamed
    assert [value for one, value in recorded("http.server.request.body.size")] == [15]
    assert all(
        value >= 0.05
        for one, value in recorded("http.server.request.duration")
        if one.get("route") == "/report" and one["method"] == "GET"
    )
    for metric in ("http.server.active_requests", "process.memory.usage"):
        found = recorded(metric)
        assert found
        assert all("process.pid" in one for one, _ in found)
    assert {one["cpu.mode"] for one, _ in recorded("process.cpu.time")} == {"user", "system"}
    assert sum(value for _, value in recorded("process.cpu.time")) > 0
    assert {one["http.connection.state"] for one, _ in recorded("http.server.open_connections")} == {"active", "idle"}
    if service.websocket:
        assert [one for one, _ in recorded("websocket.server.connection.duration")] == [
            {"route": "/echo/{room}", "scheme": "ws", "code": "1000"}
        ]


@pytest.mark.parametrize(
    "server", [(*UVICORN, "endless_app:asgi_app"), (*GUNICORN, "endless_app:wsgi_app")], ids=["uvicorn", "gunicorn"]
)
def test_a_client_that_leaves_is_told(server: tuple[str, ...]) -> None:
    def durations() -> list[dict[str, str]]:
        found = [one for read in read_topic(bootstrap_servers) for one in samples_of(read.batch)]
        return [dict(one.series.attributes) for one in found if one.series.metric == "http.server.request.duration"]

    with (
        broker.embedded_broker() as bootstrap_servers,
        serving(server, signal.SIGTERM, bootstrap_servers, Path(__file__).parent) as port,
    ):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(10)
        (attributes,) = eventually(durations)
    assert attributes["error.type"] == "client_disconnect"
    assert attributes["http.response.status_code"] == "200"
