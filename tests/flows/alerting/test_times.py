"""Time intervals: when a time lies in them, and what is refused. The rules are Alertmanager's (timeinterval.go)."""

from datetime import datetime

import pytest
from tailrace_flows.core.alerting.times import contains
from tailrace_schemas.alerts import us_of
from tailrace_schemas.config import ConfigError
from tailrace_schemas.config.dispatch import TimeInterval

from tests.flows.alerting.dispatching import config_of

CASES = [
    # interval                                                     inside                       outside
    ("{}", "2026-01-05T00:00Z", ""),
    ('{times: [{start_time: "09:00", end_time: "17:00"}]}', "2026-01-05T09:00Z", "2026-01-05T17:00Z"),
    ('{times: [{start_time: "09:00", end_time: "17:00"}]}', "2026-01-05T16:59:59Z", "2026-01-05T08:59:59Z"),
    ('{times: [{start_time: "22:00", end_time: "24:00"}]}', "2026-01-05T23:59:59Z", "2026-01-06T00:00Z"),
    ("{weekdays: ['monday:friday']}", "2026-01-09T12:00Z", "2026-01-10T12:00Z"),
    ("{weekdays: [saturday, Sunday]}", "2026-01-11T12:00Z", "2026-01-12T12:00Z"),
    ("{weekdays: ['sunday:tuesday']}", "2026-01-11T12:00Z", "2026-01-14T12:00Z"),
    ("{days_of_month: ['1:5']}", "2026-01-05T12:00Z", "2026-01-06T12:00Z"),
    ("{days_of_month: ['-1']}", "2024-02-29T12:00Z", "2024-02-28T12:00Z"),
    ("{days_of_month: ['-3:-1']}", "2026-02-26T12:00Z", "2026-02-25T12:00Z"),
    ("{days_of_month: ['29:31']}", "2026-03-30T12:00Z", "2026-02-28T12:00Z"),
    ("{days_of_month: ['25:31']}", "2026-02-28T12:00Z", "2026-03-01T12:00Z"),
    ("{days_of_month: ['15:-1']}", "2026-02-28T12:00Z", "2026-02-14T12:00Z"),
    ("{days_of_month: ['-31:-30']}", "2026-01-01T12:00Z", "2026-01-03T12:00Z"),
    ("{months: ['may:august', 12]}", "2026-12-31T12:00Z", "2026-04-30T12:00Z"),
    ("{years: ['2026:2028']}", "2028-12-31T23:59Z", "2029-01-01T00:00Z"),
    ("{weekdays: [monday], months: [january]}", "2026-01-05T12:00Z", "2026-02-02T12:00Z"),
    # Berlin is at UTC+1, from 2026-03-29 at UTC+2: the same hour of the day there.
    ('{times: [{start_time: "09:00", end_time: "10:00"}], location: Europe/Berlin}',
     "2026-03-28T08:30Z", "2026-03-28T07:30Z"),
    ('{times: [{start_time: "09:00", end_time: "10:00"}], location: Europe/Berlin}',
     "2026-03-30T07:30Z", "2026-03-30T08:30Z"),
    ("{weekdays: [monday], location: Asia/Tokyo}", "2026-01-04T15:00Z", "2026-01-05T15:00Z"),
]  # fmt: skip


def interval(text: str) -> TimeInterval:
    config = config_of(f"time_intervals: [{{name: one, time_intervals: [{text}]}}]")
    return config.time_intervals["one"]


@pytest.mark.parametrize(("text", "inside", "outside"), CASES)
def test_contains(text: str, inside: str, outside: str) -> None:
    one = interval(text)
    assert contains([one], us_of(datetime.fromisoformat(inside)))
    if outside:
        assert not contains([one], us_of(datetime.fromisoformat(outside)))


def test_any_interval_of_any_name_suffices_and_none_is_never() -> None:
    names = [interval("{weekdays: [monday]}"), interval("{weekdays: [tuesday]}")]
    assert contains(names, us_of(datetime.fromisoformat("2026-01-06T12:00Z")))
    assert not contains(names, us_of(datetime.fromisoformat("2026-01-07T12:00Z")))
    assert not contains([], 0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{times: [{start_time: "22:00", end_time: "06:00"}]}', "over midnight is two ranges"),
        ('{times: [{start_time: "9:00", end_time: "10:00"}]}', "start_time: must match"),
        ("{weekdays: ['friday:monday']}", "sunday:saturday, or ends before"),
        ("{weekdays: [funday]}", "'funday' is not one; there are: sunday"),
        ("{weekdays: [1]}", "'1' is not one"),
        ("{days_of_month: [0]}", "1:31"),
        ("{days_of_month: ['5:1']}", "ends before it begins"),
        ("{days_of_month: ['-5:5']}", "1:31"),
        ("{months: ['august:may']}", "january:december"),
        ("{years: ['nineteen']}", "'nineteen' is not one"),
        ("{location: Moon/Base}", "no time zone 'Moon/Base'"),
        ("{location: '../../etc/passwd'}", "no time zone"),
    ],
)
def test_what_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        interval(text)
