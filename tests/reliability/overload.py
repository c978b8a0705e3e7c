"""More than the flows can take: three times as much, a storm of alerts, a rule without bounds."""

import signal
import threading
from array import array
from collections.abc import Sequence
from typing import Any

from tailrace_infra.overview import LagReader
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_schemas.notifications import Notification
from tailrace_schemas.samples import Series, encode_batch, encode_series_table

from tests.reliability.attack import Plot, Result, Run, attack
from tests.reliability.store import Watched, watching
from tests.reliability.traffic import Traffic
from tests.reliability.world import (
    World,
    alert_events,
    check_notifications,
    check_rows,
    configure,
    counters_of_windows,
    delivered,
    finish,
    notifications,
    python,
    starts_on_window,
    why_no_kafka,
)  # fmt: skip
from tests.subscribers.receiving import webhook_server
from tests.system.workload import Workload

TIMES = 3
MOST_GROWTH_MB = 300
"""Of any process while the backlog grows and is caught up with: librdkafka fetches up to 32 MB a partition ahead."""
BEHIND = """
groups:
- name: tailrace
  rules:
  - {alert: TailraceBehind, metric: tailrace.evaluation.delay, aggregate: last, op: gt, threshold: LIMIT, no_data: ok,
     description: "the newest closed window ended {value:.0f} s ago"}
"""


@attack(
    name="overload",
    promise="Three times more than the flow can take: memory stays bounded, the lag is seen and alerted on while it "
    "lasts, and nothing is lost.",
    what="The window flow may read a third of what is sent (SIGSTOP, SIGCONT), under live load; then all of it.",
    unit="seconds of overload",
    short=75,
    long=300,
)
def overload(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    limit_s = 60 if run.size >= 200 else 30
    with World.of(run.directory, "overload") as world:
        b = world.bench
        configure(b, BEHIND.replace("LIMIT", str(limit_s)))
        flow = world.add_flow("windows", "windows")
        world.add_flow("alerts", "alerts")
        traffic = Traffic(run.seed, starts_on_window(now_us()), (run.size + 60) // 10 * 10, samples=2000)
        world.add_traffic(traffic)
        watched = {name: Watched(world.parts[name]) for name in ("windows", "alerts", "sender", "broker", "clickhouse")}
        lag = Lag(world)
        with watching(*watched.values()):
            world.until(lambda: lag.look()[1], "the flow has committed")
            before = {name: one.last_mb() for name, one in watched.items()}
            base = lag.look()
            end_s = monotonic_s() + run.size
            most = 0
            while monotonic_s() < end_s:
                sent, read = lag.look()
                # A third of what was sent since the overload began is what it may have read.
                flow.signal(signal.SIGSTOP if (read - base[1]) * TIMES >= sent - base[0] else signal.SIGCONT)
                most = max(most, sent - read)
                threading.Event().wait(0.25)
            told_at = [event.transition.value for event in _behind(world)]
            flow.signal(signal.SIGCONT)
            began_s = monotonic_s()
            world.until(lambda: world.parts["sender"].done, "the traffic is sent")
            world.until(lambda: len(set(lag.look())) == 1, "the lag is zero")
            caught_up_s = monotonic_s() - began_s
            made = finish(world, traffic)
        rows = check_rows(b, made)
        growth = {name: one.most_mb() - before[name] for name, one in watched.items()}
    assert "active" in told_at, "the lag was not alerted on while it lasted"
    assert max(growth.values()) < MOST_GROWTH_MB, growth
    figures: dict[str, Any] = {
        "samples": made.counters["samples"], "rows equal to the oracle": rows, "lag at most, records": most,
        "lag at the end, records": 0, "until it was zero, s": caught_up_s,
        "alert while it lasted": f"TailraceBehind at {limit_s} s",
        **{f"memory of {name}: growth, MB": mb for name, mb in growth.items()},
    }  # fmt: skip
    plots = [Plot("lag", "s", "records", lag.at_s, lag.records), *(one.plot(name) for name, one in watched.items())]
    return Result(run.size, [run.seed], figures, plots=plots)


def _behind(world: World) -> list[Any]:
    return [one for one in alert_events(world.bench)[0] if one.alert and one.alert.name == "TailraceBehind"]


class Lag:
    """Records of the topic, and those that the flow has committed."""

    def __init__(self, world: World) -> None:
        self._reader = LagReader(world.bench.settings.kafka)
        self._began_s = monotonic_s()
        self.at_s: list[float] = []
        self.records: list[float] = []
        self._last = (0, 0)

    def look(self) -> tuple[int, int]:
        """Sent and read."""
        found = self._reader.read()
        if found is not None:
            self._last = (found.end, found.end - found.records)
            self.at_s.append(monotonic_s() - self._began_s)
            self.records.append(float(found.records))
        return self._last


STORM = """
groups:
- name: storm
  rules:
  - {alert: EachUser, metric: cpu, aggregate: mean, by: [service, host], op: gt, threshold: 0.9}
  - {alert: Few, metric: cpu, aggregate: mean, by: [service], op: gt, threshold: 0.9}
routing: {receiver: hook, group_by: [alertname], group_wait: 1s, group_interval: 10s, flap_damping: null}
receivers:
- {name: hook, webhook: {url: "URL", headers: {Authorization: "Bearer ${env:HOOK_TOKEN}"}}}
"""
MAX_ALERTS = 10_000
GROUP_INTERVAL_S = 10
MOST_BYTES = 1_000_000
"""Of a notification: Kafka takes 1 MB by default."""


@attack(
    name="storm",
    promise="A rule that explodes in cardinality is stopped and named; other rules go on, and people get a handful of "
    "messages, which name the rule and how many alerts it has.",
    what="A rule `by` a label with a value for each user: more label sets past its threshold than a rule may have. All "
    "that fire go to one receiver, by a notifier.",
    unit="label sets",
    short=12_000,
    long=60_000,
)
def storm(run: Run) -> Result:
    if missing := why_no_kafka():
        return Result(skipped=missing)
    with webhook_server() as hook, World.of(run.directory, "storm", TAILRACE_WINDOWS__IDLE_S="600") as world:
        b = world.bench
        configure(b, STORM.replace("URL", hook.url))
        world.add_flow("windows", "windows")
        world.add_flow("alerts", "alerts")
        world.add("notifier", python("-m", "tailrace_infra.cli", "notify"))
        watched = {name: Watched(world.parts[name]) for name in ("alerts", "notifier")}
        began_s = monotonic_s()
        with watching(*watched.values()):
            _send_storm(world, run.size)
            refused = "alerts_refused.storm/EachUser"
            world.until(lambda: b.counters().get(refused, 0) >= run.size - MAX_ALERTS, "the rule is stopped")
            world.until(lambda: _count(world, "EachUser") >= MAX_ALERTS, "as many as a rule may have are told")
            world.until(lambda: _count(world, "Few") == 1, "the other rule tells")
            world.until(lambda: _all_told(world, hook.ids()), "the receiver knows of all of them")
            took_s = monotonic_s() - began_s
        assert _count(world, "EachUser") == MAX_ALERTS
        made: Workload = delivered(b)
        world.until(lambda: counters_of_windows(b).get("samples", 0) >= made.counters["samples"], "all is counted")
        assert not any(world.parts[name].stop() for name in ("notifier", "windows", "alerts")), world.tails()
        rows = check_rows(b, made)
        decided = list(notifications(b, "hook").values())
        check_notifications(b, "hook", hook.ids())
        judge_storm(decided, took_s)
        figures = {
            "label sets past the threshold": run.size, "alerts of the rule": MAX_ALERTS,
            "refused, counted under the rule's name, at least": run.size - MAX_ALERTS, "alerts of the other rule": 1,
            "notifications of all that": len(decided),
            "bytes of a notification, most": max(map(_bytes, decided)),
            "rows equal to the oracle": rows,
            **{f"memory of {name}: most, MB": one.most_mb() for name, one in watched.items()},
        }  # fmt: skip
        return Result(run.size, [run.seed], figures, plots=[watched["alerts"].plot("the flow of alerts")])


def judge_storm(decided: Sequence[Notification], took_s: float) -> None:
    """A rule's alerts are one group, told now and then, in messages that Kafka takes, with rule and how many it has.

    `took_s`: how long the storm lasted.
    """
    by_rule: dict[str, list[Notification]] = {}
    for one in decided:
        by_rule.setdefault(one.group_labels.get("alertname", ""), []).append(one)
        assert _bytes(one) < MOST_BYTES, f"a notification of {_bytes(one):,} bytes"
        assert one.firing + one.resolved == len(one.alerts) + one.truncated, f"not all are accounted for: {one.id}"
    newest = {rule: (found[-1].firing, found[-1].group_labels) for rule, found in by_rule.items()}
    names = {rule: (count, {"alertname": rule}) for rule, count in (("EachUser", MAX_ALERTS), ("Few", 1))}
    assert newest == names, newest
    most = 2 + took_s / GROUP_INTERVAL_S
    assert all(len(found) <= most for found in by_rule.values()), f"{len(decided)} notifications in {took_s:.0f} s"


def _all_told(world: World, got: list[str]) -> bool:
    """Whether the receiver has got a notification of as many alerts as a rule may have."""
    return any(one.firing == MAX_ALERTS and one.id in got for one in notifications(world.bench, "hook").values())


def _bytes(notification: Notification) -> int:
    return len(notification.model_dump_json().encode())


def _count(world: World, rule: str) -> int:
    query = f"SELECT count() FROM alerts WHERE name = '{rule}'"
    return int(world.bench.clickhouse.query(query).first_row[0])


def _send_storm(world: World, users: int) -> None:
    start_us = starts_on_window(now_us()) - 60_000_000
    producer = world.bench.producer()
    sequence = 0
    for window in range(4):
        for first in range(0, users, 1000):
            count = min(1000, users - first)
            table = encode_series_table(
                [Series("cpu", "gauge", "1", (("host", f"u{first + n}"),)) for n in range(count)]
            )
            message = encode_batch(
                service="web", producer_id="storm", sequence=sequence, base_time_us=start_us + window * 10_000_000,
                series_table=table, series_index=array("I", range(count)).tobytes(),
                time_offset_us=array("i", [1_000_000] * count).tobytes(),
                value=array("d", [0.95] * count).tobytes(),
            )  # fmt: skip
            world.bench.send(producer, [("web", message)])
            sequence += 1
