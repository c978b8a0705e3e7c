"""`python -m benchmarks peers` measures the error of a peer's answers, and refuses wrong ones."""

import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks import load
from benchmarks.peers.exact import Exact, WrongError, errors, exact, exact_of_load
from benchmarks.peers.topics import ENCODINGS

# Two series in two windows; series 1 has the values 1 to 1,001 in window 7.
MANY = np.arange(1, 1002, dtype="f8")


@pytest.fixture
def answers() -> Exact:
    series = np.r_[np.full(1001, 1), 1, 2, 2].astype("u4")
    window = np.r_[np.full(1001, 7), 8, 7, 7]
    return exact(series, window, np.r_[MANY[::-1], 5.0, 3.0, 1.0])


ROWS = ((1, 7, 1001, 501501.0, 501, 951, 991, 1000), (2, 7, 2, 4.0, 1, 3, 3, 3), (1, 8, 1, 5.0, 5, 5, 5, 5))


def written(path: Path, *rows: tuple[float, ...]) -> Path:
    path.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def test_right_answers_have_no_error_in_any_order(answers: Exact, tmp_path: Path) -> None:
    assert errors(answers, written(tmp_path / "a", *ROWS)) == {"error_max_percent": 0, "error_p99_percent": 0}
    assert errors(answers, written(tmp_path / "a", *ROWS[::-1]))["error_max_percent"] == 0


def test_an_answer_between_the_ranks_of_all_definitions_is_right(answers: Exact, tmp_path: Path) -> None:
    for median in (1, 2, 3):  # of the samples 1 and 3
        found = written(tmp_path / "a", ROWS[0], (*ROWS[1][:4], median, 3, 3, 3), ROWS[2])
        assert errors(answers, found)["error_max_percent"] == 0


@pytest.mark.parametrize(("p95", "percent"), [(951 * 1.02, 2), (951 * 0.97, 3)])
def test_the_error_is_relative_to_the_nearest_right_answer(
    answers: Exact, tmp_path: Path, p95: float, percent: float
) -> None:
    found = written(tmp_path / "a", (*ROWS[0][:5], p95, *ROWS[0][6:]), *ROWS[1:])
    assert errors(answers, found)["error_max_percent"] == pytest.approx(percent)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "3 rows expected, none found"),
        (ROWS[:2], "3 rows expected, 2 found, 2 of them"),
        ((*ROWS, ROWS[0]), "3 rows expected, 4 found"),
        ((ROWS[0], ROWS[1], (3, *ROWS[2][1:])), "3 rows expected, 3 found, 2 of them"),
        ((ROWS[0], ROWS[1], (1, 8, 2, *ROWS[2][3:])), "counts differ: 1004 samples in all, 1005 found"),
        ((ROWS[0], (2, 7, 2, 4.001, *ROWS[1][4:]), ROWS[2]), "sums differ"),
    ],
)
def test_wrong_rows_counts_and_sums_are_refused(
    answers: Exact, tmp_path: Path, rows: tuple[tuple[float, ...], ...], message: str
) -> None:
    with pytest.raises(WrongError, match=message):
        errors(answers, written(tmp_path / "a", *rows))


def test_every_encoding_has_the_same_samples() -> None:
    series, samples = 200, 4_000
    answers = exact_of_load(series, samples)
    assert answers.count.sum() == samples
    each = list(ENCODINGS["binary_each"](series, samples))
    assert len(each) == samples + 1
    key = np.array([struct.unpack(">i", one[0] or b"")[0] for one in each[:-1]])
    window = np.array([one[2] // 10_000 for one in each[:-1]])
    value = np.array([struct.unpack(">d", one[1])[0] for one in each[:-1]])
    again = exact(key, window, value)
    assert np.array_equal(again.key, answers.key)
    assert np.array_equal(again.sum, answers.sum)
    assert each[-1][0] == struct.pack(">i", -1)
    lines = b"".join(value for _, value, _ in ENCODINGS["json_batch"](series, samples)).splitlines()
    singles = [value for _, value, _ in ENCODINGS["json_each"](series, samples)]
    assert lines == singles[:-1]
    native = next(iter(ENCODINGS["native"](series, samples)))[1]
    batch = next(load.batches(series, samples))
    assert native.endswith(b"\x05value\x07Float64" + batch.value.tobytes())
