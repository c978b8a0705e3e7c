"""Routes, receivers and the rest as users write them: what is wrong with them, what they mean, and what they hide."""

# ruff: noqa: E501 - tables

from typing import Any

import pytest
from tailrace_schemas.config import ConfigError, load, model_of, record_of
from tailrace_schemas.config.receivers import Receiver

GOOD = """
routing:
  receiver: sre
  group_by: [alertname, service]
  repeat_interval: 12h
  flap_damping: {window: 30m, start: 8, stop: 2}
  routes:
  - where: {severity: critical, service: "=~checkout|payment"}
    team: payments
    group_wait: 10s
    cooldown: 15m
    escalation: page
    continue: true
    active_time_intervals: [office]
    routes:
    - {where: {zone: test}, receiver: nobody, mute_time_intervals: [office]}
receivers:
- {name: sre, email: {to: [sre@example.org], from: t@example.org, host: mail, username: t, password: "${env:SMTP}"}}
- {name: chat, apprise: {url: "slack://${env:SLACK}"}, send_resolved: false, rate_limit: {messages: 10, per: 1m}}
- {name: hook, webhook: {url: "https://example.org/x", headers: {Authorization: "${file:/run/token}"}}}
- {name: nobody}
teams: [{name: payments, receivers: [chat, hook]}]
escalations: [{name: page, steps: [{wait: 5m}, {notify: hook}, {wait: 10m}, {team: payments}]}]
inhibitions: [{name: down, source: {alertname: Down}, target: {severity: "!=critical"}, equal: [service]}]
silences:
- {name: deploy, where: {service: web}, start: "2026-01-05T10:00:00+01:00", end: 2026-01-05T12:00:00Z, author: ann}
time_intervals:
- {name: office, time_intervals: [{times: [{start_time: "09:00", end_time: "17:00"}], weekdays: ["monday:friday"]}]}
"""


def test_what_it_means_in_sentences() -> None:
    found = [sentence for item in load([("a.yaml", GOOD)]).items for sentence in item.model.sentences()]
    assert found == [
        "every alert that no other route takes is told to sre; grouped by alertname, service; again after 12h",
        "an alert where severity is critical and service matches checkout|payment is told to the team payments; "
        "first after 10s; anew not within 15m; escalated by page; only during office",
        "an alert where zone is test is told to nobody; never during office",
        "sre: tells by email",
        "chat: tells by apprise",
        "hook: tells by webhook",
        "nobody: tells nobody",
        "the team payments is told through chat, hook",
        "page: while nobody acknowledges, tells hook 5m after the first notification, then the team payments 15m after "
        "the first notification",
        "down: an alert where severity is not critical is held back while one fires where alertname is Down and has the "
        "same service",
        "deploy: alerts where service is web are held back from 2026-01-05T10:00:00+01:00 to 2026-01-05T12:00:00+00:00, "
        "by ann",
    ]


def test_records_of_the_config_topic_say_the_same_and_keep_references_as_they_are() -> None:
    items = load([("a.yaml", GOOD)]).items
    records = [record_of(item) for item in items]
    assert [record.key for record in records][:2] == ["routing/routing", "receiver/sre"]
    for item, record in zip(items, records, strict=True):
        assert record.value is not None
        assert model_of(record.key, record.value) == item.model
    assert records[1].value is not None
    assert records[1].value["email"]["password"] == "${env:SMTP}"


ROUTING = "receivers: [{name: a}]\nrouting:\n  receiver: a\n"

WRONG = {
    # what is written                                            what is said
    "routing: {}": "a.yaml:1: routing: the root route needs",
    "routing: {where: {a: b}, receiver: a}\nreceivers: [{name: a}]": "a.yaml:1: routing.where: the root route takes every",
    "routing: {receiver: b}": "a.yaml:1: routing.receiver: there is no receiver 'b'; there are: none",
    ROUTING + "  routes:\n  - {}\n  - team: x\n": "a.yaml:6: routing.routes[1].team: there is no team 'x'; there are: none",
    ROUTING + "  routes:\n  - escalation: x": "a.yaml:5: routing.routes[0].escalation: there is no escalation 'x'",
    ROUTING + "  routes:\n  - mute_time_intervals:\n    - x": "mute_time_intervals[0]: there is no time interval 'x'",
    ROUTING + "  team: b": "a.yaml:4: routing.team: there is a receiver, a, already",
    ROUTING + "  group_wait: 30": "a.yaml:4: routing.group_wait: a duration has a unit",
    ROUTING + "  group_waits: 30s": "a.yaml:4: routing.group_waits: there is no such key; did you mean 'group_wait'?",
    ROUTING + "  flap_damping: {start: 3, stop: 3}": "a.yaml:4: routing.flap_damping.stop: must be less than start",
    "teams: [{name: a, receivers: []}]": "teams[0].receivers",
    "teams: [{name: a, receivers: [b]}]": "teams[0].receivers[0]: there is no receiver 'b'",
    "escalations: [{name: a, steps: [{wait: 5m}]}]": "escalations[0].steps[0]: the last step waits for nothing",
    "escalations: [{name: a, steps: [{notify: b}]}]": "escalations[0].steps[0].notify: there is no receiver 'b'",
    "escalations: [{name: a, steps: [{wait: 5m, notify: b}]}]": "a step is one of: wait",
    "silences: [{name: a, where: {b: c}, start: 2026-01-05T10:00:00Z, end: 2026-01-05T09:00:00Z, author: d}]":
        "silences[0].end: must be later than the start",
    "silences: [{name: a, where: {b: '!=c'}, start: 2026-01-05T10:00:00Z, end: 2026-01-06T09:00:00Z, author: d}]":
        "silences[0].where: this matches every alert that lacks these labels",
    "silences: [{name: a, where: {b: c}, start: 2026-01-05T10:00:00, end: 2026-01-06T09:00:00Z, author: d}]":
        "silences[0].start: Input should have timezone info",
    "receivers: [{name: a, webhook: {url: x}, apprise: {url: y}}]": "receiver a: give one of apprise, webhook, email",
    "receivers: [{name: a, email: {to: [b], from: c@d, host: e, tls: none, password: hush}}]":
        "receivers[0].email.password: a password is not sent in clear",
    "receivers: [{name: 'a b'}]": "receivers[0].name: must match",
    "receivers:\n- name: a\n  templates: {title: '{{ x'}": "a.yaml:3: receivers[0].templates.title: this is no template",
    f"receivers: [{{name: a, templates: {{text: '{{{{{'(' * 2000}1{')' * 2000}}}}}'}}}}]": "templates.text: this is no template: it is",
}  # fmt: skip


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_its_line(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([("a.yaml", text)])
    assert WRONG[text] in str(caught.value)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"apprise": {"url": "slack://hush"}},
        {"webhook": {"url": "https://u:hush@x", "headers": {"X-Token": "hush"}}},
        {"email": {"to": ["a@b"], "from": "c@d", "host": "e", "password": "hush"}},
    ],
)
def test_a_receiver_does_not_show_its_secrets(fields: dict[str, Any]) -> None:
    receiver = Receiver.model_validate({"name": "a", **fields}, strict=False)
    assert "hush" not in repr(receiver) + str(receiver)
    with pytest.raises(ValueError, match="b") as caught:
        Receiver.model_validate({"name": "a", **fields, "b": "hush"}, strict=False)
    assert "hush" not in str(caught.value)
