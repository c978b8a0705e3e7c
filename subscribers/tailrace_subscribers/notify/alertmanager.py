"""Alertmanager's webhook payload, version 4, so that receivers made for it work.

Source: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config and notify/webhook/webhook.go.
"""

from typing import Any

from tailrace_schemas.alerts import Alert, alert_id
from tailrace_schemas.notifications import Notification, NotifiedAlert

__all__ = ["payload"]

_NEVER = "0001-01-01T00:00:00Z"
"""Go's zero time: what it sends for an alert that has not ended."""


def payload(notification: Notification) -> dict[str, Any]:
    """The same as Alertmanager would send; there are no external URLs."""
    shown = [_labels(one.alert) for one in notification.alerts]
    annotations = [_annotations(one.alert) for one in notification.alerts]
    return {
        "version": "4",
        "groupKey": notification.group_key,
        "truncatedAlerts": notification.truncated,
        "status": notification.status,
        "receiver": notification.receiver,
        "groupLabels": notification.group_labels,
        "commonLabels": notification.common_labels,
        "commonAnnotations": {
            key: value for key, value in annotations[0].items() if all(one.get(key) == value for one in annotations)
        },
        "externalURL": "",
        "alerts": [_alert(one, labels) for one, labels in zip(notification.alerts, shown, strict=True)],
    }


def _alert(one: NotifiedAlert, labels: dict[str, str]) -> dict[str, Any]:
    ended = one.alert.resolved_at
    return {
        "status": "firing" if one.firing else "resolved",
        "labels": labels,
        "annotations": _annotations(one.alert),
        "startsAt": one.alert.timestamp.isoformat(),
        "endsAt": _NEVER if one.firing or ended is None else ended.isoformat(),
        "generatorURL": "",
        # Of source and labels, as there; an alert's id is of one life, and who is told late may not hear of each life.
        "fingerprint": alert_id(one.alert.source, tuple(sorted(one.alert.labels.items())), 0),
    }


def _labels(alert: Alert) -> dict[str, str]:
    return alert.labels | {"alertname": alert.name, "severity": alert.severity.value, "source": alert.source}


def _annotations(alert: Alert) -> dict[str, str]:
    return {"description": alert.description} if alert.description else {}
