"""Writing to ClickHouse beside the flow, and without it: what it does not take is kept on disk until it does.

So that windows are computed and alerts go out while ClickHouse is away. Bytewax commits an epoch when its rows are in
ClickHouse or in such a file. Rows are versioned, so one that is written again after a crash is recognised.
"""

import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Protocol
from zlib import crc32

import pyarrow as pa
from tailrace_schemas.clock import monotonic_s, now_us
from tailrace_sinks.clickhouse import StoppedError, WriteRejectedError

from tailrace_flows.directory_lock import LockedError, lock
from tailrace_flows.private_files import open_private, private_directory

__all__ = ["Behind", "RowWriter", "Spool", "SpoolError"]

log = logging.getLogger(__name__)

PATIENCE_S: Final = 10.0
"""A busy server takes seconds for an insert."""
POLL_S: Final = 0.2
WAITING_WRITES: Final = 2
"""In memory; then the flow waits."""
SAY_EVERY_S: Final = 30.0
CHECKSUM_BYTES: Final = 4
BLOCK_BYTES: Final = 4096
"""File systems allocate so much at a time; a write of an epoch is often less."""


class RowWriter(Protocol):
    """What writes record batches to a ClickHouse table, and returns when they are durable."""

    def write(self, table: str, batches: list[Any]) -> None: ...


class SpoolError(Exception):
    """A file of the spool cannot be read; says which, and what to do."""


class Spool:
    """Writes in files, one each, in the order of their names. For one thread at a time.

    Each process has a directory of its own in `root`, which it holds a lock on; what a dead one left is taken over by
    who starts next. A file is a CRC-32 and an Arrow stream with LZ4.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Touches no disk. `max_bytes`: of this process' files."""
        self.root = root
        self.size = 0
        """Bytes that the files take on the disk."""
        self._max_bytes = max_bytes
        self._added = 0
        self._held = ExitStack()
        self._own: Path | None = None

    def path(self, name: str) -> str:
        """Where a file is."""
        return f"{self._directory()}/{name}"  # of a Path Python 3.12 keeps the name for good, 0.1 kB of each

    def adopt(self) -> list[str]:
        """Takes over what dead processes left; the names of the files, in order."""
        adopted = []
        for directory in sorted(self.root.glob("[!.]*")) if self.root.exists() else []:
            with suppress(LockedError, FileNotFoundError), lock(directory):
                for path in directory.glob("*.arrow"):
                    path.rename(self.path(path.name))
                    self.size += _taken(self.path(path.name))
                    adopted.append(path.name)
                for left in directory.iterdir():  # the lock, and a file that was never whole
                    left.unlink()
                directory.rmdir()
        return sorted(adopted)

    def add(self, table: str, batches: list[Any]) -> str | None:
        """Durable when it returns the file's name; None: no room.

        Raises:
            OSError: the disk does not take it.
        """
        if self.size >= self._max_bytes:
            return None
        self._added += 1
        name = f"{now_us():020d}-{self._added:06d}-{table}.arrow"
        new = self._directory() / "new"
        content = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(content, batches[0].schema, options=options) as stream:
            for batch in batches:
                stream.write_batch(batch)
        arrow = content.getvalue()
        with open_private(new, "wb") as file:
            file.write(crc32(arrow).to_bytes(CHECKSUM_BYTES, "little"))
            file.write(arrow)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, self.path(name))
        try:
            _sync(self._directory())
        except OSError:
            os.unlink(self.path(name))  # it is added again, under another name
            raise
        self.size += _taken(self.path(name))
        return name

    def read(self, name: str) -> list[Any]:
        """The batches of a file.

        Raises:
            SpoolError: it is not as it was written.
        """
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                content = file.read()
        except OSError as error:
            raise SpoolError(f"{path} holds rows for ClickHouse and cannot be read: {error}") from error
        checksum, arrow = content[:CHECKSUM_BYTES], memoryview(content)[CHECKSUM_BYTES:]
        if crc32(arrow).to_bytes(CHECKSUM_BYTES, "little") != checksum:
            raise SpoolError(
                f"{path} holds rows for ClickHouse and is damaged: put it back from a copy, or move it away, and its "
                "rows are lost"
            )
        with pa.ipc.open_stream(arrow) as stream:
            return list(stream)

    def remove(self, name: str) -> None:
        """Its rows are stored."""
        path = self.path(name)
        with suppress(FileNotFoundError):
            self.size -= _taken(path)
            os.unlink(path)

    def _directory(self) -> Path:
        if self._own is None:
            private_directory(self.root)
            name = f"{now_us():020d}-{os.getpid()}"
            # Under its name it is locked from the start: else another process could take it for a dead one's.
            new = self.root / f".{name}"
            try:
                self._held.enter_context(lock(new))
                self._own = new.rename(self.root / name)
            except OSError:  # no room; it is tried again and again
                self._held.close()
                shutil.rmtree(new, ignore_errors=True)
                raise
            _sync(self.root)
        return self._own


def _sync(directory: Path) -> None:
    """Makes the names in it durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _taken(path: str) -> int:
    """What a file takes on the disk."""
    return -(-os.stat(path).st_size // BLOCK_BYTES) * BLOCK_BYTES


def table_of(name: str) -> str:
    """The table that a file's rows belong to."""
    return name.removesuffix(".arrow").split("-", 2)[2]


class _Write:
    """One call of `Behind.write`: its batches, or the spool's file that has them."""

    __slots__ = ("batches", "file", "table")

    def __init__(self, table: str, batches: list[Any] | None, file: str | None = None) -> None:
        self.table = table
        self.batches = batches
        self.file = file


class Behind:
    """Writes in a thread of its own, in order. Of two cores ClickHouse keeps one busy while the flow uses the other.

    Memory: WAITING_WRITES writes and the one that is being made, and 0.2 kB for each that is on disk, where each epoch
    may leave some for days.

    Args:
        stopping: once true, `wait` waits for all that ClickHouse still takes.
        patience_s: ClickHouse is away when it has stored nothing for so long that it was given.
    """

    def __init__(
        self,
        writer: RowWriter,
        spool: Spool,
        *,
        stopping: Callable[[], bool] = lambda: False,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._writer = writer
        self._spool = spool
        self._stopping = stopping
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._writes = deque(_Write(table_of(name), None, name) for name in spool.adopt())
        self._alone: deque[_Write] = deque()
        """Those that are in memory alone: the last ones."""
        if self._writes:
            log.info("%d writes that waited for ClickHouse when a flow ended are made now", len(self._writes))
        self._first_since_s = monotonic_s()
        """When the first of the writes became the first."""
        self._failure: BaseException | None = None
        self._said_s = float("-inf")
        # A daemon: once the flow has failed, nobody waits for ClickHouse.
        threading.Thread(target=self._run, name="clickhouse", daemon=True).start()

    def write(self, table: str, batches: list[Any]) -> None:
        """Queues a write; raises what an earlier one raised."""
        if not batches:
            return
        with self._changed:
            if not self._writes:
                self._first_since_s = monotonic_s()
            self._writes.append(_Write(table, batches))
            self._alone.append(self._writes[-1])
            self._changed.notify_all()
            self._settle(WAITING_WRITES)

    def wait(self) -> None:
        """Returns when all is durable, in ClickHouse or in the spool; raises what a write raised."""
        with self._changed:
            self._settle(0)
            while self._stopping() and self._writes and self._failure is None and not self._is_late():
                self._changed.wait(POLL_S)
            self._settle(0)

    def _settle(self, most: int) -> None:
        """Until at most so many writes are in memory alone."""
        while True:
            # The writer gives up where the process is to end: what it has not stored is kept for the next.
            gave_up = isinstance(self._failure, StoppedError)
            if self._failure is not None and not gave_up:
                raise self._failure
            if len(self._alone) <= most:
                return
            # When ClickHouse is back, the flow does not wait for it until hardly anything is left on disk.
            behind = gave_up or len(self._writes) - len(self._alone) > WAITING_WRITES or self._is_late()
            if behind and self._keep_first():
                continue
            if gave_up:
                raise self._failure  # type: ignore[misc]  # it is a StoppedError
            self._changed.wait(POLL_S)

    def _is_late(self) -> bool:
        return monotonic_s() - self._first_since_s > self._patience_s

    def _keep_first(self) -> bool:
        """Puts the first write that is in memory alone into the spool; false: it has no room."""
        one = self._alone[0]
        assert one.batches is not None
        full = "that is recovery.spool_mb"
        try:
            one.file = self._spool.add(one.table, one.batches)
        except OSError as error:
            full = str(error)
        if one.file is not None:
            one.batches = None
            self._alone.popleft()
        if monotonic_s() - self._said_s > SAY_EVERY_S:
            self._said_s = monotonic_s()
            log.warning(
                "ClickHouse is away or behind: %d writes, %.1f MB, wait for it in %s%s",
                len(self._writes), self._spool.size / 1e6, self._spool.root,
                "" if one.file else f"; {full}, so the flow waits, and alerts with it",
            )  # fmt: skip
        return one.file is not None

    def _run(self) -> None:
        try:
            while True:
                self._make_first()
        except BaseException as error:  # noqa: BLE001 - raised again in the flow's thread
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _make_first(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._writes)
            one = self._writes[0]
            batches = one.batches
        if batches is None:
            assert one.file is not None
            batches = self._spool.read(one.file)
        try:
            self._writer.write(one.table, batches)
        except WriteRejectedError as error:
            if one.file is None:
                raise
            raise WriteRejectedError(
                f"{error} (these rows wait in {self._spool.path(one.file)}: without the file they are lost)"
            ) from error
        with self._changed:
            if one.file is not None:  # perhaps only since the write began
                self._spool.remove(one.file)
            else:
                self._alone.popleft()
            self._writes.popleft()
            self._first_since_s = monotonic_s()
            if one.file is not None and not self._writes:
                log.info("ClickHouse has caught up")
            self._changed.notify_all()
