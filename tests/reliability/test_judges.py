"""The judges of the attacks can find something: each is given what it must not let pass."""

import sys
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from tailrace_flows.settings import ClickHouseSettings
from tailrace_schemas.alerts import AlertEvent
from tailrace_schemas.notifications import Notification
from tailrace_sinks.clickhouse import connect
from tailrace_sinks.migrate import migrate

from tests.infra.canaries import canary
from tests.reliability import disks, producer_clocks, security
from tests.reliability.attack import Result, Run, attacks, perform
from tests.reliability.overload import judge_storm
from tests.reliability.traffic import S, Traffic
from tests.reliability.world import check_rollups, delivered, judge_statuses, unexpected
from tests.schemas.examples import example
from tests.subscribers.receiving import EXAMPLE
from tests.system.harness import clickhouse_process, patiently
from tests.system.workload import Workload

TRAFFIC = Traffic(seed=3, start_us=1_700_000_000 * S, seconds=120)


def sent(traffic: Traffic) -> Workload:
    """What is in Kafka when all of it is."""
    bench: Any = None  # it is asked for records only where none are given
    records: Any = [SimpleNamespace(value=lambda message=message: message) for _, _, message in traffic.messages()]
    return delivered(bench, records)


def test_statuses_that_are_not_there_are_missed() -> None:
    made, start_s = sent(TRAFFIC), TRAFFIC.start_us // S
    events = [(at // (10 * S) * 10 + 10, one.metric, value) for one, at, value in made.samples["svc-0", ""]]

    def of(metric: str, end_s: int) -> float:
        return sum(value for at, what, value in events if what == metric and at <= end_s)

    whole = [
        (end_s, of("requests", end_s) - of("cool", end_s), of("requests", end_s), "")
        for end_s in range(start_s + 10, start_s + 121, 10)
    ]

    def judge(rows: list[tuple[int, float, float, str]]) -> None:
        judge_statuses(rows, made, TRAFFIC, period_s=30 * 86400)

    judge(whole)
    judge([(start_s + 10, 0, 0, "history pending"), *whole])
    for wrong in ([], whole[1:], whole[:4] + whole[5:], [(*one[:3], "no data") for one in whole], whole[:1] + whole):
        with pytest.raises(AssertionError, match="status"):
            judge(wrong)
    with pytest.raises(AssertionError):
        judge([(end_s, bad, total + (end_s == start_s + 50), "") for end_s, bad, total, _ in whole])


@pytest.mark.parametrize(
    ("source", "labels", "after_s", "wrong"),
    [
        ("health/svc-0", {"service": "svc-0", "alert": "unhealthy"}, 60, True),
        ("health/svc-0", {"service": "svc-0", "alert": "unhealthy"}, 190, False),
        ("health/health", {"service": "health", "alert": "unhealthy"}, 190, True),
        ("slo/cool", {"service": "svc-0", "slo": "cool", "alert": "burn-critical"}, 190, True),
        ("fleet/Busy", {"service": "svc-0", "host": "h1"}, 60, False),
    ],
)
def test_an_alert_that_nothing_is_the_reason_for_is_seen(
    source: str, labels: dict[str, str], after_s: int, *, wrong: bool
) -> None:
    event = AlertEvent.model_validate(example("AlertEvent")["datum"])
    assert event.alert is not None
    alert = event.alert.model_copy(update={"source": source, "labels": labels})
    time = datetime.fromtimestamp(TRAFFIC.start_us // S + after_s, UTC)
    assert bool(unexpected([event.model_copy(update={"alert": alert, "time": time})], TRAFFIC)) == wrong


def test_rows_of_an_hour_that_are_not_there_are_missed(tmp_path: Path) -> None:
    pytest.importorskip("chdb")
    with clickhouse_process(tmp_path) as url, connect(ClickHouseSettings(url=url)) as client:
        migrate(client, ClickHouseSettings(url=url))
        empty: Any = SimpleNamespace(clickhouse=client)
        with pytest.raises(AssertionError, match="missing"):
            check_rollups(empty, sent(TRAFFIC))


def told(rule: str, firing: int, number: int = 0, *, shown: int = 1, **changes: Any) -> Notification:
    """A notification of a rule's alerts, `shown` of which are in it."""
    update = {"group_labels": {"alertname": rule}, "firing": firing, "resolved": 0, "truncated": firing - shown}
    one = EXAMPLE.alerts[0]
    return EXAMPLE.model_copy(update={"id": f"{number:016x}", "alerts": (one,) * shown, **update, **changes})


def test_a_storm_that_reaches_people_as_one_is_seen() -> None:
    few, many = told("Few", 1), [told("EachUser", 10_000, number, shown=200) for number in range(5)]
    judge_storm([few, *many[:3]], 20.0)
    for wrong in (
        [few, *many],  # more often than the group's interval allows
        many[:1],  # the other rule is not told
        [few, told("EachUser", 9_999)],
        [few, told("EachUser", 10_000, group_labels={"alertname": "EachUser", "host": "u1"})],  # a group for each
        [few, told("EachUser", 10_000, group_labels={})],
        [few, told("EachUser", 10_000, truncated=0)],  # as if it were all
        [few, told("EachUser", 10_000, shown=10_000)],  # larger than Kafka takes
    ):
        with pytest.raises(AssertionError):
            judge_storm(wrong, 20.0)


def test_a_row_that_a_wrong_clock_costs_is_missed() -> None:
    told = producer_clocks.world(-3600, own_time=False, others=True)
    producer_clocks.check(told)
    for service in ("search", "cart"):
        lost = next(key for key in told.rows if key.service == service and key.seconds == 10)
        row = told.rows.pop(lost)
        with pytest.raises(AssertionError):
            producer_clocks.check(told)
        told.rows[lost] = row


SKIPPED = """
import pytest

def test_holds(): pass

@pytest.mark.skip(reason="no Java here")
def test_waits(): pass
"""


def test_tests_of_security_that_were_skipped_did_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_some.py").write_text(SKIPPED)
    monkeypatch.setattr(security, "TESTS", (f"--rootdir={tmp_path}", str(tmp_path / "test_some.py"), "-n0", "--no-cov"))
    result = perform(attacks()["security"], Run("security", 1, 1, tmp_path, lambda _: None))
    assert result.skipped == "1 of 2 tests: no Java here"
    assert not result.failures
    assert not result.passed


@pytest.mark.parametrize("before", ["", "u:", "me:"])
@pytest.mark.parametrize("encode", [str.encode, lambda text: b64encode(text.encode())])
def test_a_secret_that_a_process_has_logged_is_found(
    tmp_path: Path, before: str, encode: Callable[[str], bytes]
) -> None:
    secret = before + canary("clickhouse")

    def leak(run: Run) -> Result:
        (run.directory / "secrets").mkdir()
        (run.directory / "secrets" / "password").write_text(secret)
        (run.directory / "flow.log").write_bytes(b"level=info\n" + encode(secret) + b"\n")
        return Result()

    [failure] = perform(replace(attacks()["kills"], perform=leak), Run("kills", 1, 1, tmp_path, print)).failures
    assert failure.what == "a secret is in flow.log"


@pytest.mark.parametrize("fails", [True, False])
def test_a_secret_that_an_attack_says_is_found(tmp_path: Path, *, fails: bool) -> None:
    def leak(run: Run) -> Result:
        if fails:
            raise ValueError(f"cannot connect with {canary('kafka')}")
        run.say(canary("kafka"))
        return Result()

    failed = perform(replace(attacks()["kills"], perform=leak), Run("kills", 1, 1, tmp_path, print)).failures
    assert failed[-1].what == "a secret is in what the attack says"


def test_what_an_attack_in_a_process_of_its_own_says_comes_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "TIMEOUT_S", 60.0)
    heard = tmp_path / "heard"
    program = f"""
import pathlib, sys, threading
print("disk 1 of 2", file=sys.stderr, flush=True)
while not pathlib.Path({str(heard)!r}).exists():
    threading.Event().wait(0.01)
print("figures")
sys.exit(3)
"""

    def keep(line: str) -> None:
        heard.write_text(line)

    found = disks.heard([sys.executable, "-c", program], keep)
    assert found == (3, "figures\n", "disk 1 of 2\n")
    assert heard.read_text() == "disk 1 of 2"


def test_a_broker_that_leads_nothing_yet_is_asked_again() -> None:
    left = [KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))] * 2

    def ask() -> int:
        if left:
            raise left.pop()
        return 7

    assert patiently(ask) == 7


def test_patience_with_a_broker_ends() -> None:
    def ask() -> None:
        raise KafkaException(KafkaError(KafkaError.NOT_LEADER_FOR_PARTITION))

    with pytest.raises(KafkaException):
        patiently(ask, 0.0)
