"""The buffer and the packer, alone: nothing is lost uncounted, whatever happens in whatever order."""

import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_producers.buffer import Buffer, Chunk, Drop, SeriesRef
from tailrace_producers.packing import MAX_TIME_NS, PAGE, Packer
from tailrace_schemas.samples import SampleBatch, Series, decode

from tests.producers.reading import Sent, samples_of

T0 = 1_700_000_000_000_000_000


def gauge() -> SeriesRef:
    """A new one: a ref belongs to one packer."""
    return SeriesRef(Series("g", "gauge"))


def record(buffer: Buffer, samples: int) -> None:
    """As the instruments do."""
    for _ in range(samples):
        buffer.rows.extend((1.0, T0, None))
        if len(buffer.rows) >= buffer.row_limit:
            buffer.cut_if_full()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(1, 60)),
        st.tuples(st.sampled_from(["cut", "take", "deliver", "fail", "abandon", "close"]), st.integers(0, 5)),
    ),
    max_size=60,
)


@given(STEPS)
def test_recorded_is_held_delivered_or_counted_as_dropped(steps: list[tuple[str, int]]) -> None:
    buffer = Buffer(max_samples=50, chunk_samples=10)
    taken: list[Chunk] = []
    recorded = delivered = lost = 0
    for step, number in steps:
        if step == "record":
            record(buffer, number)
            recorded += number
        elif step == "cut":
            buffer.cut()
        elif step == "take" and (chunk := buffer.take()):
            taken.append(chunk)
            lost += chunk.lost_before
        elif step == "close" and number == 0:
            buffer.close()
        elif step in ("deliver", "fail", "abandon") and taken:
            chunk = taken.pop(number % len(taken))
            before = buffer.stats().delivered
            if step == "abandon":
                buffer.abandon(chunk.number)
            else:  # in two messages
                half = chunk.samples // 2
                for part in (half, chunk.samples - half):
                    buffer.settle(chunk.number, part, Drop.UNDELIVERED if step == "fail" else None)
            delivered += buffer.stats().delivered - before
        stats = buffer.stats()
        assert stats.recorded == recorded == stats.held + stats.delivered + sum(stats.dropped.values())
        assert stats.delivered == delivered
        assert 0 <= stats.held <= 50 + 10
        assert all(chunk.samples <= 10 for chunk in taken)

    mark = buffer.cut()
    buffer.close()
    assert buffer.settled(mark)
    stats = buffer.stats()
    assert stats.held == 0
    assert recorded == stats.delivered + sum(stats.dropped.values())


def test_the_oldest_go_first_and_their_numbers_are_told() -> None:
    buffer = Buffer(max_samples=30, chunk_samples=10)
    for value in range(70):
        buffer.rows.extend((value, T0, None))
        if len(buffer.rows) >= buffer.row_limit:
            buffer.cut_if_full()
    assert buffer.stats().dropped == {"queue_full": 40}
    chunks = [buffer.take(), buffer.take(), buffer.take()]
    assert [(chunk.rows[0], chunk.lost_before) for chunk in chunks if chunk] == [(40, 4), (50, 0), (60, 0)]
    assert buffer.take() is None


def test_what_is_on_its_way_is_not_dropped() -> None:
    buffer = Buffer(max_samples=20, chunk_samples=10)
    record(buffer, 20)
    taken = [buffer.take(), buffer.take()]
    record(buffer, 10)
    assert buffer.stats().dropped == {"queue_full": 10}, "the new chunk: it is the only one still here"
    for chunk in taken:
        assert chunk is not None
        buffer.settle(chunk.number, 10)
    assert buffer.stats().delivered == 20


def test_recording_does_not_wait_for_the_lock() -> None:
    cuts = []
    buffer = Buffer(max_samples=20, chunk_samples=10, on_cut=lambda: cuts.append(1))
    with buffer._lock:  # a flush, or a signal handler that came in the middle of one
        record(buffer, 15)
    assert not cuts
    record(buffer, 1)
    assert cuts == [1]
    assert buffer.stats().recorded == 16


def test_a_mark_waits_for_what_came_before_it_only() -> None:
    buffer = Buffer(max_samples=100, chunk_samples=10)
    record(buffer, 5)
    mark = buffer.cut()
    record(buffer, 5)
    buffer.cut()
    first = buffer.take()
    assert first is not None
    assert not buffer.settled(mark)
    buffer.settle(first.number, 5)
    assert buffer.settled(mark)


def test_too_small_a_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="max_samples is 9; it must be at least 10"):
        Buffer(max_samples=9, chunk_samples=10)


# The packer


def unpack(packer: Packer, rows: list[Any]) -> tuple[list[SampleBatch], Counter[Drop]]:
    messages, dropped = packer.pack(rows)
    batches = [decode(message.payload) for message in messages]
    assert [one.samples for one in messages] == [one.samples for one in batches if isinstance(one, SampleBatch)]
    return [one for one in batches if isinstance(one, SampleBatch)], dropped


class Hostile:
    """A host's object that is no number."""

    def __float__(self) -> float:
        raise RuntimeError("no")


REFS = [
    SeriesRef(Series("requests", "counter", "1", (("route", "/x"),))),
    SeriesRef(Series("requests", "counter", "1", (("route", "/y"),))),
    SeriesRef(Series("size", "distribution", "By")),
    SeriesRef(Series("temperature", "gauge", "Cel")),
    SeriesRef(Series("total", "cumulative")),
    SeriesRef(Series("deploy", "event", "", (("version", "1"),))),
    SeriesRef(Series("deploy", "event", "", (("version", "2"),))),
]
INVALID = SeriesRef(Series("", "gauge"), Drop.INVALID)
TOO_MANY = SeriesRef(Series("", "gauge"), Drop.TOO_MANY_SERIES)
GOOD_ROWS = st.tuples(
    st.one_of(st.floats(0, 1e300), st.integers(0, 10**6), st.booleans()),
    st.integers(T0, T0 + 10**9),
    st.sampled_from(REFS),
)
ANY_ROWS = st.tuples(
    st.one_of(st.floats(), st.integers(), st.just("12"), st.none(), st.builds(Hostile)),
    st.one_of(st.integers(0, MAX_TIME_NS), st.integers(), st.floats(), st.none()),
    st.sampled_from([*REFS, INVALID, TOO_MANY]),
)


def is_good(value: Any, time_ns: Any, ref: SeriesRef) -> bool:
    """What the docs say can be sent."""
    if not isinstance(value, int | float) or not isinstance(time_ns, int) or ref.drop:
        return False
    if (isinstance(value, int) and abs(value) >= 2**1024) or not math.isfinite(value):
        return False
    return 0 <= time_ns <= MAX_TIME_NS and (value >= 0 or ref.series.kind not in ("counter", "cumulative"))


@given(st.lists(st.lists(st.one_of(GOOD_ROWS, ANY_ROWS), min_size=1, max_size=30), min_size=1, max_size=5))
def test_what_can_be_sent_comes_out_as_it_went_in(chunks: list[list[tuple[Any, Any, SeriesRef]]]) -> None:
    for ref in REFS:
        ref.index = -1
    resource = {"host.name": "a", "route": "a series' own wins"}
    packer = Packer("shop", resource, "id")
    sequences = []
    for chunk in chunks:
        batches, dropped = unpack(packer, [part for row in chunk for part in row])
        sequences += [batch.sequence for batch in batches]
        good = [row for row in chunk if is_good(*row)]
        expected = Counter(
            Sent(
                ref.series._replace(attributes=tuple(sorted((resource | dict(ref.series.attributes)).items()))),
                time_ns // 1000,
                float(value),
            )
            for value, time_ns, ref in good
        )
        assert Counter(sample for batch in batches for sample in samples_of(batch)) == expected
        assert dropped.total() == len(chunk) - len(good)
        assert dropped[Drop.TOO_MANY_SERIES] == sum(ref is TOO_MANY for _, _, ref in chunk)
        assert all((batch.service, batch.producer_id, batch.stream) == ("shop", "id", "") for batch in batches)
    assert sequences == list(range(len(sequences)))


def test_a_table_is_sent_byte_for_byte_alike_until_it_grows() -> None:
    refs = [SeriesRef(Series(f"m{number}", "gauge")) for number in range(3)]
    packer = Packer("shop", {}, "id")
    encoded = [
        unpack(packer, rows)[0][0].table.encoded
        for rows in ([1, T0, refs[0], 2, T0, refs[1]], [3, T0, refs[1]], [4, T0, refs[2]], [5, T0, refs[0]])
    ]
    assert encoded[0] == encoded[1] != encoded[2] == encoded[3]


def test_many_series_are_spread_over_tables_of_a_thousand() -> None:
    refs = [SeriesRef(Series(f"m{number}", "gauge")) for number in range(2 * PAGE + 1)]
    packer = Packer("shop", {}, "id")
    batches, _ = unpack(packer, [part for value, ref in enumerate(refs) for part in (value, T0, ref)])
    assert [len(batch.table.series) for batch in batches] == [PAGE, PAGE, 1]
    assert [s.value for batch in batches for s in samples_of(batch)] == list(range(2 * PAGE + 1))
    assert all(s.series.metric == f"m{s.value:.0f}" for batch in batches for s in samples_of(batch))
    tables = [batch.table.encoded for batch in batches]
    batches, _ = unpack(packer, [7, T0, refs[PAGE]])
    assert [batch.table.encoded for batch in batches] == [tables[1]]


def test_events_leave_no_trace_in_the_series_table() -> None:
    packer = Packer("shop", {}, "id")
    one = gauge()
    for version in range(5):
        deploy = SeriesRef(Series("deploy", "event", "", (("version", str(version)),)))
        batches, _ = unpack(packer, [1, T0, deploy, 2, T0, one, 1, T0, deploy])
        assert sorted([s.metric for s in batch.table.series] for batch in batches) == [["deploy"], ["g"]]


def test_times_far_apart_go_in_messages_of_their_own() -> None:
    packer = Packer("shop", {}, "id")
    one = gauge()
    times = [0, MAX_TIME_NS, T0, 1000, T0 + 2_000_000_000_000, T0 - 2_000_000_000_000]
    batches, _ = unpack(packer, [part for time_ns in times for part in (1.0, time_ns, one)])
    found = sorted(sample.time_us for batch in batches for sample in samples_of(batch))
    assert found == sorted(time_ns // 1000 for time_ns in times)
    assert len(batches) > 2


def test_dropped_chunks_leave_a_gap_in_the_sequence() -> None:
    packer = Packer("shop", {}, "id")
    one = gauge()
    packer.skip(2)
    assert unpack(packer, [1.0, T0, one])[0][0].sequence == 2
    packer.start_over("other")
    batch = unpack(packer, [1.0, T0, one])[0][0]
    assert (batch.sequence, batch.producer_id) == (0, "other")


def test_a_message_that_is_too_large_is_counted_and_takes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    huge = SeriesRef(Series("huge", "gauge", "", (("text", "x" * 4096),)))
    packer = Packer("shop", {}, "id")
    monkeypatch.setattr("tailrace_schemas.samples.MAX_MESSAGE_BYTES", 4000)
    assert packer.pack([1.0, T0, huge, 2.0, T0, huge]) == ([], Counter({Drop.TOO_LARGE: 2}))
    monkeypatch.undo()
    assert unpack(packer, [1.0, T0, huge])[0][0].sequence == 0
