"""Whether a time is one of maintenance."""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from tailrace_schemas.alerts import time_of
from tailrace_schemas.config.maintenance import DAYS, Maintenance, Weekly

__all__ = ["Calendar"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Calendar:
    """The maintenance of one service, from all calendars that mean it.

    A weekly time of a clock that is put back covers both of the hours that it shows twice; one in an hour that the
    clock skips begins, or ends, as much later.
    """

    def __init__(self, calendars: Iterable[Maintenance], service: str) -> None:
        mine = [one for one in calendars if one.services is None or service in one.services]
        self._once = [(_us(each.start), _us(each.end)) for one in mine for each in one.once]
        self._weekly = [(ZoneInfo(one.time_zone), each) for one in mine for each in one.weekly]

    def overlaps(self, start_us: int, end_us: int) -> bool:
        """Whether any of [start, end) is maintenance; at most a day is asked for. Cost: 2 us."""
        return any(begin < end_us and start_us < end for begin, end in self._intervals(start_us, end_us))

    def _intervals(self, start_us: int, end_us: int) -> Iterator[tuple[int, int]]:
        yield from self._once
        if self._weekly:
            # A zone is a day ahead or behind at most, and an occurrence lasts a day at most.
            day, last = time_of(start_us).date() - timedelta(days=2), time_of(end_us).date() + timedelta(days=1)
            while day <= last:
                for zone, weekly in self._weekly:
                    yield from _occurrence(zone, weekly, day)
                day += timedelta(days=1)


@lru_cache(maxsize=10_000)
def _occurrence(zone: ZoneInfo, weekly: Weekly, day: date) -> tuple[tuple[int, int], ...]:
    """That which starts on a day of the zone's calendar."""
    if DAYS[day.weekday()] not in weekly.days:
        return ()
    last_day = day if weekly.end > weekly.start else day + timedelta(days=1)
    return ((_local_us(zone, day, weekly.start, fold=0), _local_us(zone, last_day, weekly.end, fold=1)),)


def _local_us(zone: ZoneInfo, day: date, at: time, *, fold: int) -> int:
    """`fold` says which of two equal readings of the clock is meant.

    Of a reading that never was it means the other way round which offset holds (PEP 495): the later time is taken.
    """
    found = [datetime.combine(day, at, zone).replace(fold=one).astimezone(UTC) for one in (0, 1)]
    skipped = found[1] < found[0]
    return _us(found[0] if skipped else found[fold])


def _us(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
