"""What is going on right now: the figures behind `tailrace up` and `tailrace status`."""

from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition
from tailrace_flows.settings import KafkaSettings

__all__ = ["Active", "Anomaly", "Gauge", "Lag", "LagReader", "Objective", "Overview", "Top", "read_overview"]

TIMEOUT_S = 5.0

# The latest 10 s rows of the host's utilizations. `last` of a gauge is the newest sample of its window.
_GAUGES = """
SELECT metric, attributes, argMax(last, window_start) AS value
FROM windows
WHERE kind = 'gauge' AND stream = '' AND window_start > now() - 120
  AND metric IN ('system.cpu.utilization', 'system.memory.utilization', 'system.paging.utilization',
                 'system.filesystem.utilization')
GROUP BY metric, attributes
ORDER BY metric, value DESC
"""

# The busiest series of the last complete windows: by samples a second, distributions first.
_TOP = """
SELECT service, metric, unit, attributes, kind, sum(count) / 60 AS per_second,
       tailrace_quantile(0.5, bucket_index, bucket_count, scale) AS p50,
       tailrace_quantile(0.95, bucket_index, bucket_count, scale) AS p95,
       tailrace_quantile(0.99, bucket_index, bucket_count, scale) AS p99
FROM windows
WHERE window_start > now() - 70 AND stream = '' AND kind = 'distribution'
GROUP BY service, metric, unit, attributes, kind
ORDER BY per_second DESC, service, metric
LIMIT {limit:UInt32}
"""

_ALERTS = """
SELECT severity, status, name, description,
       toUInt32(greatest(0, dateDiff('second', assumeNotNull(started_at), now64())))
FROM alerts
WHERE status != 'resolved' AND NOT has(tags, 'watchdog')
ORDER BY indexOf(['critical', 'error', 'warning', 'info'], severity), started_at
LIMIT {limit:UInt32}
"""

_OBJECTIVES = """
SELECT slo, objective, budget_remaining, burn_rate_1h
FROM slo_status WHERE window_end > now() - 120 AND total > 0
ORDER BY slo, window_end DESC LIMIT 1 BY slo
"""

_HEALTH = "SELECT service, status FROM health WHERE check = '' AND status != 'unknown' ORDER BY service"

_ANOMALIES = """
SELECT detector, service, reason, toUInt32(greatest(0, dateDiff('second', window_end, now())))
FROM anomalies
WHERE flag AND marked_by = '' AND window_end > now() - 900
ORDER BY window_end DESC, detector, labels LIMIT {limit:UInt32}
"""

_COUNTERS = "SELECT name, sum(value) AS total FROM counters GROUP BY name"

_NEWEST = "SELECT max(window_end) AS newest, count() AS rows FROM windows WHERE window_start > now() - 3600"


@dataclass(frozen=True)
class Gauge:
    """A utilization, 0..1."""

    metric: str
    attributes: dict[str, str]
    value: float


@dataclass(frozen=True)
class Top:
    """A distribution's last minute, in its own unit."""

    service: str
    metric: str
    unit: str
    attributes: dict[str, str]
    samples_per_second: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Active:
    """An alert that is active or acknowledged."""

    severity: str
    status: str
    name: str
    description: str
    seconds: int
    """Since it began."""


@dataclass(frozen=True)
class Objective:
    """An objective that counted events lately."""

    name: str
    objective: float
    budget_remaining: float
    burn_rate_1h: float | None


@dataclass(frozen=True)
class Anomaly:
    """A series that was flagged lately."""

    detector: str
    service: str
    reason: str
    seconds: int
    """Since then."""


@dataclass(frozen=True)
class Lag:
    """Records of the samples topic that are not yet consumed, and how many there are in all."""

    records: int
    end: int


@dataclass(frozen=True)
class Overview:
    """A moment's figures."""

    gauges: list[Gauge] = field(default_factory=list)
    top: list[Top] = field(default_factory=list)
    counters: dict[str, int] = field(default_factory=dict)
    newest_window_end: Any = None
    rows_last_hour: int = 0
    lag: Lag | None = None
    alerts: list[Active] = field(default_factory=list)
    """The gravest first, without the watchdog."""
    objectives: list[Objective] = field(default_factory=list)
    health: dict[str, str] = field(default_factory=dict)
    """Service -> status."""
    anomalies: list[Anomaly] = field(default_factory=list)
    """The latest first."""


class LagReader:
    """Asks Kafka how far the flow's consumer group is behind. Keeps one connection."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._topic = settings.topics.samples
        self._consumer = Consumer(
            {**settings.client(), "group.id": settings.group_id, "enable.auto.commit": False, "log_level": 0}
        )

    def read(self) -> Lag | None:
        """The lag now; None while Kafka does not answer."""
        try:
            found = self._consumer.list_topics(self._topic, TIMEOUT_S).topics[self._topic]
            places = [TopicPartition(self._topic, number) for number in found.partitions]
            committed = {place.partition: place.offset for place in self._consumer.committed(places, TIMEOUT_S)}
            records = end = 0
            for place in places:
                low, high = self._consumer.get_watermark_offsets(place, TIMEOUT_S)
                records += high - max(low, committed[place.partition])
                end += high
        except KafkaException:
            return None
        return Lag(records, end)

    def close(self) -> None:
        self._consumer.close()


def read_overview(client: Any, lag: LagReader | None, top: int = 8) -> Overview:
    """Reads all figures; `client` is a clickhouse-connect client. About 50 ms.

    Raises:
        clickhouse_connect's errors: ClickHouse does not answer.
    """
    counters = {name: int(total) for name, total in client.query(_COUNTERS).result_rows}
    newest, rows = client.query(_NEWEST).result_rows[0]
    return Overview(
        [Gauge(*row) for row in client.query(_GAUGES).result_rows],
        [Top(*row[:4], *row[5:]) for row in client.query(_TOP, parameters={"limit": top}).result_rows],
        counters,
        newest if rows else None,
        rows,
        lag.read() if lag else None,
        [Active(*row) for row in client.query(_ALERTS, parameters={"limit": top}).result_rows],
        [Objective(*row) for row in client.query(_OBJECTIVES).result_rows],
        dict(client.query(_HEALTH).result_rows),
        [Anomaly(*row) for row in client.query(_ANOMALIES, parameters={"limit": top}).result_rows],
    )
