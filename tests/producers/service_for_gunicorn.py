"""A WSGI service as gunicorn's master loads it, before it forks its workers (`--preload`)."""

import os
from collections.abc import Callable, Iterable
from typing import Any

from tailrace_producers import Telemetry

telemetry = Telemetry("shop", bootstrap_servers=os.environ["BROKER"])
requests = telemetry.counter("http.server.requests", "{request}")
if os.environ.get("RECORD_IN_MASTER"):
    telemetry.counter("master.starts").add()
    telemetry.flush(10)


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Says who served."""
    requests.add(1, {"process.pid": os.getpid()})
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
