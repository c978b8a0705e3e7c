"""A producer whose clock is wrong: what rules see of it, and how soon, from its records to the alert."""

import pytest
from tailrace_schemas.alerts import Transition

from tests.reliability.producer_clocks import RIGHT_S, check, world


@pytest.mark.parametrize(
    ("error_s", "own_time", "how", "others"),
    [
        (3600, False, "future", False),
        (3600, False, "future", True),
        # Not alone: what all services say is the time by which rules are judged.
        (3600, True, "future", True),
        (-3600, False, "late", False),
        (-3600, False, "late", True),
        (-3600, True, "late", False),
        (-3600, True, "late", True),
    ],
)
def test_a_producer_s_wrong_clock_is_told_within_half_a_minute(
    error_s: int, own_time: bool, how: str, others: bool
) -> None:
    told = world(error_s, own_time=own_time, others=others)
    (at_s, *event), *_ = told.alerts
    assert event == [str(Transition.ACTIVE), "cart", how]
    assert RIGHT_S < at_s <= RIGHT_S + 30
    assert told.shares["cart", how] > 0.5
    assert {service for service, _ in told.shares} == {"cart"}
    check(told)


def test_it_is_over_when_the_clock_is_right_again() -> None:
    told = world(-3600, own_time=False, others=True)
    assert [alert[1] for alert in told.alerts] == [str(Transition.ACTIVE), str(Transition.RESOLVED)]


def test_clocks_that_are_right_or_nearly_so_are_told_nothing_of() -> None:
    for error_s in (0, 20, -20):
        assert not world(error_s, own_time=False, others=True).shares
