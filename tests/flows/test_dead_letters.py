"""What dead letters carry, and how many bytes of it."""

from tailrace_flows.core.config import WindowConfig
from tailrace_flows.core.feed import Record
from tailrace_flows.core.partition import MAX_PAYLOADS_PER_SECOND, Partition

SECOND_US = 1_000_000


def read(partition: Partition, offsets: range, time_us: int) -> list[int]:
    """The payload sizes of the letters of so many records of junk."""
    records = [Record(offset, time_us, b"junk %d" % offset) for offset in offsets]
    _, letters = partition.read(records, time_us)
    assert [(letter.partition, letter.offset) for letter in letters] == [(3, offset) for offset in offsets]
    return [len(letter.payload) for letter in letters]


def test_a_flood_of_junk_keeps_every_place_and_reason_but_few_payloads() -> None:
    partition = Partition(3, "samples", WindowConfig(), 0, hold=True, cluster_id="c", start=0)
    first = read(partition, range(300), 5 * SECOND_US)
    assert sum(size > 0 for size in first) == MAX_PAYLOADS_PER_SECOND
    later = read(partition, range(300, 310), 6 * SECOND_US)
    assert all(later), "the next second has room again"
