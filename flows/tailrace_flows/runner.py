"""Runs a dataflow as an operator wants it run: recovery on, one instance a directory, clean stops.

The engine runs in a thread so that the main thread takes the signals: Bytewax by itself dies at once of SIGTERM, and
ignores SIGINT while it waits for the other processes of its cluster.
"""

import ctypes
import errno
import fcntl
import gc
import logging
import os
import pickle
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from shutil import disk_usage
from typing import Any, NamedTuple

from bytewax._bytewax import cli_main
from bytewax.recovery import RecoveryConfig, init_db_dir
from tailrace_schemas import clock
from tailrace_sinks.kafka import StoppedError

from tailrace_flows import host_clock
from tailrace_flows.private_files import check_owned, open_private, private_directory
from tailrace_flows.settings import Settings
from tailrace_flows.write_ahead_log import is_torn

__all__ = [
    "ClockSetError", "DamagedError", "LockedError", "is_locked", "lock", "no_space", "prepare_recovery", "run",
    "start_deaf",
]  # fmt: skip

log = logging.getLogger(__name__)

RECOVERY_PARTITIONS = 4
"""SQLite files that the state is spread over; fixed when the directory is made."""
SCHEMA_VERSION = 5
"""Of Bytewax's tables, as it writes it into the files."""
SHARED_MEMORY_BYTES = 1 << 20
"""SQLite wants 32 kB for each file that is opened."""
GRACE_S = 3.0
"""After a signal, writes that cannot be made durable have this long before they are left to the next start."""
EXIT_S = 4.5
"""After a signal, the process is gone by then, whatever hangs: recovery makes that safe."""
STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of glibc's malloc.h."""
KEPT_BYTES = 256 * 1024 * 1024
LARGEST_KEPT_BYTES = 32 * 1024 * 1024

_ADVICE = (
    "put back a copy of the directory, or start with a new one, and windows.generation raised by 1: what Kafka still "
    "has is then read again (docs/operations.md, The recovery directory)"
)
_LOCKED = "two flows on one state would count twice. Stop it, or give this one another recovery directory."


class ClockSetError(Exception):
    """The host's clock was set: the process must end at once, as if killed, and start anew."""

    def __init__(self, by_us: int) -> None:
        super().__init__(f"the host's clock was set {by_us / 1e6:+.1f} s: starting anew by it")
        self.ahead = by_us > 0


class LockedError(Exception):
    """Another instance uses the directory."""


class DamagedError(Exception):
    """The directory's files are not as they were written. States within them have checksums of their own."""


@contextmanager
def lock(directory: Path, advice: str = _LOCKED) -> Iterator[int]:
    """Holds the directory for this process; the kernel frees it however the process ends.

    Gives a file descriptor: a child that inherits it holds the directory too, when this process is gone.

    Raises:
        LockedError: another process holds it; names it, and gives the advice.
        OSError: the directory cannot be written.
    """
    private_directory(directory)
    with open_private(directory / "lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise LockedError(f"{directory} is in use by process {holder}: {advice}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield file.fileno()


def is_locked(directory: Path) -> bool:
    """Whether a process holds the directory's `lock` right now."""
    try:
        with (directory / "lock").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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


def keep_freed_memory() -> None:
    """Tells malloc to reuse what numpy's arrays free, up to KEPT_BYTES, rather than give it back and fault it in again.

    That was a third of the time of the windows. Does nothing where malloc is not glibc's.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_ARENA_MAX, 1)  # only the first arena keeps anything


def start_deaf(thread: threading.Thread) -> None:
    """Starts a thread that takes no STOP_SIGNALS: what the main thread blocks, no other may get."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    thread.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def run(
    settings: Settings,
    build: Callable[..., Any],
    recovery_directory: Path,
    *,
    process: int = 0,
    addresses: list[str] | None = None,
    duration_s: float | None = None,
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Runs the dataflow that `build` gives until SIGTERM, SIGINT or `duration_s`, then drains. Main thread only.

    It goes by `host_clock`, as its `begin` was called last.

    The caller holds the `lock` of the recovery directory. With `addresses`, this is one process of a cluster.
    `ready` is called as soon as signals lead to a clean end.

    Raises:
        ClockSetError: the host's clock was set; the engine may hang, and the process must end. SIGTERM and SIGINT are
            blocked then, until this is called again.
        whatever the dataflow raised.
    """
    keep_freed_memory()
    # What lives long here, such as series, has no cycles: looking for some took a twentieth of the time.
    gc.set_threshold(100_000, 20, 50)
    stop = threading.Event()
    stopped_at: list[float] = []

    def begin_stop(number: int, frame: object) -> None:
        # Nothing here that takes a lock: what this interrupts may hold it.
        if not stopped_at:
            stopped_at.append(clock.monotonic_s())

    # Never restored: a second signal while the process ends must not turn a clean end into a killed one.
    for number in STOP_SIGNALS:
        signal.signal(number, begin_stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    ready()
    failure: list[BaseException] = []

    def hurry() -> bool:
        return bool(stopped_at) and clock.monotonic_s() - stopped_at[0] > GRACE_S

    dataflow = build(settings, stop=stop, hurry=hurry, process=process)
    hosts = {address.rpartition(":")[0] for address in addresses or ()}
    recovery = prepare_recovery(recovery_directory, alone=not addresses, shared_out=len(hosts) > 1)

    def engine() -> None:
        try:
            cli_main(
                dataflow,
                process_id=process if addresses else None,
                addresses=addresses,
                epoch_interval=timedelta(seconds=settings.recovery.epoch_s),
                recovery_config=recovery,
            )
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            failure.append(error)

    thread = threading.Thread(target=engine, name="bytewax", daemon=True)
    ends_at = None if duration_s is None else clock.monotonic_s() + duration_s
    start_deaf(thread)
    while thread.is_alive():
        thread.join(0.1)
        now_s = clock.monotonic_s()
        if not stopped_at and (set_by_us := host_clock.set_by_us()):
            # What comes from here on stops the process once it has started anew: it stays blocked through an exec.
            signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            if not stopped_at:
                raise ClockSetError(set_by_us)
        if not stop.is_set() and (stopped_at or (ends_at is not None and now_s >= ends_at)):
            log.info("stopping: %s", "signal" if stopped_at else "the duration is over")
            stop.set()
        if stopped_at and now_s - stopped_at[0] > EXIT_S:
            log.warning("not drained in time; what is not yet durable is done again at the next start")
            logging.shutdown()
            os._exit(0)
    if failure:
        given_up = _given_up(failure[0]) if stopped_at else None
        if given_up is None:
            raise failure[0]
        log.warning("stopped before everything was durable; that is done again at the next start: %s", given_up)


def _given_up(failure: BaseException) -> StoppedError | None:
    """The write that gave up because of `hurry`, if that is why the flow failed: a stop like any other."""
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, StoppedError):
        cause = cause.__cause__ or cause.__context__
    return cause
