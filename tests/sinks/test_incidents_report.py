"""`tailrace incidents` over what the state machines of alerts and incidents have stored."""

import json
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from tailrace_flows.alert_rows import alert_event_rows, incident_row
from tailrace_flows.core.alerting.incidents import Incidents
from tailrace_flows.core.alerting.lifecycle import AlertSpec, RuleAlerts
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Severity, time_of
from tailrace_schemas.clock import now_us
from tailrace_schemas.rows import INCIDENTS

from tests.infra.command import tailrace
from tests.sinks.storage import Storage

MINUTE = 60_000_000
ENDED = {  # name: severity, service, from and to in minutes before now, whether it was marked as a false positive
    "down": (Severity.CRITICAL, "shop", 300, 270, False),
    "down again": (Severity.CRITICAL, "shop", 280, 260, False),  # overlaps: one incident, 40 minutes down
    "slow": (Severity.WARNING, "shop", 200, 180, False),
    "noise": (Severity.CRITICAL, "shop", 100, 90, True),
    "early": (Severity.CRITICAL, "stock", 3000, 1380, False),  # a day has 1,440 minutes
    "ended long ago": (Severity.CRITICAL, "stock", 5000, 4000, False),
    "down now": (Severity.CRITICAL, "pay", 144, 0, False),
}


def events() -> list[AlertEvent]:
    found = []
    now = now_us() // MINUTE * MINUTE
    for name, (severity, service, first, last, false) in ENDED.items():
        rule = RuleAlerts(AlertSpec(name, f"test/{name}", severity, f"{name} is bad"))
        labels = (("service", service),)
        found += rule.evaluate(now - first * MINUTE, {labels: 1.0})
        alert = found[-1].alert
        assert alert is not None
        if name == "down":
            found += (
                rule.command(_said("r", CommandKind.ANNOTATE, alert.id, now, message="fixed", annotation="action"))
                or []
            )
        if last:
            found += rule.evaluate(now - last * MINUTE, {})
        if false:
            found += rule.command(_said("m", CommandKind.MARK, alert.id, now)) or []
    return found


def _said(key: str, kind: CommandKind, alert: str, t_us: int, **more: Any) -> Command:
    return Command(id=key, kind=kind, alert_id=alert, time=time_of(t_us), author="ann", **more)


@pytest.fixture
def environment(storage: Storage) -> dict[str, str]:
    told = events()
    state = Incidents()
    rows = [incident_row(one) for event in told for one in state.on_events([event])]
    writer = storage.writer()
    writer.write("alert_event_rows", [alert_event_rows(told)])
    writer.write("incident_rows", [pa.RecordBatch.from_pylist(rows, INCIDENTS)])
    return {
        "TAILRACE_CLICKHOUSE__URL": storage.settings.url,
        "TAILRACE_CLICKHOUSE__DATABASE": storage.settings.database,
    }


def test_incidents_and_their_figures(environment: dict[str, str]) -> None:
    def ask(*arguments: str) -> list[dict[str, Any]]:
        done = tailrace("incidents", *arguments, "--format", "json", environment=environment)
        assert done.returncode == 0, done.stderr
        rows: list[dict[str, Any]] = json.loads(done.stdout)
        return rows

    listed = ask("list", "--since", "1d")
    assert [(one["service"], one["status"], one["severity"]) for one in listed] == [
        ("pay", "open", "critical"), ("shop", "resolved", "critical"), ("shop", "resolved", "minor"),
        ("shop", "resolved", "critical"), ("stock", "resolved", "critical"),
    ]  # fmt: skip
    assert [one["service"] for one in ask("list", "--open")] == ["pay"]
    shown = ask("show", listed[3]["id"][:10])
    assert [(one["name"], one["status"]) for one in shown] == [("down", "resolved"), ("down again", "resolved")]

    rows = {one["service"]: one for one in ask("report", "--since", "1d", "--weight", "shop=3", "--weight", "web=2")}
    assert list(rows) == ["pay", "shop", "stock", "web", "*"]
    day_s = timedelta(days=1).total_seconds()
    # Downtime within the day, to a minute or two: the command runs a little later than the events were made.
    down_s = {"pay": 144 * 60, "shop": 40 * 60, "stock": 60 * 60, "web": 0}
    for service, expected in down_s.items():
        assert rows[service]["downtime_s"] == pytest.approx(expected, abs=150), service
        assert rows[service]["availability"] == pytest.approx(1 - rows[service]["downtime_s"] / day_s)
    weights = {"pay": 1, "shop": 3, "stock": 1, "web": 2}
    mean = sum(rows[service]["availability"] * weight for service, weight in weights.items()) / 7
    assert rows["*"]["availability"] == pytest.approx(mean)
    counted = ("incidents", "open", "alerts", "false_positives", "accuracy", "interventions")
    assert [rows["shop"][name] for name in counted] == [2, 0, 4, 1, 0.75, 1]
    assert [rows["*"][name] for name in counted] == [4, 1, 6, 1, pytest.approx(5 / 6), 1]
    assert rows["shop"]["mttr_s"] == pytest.approx((40 + 20) * 60 / 2)
    assert rows["web"] == {
        "service": "web", "availability": 1, "downtime_s": 0, "incidents": 0, "open": 0, "mttr_s": None, "alerts": 0,
        "false_positives": 0, "accuracy": None, "interventions": 0,
    }  # fmt: skip


def test_what_cannot_be_asked_is_refused(environment: dict[str, str]) -> None:
    for arguments, message in (
        (("show", "nothing"), "no incident has an id that begins with 'nothing'"),
        (("report", "--weight", "shop"), "'shop' is not of the form SERVICE=NUMBER"),
        (("report", "--since", "soon"), "soon"),
    ):
        done = tailrace("incidents", *arguments, environment=environment)
        assert done.returncode != 0
        assert message in " ".join(done.stderr.replace("│", " ").split())
