"""Messages: the samples as they were, within the limits, and the same however the file was cut into blocks."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_producers.replay import ReplayOptions
from tailrace_producers.replay.batches import MAX_SPAN_US, MAX_TABLE_BYTES, Batcher, Message
from tailrace_producers.replay.model import Block, Catalogue
from tailrace_schemas.samples import MAX_TIME_US, Series

from tests.data import data_file
from tests.producers.replay_oracle import Row, batches_of, by_service, messages_of, read_rows, rows_of

SPANS = ReplayOptions(
    time_column="end_unix_ns", time_unit="ns", value_column="duration_us", metric="rpc.duration", unit="us",
    service_column="pod", attribute_columns=("operation",),
)  # fmt: skip

Sample = tuple[int, int, float]
"""time_us, series number, value."""


def catalogue_of(*owners: str, long: int = 0) -> Catalogue:
    """One series for each of `owners`."""
    catalogue = Catalogue("x")
    for number, owner in enumerate(owners):
        catalogue.number(owner, Series("m", "gauge", "", (("n", f"{number:0{max(1, long)}d}"),)))
    return catalogue


def batched(catalogue: Catalogue, *blocks: list[Sample], flush: bool = False, **limits: int) -> list[Message]:
    batcher = Batcher(catalogue, producer_id="p", stream="s", **limits)
    messages = []
    for block in blocks:
        time_us, series, value = ([row[i] for row in block] for i in range(3))
        columns = Block(np.array(time_us, np.int64), np.array(series, np.int32), np.array(value, np.float64))
        messages += [*batcher.add(columns), *(batcher.flush() if flush else ())]
    messages += batcher.finish()
    owners = [catalogue.services[catalogue.service_of[row[1]]] for block in blocks for row in block]
    assert batcher.services == tuple(dict.fromkeys(owners))
    return messages


def expected(catalogue: Catalogue, samples: list[Sample]) -> dict[str, list[Row]]:
    return by_service(
        Row(catalogue.services[catalogue.service_of[number]], catalogue.series[number], time_us, value)
        for time_us, number, value in samples
    )


samples_of_four = st.lists(
    st.tuples(
        st.one_of(st.integers(0, MAX_TIME_US), st.integers(10**15, 10**15 + 5_000_000)),
        st.integers(0, 8),
        st.floats(allow_nan=False),
    ),
    max_size=60,
)


@given(samples_of_four, st.lists(st.integers(0, 60)), st.integers(1, 12), st.integers(1, 9), st.integers(40, 200))
def test_any_cut_into_blocks_gives_the_same_messages(
    samples: list[Sample], cuts: list[int], max_samples: int, max_series: int, max_bytes: int
) -> None:
    catalogue = catalogue_of("a", "b", "a", "c", "c", "a", "b", "a", "a")
    limits = {"max_samples": max_samples, "max_table_series": max_series, "max_table_bytes": max_bytes}
    whole = batched(catalogue, samples, **limits)
    edges = [0, *sorted(cuts), len(samples)]
    in_blocks = batched(catalogue, *(samples[a:b] for a, b in pairwise(edges)), **limits)
    # Between services the order may differ: which is nothing, since each has its own sequence.
    assert sorted(m.payload for m in in_blocks) == sorted(m.payload for m in whole)
    batches = batches_of(m.payload for m in whole)
    assert by_service(rows_of(batches)) == expected(catalogue, samples)
    assert all(batch.samples <= max_samples and len(batch.table.series) <= max_series for batch in batches)


def test_batches_hold_5000_samples_below_256_kb() -> None:
    catalogue = catalogue_of(*["a"] * 20_000, long=90)
    samples = [(10**15 + i, i % 20_000, float(i)) for i in range(100_000)]
    messages = batched(catalogue, samples)
    assert max(message.samples for message in messages) <= 5000
    assert max(len(message.payload) for message in messages) < 256 * 1024
    assert by_service(rows_of(batches_of(m.payload for m in messages))) == expected(catalogue, samples)


def test_series_that_come_round_again_come_in_the_same_tables() -> None:
    """A reader decodes equal tables once: 20,000 series would cost it 0.2 s each round."""
    catalogue = catalogue_of(*["a"] * 20_000, long=90)
    rounds = [[(10**15 + r, number, 1.0) for number in range(20_000)] for r in range(5)]
    tables = [batch.table.encoded for batch in batches_of(m.payload for m in batched(catalogue, *rounds))]
    full = {table for table in tables if len(table) > MAX_TABLE_BYTES // 2}
    assert len(full) < 20_000 * 120 / MAX_TABLE_BYTES + 1
    assert len(tables) > 4 * len(full)


def test_two_series_of_full_tables_do_not_take_turns() -> None:
    catalogue = catalogue_of(*["a"] * 20)
    samples = [(10**15, number, 1.0) for number in range(20)] + [(10**15, number, 1.0) for number in (0, 10) * 500]
    messages = batched(catalogue, samples, max_table_series=10)
    assert len(messages) < 8


def test_a_series_greater_than_a_table_has_one_of_its_own() -> None:
    catalogue = catalogue_of("a", "a", "a", long=1500)
    messages = batched(catalogue, [(0, 0, 1.0), (0, 1, 1.0), (0, 2, 1.0)], max_table_bytes=1000)
    assert [message.samples for message in messages] == [1, 1, 1, 0]


def test_a_batch_spans_what_its_offsets_can_hold() -> None:
    catalogue = catalogue_of("a")
    times = [MAX_SPAN_US, 0, MAX_SPAN_US + 1, 1, 10 * MAX_SPAN_US, MAX_TIME_US, 0]
    messages = batched(catalogue, [(time_us, 0, 1.0) for time_us in times])
    assert [message.samples for message in messages] == [2, 2, 1, 1, 1, 0]
    assert [row.time_us for row in rows_of(batches_of(m.payload for m in messages))] == times


def test_release_times_never_go_back() -> None:
    catalogue = catalogue_of("a", "b")
    messages = batched(catalogue, [(9, 0, 1.0), (5, 1, 1.0)], [(3, 0, 1.0), (7, 1, 1.0)], flush=True)
    assert [(m.service, m.release_us) for m in messages] == [("a", 9), ("b", 5), ("a", 9), ("b", 7), ("a", 9), ("b", 7)]


def test_a_file_without_samples_has_no_messages(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("time,metric,value\n")
    assert messages_of(tmp_path / "x.csv") == []


FILES = ["latency/nezha_traces/2022-08-22_03_53.csv.gz", "latency/apache_access_first5000.log.gz"]


@pytest.mark.parametrize("name", FILES)
def test_real_files_come_back_whole_and_the_same_each_time(name: str) -> None:
    path = data_file(name)
    options = SPANS if "nezha" in name else ReplayOptions()
    messages = messages_of(path, options)
    assert by_service(rows_of(batches_of(messages))) == by_service(read_rows(path, options)[0])
    assert sorted(messages_of(path, options, block_bytes=1 << 22)) == sorted(messages)
