"""Who is told of what and when, as scenarios; each is played with a restart before every line, and without."""

import json
import pickle
from typing import Any

import pytest
from tailrace_flows.core.alerting.dispatch import Dispatcher
from tailrace_schemas.alerts import CommandKind, Transition, us_of
from tailrace_schemas.config.dispatch import DispatchConfig, Route, Routing
from tailrace_schemas.notifications import Notification

from tests.data import reference
from tests.flows.alerting.dispatching import START_US, World, config_of, play, told
from tests.flows.alerting.scenario import S

MAIL = "routing: {receiver: mail}"

SCENARIOS = {
    "one alert, from the first notification over repeats to its end": (
        "routing: {receiver: mail, repeat_interval: 10m}",
        """
          0s | fire a     |
         30s |            | mail first a
        630s |            | mail repeat a
        700s | resolve a  |
        930s |            | mail resolved -a
         20h |            |
        """,
    ),
    "the default repeats after four hours exactly": (
        MAIL,
        """
          0s | fire a |
         30s |        | mail first a
      14430s |        | mail repeat a
        """,
    ),
    "alerts of one group share a notification; what comes later waits for the group's interval": (
        "routing: {receiver: mail, group_by: [service]}",
        """
          0s | fire a service=web          |
         10s | fire b service=web          |
         20s | fire c service=db           |
         30s |                             | mail first a b
         50s |                             | mail first c
         60s | fire d service=web          |
        330s |                             | mail changed a b d
        """,
    ),
    "... groups by everything": (
        "routing: {receiver: mail, group_by: ['...']}",
        """
          0s | fire a service=web; fire b service=web |
         30s |                                        | mail first a; mail first b
        """,
    ),
    "what fires and ends before anybody is told is never told": (
        MAIL,
        """
          0s | fire a    |
         20s | resolve a |
          1h |           |
        """,
    ),
    "an end that comes with new alerts, and ends one by one": (
        MAIL,
        """
          0s | fire a; fire b     |
         30s |                    | mail first a b
         60s | resolve a; fire c  |
        330s |                    | mail changed b c -a
        400s | resolve b          |
        630s |                    | mail changed c -b
        700s | resolve c          |
        930s |                    | mail resolved -c
        """,
    ),
    "a receiver without send_resolved": (
        "{routing: {receiver: mail}, receivers: [{name: mail, send_resolved: false}]}",
        """
          0s | fire a; fire b |
         30s |                | mail first a b
         40s | resolve a      |
         50s | resolve b      |
        400s | fire a         |
        430s |                | mail first a
        """,
    ),
    "... is told of an alert that fires again while others of its group do": (
        "{routing: {receiver: mail, cooldown: 1m}, receivers: [{name: mail, send_resolved: false}]}",
        """
          0s | fire a; fire b |
         30s |                | mail first a b
         40s | resolve a      |
        400s | fire a         |
        630s |                | mail changed a b
        700s | resolve b      |
       1000s | resolve a      |
       1300s | fire b         |
       1330s |                | mail first b
        """,
    ),
    "the same events again, whenever they come, change nothing": (
        MAIL,
        """
          0s | fire a            |
         10s | again             |
         30s |                   | mail first a
         31s | again             |
         40s | resolve a; again  |
        330s |                   | mail resolved -a
        340s | again             |
          2h |                   |
        """,
    ),
    "an alert that fires again is told again, and again as one": (
        MAIL,
        """
          0s | fire a    |
         30s |           | mail first a
         60s | resolve a |
         90s | fire a    |
        330s |           |
        400s | resolve a |
        630s |           | mail resolved -a
        700s | fire a    |
        730s |           | mail first a
        """,
    ),
    "the first child that matches takes it, unless it says continue; else the parent": (
        """
        routing:
          receiver: root
          group_wait: 0s
          group_by: ['...']
          routes:
          - {where: {severity: critical}, receiver: pager, continue: true}
          - where: {service: "=~web|api"}
            receiver: web
            routes:
            - {where: {alertname: "!=a"}, receiver: web-b}
          - {where: {severity: critical}, receiver: last}
        """,
        """
          0s | fire a severity=info service=db       | root first a
         10s | fire a severity=info service=web      | web first a
         20s | fire b severity=info service=api      | web-b first b
         30s | fire c severity=critical service=web  | pager first c; web-b first c
         40s | fire c severity=critical service=db   | pager first c; last first c
        """,
    ),
    "a team is all of its receivers": (
        """
        routing: {receiver: root, group_wait: 0s, routes: [{where: {service: db}, team: dba}]}
        teams: [{name: dba, receivers: [dba-mail, dba-chat]}]
        """,
        """
          0s | fire a service=db    | dba-mail first a; dba-chat first a
        """,
    ),
    "an acknowledged alert is not repeated, a new one beside it is told": (
        "routing: {receiver: mail, repeat_interval: 10m}",
        """
          0s | fire a    |
         30s |           | mail first a
         60s | ack a     |
       1800s | fire b    |
       1830s |           | mail changed a b
       2000s | ack b     |
          3h | resolve a |
      10830s |           | mail changed b -a
        """,
    ),
    "a configured silence": (
        """
        routing: {receiver: mail, repeat_interval: 1h}
        silences:
        - {name: deploy, where: {service: web}, start: "2026-01-05T00:00:00Z", end: "2026-01-05T00:10:00Z",
           author: ann, comment: deploying}
        """,
        """
          0s | fire a service=web |
         10s | fire b service=db  |
         30s |                    | mail first b
        630s |                    | mail changed a b
        """,
    ),
    "a silence by command, and its end": (
        MAIL,
        """
          0s | fire a; silence a 1h |
         30s |                      |
        700s | unsilence a          |
        930s |                      | mail first a
        """,
    ),
    "an alert that ends in silence is told as over when the silence is": (
        MAIL,
        """
          0s | fire a               |
         30s |                      | mail first a
         60s | silence a 20m        |
        600s | resolve a            |
       1530s |                      | mail resolved -a
         10h |                      |
        """,
    ),
    "an alert of which nobody was told leaves no trace of its silence": (
        MAIL,
        """
          0s | fire a; silence a 20m |
        600s | resolve a             |
         10h |                       |
        """,
    ),
    "inhibition: equal labels, and a missing one is empty": (
        """
        routing: {receiver: mail, group_interval: 1m}
        inhibitions:
        - {name: down, source: {alertname: Down}, target: {alertname: Slow}, equal: [zone]}
        """,
        """
          0s | fire Down zone=a; fire Slow zone=a; fire Slow zone=b     |
         10s | fire Slow                                                |
         30s |                                                          | mail first Down Slow Slow
         40s | resolve Down                                             |
         90s |                                                          | mail changed Slow Slow Slow -Down
        """,
    ),
    "an alert on both sides is not held back by its like, but by one that is on the source's side alone": (
        """
        routing: {receiver: mail}
        inhibitions:
        - {name: critical, source: {severity: "=~error|critical"}, target: {severity: "=~error|warning"}, equal: [s]}
        """,
        """
          0s | fire a severity=error s=1; fire b severity=error s=1; fire c severity=warning s=1   |
          1s | fire d severity=error s=2; fire e severity=critical s=2                             |
         30s |                                                                                     | mail first a b e
        """,
    ),
    "cooldown: an alert that fires anew is told when it has cooled down, if it still fires": (
        "routing: {receiver: mail, cooldown: 30m, flap_damping: null}",
        """
          0s | fire a    |
         30s |           | mail first a
        100s | resolve a |
        330s |           | mail resolved -a
        700s | fire a    |
       1000s | resolve a |
       1200s | fire a    |
       1830s |           | mail first a
        """,
    ),
    "flapping: told once, and then when it is calm": (
        "routing: {receiver: mail, group_interval: 1m, flap_damping: {window: 20m, start: 4, stop: 1}}",
        """
          0s | fire a    |
         30s |           | mail first a
         40s | resolve a |
         90s |           | mail resolved -a
        100s | fire a    |
        130s |           | mail first a
        140s | resolve a |
        210s | fire a    |
        280s | resolve a |
        350s | fire a    |
        600s | resolve a |
       1570s |           | mail resolved -a
        """,
    ),
    "escalation: step by step, while nobody acknowledges": (
        """
        routing: {receiver: mail, escalation: page}
        teams: [{name: bosses, receivers: [boss]}]
        escalations:
        - {name: page, steps: [{wait: 5m}, {notify: second}, {wait: 10m}, {team: bosses}, {notify: hook}]}
        """,
        """
          0s | fire a      |
         30s |             | mail first a
        330s |             | second escalation/2 a
        900s | fire b      |
        930s |             | mail changed a b; boss escalation/4 a; hook escalation/5 a
       1000s | ack b       |
       2000s | resolve a   |
       2130s |             | mail changed b -a; second resolved -a; boss resolved -a; hook resolved -a
        """,
    ),
    "escalation stops on acknowledge": (
        """
        routing: {receiver: mail, escalation: page, repeat_interval: 30m}
        escalations: [{name: page, steps: [{wait: 5m}, {notify: second}]}]
        """,
        """
          0s | fire a   |
         30s |          | mail first a
        300s | ack a    |
          3h |          |
        """,
    ),
    "escalation stops on resolve": (
        """
        routing: {receiver: mail, escalation: page}
        escalations: [{name: page, steps: [{wait: 5m}, {notify: second}]}]
        """,
        """
          0s | fire a    |
         30s |           | mail first a
        300s | resolve a |
        330s |           | mail resolved -a
          3h |           |
        """,
    ),
    "escalation stops on silence, and begins anew when the alert is told again": (
        """
        routing: {receiver: mail, escalation: page, repeat_interval: 1h}
        escalations: [{name: page, steps: [{wait: 5m}, {notify: second}]}]
        """,
        """
          0s | fire a                |
         30s |                       | mail first a
        300s | silence a 10m         |
       3630s |                       | mail repeat a
       3930s |                       | second escalation/2 a
       7230s |                       | mail repeat a
      10000s |                       |
        """,
    ),
    "an escalation goes on where an alert fires again before anybody was told of its end": (
        """
        routing: {receiver: mail, escalation: page}
        escalations: [{name: page, steps: [{wait: 10m}, {notify: second}]}]
        """,
        """
          0s | fire a    |
         30s |           | mail first a
        180s | resolve a |
        240s | fire a    |
        630s |           | second escalation/2 a
        700s | resolve a |
        930s |           | mail resolved -a; second resolved -a
        """,
    ),
    "... and begins anew where somebody had acknowledged what is over": (
        """
        routing: {receiver: mail, escalation: page}
        escalations: [{name: page, steps: [{wait: 10m}, {notify: second}]}]
        """,
        """
          0s | fire a    |
         30s |           | mail first a
         60s | ack a     |
        180s | resolve a |
        240s | fire a    |
        840s |           | second escalation/2 a
        """,
    ),
    "who acknowledged an alert that flaps has not acknowledged what comes of it": (
        """
        routing:
          receiver: mail
          group_interval: 1m
          repeat_interval: 2h
          escalation: page
          flap_damping: {window: 20m, start: 4, stop: 1}
        escalations: [{name: page, steps: [{wait: 10m}, {notify: second}]}]
        """,
        """
          0s | fire a    |
         30s |           | mail first a
         40s | resolve a |
         50s | fire a    |
         60s | resolve a |
         70s | fire a    |
         80s | ack a     |
         90s | resolve a |
        100s | fire a    |
       1890s |           | second escalation/2 a
       7230s |           | mail repeat a
        """,
    ),
    "an alert that flaps climbs, too": (
        """
        routing:
          {receiver: mail, escalation: page, flap_damping: {window: 1h, start: 3, stop: 1}}
        escalations: [{name: page, steps: [{wait: 10m}, {notify: second}]}]
        """,
        """
          0s | fire a    |
         30s |           | mail first a
         60s | resolve a |
        120s | fire a    |
        250s | resolve a |
        400s | fire a    |
        500s | resolve a |
        550s | fire a    |
        630s |           | second escalation/2 ~a
        """,
    ),
    "an escalation waits while its alert is inhibited": (
        """
        routing: {receiver: mail, group_by: [alertname], escalation: page}
        escalations: [{name: page, steps: [{wait: 10m}, {notify: second}, {wait: 1m}, {notify: third}]}]
        inhibitions: [{name: down, source: {alertname: Down}, target: {alertname: a}}]
        """,
        """
          0s | fire a       |
         30s |              | mail first a
        560s | fire Down    |
        590s |              | mail first Down
       1000s | resolve Down |
       1190s |              | mail resolved -Down
       1230s |              | second escalation/2 a; third escalation/4 a
          3h | resolve a    |
      10830s |              | mail resolved -a; second resolved -a; third resolved -a
        """,
    ),
    "an escalation that is configured, or made quicker, while alerts stand": (
        {
            "none": "{routing: {receiver: mail}, receivers: [{name: second}, {name: third}]}",
            "slow": "{routing: {receiver: mail, escalation: page}, receivers: [{name: third}], "
            "escalations: [{name: page, steps: [{wait: 5m}, {notify: second}, {wait: 1h}, {notify: third}]}]}",
            "quick": "{routing: {receiver: mail, escalation: page}, "
            "escalations: [{name: page, steps: [{wait: 5m}, {notify: second}, {wait: 5m}, {notify: third}]}]}",
        },
        """
          0s | fire a; fire b |
         30s |                | mail first a b
         40s | ack b          |
        100s | config slow    |
        400s |                | second escalation/2 a
        500s | config quick   |
        700s |                | third escalation/4 a
        800s | config none    |
        900s | config quick   |
          3h |                |
        """,
    ),
    "mute times: held back, told when they are over; an escalation waits for them": (
        """
        routing:
          receiver: root
          routes:
          - {where: {service: web}, receiver: web, mute_time_intervals: [night], escalation: page}
        escalations: [{name: page, steps: [{wait: 5m}, {notify: second}]}]
        time_intervals:
        - {name: night, time_intervals: [{times: [{start_time: "00:00", end_time: "01:00"}]}]}
        """,
        """
          0s | fire a service=web |
         10s | fire b             |
         40s |                    | root first b
       3630s |                    | web first a
       3930s |                    | second escalation/2 a
        """,
    ),
    "active times: held back outside of them": (
        """
        routing:
          receiver: root
          routes:
          - {where: {service: web}, receiver: web, active_time_intervals: [office]}
        time_intervals:
        - name: office
          time_intervals:
          - {times: [{start_time: "01:30", end_time: "02:00"}], weekdays: ["monday:friday"], location: Europe/Paris}
        """,
        """
          0s | fire a service=web |
       1830s |                    | web first a
       1900s | resolve a          |
       2130s |                    | web resolved -a
       3600s | fire a service=web |
         20h |                    |
         24h |                    |
      88230s |                    | web first a
        """,
    ),
    "a changed route tells its alerts anew, an unchanged one goes on": (
        {
            "one": "routing: {receiver: root, routes: [{where: {service: web}, receiver: web}]}",
            "two": "routing: {receiver: root, routes: [{where: {service: db}, receiver: db}]}",
        },
        """
          0s | fire a service=web; fire b service=db |
         30s |                                       | web first a; root first b
        100s | config two                            |
        101s |                                       | db first b
        330s |                                       | root first a
        """,
    ),
    "who was told of an alert, and is left out by a change of its route, hears of its end": (
        {
            "one": "{routing: {receiver: web}, receivers: [{name: quiet, send_resolved: false}]}",
            "two": "{routing: {receiver: db}, receivers: [{name: web}]}",
        },
        """
          0s | fire a; fire b |
         30s |                | web first a b
        100s | config two     |
        330s |                | db first a b
        400s | resolve a      |
        630s |                | db changed b -a; web changed b -a
        700s | fire c         |
        930s |                | db changed b c
       1000s | resolve b      |
       1230s |                | db changed c -b; web resolved -b
       1300s | resolve c      |
       1530s |                | db resolved -c
        """,
    ),
    "... also where another route takes it now": (
        {
            "one": "{routing: {receiver: root, routes: [{where: {service: web}, receiver: web}]}}",
            "two": "{routing: {receiver: root}, receivers: [{name: web}]}",
        },
        """
          0s | fire a service=web |
         30s |                    | web first a
        100s | config two         |
        101s |                    | root first a
        200s | resolve a          |
        401s |                    | root resolved -a; web resolved -a
        """,
    ),
    "... and where it ended just before": (
        {
            "one": "{routing: {receiver: root, routes: [{where: {service: web}, receiver: web}]}}",
            "two": "{routing: {receiver: root, routes: [{where: {service: '=~web'}, receiver: web}]}}",
        },
        """
          0s | fire a service=web |
         30s |                    | web first a
        100s | resolve a          |
        110s | config two         |
        111s |                    | web resolved -a
        """,
    ),
    "... or is of another severity when it fires again": (
        """
        routing:
          receiver: root
          routes: [{where: {severity: critical}, receiver: pager}]
        """,
        """
          0s | fire a severity=critical |
         30s |                          | pager first a
        200s | resolve a                |
        210s | fire a severity=warning  |
        240s |                          | root first a
        400s | resolve a                |
        540s |                          | root resolved -a; pager resolved -a
        """,
    ),
    "routing that is removed, and comes back, knows what it has told": (
        {"some": "routing: {receiver: mail, escalation: page}\n"
         "escalations: [{name: page, steps: [{wait: 2m}, {notify: second}]}]", "none": "teams: []"},
        """
          0s | fire a; fire b; fire c |
         30s |                        | mail first a b c
         40s | config none            |
        100s | resolve a              |
        110s | resolve b; fire b      |
        120s | fire d                 |
        400s | resolve d; fire e      |
        900s | config some            | mail changed b c e -a; second escalation/2 b c
       1020s |                        | second escalation/2 e
          1h |                        |
        """,
    ),
    "without routing nobody is told; with it everybody is told of what fires": (
        {"none": "teams: []", "some": MAIL},
        """
          0s | fire a; fire b |
         10m | resolve b      |
         20m | config some    |
       1201s |                | mail first a
        """,
    ),
}  # fmt: skip


@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, restarts: bool) -> None:
    config, text = SCENARIOS[name]
    play(config, text, restarts=restarts)


# -- Alertmanager's own acceptance tests ---------------------------------------------------------------


def reference_config(config: dict[str, Any]) -> str:
    """A reference case's configuration in our words. Its group_by of nothing is one group, as ours is."""
    inhibitions = [
        {"name": f"rule-{number}", "source": one["source"], "target": one["target"], "equal": one["equal"]}
        for number, one in enumerate(config.get("inhibit", []))
    ]
    routing = {
        key: f"{round(config[key] * 1000)}ms"
        for key in ("group_wait", "group_interval", "repeat_interval")
        if key in config
    }
    return json.dumps(
        {
            "routing": {"receiver": "hook", "group_by": config["group_by"], **routing},
            "receivers": [{"name": "hook", "send_resolved": config.get("send_resolved", False)}],
            "inhibitions": inhibitions,
        }
    )


@pytest.mark.parametrize("case", reference("alertmanager_grouping"))
def test_reference(case: dict[str, Any]) -> None:
    """A push tells firing and ended alerts; ours has an event for each. `resolve_timeout`, after which Alertmanager
    takes a silent sender's alert for over, has no counterpart: the evaluator says when one is over, as here."""
    config = case["config"]
    pushes: list[tuple[float, dict[str, Any]]] = []
    for push in case["push"]:
        for alert in push["alerts"]:
            pushes.append((push["at"], alert))
            if "resolve_timeout" in config:
                ends = push["at"] + config["resolve_timeout"]
                pushes.append((ends, alert | {"ends_at": ends}))
    world = World.of(config_of(reference_config(config)))
    end = max(want["between"][1] for want in case["want"])
    sent: list[tuple[int, Notification]] = []
    for at, alert in sorted(pushes, key=lambda one: one[0]):
        sent += world.advance(START_US + round(at * S))
        labels = dict(alert["labels"])
        name = labels.pop("alertname")
        key = f"{name}/{labels}"
        if "ends_at" in alert:
            world.change(key, Transition.RESOLVED, START_US + round(alert["ends_at"] * S))
        else:
            world.fire(key, labels, at_us=START_US + round(alert.get("starts_at", at) * S))
    sent += world.advance(START_US + round(end * S))

    assert len(sent) == len(case["want"]), [told(one) for _, one in sent]
    for (t_us, notification), want in zip(sent, case["want"], strict=True):
        low, high = want["between"]
        assert low <= (t_us - START_US) / S <= high
        found = {
            (one.alert.name, *sorted(one.alert.labels.items())): (
                (us_of(one.alert.timestamp) - START_US) / S,
                None if one.firing else (us_of(one.alert.resolved_at) - START_US) / S,
            )
            for one in notification.alerts
        }
        wanted = {}
        for alert in want["alerts"]:
            labels = dict(alert["labels"])
            wanted[(labels.pop("alertname"), *sorted(labels.items()))] = (alert["starts_at"], alert.get("ends_at"))
        assert found == wanted


# -- what is in a notification -------------------------------------------------------------------------


def test_a_notification_says_what_its_alerts_have_in_common() -> None:
    world = World.of(config_of("routing: {receiver: mail, group_by: [service]}"))
    world.fire("a", {"service": "web", "host.name": "one"}, "critical")
    world.fire("b", {"service": "web", "host.name": "two"})
    ((_, found),) = world.advance(START_US + 30 * S)
    assert (found.status, found.firing, found.resolved, found.truncated) == ("firing", 2, 0, 0)
    assert found.group_labels == {"service": "web"}
    assert found.common_labels == {"service": "web"}
    assert found.group_key == '{}:{service="web"}'
    assert [one.alert.name for one in found.alerts] == ["a", "b"]  # the gravest first


def test_a_notification_of_very_many_alerts_has_the_gravest_and_fits_into_a_message() -> None:
    world = World.of(config_of("routing: {receiver: mail}"))
    for number in range(10_000):
        world.fire(f"a/{number}", {"n": str(number), "text": "x" * 3000}, "critical" if number == 77 else "info")
    ((_, found),) = world.advance(START_US + 60 * S)
    assert found.firing == 10_000
    assert found.alerts[0].alert.labels["n"] == "77"
    assert 50 < len(found.alerts) <= 200
    assert len(found.alerts) + found.truncated == 10_000
    assert len(found.model_dump_json()) < 900_000


def test_a_command_for_an_alert_that_is_not_known_is_answered_with_the_reason() -> None:
    world = World.of(config_of("routing: {receiver: mail}"))
    answer = world.command(CommandKind.SILENCE, "unknown", 60)
    assert answer is not None
    assert (answer.transition, answer.reason) == (Transition.REJECTED, "there is no such alert now")
    world.fire("a", {})
    assert world.command(CommandKind.ACKNOWLEDGE, "a") is None  # not for the dispatcher
    answer = world.command(CommandKind.SILENCE, "a")
    assert answer is not None
    assert "needs a duration" in answer.reason
    answer = world.command(CommandKind.UNSILENCE, "a")
    assert answer is not None
    assert "no command has silenced this alert" in answer.reason


def test_an_end_that_a_crash_has_numbered_anew_is_an_end() -> None:
    world = World.of(config_of("routing: {receiver: mail}"))
    world.fire("a", {})
    assert [one.status for _, one in world.advance(START_US + 30 * S)] == ["firing"]
    world.change("a", Transition.ACKNOWLEDGED)
    world.sequences["a"] -= 1  # the replay judges before it has the command
    world.change("a", Transition.RESOLVED)
    assert [one.status for _, one in world.advance(START_US + 600 * S)] == ["resolved"]


@pytest.mark.parametrize("config", ["teams: []", MAIL, "routing: {receiver: mail, flap_damping: {window: 1h}}"])
def test_of_alerts_that_are_over_no_labels_are_kept_whether_anybody_is_told_or_not(config: str) -> None:
    world = World.of(config_of(config))
    for number in range(100):
        world.fire(f"crash/{number}", {"pod": f"pod-{number}"})
        world.advance(world.now_us + 60 * S)
        world.change(f"crash/{number}", Transition.RESOLVED)
        world.advance(world.now_us + 600 * S)
    world.fire("last", {})
    world.advance(world.now_us + 7200 * S)
    assert b"pod-" not in world.dispatcher.snapshot()


def test_state_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        Dispatcher(config_of("teams: []"), pickle.dumps((99,)))


def test_what_a_configuration_names_and_has_not_is_told_to_that_name() -> None:
    """Failing towards telling: `tailrace check` refuses such a configuration, but records come one by one."""
    child = Route(team="nobody", mute_time_intervals=("x",), active_time_intervals=("x",), escalation="x")
    routing = Routing(receiver="root", routes=(child,)).model_copy(update={"group_wait": 0.0})
    world = World.of(DispatchConfig(routing=routing))
    world.fire("a", {})
    assert [told(one) for _, one in world.advance(START_US)] == ["nobody first a"]
