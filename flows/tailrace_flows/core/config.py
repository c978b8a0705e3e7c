"""What the window flow may be told. Frozen, validated, with the defaults of docs/architecture.md."""

from dataclasses import dataclass
from typing import Final

__all__ = ["DEFAULT_SCALE", "MAX_GENERATION", "MAX_SCALE", "WindowConfig"]

DEFAULT_SCALE: Final = 6
MAX_SCALE: Final = 8
"""Of sketches; here, so that settings are read without numpy: the host agent does."""
MAX_GENERATION: Final = 45
"""The version of a day's row is the sum of those of its 1,440 minutes, each with the generation in its upper 16 of 64
bits. Beyond, sums begin anew with 0, and what comes late loses."""
_MAX_TIME_S: Final = 366 * 86_400


@dataclass(frozen=True)
class WindowConfig:
    """Times in seconds.

    Raises:
        ValueError: values that contradict each other, naming them.
    """

    window_seconds: int = 10
    rollup_seconds: int = 60
    disorder_s: float = 2.0
    """The watermark stays this far behind the greatest event time."""
    lateness_s: float = 60.0
    """How long after its end a window still takes late samples."""
    max_future_s: float = 60.0
    """How far a sample may lie ahead of its Kafka record."""
    idle_s: float = 10.0
    """After this silence, in a partition read to its end, wall time closes a service's windows."""
    scale: int = DEFAULT_SCALE
    max_series: int = 200_000
    """Series of one service and stream; samples of further ones are counted and left out. One counts as
    one more for each 1,024 characters of its names and attributes, which are in every row."""
    max_shard_series: int = 250_000
    """Series of all services and streams of one shard, of 64; likewise. A stream counts as one at least."""
    generation: int = 0
    """Raised by an operator to rebuild rows: every row of a higher generation beats those of a lower."""

    def __post_init__(self) -> None:
        if self.window_seconds <= 0:
            raise ValueError(f"window_seconds {self.window_seconds} is not positive")
        if self.rollup_seconds <= 0 or self.rollup_seconds % self.window_seconds:
            raise ValueError(
                f"rollup_seconds {self.rollup_seconds} is no multiple of window_seconds {self.window_seconds}"
            )
        for name in ("disorder_s", "lateness_s", "max_future_s"):
            if not 0 <= getattr(self, name) <= _MAX_TIME_S:
                raise ValueError(f"{name} {getattr(self, name)} is not a time of 0 s to 366 days")
        if not 0 < self.idle_s <= _MAX_TIME_S:
            raise ValueError(f"idle_s {self.idle_s} is not a time of more than 0 s, and 366 days at most")
        if self.max_future_s > self.lateness_s:
            raise ValueError(
                f"max_future_s {self.max_future_s} exceeds lateness_s {self.lateness_s}: "
                "one clock running ahead would make everybody else's samples late"
            )
        if not 0 <= self.scale <= MAX_SCALE:
            raise ValueError(f"scale {self.scale} is not in 0..{MAX_SCALE}")
        for name in ("max_series", "max_shard_series"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} is not positive")
        if not 0 <= self.generation <= MAX_GENERATION:
            raise ValueError(f"generation {self.generation} is not in 0..{MAX_GENERATION}")

    @property
    def window_us(self) -> int:
        return self.window_seconds * 1_000_000

    @property
    def rollup_us(self) -> int:
        return self.rollup_seconds * 1_000_000

    @property
    def disorder_us(self) -> int:
        return round(self.disorder_s * 1e6)

    @property
    def lateness_us(self) -> int:
        return round(self.lateness_s * 1e6)

    @property
    def max_future_us(self) -> int:
        return round(self.max_future_s * 1e6)

    @property
    def idle_us(self) -> int:
        return round(self.idle_s * 1e6)

    def retired_after_us(self, time_us: int) -> int:
        """The watermark at which all windows that hold `time_us`, its minute's included, take nothing any more."""
        return time_us - time_us % self.rollup_us + self.rollup_us + self.lateness_us
