"""What a collector gives: readings, and what it could not read."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple, Protocol

__all__ = ["NONE", "PROC", "Collector", "Failure", "Reading"]

PROC: Final = Path("/proc") if Path("/proc/stat").exists() else None
"""Where Linux tells about itself. None elsewhere: collectors then ask psutil, and leave out what it does not know."""

NONE: Final[Mapping[str, str]] = {}


class Reading(NamedTuple):
    """One value, at the time of the pass."""

    metric: str
    kind: str
    """gauge, cumulative or distribution."""
    unit: str
    """In UCUM, as OpenTelemetry has them."""
    value: float
    attributes: Mapping[str, str] = NONE


class Failure(NamedTuple):
    """Something that could not be read; the collector goes on."""

    what: str
    error: Exception


class Collector(Protocol):
    """Reads one subject of the host. Keeps what it needs to tell changes; not for two threads at once."""

    name: str

    def collect(self, now_s: float) -> Iterator[Reading | Failure]:
        """One pass. `now_s` is any clock that never goes back; rates are relative to the pass before.

        Raises:
            OSError, psutil.Error, ValueError: the subject cannot be read; what was given before stands.
        """
        ...
