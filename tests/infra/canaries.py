"""Secrets that are recognised wherever they turn up: as they are, or in Base64, as in a header."""

import mmap
from base64 import b64encode
from collections.abc import Collection
from pathlib import Path

__all__ = ["canary", "showing", "shows_canary"]

_PREFIX = b"canary-"


def canary(name: str) -> str:
    """A secret to give to what is tested."""
    return f"{_PREFIX.decode()}{name}-5d1c"


def _in_base64(before: int) -> bytes:
    """What is the same of the prefix's Base64 whatever follows, and whatever so many bytes are before it."""
    first, end = -(-8 * before // 6), 8 * (before + len(_PREFIX)) // 6
    return b64encode(bytes(before) + _PREFIX)[first:end]


_FORMS = (_PREFIX, *map(_in_base64, range(3)))


def shows_canary(data: "bytes | mmap.mmap") -> bool:
    return any(data.find(form) >= 0 for form in _FORMS)


def showing(directory: Path, skip: Collection[str] = ("secrets",)) -> list[str]:
    """The files below it that show a secret, but for those in directories of these names: there they are given."""
    found = []
    for path in directory.rglob("*"):
        place = path.relative_to(directory)
        if set(skip).isdisjoint(place.parts) and path.is_file() and path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if shows_canary(data):
                    found.append(str(place))
    return found
