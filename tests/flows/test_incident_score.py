"""Alerts compared with incidents."""

import pytest
from tailrace_flows.backtest import Step
from tailrace_flows.incident_score import Active, Incident, active_times, score

S = 1_000_000


def active(start_s: int, end_s: int, **labels: str) -> Active:
    return Active("g/r", tuple(sorted(labels.items())), start_s * S, end_s * S)


def incident(start_s: int, end_s: int, **labels: str) -> Incident:
    return Incident(start_s * S, end_s * S, tuple(sorted(labels.items())))


@pytest.mark.parametrize(
    ("alerts", "incidents", "delays", "missed", "false_alarms"),
    [
        ([active(110, 150)], [incident(100, 200)], [10.0], 0, 0),
        ([active(90, 101)], [incident(100, 200)], [0.0], 0, 0),
        ([active(90, 100)], [incident(100, 200)], [], 1, 1),
        ([active(200, 210)], [incident(100, 200)], [100.0], 0, 0),
        ([active(201, 210)], [incident(100, 200)], [], 1, 1),
        ([active(110, 120), active(105, 130)], [incident(100, 200)], [5.0], 0, 0),
        ([active(110, 320)], [incident(100, 200), incident(300, 400)], [10.0, 0.0], 0, 0),
        ([active(110, 120, service="a")], [incident(100, 200, service="a")], [10.0], 0, 0),
        ([active(110, 120, service="b")], [incident(100, 200, service="a")], [], 1, 1),
        ([active(110, 120)], [incident(100, 200, service="a")], [10.0], 0, 0),
        ([active(110, 120, service="b")], [incident(100, 200)], [10.0], 0, 0),
        ([], [], [], 0, 0),
    ],
)
def test_hits_misses_and_false_alarms(
    alerts: list[Active], incidents: list[Incident], delays: list[float], missed: int, false_alarms: int
) -> None:
    found = score(alerts, incidents)
    assert [delay_s for _, delay_s in found.found] == delays
    assert (len(found.missed), len(found.false_alarms), found.alerts) == (missed, false_alarms, len(alerts))


def test_the_summary() -> None:
    incidents = [incident(100, 200), incident(300, 400), Incident(500 * S, 600 * S, (("service", "a"),), "third")]
    found = score([active(110, 120), active(340, 350), active(700, 710)], incidents).summary()
    assert found == {
        "incidents": 3, "hits": 2, "misses": 1, "missed": ["third service=a"], "alerts": 3, "false_alarms": 1,
        "detection_delay_median_s": 25.0, "detection_delay_max_s": 40.0,
    }  # fmt: skip


def test_an_alert_is_active_until_it_is_resolved_or_the_data_end() -> None:
    def step(time_s: int, before: str, after: str, alert: str) -> Step:
        return Step(time_s * S, "g/r", (), before, after, 1.0, alert)

    steps = [
        step(10, "pending", "active", "a"),
        step(20, "active", "resolved", "a"),
        step(30, "inactive", "active", "b"),
    ]
    assert active_times(steps, 50 * S) == [active(10, 20), active(30, 50)]
