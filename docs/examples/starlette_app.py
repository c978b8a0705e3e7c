"""A Starlette service that is measured: `uvicorn starlette_app:app`. See ../middleware.md."""

import asyncio
import os
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket
from tailrace_producers import Telemetry
from tailrace_producers.asgi import TelemetryMiddleware

telemetry = Telemetry("shop", bootstrap_servers=os.environ.get("TAILRACE_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"))


async def order(request: Request) -> Response:
    return JSONResponse({"order": request.path_params["order_id"]})


async def place(request: Request) -> Response:
    await asyncio.sleep(0.02)
    return JSONResponse(await request.json())


async def report(request: Request) -> Response:
    async def lines() -> AsyncIterator[str]:
        for number in range(5):
            yield f"line {number}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(lines(), media_type="text/plain")


async def fail(request: Request) -> Response:
    raise ZeroDivisionError


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


measured = Middleware(TelemetryMiddleware, telemetry=telemetry)
app = Starlette(
    middleware=[measured],
    routes=[
        Mount(
            "/orders",
            routes=[
                Route("/{order_id:int}", order),
                Route("/", place, methods=["POST"]),
            ],
        ),
        Route("/report", report),
        Route("/fail", fail),
        WebSocketRoute("/echo/{room}", echo),
    ],
)
