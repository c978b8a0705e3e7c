"""Times and values: exact, and each row by itself."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_producers.replay.columns import KeyColumn, distinct_rows, key_column, times_of, values_of
from tailrace_schemas.samples import MAX_TIME_US

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def times(*texts: object, unit: str = "s") -> list[int | None]:
    return listed(*times_of(pa.array(texts), unit))


def listed(found: Any, understood: Any) -> list[int | None]:
    """None: not understood; -1: out of range."""
    return [
        (time if 0 <= time <= MAX_TIME_US else -1) if known else None
        for time, known in zip(found.tolist(), understood.tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("1661140330.123456", "s", 1661140330123456),
        ("1661140330", "s", 1661140330000000),
        ("1661140330.", "s", 1661140330000000),
        (" 1661140330.5 ", "s", 1661140330500000),
        ("+1661140330.5", "s", 1661140330500000),
        (".5", "s", 500000),
        ("1.6611403301E9", "s", 1661140330100000),
        ("1661140330.1234564", "s", 1661140330123456),
        ("1661140330.1234565", "s", 1661140330123457),  # to the nearest, half up
        ("1661140330.12345649999", "s", 1661140330123456),  # more digits than nanoseconds
        ("1661140330123.4565", "ms", 1661140330123457),
        ("1661140330123456.5", "us", 1661140330123457),
        ("1661140879344439719", "ns", 1661140879344439),  # cut: a sample stays in its window
        ("1661140879344439719.9", "ns", 1661140879344439),
        ("4102444799.999999", "s", 4102444799999999),
        ("2022-08-22T03:52:10Z", "s", 1661140330000000),
        ("2022-08-22t03:52:10z", "s", 1661140330000000),
        ("2022-08-22 05:52:10.123456+02:00", "s", 1661140330123456),
        ("2022-08-22T03:52:10.123456999Z", "s", 1661140330123456),
        ("2022-08-21T20:52:10-0700", "s", 1661140330000000),
        ("2022-08-22T03:52:10-00:00", "ms", 1661140330000000),
        ("-1", "s", -1),
        ("1e30", "s", -1),
        ("9" * 25, "s", -1),
        ("9999999999", "s", -1),
        ("1890-01-01T00:00:00Z", "s", -1),
        ("2022-08-22T03:52:10", "s", None),  # no zone
        ("2022-02-30T00:00:00Z", "s", None),
        ("2022-08-22", "s", None),
        ("yesterday", "s", None),
        ("1_000", "s", None),
        ("0x10", "s", None),
        ("nan", "s", None),
        ("", "s", None),
        (None, "s", None),
    ],
)
def test_times_of_text(text: str | None, unit: str, expected: int | None) -> None:
    assert listed(*times_of(pa.array([text], pa.string()), unit)) == [expected]
    # The same among others that are plain, and among others that are not.
    assert times(*["1661140330"] * 3, text, unit=unit)[3] == expected
    assert times("no", text, "2022-08-22T03:52:10Z", unit=unit)[1] == expected


@given(st.integers(0, MAX_TIME_US), st.integers(0, 9))
def test_decimals_are_exact(time_us: int, digits: int) -> None:
    text = f"{Decimal(time_us).scaleb(-6):.{digits}f}"
    expected = int((Decimal(text) * 10**6).to_integral_value(ROUND_HALF_UP))
    assert times(text) == [expected]


@given(st.lists(st.integers(0, MAX_TIME_US), min_size=1))
def test_six_decimals_survive_text_and_float(times_us: list[int]) -> None:
    texts = [f"{time_us // 1_000_000}.{time_us % 1_000_000:06d}" for time_us in times_us]
    assert times(*texts) == times_us
    assert times(*map(float, texts)) == times_us


@given(
    st.lists(
        st.tuples(st.datetimes(datetime(1970, 1, 2), datetime(2099, 12, 30)), st.integers(-1439, 1439)), min_size=1
    )
)
def test_rfc_3339_with_any_zone(moments: list[tuple[datetime, int]]) -> None:
    aware = [moment.replace(tzinfo=timezone(timedelta(minutes=zone))) for moment, zone in moments]
    expected = [(moment - EPOCH) // timedelta(microseconds=1) for moment in aware]
    assert times(*(moment.isoformat() for moment in aware)) == expected


texts = st.one_of(
    st.text("0123456789.+-eETZ: _x", max_size=24),
    st.from_regex(r"[0-9]{1,22}(\.[0-9]{0,12})?", fullmatch=True),
    st.from_regex(r"(19|20|23)[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-6][0-9](:[0-6][0-9](\.[0-9]{1,10})?)?"
                  r"(Z|z|[+-][0-9]{2}(:?[0-9]{2})?)?", fullmatch=True),
)  # fmt: skip


@given(st.lists(texts, min_size=1, max_size=8), st.sampled_from(["s", "ms", "us", "ns"]))
def test_a_time_does_not_depend_on_the_rows_around_it(column: list[str], unit: str) -> None:
    assert times(*column, unit=unit) == [times(text, unit=unit)[0] for text in column]


@given(st.lists(st.one_of(texts, st.floats().map(repr)), min_size=1, max_size=8))
def test_a_value_does_not_depend_on_the_rows_around_it(column: list[str]) -> None:
    def values(*texts: str) -> list[str]:
        found, understood = values_of(pa.array(texts))
        return [repr(value) if known else "" for value, known in zip(found.tolist(), understood.tolist(), strict=True)]

    assert values(*column) == [values(text)[0] for text in column]


@given(st.lists(st.floats(), min_size=1))
def test_values_are_read_to_the_last_bit(floats: list[float]) -> None:
    found, understood = values_of(pa.array([repr(value).encode() for value in floats], pa.binary()))
    assert understood.all()
    np.testing.assert_array_equal(found, floats)


@pytest.mark.parametrize(
    ("column", "unit", "expected"),
    [
        (pa.array([1661140330, None]), "s", [1661140330000000, None]),
        (pa.array([1661140330123, -5]), "ms", [1661140330123000, -1]),
        (pa.array([1661140330123456]), "us", [1661140330123456]),
        (pa.array([1661140879344439719]), "ns", [1661140879344439]),
        (pa.array([2**62]), "s", [-1]),
        (pa.array([1661140330.123456, None, float("inf"), 1e308]), "s", [1661140330123456, None, -1, -1]),
        (pa.array([1661140330123.5]), "ms", [1661140330123500]),
        (pa.array([Decimal("1661140330.123456"), None]), "s", [1661140330123456, None]),
        (pa.array([1661140330123], pa.timestamp("ms")), "s", [1661140330123000]),
        (pa.array([1661140330], pa.timestamp("s", tz="Asia/Tokyo")), "s", [1661140330000000]),
        (pa.array([1661140330123456789, None], pa.timestamp("ns", tz="UTC")), "s", [1661140330123456, None]),
        (pa.array([b"1661140330", b"\xff"], pa.binary()), "s", [1661140330000000, None]),
        (pa.array(["1661140330"]).dictionary_encode(), "s", [1661140330000000]),
        (pa.array(["1661140330"], pa.large_string()), "s", [1661140330000000]),
    ],
)
def test_times_of_other_types(column: pa.Array, unit: str, expected: list[int | None]) -> None:
    assert listed(*times_of(column, unit)) == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([1, None]), [1.0, None]),
        (pa.array([2**63 - 1]), [2.0**63]),
        (pa.array([1.5], pa.float32()), [1.5]),
        (pa.array([True, False]), [1.0, 0.0]),
        (pa.array([Decimal("1.25")]), [1.25]),
        (pa.array([" 1.5", "1_0", "abc", "", None]), [1.5, None, None, None, None]),
    ],
)
def test_values_of_other_types(column: pa.Array, expected: list[float | None]) -> None:
    found, understood = values_of(column)
    assert [
        value if known else None for value, known in zip(found.tolist(), understood.tolist(), strict=True)
    ] == expected


def test_what_is_neither_text_nor_number_is_refused() -> None:
    with pytest.raises(TypeError, match="list"):
        times_of(pa.array([[1]]), "s")
    with pytest.raises(TypeError, match="date32"):
        values_of(pa.array([1], pa.date32()))


def test_key_columns_know_absent_and_undecodable_names() -> None:
    column = key_column(pa.array([b"a", None, b"\xff", b"a"], pa.binary()))
    assert [column.values[code] for code in column.codes] == ["a", "", None, "a"]
    assert [key_column(pa.array([1, 2])).values, key_column(pa.array([True])).values] == [["1", "2"], ["true"]]


@given(st.data(), st.sampled_from([3, 1000, 10_000_000]))
def test_distinct_rows_are_those_of_a_dictionary(data: st.DataObject, cardinality: int) -> None:
    rows = data.draw(st.integers(1, 30))
    columns = [
        KeyColumn(
            np.array(data.draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows)), np.int32),
            range(cardinality),  # type: ignore[arg-type]  # only its length counts
        )
        for _ in range(3)
    ]
    first, place = distinct_rows(columns, rows)
    keys = list(zip(*(column.codes.tolist() for column in columns), strict=True))
    assert len(first) == len(set(keys))
    assert [keys[first[p]] for p in place] == keys
