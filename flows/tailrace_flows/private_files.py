"""Directories and files for our user alone, whatever the umask says."""

import os
import stat
from pathlib import Path
from typing import IO, Any

__all__ = ["ExposedError", "check_owned", "open_private", "private_directory", "private_umask", "write_private"]


class ExposedError(Exception):
    """Others can write where only we may."""


def private_umask() -> None:
    """All that this process makes from now on is its user's alone, what libraries make too."""
    os.umask(0o077)


def private_directory(path: Path) -> Path:
    """Makes the directory, and those missing above it, with mode 0700; one that exists stays as it is.

    Raises:
        OSError: it cannot be made.
    """
    missing = [one for one in (path, *path.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(mode=0o700, exist_ok=True)
    if not path.is_dir():
        path.mkdir()  # says what is in the way
    return path


def check_owned(path: Path) -> None:
    """Refuses a directory whose contents run as code (pickles) and into which others can write.

    Raises:
        ExposedError: names it, and what to do.
        OSError: it is not there.
    """
    found = path.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise ExposedError(f"{path} belongs to user {found.st_uid}: whoever owns the state decides what this runs")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        mode = stat.S_IMODE(found.st_mode)
        raise ExposedError(
            f"others can write into {path} (mode {mode:04o}), and so decide what this runs: chmod go-w {path}"
        )


def open_private(path: Path, mode: str) -> IO[Any]:
    """`open`, text in UTF-8; a file that is made has mode 0600."""
    encoding = None if "b" in mode else "utf-8"
    return open(path, mode, encoding=encoding, opener=lambda name, flags: os.open(name, flags, 0o600))


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600: whoever reads it finds the old or the new contents, whole."""
    beside = path.with_name(path.name + ".new")
    beside.unlink(missing_ok=True)
    with open_private(beside, "x") as file:
        file.write(text)
    beside.replace(path)
