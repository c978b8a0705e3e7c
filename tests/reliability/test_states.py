"""Damaged and foreign states are refused: `python -m tests.reliability states --long` has more."""

from pathlib import Path

from tests.reliability.attack import Run
from tests.reliability.states import states


def test_no_damaged_state_is_misread(tmp_path: Path) -> None:
    result = states(Run("states", 500, 1, tmp_path, lambda _: None))
    assert not result.failures, result.failures
    assert result.runs >= 500
