"""A file's bytes: its identity, decompressed, in blocks of whole lines."""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from tailrace_producers.replay.model import I8, Mask, ReplayError

__all__ = ["FileBytes", "LineBlock", "line_blocks", "reading", "stem_of"]

BLOCK_BYTES: Final = 4 * 1024 * 1024
MAX_LINE_BYTES: Final = 64 * 1024 * 1024

_CODECS: Final = ((b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bz2"))
_EXTENSIONS: Final = {".gz", ".zst", ".zstd", ".bz2", ".csv", ".parquet", ".pq", ".log", ".txt"}


def stem_of(path: str) -> str:
    """The file's name without the extensions known here: the default service."""
    name = Path(path).name
    while Path(name).suffix.lower() in _EXTENSIONS:
        name = Path(name).stem
    return name or "replay"


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Errors of reading become a ReplayError that names the file."""
    try:
        yield
    except OSError as error:  # also Arrow's, on damaged compressed data
        raise ReplayError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:  # of a name in a damaged Parquet file
        raise ReplayError(f"{path} cannot be read: a name in it is no UTF-8") from error
    except pa.ArrowInvalid as error:
        raise ReplayError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class FileBytes:
    """A file as it was when it was hashed: what is appended later is not read, so equal hashes mean equal data."""

    path: str
    size: int
    digest: bytes
    codec: str
    """Empty: not compressed."""

    @classmethod
    def of(cls, path: str) -> "FileBytes":
        """Reads the whole file once: about 1 s a GB.

        Raises:
            ReplayError: it cannot be read.
        """
        digest = hashlib.sha256()
        size = 0
        codec = ""
        with reading(path):
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise ReplayError(f"{path} is not a regular file: it has to be read twice")
        with reading(path), open(path, "rb") as raw:
            while part := raw.read(1 << 20):
                if size == 0:
                    codec = next((name for magic, name in _CODECS if part.startswith(magic)), "")
                digest.update(part)
                size += len(part)
        return cls(path, size, digest.digest(), codec)

    def reader(self, raw: IO[bytes]) -> Callable[[int], bytes]:
        """A function that reads up to n decompressed bytes of `raw`, this file newly opened; b"" at its end."""
        if self.codec:
            stream: Any = pa.CompressedInputStream(pa.PythonFile(raw, "r"), self.codec)
            read: Callable[[int], bytes] = stream.read
            return read
        return lambda n: raw.read(min(n, self.size - raw.tell()))


class LineBlock(NamedTuple):
    """Whole lines."""

    data: bytes
    ends: I8
    """Where the line ends are."""
    first_line: int
    """Number of the first, from 1."""
    position: int
    """Bytes of the (compressed) file read so far."""

    @classmethod
    def of(cls, data: bytes, first_line: int, position: int) -> "LineBlock":
        """Finds the line ends: far faster than bytes.count."""
        return cls(data, np.flatnonzero(np.frombuffer(data, np.uint8) == 10), first_line, position)

    @property
    def starts(self) -> I8:
        """Where each line begins."""
        return np.concatenate(([0], self.ends + 1))[:-1]

    @property
    def filled(self) -> Mask:
        """Which lines are not empty."""
        lengths = self.ends - self.starts
        filled = lengths > 0
        ones = np.flatnonzero(lengths == 1)
        filled[ones] = np.frombuffer(self.data, np.uint8)[self.starts[ones]] != 13
        return filled


def line_blocks(source: FileBytes, *, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """The file in blocks of whole lines, every line with its end. Memory: two blocks, or one longest line.

    Raises:
        ReplayError: the file is damaged, a line exceeds 64 MB, or the file was cut since it was hashed.
    """
    line = 1
    rest = b""
    with reading(source.path), open(source.path, "rb") as raw:
        read = source.reader(raw)
        while part := read(block_bytes):
            end = part.rfind(b"\n") + 1
            if not end:
                rest += part
                if len(rest) > MAX_LINE_BYTES:
                    raise ReplayError(f"{source.path}: line {line} exceeds {MAX_LINE_BYTES >> 20} MB: is it text?")
                continue
            data = rest + part[:end]
            rest = part[end:]
            block = LineBlock.of(data, line, raw.tell())
            yield block
            line += len(block.ends)
        if raw.tell() < source.size:
            raise ReplayError(
                f"{source.path} was cut to {raw.tell():,} bytes after line {line - 1:,} while it was read, from "
                f"{source.size:,}: replay a copy of it that nobody changes"
            )
    if rest:
        yield LineBlock.of(rest + b"\n", line, source.size)
