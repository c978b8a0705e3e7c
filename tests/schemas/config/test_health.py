"""Health checks as users write them: what they mean, and what is refused."""

# ruff: noqa: E501 - tables

import re

import pytest
from tailrace_schemas.config import ConfigError, load, model_of, record_of

CHECKS = """
health_checks:
- {name: web, service: checkout, http: {url: "https://shop.example/health", status: [200, 204], contains: ok}, interval: 10s, timeout: 2s, degraded_above: 500ms}
- {name: port, service: checkout, tcp: {host: 127.0.0.1, port: 8080}}
- {name: broker, service: kafka, kafka: {bootstrap_servers: "kafka:9092", topic: tailrace.samples}}
- {name: store, service: clickhouse, clickhouse: {url: "http://clickhouse:8123"}}
- {name: db, service: postgres, postgresql: {host: db}, failure_threshold: 2, success_threshold: 2}
- {name: cache, service: redis, redis: {host: cache, port: 6380}}
- {name: disk, service: host, command: {arguments: [/usr/lib/nagios/plugins/check_disk, -w, 10%]}}
- {name: nightly, service: batch, heartbeat: {metric: job.runs, within: 26h}}
- {name: alive, service: worker, heartbeat: {}}
services:
- {name: checkout, depends_on: [postgres, redis], weight: 3}
- {name: batch}
"""


def test_every_kind() -> None:
    items = load([("health.yaml", CHECKS)]).items
    for item in items:
        record = record_of(item)
        assert model_of(record.key, record.value) == item.model
    assert [getattr(item.model, "kind", None) for item in items] == [
        "http", "tcp", "kafka", "clickhouse", "postgresql", "redis", "command", "heartbeat", "heartbeat", None, None,
    ]  # fmt: skip
    said = [sentence for item in items for sentence in item.model.sentences()]
    assert (
        said[0]
        == "web: http check of checkout every 10s, degraded above 500ms: worse after 3 worse results in a row, better after 1"
    )
    assert said[-3:] == [
        "nightly: batch is unhealthy after 1d2h without job.runs",
        "alive: worker is unhealthy after 1m without health.heartbeat",
        "checkout needs postgres, redis",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{name: a, service: b}", "health_checks[0]: must have exactly one of http, tcp, kafka, clickhouse, postgresql, redis, command, heartbeat"),
        ("{name: a, service: b, tcp: {host: a, port: 1}, redis: {host: a}}", "health_checks[0]: must have exactly one of http, tcp, kafka, clickhouse, postgresql, redis, command, heartbeat; it has tcp, redis"),
        ("{name: a, service: b, tcp: {host: a}}", "health_checks[0].tcp: 'port' is missing"),
        ("{name: a, service: b, http: {url: ftp://a}}", "health_checks[0].http.url: must be an http:// or https:// URL"),
        ("{name: a, service: b, http: {url: 'http://[a'}}", "health_checks[0].http.url: must be an http:// or https:// URL"),
        ("{name: a, service: b, http: {url: 'http://me:secret@a'}}", "health_checks[0].http.url: must not hold a user's name or password: everybody who reads the configuration would see it"),
        ("{name: a, service: b, redis: {host: a}, interval: 5s}", "health_checks[0].interval: is at least 10s: a result is of a window of 10s"),
        ("{name: a, service: b, redis: {host: a}, timeout: 31s}", "health_checks[0].timeout: is not within the interval of 30s"),
        ("{name: a, service: b, redis: {host: a}, degraded_above: 5s}", "health_checks[0].degraded_above: cannot be reached: after 5s the check has failed (`timeout`)"),
        ("{name: a, service: b, heartbeat: {}, interval: 30s}", "health_checks[0].interval: has no meaning for a heartbeat: it is late or it is not"),
        ("{name: a, service: b, heartbeat: {within: 5s}}", "health_checks[0].heartbeat.within: is at least 10s"),
        ("{name: a, service: b, command: {arguments: []}}", "health_checks[0].command.arguments: must have at least 1"),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([("health.yaml", f"health_checks:\n- {text}")])
    (problem,) = caught.value.problems
    assert re.sub(r"^health.yaml:\d+: ", "", str(problem)) == message
    assert "secret" not in str(problem)


def test_services_that_need_each_other_in_a_circle_are_refused() -> None:
    text = "services:\n- {name: a, depends_on: [b]}\n- {name: b, depends_on: [c]}\n- {name: c, depends_on: [b]}"
    with pytest.raises(ConfigError) as caught:
        load([("health.yaml", text)])
    assert str(caught.value) == (
        "health.yaml:3: services[1].depends_on: the services need each other in a circle: b -> c -> b"
    )
    with pytest.raises(ConfigError, match="names a service twice"):
        load([("health.yaml", "services:\n- {name: a, depends_on: [b, b]}")])


def test_an_objective_on_a_check_that_there_is_not_is_refused() -> None:
    text = "slos:\n- name: a\n  service: b\n  objective: 99%\n  indicator:\n    health: nothing"
    with pytest.raises(ConfigError) as caught:
        load([("slo.yaml", text)])
    assert (
        str(caught.value) == "slo.yaml:6: slos[0].indicator.health: there is no health check 'nothing' in these files"
    )
