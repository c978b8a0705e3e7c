"""What the responder makes of commands that are the dispatcher's."""

from typing import Any

import pytest
from tailrace_flows.core.alerting.responder import Responder
from tailrace_schemas.alerts import Command, CommandKind, Transition, time_of
from tailrace_schemas.config import load
from tailrace_schemas.notifications import Notification

from tests.flows.alerting.dispatching import START_US, World, config_of
from tests.flows.alerting.scenario import S

CONFIG = "{receivers: [{name: mail}], routing: {receiver: mail}}"


MODELS = {f"{item.kind}/{item.name}": item.model for item in load([("a.yaml", CONFIG)]).items}


def stored(responder: Responder, now_us: int) -> list[Notification]:
    """What is given out when what has been decided is stored."""
    assert not responder.on_time(now_us).notifications
    responder.snapshot()
    assert not responder.on_time(now_us).notifications, "the epoch that is being stored may yet be lost"
    responder.snapshot()
    found = list(responder.on_time(now_us).notifications)
    assert not responder.on_time(now_us).notifications
    return found


def silence(alert: str, duration_s: float | None) -> Command:
    return Command(
        id="c", kind=CommandKind.SILENCE, alert_id=alert, time=time_of(START_US), author="ann", duration_s=duration_s
    )


def test_a_silence_is_carried_out_and_answered_at_once() -> None:
    responder = Responder(MODELS, START_US)
    world = World.of(config_of(CONFIG))
    event = world.fire("a", {})
    assert event.alert is not None
    responder.on_event(event, START_US)
    assert not responder.on_time(START_US).notifications
    responder.on_command(silence(event.alert.id, 60), START_US)
    (answer,) = responder.on_time(START_US).events
    assert answer.transition is Transition.SILENCED
    for second in (1, 2, 3, 30, 59):
        assert not responder.on_time(START_US + second * S)
    told = stored(responder, START_US + 400 * S)
    assert [one.alerts[0].alert.name for one in told] == ["a"]


def test_a_silence_that_cannot_be_is_refused_at_once() -> None:
    responder = Responder({}, START_US)
    responder.on_command(silence("unknown", 60), START_US)
    (refusal,) = responder.on_time(START_US).events
    assert (refusal.transition, refusal.reason) == (Transition.REJECTED, "there is no such alert now")
    assert not responder.on_time(START_US + 10 * S)


@pytest.mark.parametrize("duration_s", [None, 1e-9])
def test_a_silence_of_a_clock_that_is_ahead_is_refused_without_a_duration(duration_s: float | None) -> None:
    responder = Responder(MODELS, START_US)
    event = World.of(config_of(CONFIG)).fire("a", {})
    assert event.alert is not None
    responder.on_event(event, START_US)
    command = silence(event.alert.id, duration_s)
    responder.on_command(command.model_copy(update={"time": time_of(START_US + S)}), START_US)
    (answer,) = responder.on_time(START_US).events
    assert answer.transition is Transition.REJECTED
    assert "needs a duration" in answer.reason


@pytest.mark.parametrize("change", [{"id": "a b"}, {"labels": {"": "x"}}])
def test_an_alert_of_others_that_cannot_be_silenced_is_refused(change: dict[str, Any]) -> None:
    responder = Responder(MODELS, START_US)
    event = World.of(config_of(CONFIG)).fire("a", {})
    assert event.alert is not None
    alert = event.alert.model_copy(update=change)
    responder.on_event(event.model_copy(update={"alert": alert}), START_US)
    responder.on_command(silence(alert.id, 60), START_US)
    (answer,) = responder.on_time(START_US).events
    assert answer.reason == "an alert with such an id or such labels cannot be silenced"


def test_a_storm_that_comes_late_is_one_notification() -> None:
    """Events are given one by one, and all of them are older than the group's wait: they go together all the same."""
    now_us = START_US + 3600 * S
    responder = Responder(MODELS, now_us)
    world = World.of(config_of(CONFIG))
    for number in range(100):
        responder.on_event(world.fire(f"a/{number}", {"n": str(number)}), now_us)
        assert not responder.on_time(now_us).notifications
    (told,) = stored(responder, now_us + S)
    assert told.firing == 100


def test_feedback_on_an_anomaly_is_none_of_its_business() -> None:
    responder = Responder({}, START_US)
    responder.on_command(
        Command(id="c", kind=CommandKind.FEEDBACK, alert_id="a", time=time_of(START_US), author="ann"), START_US
    )
    assert not responder.on_time(START_US + 10 * S)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_receiver_is_not_told_what_a_crash_makes_undone(lost: int) -> None:
    """An alert ends while the flow is restarted: decided again, there is nothing to tell any more."""
    responder = Responder(MODELS, START_US)
    world = World.of(config_of(CONFIG))
    state = responder.snapshot()
    fires = world.fire("a", {})
    responder.on_event(fires, START_US)
    given = [*responder.on_time(START_US).notifications, *responder.on_time(START_US + 30 * S).notifications]
    for _ in range(lost):
        responder.snapshot()
        given += responder.on_time(START_US + 31 * S).notifications
    responder = Responder(MODELS, START_US + 60 * S, state)
    for event in (fires, world.change("a", Transition.RESOLVED, START_US + 40 * S)):
        responder.on_event(event, START_US + 60 * S)
    given += stored(responder, START_US + 600 * S)
    assert given == []


def test_what_is_decided_is_given_out_once_it_is_stored_also_by_a_restart() -> None:
    responder = Responder(MODELS, START_US)
    world = World.of(config_of(CONFIG))
    responder.on_event(world.fire("a", {}), START_US)
    decided_us = START_US + 30 * S
    assert not responder.on_time(decided_us).notifications
    due_us = responder.next_us()
    assert due_us is not None
    assert decided_us < due_us <= decided_us + S, "each epoch needs a snapshot"
    state = responder.snapshot()
    responder = Responder(MODELS, START_US + 3600 * S, state)
    due_us = responder.next_us()
    assert due_us is not None
    assert due_us <= START_US + 3600 * S
    (told,) = responder.on_time(START_US + 3600 * S).notifications
    assert (told.reason, told.time) == ("first", time_of(decided_us))
    assert not responder.on_time(START_US + 3601 * S)
