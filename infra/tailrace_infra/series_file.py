"""One series in a CSV: a column of times, a column of values."""

import csv
import gzip
from datetime import UTC, datetime
from math import isfinite, nan
from pathlib import Path
from typing import NamedTuple

__all__ = ["SeriesFile", "SeriesFileError", "read_series"]

TIME_COLUMNS = ("timestamp", "time")
YEAR_10000_S = 253_402_300_800


class SeriesFileError(Exception):
    """The file cannot be read as a series; the message says where and why."""


class SeriesFile(NamedTuple):
    """Rows in the order of the file."""

    times: list[str]
    """As written."""
    values: list[str]
    """As written."""
    times_us: list[int]
    numbers: list[float]
    """NaN where the value is empty or no finite number."""

    @property
    def missing(self) -> int:
        """Rows without a number."""
        return sum(not isfinite(number) for number in self.numbers)


def read_series(path: Path, column: str, time_column: str = "") -> SeriesFile:
    """Reads times (RFC 3339, `2024-01-31 12:00:00` in UTC, or Unix seconds) and the values of `column`; `.gz` too.

    Column names are compared without regard to case. The time's column is `timestamp` or `time` unless named.

    Raises:
        SeriesFileError: no such column, or a row without a time.
        OSError: the file cannot be read.
    """
    series = SeriesFile([], [], [], [])
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        try:
            rows = csv.reader(file)
            header = [name.strip() for name in next(rows, [])]
            lower = [name.lower() for name in header]
            at_time = _place(path, header, lower, (time_column,) if time_column else TIME_COLUMNS)
            at_value = _place(path, header, lower, (column,))
            for row in rows:
                if not row:
                    continue
                if len(row) <= max(at_time, at_value):
                    raise SeriesFileError(f"{path}:{rows.line_num}: {len(row)} columns, the header has {len(header)}")
                try:
                    time_us = _time_us(row[at_time].strip())
                except (ValueError, OverflowError):
                    raise SeriesFileError(
                        f"{path}:{rows.line_num}: {row[at_time]!r} is no time: "
                        "write RFC 3339, 2024-01-31 12:00:00 or Unix seconds"
                    ) from None
                series.times.append(row[at_time])
                series.values.append(row[at_value])
                series.times_us.append(time_us)
                series.numbers.append(_number(row[at_value]))
        except (csv.Error, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise SeriesFileError(f"{path}: this is no CSV: {error}") from None
    return series


def _place(path: Path, header: list[str], lower: list[str], wanted: tuple[str, ...]) -> int:
    for name in wanted:
        if name.lower() in lower:
            return lower.index(name.lower())
    there = ", ".join(header) or "none"
    raise SeriesFileError(f"{path}: no column {' or '.join(map(repr, wanted))}; there is: {there}")


def _time_us(text: str) -> int:
    try:
        seconds = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
        since = moment - datetime(1970, 1, 1, tzinfo=UTC)
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if not 0 <= seconds < YEAR_10000_S:
        raise ValueError
    return round(seconds * 1e6)


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        return nan
    return number if isfinite(number) else nan
