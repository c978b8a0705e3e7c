"""Some worlds of alerts: `python -m tests.reliability alerts --long` has more."""

import pytest

from tests.reliability.alerts import play, play_changing
from tests.reliability.seeds import failed_before


@pytest.mark.parametrize("seed", [*failed_before("alerts"), *range(1, 9)])
def test_every_event_is_the_judges_and_everybody_knows_in_the_end(seed: int) -> None:
    play(seed)


@pytest.mark.parametrize("seed", [*failed_before("alerts"), *range(1, 5)])
def test_every_alert_ends_that_was_told_of_although_much_changes_within_a_crash(seed: int) -> None:
    play_changing(seed)
