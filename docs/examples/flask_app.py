"""A Flask service that is measured: `gunicorn flask_app:app`. See ../middleware.md."""

import os
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, got_request_exception, request
from tailrace_producers import Telemetry
from tailrace_producers.http_server import KEY, error_type
from tailrace_producers.wsgi import TelemetryMiddleware

telemetry = Telemetry("shop", bootstrap_servers=os.environ.get("TAILRACE_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"))

app = Flask(__name__)
app.wsgi_app = TelemetryMiddleware(app.wsgi_app, telemetry)  # type: ignore[method-assign]  # as Flask's docs have it


@got_request_exception.connect_via(app)
def tell_exception(sender: Flask, exception: BaseException, **more: Any) -> None:
    """Flask answers exceptions itself; without this their `error.type` is "500"."""
    request.environ[KEY].raised = error_type(exception)


@app.get("/orders/<int:order_id>")
def order(order_id: int) -> dict[str, int]:
    return {"order": order_id}


@app.post("/orders")
def place() -> Any:
    time.sleep(0.02)
    return request.get_json()


@app.get("/report")
def report() -> Response:
    def lines() -> Iterator[str]:
        for number in range(5):
            yield f"line {number}\n"
            time.sleep(0.01)

    return Response(lines(), mimetype="text/plain")


@app.get("/fail")
def fail() -> str:
    raise ZeroDivisionError
