"""A Django service in one file that is measured: `gunicorn django_app:application`, or
`uvicorn django_app:asgi_application`. See ../middleware.md.
"""

import json
import os
import time
from collections.abc import Iterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponseBase, JsonResponse, StreamingHttpResponse
from django.urls import include, path
from tailrace_producers import Telemetry, asgi, wsgi

MIDDLEWARE = ["tailrace_producers.django.route_middleware"]
settings.configure(
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.urandom(32).hex(),
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    MIDDLEWARE=MIDDLEWARE,
)

telemetry = Telemetry("shop", bootstrap_servers=os.environ.get("TAILRACE_KAFKA__BOOTSTRAP_SERVERS", "localhost:9092"))


def order(request: HttpRequest, order_id: int) -> HttpResponseBase:
    return JsonResponse({"order": order_id})


def place(request: HttpRequest) -> HttpResponseBase:
    time.sleep(0.02)
    return JsonResponse(json.loads(request.body))


def report(request: HttpRequest) -> HttpResponseBase:
    def lines() -> Iterator[str]:
        for number in range(5):
            yield f"line {number}\n"
            time.sleep(0.01)

    return StreamingHttpResponse(lines(), content_type="text/plain")


def fail(request: HttpRequest) -> HttpResponseBase:
    raise ZeroDivisionError


urlpatterns = [
    path("orders/", include([path("", place), path("<int:order_id>", order)])),
    path("report", report),
    path("fail", fail),
]

application = wsgi.TelemetryMiddleware(get_wsgi_application(), telemetry)
asgi_application = asgi.TelemetryMiddleware(get_asgi_application(), telemetry)
