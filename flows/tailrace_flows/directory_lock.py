"""One instance a directory: a lock that the kernel frees however its holder ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailrace_flows.private_files import open_private, private_directory

__all__ = ["LockedError", "is_locked", "lock"]

_LOCKED = "two flows on one state would count twice. Stop it, or give this one another recovery directory."


class LockedError(Exception):
    """Another instance uses the directory."""


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
