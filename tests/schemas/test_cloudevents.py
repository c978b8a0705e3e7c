"""The messages of the alerts and commands topics as they lie in Kafka."""

import json

import pytest
from tailrace_schemas.alerts import AlertEvent, Command
from tailrace_schemas.cloudevents import (
    MAX_BYTES,
    command_message,
    event_message,
    notification_message,
    read_command,
    read_event,
    read_notification,
)
from tailrace_schemas.notifications import Notification

from tests.schemas.examples import example

EVENT = AlertEvent.model_validate(example("AlertEvent")["datum"])
NOTIFICATION = Notification.model_validate(example("Notification")["datum"])
COMMAND = Command.model_validate(example("Command")["datum"])


def test_an_event_s_headers_say_what_it_is_without_its_value() -> None:
    sent = event_message(EVENT)
    assert EVENT.alert is not None
    assert sent.key.decode() == EVENT.alert.id
    headers = {name: value.decode() for name, value in sent.headers}
    assert headers == {
        "ce_specversion": "1.0",
        "ce_id": EVENT.id,
        "ce_source": f"/tailrace/{EVENT.alert.source}",
        "ce_type": f"tailrace.alert.{EVENT.transition}",
        "ce_subject": EVENT.alert.id,
        "ce_time": EVENT.time.isoformat(),
        "content-type": "application/json",
    }
    assert json.loads(sent.value)["id"] == EVENT.id
    assert read_event(sent.value) == EVENT


def test_a_command_goes_the_way_of_its_alert() -> None:
    sent = command_message(COMMAND)
    assert sent.key.decode() == COMMAND.alert_id
    assert dict(sent.headers)["ce_type"].decode() == f"tailrace.command.{COMMAND.kind}"
    assert read_command(sent.value) == COMMAND


def test_a_notification_goes_the_way_of_its_group() -> None:
    sent = notification_message(NOTIFICATION)
    assert sent.key.decode() == NOTIFICATION.group_key
    headers = dict(sent.headers)
    assert headers["ce_type"] == b"tailrace.notification.first"
    assert headers["ce_id"].decode() == NOTIFICATION.id
    assert read_notification(sent.value) == NOTIFICATION


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59Z", "1969-12-31T23:59:59Z"])
def test_times_at_the_ends_of_the_calendar_are_refused(time: str) -> None:
    wrong = "is not within 1970-01-01 and 2100-01-01"
    with pytest.raises(ValueError, match=wrong):
        read_command(json.dumps(COMMAND.model_dump(mode="json") | {"time": time}).encode())
    event = EVENT.model_dump(mode="json")
    note = {"id": "n", "timestamp": time, "author": "ann", "message": "x"}
    alerts = [{"timestamp": time}, {"acknowledged_at": time}, {"resolved_at": time}, {"annotations": [note]}]
    for change in [{"time": time}, *({"alert": event["alert"] | one} for one in alerts)]:
        with pytest.raises(ValueError, match=wrong):
            read_event(json.dumps(event | change).encode())


def test_events_that_no_state_can_hold_are_refused() -> None:
    event = EVENT.model_dump(mode="json")
    with pytest.raises(ValueError, match="the sequence is 1180591620717411303424"):
        read_event(json.dumps(event | {"sequence": 2**70}).encode())
    for number in ("NaN", "Infinity"):  # which JSON written by us does not have: it would be null
        threshold = {"operator": "gt", "value": float(number)}
        with pytest.raises(ValueError, match="the threshold is no finite number"):
            read_event(json.dumps(event | {"alert": event["alert"] | {"threshold": threshold}}).encode())


def test_an_event_without_an_alert_has_no_subject() -> None:
    sent = event_message(EVENT.model_copy(update={"alert": None}))
    assert sent.key == b""
    assert read_event(sent.value).alert is None


@pytest.mark.parametrize("value", [b"", b"null", b"{}", b"\xff", b'{"id": 1}', b" " * (MAX_BYTES + 1)])
def test_anything_else_is_a_value_error(value: bytes) -> None:
    for read in (read_event, read_command, read_notification):
        with pytest.raises(ValueError, match=r"."):
            read(value)
