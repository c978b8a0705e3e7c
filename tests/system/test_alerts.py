"""From samples to alert events, on real processes: the topic and ClickHouse tell the same, whatever is killed."""

import json
import random
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tailrace_flows.config_topic import publish
from tailrace_infra.child import Child
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Transition, time_of
from tailrace_schemas.clock import now_us
from tailrace_schemas.cloudevents import command_message, read_event
from tailrace_schemas.config import Record, load, record_of
from tailrace_schemas.samples import Series, encode_batch, encode_series_table
from tailrace_sinks.kafka import KafkaWriter

from tests.infra.command import tailrace
from tests.infra.waiting import eventually
from tests.system.harness import Bench, bench
from tests.system.proxy import Mode, proxy_to

S = 1_000_000
ASIDE = (Transition.REJECTED, Transition.SILENCED, Transition.UNSILENCED)
"""Events that leave an alert as it is."""
CONFIG = """
groups:
- name: host
  rules:
  - alert: Busy
    severity: error
    metric: cpu
    aggregate: mean
    by: [service, host]
    op: gt
    threshold: 0.9
    for: 20s
    description: "{host} is at {value:.0%}"
slos:
- name: cool
  service: web
  objective: 99%
  period: 30d
  indicator: {good: {metric: cool}, total: {metric: requests}}
health_checks:
- {name: alive, service: web, heartbeat: {metric: cpu, within: 1h}}  # however slow this machine is
routing: {receiver: log, group_wait: 0s}
receivers:
- {name: log, webhook: {url: "http://127.0.0.1:9/"}}
"""


def records(text: str) -> list[Record]:
    return [record_of(item) for item in load([("rules.yaml", text)]).items]


def put_in_force(b: Bench, text: str) -> None:
    publish(KafkaWriter(b.settings.kafka.client()), b.settings.kafka.topics.config, records(text))


class Host:
    """A host's gauge of 1 s; each call is one message."""

    def __init__(self, b: Bench, start_us: int, name: str = "one") -> None:
        self._bench, self._name = b, name
        self.at_us = start_us
        self._sequence = 0
        self._producer = b.producer()

    def busy(self, value: float, seconds: int) -> None:
        """The value, once a second, for so long."""
        table = encode_series_table([Series("cpu", "gauge", "1", (("host", self._name),))])
        message = encode_batch(
            service="web", producer_id=self._name, sequence=self._sequence, base_time_us=self.at_us, series_table=table,
            series_index=bytes(4 * seconds),
            time_offset_us=b"".join((second * S).to_bytes(4, "little") for second in range(seconds)),
            value=struct.pack("<d", value) * seconds,
        )  # fmt: skip
        self._bench.send(self._producer, [("web", message)])
        self.at_us += seconds * S
        self._sequence += 1


def events(b: Bench) -> list[AlertEvent]:
    """Those on the topic, each once, in order."""
    found: dict[str, AlertEvent] = {}
    for message in b.read_topic(b.settings.kafka.topics.alerts):
        event = read_event(message.value() or b"")
        assert dict(message.headers() or [])["ce_id"].decode() == event.id
        found.setdefault(event.id, event)
    return sorted(found.values(), key=lambda one: (one.alert.id if one.alert else "", one.sequence))


class People:
    """Those who use the command."""

    def __init__(self, b: Bench) -> None:
        self._environment = b.environment

    def say(self, *arguments: str, **environment: str) -> str:
        """What `tailrace alerts ...` answers."""
        done = tailrace("alerts", *arguments, environment={**self._environment, **environment})
        assert not done.stdout
        return done.stderr.strip().removeprefix("tailrace: ")

    def ask(self, *arguments: str) -> list[dict[str, Any]]:
        """The rows that `tailrace alerts ...` shows."""
        done = tailrace("alerts", *arguments, "--format", "json", environment=self._environment)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows


def told(event: AlertEvent) -> tuple[str, int, str]:
    assert event.alert is not None
    return event.transition.value, round(event.time.timestamp()), event.alert.labels["host"]


@contextmanager
def flows(b: Bench, *names: str) -> Iterator[list[Child]]:
    # Only event time closes windows: how fast this machine is makes no difference.
    children = [b.start_flow(name, TAILRACE_WINDOWS__IDLE_S="600") for name in names]
    try:
        yield children
    finally:
        codes = [child.stop() for child in children]
    assert codes == [0] * len(names), b.log()


def test_an_alert_begins_is_acknowledged_and_ends(embedded_broker: str, clickhouse_url: str, tmp_path: Path) -> None:
    with bench(embedded_broker, clickhouse_url, tmp_path, "alert", "snapshot") as b:
        put_in_force(b, CONFIG)
        start_us = (now_us() // (10 * S) - 6) * 10 * S
        start = start_us // S
        with flows(b, "windows", "alerts,slo,health"):
            host = Host(b, start_us)
            host.busy(0.5, 20)
            host.busy(0.95, 45)
            (first,) = eventually(lambda: events(b), 60)
            assert told(first) == ("active", start + 50, "one")  # the first bad window ends at 30, for 20 s
            alert = first.alert
            assert alert is not None
            assert (alert.description, alert.timestamp) == ("one is at 95%", time_of(start_us + 30 * S))
            people = People(b)
            assert people.say("ack", alert.id[:6], "-m", "on it", "--author", "ann") == "acknowledged: Busy"
            nobody_there = {"TAILRACE_CLICKHOUSE__URL": "http://127.0.0.1:1"}
            assert "ann acknowledged it" in people.say("ack", alert.id, "--author", "bob", **nobody_there)
            assert people.say("annotate", alert.id, "restarted it", "--action") == "annotated: Busy"
            assert people.say("mark", alert.id) == "marked: Busy"
            assert people.say("silence", alert.id, "--for", "2h") == "silenced: Busy"
            assert people.say("silence", alert.id, "--end") == "unsilenced: Busy"
            assert "no alert has an id" in people.say("ack", "nobody")
            (shown,) = people.ask("list")
            assert (shown["id"], shown["status"], shown["labels"]["host"]) == (alert.id, "acknowledged", "one")
            writer = KafkaWriter(b.settings.kafka.client())
            unknown = Command(
                id="c2", kind=CommandKind.RESOLVE, alert_id="nobody", time=time_of(now_us()), author="ann"
            )
            sent = command_message(unknown)
            writer.write(b.settings.kafka.topics.commands, sent.key, sent.value, sent.headers)
            writer.write(b.settings.kafka.topics.commands, b"x", b"no command")
            writer.flush()
            host.at_us = (now_us() // S - 15) * S  # the people took their time
            host.busy(0.5, 30)
            eventually(lambda: len(events(b)) == 9, 60)
            assert people.ask("list") == []

            def shown_as_told() -> bool:
                told_of = [one["transition"] for one in people.ask("show", alert.id)]
                return sorted(told_of) == sorted(one.transition.value for one in events(b)[1:])

            eventually(shown_as_told, 60)  # ClickHouse has them a little later than the topic
        rejected, *rest = events(b)
        assert (rejected.transition, rejected.alert) == (Transition.REJECTED, None)
        assert "no alert has this id" in rejected.reason
        changes = [one.transition.value for one in rest if one.transition not in ASIDE]
        assert changes == ["active", "acknowledged", "annotated", "marked", "resolved"]
        stored = b.clickhouse.query("SELECT event_id FROM alert_events").result_rows
        assert {one for (one,) in stored} == {one.id for one in events(b)}
        assert b.clickhouse.query("SELECT status, acknowledged_by FROM alerts").result_rows == [("resolved", "ann")]
        notified = [json.loads(one.value() or b"") for one in b.read_topic(b.settings.kafka.topics.notifications)]
        assert [one["reason"] for one in notified][:1] == ["first"]
        # Nothing counted; judged as soon as time is past what the objective was told of its past.
        counted = "SELECT value FROM counters WHERE name = {name:String}"
        unreadable = {"name": f"dead_letters.unreadable.{b.settings.kafka.topics.commands}"}
        assert b.clickhouse.query(counted, parameters=unreadable).result_rows == [(1,)]
        objectives = b.clickhouse.query("SELECT DISTINCT slo, frozen FROM slo_status").result_rows
        assert objectives == [("cool", "no data")]
        incidents = b.clickhouse.query("SELECT service, status, severity, alerts, counts FROM incidents").result_rows
        assert incidents == [("web", "resolved", "major", [alert.id], False)]  # it was marked as a false positive


def test_an_alert_that_stands_goes_on_where_the_recovery_directory_is_another(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    """As when a flow that had a process of its own shares one, or after an upgrade with states of another format."""
    with bench(embedded_broker, clickhouse_url, tmp_path, "alert_anew", "snapshot") as b:
        put_in_force(b, CONFIG)
        host = Host(b, (now_us() // (10 * S) - 30) * 10 * S)
        with flows(b, "windows"):
            with flows(b, "alerts"):
                host.busy(0.5, 20)
                host.busy(0.95, 45)
                (first,) = eventually(lambda: events(b), 60)
                assert first.alert is not None
                alert = first.alert.id
                people = People(b)
                assert people.say("ack", alert, "--author", "ann") == "acknowledged: Busy"
            with flows(b, "alerts,slo"):
                host.busy(0.95, 30)
                # Until its rule has been judged, nobody knows it.
                eventually(lambda: people.say("annotate", alert, "known", "--author", "ann") == "annotated: Busy", 60)
                host.busy(0.5, 30)
                eventually(lambda: events(b)[-1].transition is Transition.RESOLVED, 60)
        changes = ["active", "acknowledged", "annotated", "resolved"]
        assert [one.transition.value for one in events(b) if one.transition not in ASIDE] == changes
        assert {one.alert.id for one in events(b) if one.alert} == {alert}


def test_kills_change_no_event(embedded_broker: str, clickhouse_url: str, tmp_path: Path) -> None:
    """All flows, in one process, are killed while a host is busy and not, in turns."""
    with bench(embedded_broker, clickhouse_url, tmp_path, "alert_kills", "snapshot") as b:
        put_in_force(b, CONFIG.replace("for: 20s", "for: 10s"))
        start_us = (now_us() // (10 * S) - 15) * 10 * S
        rng = random.Random(5)
        expected = []
        host = Host(b, start_us)
        for _ in range(5):
            flow = b.start_flow("all", TAILRACE_WINDOWS__IDLE_S="600")
            host.busy(0.5, 10)
            expected.append(("active", host.at_us // S + 20, "one"))
            host.busy(0.95, 20)
            expected.append(("resolved", host.at_us // S + 10, "one"))
            threading.Event().wait(rng.uniform(1, 4))
            flow.process.kill()
            flow.stop()
        host.busy(0.5, 20)
        with flows(b, "all"):
            eventually(lambda: len(events(b)) == len(expected), 90)
        health = b.clickhouse.query("SELECT check, status FROM health WHERE check != ''").result_rows
        assert health == [("alive", "healthy")]
        assert sorted((told(one) for one in events(b)), key=lambda one: one[1]) == expected
        stored = b.clickhouse.query("SELECT event_id FROM alert_events ORDER BY alert_id, sequence").result_rows
        assert [one for (one,) in stored] == [one.id for one in events(b)]


@pytest.mark.kafka
def test_a_kill_between_an_event_and_the_end_of_its_epoch_changes_no_event(
    kafka: str, clickhouse_url: str, tmp_path: Path
) -> None:
    """ClickHouse hangs: the event is on the topic, and the epoch that it was made in does not end."""
    with proxy_to(clickhouse_url) as proxy, bench(kafka, clickhouse_url, tmp_path, "alert_undone", "snapshot") as b:
        put_in_force(b, CONFIG.replace("for: 20s", "for: 10s"))
        host = Host(b, (now_us() // (10 * S) - 12) * 10 * S)
        expected = []

        def stored() -> list[str]:
            rows = b.clickhouse.query("SELECT event_id FROM alert_events ORDER BY alert_id, sequence").result_rows
            return [one for (one,) in rows]

        with flows(b, "windows"):
            host.busy(0.5, 20)
            for transition, after_s, value in [("active", 20, 0.95), ("resolved", 10, 0.5)]:
                flow = b.start_flow("alerts", TAILRACE_CLICKHOUSE__URL=proxy.url)
                eventually(lambda: stored() == [one.id for one in events(b)], 90)
                proxy.mode = Mode.HANG
                expected.append((transition, host.at_us // S + after_s, "one"))
                host.busy(value, 30)
                eventually(lambda: len(events(b)) == len(expected), 60)
                assert len(stored()) == len(expected) - 1
                flow.process.kill()
                flow.stop()
                proxy.mode = Mode.PASS
        with flows(b, "alerts"):
            eventually(lambda: stored() == [one.id for one in events(b)], 90)
        assert sorted((told(one) for one in events(b)), key=lambda one: one[1]) == expected


@pytest.mark.parametrize("mode", [Mode.REFUSE, Mode.HANG])
def test_alerts_go_out_while_clickhouse_is_away_and_it_has_all_of_it_afterwards(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path, mode: Mode
) -> None:
    """The flows are killed meanwhile, with what they keep for ClickHouse on disk."""
    with (
        proxy_to(clickhouse_url) as proxy,
        bench(embedded_broker, clickhouse_url, tmp_path, f"alert_away_{mode.value}", "snapshot") as b,
    ):
        b.environment["TAILRACE_CLICKHOUSE__URL"] = proxy.url
        put_in_force(b, CONFIG.replace("for: 20s", "for: 10s"))
        host = Host(b, (now_us() // (10 * S) - 12) * 10 * S)
        with flows(b, "windows", "alerts,slo,health") as running:
            host.busy(0.5, 20)
            eventually(lambda: b.counters().get("samples") == 20, 60)
            proxy.mode = mode
            expected = []
            for round_ in range(3):
                expected.append(("active", host.at_us // S + 20, "one"))
                host.busy(0.95, 20)
                expected.append(("resolved", host.at_us // S + 10, "one"))
                host.busy(0.5, 20)
                eventually(lambda: len(events(b)) == len(expected), 60)
                if round_ == 1:
                    for number, name in enumerate(("windows", "alerts,slo,health")):
                        running[number].process.kill()
                        running[number].stop()
                        running[number] = b.start_flow(name, TAILRACE_WINDOWS__IDLE_S="600")
            assert b.counters()["samples"] == 20
            proxy.mode = Mode.PASS
            host.busy(0.5, 20)
            eventually(lambda: b.counters()["samples"] == 160, 60)
        assert sorted((told(one) for one in events(b)), key=lambda one: one[1]) == expected
        stored = b.clickhouse.query("SELECT event_id FROM alert_events ORDER BY alert_id, sequence").result_rows
        assert [one for (one,) in stored] == [one.id for one in events(b)]
        seconds = b.clickhouse.query("SELECT count(), sum(count) FROM windows WHERE metric = 'cpu'").result_rows
        assert seconds == [(16, 160)]
