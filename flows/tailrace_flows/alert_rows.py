"""Alert events and incidents as rows for ClickHouse."""

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from tailrace_schemas.alerts import Alert, AlertEvent
from tailrace_schemas.incidents import Incident
from tailrace_schemas.rows import ALERT_EVENTS

__all__ = ["alert_event_rows", "incident_row"]


def alert_event_rows(events: Iterable[AlertEvent]) -> Any:
    """A record batch of ALERT_EVENTS."""
    return pa.RecordBatch.from_pylist([_row(event) for event in events], ALERT_EVENTS)


def _row(event: AlertEvent) -> dict[str, Any]:
    return {
        "event_id": event.id,
        "alert_id": event.alert.id if event.alert else "",
        "sequence": event.sequence,
        "time": event.time,
        "transition": event.transition.value,
        "cause": event.cause,
        "reason": event.reason,
        **_columns(event.alert),
    }


def _columns(alert: Alert | None) -> dict[str, Any]:
    if alert is None:
        nothing: dict[str, Any] = dict.fromkeys(ALERT_EVENTS.names[7:], "")
        return nothing | {"labels": [], "tags": []} | {field.name: None for field in ALERT_EVENTS if field.nullable}
    threshold = alert.threshold
    return {
        "name": alert.name,
        "source": alert.source,
        "service": alert.labels.get("service", ""),
        "severity": alert.severity.value,
        "status": alert.status.value,
        "description": alert.description,
        "metric": alert.metric,
        "labels": list(alert.labels.items()),
        "operator": threshold.operator.value if threshold else "",
        "threshold": threshold.value if threshold else None,
        "duration_s": threshold.duration if threshold else None,
        "current_value": alert.current_value,
        "started_at": alert.timestamp,
        "acknowledged_at": alert.acknowledged_at,
        "acknowledged_by": alert.acknowledged_by or "",
        "resolved_at": alert.resolved_at,
        "resolved_by": alert.resolved_by or "",
        "false_positive": alert.false_positive,
        "tags": list(alert.tags),
        "annotations": json.dumps([one.model_dump(mode="json") for one in alert.annotations], ensure_ascii=False),
    }


def incident_row(incident: Incident) -> dict[str, Any]:
    """A row of INCIDENTS."""
    row = incident.model_dump(exclude={"id", "downtime"})
    ended = [(one.end - one.start).total_seconds() for one in incident.downtime if one.end is not None]
    return row | {
        "incident_id": incident.id,
        "alerts": list(incident.alerts),
        "acknowledged_by": incident.acknowledged_by or "",
        "downtime_s": sum(ended),
        "down_since": next((one.start for one in incident.downtime if one.end is None), None),
    }
