"""Columns of text or numbers into arrays: times, values, and the series of each row. All vectorised."""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from tailrace_schemas.samples import MAX_TIME_US, MIN_TIME_US, Series

from tailrace_producers.replay.model import F8, I4, I8, REASONS, BadReason, Catalogue, Mask, fault_of

__all__ = ["KeyColumn", "SeriesColumns", "key_column", "reasons_of", "times_of", "values_of"]

_DIGITS: Final = {"s": 9, "ms": 6, "us": 3, "ns": 0}
"""Decimals of each unit down to the nanosecond."""
_DECIMAL: Final = r"^[0-9]{1,18}(?:\.[0-9]{0,%d})?$"
_NUMBER: Final = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:E[+-]?[0-9]{1,6})?"
_STAMP: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)$"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_OUT_OF_RANGE: Final = -1
"""A time that was understood, and lies outside of what a batch can hold."""


# -- times and values -------------------------------------------------------------------------------------


def times_of(column: Any, unit: str) -> tuple[I8, Mask]:
    """(microseconds since the epoch, understood) of a column: text, bytes, numbers or timestamps.

    A time outside of 1970 to 2100 is understood, and gives a number outside of that range.
    Text is RFC 3339 with a zone, or a number in `unit`. Decimals are rounded to the nearest microsecond, from
    their digits, not from a float; timestamps and whole nanoseconds are cut to it, so that none leaves its
    window. A column of floats is good for 0.25 us. Timestamps without a zone are taken as UTC.
    Cost: 40 ns a row of text; some 5 us for one that is not plain, or bad.

    Raises:
        TypeError: the column's type is none of these.
    """
    kind = column.type
    if pa.types.is_decimal(kind):
        column = pc.cast(column, pa.string())
    elif pa.types.is_timestamp(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        known = _known(column)
        if pa.types.is_floating(kind):
            return _from_floats(_numbers(pc.cast(column, pa.float64()), np.nan), unit), known
        if pa.types.is_timestamp(kind):
            unit = kind.unit
        return _from_integers(_numbers(pc.cast(column, pa.int64(), safe=False), 0), unit), known
    elif not _is_text(kind):
        raise TypeError(f"times cannot be read from {kind}")

    def decimals(text: Any) -> I8:
        return _from_decimals(pc.cast(text, pa.decimal128(28, _DIGITS[unit])), unit)

    def stamps(text: Any) -> I8:
        return _from_integers(_numbers(pc.cast(pc.cast(text, pa.timestamp("ns", tz="UTC")), pa.int64()), 0), "ns")

    forms = (_Form(_DECIMAL % _DIGITS[unit], decimals), _Form(_STAMP, stamps))
    return _converted(column, np.int64, forms, lambda text: _time_us(text, unit))


def _time_us(text: str, unit: str) -> int | None:
    """One time that is not plain enough for Arrow; everything that Arrow takes gives the same here."""
    # RFC 3339 allows a lower-case t and z; a space after the comma is often seen.
    text = text.strip().upper()
    if re.fullmatch(_NUMBER, text):
        number = Decimal(text)
        if not 0 <= number <= MAX_TIME_US * 1000:
            return _OUT_OF_RANGE
        rounding = ROUND_FLOOR if unit == "ns" else ROUND_HALF_UP
        time_us = int(number.scaleb(_DIGITS[unit] - 3).to_integral_value(rounding))
        return time_us if time_us <= MAX_TIME_US else _OUT_OF_RANGE
    if re.fullmatch(_STAMP, text):
        try:
            return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)
        except ValueError:
            return None
    return None


def values_of(column: Any) -> tuple[F8, Mask]:
    """(values, understood) of a column of text, bytes or numbers; NaN and infinities are understood.

    Raises:
        TypeError: the column's type is none of these.
    """
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        # An integer beyond 2^53 becomes the nearest float, as it would anywhere else.
        return _numbers(pc.cast(column, pa.float64(), safe=False), np.nan), _known(column)
    if pa.types.is_decimal(kind):
        column = pc.cast(column, pa.string())
    elif not _is_text(kind):
        raise TypeError(f"values cannot be read from {kind}")

    def floats(text: Any) -> Any:
        return _numbers(pc.cast(text, pa.float64()), np.nan)

    return _converted(column, np.float64, (_Form(_DECIMAL % 30, floats),), _value)


def _value(text: str) -> float | None:
    try:
        # Python alone would take 1_000.
        return None if "_" in text else float(text)
    except ValueError:
        return None


class _Form(NamedTuple):
    """A way to write a value: rows that match `pattern` are surely of it, others may be."""

    pattern: str
    cast: Callable[[Any], Any]


def _converted(
    column: Any, dtype: Any, forms: Sequence[_Form], single: Callable[[str], float | None]
) -> tuple[Any, Mask]:
    """The whole column by the first form that takes it; else each form's rows; what is left, one by one.

    What becomes of a row does not depend on the others, since `single` takes whatever a form takes.
    """
    text = pc.fill_null(_text(column), "")
    for form in forms:
        try:
            # Arrow makes an error of every row that fails: a column of another form is told by its first.
            form.cast(text.slice(0, 1))
            return form.cast(text), np.ones(len(text), bool)
        except pa.ArrowInvalid:
            continue
    out = np.zeros(len(text), dtype)
    left = np.ones(len(text), bool)
    for form in forms:
        rows = np.flatnonzero(left & pc.match_substring_regex(text, form.pattern).to_numpy(zero_copy_only=False))
        if not len(rows):
            continue
        try:
            out[rows] = form.cast(text.take(rows))
        except pa.ArrowInvalid:
            # Such as a thirtieth of February.
            continue
        left[rows] = False
    understood = ~left
    rows = np.flatnonzero(left)
    for row, one in zip(rows.tolist(), text.take(rows).to_pylist(), strict=True):
        value = single(one)
        if value is not None:
            out[row] = value
            understood[row] = True
    return out, understood


def _from_decimals(column: Any, unit: str) -> I8:
    """Decimals scaled to nanoseconds: the low words of their 128-bit integers."""
    words = np.frombuffer(column.buffers()[1], np.int64)[2 * column.offset :][: 2 * len(column)].reshape(-1, 2)
    nanoseconds, high = words[:, 0], words[:, 1]
    up = 0 if unit == "ns" else nanoseconds % 1000 >= 500
    rounded = nanoseconds // 1000 + up
    return np.where(high == nanoseconds >> 63, rounded, _OUT_OF_RANGE)


def _from_integers(numbers: I8, unit: str) -> I8:
    if unit == "ns":
        return numbers // 1000
    factor = {"s": 1_000_000, "ms": 1000, "us": 1}[unit]
    inside = (numbers >= 0) & (numbers <= MAX_TIME_US // factor)
    return np.where(inside, numbers, 0) * factor + np.where(inside, 0, _OUT_OF_RANGE)


def _from_floats(numbers: F8, unit: str) -> I8:
    # Seconds until 2100 have a spacing of 0.48 us at most, and their product with 1e6 one of 0.5 us: together
    # less than half a microsecond off, so six decimals come back exactly.
    with np.errstate(over="ignore"):
        microseconds = np.rint(numbers * {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}[unit])
    inside = (microseconds >= MIN_TIME_US) & (microseconds <= MAX_TIME_US)
    return np.where(inside, microseconds, _OUT_OF_RANGE).astype(np.int64)


def _is_text(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    )


def _text(column: Any) -> Any:
    try:
        return pc.cast(column, pa.string())
    except pa.ArrowInvalid:
        # Some bytes are no UTF-8: what replaces them is neither a time nor a number, so their rows are bad.
        return pa.array([None if v is None else v.decode("utf-8", "replace") for v in column.to_pylist()], pa.string())


def _known(column: Any) -> Mask:
    known: Mask = pc.is_valid(column).to_numpy(zero_copy_only=False)
    return known


def _numbers(column: Any, null: float) -> Any:
    return pc.fill_null(column, null).to_numpy(zero_copy_only=False)


# -- which series a row belongs to --------------------------------------------------------------------------


class KeyColumn(NamedTuple):
    """A column of names, each stored once: row i holds `values[codes[i]]`; None: not UTF-8."""

    codes: I4
    values: list[str | None]


def key_column(column: Any) -> KeyColumn:
    """A column of any flat type; null and empty are the same."""
    if not pa.types.is_dictionary(column.type):
        if not _is_text(column.type):
            column = pc.cast(column, pa.string())
        column = pc.dictionary_encode(column)
    try:
        values = pc.cast(column.dictionary, pa.string()).to_pylist()
    except (pa.ArrowInvalid, UnicodeDecodeError):  # a Parquet file's text may be no UTF-8, whatever its schema says
        values = [_decoded(value) for value in pc.cast(column.dictionary, pa.binary()).to_pylist()]
    indices = column.indices
    if indices.null_count:
        indices = pc.fill_null(indices, len(values))
        values.append("")
    return KeyColumn(indices.to_numpy(zero_copy_only=False).astype(np.int32, copy=False), values)


def _decoded(value: bytes) -> str | None:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def distinct_rows(columns: Sequence[KeyColumn], rows: int) -> tuple[I8, I8]:
    """(a row of each distinct combination of codes, for each row its combination's place). O(rows), mostly.

    The order of the combinations means nothing.
    """
    codes = np.zeros(rows, np.int64)
    size = 1
    for column in columns:
        if size * max(1, len(column.values)) > 1 << 40:
            present, codes = np.unique(codes, return_inverse=True)
            size = len(present)
        codes = codes * len(column.values) + column.codes
        size *= max(1, len(column.values))
    if size > 4 * rows + 1024:
        _, first, place = np.unique(codes, return_index=True, return_inverse=True)
        return first, place
    row_of = np.full(size, -1, np.int64)
    row_of[codes] = np.arange(rows)
    used = np.flatnonzero(row_of >= 0)
    place_of = np.zeros(size, np.int64)
    place_of[used] = np.arange(len(used))
    return row_of[used], place_of[codes]


class SeriesColumns:
    """Turns the columns that name a series into series numbers; remembers the combinations it has seen.

    Columns in order: service, metric, kind, unit, then `attributes`; a field without column has its default.
    """

    FIELDS: Final = ("service", "metric", "kind", "unit")

    def __init__(
        self, catalogue: Catalogue, defaults: dict[str, str], fields: Sequence[str], attributes: Sequence[str]
    ):
        self._catalogue = catalogue
        self._defaults = defaults
        self._fields = fields
        # Sorted once: a series' attributes are sorted by key.
        self._attributes = sorted(range(len(attributes)), key=lambda i: attributes[i])
        self._names = attributes
        self._seen: dict[tuple[str | None, ...], int] = {}

    def numbers(self, columns: Sequence[KeyColumn], rows: int) -> I4:
        """The series of each row; -1 - place in REASONS where there is none.

        Cost: some 10 ns a row, and 1 us for each combination in the block.

        Raises:
            ReplayError: too many distinct series.
        """
        first, place = distinct_rows(columns, rows)
        texts = zip(*(map(c.values.__getitem__, c.codes[first].tolist()) for c in columns), strict=True)
        seen = self._seen
        keys = texts if columns else [()] * len(first)
        found = [seen[key] if key in seen else self._number(key) for key in keys]
        return np.array(found, np.int32)[place]

    def _number(self, key: tuple[str | None, ...]) -> int:
        if None in key:
            return _encoded(BadReason.ENCODING)
        texts: tuple[str, ...] = key  # type: ignore[assignment]  # no None in it
        given = dict(zip(self._fields, texts, strict=False))
        field = {name: given.get(name) or self._defaults[name] for name in self.FIELDS}
        start = len(self._fields)
        attributes = tuple((self._names[i], texts[start + i]) for i in self._attributes if texts[start + i])
        series = Series(field["metric"], field["kind"], field["unit"], attributes)
        fault = fault_of(field["service"], series)
        if fault is not None:
            # Not remembered: bad keys may all differ, and there is no bound on them.
            return _encoded(fault)
        number = self._seen[key] = self._catalogue.number(field["service"], series)
        return number


def _encoded(reason: BadReason) -> int:
    return -1 - REASONS.index(reason)


def reasons_of(
    times: tuple[I8, Mask], values: tuple[F8, Mask], series: I4, counts: tuple[F8, Mask] | None
) -> npt.NDArray[np.int8]:
    """Why each row is bad, the first reason found; 0: it is good."""
    time_us, time_known = times
    value, value_known = values
    reasons = np.zeros(len(time_us), np.int8)

    def mark(bad: Mask, reason: BadReason) -> None:
        reasons[bad & (reasons == 0)] = 1 + REASONS.index(reason)

    mark(~time_known, BadReason.TIME)
    mark((time_us < MIN_TIME_US) | (time_us > MAX_TIME_US), BadReason.TIME_RANGE)
    mark(~value_known, BadReason.VALUE)
    mark(~np.isfinite(value), BadReason.NOT_FINITE)
    if counts is not None:
        count, count_known = counts
        # 2^53: beyond it a float does not hold every integer.
        mark(~(count_known & (count >= 0) & (count <= 2**53) & (count == np.floor(count))), BadReason.COUNT)
    unnamed = (series < 0) & (reasons == 0)
    reasons[unnamed] = -series[unnamed]
    return reasons
