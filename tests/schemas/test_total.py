"""Decoding is total: whatever the bytes, `decode` gives a batch or a rejection, in bounded memory and time.

And what it accepts, `build_chunks` of the flows can take.
"""

import json
import os
import random
import subprocess
import sys
import warnings
from array import array
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tailrace_flows.core.chunk import Arrival, build_chunks
from tailrace_schemas.codec import Codec
from tailrace_schemas.samples import (
    KINDS,
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_MESSAGE_BYTES,
    MAX_NAME_CHARS,
    MAX_TIME_US,
    MAX_VALUE_CHARS,
    MIN_TIME_US,
    Reason,
    Rejection,
    SampleBatch,
    Series,
    decode,
    encode_sample,
    encode_series_table,
)

from tests.schemas.examples import example, schema_of
from tests.schemas.hostile import HOSTILE, OUTCOMES, Cost, varint
from tests.schemas.strategies import ATTRIBUTES, SERIES, batch_of

BATCH = Codec("SampleBatch")
SAMPLE = Codec("Sample")
HEADERS = (BATCH.header, SAMPLE.header)
NOW_US = 1_767_614_400_000_000
MAX_FUTURE_US = 60_000_000

CORPUS = 100_000
"""Mutated messages, the same ones in each run."""

# -- what is checked of every result -------------------------------------------------------------------


def check(payload: bytes) -> str:
    """Decodes, and builds a chunk of what is accepted. Returns the reason, or "accepted"."""
    result = decode(payload)
    if isinstance(result, Rejection):
        assert isinstance(result.reason, Reason)
        assert len(result.detail) <= 200
        result.detail.encode()
        return result.reason.value
    check_batch(result)
    check_chunk(result)
    return "accepted"


def check_batch(batch: SampleBatch) -> None:
    assert len(batch.series_index) == len(batch.time_offset_us) == 4 * batch.samples
    assert len(batch.value) == 8 * batch.samples
    assert MIN_TIME_US <= batch.base_time_us <= MAX_TIME_US
    assert 1 <= len(batch.service) <= MAX_NAME_CHARS
    for name in (batch.service, batch.stream, batch.producer_id):
        assert len(name.encode()) <= 4 * MAX_NAME_CHARS
    for series in batch.table.series:
        assert 1 <= len(series.metric) <= MAX_NAME_CHARS
        assert series.kind in KINDS
        assert len(series.unit) <= MAX_NAME_CHARS
        keys = [key for key, _ in series.attributes]
        assert len(keys) <= MAX_ATTRIBUTES
        assert keys == sorted(set(keys))
        assert sum(len(text.encode()) for pair in series.attributes for text in pair) <= MAX_ATTRIBUTE_BYTES
        for key, value in series.attributes:
            assert 1 <= len(key) <= MAX_NAME_CHARS
            assert len(value) <= MAX_VALUE_CHARS
            f"{series.metric}{series.unit}{key}{value}".encode()


def check_chunk(batch: SampleBatch, record_time_us: int = NOW_US) -> None:
    (chunk,), refusals = build_chunks(
        0, [(False, [Arrival(0, record_time_us, batch, b"")])], max_future_us=MAX_FUTURE_US
    )
    assert chunk.value.size + sum(refusal.samples for refusal in refusals) == batch.samples
    assert chunk.series_index.size == chunk.time_us.size == chunk.value.size == chunk.lengths.sum()
    if chunk.value.size:
        assert np.isfinite(chunk.value).all()
        assert chunk.series_index.max() < len(batch.table.series)
        assert chunk.time_us.min() >= MIN_TIME_US
        assert chunk.time_us.max() <= min(MAX_TIME_US, record_time_us + MAX_FUTURE_US)
        counts = np.array([series.kind in ("counter", "cumulative") for series in batch.table.series])
        assert (chunk.value[counts[chunk.series_index]] >= 0).all()


# -- a corpus of mutated messages ----------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Valid messages: what is mutated."""
    series = [
        Series("http.server.request.duration", "distribution", "s", (("http.route", "/cart/{id}"), ("method", "GET"))),
        Series("orders", "counter"),
        Series("bytes", "cumulative", "By", (("device", "eth0"),)),
    ]
    samples = [(0, 0, 0.125), (1, 1250, 3.0), (2, -500, 1e6), (0, 999, float("inf")), (1, 5, -1.0), (9, 0, 1.0)]
    return [
        bytes.fromhex(example("SampleBatch")["hex"]),
        bytes.fromhex(example("Sample")["hex"]),
        batch_of(encode_series_table(series, {"host.name": "a"}), samples),
        batch_of(encode_series_table([])),
        batch_of(encode_series_table(series[:1]), samples[:1], base_time_us=MAX_TIME_US, end_of_stream=True),
        encode_sample("s", series[1], 0, float("nan")),
    ]


PIECES = [
    varint(number)
    for number in (-(1 << 63), -(1 << 31), -129, -1, 0, 1, 2, 64, 127, 129, 1 << 31, 1 << 60, (1 << 63) - 1)
] + [
    b"\x80" * 11,  # an integer without an end
    b"\xff" * 9 + b"\x02",  # of 65 bits
    b"\x80\x00",  # zero, in two bytes
    b"\xed\xa0\x80",  # a surrogate
    b"\xc0\x80",  # NUL, as Java writes it
    b"\x00",
    b"\x08\xf0\x90\x90\x80",  # a string of a character beyond 16 bits
    b"\x02\x02\x02\x02",  # blocks within blocks
    b"\x7f" * 8,
    b"\x00\x00\x00\x00\x00\x00\xf8\x7f",  # NaN
    b"\x00\x00\x00\x00\x00\x00\xf0\xff",  # -infinity
]


def mutate(chance: random.Random, message: bytes, others: list[bytes]) -> bytes:
    """One to four damages; the header mostly stays, or nothing behind it would ever be read."""
    out = bytearray(message)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        first = 0 if chance.random() < 0.02 else min(10, len(out))
        at = chance.randint(first, len(out))
        match chance.randrange(8):
            case 0 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 1 if at < len(out):
                out[at] = chance.randrange(256)
            case 2:
                del out[at:]
            case 3:
                del out[at : at + chance.randint(1, 8)]
            case 4:
                out[at:at] = chance.randbytes(chance.randint(1, 8))
            case 5:
                out[at:at] = chance.choice(PIECES)
            case 6:
                piece = chance.choice(PIECES)
                out[at : at + len(piece)] = piece
            case _:
                other = chance.choice(others)
                out[at : at + chance.randint(0, 8)] = other[chance.randrange(len(other)) :]
    return bytes(out)


def corpus(size: int) -> Iterator[bytes]:
    chance = random.Random(20260105)
    messages = seeds()
    for _ in range(size):
        yield mutate(chance, chance.choice(messages), messages)


def test_the_seeds_of_the_corpus_are_accepted() -> None:
    assert {check(message) for message in seeds()} == {"accepted"}


def test_mutated_messages_give_batches_or_rejections() -> None:
    outcomes = Counter(check(message) for message in corpus(CORPUS))
    # The corpus is worth its name only while it comes to every end, and past the header.
    for reason in ("accepted", Reason.TRUNCATED, Reason.MALFORMED, Reason.UNKNOWN_SCHEMA, Reason.TIME_OUT_OF_RANGE):
        assert outcomes[reason] >= CORPUS // 1000, outcomes
    assert outcomes["accepted"] >= CORPUS // 10, outcomes


def test_what_is_accepted_says_the_same_to_fastavro() -> None:
    """The stricter reader accepts less, and nothing that the other reads differently."""
    batches = 0
    for message in corpus(CORPUS // 5):
        result = decode(message)
        if isinstance(result, Rejection):
            continue
        batches += 1
        source = BytesIO(message[10:])
        name = "SampleBatch" if message.startswith(BATCH.header) else "Sample"
        datum = fastavro.schemaless_reader(source, schema_of(name), None)
        assert (datum["service"], datum["stream"]) == (result.service, result.stream)
        if name == "Sample":
            assert datum["time_us"] == result.base_time_us
            assert array("d", [datum["value"]]).tobytes() == result.value
            table = {"resource": {}, "series": [datum]}
        else:
            for field in ("producer_id", "sequence", "end_of_stream", "base_time_us", "series_index", "time_offset_us"):
                assert datum[field] == getattr(result, field)
            assert datum["value"] == result.value
            table = fastavro.schemaless_reader(BytesIO(datum["series_table"]), schema_of("SeriesTable"), None)
        assert [
            Series(
                row["metric"], row["kind"], row["unit"], tuple(sorted((table["resource"] | row["attributes"]).items()))
            )
            for row in table["series"]
        ] == list(result.table.series)
    assert batches > 1000


# -- Hypothesis ----------------------------------------------------------------------------------------

INTERESTING = st.sampled_from(PIECES)
TEXTS = st.text(max_size=8) | st.sampled_from(["\x00", "\U00010400", "e\u0301", "\u202e"])


@given(st.binary(max_size=300))
def test_any_bytes(payload: bytes) -> None:
    check(payload)


@given(st.sampled_from(HEADERS), st.lists(st.binary(max_size=12) | INTERESTING, max_size=30))
def test_a_header_and_any_bytes(header: bytes, pieces: list[bytes]) -> None:
    check(header + b"".join(pieces))


@given(st.lists(st.binary(max_size=12) | INTERESTING | st.just(b"\x02m\x06\x00\x00"), max_size=30))
def test_a_valid_message_around_any_series_table(pieces: list[bytes]) -> None:
    check(batch_of(b"".join(pieces), [(0, 0, 1.0)]))


@given(st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_mutated_message(seed: int, chance: random.Random) -> None:
    messages = seeds()
    check(mutate(chance, messages[seed], messages))


VALUES = st.floats(width=64) | st.sampled_from([float("nan"), float("inf"), -float("inf"), 1.7e308, -0.0, 5e-324])
OFFSETS = st.integers(-(1 << 31), (1 << 31) - 1) | st.sampled_from([-(1 << 31), -1, 0, (1 << 31) - 1])


@given(
    st.lists(SERIES, max_size=4),
    ATTRIBUTES,
    st.lists(st.tuples(st.integers(0, 5) | st.just((1 << 32) - 1), OFFSETS, VALUES), max_size=30),
    st.sampled_from([MIN_TIME_US, 1, NOW_US - 1, NOW_US, NOW_US + MAX_FUTURE_US, MAX_TIME_US - 1, MAX_TIME_US]),
    st.integers(-(1 << 63), (1 << 63) - 1).map(lambda ms: ms * 1000) | st.just(NOW_US),
)
def test_a_chunk_of_whatever_values(
    series: list[Series],
    resource: dict[str, str],
    samples: list[tuple[int, int, float]],
    base_time_us: int,
    record_time_us: int,
) -> None:
    """Kafka's record timestamps are 64 bits of milliseconds, set by whoever wrote the record."""
    batch = decode(batch_of(encode_series_table(series, resource), samples, base_time_us=base_time_us))
    assert isinstance(batch, SampleBatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy would warn of sums that overflow
        check_chunk(batch, record_time_us)


# -- memory and time -----------------------------------------------------------------------------------

MAX_PEAK_BYTES = 10 * MAX_MESSAGE_BYTES
"""Besides the message itself."""
MAX_CPU_S = 1.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_message_costs_little(name: str, tmp_path: Path) -> None:
    message = HOSTILE[name]()
    assert len(message) <= MAX_MESSAGE_BYTES
    path = tmp_path / "message"
    path.write_bytes(message)
    # Measured in a process of its own, and without the tracing that coverage would add to it.
    unmeasured = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.schemas.hostile", str(path)],
        cwd=Path(__file__).parents[2],
        env=unmeasured,
        stdout=subprocess.PIPE,
        check=True,
    )
    cost = Cost(**json.loads(done.stdout))
    assert cost.outcome.startswith(OUTCOMES[name])
    assert cost.peak_bytes <= MAX_PEAK_BYTES, cost
    assert cost.cpu_s <= MAX_CPU_S, cost
