"""Small logs that are as nasty as real ones: what Hypothesis feeds to the window flow."""

from math import inf
from typing import NamedTuple

from hypothesis import strategies as st
from tailrace_schemas.samples import KINDS, Series

from tests.flows.machine import START_US, S
from tests.flows.oracle import Batch, Entry, Garbage, Single

# The first two share a shard.
SERVICES = ("cart", "service-64", "checkout")
STREAMS = ("", "backfill-1")

SERIES = (
    *(Series("one", kind, "s") for kind in KINDS),
    Series("two", "distribution", "s", (("http.route", "/a"),)),
    Series("two", "cumulative", "s", (("http.route", "/a"),)),
    Series("two", "gauge", "", (("b", "é\n"), ("c", ""))),
)


class Table(tuple[Series, ...]):
    """A series table that is short to print, by its rows in SERIES."""

    def __repr__(self) -> str:
        return f"Table({[SERIES.index(series) for series in self]})"


TABLES = tuple(Table(SERIES[row] for row in rows) for rows in (range(8), range(7, -1, -1), (2,), (6, 7), (0, 2, 0), ()))

US = 1
ADVANCES_US = (0, 0, 0, US, S, 3 * S, 10 * S - US, 10 * S, 10 * S + US, 25 * S, 60 * S, 130 * S)
LAGS_US = (0, 0, 0, US, S, 2 * S, 9 * S, 10 * S, 29 * S, 61 * S, 70 * S - US, 70 * S, 131 * S)
VALUES = (
    0.0, -0.0, 1.0, 1.0, 2.0, 2.5, 3.0, 7.0, 64.0, 0.1, 5e-324, -5e-324, 2.2250738585072014e-308, 1e300, -1e300,
    -2.5, -64.0, float("nan"), float("inf"),
)  # fmt: skip

ACTIONS = (
    *["batch"] * 9, "repeat", "repeat", "skip", "recover", "unnumbered", "single", "garbage", "early", "end",
)  # fmt: skip


class Draft(NamedTuple):
    """What a log's next entry is made from."""

    action: str
    service: str
    stream: str
    advance_us: int
    table: Table
    samples: list[tuple[int, int, float]]
    """(row, how far behind the stream's clock, value); rows beyond the table are taken modulo its size."""
    early_us: int
    choice: int


def drafts(actions: tuple[str, ...] = ACTIONS) -> st.SearchStrategy[Draft]:
    samples = st.tuples(st.integers(0, 8), st.sampled_from(LAGS_US), st.sampled_from(VALUES))
    return st.builds(
        Draft,
        st.sampled_from(actions),
        st.sampled_from(SERVICES),
        st.sampled_from(STREAMS),
        st.sampled_from(ADVANCES_US),
        st.sampled_from(TABLES),
        st.lists(samples, max_size=5),
        st.sampled_from((0, 50 * S, 100 * S)),
        st.integers(0, 3),
    )


def logs(
    *, partitions: int = 2, max_entries: int = 15, actions: tuple[str, ...] = ACTIONS
) -> st.SearchStrategy[list[list[Entry]]]:
    """Logs of `partitions` partitions; a service is in one of them. `actions` says what may occur in them."""
    return st.lists(drafts(actions), min_size=1, max_size=max_entries).map(lambda found: build_logs(found, partitions))


def build_logs(found: list[Draft], partitions: int) -> list[list[Entry]]:
    """The logs of these drafts."""
    built: list[list[Entry]] = [[] for _ in range(partitions)]
    clocks: dict[tuple[str, str], int] = {}
    sequences: dict[tuple[str, str], int] = {}
    skipped: dict[tuple[str, str], list[int]] = {}
    for draft in found:
        log = built[SERVICES.index(draft.service) % partitions]
        if draft.action == "repeat":
            log += log[draft.choice : draft.choice + 1]
            continue
        if draft.action == "garbage":
            log.append(GARBAGE[draft.choice % len(GARBAGE)])
            continue
        name = (draft.service, draft.stream)
        clock = clocks[name] = clocks.get(name, START_US) + draft.advance_us
        early = draft.action == "early"
        samples = tuple(
            (row if early else row % len(draft.table), clock - lag_us, value)
            for row, lag_us, value in draft.samples
            if early or (draft.table and 0 <= value < inf)
        )
        if draft.action == "single":
            log += [Single(*name, draft.table[row], time_us, value, clock) for row, time_us, value in samples[:1]]
            continue
        sequence = sequences.get(name, 0)
        if draft.action == "skip":
            skipped.setdefault(name, []).append(sequence)
            sequence += 1
        if draft.action == "unnumbered":
            number = -1
        elif draft.action == "recover" and skipped.get(name):
            number = skipped[name].pop(0)
        else:
            number = sequence
            sequences[name] = sequence + 1
        record_us = clock - draft.early_us if early else clock
        log.append(Batch(*name, "p", number, draft.table, samples, record_us, draft.action == "end"))
    return built


GARBAGE = (
    Garbage(None, "malformed", START_US),
    Garbage(b"", "truncated", START_US),
    Garbage(b"not Avro at all", "unknown_schema", START_US),
)
