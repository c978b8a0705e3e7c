"""Two services whose answers have no end, for servers that the tests start."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from tailrace_producers import Telemetry, asgi, wsgi

telemetry = Telemetry("endless", bootstrap_servers=os.environ["TAILRACE_KAFKA__BOOTSTRAP_SERVERS"])


async def endless(request: Request) -> StreamingResponse:
    async def blocks() -> AsyncIterator[bytes]:
        while True:
            yield b"block"
            await asyncio.sleep(0.01)

    return StreamingResponse(blocks())


def application(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    while True:
        yield b"block"
        time.sleep(0.01)


asgi_app = asgi.TelemetryMiddleware(Starlette(routes=[Route("/{any}", endless)]), telemetry)
wsgi_app = wsgi.TelemetryMiddleware(application, telemetry)
