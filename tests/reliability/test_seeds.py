"""Which worlds a run plays."""

from itertools import islice
from pathlib import Path

from tests.reliability.attack import Result, Run
from tests.reliability.seeds import failed_before, seeds


def played(size: int, steps: int) -> list[int]:
    result = Result()
    for _ in islice(seeds(Run("windows", size, 7, Path(), lambda _: None), result), 1_000):
        result.runs += steps
    return result.seeds


def test_a_short_run_plays_all_seeds_that_failed() -> None:
    assert played(12_000, 2_000) == [7, *failed_before("windows")]


def test_a_long_run_goes_on_after_them() -> None:
    failed = failed_before("windows")
    assert played(80_000, 2_000) == [7, *failed, *range(8, 8 + 40 - 1 - len(failed))]


def test_a_run_of_size_1_plays_its_seed_only() -> None:
    assert played(1, 2_000) == [7]
