"""CPU time of a request with the middleware and without, in one thread and, with what its sender does, in all.

Requests go straight into the applications, so that no server's work hides the difference: a bare application (an ASGI
or WSGI callable that answers 5 bytes), FastAPI and Flask. Rounds with and without alternate, and medians of
rounds are told, for other work on the machine comes and goes. Samples go to an embedded broker in a process of its own.
"""

import argparse
import asyncio
import gc
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI
from flask import Flask
from rich.progress import track
from tailrace_infra.child import start_child
from tailrace_producers import Telemetry, asgi, wsgi

Round = Callable[[int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=2_000, help="in each round (default: 2,000)")
    parser.add_argument("--rounds", type=int, default=31, help="with and without each (default: 31)")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    child = start_child("tailrace_infra.broker")
    try:
        return [
            _measure(name, plain, measured, telemetry, options)
            for name, plain, measured, telemetry in _pairs(child.ready["bootstrap_servers"])
        ]
    finally:
        child.stop()


def _pairs(bootstrap_servers: str) -> Iterable[tuple[str, Round, Round, Telemetry]]:
    for name, app, middleware, drive in (
        ("ASGI, bare", _bare_asgi, asgi.TelemetryMiddleware, _drive_asgi),
        ("FastAPI", _fastapi(), asgi.TelemetryMiddleware, _drive_asgi),
        ("WSGI, bare", _bare_wsgi, wsgi.TelemetryMiddleware, _drive_wsgi),
        ("Flask", _flask(), wsgi.TelemetryMiddleware, _drive_wsgi),
    ):
        with Telemetry("benchmark", bootstrap_servers=bootstrap_servers) as telemetry:
            yield name, drive(app), drive(middleware(app, telemetry)), telemetry  # type: ignore[operator, arg-type]


def _measure(
    name: str, plain: Round, measured: Round, telemetry: Telemetry, options: argparse.Namespace
) -> dict[str, Any]:
    requests = options.requests
    plain(requests)
    measured(requests)
    telemetry.flush()
    in_thread: dict[Round, list[float]] = {plain: [], measured: []}
    in_all: dict[Round, list[float]] = {plain: [], measured: []}
    gc.collect()
    for _ in track(range(options.rounds), description=name, transient=True):
        for one in (plain, measured):
            thread_s, process_s = time.thread_time(), time.process_time()
            one(requests)
            in_thread[one].append((time.thread_time() - thread_s) / requests * 1e6)
            telemetry.flush()  # the sender's work belongs to the round
            in_all[one].append((time.process_time() - process_s) / requests * 1e6)
    without, with_it = (statistics.median(in_thread[one]) for one in (plain, measured))
    if telemetry.stats.dropped:
        raise RuntimeError(f"samples were dropped: {telemetry.stats}")
    return {
        "benchmark": "middleware", "system": name, "requests": requests * options.rounds,
        "us_without": without, "us_with": with_it, "us_added": with_it - without,
        "us_added_all_threads": statistics.median(in_all[measured]) - statistics.median(in_all[plain]),
    }  # fmt: skip


async def _bare_asgi(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def _bare_wsgi(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]


def _fastapi() -> FastAPI:
    app = FastAPI()

    @app.get("/orders/{order_id}")
    async def order(order_id: int) -> dict[str, int]:
        return {"order": order_id}

    return app


def _flask() -> Callable[..., Any]:
    app = Flask("benchmark")

    @app.get("/orders/<int:order_id>")
    def order(order_id: int) -> dict[str, int]:
        return {"order": order_id}

    return app.wsgi_app


def _drive_asgi(app: Any) -> Round:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None: ...

    async def requests(count: int) -> None:
        for number in range(count):
            path = f"/orders/{number}"
            await app(
                {
                    "type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
                    "raw_path": path.encode(), "query_string": b"", "root_path": "", "server": ("127.0.0.1", 80),
                    "client": ("127.0.0.1", 5000), "headers": [(b"host", b"localhost")],
                },
                receive,
                send,
            )  # fmt: skip

    return lambda count: asyncio.run(requests(count))


def _drive_wsgi(app: Any) -> Round:
    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        return None

    def requests(count: int) -> None:
        for number in range(count):
            body = app(
                {
                    "REQUEST_METHOD": "GET", "PATH_INFO": f"/orders/{number}", "QUERY_STRING": "", "SCRIPT_NAME": "",
                    "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
                    "wsgi.url_scheme": "http", "wsgi.version": (1, 0), "HTTP_HOST": "localhost",
                },
                start_response,
            )  # fmt: skip
            for _ in body:
                pass
            if hasattr(body, "close"):
                body.close()

    return requests
