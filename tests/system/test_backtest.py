"""A backtest of what the window flow has left in Kafka."""

from pathlib import Path

import pytest
from tailrace_producers.replay import ReplayOptions

from tests.infra.command import tailrace
from tests.system.harness import bench
from tests.system.test_outages import flow_of

START_S = 1_767_225_600  # 2026-01-01
RULES = """
groups:
- name: web
  rules:
  - {alert: Slow, metric: duration, aggregate: p90, window: 30s, by: [service], op: gt, threshold: 0.5, for: 20s}
  - {alert: Errors, metric: errors, aggregate: rate, window: 1m, op: gt, threshold: 0.5}
slos:
- {name: fast, service: shop, objective: 99%, indicator: {latency: {metric: duration, below: 500ms}}}
"""


@pytest.mark.kafka
def test_the_rows_of_the_flow_in_kafka_give_what_the_file_gives(
    kafka: str, clickhouse_url: str, tmp_path: Path
) -> None:
    lines = ["time,metric,kind,service,value"]
    for second in range(0, 1800, 2):
        bad = 600 <= second < 900
        for service in ("shop", "search"):
            lines.append(
                f"{START_S + second},duration,distribution,{service},{2.0 if bad and service == 'shop' else 0.1}"
            )
            lines.append(f"{START_S + second},errors,counter,{service},{3 if bad else 0}")
    (tmp_path / "samples.csv").write_text("\n".join(lines))
    (tmp_path / "rules.yaml").write_text(RULES)
    with bench(kafka, clickhouse_url, tmp_path, "backtest", "replay") as b, flow_of(b):
        b.await_stream(b.replay(tmp_path / "samples.csv", "s", ReplayOptions()))
        run = ("backtest", "--rules", "rules.yaml")
        topic = ("--topic", b.settings.kafka.topics.aggregates, "--stream", "s", "--from", str(START_S))
        found = tailrace(*run, *topic, "--to", str(START_S + 1800), cwd=tmp_path, environment=b.environment)
    assert found.returncode == 0, found.stderr
    assert found.stdout == tailrace(*run, "samples.csv", cwd=tmp_path).stdout
    assert {line.split('"rule": ')[1].split(",")[0] for line in found.stdout.splitlines()} == {
        '"web/Slow"', '"web/Errors"', '"slo/fast"',
    }  # fmt: skip
