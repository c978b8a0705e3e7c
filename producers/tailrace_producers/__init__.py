"""Record samples inside a service: `Telemetry`. Light to import, safe to embed.

Importing this loads neither Kafka's client nor numpy, and does no I/O.
"""

from tailrace_producers.telemetry import (
    BoundCounter,
    BoundCumulative,
    BoundDistribution,
    BoundGauge,
    BoundTimer,
    Counter,
    Cumulative,
    Distribution,
    Gauge,
    Stats,
    Telemetry,
    Timer,
)

__all__ = [
    "BoundCounter", "BoundCumulative", "BoundDistribution", "BoundGauge", "BoundTimer", "Counter",
    "Cumulative", "Distribution", "Gauge", "Stats", "Telemetry", "Timer",
]  # fmt: skip
