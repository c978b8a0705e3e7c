"""CSV and Parquet against Python's csv: every sample, and every line that is not one."""

import bz2
import csv
import gzip
import os
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_producers.replay import ReplayError, ReplayOptions
from tailrace_producers.replay import model as model_module
from tailrace_producers.replay.model import BadReason
from tailrace_producers.replay.readers import MAX_BLOCK_SAMPLES
from tailrace_producers.replay.source import FileBytes, line_blocks, stem_of
from tailrace_schemas.samples import Series

from tests.data import data_file
from tests.producers.replay_oracle import Row, dict_rows, exact_us, read_rows

HEADER = "time,metric,value,kind,unit,service,route,status\n"
LATENCY = "http.server.request.duration"


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def expected_rows(path: Path, service: str = "samples") -> list[Row]:
    """The contract of a CSV file of samples, by Python's csv."""
    rows = []
    for row in dict_rows(path):
        fixed = ("time", "metric", "value", "kind", "unit", "service")
        attributes = tuple(sorted((k, v) for k, v in row.items() if k not in fixed and v))
        series = Series(row["metric"], row.get("kind") or "distribution", row.get("unit") or "", attributes)
        rows.append(Row(row.get("service") or service, series, exact_us(row["time"]), float(row["value"])))
    return rows


@pytest.fixture
def samples_csv(tmp_path: Path) -> Path:
    """2,000 rows of four services, with everything optional now present, now absent."""
    rng = random.Random(7)
    path = tmp_path / "samples.csv"
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(HEADER.strip().split(","))
        for i in range(2000):
            time_us = 1661140330000000 + i * 12_345 + rng.randrange(-5_000_000, 5_000_000)
            kind = rng.choice(["", "distribution", "gauge", "counter", "cumulative", "event"])
            writer.writerow(
                [
                    f"{time_us // 10**6}.{time_us % 10**6:06d}"
                    if i % 3
                    else datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(),
                    rng.choice([LATENCY, "queue.size"]),
                    repr(rng.lognormvariate(0, 3)),
                    kind,
                    rng.choice(["", "s", "By"]),
                    rng.choice(["", "shop", "cart", "séance"]),
                    rng.choice(["", "/a", '/with "quotes", and comma', "/ü"]),
                    rng.choice(["200", "500", ""]),
                ]
            )
    return path


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".csv": lambda data: data,
    ".csv.gz": gzip.compress,
    ".csv.bz2": bz2.compress,
    ".csv.zst": lambda data: bytes(pa.compress(data, "zstd")),
    ".CSV.GZ": lambda data: gzip.compress(data[:70_000]) + gzip.compress(data[70_000:]),  # two members, as logrotate
    ".csv.moved": gzip.compress,  # told by the content
}


@pytest.mark.parametrize("extension", COMPRESSIONS)
def test_csv_rows_are_those_of_pythons_csv(samples_csv: Path, extension: str) -> None:
    expected = expected_rows(samples_csv)
    path = write(samples_csv.with_suffix(extension), COMPRESSIONS[extension](samples_csv.read_bytes()))
    rows, bad = read_rows(path, ReplayOptions(service="samples"))
    assert rows == expected
    assert (bad.lines, bad.total) == (2000, 0)


@given(block_bytes=st.integers(100, 200_000))
def test_blocks_do_not_matter(tmp_path_factory: pytest.TempPathFactory, block_bytes: int) -> None:
    path = tmp_path_factory.getbasetemp() / "blocks.csv"
    if not path.exists():
        write(path, HEADER + "".join(f"{i},m,{i},,,s{i % 3},/{i % 7},\n\n" for i in range(300)) + "broken\n")
    rows, bad = read_rows(path, block_bytes=block_bytes)
    assert rows == [
        Row(f"s{i % 3}", Series("m", "distribution", "", (("route", f"/{i % 7}"),)), i * 10**6, i) for i in range(300)
    ]
    assert bad.examples == [(602, BadReason.COLUMNS, "broken")]


def test_header_may_have_bom_blank_lines_spaces_and_carriage_returns(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf", b"time, metric ,value,", b"1,m,2,unnamed", b"", b"2,m,3,", b"x,m,3,", b""]
    path = write(tmp_path / "x.csv", b"\r\n".join(lines))
    rows, bad = read_rows(path)
    assert [(row.service, row.time_us, row.value) for row in rows] == [("x", 10**6, 2.0), ("x", 2 * 10**6, 3.0)]
    assert bad.examples == [(6, BadReason.TIME, "x,m,3,")]


BAD_LINES = [
    ("1,m", BadReason.COLUMNS),
    ("1,\udcff", BadReason.COLUMNS),
    ("1,m,1,,,,,\r1,m,1,,,,,", BadReason.COLUMNS),
    ("1,m,1,,,\r,,", BadReason.COLUMNS),
    ('1,"m,1,,,,,', BadReason.QUOTES),
    ("never,m,1,,,,,", BadReason.TIME),
    ("2022-08-22T03:52:10,m,1,,,,,", BadReason.TIME),
    ("-1,m,1,,,,,", BadReason.TIME_RANGE),
    ("9999999999,m,1,,,,,", BadReason.TIME_RANGE),
    ("1,m,one,,,,,", BadReason.VALUE),
    ("1,m,,,,,,", BadReason.VALUE),
    ("1,m,NaN,,,,,", BadReason.NOT_FINITE),
    ("1,m,-inf,,,,,", BadReason.NOT_FINITE),
    ("1,,1,,,,,", BadReason.METRIC),
    ("1,m,1,histogram,,,,", BadReason.KIND),
    ("1,m,1,,,,\udcff,", BadReason.ENCODING),
    (f"1,{'m' * 1025},1,,,,,", BadReason.TOO_LONG),
    (f"1,m,1,,,,{'v' * 4097},", BadReason.TOO_LONG),
    (f"1,m,1,,,,{4096 * chr(0x1F4A3)},", BadReason.TOO_LONG),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_counted_and_quoted_and_costs_no_other(tmp_path: Path, line: str, reason: BadReason) -> None:
    good = "1,m,1,,,,,\n"
    path = write(tmp_path / "x.csv", (HEADER + good * 30 + line + "\n" + good * 30).encode(errors="surrogateescape"))
    rows, bad = read_rows(path)
    assert len(rows) == 60
    assert bad.counts == {reason: 1}
    (example,) = bad.examples
    assert (example.line, example.reason) == (32, reason)
    assert example.text == line.replace("\udcff", "\ufffd")[:200]


def test_all_kinds_of_bad_lines_at_once(tmp_path: Path) -> None:
    lines = [line for line, _ in BAD_LINES] * 3
    random.Random(3).shuffle(lines)
    path = write(tmp_path / "x.csv", (HEADER + "1,m,1,,,,,\n" + "\n".join(lines)).encode(errors="surrogateescape"))
    rows, bad = read_rows(path, block_bytes=1 << 20)
    assert len(rows) == 1
    assert bad.counts == Counter(reason for _, reason in BAD_LINES * 3)
    assert [example.line for example in bad.examples] == [3, 4, 5, 6, 7]


def test_lines_that_quotes_join_are_counted(tmp_path: Path) -> None:
    # A quote within a field, then one that opens: an even number, and yet the parser joins what follows.
    path = write(tmp_path / "x.csv", 'time,metric,value,a,b\n1,m,1,5" disk,"open\n2,m,2,x,y\n3,m,3,x,"y"\n')
    rows, bad = read_rows(path, max_bad_ratio=1.0)
    assert len(rows) + bad.total == bad.lines == 3


def test_too_many_bad_lines_are_an_error_that_quotes_them(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", HEADER + "1,m,1,,,,,\n" * 890 + "x,m,1,,,,,\n" * 110)
    with pytest.raises(ReplayError) as raised:
        read_rows(path, block_bytes=1 << 20)
    assert str(raised.value).splitlines() == [
        f"{path}: 110 of 1,000 lines are bad, more than 10% (bad_time 110) - a time is RFC 3339 with its zone, as "
        "2026-01-01T00:00:00Z, or a number since 1970; the first:",
        *(f"  line {line}: bad_time: x,m,1,,,,," for line in range(892, 897)),
    ]
    assert read_rows(path, max_bad_ratio=0.11)[1].total == 110


@pytest.mark.parametrize(
    ("time", "told"),
    [("2026-01-01 00:00:00", "a time is RFC 3339 with its zone"), ("1767225600000", "in another time unit")],
)
def test_times_that_cannot_be_used_say_what_to_do(tmp_path: Path, time: str, told: str) -> None:
    with pytest.raises(ReplayError, match=rf"all of them .* - .*{told}.*; the first:"):
        read_rows(write(tmp_path / "x.csv", HEADER + f"{time},m,1,,,,,\n" * 3))


def test_few_lines_are_not_judged_by_the_ratio_unless_all_are_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", HEADER + "1,m,1,,,,,\n" + "x\n" * 998)
    assert read_rows(path)[1].total == 998
    with pytest.raises(ReplayError, match="2 of 2 lines are bad, all of them"):
        read_rows(write(path, HEADER + "x\n" * 2))
    assert read_rows(write(path, HEADER))[0] == []


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ("when,metric,value", {}, "no column 'time'; found: when, metric, value"),
        ("time,metric", {}, "no column 'value'"),
        ("time,value", {}, "no column 'metric'"),
        ("", {}, "no column 'time'"),
        ("time,metric,value", {"service_column": "pod"}, "no column 'pod'"),
        ("time,metric,value", {"attribute_columns": ("route",)}, "no column 'route'"),
        ("time,metric,value", {"count_column": "n"}, "no column 'n'"),
        ("time,metric,value,a,a", {}, "two columns 'a'"),
        ("\0" * 200_000, {}, "no column 'time'"),
    ],
)
def test_a_missing_column_is_named(tmp_path: Path, header: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ReplayError, match=message) as raised:
        read_rows(write(tmp_path / "x.csv", header + "\n1,2,3\n"), ReplayOptions(**options))
    assert str(raised.value).startswith(str(tmp_path / "x.csv"))
    assert "has the columns time, metric and value, may have kind, unit and service" in str(raised.value)


@pytest.mark.parametrize(
    "options",
    [{"format": "json"}, {"kind": "histogram"}, {"time_unit": "h"}, {"duration_unit": "ns"}, {"path_segments": -1}],
)
def test_options_are_checked(options: dict[str, Any]) -> None:
    with pytest.raises(ReplayError, match=next(iter(options))):
        ReplayOptions(**options)


def test_defaults_fill_what_the_file_lacks(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "t,v,pod,trace\n1000,2,a-1,77\n2000,3,,78\n")
    options = ReplayOptions(
        service="fallback", metric="rpc.duration", kind="gauge", unit="us", time_column="t", value_column="v",
        service_column="pod", time_unit="ms", attribute_columns=(),
    )  # fmt: skip
    series = Series("rpc.duration", "gauge", "us")
    assert read_rows(path, options)[0] == [Row("a-1", series, 10**6, 2.0), Row("fallback", series, 2 * 10**6, 3.0)]


def test_counts_repeat_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "time,metric,value,n\n1,m,5,2\n2,m,6,0\n3,m,7,1\n4,m,8,-1\n5,m,8,1.5\n6,m,8,\n")
    rows, bad = read_rows(path, ReplayOptions(count_column="n"))
    assert [(row.time_us // 10**6, row.value) for row in rows] == [(1, 5.0), (1, 5.0), (3, 7.0)]
    assert bad.counts == {BadReason.COUNT: 3}


def test_a_huge_count_comes_in_blocks_of_bounded_size(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", f"time,metric,value,n\n1,m,5,{2 * MAX_BLOCK_SAMPLES + 3}\n2,m,6,1\n")
    rows, _ = read_rows(path, ReplayOptions(count_column="n"))
    assert len(rows) == 2 * MAX_BLOCK_SAMPLES + 4
    assert rows[-1].value == 6.0


def test_too_many_series_name_the_attributes_to_leave_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "MAX_SERIES", 50)
    path = write(
        tmp_path / "x.csv", "time,metric,value,trace,zone\n" + "".join(f"1,m,1,t{i},z{i % 3}\n" for i in range(51))
    )
    with pytest.raises(ReplayError, match=r"more than 50 distinct series; .* most values: trace \(50\), zone \(3\)"):
        read_rows(path)
    assert len(read_rows(path, ReplayOptions(attribute_columns=("zone",)))[0]) == 51


def test_many_columns_of_many_values(tmp_path: Path) -> None:
    """Their combinations exceed what one integer could number."""
    names = [f"a{i}" for i in range(20)]
    lines = [f"{row},m,1," + ",".join(str(row * 7 % (i + 13)) for i in range(20)) for row in range(300)]
    path = write(tmp_path / "samples.csv", "time,metric,value," + ",".join(names) + "\n" + "\n".join(lines) + "\n")
    assert read_rows(path, block_bytes=1 << 20)[0] == expected_rows(path)


def test_memory_is_that_of_blocks_not_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "time,metric,value\n" + "1661140330.123456,m,0.123456789\n" * 600_000)
    tracemalloc.start()
    try:
        lines = sum(len(block.ends) for block in line_blocks(FileBytes.of(str(path)), block_bytes=100_000))
        assert tracemalloc.get_traced_memory()[1] < 3_000_000 < path.stat().st_size
    finally:
        tracemalloc.stop()
    assert lines == 600_001


def test_a_line_without_end_is_an_error_not_all_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailrace_producers.replay.source.MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "x.csv", HEADER + "x" * (3 << 20))
    with pytest.raises(ReplayError, match="line 2 exceeds 1 MB: is it text"):
        read_rows(path)


def test_what_is_appended_after_hashing_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", HEADER + "1,m,1,,,,,\n")
    source = FileBytes.of(str(path))
    with path.open("a") as out:
        out.write("2,m,1,,,,,\n")
    assert b"".join(block.data for block in line_blocks(source)) == (HEADER + "1,m,1,,,,,\n").encode()


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    """As logrotate's copytruncate does: what it takes away must not pass for the end of the file."""
    path = write(tmp_path / "x.csv", HEADER + "1,m,1,,,,,\n" * 100_000)
    blocks = line_blocks(FileBytes.of(str(path)), block_bytes=100_000)
    lines = len(next(blocks).ends)
    os.truncate(path, 0)
    with pytest.raises(ReplayError) as caught:  # noqa: PT012 - what was read ahead still comes
        for block in blocks:
            lines += len(block.ends)
    assert f"{path} was cut to " in str(caught.value)
    assert f" bytes after line {lines:,} while it was read" in str(caught.value)


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.csv")
    with pytest.raises(ReplayError, match=r"x\.csv is not a regular file"):
        read_rows(tmp_path / "x.csv")


@pytest.mark.parametrize("name", ["cut.csv.gz", "flipped.csv.gz", "absent.csv", "bad.parquet"])
def test_a_damaged_or_absent_file_is_a_clear_error(samples_csv: Path, name: str) -> None:
    packed = bytearray(gzip.compress(samples_csv.read_bytes()))
    path = samples_csv.with_name(name)
    if name == "flipped.csv.gz":
        packed[len(packed) // 2] ^= 0xFF
        write(path, bytes(packed))
    elif name == "cut.csv.gz":
        write(path, bytes(packed[:-1000]))
    elif name == "bad.parquet":
        write(path, b"PAR1 and nothing more")
    with pytest.raises(ReplayError, match="cannot be read") as raised:
        read_rows(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("/a/shop.csv.gz", "shop"),
        ("shop.v2.parquet", "shop.v2"),
        ("access.log", "access"),
        (".csv", ".csv"),
        ("/", "replay"),
    ],
)
def test_the_default_service_is_the_files_name(path: str, stem: str) -> None:
    assert stem_of(path) == stem


# -- Parquet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time_type", ["text", "timestamp", "float", "decimal"])
def test_parquet_rows_are_those_of_the_csv(samples_csv: Path, time_type: str) -> None:
    expected = expected_rows(samples_csv)
    table = pa.Table.from_pylist(list(dict_rows(samples_csv)))
    times_us = [row.time_us for row in expected]
    columns = {
        "text": table["time"],
        "timestamp": pa.array(times_us, pa.timestamp("us", tz="UTC")),
        "float": pa.array([time_us / 1e6 for time_us in times_us]),
        "decimal": pa.array([str(time_us) for time_us in times_us]).cast(pa.decimal128(20, 0)),
    }
    table = table.set_column(0, "time", columns[time_type])
    table = table.set_column(2, "value", pa.array([row.value for row in expected]))
    # An attribute may be a dictionary, a number, or null.
    table = table.set_column(6, "route", table["route"].dictionary_encode())
    table = table.set_column(7, "status", pa.array([int(s) if (s := v.as_py()) else None for v in table["status"]]))
    path = samples_csv.with_suffix(".parquet")
    pq.write_table(table, path, row_group_size=300)
    unit = "us" if time_type == "decimal" else "s"
    if time_type == "text":
        rows, bad = read_rows(path)
    else:
        rows, bad = read_rows(path, ReplayOptions(time_unit=unit))
    assert rows == expected
    assert (bad.lines, bad.total) == (2000, 0)


def test_parquet_nulls_are_bad_rows_or_absent_attributes(tmp_path: Path) -> None:
    table = pa.table(
        {
            "time": pa.array([1.0, None, 3.0, 4.0]),
            "metric": pa.array(["m", "m", "m", None]),
            "value": pa.array([1, 2, None, 4]),
            "zone": pa.array([None, "b", "c", "d"]),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    rows, bad = read_rows(tmp_path / "x.parquet")
    assert rows == [Row("x", Series("m", "distribution"), 10**6, 1.0)]
    assert bad.counts == {BadReason.TIME: 1, BadReason.VALUE: 1, BadReason.METRIC: 1}
    assert [example.line for example in bad.examples] == [2, 3, 4]
    assert bad.examples[0].text == "{'time': None, 'value': 2, 'metric': 'm', 'zone': 'b'}"


def test_parquet_text_that_is_no_utf_8_makes_bad_rows(tmp_path: Path) -> None:
    broken = pa.array([b"m", b"m\xde", b"m"]).view(pa.string())  # as Arrow reads it from a file: unchecked
    table = pa.table({"time": [1.0, 2.0, 3.0], "metric": broken, "value": [1, 2, 3], "zone": broken})
    pq.write_table(table, tmp_path / "x.parquet")
    rows, bad = read_rows(tmp_path / "x.parquet")
    assert [row.value for row in rows] == [1.0, 3.0]
    assert bad.total == 1
    assert [example.text for example in bad.examples] == ["text that is no UTF-8"]


def test_parquet_columns_of_unfit_types_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {"time": [1.0], "metric": ["m"], "value": [1.0], "tags": [{"a": "b"}], "day": pa.array([1], pa.date32())}
    )
    pq.write_table(table, path)
    with pytest.raises(ReplayError, match="column 'tags' is nested"):
        read_rows(path)
    assert len(read_rows(path, ReplayOptions(attribute_columns=()))[0]) == 1
    with pytest.raises(ReplayError, match="values cannot be read from date32"):
        read_rows(path, ReplayOptions(attribute_columns=(), value_column="day"))
    assert read_rows(path, ReplayOptions(attribute_columns=("day",)))[0][0].series.attributes == (
        ("day", "1970-01-02"),
    )


# -- real data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ycsb_read_first300s", "jhiccup_v2"])
def test_histogram_logs_replay_without_conversion(name: str) -> None:
    path = data_file(f"latency/hdr/{name}.csv.gz")
    options = ReplayOptions(
        time_column="interval_start_s", value_column="value_highest", count_column="count", metric="db.duration",
        unit="us", attribute_columns=(),
    )  # fmt: skip
    expected = [
        Row(
            name,
            Series("db.duration", "distribution", "us"),
            exact_us(row["interval_start_s"]),
            float(row["value_highest"]),
        )
        for row in dict_rows(path)
        for _ in range(int(row["count"]))
    ]
    assert read_rows(path, options, block_bytes=1 << 20)[0] == expected


@pytest.mark.parametrize("name", ["2022-08-22_03_53", "2023-01-29_08_44", "faultfree_2022-08-23_17_00"])
def test_spans_replay_without_conversion(name: str) -> None:
    path = data_file(f"latency/nezha_traces/{name}.csv.gz")
    options = ReplayOptions(
        time_column="end_unix_ns", time_unit="ns", value_column="duration_us", metric="rpc.duration", unit="us",
        service_column="pod", attribute_columns=("operation",),
    )  # fmt: skip
    expected = [
        Row(
            row["pod"],
            Series("rpc.duration", "distribution", "us", (("operation", row["operation"]),)),
            int(row["end_unix_ns"]) // 1000,
            float(row["duration_us"]),
        )
        for row in dict_rows(path)
    ]
    assert len(expected) > 4000
    assert read_rows(path, options)[0] == expected
