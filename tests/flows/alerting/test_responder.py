"""What the responder makes of commands that are the dispatcher's."""

from tailrace_flows.core.alerting.responder import Responder
from tailrace_schemas.alerts import Command, CommandKind, Transition, time_of
from tailrace_schemas.config import load

from tests.flows.alerting.dispatching import START_US, World, config_of
from tests.flows.alerting.scenario import S

CONFIG = "{receivers: [{name: mail}], routing: {receiver: mail}}"


def silence(alert: str, duration_s: float | None) -> Command:
    return Command(
        id="c", kind=CommandKind.SILENCE, alert_id=alert, time=time_of(START_US), author="ann", duration_s=duration_s
    )


def test_a_silence_is_carried_out_and_answered_at_once() -> None:
    models = {f"{item.kind}/{item.name}": item.model for item in load([("a.yaml", CONFIG)]).items}
    responder = Responder(models, START_US)
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
    told = responder.on_time(START_US + 400 * S).notifications
    assert [one.alerts[0].alert.name for one in told] == ["a"]


def test_a_silence_that_cannot_be_is_refused_at_once() -> None:
    responder = Responder({}, START_US)
    responder.on_command(silence("unknown", 60), START_US)
    (refusal,) = responder.on_time(START_US).events
    assert (refusal.transition, refusal.reason) == (Transition.REJECTED, "there is no such alert now")
    assert not responder.on_time(START_US + 10 * S)


def test_a_storm_that_comes_late_is_one_notification() -> None:
    """Events are given one by one, and all of them are older than the group's wait: they go together all the same."""
    models = {f"{item.kind}/{item.name}": item.model for item in load([("a.yaml", CONFIG)]).items}
    now_us = START_US + 3600 * S
    responder = Responder(models, now_us)
    world = World.of(config_of(CONFIG))
    for number in range(100):
        responder.on_event(world.fire(f"a/{number}", {"n": str(number)}), now_us)
        assert not responder.on_time(now_us).notifications
    (told,) = responder.on_time(now_us + S).notifications
    assert told.firing == 100


def test_feedback_on_an_anomaly_is_none_of_its_business() -> None:
    responder = Responder({}, START_US)
    responder.on_command(
        Command(id="c", kind=CommandKind.FEEDBACK, alert_id="a", time=time_of(START_US), author="ann"), START_US
    )
    assert not responder.on_time(START_US + 10 * S)
