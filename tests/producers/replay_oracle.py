"""Replays read two ways: by the code, and by Python's csv, gzip and Decimal for comparison."""

import csv
import gzip
import io
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import NamedTuple

from tailrace_producers.replay.batches import Batcher
from tailrace_producers.replay.model import BadLines, Catalogue, ReplayOptions
from tailrace_producers.replay.readers import read_blocks
from tailrace_producers.replay.source import FileBytes
from tailrace_schemas.samples import Rejection, SampleBatch, Series, decode


class Row(NamedTuple):
    """One sample."""

    service: str
    series: Series
    time_us: int
    value: float


def read_rows(
    path: Path, options: ReplayOptions | None = None, *, block_bytes: int = 4096, max_bad_ratio: float = 0.1
) -> tuple[list[Row], BadLines]:
    """Every sample of a file, and what was left out."""
    catalogue = Catalogue(str(path))
    bad = BadLines(str(path), max_bad_ratio)
    rows = []
    source = FileBytes.of(str(path))
    for block, position in read_blocks(source, options or ReplayOptions(), catalogue, bad, block_bytes=block_bytes):
        assert 0 < position <= source.size
        for time_us, number, value in zip(*(column.tolist() for column in block), strict=True):
            service = catalogue.services[catalogue.service_of[number]]
            rows.append(Row(service, catalogue.series[number], time_us, value))
    bad.finish()
    return rows, bad


def messages_of(path: Path, options: ReplayOptions | None = None, *, block_bytes: int = 4096) -> list[bytes]:
    """The messages of a file, as bytes."""
    catalogue = Catalogue(str(path))
    bad = BadLines(str(path), 1.0)
    batcher = Batcher(catalogue, producer_id="p", stream="s")
    source = FileBytes.of(str(path))
    payloads = []
    for reading in read_blocks(source, options or ReplayOptions(), catalogue, bad, block_bytes=block_bytes):
        payloads += [message.payload for message in batcher.add(reading.block)]
    return payloads + [message.payload for message in batcher.finish()]


def batches_of(payloads: Iterable[bytes]) -> list[SampleBatch]:
    """Decoded messages; none may be rejected."""
    batches = []
    for payload in payloads:
        batch = decode(payload)
        assert not isinstance(batch, Rejection), batch
        batches.append(batch)
    return batches


def rows_of(batches: Iterable[SampleBatch]) -> list[Row]:
    """The samples of batches, by service and in order. Checks sequences, and the end of each stream."""
    by_service: dict[str, list[SampleBatch]] = defaultdict(list)
    for batch in batches:
        by_service[batch.service].append(batch)
    rows = []
    for service, theirs in by_service.items():
        theirs.sort(key=lambda batch: batch.sequence)
        assert [batch.sequence for batch in theirs] == list(range(len(theirs)))
        assert [batch.end_of_stream for batch in theirs] == [False] * (len(theirs) - 1) + [True]
        assert theirs[-1].samples == 0
        for batch in theirs:
            index = struct.unpack(f"<{batch.samples}I", batch.series_index)
            offset = struct.unpack(f"<{batch.samples}i", batch.time_offset_us)
            value = struct.unpack(f"<{batch.samples}d", batch.value)
            for i, o, v in zip(index, offset, value, strict=True):
                rows.append(Row(service, batch.table.series[i], batch.base_time_us + o, v))
    return rows


def by_service(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows of each service, in order: the order between services is not kept on the way."""
    out: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        out[row.service].append(row)
    return dict(out)


def dict_rows(path: Path) -> Iterator[dict[str, str]]:
    """A CSV file, by Python's csv."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    yield from csv.DictReader(io.StringIO(text, newline=""))


def exact_us(text: str) -> int:
    """Microseconds of Unix seconds or RFC 3339, by Decimal and datetime."""
    if "T" in text:
        return round(datetime.fromisoformat(text).timestamp() * 1_000_000)
    return int((Decimal(text) * 1_000_000).to_integral_value(ROUND_HALF_UP))
