"""Objectives as users write them, in the native form and in OpenSLO's: what they mean, and what is refused."""

# ruff: noqa: E501 - tables

import re
from typing import Any

import pytest
from tailrace_schemas.config import ConfigError, Item, load, model_of, record_of
from tailrace_schemas.config.slo import SloSpec, percent_text

GOOD = "{good: {metric: ok}, total: {metric: all}}"


def items(text: str) -> list[Item]:
    return list(load([("slo.yaml", text)]).items)


def slos(text: str) -> list[SloSpec]:
    found = []
    for item in items(text):
        record = record_of(item)
        assert model_of(record.key, record.value) == item.model, "not the same from the config topic"
        if isinstance(item.model, SloSpec):
            found.append(item.model)
    return found


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load([("slo.yaml", text)])
    (problem,) = caught.value.problems
    return str(problem)


# -- native --------------------------------------------------------------------------------------------


def native(**changes: str) -> str:
    fields = {"name": "it", "service": "shop", "objective": "99.9%", "indicator": GOOD} | changes
    return "slos:\n- " + "\n  ".join(f"{key}: {value}" for key, value in fields.items())


def test_the_short_form() -> None:
    availability, latency, probe = slos(
        """
slos:
- name: checkout-availability
  service: checkout
  objective: 99.9%
  period: 30d
  indicator:
    good: {metric: http.server.requests, where: {http.response.status_code: "!~5.."}}
    total: {metric: http.server.requests}
- name: checkout-latency
  service: checkout
  objective: 0.99
  indicator: {latency: {metric: http.server.request.duration, below: 300ms}}
- name: checkout-up
  service: checkout
  objective: 99.5%
  period: 7d
  indicator: {health: checkout-http}
  alerts: []
health_checks:
- {name: checkout-http, service: checkout, http: {url: "http://checkout:8080/health"}}
"""
    )
    assert (availability.objective, availability.allowed, availability.period_s) == (0.999, 0.001, 30 * 86400)
    good, total = availability.indicator.counts()
    assert (good.where, total.where) == ({"http.response.status_code": "!~5.."}, {})
    assert not availability.indicator.counts_bad
    assert latency.indicator.latency is not None
    assert latency.indicator.latency.below == 0.3
    bad, total = probe.indicator.counts()
    assert probe.indicator.counts_bad
    assert (bad.metric, bad.where["health.check.status"]) == ("health.check.runs", "unhealthy")
    assert total.where == {"service": "=~.*", "health.check.name": "checkout-http"}
    assert probe.burn_alerts() == ()
    with pytest.raises(ValueError, match="no counts"):
        latency.indicator.counts()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "100%"}, "3: slos[0].objective: an objective of 100% has no error budget: nothing can be measured against it"),
        ({"objective": "99.9"}, '3: slos[0].objective: 99.9 is not between 0 and 1; write "99.9%" or 0.999'),
        ({"objective": "three nines"}, "3: slos[0].objective: 'three nines' is no share; write \"99.9%\" or 0.999"),
        ({"objective": "0%"}, '3: slos[0].objective: 0 is not between 0 and 1; write "99.9%" or 0.999'),
        ({"objective": "90%"}, "1: slos[0]: a burn rate above 14.4 over 1h cannot be reached: at an objective of 90 % it means that more than 144% of the events are bad; give `alerts` of your own, or [] for none"),
        ({"period": "36h"}, "5: slos[0].period: 1d12h is no whole number of days from 1d to 90d"),
        ({"period": "91d"}, "5: slos[0].period: 91d is no whole number of days from 1d to 90d"),
        ({"period": "2d"}, "1: slos[0]: an alert looks back 3d, further than the period of 2d; give `alerts` of your own, or [] for none"),
        ({"budget_low": "100%"}, "5: slos[0].budget_low: is a share from 0 to below 100%"),
        ({"alerts": "[{severity: critical, long: 1h, short: 5m, factor: 1000}]"}, "5: slos[0].alerts[0]: a burn rate above 1000 over 1h cannot be reached: at an objective of 99.9 % it means that more than 100% of the events are bad"),
        ({"alerts": "[{severity: critical, long: 1h, short: 1h, factor: 10}]"}, "5: slos[0].alerts[0]: `short` 1h is not below `long` 1h"),
        ({"alerts": "[{severity: critical, long: 1h}]"}, "5: slos[0].alerts[0]: give either `budget`, a share of the period's budget, or `factor`, a burn rate"),
        ({"alerts": "[{severity: critical, long: 1h, budget: 2%, factor: 3}]"}, "5: slos[0].alerts[0]: give either `budget`, a share of the period's budget, or `factor`, a burn rate"),
        ({"alerts": "[{severity: critical, long: 1h, budget: 200%}]"}, "5: slos[0].alerts[0]: `budget` is a share between 0 and 100%"),
        ({"alerts": "[{severity: critical, long: 15s, factor: 2}]"}, "5: slos[0].alerts[0].long: 15s is no multiple of 10s, which is how often there are rows"),
        ({"alerts": "[{severity: info, long: 1h, factor: 2}, {severity: info, long: 2h, factor: 2, for: 1m}]"}, "5: slos[0].alerts[1].for: all of severity info are one alert: give them the same `for`"),
        ({"indicator": "{good: {metric: a}}"}, "4: slos[0].indicator: give `good` and `total`, or `bad` and `total`, or `latency`, or `health`"),
        ({"indicator": "{good: {metric: a}, bad: {metric: a}, total: {metric: b}}"}, "4: slos[0].indicator: give `good` and `total`, or `bad` and `total`, or `latency`, or `health`"),
        ({"indicator": "{good: {metric: a}, total: {metric: a}}"}, "4: slos[0].indicator: both count the same: then every event would be alike"),
        ({"indicator": "{latency: {metric: a, below: fast}}"}, "4: slos[0].indicator.latency.below: 'fast' is no duration; write \"30s\", \"5m\", \"1h30m\" or \"7d\""),
        ({"period": "30"}, '5: slos[0].period: a duration has a unit; write "30s", "5m", "1h30m" or "7d", not 30'),
    ],
)  # fmt: skip
def test_what_is_refused_and_why(changes: dict[str, str], message: str) -> None:
    line, _, text = message.partition(": ")
    assert refusal(native(**changes)) == f"slo.yaml:{int(line) + 1}: {text}"


def test_factors_follow_the_period() -> None:
    """28 d: 13.44, 5.6, 2.8, 0.933; 7 d by the same formula."""
    for period, factors in (("28d", (13.44, 5.6, 2.8, 2.8 / 3)), ("7d", (3.36, 1.4, 0.7, 0.7 / 3))):
        (one,) = slos(native(period=period))
        assert [alert.threshold(one.period_s) for alert in one.burn_alerts()] == pytest.approx(factors, rel=1e-12)


def test_what_an_objective_means() -> None:
    (one,) = slos(native(indicator='{bad: {metric: errors, where: {code: "5.."}}, total: {metric: all}}'))
    assert one.sentences()[:2] == [
        "it: 99.9 % of shop's events over 30d are to be good: all, bad where errors {code: 5..}",
        "it: critical while more than 1.44 % of the events are bad over 1h and over 5m (a burn rate of 14.4: 2 % of the budget in 1h)",
    ]
    assert one.sentences()[-1] == "it: warning while less than 10 % of the budget is left"
    (single,) = slos(native(alerts="[{severity: info, long: 30m, factor: 2}]", budget_low="null"))
    assert single.sentences()[1:] == [
        "it: info while more than 0.2 % of the events are bad over 30m (a burn rate of 2: 0.14 % of the budget in 30m)"
    ]
    assert percent_text(0.99995) == "99.995 %"


def test_maintenance() -> None:
    (item,) = items(
        """
maintenance:
- name: nights
  services: [checkout]
  time_zone: Europe/Paris
  weekly: [{days: [sat, sun], start: "02:00", end: "04:00"}]
  once: [{start: 2026-12-24T22:00:00+01:00, end: 2026-12-25T06:00:00+01:00}]
"""
    )
    record = record_of(item)
    assert model_of(record.key, record.value) == item.model
    assert item.model.sentences() == [
        "nights: maintenance of checkout: from 2026-12-24T22:00:00+01:00 to 2026-12-25T06:00:00+01:00; sat, sun from 02:00 to 04:00 Europe/Paris"
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "maintenance[0]: it has neither `once` nor `weekly`: no time would be maintenance"),
        ("time_zone: Europe/Pariss", "maintenance[0].time_zone: 'Europe/Pariss' is no time zone of the IANA database, such as Europe/Paris"),
        ("time_zone: ../../etc/passwd", "maintenance[0].time_zone: '../../etc/passwd' is no time zone of the IANA database, such as Europe/Paris"),
        ("services: []\n  weekly: [{days: [sat], start: 02:00, end: 03:00}]", "maintenance[0]: `services` is empty; leave it out for all services"),
        ("weekly: [{days: [sat], start: 2pm, end: 03:00}]", "maintenance[0].weekly[0].start: '2pm' is no time of day; write \"02:30\", in quotes"),
        ("weekly: [{days: [sat], start: 24:00, end: 03:00}]", "maintenance[0].weekly[0].start: '24:00' is no time of day"),
        ("weekly: [{days: [someday], start: 02:00, end: 03:00}]", "maintenance[0].weekly[0].days[0]: must be one of 'mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'"),
        ("once: [{start: 2026-01-02T00:00Z, end: 2026-01-01T00:00Z}]", "maintenance[0].once[0]: it ends at 2026-01-01T00:00:00+00:00, not after its start"),
        ("once: [{start: 2026-01-02T00:00, end: 2026-01-03T00:00Z}]", "maintenance[0].once[0].start: Input should have timezone info"),
    ],
)  # fmt: skip
def test_calendars_that_are_refused(fields: str, message: str) -> None:
    assert re.sub(r"^slo.yaml:\d+: ", "", refusal(f"maintenance:\n- name: it\n  {fields}")) == message


# -- OpenSLO -------------------------------------------------------------------------------------------

SLI = """
apiVersion: openslo/v1
kind: SLI
metadata: {name: checkout-requests, displayName: Requests}
spec:
  description: Requests that did not fail
  ratioMetric:
    counter: true
    good:
      metricSource:
        type: Tailrace
        spec: {metric: http.server.requests, where: {http.response.status_code: "!~5.."}}
    total:
      metricSource:
        type: Tailrace
        spec: {metric: http.server.requests}
"""
SLO = """
apiVersion: openslo/v1
kind: SLO
metadata:
  name: checkout
  labels: {team: [shop]}
  annotations: {example.com/dashboard: somewhere}
spec:
  description: What customers notice
  service: checkout
  indicatorRef: checkout-requests
  timeWindow:
  - {duration: 4w, isRolling: true}
  budgetingMethod: Occurrences
  objectives:
  - {displayName: Most, target: 0.98}
  - {displayName: Nearly all, targetPercent: 99.95}
  alertPolicies:
  - alertPolicyRef: fast
"""
POLICY = """
apiVersion: openslo/v1
kind: AlertPolicy
metadata: {name: fast}
spec:
  description: Tells on-call when too much fails
  alertWhenBreaching: true
  alertWhenResolved: false
  conditions:
  - conditionRef: burns
  notificationTargets:
  - targetRef: on-call
"""
CONDITION = """
apiVersion: openslo/v1
kind: AlertCondition
metadata: {name: burns}
spec:
  description: The budget burns twice as fast as it may
  severity: page
  condition: {kind: burnrate, op: lte, threshold: 2, lookbackWindow: 1h, alertAfter: 5m}
"""
TARGET = """
apiVersion: openslo/v1
kind: AlertNotificationTarget
metadata: {name: on-call}
spec: {target: slack}
---
apiVersion: openslo/v1
kind: Service
metadata: {name: checkout}
spec: {description: The shop's checkout}
"""
LATENCY = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: latency}
spec:
  service: checkout
  indicator:
    metadata: {name: inline}
    spec:
      thresholdMetric:
        metricSource:
          type: Tailrace
          spec: {metric: http.server.request.duration}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{op: lte, value: 0.3, target: 0.99}]
  alertPolicies:
  - kind: AlertPolicy
    metadata: {name: inline}
    spec:
      alertWhenBreaching: true
      conditions:
      - kind: AlertCondition
        metadata: {name: inline}
        spec: {severity: ticket, condition: {kind: burnrate, op: gte, threshold: 3, lookbackWindow: 1d}}
      notificationTargets:
      - {kind: AlertNotificationTarget, metadata: {name: mail}, spec: {target: email}}
"""


def test_documents_that_name_each_other_in_any_order() -> None:
    expected: dict[str, Any] = {
        "service": "checkout",
        "description": "What customers notice",
        "period": "28d",
        "indicator": {
            "good": {"metric": "http.server.requests", "where": {"http.response.status_code": "!~5.."}},
            "total": {"metric": "http.server.requests"},
        },
        "alerts": [{"severity": "critical", "long": "1h", "factor": 2.0, "for": "5m"}],
        "tags": ["on-call"],
    }
    for documents in ((SLI, SLO, POLICY, CONDITION, TARGET), (TARGET, SLO, CONDITION, SLI, POLICY)):
        found = items("---".join(documents))
        slos("---".join(documents))
        assert [record_of(item).value for item in found] == [
            expected | {"name": "checkout.1", "objective": 0.98},
            expected | {"name": "checkout.2", "objective": 0.9995},
        ]


def test_everything_inline() -> None:
    (one,) = slos(LATENCY)
    assert one.indicator.latency is not None
    assert (one.name, one.objective, one.indicator.latency.below, one.tags) == ("latency", 0.99, 0.3, ("mail",))
    assert [(a.severity, a.long_s, a.factor, a.for_s) for a in one.burn_alerts()] == [("warning", 86400, 3, 0)]


def test_without_policies_the_recommended_alerts_hold() -> None:
    (one,) = slos(LATENCY.split("  alertPolicies:")[0])
    assert one.alerts is None
    assert len(one.burn_alerts()) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budgetingMethod: Occurrences", "budgetingMethod: Timeslices", "spec.budgetingMethod: 'Timeslices' is not supported: Tailrace weighs by events, which is Occurrences"),
        ("budgetingMethod: Occurrences", "budgetingMethod: RatioTimeslices", "spec.budgetingMethod: 'RatioTimeslices' is not supported: Tailrace weighs by events, which is Occurrences"),
        ("isRolling: true", "isRolling: false", "spec.timeWindow[0]: is not supported unless it has `isRolling: true`: budgets of Tailrace roll"),
        ("isRolling: true", "isRolling: true, calendar: {timeZone: UTC}", "spec.timeWindow[0]: is not supported unless it has `isRolling: true`: budgets of Tailrace roll"),
        ("duration: 30d", "duration: 1M", "spec.timeWindow[0].duration: '1M' is not supported: a number with m, h, d or w, as in 28d; months vary"),
        ("duration: 30d", "duration: 1h", "spec.objectives[0]: period: 1h is no whole number of days from 1d to 90d"),
        ("type: Tailrace", "type: Prometheus", "spec.indicator.spec.thresholdMetric.metricSource.type: 'Prometheus' is not supported: queries of other systems cannot be run here; write `type: Tailrace` and in `spec` a `metric` and `where`"),
        ("type: Tailrace", "metricSourceRef: prometheus", "spec.indicator.spec.thresholdMetric.metricSource.metricSourceRef: data sources are not supported: write `type: Tailrace`"),
        ("{metric: http.server.request.duration}", "{query: up}", "spec.indicator.spec.thresholdMetric.metricSource.spec.query: there is no such key. Allowed: metric, where"),
        ("op: lte, value", "op: gte, value", "spec.objectives[0].op: is not supported: events are good up to a value (lte, lt), as a latency's are; for more than a value write an alert rule"),
        ("target: 0.99", "timeSliceTarget: 0.9", "spec.objectives[0].timeSliceTarget: is not supported: Tailrace weighs by events, which has no slices"),
        ("target: 0.99", "target: 0.99, targetPercent: 99", "spec.objectives[0]: give either `target` or `targetPercent`"),
        ("target: 0.99", "target: 1.0", "spec.objectives[0]: objective: an objective of 100% has no error budget: nothing can be measured against it"),
        ("target: 0.99", "target: high", "spec.objectives[0].target: must be a number"),
        ("value: 0.3", "volue: 0.3", "spec.objectives[0].volue: there is no such key. Allowed: displayName, op, value, target, targetPercent"),
        ("thresholdMetric:", "ratioMetric:", "spec.objectives[0].op: is for a thresholdMetric; the indicator is a ratioMetric"),
        ("severity: ticket", "severity: sev1", "spec.alertPolicies[0].spec.conditions[0].spec.severity: 'sev1' is not known; there is: page, ticket, critical, error, warning, info"),
        ("kind: burnrate", "kind: budget", "spec.alertPolicies[0].spec.conditions[0].spec.condition.kind: 'budget' is not supported; there is: burnrate"),
        ("threshold: 3", "threshold: 200", "spec.objectives[0]: alerts[0]: a burn rate above 200 over 1d cannot be reached: at an objective of 99 % it means that more than 200% of the events are bad"),
        ("alertWhenBreaching: true", "alertWhenNoData: true", "spec.alertPolicies[0].spec.alertWhenNoData: is not supported: without data an objective's alerts stay as they are; write an alert rule with `op: absent` to be told of missing data"),
        ("alertWhenBreaching: true", "alertWhenBreaching: false", "spec.alertPolicies[0].spec.alertWhenBreaching: false is not supported: it would leave no alert to be told"),
        ("kind: SLO", "kind: Slo", "kind: 'Slo' is no kind of openslo/v1; there is: SLO, SLI, AlertPolicy, AlertCondition, AlertNotificationTarget, Service, DataSource"),
        ("kind: SLO", "kind: DataSource", "kind: data sources are not supported: Tailrace reads its own metrics and no other's"),
        ("  service: checkout\n", "  service: 5\n", "spec.service: must be text"),
        ("objectives: [{op: lte, value: 0.3, target: 0.99}]", "objectives: []", "spec.objectives: there must be at least one"),
        ("objectives: [{op: lte, value: 0.3, target: 0.99}]", "objectives: 5", "spec.objectives: must be a list"),
        ("objectives: [{op: lte, value: 0.3, target: 0.99}]", "objectives: [5]", "spec.objectives[0]: must be a mapping of keys to values"),
        ("value: 0.3, ", "", "spec.objectives[0]: 'value' is missing"),
        ("  timeWindow: [{duration: 30d, isRolling: true}]", "  timeWindow: []", "spec.timeWindow: must have exactly one window"),
        ("      thresholdMetric:", "      ratioMetric: {}\n      thresholdMetric:", "spec.indicator.spec: give either `thresholdMetric` or `ratioMetric`"),
        ("  indicator:\n", "  indicatorRef: other\n  indicator:\n", "spec: give either `indicator` or `indicatorRef`"),
        ("op: gte, threshold", "op: eq, threshold", "spec.alertPolicies[0].spec.conditions[0].spec.condition.op: must be one of lte, gte, lt, gt"),
        ("          spec: {metric: http.server.request.duration}", "          other: 1", "spec.indicator.spec.thresholdMetric.metricSource.other: there is no such key. Allowed: type, spec"),
        ("  service: checkout\n", "", "spec: 'service' is missing"),
    ],
)  # fmt: skip
def test_what_openslo_has_and_we_have_not_is_refused_by_name(old: str, new: str, message: str) -> None:
    assert old in LATENCY
    assert re.sub(r"^slo.yaml:\d+: ", "", refusal(LATENCY.replace(old, new, 1))) == message


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (SLI, "spec.indicatorRef: there is no SLI named 'checkout-requests' in these files"),
        (POLICY, "spec.alertPolicies[0].alertPolicyRef: there is no AlertPolicy named 'fast' in these files"),
        (CONDITION, "spec.conditions[0].conditionRef: there is no AlertCondition named 'burns' in these files"),
    ],
)
def test_a_name_of_nothing(left_out: str, message: str) -> None:
    documents = [one for one in (SLI, SLO, POLICY, CONDITION) if one is not left_out]
    assert re.sub(r"^slo.yaml:\d+: ", "", refusal("---".join(documents))) == message


def test_raw_ratios_have_lost_their_events() -> None:
    raw = (
        SLI.split("    counter: true")[0]
        + "    rawType: success\n    raw: {metricSource: {type: Tailrace, spec: {metric: a}}}\n"
    )
    assert refusal("---".join((raw, SLO, POLICY, CONDITION))).endswith(
        "ratioMetric.raw: is not supported: a ratio alone has lost how many events it stands for"
    )


def test_two_documents_of_one_name() -> None:
    assert refusal(SLI + "---" + SLI).endswith("metadata.name: there is another SLI 'checkout-requests', at slo.yaml:2")
