"""docs/slo.md and docs/health.md: every example is read, and the tables say what the code does."""

import re
from pathlib import Path

import pytest
from tailrace_flows.core.alerting.health import CheckResult, Health
from tailrace_producers import Telemetry
from tailrace_producers.testing import capture
from tailrace_schemas.config import load
from tailrace_schemas.config.health import HealthCheck
from tailrace_schemas.config.slo import SloSpec

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("page", ["slo.md", "health.md"])
def test_every_example_is_valid(page: str) -> None:
    examples = blocks(page, "yaml")
    assert examples
    for number, text in enumerate(examples):
        config = load([(f"{page}#{number}", text)])
        assert all(item.model.sentences() for item in config.items)


def test_the_burn_rates_of_the_page_are_the_policys() -> None:
    row = r"^\| (?:critical|warning) \|.*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$"
    table = re.findall(row, (DOCS / "slo.md").read_text(), re.M)
    assert len(table) == 4
    for column, days in enumerate((30, 28, 7)):
        indicator = {"latency": {"metric": "a", "below": 1}}
        fields = {"name": "it", "service": "it", "objective": 0.999, "period": f"{days}d", "indicator": indicator}
        one = SloSpec.model_validate(fields)
        thresholds = [round(alert.threshold(one.period_s), 3) for alert in one.burn_alerts()]
        assert thresholds == [float(cells[column]) for cells in table]


def test_the_thresholds_of_the_page() -> None:
    table = re.findall(r"^\| ([HDU](?: [HDU])*) \| (\w+) \|$", (DOCS / "health.md").read_text(), re.M)
    assert len(table) == 5
    statuses = {"H": "healthy", "D": "degraded", "U": "unhealthy"}
    check = HealthCheck.model_validate({"name": "it", "service": "it", "tcp": {"host": "a", "port": 1}})
    for results, expected in table:
        health = Health([check])
        for number, letter in enumerate(results.split(), 1):
            health.put(number * 10_000_000, "it", CheckResult(statuses[letter]))
            health.evaluate(number * 10_000_000)
        assert health.statuses()[0].status == expected, results


def test_a_heartbeat_as_the_page_sends_it() -> None:
    (code,) = blocks("health.md", "python")
    with Telemetry(service="batch", bootstrap_servers="127.0.0.1:1") as telemetry, capture(telemetry) as captured:
        exec(code.split("\n\n", 1)[1].replace('telemetry = Telemetry(service="batch")\n', ""), {"telemetry": telemetry})
    assert captured.values("health.heartbeat") == [1]
