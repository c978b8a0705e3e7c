"""The rules that are shipped, and the examples of docs/rules.md: valid, about metrics that exist, and able to fire."""

# ruff: noqa: E501 - tables

import re
from importlib.resources import files
from pathlib import Path

import pytest
from tailrace_flows.core.alerting.rules import AlertGroup, keep_of
from tailrace_flows.core.alerting.store import WindowStore
from tailrace_infra.config_command import default_config
from tailrace_schemas.config import load
from tailrace_schemas.config.rules import RuleGroup

from tests.flows.alerting.rows import S, batch_of
from tests.flows.alerting.test_rules import START_S, rows_of

DOCS = Path(__file__).parents[2] / "docs"
DEFAULTS = Path(str(files("tailrace_infra") / "defaults" / "rules.yaml"))


def groups() -> list[RuleGroup]:
    return [item.model for item in load([DEFAULTS]).items if isinstance(item.model, RuleGroup)]


RULES = {rule.alert: (group, rule) for group in groups() for rule in group.rules}


@pytest.mark.parametrize("name", RULES)
def test_every_metric_and_label_is_one_that_we_send(name: str) -> None:
    documented = set(
        re.findall(
            r"`([\w.]+)`",
            "".join((DOCS / f"{page}.md").read_text() for page in ("metrics", "middleware", "anomalies", "alerts")),
        )
    )
    _, rule = RULES[name]
    queries = rule.all_queries().values()
    metrics = {rule.metric} if rule.metric else {query.metric for query in queries}
    labels = {*rule.by, *rule.where, *(label for query in queries for label in query.where)}
    assert metrics | labels <= documented | {"service"}
    assert rule.description


def test_every_rule_has_its_own_name() -> None:
    assert len(RULES) == sum(len(group.rules) for group in groups())


# What is sent, and the window at whose end it must become active.
HOST = "service=host,host.name=web-1"
FIRING: dict[str, tuple[dict[str, str], int]] = {
    "HostHighCpu": ({f"system.cpu.utilization{{{HOST}}} gauge": "0.1x6 0.81x40"}, 42),
    "HostCpuSaturated": ({f"system.cpu.utilization{{{HOST}}} gauge": "0.96x130"}, 91),
    "HostHighMemory": (
        {
            f"system.memory.utilization{{{HOST},system.memory.state=used}} gauge": "0.86x40",
            f"system.memory.utilization{{{HOST},system.memory.state=free}} gauge": "0.14x40",
        },
        31,
    ),
    "HostOutOfMemory": ({f"system.linux.memory.oom_kills{{{HOST}}} cumulative": "0 0 1"}, 3),
    "HostSwapping": ({f"system.paging.operations{{{HOST},system.paging.direction={way}}} cumulative": "6000x70" for way in ("in", "out")}, 66),
    "HostDiskFull": ({f"system.filesystem.utilization{{{HOST},system.filesystem.mountpoint=/}} gauge": "0.5 0.91x9"}, 8),
    "HostDiskFillsUp": (
        {f"system.filesystem.utilization{{{HOST},system.filesystem.mountpoint=/}} gauge": " ".join(f"{0.65 + 0.0005 * n}" for n in range(400))},
        182,
    ),
    "HostDiskSaturated": ({f"system.disk.utilization{{{HOST},system.device=sda}} gauge": "0.99x95"}, 91),
    "HostZombies": ({f"system.process.count{{{HOST},process.state=defunct}} gauge": "60x70"}, 61),
    "HostSilent": ({f"system.uptime{{{HOST}}} gauge": "1 _x6 _"}, 7),
    "AgentErrors": ({f"tailrace.agent.collection.errors{{{HOST},tailrace.collector=disk}} counter": "1"}, 1),
    "HttpErrors": (
        {
            "http.server.request.duration{service=shop,http.route=/a} distribution": "0.1:0.1:0.1:0.1:0.1:0.1:0.1x20",
            "http.server.request.duration{service=shop,error.type=500} distribution": "_x2 0.1x18",
        },
        10,
    ),
    "HttpSlow": ({"http.server.request.duration{service=shop} distribution": "6x10"}, 7),
    "Anomaly": ({"anomaly.flags{service=shop,detector=http-p99,metric=latency} counter": "_x2 1"}, 3),
    "Watchdog": ({"any gauge": "1"}, 1),
    "ProducerClockWrong": ({"tailrace.samples.misdated{service=shop,tailrace.samples.time=late} gauge": "_x3 0.02"}, 4),
    "TailraceBehind": ({"tailrace.evaluation.delay{service=tailrace} gauge": "13x3 61"}, 4),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_every_rule_fires_when_it_should_and_not_before(name: str) -> None:
    group, rule = RULES[name]
    series, expected = FIRING[name]
    alerts = AlertGroup(group.model_copy(update={"rules": (rule,)}))
    store = WindowStore(keep_of(alerts.rules.values()))
    rows = rows_of(series)
    for window in range(1, expected + 1):
        for row in rows.get(window * 10, []):
            store.add("", batch_of([row]))
        events = alerts.evaluate(store, (START_S + window * 10) * S)
        assert bool(events) == (window == expected), window
    (event,) = events
    assert event.alert is not None
    assert event.alert.description
    assert "{" not in event.alert.description


EXAMPLES = re.findall(r"```yaml\n(.*?)```", (DOCS / "rules.md").read_text(), re.S)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_of_the_docs_are_valid(number: int) -> None:
    config = load([("docs/rules.md", EXAMPLES[number])])
    assert all(item.model.sentences() for item in config.items)


def test_the_docs_have_examples() -> None:
    assert len(EXAMPLES) == 4


def test_everything_shipped_is_one_valid_configuration() -> None:
    keys = {record.key for record in default_config()}
    assert {f"rule_group/{group.name}" for group in groups()} < keys
    assert {f"detector/{name}" for name in ("host-cpu", "host-memory", "http-p99", "http-errors")} < keys
    assert {"slo/http-availability", "slo/http-latency", "slo/host-collection", "health_check/host-agent"} < keys
