"""How the partitions of a process share a round."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_flows.source import Turns

MAX = 100


def rounds(polls: list[int], count: int) -> list[list[int]]:
    """Who read in each of so many rounds, where partition n reads polls[n] bytes each time."""
    turns = Turns(MAX)
    read = []
    for _ in range(count):
        who = []
        for number, size in enumerate(polls):
            if turns.may_read(number):
                turns.took(size)
                who.append(number)
        read.append(who)
    return read


@pytest.mark.parametrize(
    ("polls", "expected"),
    [
        ([10, 10, 10], [[0, 1, 2], [0, 1, 2]]),  # no backlog: all read in each round
        ([100, 100, 100], [[0], [1], [2], [0]]),
        ([60, 60, 60, 60], [[0, 1], [2, 3], [0, 1]]),
        ([60, 60, 60], [[0, 1], [2], [0, 1]]),
        ([0, 200, 0, 0], [[0, 1], [2, 3], [0, 1]]),
        ([500], [[0], [0]]),
    ],
)
def test_who_had_no_turn_goes_first_in_the_next_round(polls: list[int], expected: list[list[int]]) -> None:
    assert rounds(polls, len(expected)) == expected


@given(st.lists(st.integers(0, 2 * MAX), min_size=1, max_size=20))
def test_a_round_is_bounded_and_nobody_waits_longer_than_the_others_need(polls: list[int]) -> None:
    read = rounds(polls, 3 * len(polls))

    for who in read:
        assert sum(polls[number] for number in who[:-1]) < MAX  # the last one may go beyond it
    for number in range(len(polls)):
        turns = [at for at, who in enumerate(read) if number in who]
        assert turns[0] < len(polls)
        assert all(later - turn <= len(polls) for turn, later in pairwise(turns))
