"""Whether one of SQLite's write-ahead logs still has all that was committed to it.

SQLite reads a log up to its first frame that is not whole, as if the writer had been killed there; what was committed
after a flipped bit is gone in silence. Formats: https://sqlite.org/walformat.html
"""

import sys
from array import array
from pathlib import Path
from typing import Final

__all__ = ["is_torn"]

_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_INDEX_BYTES: Final = 100
"""Of the shared memory: its header, twice, and how many frames are in the database."""

Sums = tuple[int, int]


def is_torn(database: Path) -> bool:
    """Whether the log of a SQLite file has lost something that was committed.

    How far it was committed is in the shared memory beside it, written once that was on the disk (with SQLite's
    default, `synchronous` FULL): it never says too much after a kill or a power cut. Where it is gone, or of another
    log, nothing is known, and the answer is no.

    To be asked before SQLite opens the file, which makes both anew. Cost: 15 ms for a MB of the log, which has 4 MB and
    the largest transaction at most.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        with database.with_name(f"{database.name}-shm").open("rb") as file:
            index = file.read(_INDEX_BYTES)
    except FileNotFoundError:
        return False
    if len(index) < _INDEX_BYTES or index[:48] != index[48:96]:
        return False
    page_bytes, frames, copied = (int.from_bytes(index[a:b], sys.byteorder) for a, b in ((14, 16), (16, 20), (96, 100)))
    if not frames:
        return False
    log = database.with_name(f"{database.name}-wal")
    if not log.exists():
        return frames > copied  # the last to close the database deletes it when all of it was copied there
    with log.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        little = sys.byteorder == "little"
        swap = little if header[3:4] == b"\x83" else not little
        sums = _sums((0, 0), header[:24], swap=swap)
        if len(header) < _HEADER_BYTES or header[24:] != _bytes(sums):
            return frames > copied  # SQLite takes nothing of it
        if header[16:24] != index[32:40]:
            return False
        for _ in range(frames):
            frame = file.read(_FRAME_HEADER_BYTES + page_bytes)
            sums = _sums(_sums(sums, frame[:8], swap=swap), frame[_FRAME_HEADER_BYTES:], swap=swap)
            if len(frame) < _FRAME_HEADER_BYTES + page_bytes or frame[8:24] != header[16:24] + _bytes(sums):
                return True
    return False


def _sums(sums: Sums, data: bytes, *, swap: bool) -> Sums:
    """SQLite's checksums of the data, begun with those of what is before it."""
    words = array("I", data[: len(data) // 8 * 8])
    if swap:
        words.byteswap()
    one, two = sums
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _bytes(sums: Sums) -> bytes:
    return b"".join(one.to_bytes(4, "big") for one in sums)
