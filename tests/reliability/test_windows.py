"""Some worlds of the windows: `python -m tests.reliability windows --long` has more."""

import pytest

from tests.reliability import clocks
from tests.reliability.seeds import failed_before
from tests.reliability.windows import OVERTAKEN, play


@pytest.mark.parametrize("seed", [*failed_before("windows"), *range(1, 16)])
def test_every_row_and_counter_is_what_exact_computation_gives(seed: int) -> None:
    play(seed)


@pytest.mark.parametrize("seed", failed_before("windows"))
def test_what_was_read_is_in_rows_or_counted_whatever_is_overtaken(seed: int) -> None:
    play(seed, OVERTAKEN)


@pytest.mark.parametrize("seed", [*failed_before("host_clock"), *range(1, 7)])
def test_a_host_s_clock_that_is_set_makes_nothing_late(seed: int) -> None:
    clocks.play(seed)
