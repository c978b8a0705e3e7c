"""Who the samples are from: the service and its attributes, from the host's code and OpenTelemetry's variables."""

import logging
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

__all__ = ["from_environment"]

SERVICE: Final = "service.name"
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_log = logging.getLogger("tailrace.producer")


def from_environment(environment: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The service's name, or "", and the other attributes that the environment gives.

    `OTEL_RESOURCE_ATTRIBUTES` is `key=value,key=value`, percent-encoded; if any of it cannot be read, all of it is left
    out and that is logged. `OTEL_SERVICE_NAME` wins over its `service.name`. An empty variable is as one unset.

    Source: OpenTelemetry specification, "Resource SDK" and "Environment Variable Specification"; W3C Baggage, whose
    format `OTEL_RESOURCE_ATTRIBUTES` has, but for its properties after a semicolon.
    """
    attributes: dict[str, str] = {}
    try:
        for entry in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
            if entry.strip():
                key, equals, value = entry.partition("=")
                if not equals or not key.strip():
                    raise ValueError(f"{entry.strip()!r} is not key=value")
                attributes[_decoded(key.strip())] = _decoded(value.strip())
    except ValueError as error:
        attributes = {}
        _log.warning("OTEL_RESOURCE_ATTRIBUTES is left out: %s", error)
    service = attributes.pop(SERVICE, "")
    return environment.get("OTEL_SERVICE_NAME", "").strip() or service, attributes


def _decoded(text: str) -> str:
    if _BAD_PERCENT.search(text):
        raise ValueError(f"{text!r} has a % that is not followed by two hexadecimal digits")
    return unquote(text, errors="strict")
