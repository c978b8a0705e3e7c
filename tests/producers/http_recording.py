"""What a middleware recorded."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from tailrace_producers import Telemetry
from tailrace_producers.testing import Captured, capture

__all__ = ["SHORT", "Recorded", "Recorder", "recorder"]

SHORT = {
    "http.request.method": "method",
    "http.route": "route",
    "http.response.status_code": "status",
    "url.scheme": "scheme",
    "error.type": "error",
    "websocket.close.code": "code",
}


class Recorded(NamedTuple):
    """One sample; attributes by short names."""

    metric: str
    value: float
    attributes: dict[str, str]


class Recorder:
    """A telemetry, and what has been recorded with it."""

    def __init__(self, telemetry: Telemetry, captured: Captured) -> None:
        self.telemetry = telemetry
        self._captured = captured

    def samples(self, *metrics: str) -> list[Recorded]:
        """All so far of these metrics, in order."""
        assert not self._captured.dropped
        return [
            Recorded(one.metric, one.value, {SHORT.get(name, name): text for name, text in one.attributes.items()})
            for one in self._captured.samples
            if one.metric in metrics
        ]


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    telemetry = Telemetry("shop", bootstrap_servers="127.0.0.1:1")
    with capture(telemetry) as captured:
        yield Recorder(telemetry, captured)
        telemetry.close(0)
