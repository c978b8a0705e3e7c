"""What is known of how far a partition has been read, against all that was found out about its ends."""

from hypothesis import given
from hypothesis import strategies as st
from tailrace_flows.core.ends import Ends

S = 1_000_000


def test_as_of_when_a_reader_that_falls_behind_has_read_all() -> None:
    ends = Ends()
    assert ends.read_until_us(0) is None
    told = []
    for second in range(0, 60, 2):  # 100 records a second come, 50 are read
        ends.found(100 * second, second * S)
        told.append(ends.read_until_us(50 * second))
    assert told == [second // 4 * 2 * S for second in range(0, 60, 2)]


def test_a_topic_that_was_made_anew_begins_anew() -> None:
    ends = Ends()
    ends.found(100, 1 * S)
    ends.found(10, 3 * S)
    assert ends.read_until_us(9) is None
    assert ends.read_until_us(10) == 3 * S


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=400))
def test_never_more_than_was_read_and_little_less(steps: list[tuple[int, int]]) -> None:
    """`steps`: how many records come within 2 s, and how many are read in them."""
    ends = Ends()
    found: list[tuple[int, int]] = []
    end = offset = 0
    for number, (come, read) in enumerate(steps):
        end += come
        now_us = number * 2 * S
        found.append((end, now_us))
        ends.found(end, now_us)
        offset = min(end, offset + read)
        exact_us = max((at_us for one, at_us in found if one <= offset), default=None)
        told_us = ends.read_until_us(offset)
        if told_us is None:
            assert exact_us is None
        else:
            assert exact_us is not None
            assert exact_us - (now_us - told_us) / 32 - 4 * S <= told_us <= exact_us


def test_of_a_reader_that_stands_still_for_a_day_little_is_kept() -> None:
    ends = Ends()
    for number in range(43_200):
        ends.found(number, number * 2 * S)
    assert len(ends._known) < 800
