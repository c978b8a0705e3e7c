"""The series that the instruments of one `Telemetry` record to."""

from collections.abc import Mapping
from typing import Final

from tailrace_schemas.samples import (
    MAX_ATTRIBUTE_BYTES,
    MAX_ATTRIBUTES,
    MAX_NAME_CHARS,
    MAX_VALUE_CHARS,
    Series,
    attribute_bytes,
)

from tailrace_producers.buffer import Buffer, Drop, SeriesRef
from tailrace_producers.observers import Observers

__all__ = ["MAX_SERIES", "Attributes", "Registry", "canonical", "checked_name"]

Attributes = Mapping[str, object]

MAX_SERIES: Final = 50_000
"""Series of one `Telemetry`, about 1 kB each; samples of further ones are counted as dropped."""


class Registry:
    """What instruments share: where samples go, which series there are, what is observed."""

    def __init__(self, buffer: Buffer, observers: Observers, resource: Mapping[str, str]) -> None:
        self.buffer = buffer
        self.observers = observers
        self._max_attributes = MAX_ATTRIBUTES - len(resource)
        self._max_bytes = MAX_ATTRIBUTE_BYTES - attribute_bytes(resource.items())
        self._refs: dict[Series, SeriesRef] = {}
        nothing = Series("", "gauge")
        self.invalid: Final = SeriesRef(nothing, Drop.INVALID)
        """Of samples whose attributes no series can have."""
        self._too_many = SeriesRef(nothing, Drop.TOO_MANY_SERIES)

    def ref(self, kind: str, name: str, unit: str, attributes: Attributes) -> SeriesRef:
        """The series' one ref. Raises ValueError, and whatever a value's str() raises."""
        series = Series(name, kind, unit, canonical(attributes, self._max_attributes, self._max_bytes))
        if kind == "event":
            return SeriesRef(series)
        ref = self._refs.get(series)
        if ref is None:
            if len(self._refs) >= MAX_SERIES:
                return self._too_many
            ref = self._refs.setdefault(series, SeriesRef(series))  # of two threads at once, one wins
        return ref


def canonical(
    attributes: Attributes, most: int = MAX_ATTRIBUTES, most_bytes: int = MAX_ATTRIBUTE_BYTES
) -> tuple[tuple[str, str], ...]:
    """Attributes as a series has them: text, sorted by key. Long values are cut, None is left out.

    Raises:
        ValueError: a key that cannot be sent, or attributes that are too many or too long; also whatever a
            value's str() raises.
    """
    pairs = sorted(
        (checked_name(key, "an attribute's key"), _text(value))
        for key, value in attributes.items()
        if value is not None
    )
    if len(pairs) > most:
        raise ValueError(f"{len(pairs)} attributes; at most {most} fit beside the resource's")
    if (size := attribute_bytes(pairs)) > most_bytes:
        raise ValueError(f"attributes of {size} bytes; at most {most_bytes} fit beside the resource's")
    return tuple(pairs)


def checked_name(text: str, what: str, *, required: bool = True) -> str:
    """Raises ValueError: no text, or of a length that cannot be sent."""
    if not isinstance(text, str) or (required and not text) or len(text) > MAX_NAME_CHARS:
        raise ValueError(f"{what} must be text of {1 if required else 0} to {MAX_NAME_CHARS} characters")
    return _text(text)


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not text.isascii():  # half a surrogate pair cannot be encoded
        text = text.encode("utf-8", "replace").decode()
    return text[:MAX_VALUE_CHARS]
