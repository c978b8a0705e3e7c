"""docs/middleware.md: its table has what is recorded, its lines are those of the examples that are run."""

import asyncio
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from tailrace_producers.asgi import TelemetryMiddleware
from tailrace_producers.testing import capture

from tests.producers.http_recording import Recorder, recorder

__all__ = ["recorder"]  # a fixture

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "middleware.md").read_text()


APPLICATION_METRICS = """
requests.total requests.success requests.error requests.rate
requests.averageLatency requests.p95Latency requests.p99Latency
connections.active connections.idle connections.total
memory.heapUsed memory.heapTotal memory.rss
cpu.user cpu.system cpu.idle
errors.rate errors.total errors.byType
throughput.requestsPerSecond throughput.bytesPerSecond
"""
"""Every field of document 001's `ApplicationMetrics` but `memory.external`, of which the page says why."""


def test_every_field_of_application_metrics_is_answered() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| `")]
    groups = {field.partition(".")[0] for field in APPLICATION_METRICS.split()}
    named = {name for cells in rows for name in re.findall(r"`(\w+\.\w+)`", cells[5])}
    assert {name for name in named if name.partition(".")[0] in groups} == set(APPLICATION_METRICS.split())
    assert "`memory.external` is a notion of V8's" in PAGE


@pytest.mark.parametrize("name", ["FastAPI", "Starlette", "Flask", "Django"])
def test_every_line_of_code_is_in_the_example(name: str) -> None:
    (section,) = re.findall(rf"^## {name}\n(.*?)(?=^## )", PAGE, re.M | re.S)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.S)
    example = (DOCS / "examples" / f"{name.lower()}_app.py").read_text().splitlines()
    wanted = [line for line in code.splitlines() if line]
    assert [line for line in wanted if any(one.startswith(line) for one in example)] == wanted


def test_the_table_has_exactly_what_is_recorded(recorder: Recorder) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close"})
            return
        await receive()
        await send({"type": "http.response.start", "status": 500})
        await send({"type": "http.response.body"})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x"}

    async def send(message: Any) -> None: ...

    async def run() -> None:
        measured = TelemetryMiddleware(app, recorder.telemetry)
        fields = {"scheme": "http", "method": "GET", "server": ("127.0.0.1", 1), "route": type("R", (), {"path": "/x"})}
        await measured({"type": "http", **fields}, receive, send)
        await measured({"type": "websocket", **fields, "scheme": "ws"}, receive, send)

    with capture(recorder.telemetry) as captured:
        asyncio.run(run())
        tracemalloc.start()
        recorder.telemetry.collect()
        tracemalloc.stop()
    found: dict[tuple[str, str, str], set[str]] = {}
    for one in captured.samples:
        found.setdefault((one.metric, one.kind, one.unit), set()).update(one.attributes)
    table: dict[tuple[str, str, str], set[str]] = {}
    attributes = ""
    for metric, kind, unit, cell in re.findall(r"^\| `([\w.]+)`[ °]*\| (\w+) \| `(.+?)` \| (.*?) \|", PAGE, re.M):
        attributes = attributes if cell == "the same" else cell
        table[metric, kind, unit] = set(re.findall(r"`([\w.]+)`", attributes))
    raised_only = {("websocket.server.connection.duration", "distribution", "s"): {"error.type"}}
    assert {key: found[key] | raised_only.get(key, set()) for key in found} == table
