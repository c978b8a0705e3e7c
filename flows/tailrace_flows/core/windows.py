"""Event-time windows: half-open [start, end), aligned to the Unix epoch plus an offset.

Source: Flink's TumblingEventTimeWindows and SlidingEventTimeWindows; starts are floored for negative times too.
"""

__all__ = ["sliding", "tumbling"]


def tumbling(time: int, size: int, offset: int = 0) -> tuple[int, int]:
    """The window of `size` that holds `time`; all in one unit.

    Raises:
        ValueError: the size is not positive.
    """
    if size <= 0:
        raise ValueError(f"a window of {size}: it must be positive")
    start = time - (time - offset) % size
    return start, start + size


def sliding(time: int, size: int, slide: int, offset: int = 0) -> list[tuple[int, int]]:
    """The windows of `size`, one every `slide`, that hold `time`, latest first; all in one unit.

    Raises:
        ValueError: a size or slide is not positive.
    """
    if size <= 0 or slide <= 0:
        raise ValueError(f"a window of {size} every {slide}: both must be positive")
    last = time - (time - offset) % slide
    return [(start, start + size) for start in range(last, time - size, -slide)]
