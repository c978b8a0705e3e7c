"""`tailrace detect` on files as people have them; the public benchmarks at the default setting."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tailrace_flows.core.anomaly import Detector
from tailrace_infra.series_file import SeriesFileError, read_series

from benchmarks import anomaly
from tests.data import DATA, data_file
from tests.infra.command import tailrace

HEADER = ["timestamp", "value", "anomaly_score", "flag", "expected", "low", "high"]


def write(path: Path, rows: list[str], header: str = "timestamp,value") -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def spiky(rows: int = 300, spike: int = 200) -> list[str]:
    return [
        f"2024-01-0{1 + i // 144} {i // 6 % 24:02}:{i % 6}0:00,{900 if i == spike else 100 + i % 7}"
        for i in range(rows)
    ]


def table(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


def test_every_row_is_scored_in_its_order(tmp_path: Path) -> None:
    path = write(tmp_path / "cpu.csv", spiky())
    done = tailrace("detect", str(path))
    assert done.returncode == 0, done.stderr
    header, *rows = table(done.stdout)
    assert header == HEADER
    assert [",".join(row[:2]) for row in rows] == spiky()
    assert [i for i, row in enumerate(rows) if row[3] == "1"] == [200]
    assert float(rows[200][2]) > 0.999
    assert float(rows[200][5]) < float(rows[200][4]) < float(rows[200][6]) < 900
    assert "300 rows, of which the first 100 warm up" in done.stderr


def test_out_holds_every_row_and_flagged_ones_are_printed(tmp_path: Path) -> None:
    path = write(tmp_path / "cpu.csv", spiky())
    done = tailrace("detect", str(path), "--out", str(tmp_path / "scores.csv"), "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [row["value"] for row in json.loads(done.stdout)] == ["900"]
    whole = (tmp_path / "scores.csv").read_text()
    assert whole == tailrace("detect", str(path)).stdout


def test_direction_deviations_and_columns(tmp_path: Path) -> None:
    rows = [row.replace(",", ",x,") for row in spiky()]
    with gzip.open(tmp_path / "cpu.csv.gz", "wt") as file:
        file.write("\n".join(["Time,host,Load", *rows]))
    arguments = ("detect", str(tmp_path / "cpu.csv.gz"), "--column", "load", "--out", str(tmp_path / "o"), "-f", "json")
    for more, flags in (((), 1), (("--direction", "below"), 0), (("--min-deviation", "1000"), 0)):
        done = tailrace(*arguments, *more)
        assert (done.returncode, len(json.loads(done.stdout))) == (0, flags), done.stderr


def test_rows_without_a_number_score_0_and_are_counted(tmp_path: Path) -> None:
    rows = spiky()
    rows[150], rows[151] = "2024-01-02 01:00:00,", "2024-01-02 01:10:00,NaN"
    done = tailrace("detect", str(write(tmp_path / "cpu.csv", rows)))
    assert "2 without a number" in done.stderr
    assert [row[2:] for row in table(done.stdout)[151:153]] == [["0.0", "0", "", "", ""]] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no column 'timestamp' or 'time'; there is: a, b"),
        ("timestamp,v\n1,2\n", "no column 'value'; there is: timestamp, v"),
        ("timestamp,value\nyesterday,2\n", ":2: 'yesterday' is no time"),
        ("timestamp,value\n1e300,2\n", ":2: '1e300' is no time"),
        ("timestamp,value\n1\n", ":2: 1 columns, the header has 2"),
        ("", "there is: none"),
        ("\x00\xff", "this is no CSV"),
    ],
)
def test_bad_files_are_named_with_line_and_reason(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SeriesFileError) as raised:
        read_series(path, "value")
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    done = tailrace("detect", str(write(tmp_path / "bad.csv", ["1,2"], "a,b")))
    assert (done.returncode, done.stdout) == (1, "")
    assert "no column" in done.stderr
    assert tailrace("detect", str(tmp_path / "none.csv")).returncode == 2


def test_an_empty_series_is_fine(tmp_path: Path) -> None:
    done = tailrace("detect", str(write(tmp_path / "empty.csv", [])))
    assert (done.returncode, done.stdout) == (0, ",".join(HEADER) + "\n")


@pytest.mark.parametrize(
    "text", ["2024-01-01T00:00:00Z", "2024-01-01 00:00:00", "2024-01-01T01:00:00+01:00", "1704067200", "1704067200.0"]
)
def test_times_are_utc_unless_they_say_otherwise(tmp_path: Path, text: str) -> None:
    assert read_series(write(tmp_path / "t.csv", [f"{text},1"]), "value").times_us == [1_704_067_200_000_000]


# -- the public benchmarks ---------------------------------------------------------------------------------


def rows_of(part: str) -> list[dict[str, Any]]:
    import argparse

    return anomaly.run(argparse.Namespace(part=[part], data=DATA, series=0))


def test_nab_scores() -> None:
    """The goals of docs/anomalies.md: one setting, every file, no look ahead."""
    data_file("nab/labels.json")
    standard, low_fp, _ = rows_of("nab")
    assert standard["score"] >= 65
    assert standard["left_out_score"] >= 63
    assert low_fp["score"] >= 55
    assert low_fp["left_out_score"] >= 50


def test_ms_cloud_f1() -> None:
    data_file("ms_cloud")
    (row,) = rows_of("ms_cloud")
    assert row["f1"] >= 0.77


def test_scores_of_a_prefix_are_those_of_the_whole() -> None:
    """On every file: a detector that saw the whole and one that saw the first part agree on the first part."""
    paths = sorted([*data_file("nab/data").glob("*/*.csv"), *data_file("ms_cloud").glob("*/*.csv")])
    assert len(paths) > 50
    for path in paths:
        series = read_series(path, "value")
        points = list(zip(series.times_us, series.numbers, strict=True))[:3_000]
        detector = Detector()
        whole = [detector.update(*point) for point in points]
        cut = len(points) * 2 // 3
        detector = Detector()
        assert repr([detector.update(*point) for point in points[:cut]]) == repr(whole[:cut]), path


# -- forecast ----------------------------------------------------------------------------------------------


def test_forecast_says_when_a_limit_is_reached(tmp_path: Path) -> None:
    rows = [f"2024-01-01 {hour:02}:00:00,{100 + 5 * hour}" for hour in range(20)]
    path = write(tmp_path / "disk.csv", rows)
    done = tailrace("forecast", str(path), "--limit", "295", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = {row["figure"]: row["value"] for row in json.loads(done.stdout)}
    assert found["reached_at"] == found["least_squares_at"] == "2024-01-02T15:00:00Z"
    assert found["change_per_day"] == pytest.approx(120)
    assert found["season_hours"] == 0
    never = tailrace("forecast", str(path), "--limit", "10", "--days", "0.2", "--format", "json")
    found = {row["figure"]: row["value"] for row in json.loads(never.stdout)}
    assert (found["rows"], found["reached_at"], found["least_squares_at"]) == (5, None, None)


def test_forecast_counts_the_wave_of_a_day_in(tmp_path: Path) -> None:
    rows = [f"2024-01-{1 + i // 24:02} {i % 24:02}:00:00,{(i // 24) + 50 * (8 <= i % 24 < 18)}" for i in range(96)]
    done = tailrace("forecast", str(write(tmp_path / "cpu.csv", rows)), "--limit", "53.9", "--format", "json")
    assert done.returncode == 0, done.stderr
    found = {row["figure"]: row["value"] for row in json.loads(done.stdout)}
    assert found["season_hours"] == 24
    assert "2024-01-05T07" <= found["reached_at"] <= "2024-01-05T18"


def test_forecast_without_a_number_says_so(tmp_path: Path) -> None:
    done = tailrace("forecast", str(write(tmp_path / "disk.csv", ["2024-01-01,NaN"])), "--limit", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no row has a number" in done.stderr
