"""Objectives against the workbook's figures, against plain sums over all windows, and in scenarios."""

import pickle
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.burn import Stored
from tailrace_flows.core.alerting.slo import Slo, SloStatus
from tailrace_schemas.alerts import AlertEvent, Command, CommandKind, Transition, time_of
from tailrace_schemas.config.maintenance import Maintenance
from tailrace_schemas.config.slo import SloSpec

from tests.data import reference

S = 1_000_000
STEP = 10 * S
DAY_S = 86400
T0 = 1_700_000_000 * S

INDICATOR = {"good": {"metric": "ok"}, "total": {"metric": "all"}}
HOUR_PAGE = {"severity": "critical", "long": "1h", "short": "5m", "factor": 14.4}


def spec(**changes: Any) -> SloSpec:
    base = {"name": "it", "service": "shop", "objective": 0.999, "indicator": INDICATOR, "budget_low": None}
    return SloSpec.model_validate({**base, **changes}, strict=False)


def told(events: Iterable[AlertEvent]) -> list[tuple[int, str, str]]:
    """Seconds since T0, which alert, what."""
    return [
        (round((one.time - time_of(T0)).total_seconds()), one.alert.labels["alert"], one.transition.value)
        for one in events
        if one.alert is not None
    ]


class Run:
    """Feeds an objective with windows of constant traffic and evaluates it at each."""

    def __init__(self, slo: Slo, at_us: int = T0) -> None:
        self.slo = slo
        self.t_us = at_us
        self.events: list[AlertEvent] = []
        self.status: SloStatus | None = None

    def go(self, seconds: int, bad: float | None = 0.0, total: float = 1000.0) -> "Run":
        """`bad` is the error ratio; None: no rows at all."""
        for _ in range(seconds // 10):
            self.t_us += STEP
            if bad is not None:
                self.slo.put(self.t_us, bad * total, total)
            events, self.status = self.slo.evaluate(self.t_us)
            self.events += events
        return self

    def told(self) -> list[tuple[int, str, str]]:
        return told(self.events)


def history(until_us: int, seconds: int, total: float = 1000.0) -> list[Stored]:
    """Error-free traffic at every 10 s before `until_us`."""
    return [Stored(until_us - (k + 1) * STEP, 10, total, total) for k in range(seconds // 10)]


# -- the reference -------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", reference("slo_burn_rate"))
def test_reference(case: dict[str, Any]) -> None:
    kinds: dict[str, Callable[[dict[str, Any]], None]] = {
        "burn_factor": factors,
        "burn_windows": pyrra_windows,
        "recommended": recommended,
        "exhaustion": exhaustion,
        "detection": detection,
        "step_outage": step_outage,
    }
    kinds[case["kind"]](case)


def factors(case: dict[str, Any]) -> None:
    mine = spec(period=f"{case['slo_period_s'] // DAY_S}d", objective=case["objective"]).burn_alerts()
    severities = {"page": "critical", "ticket": "warning"}
    assert [(one.severity, one.short_s, one.long_s, round(100 * (one.budget or 0), 9)) for one in mine] == [
        (severities[row["severity"]], row["short_s"], row["long_s"], row["budget_percent"]) for row in case["rows"]
    ]
    for one, row in zip(mine, case["rows"], strict=True):
        assert one.threshold(case["slo_period_s"]) == pytest.approx(row["expected_factor"], rel=1e-9)


def pyrra_windows(case: dict[str, Any]) -> None:
    """Another policy than ours, with factors of its own and `for`: it can be written, if one severity has one `for`."""
    for row in case["rows"]:
        alert = {"severity": row["severity"], "factor": row["factor"], "for": f"{row['for_s']}s"}
        alert |= {"long": f"{row['long_s']}s", "short": f"{row['short_s']}s"}
        (mine,) = spec(period="28d", alerts=[alert]).burn_alerts()
        assert (mine.threshold(case["slo_period_s"]), mine.for_s) == (row["factor"], row["for_s"])


def recommended(case: dict[str, Any]) -> None:
    mine = {(one.long_s, one.short_s): one for one in spec(objective=case["slo"]).burn_alerts()}
    for row in case["rows"]:
        found = mine[row["long_s"], row["short_s"]]
        assert found.threshold(30 * DAY_S) == pytest.approx(row["burn"], rel=1e-9)
        assert found.budget == pytest.approx(row["budget"], rel=1e-9)


def exhaustion(case: dict[str, Any]) -> None:
    for row in case["rows"]:
        # An hour at this rate, in a period so rich in events that it spends next to nothing of the budget.
        slo = Slo(spec(objective=case["slo"]))
        rich = [Stored(T0 - 10 * 3600 * S, 10, 1e15, 1e15)]
        slo.prime(T0, rich)
        run = Run(slo).go(3600, row["error_ratio"])
        assert run.status is not None
        assert run.status.burn_rates["1h"] == pytest.approx(row["burn"], rel=1e-9)
        assert run.status.exhausted_at_us is not None
        assert (run.status.exhausted_at_us - run.t_us) / S == pytest.approx(row["exhaustion_s"], rel=1e-6)


def detection(case: dict[str, Any]) -> None:
    """One long window alone, from its first bad event."""
    alert = {"severity": "critical", "long": f"{case['window_s']}s", "factor": case["burn"]}
    slo = Slo(spec(objective=case["slo"], alerts=[alert]))
    slo.prime(T0, history(T0, case["window_s"]))
    run = Run(slo).go(case["window_s"], case["error_ratio"]).go(case["window_s"])
    (on, _, active), (off, _, resolved) = run.told()
    assert (active, resolved) == ("active", "resolved")
    assert 0 < on - case["detect_s"] <= 20
    if "reset_s" in case:
        assert 0 <= off - case["window_s"] - case["reset_s"] <= 20


def step_outage(case: dict[str, Any]) -> None:
    """Each row as an alert of its own, in traffic that begins long before."""
    for row in case["rows"]:
        alert = {
            "severity": "critical",
            "long": f"{row['long_s']}s",
            "short": f"{row['short_s']}s",
            "factor": row["burn"],
        }
        if row["burn"] * (1 - case["slo"]) >= 1:
            assert not row["fires"]
            with pytest.raises(ValueError, match="cannot be reached"):
                spec(objective=case["slo"], alerts=[alert])
            continue
        slo = Slo(spec(objective=case["slo"], alerts=[alert]))
        slo.prime(T0, history(T0, row["long_s"] + 3600))
        # Evaluated at every step around what matters, and every ten minutes in between.
        run = Run(slo)
        outage_s = round(row["long_s"] * 1.1)
        edges = [row.get("detect_s", 0), outage_s + row.get("reset_after_end_s_if_outage_longer_than_long", 0)]
        for k in range(1, (outage_s + row["short_s"] + 600) // 10):
            run.t_us += STEP
            bad = case["error_ratio"] * 1000 if k * 10 <= outage_s else 0
            slo.put(run.t_us, bad, 1000)
            if k % 60 == 0 or any(abs(k * 10 - edge) < 200 for edge in edges):
                run.events += slo.evaluate(run.t_us)[0]
        if not row["fires"]:
            assert run.told() == []
            continue
        (on, _, active), (off, _, resolved) = run.told()
        assert (active, resolved) == ("active", "resolved"), row
        # One evaluation step and one window of events, as the reference allows.
        assert 0 <= on - edges[0] <= 20, row
        assert -10 <= off - edges[1] <= 20, row


@pytest.mark.parametrize("error_ratio", [1.0, 0.1, 0.01, 0.002])
@pytest.mark.parametrize("objective", [0.999, 0.99])
def test_detection_by_the_workbooks_formula(error_ratio: float, objective: float) -> None:
    """(1 - objective) / error_ratio * window * factor, for the recommended policy as a whole."""
    mine = spec(objective=objective)
    slo = Slo(mine)
    slo.prime(T0, history(T0, 3 * DAY_S + 3600))
    expected = {}
    for one in mine.burn_alerts():
        detect_s = (1 - objective) / error_ratio * one.long_s * one.threshold(mine.period_s)
        if detect_s < one.long_s:
            before = expected.get(f"burn-{one.severity}", detect_s)
            expected[f"burn-{one.severity}"] = min(before, detect_s)
    run = Run(slo)
    until_s = round(max(expected.values(), default=DAY_S)) + 60
    for k in range(1, until_s // 10 + 1):
        run.t_us += STEP
        slo.put(run.t_us, error_ratio * 1000, 1000)
        if k % 10 == 0 or any(abs(k * 10 - edge) < 60 for edge in expected.values()):
            run.events += slo.evaluate(run.t_us)[0]
    found = {alert: at for at, alert, _ in run.told()}
    assert found.keys() == expected.keys()
    for alert, at in found.items():
        assert 0 <= at - expected[alert] <= 20


# -- the oracle ----------------------------------------------------------------------------------------


def plain(windows: dict[int, tuple[float, float]], t_us: int, window_s: float) -> tuple[float, float]:
    found = [both for end, both in windows.items() if t_us - window_s * S < end <= t_us]
    return sum(bad for bad, _ in found), sum(total for _, total in found)


@pytest.mark.parametrize("seed", range(3))
def test_burn_alerts_are_those_of_plain_sums(seed: int) -> None:
    """Random outages, gaps, thin traffic and late rows: the alert is on exactly when the documented rule says so."""
    rng = random.Random(seed)
    pairs = [("1h", 3600, "5m", 300, 14.4), ("6h", 21600, "30m", 1800, 6)]
    alerts = [{"severity": "critical", "long": a, "short": c, "factor": f} for a, _, c, _, f in pairs]
    slo = Slo(spec(alerts=alerts, minimum_events=50, objective=0.99))
    windows: dict[int, tuple[float, float]] = {}
    t_us, on, newest = T0, False, None
    mode: tuple[float, int] = (0.0, 100)
    for _ in range(1500):
        t_us += STEP
        if rng.random() < 0.02:
            mode = (rng.choice((0, 0, 0.05, 0.2, 1)), rng.choice((0, 1, 10, 100)))
        if mode[1] or rng.random() < 0.5:
            total = rng.randint(0, mode[1])
            row = (sum(rng.random() < mode[0] for _ in range(total)), total)
            end_us = t_us - rng.choice((0, 0, 0, 3)) * STEP
            if total or end_us not in windows:
                windows[end_us] = row
                slo.put(end_us, *row)
                newest = max(newest or 0, end_us) if total else newest
        slo = Slo(slo.spec, state=pickle.loads(pickle.dumps(slo.snapshot()))) if rng.random() < 0.02 else slo
        events, status = slo.evaluate(t_us)

        silent = newest is None or t_us - newest > 300 * S
        known, exceeded = True, False
        for _, long_s, _, short_s, factor in pairs:
            (long_bad, long_total), (short_bad, short_total) = (
                plain(windows, t_us, long_s),
                plain(windows, t_us, short_s),
            )
            if not long_total or not short_total:
                known = False
            elif long_bad / long_total > factor * 0.01 + 1e-9 and short_bad / short_total > factor * 0.01 + 1e-9:
                if long_total >= 50:
                    exceeded = True
                else:
                    known = False
        expected = on if silent else True if exceeded else False if known else on
        assert [one.transition.value for one in events] == {
            (False, True): ["active"],
            (True, False): ["resolved"],
        }.get((on, expected), [])
        on = expected
        for text, seconds in (("5m", 300), ("1h", 3600), ("6h", 21600)):
            bad, total = plain(windows, t_us, seconds)
            burn = status.burn_rates[text]
            assert burn == (pytest.approx(bad / total / 0.01, rel=1e-9, abs=1e-12) if total else None)


# -- scenarios -----------------------------------------------------------------------------------------


def paging(**changes: Any) -> Slo:
    slo = Slo(spec(alerts=[HOUR_PAGE], **changes))
    slo.prime(T0, history(T0, 3600))
    return slo


def test_silence_freezes_an_alert_that_is_active() -> None:
    run = Run(paging()).go(120, 1.0).go(7200, None)
    assert run.told() == [(60, "burn-critical", "active")]
    assert run.status is not None
    assert run.status.frozen == "no data"
    assert run.go(10, 0.0).told() == [(60, "burn-critical", "active"), (7330, "burn-critical", "resolved")]


def test_silence_does_not_let_an_alert_begin() -> None:
    """The good events leave the short window first; what is left of it must not fire once it is stale."""
    slo = Slo(spec(alerts=[HOUR_PAGE], minimum_events=1))
    run = Run(slo).go(600, 0.0).go(30, 1.0, total=10).go(3600, None)
    assert all(at <= 600 + 30 + 300 for at, _, _ in run.told())


def test_few_events_page_nobody() -> None:
    assert Run(Slo(spec(alerts=[HOUR_PAGE]))).go(990, 1.0, total=1).told() == []
    assert Run(Slo(spec(alerts=[HOUR_PAGE]))).go(1000, 1.0, total=1).told() == [(1000, "burn-critical", "active")]
    assert Run(Slo(spec(alerts=[HOUR_PAGE], minimum_events=3))).go(30, 1.0, total=1).told() == [
        (30, "burn-critical", "active")
    ]


def test_an_alert_goes_on_while_traffic_is_thin_and_ends_by_good_events() -> None:
    slo = Slo(spec(alerts=[HOUR_PAGE], minimum_events=100))
    run = Run(slo).go(20, 1.0, total=50).go(7200, 1.0, total=0.1)
    assert run.told() == [(20, "burn-critical", "active")]
    run.go(310, 0.0, total=0.1)
    assert [what for _, _, what in run.told()] == ["active", "resolved"]


def maintenance(first_s: int, last_s: int) -> Maintenance:
    interval = {"start": time_of(T0 + first_s * S), "end": time_of(T0 + last_s * S)}
    return Maintenance.model_validate({"name": "deploy", "once": [interval]}, strict=False)


def test_maintenance_takes_out_good_and_bad_alike() -> None:
    slo = Slo(spec(alerts=[HOUR_PAGE]), [maintenance(100, 700)])
    slo.prime(T0, history(T0, 3600))
    run = Run(slo).go(100, 0.0).go(600, 1.0).go(100, 0.0)
    assert run.told() == []
    assert run.status is not None
    assert (run.status.bad, run.status.total) == (0, 360_000 + 20_000)


def test_an_alert_neither_begins_nor_ends_in_maintenance() -> None:
    slo = Slo(spec(alerts=[HOUR_PAGE]), [maintenance(100, 700)])
    slo.prime(T0, history(T0, 3600))
    run = Run(slo).go(100, 1.0).go(600, 0.0)
    assert run.told() == [(60, "burn-critical", "active")]
    assert run.status is not None
    assert run.status.frozen == "maintenance"
    assert [what for _, _, what in run.go(310, 0.0).told()] == ["active", "resolved"]


def test_the_budget_runs_low_and_recovers() -> None:
    slo = Slo(spec(alerts=[], budget_low=0.1, objective=0.9, period="1d"))
    run = Run(slo).go(1000, 0.0).go(120, 0.9)
    assert run.status is not None
    assert run.status.budget_remaining == pytest.approx(1 - (12 * 0.9 / 112) / 0.1)
    # 10.8 of 112 windows, then of ever more: from 122 on at least 11 % of the budget are left.
    run.go(200, 0.0)
    assert run.told() == [(1120, "budget-low", "active"), (1220, "budget-low", "resolved")]


def test_a_budget_may_be_overspent() -> None:
    run = Run(Slo(spec(period="7d"))).go(100, 0.5)
    assert run.status is not None
    assert run.status.budget_remaining == pytest.approx(1 - 0.5 / 0.001)
    assert run.status.exhausted_at_us == run.t_us
    assert "30d" not in run.status.burn_rates


def test_nothing_measured_is_an_untouched_budget_and_no_evidence() -> None:
    _, status = Slo(spec()).evaluate(T0)
    assert (status.budget_remaining, status.error_ratio, status.frozen) == (1.0, None, "no data")
    assert set(status.burn_rates.values()) == {None}


def test_a_lost_state_is_filled_from_stored_rows() -> None:
    """Thirty days of hours, minutes and 10 s: the budget is what it was, and an outage of long ago counts."""
    until_us = T0 // (3600 * S) * 3600 * S
    slo = Slo(spec())
    assert slo.empty
    hours = [
        Stored(until_us - k * 3600 * S, 3600, 360_000 - (1000 if k == 400 else 0), 360_000) for k in range(74, 720)
    ]
    minutes = [Stored(until_us - k * 60 * S, 60, 6000, 6000) for k in range(361, 73 * 60 + 1)]
    slo.prime(until_us, [*hours, *minutes, *history(until_us, 6 * 3600 + 60)])
    assert not slo.empty
    _, status = slo.evaluate(until_us)
    assert status.bad == 1000
    assert status.total == pytest.approx(720 * 360_000, rel=0.002)
    assert status.burn_rates["3d"] == 0
    assert status.frozen == ""


def test_a_person_acknowledges_and_resolves_one_of_its_alerts() -> None:
    slo = paging()
    run = Run(slo).go(100, 1.0)
    (alert,) = slo.alerts()
    assert (alert.source, alert.severity, alert.labels) == (
        "slo/it",
        "critical",
        {"alert": "burn-critical", "service": "shop", "slo": "it"},
    )
    assert slo.command(command(CommandKind.ACKNOWLEDGE, "someone else's", run.t_us)) is None
    (event,) = slo.command(command(CommandKind.ACKNOWLEDGE, alert.id, run.t_us)) or []
    assert event.transition is Transition.ACKNOWLEDGED
    slo = Slo(slo.spec, state=slo.snapshot())
    assert [one.id for one in slo.republish()] == [event.id]
    run.slo = slo
    assert run.go(600, 1.0).told() == [(60, "burn-critical", "active")], "an acknowledged alert fired anew"
    (closed,) = slo.close(run.t_us + STEP, "the objective was removed")
    assert (closed.transition, closed.reason) == (Transition.RESOLVED, "the objective was removed")


def command(kind: CommandKind, alert_id: str, t_us: int) -> Command:
    return Command(id=f"c-{kind}-{t_us}", kind=kind, alert_id=alert_id, time=time_of(t_us), author="ada")


def test_the_description_says_what_is_wrong() -> None:
    run = Run(paging(service="{odd}")).go(60, 1.0)
    alert = run.events[0].alert
    assert alert is not None
    assert alert.description == (
        "{odd} spends the error budget of 99.9 % over 30d too fast: a burn rate above 14.4 over 1h. It is 16.7"
    )
    assert alert.threshold is not None
    assert (alert.threshold.operator, alert.threshold.value) == ("gt", 14.4)
    assert alert.current_value == pytest.approx(60 / 3600 / 0.001)


# -- changes and restarts ------------------------------------------------------------------------------


def test_another_target_keeps_what_was_counted_and_another_indicator_does_not() -> None:
    slo = paging()
    Run(slo).go(100, 1.0)
    state = slo.snapshot()
    looser = Slo(spec(objective=0.99, alerts=[HOUR_PAGE | {"factor": 10}]), state=state)
    assert not looser.empty
    assert len(looser.alerts()) == 1
    other = Slo(spec(indicator={"bad": {"metric": "no"}, "total": {"metric": "all"}}, alerts=[HOUR_PAGE]), state=state)
    assert other.empty
    assert len(other.alerts()) == 1
    assert Slo(spec(period="7d", alerts=[HOUR_PAGE]), state=state).empty


def test_an_alert_that_is_configured_no_more_is_resolved() -> None:
    slo = paging()
    run = Run(slo).go(100, 1.0)
    state = Slo(spec(alerts=[]), state=pickle.loads(pickle.dumps(slo.snapshot()))).snapshot()
    without = Slo(spec(alerts=[]), state=state)  # restarted before it was evaluated
    (event,) = without.evaluate(run.t_us + STEP)[0]
    assert (event.transition, event.reason) == (Transition.RESOLVED, "it is no longer configured")
    assert without.evaluate(run.t_us + 2 * STEP)[0] == []


def test_an_alert_of_the_service_before_is_resolved_though_there_are_no_data_of_the_new_one() -> None:
    slo = paging()
    run = Run(slo).go(100, 1.0)
    of_another = Slo(spec(service="another", alerts=[HOUR_PAGE]), state=pickle.loads(pickle.dumps(slo.snapshot())))
    (event,) = of_another.evaluate(run.t_us + STEP)[0]
    assert (event.transition, event.reason) == (Transition.RESOLVED, "its objective is of another service now")
    assert event.alert is not None
    assert event.alert.labels["service"] == spec().service
    assert of_another.evaluate(run.t_us + 2 * STEP)[0] == []


def test_state_of_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99"):
        Slo(spec(), state=(99, (), (), {}))


def test_a_snapshot_is_below_64_kb() -> None:
    slo = Slo(spec(budget_low=0.1))
    Run(slo).go(7200, 1.0)
    assert len(slo.alerts()) == 3
    assert len(pickle.dumps(slo.snapshot())) < 64_000


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_batches_duplicates_and_restarts_give_the_same_events(data: st.DataObject) -> None:
    """Rows reach the objective before the evaluation that needs them, however they are grouped, doubled or redone."""
    rng = random.Random(data.draw(st.integers(0, 1000)))
    rows = []
    ratio = 0.0
    for k in range(1, 200):
        ratio = rng.choice((0, 0.3, 1)) if rng.random() < 0.05 else ratio
        rows.append((T0 + k * STEP, ratio * 100, 100.0))
    alerts = [{"severity": "critical", "long": "10m", "short": "1m", "factor": 20}]
    straight, other = Slo(spec(alerts=alerts, objective=0.99)), Slo(spec(alerts=alerts, objective=0.99))
    expected = []
    for end_us, bad, total in rows:
        straight.put(end_us, bad, total)
        expected.append(straight.evaluate(end_us))
    found, given_until, k = [], 0, 0
    while k < len(rows):
        ahead = data.draw(st.integers(1, 30))
        batch = rows[max(0, given_until - data.draw(st.integers(0, 10))) : k + ahead]
        for row in rng.sample(batch, len(batch)):
            other.put(*row)
        given_until = min(len(rows), k + ahead)
        for end_us, _, _ in rows[k:given_until]:
            found.append(other.evaluate(end_us))
        k = given_until
        if data.draw(st.booleans()):
            other = Slo(other.spec, state=pickle.loads(pickle.dumps(other.snapshot())))
    assert [(list(one), status) for one, status in found] == [(list(one), status) for one, status in expected]
