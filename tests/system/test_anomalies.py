"""From samples to anomalies on real processes: scores, rows, the alert that a rule makes of a flag, and feedback."""

import json
import random
from pathlib import Path

import pytest
from tailrace_flows.core.anomaly import AnomalyConfig, Detector
from tailrace_schemas.clock import now_us
from tailrace_schemas.cloudevents import read_command

from tests.infra.command import tailrace
from tests.infra.waiting import eventually
from tests.system.harness import Bench, bench
from tests.system.test_alerts import Host, S, events, flows, put_in_force

CONFIG = """
detectors:
- {name: load, metric: cpu, aggregate: mean, by: [service, host], interval: 10s, min_deviation: 0.05}
groups:
- name: odd
  rules:
  - {alert: Odd, severity: info, metric: anomaly.flags, aggregate: increase, window: 10m, by: [service, detector, host],
     op: gt, threshold: 0, no_data: ok, description: "{host} is unusual"}
"""


def stored_until(b: Bench) -> int:
    """The end of the last window of the host."""
    (found,) = b.clickhouse.query("SELECT toUnixTimestamp(max(window_end)) FROM windows WHERE metric = 'cpu'").first_row
    return int(found)


def scores(b: Bench) -> dict[int, float]:
    """Those of the host, by window end."""
    query = "SELECT toUnixTimestamp(window_end), last FROM windows WHERE metric = 'anomaly.score'"
    return dict(b.clickhouse.query(query).result_rows)


def test_a_jump_is_scored_stored_alerted_and_marked_across_a_kill(
    embedded_broker: str, clickhouse_url: str, tmp_path: Path
) -> None:
    rng = random.Random(5)
    values = [0.3 + rng.uniform(-0.02, 0.02) for _ in range(140)]
    values[125:] = [0.8] * 15
    start_us = (now_us() // (10 * S) - 180) * 10 * S
    start = start_us // S
    detector = Detector(AnomalyConfig(min_deviation=0.05))
    ends_s = [start + 10 * number for number in range(1, 141)]
    verdicts = [detector.update(end_s * S, value) for end_s, value in zip(ends_s, values, strict=True)]
    with bench(embedded_broker, clickhouse_url, tmp_path, "anomaly", "snapshot") as b:
        put_in_force(b, CONFIG)
        host = Host(b, start_us)
        flow = b.start_flow("all", TAILRACE_WINDOWS__IDLE_S="600")
        for begin in range(0, 100, 50):  # within what is evaluated window by window: 10 minutes
            for value in values[begin : begin + 50]:
                host.busy(value, 10)
            eventually(lambda: stored_until(b) >= host.at_us // S - 10, 60)
        flow.process.kill()
        flow.stop()
        with flows(b, "all"):
            for value in values[100:]:
                host.busy(value, 10)
            eventually(lambda: events(b), 60)
            # The last window is still open. Later ones may go unscored: on a slow machine the host is silent for 30 s
            # of wall time now, and evaluation goes on without it.
            eventually(lambda: ends_s[-2] in scores(b), 60)
            (row,) = b.clickhouse.query("SELECT * FROM anomalies WHERE flag").named_results()
            flagged = [end_s for end_s, one in zip(ends_s, verdicts, strict=True) if one.flag]
            assert [round(row["window_end"].timestamp())] == flagged == [start + 1260]
            assert row["labels"] == {"host": "one", "service": "web"}
            assert row["expected"] == pytest.approx(verdicts[125].expected, rel=1e-9)
            assert tailrace(
                "anomalies", "feedback", row["id"][:6], "false-positive", "--author", "ann", environment=b.environment
            ).returncode == 0  # fmt: skip
            (mark,) = [read_command(one.value() or b"") for one in b.read_topic(b.settings.kafka.topics.commands)]
            assert (mark.kind, mark.alert_id) == ("feedback", row["id"])
            host.busy(0.8, 30)
            eventually(
                lambda: b.clickhouse.query("SELECT count() FROM anomalies WHERE marked_by = 'ann'").first_row[0] == 1,
                60,
            )
            known = "SELECT id, warming_up, bar, round(high, 1) AS high FROM baselines WHERE source = 'detector:load'"
            (learned,) = b.clickhouse.query(known).named_results()
            assert not learned["warming_up"]
            assert 0.3 < learned["high"] < 1.5
            listed = tailrace("anomalies", "baseline", "load", "--format", "json", environment=b.environment)
            assert [(one["id"], one["labels"]["host"]) for one in json.loads(listed.stdout)] == [(learned["id"], "one")]
            assert tailrace("anomalies", "reset", learned["id"], environment=b.environment).returncode == 0
            sent = [read_command(one.value() or b"") for one in b.read_topic(b.settings.kafka.topics.commands)]
            assert [one.alert_id for one in sent if one.kind == "reset"] == [learned["id"]]
        (alert,) = {one.alert.id: one.alert for one in events(b) if one.alert}.values()
        assert (alert.name, alert.labels) == ("Odd", {"service": "web", "detector": "load", "host": "one"})
        # Every window was judged once, as without the kill.
        judged = list(zip(ends_s, verdicts, strict=True))[:-1]
        expected = {end_s: one.score for end_s, one in judged if not one.warming_up}
        found = {end_s: score for end_s, score in scores(b).items() if end_s in expected}
        assert sorted(found) == sorted(expected)
        assert found == pytest.approx(expected, abs=1e-9)
        listed = tailrace("anomalies", "list", "--since", "1h", "--format", "json", environment=b.environment)
        (shown,) = json.loads(listed.stdout)
        assert (shown["id"], shown["marked_by"], shown["detector"]) == (row["id"], "ann", "load")
        refused = tailrace("anomalies", "feedback", row["id"], "false-positive", environment=b.environment)
        assert (refused.returncode, refused.stderr.strip()) == (1, "tailrace: ann marked it already")
