"""What holds of the dispatcher whatever happens."""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.dispatch import Dispatcher
from tailrace_flows.core.alerting.routing import Router
from tailrace_schemas.alerts import AlertEvent, CommandKind, Transition, us_of
from tailrace_schemas.config.dispatch import DispatchConfig
from tailrace_schemas.notifications import Notification

from tests.flows.alerting.dispatching import World, config_of
from tests.flows.alerting.scenario import S

CONFIG = config_of(
    """
    routing:
      receiver: mail
      group_by: [service]
      group_interval: 2m
      repeat_interval: 20m
      escalation: page
      flap_damping: {window: 10m, start: 4, stop: 1}
      routes:
      - {where: {severity: critical}, team: two, continue: true}
      - {where: {service: web}, receiver: web, cooldown: 5m, group_by: [alertname]}
    teams: [{name: two, receivers: [pager, chat]}]
    escalations: [{name: page, steps: [{wait: 3m}, {notify: second}, {wait: 5m}, {team: two}]}]
    inhibitions: [{name: one, source: {alertname: a}, target: {alertname: b}, equal: [service]}]
    """
)
SETTLED_US = 60 * 60 * S
"""By then silences are over, what flapped is calm, cooled down, and every group was looked at."""

ALERTS = [(name, service) for name in "abc" for service in ("web", "db")]


@dataclass(frozen=True)
class Act:
    wait_us: int
    verb: str
    which: int


ACTS = st.lists(
    st.builds(
        Act,
        st.integers(0, 200).map(lambda s: s * S) | st.integers(0, 10_000_000),
        st.sampled_from(["fire", "fire", "resolve", "ack", "silence", "unsilence"]),
        st.integers(0, len(ALERTS) - 1),
    ),
    max_size=25,
)


def without_commands(acts: list[Act]) -> list[Act]:
    return [act for act in acts if not act.verb.endswith("silence")]


def do(world: World, act: Act) -> list[tuple[int, Notification]]:
    """Lets time pass, then does it, where it makes sense; what was sent."""
    sent = world.advance(world.now_us + act.wait_us)
    name, service = ALERTS[act.which]
    key = f"{name}/{service}"
    current = world.alerts.get(key)
    firing = current is not None and current.status.value != "resolved"
    if act.verb == "fire" and not firing:
        if current is None or us_of(current.timestamp) < world.now_us:
            world.fire(key, {"service": service}, "critical" if service == "db" else "warning")
    elif act.verb == "resolve" and firing:
        world.change(key, Transition.RESOLVED)
    elif act.verb == "ack" and current is not None and current.status.value == "active":
        world.change(key, Transition.ACKNOWLEDGED)
    elif act.verb == "silence" and firing:
        world.command(CommandKind.SILENCE, key, 600)
    elif act.verb == "unsilence" and firing:
        world.command(CommandKind.UNSILENCE, key)
    return sent


def run(acts: list[Act], restarts: frozenset[int] = frozenset()) -> tuple[World, list[tuple[int, Notification]]]:
    world = World.of(CONFIG)
    sent = []
    for number, act in enumerate(acts):
        if number in restarts:
            world.restart()
        sent += do(world, act)
    return world, sent + world.advance(world.now_us + SETTLED_US)


@settings(deadline=None, max_examples=150)
@given(ACTS, st.frozensets(st.integers(0, 24)))
def test_restarts_anywhere_change_nothing_and_no_id_comes_twice(acts: list[Act], restarts: frozenset[int]) -> None:
    _, sent = run(acts)
    _, again = run(acts, restarts)
    assert again == sent
    ids = [one.id for _, one in sent]
    assert len(set(ids)) == len(ids)


@settings(deadline=None, max_examples=100)
@given(ACTS)
def test_every_event_twice_changes_nothing(acts: list[Act]) -> None:
    world = World.of(CONFIG)
    sent = []
    for act in acts:
        known = len(world.events)
        sent += do(world, act)
        for event in world.events[known:] + world.events[:3]:
            world.dispatcher.on_event(event, world.now_us)
    sent += world.advance(world.now_us + SETTLED_US)
    assert sent == run(acts)[1]


@settings(deadline=None, max_examples=100)
@given(ACTS.map(without_commands), st.integers(0, 24), st.integers(0, 24))
def test_a_crash_sends_again_only_what_is_the_same_by_id(acts: list[Act], first: int, second: int) -> None:
    """The state before act `first` comes back after act `second`: the events since then are read again."""
    first, second = sorted((min(first, len(acts)), min(second, len(acts))))
    world = World.of(CONFIG)
    for act in acts[:first]:
        do(world, act)
    state, resumed_us = world.dispatcher.snapshot(), world.now_us
    events: list[tuple[int, AlertEvent]] = []
    sent: list[tuple[int, Notification]] = []
    for act in acts[first:second]:
        known = len(world.events)
        sent += do(world, act)
        events += [(world.now_us, event) for event in world.events[known:]]
    end_us = world.now_us
    sent += world.advance(end_us)

    world.dispatcher = Dispatcher(CONFIG, state, resumed_us)
    world.now_us = resumed_us
    again: list[tuple[int, Notification]] = []
    for t_us, event in events:
        again += world.advance(t_us)
        world.dispatcher.on_event(event, t_us)
    again += world.advance(end_us)
    assert again == sent


@settings(deadline=None, max_examples=150)
@given(ACTS)
def test_in_the_end_every_receiver_knows_what_is_true(acts: list[Act]) -> None:
    """Who was ever told that an alert fires hears that it is over; who is to be told of what fires has been told.

    But for what is inhibited still: of that nobody is told anything until it no longer is.
    """
    world, sent = run(acts)
    believed: dict[tuple[str, str, str], bool] = {}
    for _, one in sent:
        for alert in one.alerts:
            believed[(one.receiver, alert.alert.name, alert.alert.labels["service"])] = alert.firing
    true = {key for key, alert in world.alerts.items() if alert.status.value != "resolved"}
    inhibited = {("b", service) for service in ("web", "db") if f"a/{service}" in true}
    for (receiver, name, service), firing in believed.items():
        if (name, service) not in inhibited:
            assert firing <= (f"{name}/{service}" in true), (receiver, name, service)
    for key in true:
        name, service = key.split("/")
        if (name, service) in inhibited:
            continue
        for receiver in ("pager", "chat") if service == "db" else ("web",):
            assert believed[(receiver, name, service)]


NAMES = ["mail", "web", "pager", "chat", "second"]
OTHERS = [
    config_of(f"{{{text}, receivers: [{', '.join(f'{{name: {name}}}' for name in NAMES)}]}}")
    for text in (
        "routing: {receiver: mail, group_interval: 2m, routes: [{where: {service: web}, receiver: chat}]}",
        "routing: {receiver: web, group_interval: 2m, group_by: [alertname], routes: "
        "[{where: {service: web}, receiver: chat, continue: true}, {where: {service: =~web|db}, team: two}]}, "
        "teams: [{name: two, receivers: [pager, mail]}]",
        "routing: {receiver: mail, group_interval: 2m, escalation: page, flap_damping: null}, "
        "escalations: [{name: page, steps: [{wait: 1m}, {notify: second}]}]",
        "teams: []",
    )
]


@settings(deadline=None, max_examples=200)
@given(ACTS, st.dictionaries(st.integers(0, 24), st.sampled_from(OTHERS)), st.frozensets(st.integers(0, 24)))
def test_whatever_becomes_of_routes_nobody_believes_that_something_fires_that_is_over(
    acts: list[Act], configs: dict[int, DispatchConfig], restarts: frozenset[int]
) -> None:
    """And who is to be told of what fires by the routes of the end knows of it."""
    world = World.of(OTHERS[0])
    sent = []
    for number, act in enumerate(acts):
        if number in configs:
            world.config = configs[number]
            world.dispatcher.on_config(world.config, world.now_us)
        if number in restarts:
            world.restart()
        sent += do(world, act)
    if world.config.routing is None:
        world.config = OTHERS[0]
        world.dispatcher.on_config(world.config, world.now_us)
    sent += world.advance(world.now_us + SETTLED_US)
    true = {key for key, alert in world.alerts.items() if alert.status.value != "resolved"}
    believed: dict[tuple[str, str], bool] = {}
    for _, one in sent:
        for alert in one.alerts:
            believed[(one.receiver, f"{alert.alert.name}/{alert.alert.labels['service']}")] = alert.firing
    assert {(receiver, key) for (receiver, key), firing in believed.items() if firing and key not in true} == set()
    router = Router(world.config)
    for key in true:
        for route in router.route({"service": key.partition("/")[2]}):
            assert all(believed[(address.receiver, key)] for address in route.addresses)


@settings(deadline=None, max_examples=150)
@given(ACTS.map(without_commands))
def test_what_fires_is_told_in_time(acts: list[Act]) -> None:
    """Within group_wait, or group_interval where the group has been told before: unless it is known as firing still,
    because it fires again before anybody was told that it had ended."""
    world = World.of(
        config_of("routing: {receiver: mail, group_by: [service], group_interval: 2m, flap_damping: null}")
    )
    sent: list[tuple[int, Notification]] = []
    began: dict[tuple[str, str], int] = {}
    for act in acts:
        sent += do(world, act)
        for alert in world.alerts.values():
            which = (alert.name, alert.labels["service"])
            if alert.status.value == "resolved":
                began.pop(which, None)
            else:
                began.setdefault(which, world.now_us)
    sent += world.advance(world.now_us + 120 * S)
    for which, since_us in began.items():
        heard = [
            (t_us, one.firing)
            for t_us, notification in sent
            for one in notification.alerts
            if (one.alert.name, one.alert.labels["service"]) == which
        ]
        before = [firing for t_us, firing in heard if t_us < since_us]
        if not before or not before[-1]:
            assert any(firing and since_us <= t_us <= since_us + 120 * S for t_us, firing in heard)
