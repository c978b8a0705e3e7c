"""Bodies of HTTP requests: what a client that sends rubbish, or goes away, leaves behind."""

import tracemalloc
from collections.abc import Iterator
from io import BufferedReader, BytesIO

import pyarrow as pa
import pytest
from tailrace_infra.chdb_engine import ClickHouseError
from tailrace_infra.http_bodies import TEXT_BYTES_MAX, Body, Decompressed, take_text

CODECS = ("lz4", "zstd", "gzip", "brotli")
TEXT = b"SELECT 1 -- " + bytes(range(32, 127)) * 1000


def read(sent: bytes, codec: str, length: int | None = None) -> bytes:
    source = BufferedReader(BytesIO(sent))  # type: ignore[arg-type]
    return take_text(Decompressed(Body(source, chunked=False, length=len(sent) if length is None else length), codec))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS)
def test_bodies_that_are_cut_short_or_damaged_leave_nothing_in_memory(traced: None, codec: str) -> None:
    good = pa.compress(TEXT, codec=codec, asbytes=True)
    assert read(good, codec) == TEXT
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(5):
        with pytest.raises(ConnectionError, match="cut short"):
            read(good[:-9], codec, len(good))
        with pytest.raises(ClickHouseError, match="Cannot decompress"):
            read(b"rubbish" + good[7:], codec)
    assert tracemalloc.get_traced_memory()[0] - before < TEXT_BYTES_MAX


@pytest.mark.parametrize("codec", CODECS)
def test_a_small_body_that_unpacks_to_very_much_is_refused(codec: str) -> None:
    bomb = pa.compress(bytes(1 << 28), codec=codec, asbytes=True)
    with pytest.raises(ClickHouseError, match=f"more than {TEXT_BYTES_MAX} bytes"):
        read(bomb, codec)
