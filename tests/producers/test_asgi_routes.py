"""Which route the ASGI middleware tells, with the routing of the real frameworks: the template, mounts and all."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Mount, Route
from starlette.staticfiles import StaticFiles
from tailrace_producers.asgi import TelemetryMiddleware

from tests.producers.http_recording import Recorder, recorder

__all__ = ["recorder"]  # a fixture


async def endpoint(request: Request) -> Response:
    return PlainTextResponse("hello")


async def other(request: Request) -> Response:
    return PlainTextResponse("other")


class ByClass(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("class")


async def passes(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    return response


def starlette_app() -> Any:
    tenant = Starlette(routes=[Route("/items/{item}", endpoint), Route("/", other)])
    return Starlette(
        routes=[
            Route("/", other),
            Route("/users/{user:int}", endpoint),
            Route("/people/{person}", endpoint),  # the same endpoint
            Route("/class/{name}", ByClass),
            Mount("/tenants/{tenant}", tenant),
            Mount("/old/{tenant}", tenant),  # the same application
            Mount("/a", routes=[Mount("/b/{c}", routes=[Route("/d/{e}", other)])]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent)),
            Host("api.example.org", Starlette(routes=[Route("/v1/{thing}", ByClass)])),
        ]
    )


def fastapi_app() -> Any:
    app = FastAPI()
    leaf = APIRouter(prefix="/leaf")
    middle = APIRouter(prefix="/middle/{m}")

    @leaf.get("/{leaf_id}")
    async def in_leaf(leaf_id: str) -> str:
        return leaf_id

    @app.get("/users/{user}")
    async def user(user: int) -> int:
        return user

    @app.get("/users/{user}/posts/{post}")
    async def post(user: int, post: int) -> int:
        return post

    middle.include_router(leaf)
    app.include_router(middle, prefix="/one")
    app.include_router(middle, prefix="/two")
    sub = FastAPI()
    sub.include_router(leaf, prefix="/inner")
    sub.get("/direct/{x}")(in_leaf_direct)
    app.mount("/sub/{name}", sub)
    app.mount("/files", StaticFiles(directory=Path(__file__).parent))
    app.add_middleware(BaseHTTPMiddleware, dispatch=passes)
    return app


async def in_leaf_direct(x: str) -> str:
    return x


STARLETTE = {
    "/": ("/", 200),
    "/users/17": ("/users/{user}", 200),
    "/users/x": (None, 404),
    "/people/17": ("/people/{person}", 200),
    "/class/17": ("/class/{name}", 200),
    "/tenants/acme/items/17": ("/tenants/{tenant}/items/{item}", 200),
    "/tenants/acme/": ("/tenants/{tenant}/", 200),
    "/old/acme/items/17": ("/old/{tenant}/items/{item}", 200),
    "/a/b/1/d/2": ("/a/b/{c}/d/{e}", 200),
    "/static/test_asgi_routes.py": ("/static/{path}", 200),
    "/static/nothing/17": ("/static/{path}", 404),
    "//api.example.org/v1/17": ("/v1/{thing}", 200),
    "/nothing/17": (None, 404),
}
FASTAPI = {
    "/users/17": ("/users/{user}", 200),
    "/users/x": ("/users/{user}", 422),
    "/users/17/posts/4": ("/users/{user}/posts/{post}", 200),
    "/one/middle/1/leaf/17": ("/one/middle/{m}/leaf/{leaf_id}", 200),
    "/two/middle/1/leaf/17": ("/two/middle/{m}/leaf/{leaf_id}", 200),
    "/sub/acme/inner/leaf/17": ("/sub/{name}/inner/leaf/{leaf_id}", 200),
    "/sub/acme/direct/17": ("/sub/{name}/direct/{x}", 200),
    "/files/test_asgi_routes.py": ("/files/{path}", 200),
    "/docs": ("/docs", 200),
    "/nothing/17": (None, 404),
}


async def get(app: Any, path: str, method: str = "GET") -> None:
    host, path = path[2:].split("/", 1) if path.startswith("//") else ("example.org", path[1:])
    scope = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": f"/{path}",
        "raw_path": f"/{path}".encode(), "query_string": b"", "root_path": "", "server": ("127.0.0.1", 80),
        "headers": [(b"host", host.encode())],
    }  # fmt: skip

    incoming = iter(({"type": "http.request"}, {"type": "http.disconnect"}))

    async def receive() -> dict[str, Any]:
        return next(incoming)

    async def send(message: Any) -> None: ...

    await app(scope, receive, send)


@pytest.mark.parametrize("inside", [False, True], ids=["around the application", "added to it"])
@pytest.mark.parametrize(("make", "wanted"), [(starlette_app, STARLETTE), (fastapi_app, FASTAPI)])
def test_routes_are_templates(make: Any, wanted: dict[str, Any], inside: bool, recorder: Recorder) -> None:
    app = make()
    if inside:
        app.add_middleware(TelemetryMiddleware, telemetry=recorder.telemetry)
    else:
        app = TelemetryMiddleware(app, recorder.telemetry)

    async def run() -> None:
        for _ in range(2):  # found out, and remembered
            for path in wanted:
                await get(app, path)

    asyncio.run(run())
    found = recorder.samples("http.server.request.duration")
    told = [(one.attributes.get("route"), int(one.attributes["status"])) for one in found]
    assert told == [*wanted.values(), *wanted.values()]


def test_a_wrong_method_has_its_route(recorder: Recorder) -> None:
    asyncio.run(get(TelemetryMiddleware(starlette_app(), recorder.telemetry), "/users/17", "DELETE"))
    (found,) = recorder.samples("http.server.request.duration")
    assert (found.attributes["route"], found.attributes["status"]) == ("/users/{user}", "405")


def test_routes_may_be_added_later(recorder: Recorder) -> None:
    app = starlette_app()
    measured = TelemetryMiddleware(app, recorder.telemetry)

    async def run() -> None:
        await get(measured, "/users/17")
        app.router.routes.append(Route("/late/{x}", ByClass.__class__("Late", (ByClass,), {})))
        await get(measured, "/late/17")

    asyncio.run(run())
    found = recorder.samples("http.server.request.duration")
    assert [one.attributes["route"] for one in found] == ["/users/{user}", "/late/{x}"]
