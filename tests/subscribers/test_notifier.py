"""`tailrace notify` as a process, between the embedded broker and real receivers."""

import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import yaml
from confluent_kafka import Producer
from tailrace_infra.child import start_child
from tailrace_schemas.alerts import Transition
from tailrace_schemas.notifications import Notification
from tailrace_schemas.topics import Topics

from tests.flows.alerting.dispatching import START_US, World, config_of
from tests.flows.alerting.scenario import S
from tests.subscribers.receiving import (
    TOPICS,
    Hook,
    apply,
    hooks,
    notification,
    notifier,
    produce,
    smtp_server,
    webhook_server,
)


@pytest.fixture
def hook() -> Iterator[Hook]:
    with webhook_server() as found:
        yield found


def test_a_storm_of_ten_thousand_alerts_becomes_a_handful_of_messages(
    embedded_broker: str, hook: Hook, tmp_path: Path
) -> None:
    """From alert events through the dispatcher, the topic and the notifier to a webhook and a mailbox."""
    with smtp_server() as mailbox:
        config = yaml.safe_dump(
            {
                "routing": {
                    "receiver": "mail",
                    "group_by": ["service"],
                    "routes": [{"where": {"severity": "critical"}, "receiver": "hook", "continue": True}, {}],
                },
                "receivers": [
                    {"name": "hook", "webhook": {"url": f"{hook.url}/storm"}},
                    {
                        "name": "mail",
                        "email": {"to": ["sre@example.org"], "from": "tailrace@example.org", "host": "127.0.0.1",
                                  "port": mailbox.port, "tls": "none"},
                    },
                ],
            }
        )  # fmt: skip
        world = World.of(config_of(config))
        for number in range(10_000):
            severity = "critical" if number % 10 == 0 else "warning"
            world.fire(f"a/{number}", {"service": f"s{number % 3}", "n": str(number)}, severity)
        sent = [one for _, one in world.advance(START_US + 3600 * S)]
        assert len(sent) == 6
        apply(embedded_broker, config)
        produce(embedded_broker, sent)
        with notifier(embedded_broker, tmp_path / "out") as running:
            running.until(lambda: len(hook.got) == 3 and len(mailbox.got) == 3)
            assert running.stop() == 0
    assert sorted(hook.ids()) == sorted(one.id for one in sent if one.receiver == "hook")
    told = [Notification.model_validate_json(body) for _, _, body in hook.got]
    assert sorted(told, key=lambda one: one.id) == sorted(
        (one for one in sent if one.receiver == "hook"), key=lambda one: one.id
    )
    assert sum(one.firing for one in told) == 1000
    subjects = sorted(message["Subject"] for message in mailbox.got)
    assert subjects == [f"[FIRING:{n}] a service=s{k}" for n, k in ((3333, 1), (3333, 2), (3334, 0))]
    ids = {one.id for one in sent if one.receiver == "mail"}
    assert {message["Message-ID"].strip("<>").partition("@")[0] for message in mailbox.got} == ids
    text = mailbox.got[0].get_body(("plain",))
    assert text is not None
    assert "more" in text.get_content()


def test_more_groups_than_a_receiver_takes_become_one_digest(embedded_broker: str, tmp_path: Path) -> None:
    with smtp_server() as mailbox:
        email = {"to": ["a@example.org"], "from": "t@example.org", "host": "127.0.0.1", "port": mailbox.port}
        limit = {"messages": 3, "per": "1h"}
        config = {"receivers": [{"name": "mail", "email": email | {"tls": "none"}, "rate_limit": limit}]}
        apply(embedded_broker, yaml.safe_dump(config))
        produce(embedded_broker, [notification(number, "mail") for number in range(500)])
        with notifier(embedded_broker, tmp_path / "out", "--format", "json") as running:
            running.until(lambda: sum(_count(message["Subject"]) for message in mailbox.got) == 500)
            assert running.stop() == 0
        assert len(mailbox.got) <= 3
        assert any("groups of alerts" in message["Subject"] for message in mailbox.got)


def _count(subject: str) -> int:
    """How many alerts a message is about: [FIRING:1] a, or [497 firing, 0 resolved] 497 groups of alerts."""
    found = re.match(r"\[(?:FIRING:)?(\d+)", subject)
    assert found, subject
    return int(found[1])


def test_a_receiver_that_fails_blocks_nobody_and_is_logged_once_without_its_secrets(
    embedded_broker: str, hook: Hook, tmp_path: Path
) -> None:
    """The server says in its answer what it was sent; all of the output, at the most talkative, is looked through."""
    failing = threading.Event()
    failing.set()
    hook.answer = lambda path: (
        (503, {}, b"try later " + path.encode()) if path.startswith("/bad") and failing.is_set() else (200, {}, b"")
    )
    (tmp_path / "key").write_text("hush-key")
    bad = {
        "url": f"{hook.url}/bad/${{env:HUSH}}?key=${{file:{tmp_path}/key}}",
        "headers": {"Authorization": "Bearer ${env:HUSH}", "X-Clear": "hush-in-clear"},
    }
    where = hook.url.removeprefix("http://")
    chat = {"name": "chat", "apprise": {"url": f"json://me:${{env:HUSH}}@{where}/bad/?+X-Token=hush-apprise"}}
    good = {"name": "good", "webhook": {"url": f"{hook.url}/good"}}
    apply(embedded_broker, yaml.safe_dump({"receivers": [{"name": "bad", "webhook": bad}, good, chat]}))
    produce(embedded_broker, [notification(100, "chat")])
    batch = [notification(number, ("bad", "good")[number % 2]) for number in range(20)]
    produce(embedded_broker, batch)
    secrets = {"HUSH": "hush-token", "TAILRACE_LOG": "DEBUG"}
    with notifier(embedded_broker, tmp_path / "out", "--format", "json", **secrets) as running:
        running.until(lambda: len(hook.ids("/good")) == 10 and len(hook.ids("/bad/hush")) >= 3)
        assert len(set(hook.ids("/bad/hush"))) == 1  # the first, again and again: nothing else is tried meanwhile
        assert "hush" not in " ".join(psutil.Process(running.process.pid).cmdline())
        failing.clear()
        running.until(lambda: len(set(hook.ids("/bad/hush"))) == 10 and "told chat" in running.output())
        assert running.stop() == 0
        output = running.output()
    assert sorted(hook.ids("/good")) == sorted(one.id for one in batch if one.receiver == "good")
    assert output.count("HTTP 503 try later") == 1
    assert "chat: Failed to send JSON POST notification: Servers are overloaded" in output
    assert "hush" not in output
    assert {headers.get("X-Clear") for path, headers, _ in hook.got if path.startswith("/bad/hush")} == {
        "hush-in-clear"
    }
    counts = {(row["receiver"], row["what"]): row["count"] for row in _summary(output)}
    assert counts["good", "sent"] == counts["bad", "sent"] == 10
    assert counts["bad", "retried"] >= 3


def _summary(output: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(output[output.index("\n[\n") :])
    return found


def test_what_needs_no_message_is_counted_and_left_behind(embedded_broker: str, hook: Hook, tmp_path: Path) -> None:
    """Unknown receivers, duplicates of the dispatcher, no notifications at all, and a receiver that tells nobody."""
    apply(embedded_broker, hooks(hook, "hook") + "- {name: nobody}\n")
    one = notification(1)
    produce(embedded_broker, [notification(2, "stranger"), notification(3, "nobody"), one, one])
    producer = Producer({"bootstrap.servers": embedded_broker, "log_level": 0})
    producer.produce(TOPICS.notifications, b"\xff", b"group-1")
    assert producer.flush(10) == 0
    with notifier(embedded_broker, tmp_path / "out", "--format", "json") as running:
        running.until(lambda: hook.got)
        running.until(lambda: "stranger" in running.output() and "holds no notification" in running.output())
        assert running.stop() == 0
        counts = {(row["receiver"], row["what"]): row["count"] for row in _summary(running.output())}
    expected = {("hook", "sent"): 1, ("hook", "duplicate"): 1, ("nobody", "discarded"): 1, ("", "invalid"): 1}
    assert counts.items() >= {**expected, ("stranger", "unknown_receiver"): 1}.items()
    # Everything was left behind: a second one, which knows the duplicate's id from what it reads again, sends nothing.
    produce(embedded_broker, [one, notification(4)])
    with notifier(embedded_broker, tmp_path / "second", "--format", "json") as running:
        running.until(lambda: len(hook.got) == 2)
        assert running.stop() == 0
        counts = {(row["receiver"], row["what"]): row["count"] for row in _summary(running.output())}
    assert counts == {("hook", "sent"): 1, ("hook", "messages"): 1, ("hook", "duplicate"): 1}


@pytest.mark.parametrize("broker", ["embedded_broker", pytest.param("kafka", marks=pytest.mark.kafka)])
def test_a_kill_repeats_at_most_one_message_for_each_receiver(
    broker: str, hook: Hook, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed in the middle; a second one finishes. One receiver fails all the time until then."""
    servers = request.getfixturevalue(broker)
    topics = Topics(f"test-{uuid4().hex[:8]}")
    prefix = {"TAILRACE_KAFKA__TOPIC_PREFIX": topics.prefix}
    failing = threading.Event()
    failing.set()
    hook.answer = lambda path: (500, {}, b"") if path == "/bad" and failing.is_set() else (200, {}, b"")
    names = ("one", "two", "three", "bad")
    apply(servers, hooks(hook, *names), topics)
    batch = [notification(number, names[number % 4]) for number in range(160)]
    produce(servers, batch, topics)
    with notifier(servers, tmp_path / "out", **prefix) as running:
        running.until(lambda: len(hook.ids("/one")) >= 11)
        running.process.kill()
        running.process.wait()
    assert len(hook.ids("/one")) < 40
    failing.clear()
    with notifier(servers, tmp_path / "out", **prefix) as running:
        running.until(lambda: all(len(set(hook.ids(f"/{name}"))) == 40 for name in names), 60)
        assert running.stop() == 0
    for name in names[:3]:
        times = Counter(hook.ids(f"/{name}"))
        assert set(times) == {one.id for one in batch if one.receiver == name}
        assert sum(count - 1 for count in times.values()) <= 1, name


def test_it_ends_in_time_though_kafka_takes_no_commit(hook: Hook, tmp_path: Path) -> None:
    broker = start_child("tailrace_infra.broker")
    address = broker.ready["bootstrap_servers"]

    def answer(_path: str) -> tuple[int, dict[str, str], bytes]:
        os.kill(broker.process.pid, signal.SIGSTOP)
        return 200, {}, b""

    hook.answer = answer
    try:
        apply(address, hooks(hook, "hook"))
        produce(address, [notification(1)])
        with notifier(address, tmp_path / "out") as running:
            running.until(lambda: "told hook" in running.output())
            assert running.stop() == 0
            assert "Kafka does not answer: what was sent last is not committed" in running.output()
    finally:
        broker.process.send_signal(signal.SIGCONT)
        broker.stop()


def test_a_receiver_that_is_new_is_told_though_its_notification_comes_at_once(
    embedded_broker: str, hook: Hook, tmp_path: Path
) -> None:
    """The dispatcher may read a new configuration a second before the notifier does."""
    apply(embedded_broker, hooks(hook, "first"))
    with notifier(embedded_broker, tmp_path / "out") as running:
        produce(embedded_broker, [notification(0, "first")])
        running.until(lambda: hook.ids("/first"))
        names = [f"new-{number}" for number in range(5)]
        for number, name in enumerate(names, 1):
            apply(embedded_broker, hooks(hook, name))
            produce(embedded_broker, [notification(number, name)])
        running.until(lambda: all(hook.ids(f"/{name}") for name in names), 20)
        assert running.stop() == 0


def test_a_url_that_python_does_not_parse_stops_nobody(embedded_broker: str, hook: Hook, tmp_path: Path) -> None:
    """It may be one all the same, to who sends there. Put in force while the notifier runs, and when it starts."""
    apply(embedded_broker, hooks(hook, "good"))
    odd = hook.url.replace("//", "//me:pass[word@") + "/odd"
    config = yaml.safe_dump({"receivers": [{"name": "odd", "webhook": {"url": odd}}]})
    numbers = iter(range(100))
    for times in (1, 2):
        with notifier(embedded_broker, tmp_path / "out") as running:
            produce(embedded_broker, [notification(next(numbers), "good")])
            running.until(lambda times=times: len(hook.ids("/good")) == 2 * times - 1)
            apply(embedded_broker, config)
            produce(embedded_broker, [notification(next(numbers), name) for name in ("odd", "good")])
            running.until(lambda times=times: (len(hook.ids("/good")), len(hook.ids("/odd"))) == (2 * times, times))
            assert running.stop() == 0
            assert "pass[word" not in running.output()


def test_what_ended_while_nobody_could_be_told_is_told_though_a_newer_notification_came(
    embedded_broker: str, hook: Hook, tmp_path: Path
) -> None:
    """A receiver that keeps alerts by their ids, as ticket systems and pagers do, ends with what the last state is: an
    alert's end is in one notification only, and that may be overtaken while it waits. Killed and started in between.
    """
    route = {"receiver": "hook", "group_by": ["team"], "group_wait": "1s", "group_interval": "5s"}
    webhook = {"url": hook.url, "format": "alertmanager"}
    config = yaml.safe_dump({"routing": route, "receivers": [{"name": "hook", "webhook": webhook}]})
    world = World.of(config_of(config))
    sent: list[Notification] = []
    for act in ("fire a", "fire b", "resolve a", "fire c", "resolve b", "fire d"):
        verb, name = act.split()
        if verb == "fire":
            world.fire(name, {"team": "t", "name": name})
        else:
            world.change(name, Transition.RESOLVED)
        sent += [one for _, one in world.advance(world.now_us + 10 * S)]
    assert len(sent) == 6
    failing = threading.Event()
    hook.answer = lambda _path: (503 if failing.is_set() else 200, {}, b"")
    apply(embedded_broker, config)
    produce(embedded_broker, sent[:2])
    with notifier(embedded_broker, tmp_path / "out") as running:
        running.until(lambda: "told hook" in running.output())
        told = len(hook.got)
        failing.set()
        produce(embedded_broker, sent[2:4])
        running.until(lambda: len(hook.got) >= told + 2)
        running.process.kill()
        running.process.wait()
    tried = len(hook.got)
    produce(embedded_broker, sent[4:])
    failing.clear()
    with notifier(embedded_broker, tmp_path / "out", "--format", "json") as running:
        running.until(lambda: sent[-1].id in hook.ids())
        assert running.stop() == 0
        counts = {(row["receiver"], row["what"]): row["count"] for row in _summary(running.output())}
    state: dict[str, str] = {}
    for body in [*hook.bodies()[:told], *hook.bodies()[tried:]]:
        state |= {alert["labels"]["name"]: alert["status"] for alert in body["alerts"]}
    assert counts["hook", "superseded"] == 3
    assert state == {"a": "resolved", "b": "resolved", "c": "firing", "d": "firing"}


def test_a_secret_s_file_that_cannot_be_read_to_its_end_holds_up_its_receiver_alone(
    embedded_broker: str, hook: Hook, tmp_path: Path
) -> None:
    """As on a file server that is away; here a pipe that nobody writes to."""
    os.mkfifo(tmp_path / "pipe")
    hanging = {"url": f"{hook.url}/hanging", "headers": {"Authorization": f"Bearer ${{file:{tmp_path}/pipe}}"}}
    good = {"name": "good", "webhook": {"url": f"{hook.url}/good"}}
    apply(embedded_broker, yaml.safe_dump({"receivers": [{"name": "hanging", "webhook": hanging}, good]}))
    produce(embedded_broker, [notification(number, ("hanging", "good")[number % 2]) for number in range(6)])
    with notifier(embedded_broker, tmp_path / "out") as running:
        running.until(lambda: len(hook.ids("/good")) == 3)
        assert running.stop() == 0


def test_no_part_of_a_secret_is_logged_where_an_answer_is_cut_or_a_library_quotes_it(
    embedded_broker: str, hook: Hook, tmp_path: Path
) -> None:
    hook.answer = lambda path: (503, {}, b"-" * 270 + path.encode())
    where = hook.url.removeprefix("http://")
    receivers = [
        {"name": "cut", "webhook": {"url": f"{hook.url}/${{env:LONG}}"}},
        {"name": "header", "webhook": {"url": hook.url, "headers": {"Authorization": "Bearer ${env:LINES}"}}},
        {"name": "url", "webhook": {"url": "${env:LINES}"}},
        {"name": "scheme", "webhook": {"url": "${env:BACK}"}},
        {"name": "chat", "apprise": {"url": f"json://me:${{env:LINES}}@{where}/"}},
    ]
    apply(embedded_broker, yaml.safe_dump({"receivers": receivers}))
    produce(embedded_broker, [notification(number, one["name"]) for number, one in enumerate(receivers)])
    secrets = {"LONG": "hush" * 100, "LINES": "hush-one\nhush-two", "BACK": "hush\\back", "TAILRACE_LOG": "DEBUG"}
    with notifier(embedded_broker, tmp_path / "out", **secrets) as running:
        running.until(lambda: all(f'"{one["name"]}: ' in running.output() for one in receivers))
        assert running.stop() == 0
        output = running.output()
    assert "hush" not in output, output
    assert "-" * 250 + "***" in output
