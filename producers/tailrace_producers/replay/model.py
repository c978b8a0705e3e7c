"""What a replay is told, and what it keeps: options, bad lines, the catalogue of series, blocks of samples."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from tailrace_schemas.samples import (
    KINDS,
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_NAME_CHARS,
    MAX_VALUE_CHARS,
    Series,
    attribute_bytes,
)

__all__ = [
    "F8", "FORMATS", "I4", "I8", "MAX_SERIES", "REASONS", "TIME_UNITS", "BadLine", "BadLines", "BadReason", "Block",
    "Catalogue", "Mask", "ReplayError", "ReplayOptions", "count_reasons", "fault_of",
]  # fmt: skip

I8 = npt.NDArray[np.int64]
I4 = npt.NDArray[np.int32]
F8 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FORMATS: Final = ("auto", "csv", "parquet", "access_log")
TIME_UNITS: Final = ("s", "ms", "us", "ns")
DURATION_UNITS: Final = ("", "s", "ms", "us")
MAX_SERIES: Final = 500_000
"""Of one file: about 1 kB of memory each. More of them means that an attribute identifies single events."""


class ReplayError(Exception):
    """The file, an option, or the way to Kafka cannot be used. The message is written for the user."""


@dataclass(frozen=True)
class ReplayOptions:
    """How a file is read. Two replays are the same stream when the file's content and these are equal.

    Raises:
        ReplayError: a value is not one of those allowed.
    """

    format: str = "auto"
    """One of FORMATS; auto looks at the content, then at the extension."""
    service: str = ""
    """Where the file names none; default: the file's name without extensions."""
    metric: str = ""
    """Where the file names none; `kind` and `unit` likewise."""
    kind: str = "distribution"
    unit: str = ""
    time_column: str = "time"
    value_column: str = "value"
    metric_column: str = "metric"
    service_column: str = "service"
    count_column: str = ""
    """If given, a row stands for so many equal samples (an exported histogram)."""
    time_unit: str = "s"
    """Of times that are plain numbers since the Unix epoch: one of TIME_UNITS."""
    attribute_columns: tuple[str, ...] | None = None
    """None: every column that is not one of the above, `kind` or `unit`."""
    log_format: str = ""
    """Access logs: an nginx `log_format` or Apache `LogFormat` string; empty: common or combined."""
    duration_field: str = ""
    """Access logs: a variable of `log_format` (`request_time`, `%D`); without one, the name of a trailing
    `name=value` field or the position (1, 2, ...) of a trailing field."""
    duration_unit: str = ""
    """s, ms or us; default: as the variable has it in nginx or Apache, else s."""
    path_segments: int = 1
    """Access logs: leading segments of the path kept as `url.path`; 0: none."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("format", self.format, FORMATS),
            ("kind", self.kind, KINDS),
            ("time_unit", self.time_unit, TIME_UNITS),
            ("duration_unit", self.duration_unit, DURATION_UNITS),
        ):
            if value not in allowed:
                raise ReplayError(f"{name} {value!r} is none of: {', '.join(filter(None, allowed))}")
        if not 0 <= self.path_segments <= 10:
            raise ReplayError(f"path_segments {self.path_segments} is not between 0 and 10")


class BadReason(StrEnum):
    """Why a line was left out."""

    COLUMNS = "wrong_number_of_columns"
    QUOTES = "unbalanced_quotes"
    ENCODING = "not_utf8"
    PATTERN = "not_of_the_log_format"
    TIME = "bad_time"
    TIME_RANGE = "time_not_in_1970_to_2100"
    VALUE = "bad_value"
    NOT_FINITE = "not_finite"
    COUNT = "bad_count"
    METRIC = "no_metric"
    KIND = "unknown_kind"
    TOO_LONG = "too_long"


_ADVICE: Final = {
    BadReason.TIME: "a time is RFC 3339 with its zone, as 2026-01-01T00:00:00Z, or a number since 1970",
    BadReason.TIME_RANGE: "are the numbers in another time unit (s, ms, us, ns)?",
}
"""What to do about lines of which a whole file may consist."""

REASONS: Final = tuple(BadReason)
"""In arrays a reason is 1 + its place here; 0 is a good row."""


class BadLine(NamedTuple):
    """One line that was left out: its number (from 1), why, and its beginning."""

    line: int
    reason: BadReason
    text: str


class BadLines:
    """Counts of bad lines, and the first few of them; decides when there are too many.

    The ratio is judged from 1,000 lines on, and at the end whatever the size if not one line was good.
    """

    EXAMPLES: Final = 5
    MIN_LINES: Final = 1000

    def __init__(self, path: str, max_ratio: float) -> None:
        self._path = path
        self._max_ratio = max_ratio
        self.lines = 0
        self.counts: Counter[BadReason] = Counter()
        self.examples: list[BadLine] = []

    @property
    def total(self) -> int:
        """Bad lines so far."""
        return self.counts.total()

    def add(self, lines: int, counts: Counter[BadReason], examples: Callable[[], Iterable[BadLine]]) -> None:
        """Account for a block of `lines`; `examples` is called only while examples are wanted.

        Raises:
            ReplayError: the bad ones exceed the ratio.
        """
        self.lines += lines
        self.counts += counts
        if counts and len(self.examples) < self.EXAMPLES:
            for example in examples():
                self.examples.append(example)
                if len(self.examples) == self.EXAMPLES:
                    break
        if self.lines >= self.MIN_LINES and self.total > self._max_ratio * self.lines:
            raise self._too_many(f"more than {self._max_ratio:.0%}")

    def add_rows(self, reasons: npt.NDArray[np.int8], describe: Callable[[int], BadLine]) -> None:
        """Account for a block of which every line is one row; `describe` makes the example of a row."""
        bad = np.flatnonzero(reasons)
        self.add(len(reasons), count_reasons(reasons), lambda: (describe(int(row)) for row in bad))

    def finish(self) -> None:
        """Judge the whole file.

        Raises:
            ReplayError: it has lines, and all are bad.
        """
        if self.lines and self.total >= self.lines:
            raise self._too_many("all of them")

    def _too_many(self, how_many: str) -> ReplayError:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
        quoted = "".join(f"\n  line {e.line}: {e.reason}: {e.text}" for e in self.examples)
        advice = _ADVICE.get(self.counts.most_common(1)[0][0], "")
        return ReplayError(
            f"{self._path}: {self.total:,} of {self.lines:,} lines are bad, {how_many} ({reasons})"
            f"{advice and f' - {advice}'}; the first:{quoted}"
        )


def count_reasons(reasons: npt.NDArray[np.int8]) -> Counter[BadReason]:
    """How many rows are bad, by reason."""
    counts = np.bincount(reasons, minlength=len(REASONS) + 1)[1:]
    return Counter({reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count})


class Block(NamedTuple):
    """Samples in the file's order: columns of equal length. `series` are numbers of a Catalogue."""

    time_us: I8
    series: I4
    value: F8

    def rows(self, selection: slice | Mask | I8) -> "Block":
        """Some of the samples."""
        return Block(self.time_us[selection], self.series[selection], self.value[selection])


class Catalogue:
    """Every (service, series) of a file, numbered from 0 by first appearance. Bounded by MAX_SERIES."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers: dict[tuple[str, Series], int] = {}
        self.services: list[str] = []
        self._service_numbers: dict[str, int] = {}
        self.series: list[Series] = []
        self.service_of: list[int] = []
        """Series number -> place in `services`."""

    def number(self, service: str, series: Series) -> int:
        """The number of a series that `fault_of` finds nothing wrong with; new ones are added.

        Raises:
            ReplayError: too many distinct series; names the attributes with the most values.
        """
        key = (service, series)
        number = self._numbers.get(key)
        if number is None:
            if len(self.series) == MAX_SERIES:
                raise ReplayError(self._too_many_series())
            number = self._numbers[key] = len(self.series)
            self.series.append(series)
            if service not in self._service_numbers:
                self._service_numbers[service] = len(self.services)
                self.services.append(service)
            self.service_of.append(self._service_numbers[service])
        return number

    def _too_many_series(self) -> str:
        distinct: dict[str, set[str]] = {}
        for series in self.series:
            for key, value in series.attributes:
                distinct.setdefault(key, set()).add(value)
        worst = sorted(distinct, key=lambda key: -len(distinct[key]))[:3]
        named = ", ".join(f"{key} ({len(distinct[key]):,})" for key in worst)
        return (
            f"{self._path}: more than {MAX_SERIES:,} distinct series; the attributes with the most values: {named}. "
            "Name the columns to keep as attributes, without those that identify single events"
        )


def fault_of(service: str, series: Series) -> BadReason | None:
    """Why a flow would reject every batch that carries this series, or None."""
    if not series.metric:
        return BadReason.METRIC
    if series.kind not in KINDS:
        return BadReason.KIND
    names = (service, series.metric, series.unit, *(key for key, _ in series.attributes))
    if (
        max(map(len, names)) > MAX_NAME_CHARS
        or any(len(value) > MAX_VALUE_CHARS for _, value in series.attributes)
        or len(series.attributes) > MAX_ATTRIBUTES
        or attribute_bytes(series.attributes) > MAX_ATTRIBUTE_BYTES
    ):
        return BadReason.TOO_LONG
    return None
