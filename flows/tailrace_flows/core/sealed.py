"""States for recovery: pickled, with their format and a checksum, so that none is misread.

SQLite, in which Bytewax keeps them, does not notice a flipped bit; in a pickled array it would be a wrong number.
"""

import pickle
from typing import Any, Final
from zlib import crc32

__all__ = ["StateError", "foreign", "seal", "unseal"]

_MAGIC: Final = b"TRs1"
_START: Final = 1
"""Of the checksum: that of nothing at all must not be 0."""
_ADVICE: Final = (
    "put back a copy of the recovery directory, or start with a new one, and windows.generation raised by 1: windows "
    "that Kafka still has the samples of are then rebuilt (docs/operations.md, The recovery directory)"
)


class StateError(ValueError):
    """A state that cannot be read; says why, and what to do."""


def seal(version: int, contents: Any) -> bytes:
    """The state of a machine whose format is `version`. Cost: pickling, and 0.3 ms a MB."""
    body = pickle.dumps((version, contents), protocol=5)
    return _MAGIC + crc32(body, _START).to_bytes(4, "little") + body


def unseal(version: int, state: bytes) -> Any:
    """The contents of a state.

    Raises:
        StateError: it is damaged, or was written by another version.
    """
    if state[:1] == b"\x80":  # a plain pickle, as it was before there was a checksum
        raise foreign(0, version)
    body = state[8:]
    if state[:4] != _MAGIC or crc32(body, _START) != int.from_bytes(state[4:8], "little"):
        raise StateError(f"the recovery state is damaged: {_ADVICE}")
    found, contents = pickle.loads(body)  # noqa: S301 - our own file
    if found != version:
        raise foreign(found, version)
    return contents


def foreign(found: object, version: int, what: str = "the recovery state") -> StateError:
    """The error for a state of another format."""
    return StateError(
        f"{what} has format {found}, this Tailrace reads {version}: "
        "drain with the version that wrote it, or start with a new recovery directory, and windows.generation raised "
        "by 1 (docs/operations.md, The recovery directory)"
    )
