"""Maintenance calendars, minute by minute around the hours that clocks skip and repeat."""

# ruff: noqa: E501 - tables

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tailrace_flows.core.alerting.maintenance import Calendar
from tailrace_schemas.config.maintenance import DAYS, Maintenance

S = 1_000_000


def calendar(**settings: object) -> Calendar:
    return Calendar([Maintenance.model_validate({"name": "it", **settings}, strict=False)], "shop")


def us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp()) * S


def covered(found: Calendar, first: str, last: str) -> list[str]:
    """The stretches of maintenance in 10 s windows, in UTC."""
    stretches: list[list[int]] = []
    for start in range(us(first), us(last), 10 * S):
        if found.overlaps(start, start + 10 * S):
            if stretches and stretches[-1][1] == start:
                stretches[-1][1] += 10 * S
            else:
                stretches.append([start, start + 10 * S])
    return [" to ".join(f"{datetime.fromtimestamp(one / S, UTC):%a %H:%M:%S}" for one in both) for both in stretches]


@pytest.mark.parametrize(
    ("zone", "weekly", "first", "expected"),
    [
        ("UTC", {"days": ["sat"], "start": "02:00", "end": "04:00"}, "2026-11-28", ["Sat 02:00:00 to Sat 04:00:00"]),
        ("UTC", {"days": ["sat"], "start": "23:00", "end": "01:00"}, "2026-11-28", ["Sat 23:00:00 to Sun 01:00:00"]),
        ("UTC", {"days": ["fri"], "start": "12:00", "end": "12:00"}, "2026-11-28", ["Sat 00:00:00 to Sat 12:00:00"]),
        ("Asia/Kolkata", {"days": ["sun"], "start": "02:30", "end": "03:00"}, "2026-11-28", ["Sat 21:00:00 to Sat 21:30:00"]),
        ("Pacific/Kiritimati", {"days": ["mon"], "start": "02:00", "end": "03:00"}, "2026-11-29", ["Sun 12:00:00 to Sun 13:00:00"]),
        # Clocks are put back at 3:00 CEST, which is 1:00 UTC: 2:00 to 3:00 is shown twice.
        ("Europe/Paris", {"days": ["sun"], "start": "02:00", "end": "02:30"}, "2026-10-25", ["Sun 00:00:00 to Sun 01:30:00"]),
        ("Europe/Paris", {"days": ["sun"], "start": "01:00", "end": "04:00"}, "2026-10-24T20:00", ["Sat 23:00:00 to Sun 03:00:00"]),
        # They are put forward at 2:00 CET, which is 1:00 UTC: 2:00 to 3:00 is never shown.
        ("Europe/Paris", {"days": ["sun"], "start": "01:00", "end": "04:00"}, "2026-03-29", ["Sun 00:00:00 to Sun 02:00:00"]),
        ("Europe/Paris", {"days": ["sun"], "start": "02:15", "end": "02:45"}, "2026-03-29", ["Sun 01:15:00 to Sun 01:45:00"]),
    ],
)  # fmt: skip
def test_weekly(zone: str, weekly: dict[str, object], first: str, expected: list[str]) -> None:
    begin = datetime.fromisoformat(first).replace(tzinfo=UTC)
    found = calendar(time_zone=zone, weekly=[weekly])
    assert covered(found, begin.isoformat(), (begin + timedelta(days=1, hours=6)).isoformat()) == expected


def test_once_covers_every_window_that_it_touches() -> None:
    found = calendar(once=[{"start": "2026-11-28T10:00:05+01:00", "end": "2026-11-28T09:00:31Z"}])
    assert covered(found, "2026-11-28T08:00+00:00", "2026-11-28T10:00+00:00") == ["Sat 09:00:00 to Sat 09:00:40"]


def test_only_the_services_named() -> None:
    one = Maintenance.model_validate(
        {"name": "it", "services": ["shop"], "once": [{"start": "2026-01-01T00:00Z", "end": "2026-01-02T00:00Z"}]},
        strict=False,
    )
    t_us = us("2026-01-01T12:00+00:00")
    assert Calendar([one], "shop").overlaps(t_us, t_us + 10 * S)
    assert not Calendar([one], "stock").overlaps(t_us, t_us + 10 * S)
    assert not Calendar([], "shop").overlaps(t_us, t_us + 10 * S)


@settings(deadline=None)
@given(
    st.sampled_from(["UTC", "Europe/Paris", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Tehran"]),
    st.datetimes(datetime(2010, 1, 1), datetime(2030, 1, 1)),
    st.integers(0, 23 * 60 + 59),
    st.integers(1, 23 * 60 + 59),
    st.sets(st.sampled_from(DAYS), min_size=1),
)
def test_weekly_is_what_the_clock_on_the_wall_shows(
    zone: str, at: datetime, start_m: int, length_m: int, days: set[str]
) -> None:
    """An instant whose local reading lies within the hours, and whose clock is not being changed, is covered."""
    end_m = (start_m + length_m) % (24 * 60)
    weekly = {
        "days": sorted(days),
        "start": f"{start_m // 60:02}:{start_m % 60:02}",
        "end": f"{end_m // 60:02}:{end_m % 60:02}",
    }
    moment = at.replace(tzinfo=UTC, second=0, microsecond=0)
    local = moment.astimezone(ZoneInfo(zone))
    offsets = {
        (moment + timedelta(hours=hours)).astimezone(ZoneInfo(zone)).utcoffset() for hours in (-26, -13, 0, 13, 26)
    }
    if len(offsets) > 1:
        return
    reading = local.hour * 60 + local.minute
    today, yesterday = DAYS[local.weekday()] in days, DAYS[local.weekday() - 1] in days
    if end_m > start_m:
        expected = today and start_m <= reading < end_m
    else:
        expected = (today and reading >= start_m) or (yesterday and reading < end_m)
    t_us = round(moment.timestamp()) * S
    assert calendar(time_zone=zone, weekly=[weekly]).overlaps(t_us, t_us + 10 * S) == expected
