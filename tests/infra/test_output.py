"""What is printed can be read back exactly; a table is for people."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_infra import output
from tailrace_infra.cli import complain
from tailrace_infra.output import Format, write_rows

from tests.infra.command import COMMAND

COLUMNS = ["a", "b"]


def printed(capsys: pytest.CaptureFixture[str], rows: list[list[Any]], format: Format) -> str:
    write_rows(COLUMNS, rows, format)
    return capsys.readouterr().out


@given(st.lists(st.tuples(st.floats(allow_nan=False, allow_infinity=False), st.text()), max_size=5))
def test_json_is_an_array_of_objects_that_keeps_every_digit(rows: list[tuple[float, str]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out := io.StringIO())
        write_rows(COLUMNS, rows, Format.JSON)
    assert [tuple(row.values()) for row in json.loads(out.getvalue())] == rows


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (math.nan, None), (math.inf, None), ([1, None, math.nan], [1, None, None]), ({"k": 1.5}, {"k": 1.5}),
        (1 << 63, 1 << 63), (True, True), ("[red]", "[red]"), (b"ab", "ab"), ((1, "x"), [1, "x"]),
        (Decimal("1.2500"), "1.2500"), (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "2026-01-02T03:04:05.000678Z"),
        (datetime(2026, 1, 2, tzinfo=timezone(timedelta(hours=1))), "2026-01-02T00:00:00+01:00"),
    ],
)  # fmt: skip
def test_every_type_has_its_form_in_json_and_csv(value: Any, plain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(printed(capsys, [[value, 0]], Format.JSON)) == [{"a": plain, "b": 0}]
    cell = next(csv.DictReader(io.StringIO(printed(capsys, [[value, 0]], Format.CSV))))["a"]
    assert cell == ("" if plain is None else plain if isinstance(plain, str) else json.dumps(plain))


def test_csv_quotes_what_has_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, [['x,"y"\nz', 0.1 + 0.2]], Format.CSV)
    assert list(csv.reader(io.StringIO(out))) == [["a", "b"], ['x,"y"\nz', "0.30000000000000004"]]
    assert "\r" not in out


def test_a_table_shows_brackets_and_short_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, [["[red]/[/x]", 1 / 3], [None, 12.0]], Format.TABLE)
    assert "[red]/[/x]" in out
    assert "0.333333 " in out
    assert max(map(len, out.splitlines())) < 40


def test_a_long_table_ends_and_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "TABLE_ROWS_MAX", 3)

    def rows() -> Iterator[list[int]]:
        yield from ([number, 0] for number in range(4))
        raise AssertionError("nobody asked for a fifth row")

    write_rows(COLUMNS, rows(), Format.TABLE)
    out, err = capsys.readouterr()
    assert "│ 2 │ 0 │" in out
    assert "│ 3 │" not in out
    assert "--format csv or json" in err


@pytest.mark.parametrize(("format", "text"), [(Format.JSON, "[]\n"), (Format.CSV, "a,b\n")])
def test_no_rows(format: Format, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, [], format) == text
    write_rows([], [], format)
    assert capsys.readouterr().out == ("[]\n" if format is Format.JSON else "")


HOSTILE = "evil\x1b[31m\x1b]0;owned\x07\x9b2J\u202etxt"


def test_a_table_shows_control_characters_and_does_not_send_them(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, [[HOSTILE, 1]], Format.TABLE)
    assert "evil\\x1b[31m\\x1b]0;owned\\x07\\x9b2J\\u202etxt" in out
    assert not set(out) & set("\x1b\x07\x9b\u202e")


def test_json_says_the_same_without_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, [[HOSTILE, {HOSTILE: HOSTILE}]], Format.JSON)
    assert not set(out) & set("\x1b\x07\x9b\u202e")
    assert json.loads(out) == [{"a": HOSTILE, "b": {HOSTILE: HOSTILE}}]


def test_csv_is_exact_but_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(csv.DictReader(io.StringIO(printed(capsys, [[HOSTILE, 1]], Format.CSV)))) == {"a": HOSTILE, "b": "1"}
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert not set(printed(capsys, [[HOSTILE, 1]], Format.CSV)) & set("\x1b\x07\x9b\u202e")


def test_an_error_message_reaches_the_terminal_without_its_controls(capsys: pytest.CaptureFixture[str]) -> None:
    complain(HOSTILE)
    assert "evil\\x1b[31m" in capsys.readouterr().err


def test_a_log_line_stays_one_line_without_control_characters() -> None:
    code = (
        "import logging; from tailrace_infra.logs import configure_logging; configure_logging(); "
        f"logging.getLogger('x').warning('service %s', {HOSTILE + chr(10) + 'level=info event=fake'!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "event=fake" in line
    assert not set(line) & set("\x1b\x07\x9b\u202e")


RULE = """
groups:
- name: g
  rules:
  - {alert: High, metric: m, aggregate: max, window: 10s, op: gt, threshold: 1}
"""
WRITERS = ("--help", "check rules.yaml", "detect series.csv", "backtest --rules rules.yaml samples.csv")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(RULE)
    (tmp_path / "series.csv").write_text("timestamp,value\n1000000000,1\n")
    (tmp_path / "samples.csv").write_text("time,metric,value\n1000000000,m,2\n1000000020,m,2\n")
    return tmp_path


def printed_to(stdout: int, command: str, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *command.split()], stdout=stdout, stderr=subprocess.PIPE, cwd=cwd, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", WRITERS)
def test_a_full_disk_behind_standard_output_is_told_in_a_sentence(files: Path, command: str) -> None:
    with open("/dev/full", "wb") as full:
        code, told = printed_to(full.fileno(), command, files)
    assert code == 1
    assert re.fullmatch("tailrace: .*No space left on device\n", told)


@pytest.mark.parametrize("command", WRITERS)
def test_a_reader_that_has_gone_is_no_error_to_tell_of(files: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        code, told = printed_to(writer, command, files)
    finally:
        os.close(writer)
    assert (code, told) == (1, "")
