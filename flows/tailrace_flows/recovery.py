"""The files of a recovery directory: as they were written, or refused."""

import errno
import fcntl
import os
import pickle
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import NamedTuple

from bytewax.recovery import RecoveryConfig, init_db_dir

from tailrace_flows.private_files import check_owned, private_directory
from tailrace_flows.write_ahead_log import is_torn

__all__ = ["DamagedError", "no_space", "prepare_recovery"]

RECOVERY_PARTITIONS = 4
"""SQLite files that the state is spread over; fixed when the directory is made."""
SCHEMA_VERSION = 5
"""Of Bytewax's tables, as it writes it into the files."""
SHARED_MEMORY_BYTES = 1 << 20
"""SQLite wants 32 kB for each file that is opened."""

_ADVICE = (
    "put back a copy of the directory, or start with a new one, and windows.generation raised by 1: what Kafka still "
    "has is then read again (docs/operations.md, The recovery directory)"
)


class DamagedError(Exception):
    """The directory's files are not as they were written. States within them have checksums of their own."""


def prepare_recovery(directory: Path, *, alone: bool = True, shared_out: bool = False) -> RecoveryConfig:
    """The recovery configuration; makes the directory's database at the first start.

    `alone`: no process of the flow runs, so that what the last one left undone is forgotten.
    `shared_out`: other hosts of the cluster may have some of its files; Bytewax says so if nobody has one.

    Cost: reading the files: 0.03 s of CPU time for 40 MB and 0.3 s for 500.

    Raises:
        DamagedError: a file of it is missing, torn, truncated, flipped, or behind the others.
        ExposedError: others can write into the directory. The state is pickled: who writes it runs code as us.
        OSError: the directory cannot be made.
        whatever `no_space` knows: the disk is full.
    """
    check_owned(private_directory(directory))
    with (directory / "making").open("a+") as making:
        fcntl.flock(making, fcntl.LOCK_EX)  # of a cluster's processes, one makes it
        making.seek(0)
        if making.read() or not any(directory.glob("*.sqlite3")):
            making.write("begun")
            making.flush()
            for part in directory.glob("part-*.sqlite3*"):  # of a start that was killed: nothing was ever in it
                part.unlink()
            init_db_dir(directory, RECOVERY_PARTITIONS)
            making.truncate(0)
            os.fsync(making.fileno())  # or after a power cut the state would be taken for one that was being made
        else:
            parts = {number: directory / f"part-{number}.sqlite3" for number in range(RECOVERY_PARTITIONS)}
            gone = [number for number, path in parts.items() if not path.exists()]
            if gone and not shared_out:
                raise DamagedError(f"{parts[gone[0]]} is missing: {_ADVICE}")
            for number in gone:
                del parts[number]
            for path in parts.values() if alone else ():  # all, before SQLite shortens any
                if is_torn(path):
                    raise _damaged(path, "its write-ahead log is torn")
            read = {path: _read_whole(path, number) for number, path in parts.items()}
            if alone:
                _forget_undone(read)
    return RecoveryConfig(str(directory))


class _Progress(NamedTuple):
    """What one of the files says of the flow's runs."""

    runs: list[tuple[int, int, int]]
    """Number, workers, and the epoch that it began with."""
    reached: list[tuple[int, int, int]]
    """Number of the run, worker, and the epoch that it is in."""
    committed: int
    """The last epoch of which the older states were deleted; 0: none."""
    stored: int
    """The newest epoch of a state; 0: there is none."""


def _damaged(path: Path, what: object) -> DamagedError:
    return DamagedError(f"{path} is damaged ({what}): {_ADVICE}")


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """One of the files. What SQLite cannot do with it is damage, if it is nothing that `no_space` knows."""
    try:
        with closing(sqlite3.connect(path, timeout=30)) as file:
            yield file
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if no_space(error, path.parent):
            raise
        raise _damaged(path, error) from error


def _read_whole(path: Path, number: int) -> _Progress:
    """Checks one of the files. Its index has the keys and epochs of the states: a flipped bit in either is seen.

    What the states hold is not looked at: `unseal` does that.
    """
    with _opened(path) as file:
        found = [row[0] for row in file.execute("PRAGMA integrity_check(1)")]
        if found != ["ok"]:
            raise _damaged(path, found[0])
        if file.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            raise _damaged(path, "it is empty, or not Bytewax's")
        if file.execute("SELECT part_index, part_count FROM parts").fetchall() != [(number, RECOVERY_PARTITIONS)]:
            raise _damaged(path, "it says that it is another file")
        progress = _Progress(
            file.execute("SELECT ex_num, worker_count, resume_epoch FROM exs").fetchall(),
            file.execute("SELECT ex_num, worker_index, worker_frontier FROM fronts").fetchall(),
            *file.execute("SELECT coalesce(max(commit_epoch), 0) FROM commits").fetchone(),
            *file.execute("SELECT coalesce(max(snap_epoch), 0) FROM snaps").fetchone(),
        )
        for (state,) in file.execute("SELECT ser_change FROM snaps WHERE ser_change IS NOT NULL"):
            try:
                pickle.loads(state)  # noqa: S301 - as Bytewax will: it pickles the bytes that it is given
            except Exception as error:
                raise _damaged(path, f"a state: {error}") from error
        # On a disk that was full its last one came to the header only, which then looks like a file cut short.
        file.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    # The header's page size and count: pages that are still in a write-ahead log are not in it.
    with path.open("rb") as raw:
        header = raw.read(32)
    pages, page_bytes = int.from_bytes(header[28:32], "big"), int.from_bytes(header[16:18], "big")
    if path.stat().st_size < pages * page_bytes:
        raise _damaged(path, "its end is missing")
    return progress


def _resume_epoch(read: dict[Path, _Progress]) -> int:
    """The epoch that the next run begins with.

    Bytewax (0.21) ends an epoch in this order, each step on the disk before the next one begins: its states in all
    files, with one of each source; that the next one is reached, in one file; in each, that it is committed. Only then
    is the next one read, but for a last, empty one at the ends of all sources. So of files that were written up to any
    one moment none is behind another by more.

    Raises:
        DamagedError: one is.
    """
    runs = [run for progress in read.values() for run in progress.runs]
    number, workers, began = max(runs, default=(-1, 0, 0))
    reached = dict.fromkeys(range(workers), began)
    for progress in read.values():
        reached.update({worker: max(began, epoch) for run, worker, epoch in progress.reached if run == number})
    resume = min(reached.values(), default=0)
    stored = max(progress.stored for progress in read.values())
    if any(run > number for progress in read.values() for run, _, _ in progress.reached):
        raise _damaged(next(iter(read)).parent, "of the last run one file has the progress, but none its begin")
    if stored < resume - 2:
        raise _damaged(next(iter(read)).parent, f"epoch {resume} was reached, but the newest state is of {stored}")
    for path, progress in read.items():
        if (progress.committed and progress.committed >= resume) or progress.committed < resume - 3 >= began:
            raise _damaged(path, f"it is at epoch {progress.committed}, and others are at {resume}")
    return resume


def _forget_undone(read: dict[Path, _Progress]) -> None:
    """Deletes the states of epochs that did not end: the next start does these again.

    Bytewax (0.21) leaves them, and overwrites only those of keys for which the epoch, done again, has something. Of the
    others the start after the next would take what was undone for the state at the epoch's end: a shard was ahead of
    its source then, and counted samples twice.

    Raises:
        DamagedError: the files do not go together.
    """
    resume = _resume_epoch(read)
    for path in read:
        with _opened(path) as file, file:
            file.execute("DELETE FROM snaps WHERE snap_epoch >= ?", [resume])


def no_space(error: BaseException, directory: Path) -> bool:
    """Whether an error, or one that it came from, is that the disk of the recovery directory is full.

    The engine ends in a panic then, of which only the text is left. Where SQLite's shared memory has no room, it says
    no more than that there was an error: what is free decides.
    """
    one: BaseException | None = error
    while one is not None:
        text = str(one)
        if isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "database or disk is full" in text:
            return True
        if "disk I/O error" in text and directory.exists() and disk_usage(directory).free < SHARED_MEMORY_BYTES:
            return True
        one = one.__cause__ or one.__context__
    return False
