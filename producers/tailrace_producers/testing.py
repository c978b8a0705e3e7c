"""For the tests of a service: see what it recorded, without a broker.

from tailrace_producers.testing import capture

def test_an_order_is_counted():
    with capture(shop.telemetry) as captured:
        shop.place_order(payment="card")
    assert captured.values("shop.orders", payment="card") == [1]
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from tailrace_producers.buffer import Buffer
from tailrace_producers.packing import check_sample
from tailrace_producers.registry import canonical
from tailrace_producers.telemetry import Telemetry

__all__ = ["Captured", "CapturedSample", "capture"]


class CapturedSample(NamedTuple):
    """One sample, as it would have been sent."""

    metric: str
    value: float
    attributes: Mapping[str, str]
    """As text, without the resource's."""
    kind: str
    unit: str
    time_us: int


class Captured:
    """What was recorded so far, in order. Read it within the `with` block or after it."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._samples: list[CapturedSample] = []
        self._dropped: Counter[str] = Counter()

    @property
    def samples(self) -> list[CapturedSample]:
        """All that can be sent."""
        self._buffer.cut()
        return list(self._samples)

    @property
    def dropped(self) -> dict[str, int]:
        """How many samples could not be sent, by reason, such as `invalid`: what a test of a service wants empty."""
        self._buffer.cut()
        return dict(self._dropped)

    def values(self, metric: str, attributes: Mapping[str, object] | None = None, **more: object) -> list[float]:
        """The values of a metric's samples that have these attributes, and maybe others.

        Raises:
            ValueError: attributes that no series can have.
        """
        wanted = dict(canonical({**(attributes or {}), **more})).items()
        return [one.value for one in self.samples if one.metric == metric and wanted <= one.attributes.items()]

    def _add(self, rows: list[Any]) -> None:
        for value, time_ns, ref in zip(rows[0::3], rows[1::3], rows[2::3], strict=True):
            if drop := check_sample(value, time_ns, ref):
                self._dropped[drop.value] += 1
            else:
                metric, kind, unit, attributes = ref.series
                self._samples.append(
                    CapturedSample(metric, float(value), dict(attributes), kind, unit, int(time_ns) // 1000)
                )


@contextmanager
def capture(telemetry: Telemetry) -> Iterator[Captured]:
    """Keeps what is recorded, from any thread, within the block, instead of sending it. A `Telemetry` of which all is
    captured never connects to a broker. In `telemetry.stats` captured samples count as delivered.
    """
    buffer = telemetry._buffer
    captured = Captured(buffer)
    before = buffer.divert(captured._add)
    try:
        yield captured
    finally:
        buffer.divert(before)
