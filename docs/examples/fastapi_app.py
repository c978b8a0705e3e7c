"""A FastAPI service that is measured: `uvicorn fastapi_app:app`. See ../middleware.md."""

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.responses import StreamingResponse
from tailrace_producers import Telemetry
from tailrace_producers.asgi import TelemetryMiddleware

telemetry = Telemetry("shop", bootstrap_servers=os.environ.get("TAILRACE_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"))

app = FastAPI()
app.add_middleware(TelemetryMiddleware, telemetry=telemetry)

router = APIRouter(prefix="/orders")


@router.get("/{order_id}")
async def order(order_id: int) -> dict[str, int]:
    return {"order": order_id}


@router.post("")
async def place(order: dict[str, str]) -> dict[str, str]:
    await asyncio.sleep(0.02)
    return order


app.include_router(router)


@app.get("/report")
async def report() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        for number in range(5):
            yield f"line {number}\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(lines(), media_type="text/plain")


@app.get("/fail")
async def fail() -> None:
    raise ZeroDivisionError


@app.websocket("/echo/{room}")
async def echo(websocket: WebSocket, room: str) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()
