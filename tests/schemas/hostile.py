"""Messages made to cost a reader as much as they can, and what one of them does cost.

`python -m tests.schemas.hostile PATH` decodes the message in a file and prints a `Cost` as JSON.
"""

import json
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import NamedTuple

from tailrace_schemas.codec import Codec
from tailrace_schemas.samples import MAX_MESSAGE_BYTES, Rejection, SampleBatch, decode

__all__ = ["HOSTILE", "OUTCOMES", "Cost", "varint"]

BATCH = Codec("SampleBatch")
SAMPLE = Codec("Sample")
ROOM = MAX_MESSAGE_BYTES - 200
"""For the part that is repeated."""


class Cost(NamedTuple):
    """What decoding took, the message itself not counted."""

    cpu_s: float
    peak_bytes: int
    outcome: str


def varint(number: int) -> bytes:
    """Zig-zag and base 128, as the specification's "Binary Encoding" has it."""
    left = (number << 1) ^ (number >> 63)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


def text(content: bytes) -> bytes:
    return varint(len(content)) + content


def batch(table: bytes) -> bytes:
    return BATCH.encode(
        {
            "service": "s", "producer_id": "p", "sequence": 0, "stream": "", "end_of_stream": False,
            "base_time_us": 0, "series_table": table, "series_index": b"", "time_offset_us": b"", "value": b"",
        }
    )  # fmt: skip


def table(rows: int, row: Callable[[int], bytes], resource: bytes = b"\x00") -> bytes:
    return batch(resource + varint(rows) + b"".join(map(row, range(rows))) + b"\x00")


def row(attributes: bytes) -> bytes:
    return b"\x02m\x06\x00" + attributes + b"\x00"


def _distinct(per_row: int) -> bytes:
    """As many different attributes as fit, none of them shared."""
    pair = text(b"k") + text(b"000000")
    rows = min(100_000, ROOM // (8 + per_row * len(pair)))

    def one(number: int) -> bytes:
        first = number * per_row
        pairs = (text(bytes([97 + i % 26])) + text(b"%06x" % (first + i)) for i in range(per_row))
        return row(varint(per_row) + b"".join(pairs))

    return table(rows, one)


def _wide_text() -> bytes:
    """Text that takes four bytes a character in memory, for one character of it that needs them."""
    wide = "\U00010400".encode() + b"x" * 4080
    rows = ROOM // (4 * (len(wide) + 12))

    def one(number: int) -> bytes:
        pairs = (text(b"%d" % i) + text(b"%05d" % number + wide[5:] + "\U00010400".encode()) for i in range(4))
        return row(varint(4) + b"".join(pairs))

    return table(rows, one)


HOSTILE: dict[str, Callable[[], bytes]] = {
    # Four bytes that would be a dictionary of four each, or a row that is refused only when all have been read.
    "rows without a metric": lambda: batch(b"\x00" + varint(ROOM // 4) + b"\x00" * (ROOM // 4 * 4) + b"\x00"),
    "as many rows as allowed": lambda: table(100_000, lambda _: row(b"")),
    # A small message that unfolds to twelve million attributes.
    "a resource for many rows": lambda: table(
        100_000, lambda _: row(b""), varint(128) + b"".join(text(b"%d" % i) + b"\x00" for i in range(128)) + b"\x00"
    ),
    "a resource for rows in blocks of their own": lambda: batch(
        varint(128)
        + b"".join(text(b"%d" % i) + b"\x00" for i in range(128))
        + b"\x00"
        + (b"\x02" + row(b"")) * 90_000
        + b"\x00"
    ),
    "one map of equal keys": lambda: table(1, lambda _: row(varint(ROOM // 3) + b"\x02k\x00" * (ROOM // 3))),
    "maps of equal keys": lambda: table(ROOM // 392, lambda _: row(varint(128) + b"\x02k\x00" * 128)),
    "maps in many blocks": lambda: table(ROOM // 520, lambda _: row(b"\x02\x02k\x00" * 128)),
    "maps in many sized blocks": lambda: table(ROOM // 648, lambda _: row(b"\x01\x06\x02k\x00" * 128)),
    "five different attributes a row": lambda: _distinct(5),
    "a hundred different attributes a row": lambda: _distinct(100),
    "wide text": _wide_text,
    "2^60 rows": lambda: batch(b"\x00" + varint(1 << 60) + row(b"") * (ROOM // 6)),
    "-2^63 rows": lambda: batch(b"\x00" + varint(-(1 << 63)) + row(b"") * (ROOM // 6)),
    "2^60 entries": lambda: batch(varint(1 << 60) + b"\x02k\x00" * (ROOM // 3)),
    "2^60 bytes": lambda: BATCH.header + varint(1 << 60) + b"s" * ROOM,
    "an endless integer": lambda: BATCH.header + b"\x80" * ROOM,
    "a sample with an endless map": lambda: (
        SAMPLE.header + b"\x02s\x00\x00\x02m\x06\x00" + varint(ROOM // 4) + b"\x02k\x00" * (ROOM // 4)
    ),
    "a sample of long names": lambda: (
        SAMPLE.header
        + text(b"s" * (ROOM // 2))
        + text(b"t" * (ROOM // 2))
        + b"\x00\x02m\x06\x00\x00"
        + struct.pack("<d", 1)
    ),
    "columns alone": lambda: BATCH.encode(
        {
            "service": "s", "producer_id": "p", "sequence": 0, "stream": "", "end_of_stream": False,
            "base_time_us": 0, "series_table": b"\x00\x00", "series_index": bytes(ROOM // 16 * 4),
            "time_offset_us": bytes(ROOM // 16 * 4), "value": bytes(ROOM // 16 * 8),
        }
    ),
}  # fmt: skip


OUTCOMES = {
    "rows without a metric": "malformed: 2621390 series in one table",
    "as many rows as allowed": "100000 rows, 0 samples",
    "a resource for many rows": "malformed: more than 250000 attributes in one table",
    "a resource for rows in blocks of their own": "malformed: more than 250000 attributes in one table",
    "one map of equal keys": "malformed: 3495186 entries in a map",
    "maps of equal keys": "malformed: more than 250000 attributes in one table",
    "maps in many blocks": "malformed: more than 250000 attributes in one table",
    "maps in many sized blocks": "malformed: more than 250000 attributes in one table",
    "five different attributes a row": "malformed: more than 250000 attributes in one table",
    "a hundred different attributes a row": "malformed: more than 250000 attributes in one table",
    "wide text": "639 rows, 0 samples",
    "2^60 rows": "malformed: 1152921504606846976 series in one table",
    "-2^63 rows": "malformed: 9223372036854775808 series in one table",
    "2^60 entries": "malformed: 1152921504606846976 entries in a map",
    "2^60 bytes": "truncated: service: 1152921504606846976 bytes are announced",
    "an endless integer": "malformed: an integer of more than 64 bits",
    "a sample with an endless map": "malformed: 2621390 entries in a map",
    "a sample of long names": "malformed: service has 5242780 characters",
    "columns alone": "0 rows, 655347 samples",
}
"""What each comes to: that it is stopped where it is meant to be, and not by a slip in its making."""


def status_bytes(field: str) -> int:
    """A size from /proc/self/status."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def main(path: str) -> None:
    message = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM, the greatest VmRSS so far, starts anew
    before = status_bytes("VmRSS")
    start = process_time()
    result = decode(message)
    cost = Cost(process_time() - start, status_bytes("VmHWM") - before, outcome_of(result))
    sys.stdout.write(json.dumps(cost._asdict()) + "\n")


def outcome_of(result: SampleBatch | Rejection) -> str:
    """`reason: detail`, or how many rows and samples there are."""
    if isinstance(result, Rejection):
        return f"{result.reason}: {result.detail}"
    return f"{len(result.table.series)} rows, {result.samples} samples"


if __name__ == "__main__":
    main(sys.argv[1])
