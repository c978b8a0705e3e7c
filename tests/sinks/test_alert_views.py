"""What analysts see of alerts."""

import json

import pytest
from tailrace_flows.alert_rows import alert_event_rows
from tailrace_schemas.alerts import AlertEvent, Status, Transition, time_of

from tests.schemas.examples import example
from tests.sinks.storage import START_S, Storage

FIRST = AlertEvent.model_validate(example("AlertEvent")["datum"])
AT_US = START_S * 1_000_000


def event(sequence: int, transition: Transition, status: Status, *, alert: str = "a1", reason: str = "") -> AlertEvent:
    assert FIRST.alert is not None
    at = time_of(AT_US + sequence)
    found = FIRST.alert.model_copy(update={"id": alert, "status": status, "timestamp": time_of(AT_US)})
    return FIRST.model_copy(
        update={
            "id": f"{alert}-{sequence}", "transition": transition, "time": at, "sequence": sequence, "alert": found,
            "reason": reason,
        }
    )  # fmt: skip


@pytest.fixture
def alerts(storage: Storage) -> Storage:
    events = [
        event(0, Transition.ACTIVE, Status.ACTIVE),
        event(1, Transition.ACKNOWLEDGED, Status.ACKNOWLEDGED),
        event(2, Transition.REJECTED, Status.ACKNOWLEDGED, reason="it is acknowledged"),
        event(0, Transition.ACTIVE, Status.ACTIVE, alert="a2"),
        event(1, Transition.RESOLVED, Status.RESOLVED, alert="a2"),
        FIRST.model_copy(
            update={"id": "lost", "transition": Transition.REJECTED, "alert": None, "reason": "no such alert"}
        ),
    ]
    writer = storage.writer()
    for sent in (events, events[:2], events):  # again after a crash, not all of it
        writer.write("alert_event_rows", [alert_event_rows(sent)])
    return storage


def test_each_event_is_there_once_in_the_order_of_its_alert(alerts: Storage) -> None:
    found = alerts.ask("SELECT alert_id, sequence, transition, reason FROM alert_events ORDER BY alert_id, sequence")
    assert found == [
        ("", FIRST.sequence, "rejected", "no such alert"),
        ("a1", 0, "active", ""),
        ("a1", 1, "acknowledged", ""),
        ("a1", 2, "rejected", "it is acknowledged"),
        ("a2", 0, "active", ""),
        ("a2", 1, "resolved", ""),
    ]


def test_an_alert_stands_as_its_last_event_left_it(alerts: Storage) -> None:
    found = alerts.ask(
        "SELECT id, status, sequence, toUnixTimestamp64Micro(changed_at), "
        "toUnixTimestamp64Micro(assumeNotNull(started_at)) FROM alerts ORDER BY id"
    )
    assert found == [("a1", "acknowledged", 1, AT_US + 1, AT_US), ("a2", "resolved", 1, AT_US + 1, AT_US)]


def test_an_alert_s_fields_come_back_as_they_were(alerts: Storage) -> None:
    wanted = FIRST.alert
    assert wanted is not None
    (row,) = alerts.records("SELECT * FROM alerts WHERE id = 'a1'")
    assert row["labels"] == wanted.labels
    assert row["service"] == wanted.labels.get("service", "")
    assert (row["name"], row["severity"], row["description"]) == (wanted.name, wanted.severity, wanted.description)
    assert wanted.threshold is not None
    assert (row["operator"], row["threshold"], row["duration_s"]) == (
        wanted.threshold.operator, wanted.threshold.value, wanted.threshold.duration
    )  # fmt: skip
    assert row["current_value"] == wanted.current_value
    assert row["tags"] == list(wanted.tags)
    assert json.loads(row["annotations"]) == [one.model_dump(mode="json") for one in wanted.annotations]
