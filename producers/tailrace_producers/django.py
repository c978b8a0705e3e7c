"""`route_middleware` for Django: tells `TelemetryMiddleware` (ASGI or WSGI) the matched route and a view's exception.

    MIDDLEWARE = ["tailrace_producers.django.route_middleware", ...]

Django keeps both in its own request, and answers exceptions itself, so neither is seen from outside. This module
does not import Django.
"""

from asyncio import iscoroutinefunction
from collections.abc import Callable
from typing import Any

from tailrace_producers.http_server import KEY, Request, error_type

__all__ = ["route_middleware"]


def route_middleware(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A middleware as https://docs.djangoproject.com/en/stable/topics/http/middleware/ has them; changes nothing."""
    middleware: Any
    if iscoroutinefunction(get_response):

        async def asynchronous(request: Any) -> Any:
            response = await get_response(request)
            _tell_route(request)
            return response

        middleware = asynchronous
    else:

        def synchronous(request: Any) -> Any:
            response = get_response(request)
            _tell_route(request)
            return response

        middleware = synchronous
    middleware.process_exception = _tell_exception
    return middleware  # type: ignore[no-any-return]  # either of the two above


route_middleware.sync_capable = True  # type: ignore[attr-defined]  # how Django asks a function
route_middleware.async_capable = True  # type: ignore[attr-defined]


def _tell_route(request: Any) -> None:
    measured = _measured(request)
    route = getattr(getattr(request, "resolver_match", None), "route", None)
    if measured is not None and isinstance(route, str):
        measured.route = route if route.startswith(("/", "^")) else f"/{route}"  # "^": a regular expression


def _tell_exception(request: Any, error: BaseException) -> None:
    measured = _measured(request)
    if measured is not None:
        measured.raised = error_type(error)


def _measured(request: Any) -> Request | None:
    for holder in ("scope", "environ"):  # of ASGIRequest and WSGIRequest
        measured = getattr(request, holder, {}).get(KEY)
        if isinstance(measured, Request):
            return measured
    return None
