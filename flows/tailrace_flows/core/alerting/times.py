"""Whether a time lies within the time intervals of a configuration, as Alertmanager's `timeinterval` does."""

from calendar import monthrange
from collections.abc import Iterable
from datetime import datetime
from zoneinfo import ZoneInfo

from tailrace_schemas.alerts import time_of
from tailrace_schemas.config.dispatch import Interval, TimeInterval

__all__ = ["contains"]


def contains(intervals: Iterable[TimeInterval], now_us: int) -> bool:
    """Whether any of the named intervals holds the time."""
    now = time_of(now_us)
    return any(_within(one, now) for named in intervals for one in named.time_intervals)


def _within(interval: Interval, now: datetime) -> bool:
    local = now.astimezone(ZoneInfo(interval.location))
    minute = local.hour * 60 + local.minute
    if interval.times and not any(one.start_minute <= minute < one.end_minute for one in interval.times):
        return False
    ranges = interval.parsed
    values = {"weekdays": (local.weekday() + 1) % 7, "months": local.month, "years": local.year}
    for what, value in values.items():
        if ranges[what] and not any(begin <= value <= end for begin, end in ranges[what]):
            return False
    days = ranges["days_of_month"]
    return not days or _is_day(days, local)


def _is_day(ranges: Iterable[tuple[int, int]], local: datetime) -> bool:
    """Negative days count from the month's end; a range is cut to the month, one that begins after it is empty."""
    length = monthrange(local.year, local.month)[1]
    for begin, end in ranges:
        first = begin + length + 1 if begin < 0 else begin
        last = end + length + 1 if end < 0 else end
        if first <= length and first <= local.day <= min(last, length):
            return True
    return False
