"""A partition of a topic other than samples."""

import pytest
from tailrace_flows.core.feed import MAX_INVALID_RUN, UNREADABLE, PoisonedError, Record, TopicFeed
from tailrace_flows.core.sealed import seal


def decode(key: bytes | None, value: bytes) -> tuple[bytes | None, int]:
    return key, int(value)


def feed(state: bytes | None = None, cluster: str = "one", start: int = 0) -> TopicFeed[tuple[bytes | None, int]]:
    return TopicFeed(3, "numbers", decode, cluster_id=cluster, start=start, state=state)


def records(*values: bytes | None, first: int = 0) -> list[Record]:
    return [Record(first + number, 7, value, b"k") for number, value in enumerate(values)]


def test_reads_on_after_a_restart_where_it_stopped() -> None:
    one = feed()
    assert one.read(records(b"1", b"2"), 0) == ([(b"k", 1), (b"k", 2)], [])
    again = feed(one.snapshot(0), start=1)
    assert (again.next_offset, again.moved_from) == (2, None)


def test_without_a_state_old_records_are_skipped() -> None:
    old, new = Record(0, 5, b"1", b"k"), Record(1, 6, b"2", b"k")
    fresh = TopicFeed(3, "numbers", decode, cluster_id="one", start=0, since_us=6)
    assert fresh.read([old, new], 0) == ([(b"k", 2)], [])
    again = TopicFeed(3, "numbers", decode, cluster_id="one", start=0, since_us=6, state=feed().snapshot(0))
    assert again.read([old, new], 0) == ([(b"k", 1), (b"k", 2)], [])


def test_another_cluster_is_read_from_its_start() -> None:
    one = feed()
    one.read(records(b"1", b"2"), 0)
    moved = feed(one.snapshot(0), cluster="two", start=5)
    assert (moved.next_offset, moved.moved_from) == (5, "one")


def test_what_the_broker_no_longer_has_is_skipped_and_counted() -> None:
    one = feed()
    assert one.gap(4) == 4
    assert one.next_offset == 4
    assert one.gap(2) == 0


def test_an_unreadable_record_is_a_dead_letter_with_its_place_and_the_reason() -> None:
    items, letters = feed().read(records(b"1", b"x", None), 0)
    assert items == [(b"k", 1)]
    assert [(one.topic, one.partition, one.offset, one.reason, one.payload) for one in letters] == [
        ("numbers", 3, 1, UNREADABLE, b"x"),
        ("numbers", 3, 2, UNREADABLE, b""),
    ]
    assert "invalid literal" in letters[0].detail


def test_dead_letters_and_gaps_are_counted_by_topic_once() -> None:
    one = feed()
    assert one.counter_rows(0) is None
    one.gap(2)
    one.read(records(b"1", b"x", None, first=2), 0)
    again = feed(one.snapshot(0))
    for counting in (one, again):
        rows = [(row["scope"], row["name"], row["value"]) for row in counting.counter_rows(5).to_pylist()]
        assert rows == [
            ("numbers[3]", "dead_letters.unreadable.numbers", 2),
            ("numbers[3]", "gap_records.numbers", 2),
        ]
        assert counting.counter_rows(6) is None


def test_too_many_unreadable_records_in_a_row_stop_the_flow() -> None:
    one = feed()
    one.read(records(*[b"x"] * (MAX_INVALID_RUN - 1), b"1"), 0)  # a good one between
    with pytest.raises(PoisonedError, match=r"numbers\[3\]: 1000 records in a row up to offset 1999"):
        one.read(records(*[b"x"] * MAX_INVALID_RUN, first=1000), 0)


def test_a_state_of_another_format_is_refused() -> None:

    with pytest.raises(ValueError, match="format 9"):
        feed(seal(9, ("one", 0)))
