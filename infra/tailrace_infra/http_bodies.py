"""Bodies of HTTP requests and results of queries, both of any size, in bounded memory."""

import json
import re
from collections.abc import Mapping
from io import BufferedIOBase
from typing import Any, Protocol

import pyarrow as pa

from tailrace_infra.chdb_engine import ClickHouseError

__all__ = ["Body", "Client", "Decompressed", "Reply", "take", "take_text", "too_large"]

TEXT_BYTES_MAX = 16 << 20  # of a statement without data; ClickHouse's own max_query_size is 256 KiB unless raised


class Client(Protocol):
    """What a reply needs of the connection it goes to: http.server's request handler, and two of ours."""

    request_version: str
    close_connection: bool
    wfile: BufferedIOBase

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send status and headers."""

    def reply(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        """Send a whole response."""


class Body:
    """The body of a request, never read past its end; `ConnectionError` when it is cut short."""

    closed = False  # for pyarrow, whose source it is

    def __init__(self, source: BufferedIOBase, *, chunked: bool, length: int) -> None:
        self._source = source
        self._chunked = chunked
        self._left = length
        self.ended = not chunked and length == 0

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end."""
        if self._chunked and self._left == 0 and not self.ended:
            self._next_chunk()
        if self.ended or size <= 0:
            return b""
        data = self._source.read(min(size, self._left))
        if not data:
            raise ConnectionError("the body of a request is cut short")
        self._left -= len(data)
        if self._left == 0 and self._chunked:
            self._line()
        elif self._left == 0:
            self.ended = True
        return data

    def close(self) -> None:
        """For pyarrow; the connection goes on."""

    def _next_chunk(self) -> None:
        size = self._line().split(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise ConnectionError("the body of a request is not chunked as it says")
        self._left = int(size, 16)
        if self._left == 0:
            while self._line():
                pass  # trailers
            self.ended = True

    def _line(self) -> bytes:
        line = self._source.readline(1024)
        if not line.endswith(b"\n"):
            raise ConnectionError("the body of a request is cut short")
        return line.strip()


class Decompressed:
    """What is in a compressed body."""

    def __init__(self, body: Body, codec: str) -> None:
        """`codec` is a name of pyarrow's."""
        self._stream = pa.CompressedInputStream(pa.PythonFile(body, "r"), codec)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; b"" at the end; OSError where it is damaged."""
        # pyarrow's `read` never frees its `size` bytes where that fails: 16 MB for each body that is cut short.
        data: bytes = self._stream.read_buffer(size).to_pybytes()
        return data


def take(source: Body | Decompressed, size: int) -> bytes:
    """`size` bytes, fewer only at the end."""
    parts = []
    try:
        while size > 0 and (part := source.read(size)):
            parts.append(part)
            size -= len(part)
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:  # of the decompressor
        raise ClickHouseError(271, "CANNOT_DECOMPRESS", f"Cannot decompress the request's body: {error}") from None
    return b"".join(parts)


def take_text(source: Body | Decompressed) -> bytes:
    """All of it; `ClickHouseError` 229 when it has more than `TEXT_BYTES_MAX`."""
    text = take(source, TEXT_BYTES_MAX + 1)
    if len(text) > TEXT_BYTES_MAX:
        raise too_large(TEXT_BYTES_MAX)
    return text


def too_large(limit: int) -> ClickHouseError:
    """The error for a request over a limit of bytes."""
    message = f"The request has more than {limit} bytes, the limit of the embedded ClickHouse; send smaller batches"
    return ClickHouseError(229, "QUERY_IS_TOO_LARGE", message)


class Reply:
    """A result on its way out: held up to a size, so that an error can still be a status; then sent in chunks.

    A context, because the compressor has to be closed whatever happens: left alone, it writes when it is collected.
    """

    closed = False  # for pyarrow, whose sink it is

    def __init__(
        self,
        handler: Client,
        headers: Mapping[str, str],
        progress: Mapping[str, int],
        held_max: int,
        codec: str | None,
    ) -> None:
        self._handler = handler
        self._headers = headers
        self._progress = progress
        self._held_max = held_max
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._framed = handler.request_version != "HTTP/1.0"
        self._out: Any = pa.CompressedOutputStream(pa.PythonFile(self, "w"), codec) if codec else self
        self._over = False
        self.started = False

    def __enter__(self) -> "Reply":
        return self

    def __exit__(self, *_error: object) -> None:
        self._over = True
        if self._out is not self:
            self._out.close()

    def send(self, piece: memoryview) -> None:
        """Take one piece of the result; does not keep the memory."""
        if piece.nbytes:
            self._out.write(piece)

    def write(self, data: bytes | memoryview) -> int:
        """Take bytes as they go on the wire."""
        if self._over:
            return len(data)
        if not self.started and self._held_bytes + len(data) <= self._held_max:
            self._held.append(bytes(data))
            self._held_bytes += len(data)
        else:
            if not self.started:
                self._start()
            self._chunk(data)
        return len(data)

    def flush(self) -> None:
        """For pyarrow; the handler flushes."""

    def close(self) -> None:
        """For pyarrow; `finish` ends the reply."""

    def finish(self) -> None:
        """The result is complete."""
        if self._out is not self:
            self._out.close()
        if not self.started:
            self._handler.reply(200, b"".join(self._held), self._all_headers())
        elif self._framed:
            self._handler.wfile.write(b"0\r\n\r\n")

    def abort(self, error: str, tag: str) -> None:
        """The result breaks off after its first bytes were sent: ClickHouse's block for that, and no proper end."""
        size = len(error.encode()) + 1
        block = f"\r\n__exception__\r\n{tag}\r\n{error}\n{size} {tag}\r\n__exception__\r\n"
        self.send(memoryview(block.encode()))
        if self._out is not self:
            self._out.close()
        self._handler.close_connection = True

    def _all_headers(self) -> dict[str, str]:
        summary = {name: str(value) for name, value in dict(self._progress).items()}
        return {**self._headers, "X-ClickHouse-Summary": json.dumps(summary)}

    def _start(self) -> None:
        self.started = True
        if not self._framed:
            self._handler.close_connection = True
        self._handler.head(200, self._all_headers() | ({"Transfer-Encoding": "chunked"} if self._framed else {}))
        for data in self._held:
            self._chunk(data)
        self._held.clear()

    def _chunk(self, data: bytes | memoryview) -> None:
        if data:
            self._handler.wfile.write(b"%x\r\n" % len(data) if self._framed else b"")
            self._handler.wfile.write(data)
            self._handler.wfile.write(b"\r\n" if self._framed else b"")
