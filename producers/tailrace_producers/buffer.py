"""The samples of one `Telemetry`, from the call that recorded them to the broker. Pure: no clock, no Kafka.

Every sample recorded is at any moment held, delivered, or counted as dropped for one reason:
`recorded == held + delivered + sum(dropped)`.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from threading import Lock
from typing import Any, Final, NamedTuple

from tailrace_schemas.samples import Series

__all__ = ["CHUNK_SAMPLES", "Buffer", "Chunk", "Drop", "SeriesRef", "Stats"]

CHUNK_SAMPLES: Final = 4096
"""Samples that are moved out of the callers' way at once; also the most that one message carries."""
SAMPLE_BYTES: Final = 100
"""What a sample takes in memory, about."""
EVENT_CHUNK_BYTES: Final = 2_000_000
"""A chunk is also full when its events take so much: all that short ones do, and far less than a message may have."""


class Drop(StrEnum):
    """Why samples were dropped."""

    INVALID = "invalid"
    """Not a finite number, a negative count, a time out of range, or attributes that no series can have."""
    TOO_MANY_SERIES = "too_many_series"
    TOO_LARGE = "too_large"
    """Their message would exceed 10 MB: attributes of enormous length."""
    QUEUE_FULL = "queue_full"
    """The oldest, when `max_samples` were in memory, or as much of events."""
    UNDELIVERED = "undelivered"
    """The broker refused their message, or did not confirm it in time: it may still have arrived."""
    SHUTDOWN = "shutdown"
    """Not confirmed when `close` ran out of time: they may still arrive."""
    CLOSED = "closed"
    """Recorded after `close`."""
    ERROR = "error"
    """A defect of this library, told in the log."""


class SeriesRef:
    """One series, by identity: what a sample in memory points to. Equal series of a `Telemetry` share one."""

    __slots__ = ("drop", "index", "series")

    def __init__(self, series: Series, drop: Drop | None = None) -> None:
        self.series = series
        self.drop = drop
        """Set where samples of this series cannot be sent."""
        self.index = -1
        """Its number, given by the packer at its first sample."""


class Stats(NamedTuple):
    """What became of all samples recorded so far: `recorded == held + delivered + sum(dropped.values())`."""

    recorded: int
    delivered: int
    """Confirmed by the broker."""
    held: int
    """In memory: not yet sent, or sent and not yet confirmed."""
    dropped: Mapping[str, int]
    """By reason, see `Drop`; reasons that did not occur are absent."""


@dataclass(slots=True)
class Chunk:
    """Samples that were recorded one after the other."""

    number: int
    rows: list[Any]
    """value, time in nanoseconds, SeriesRef, value, ... as they were recorded, not yet checked."""
    event_bytes: int = 0
    """What its events take in memory beside their samples, about."""
    lost_before: int = 0
    """Chunks dropped since the one taken before this: as many sequence numbers are left out."""

    @property
    def samples(self) -> int:
        return len(self.rows) // 3


class Buffer:
    """A bounded queue of chunks behind a plain list that callers append to.

    A sample is recorded by `rows.extend((value, time_ns, ref))`, and by `cut_if_full` once `rows` has reached
    `row_limit`. That extend is one step under the GIL, so any number of threads, and signal handlers, share the
    list without a lock and without mixing up one sample's fields with another's; three appends to three arrays
    would need either, and take as long. Neither call blocks or raises.

    A list for each thread, found through `threading.local`, is the usual design, and slower: 185 ns a value instead of
    150 from one thread, 193 instead of 166 from 16 (`python -m benchmarks producer`, which has that design for this).
    It would also have to find and empty the lists of threads that have ended.

    Memory: `SAMPLE_BYTES * max_samples`, and up to one chunk in `rows`. Who records an event, which has attributes of
    its own, adds what these take to `event_bytes`, and calls `cut_if_full` at `event_limit` too.
    """

    def __init__(
        self,
        max_samples: int = 200_000,
        chunk_samples: int = CHUNK_SAMPLES,
        on_cut: Callable[[], object] = lambda: None,
    ) -> None:
        """`on_cut` is called, by the thread that records, when a chunk is ready; it must not block.

        Raises:
            ValueError: `max_samples` is less than one chunk.
        """
        if max_samples < chunk_samples:
            raise ValueError(f"max_samples is {max_samples}; it must be at least {chunk_samples}")
        self.rows: list[Any] = []
        self.row_limit = 3 * chunk_samples
        self.max_samples = max_samples
        self.event_limit = min(EVENT_CHUNK_BYTES, SAMPLE_BYTES * max_samples // 4)
        self._on_cut = on_cut
        self._sink: Callable[[list[Any]], None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget everything, even that the lock is held: for a forked child, whose samples are its parent's."""
        self.rows.clear()  # the same list: every instrument holds on to it
        self.event_bytes = 0
        """Of the events in `rows`. Threads that add to it at once may lose some: it need not be exact."""
        self._queued_event_bytes = 0
        self._lock = Lock()
        self._queue: deque[Chunk] = deque()
        self._open: dict[int, int] = {}
        """Chunk number -> samples of it that are neither delivered nor dropped; in ascending order."""
        self._next_number = 0
        self._lost = 0
        self._closed = False
        self._recorded = 0
        self._delivered = 0
        self._held = 0
        self._dropped: Counter[str] = Counter()

    def cut_if_full(self) -> None:
        """Make a chunk of `rows`. Does nothing while another thread is at it: the next call will."""
        if self._lock.acquire(blocking=False):
            try:
                self._cut()
            finally:
                self._lock.release()
            self._on_cut()

    def cut(self) -> int:
        """Make a chunk of whatever `rows` has. Returns a mark for `settled`."""
        with self._lock:
            self._cut()
            return self._next_number

    def take(self) -> Chunk | None:
        """The oldest chunk, to be sent; it stays held until all of its samples have been given to `settle`."""
        with self._lock:
            if not self._queue:
                return None
            chunk = self._queue.popleft()
            self._queued_event_bytes -= chunk.event_bytes
            chunk.lost_before, self._lost = self._lost, 0
            return chunk

    def settle(self, number: int, samples: int, drop: Drop | None = None) -> None:
        """Count samples of a chunk as delivered or dropped. Ignored for what `close` has counted."""
        with self._lock:
            if self._open.get(number, 0) >= samples:
                self._settle(number, samples, drop)

    def abandon(self, number: int) -> None:
        """Count whatever is left of a chunk as dropped (`ERROR`)."""
        with self._lock:
            if number in self._open:
                self._settle(number, self._open[number], Drop.ERROR)

    def settled(self, mark: int) -> bool:
        """Whether all recorded before `cut` returned this mark is delivered or counted as dropped."""
        with self._lock:
            return next(iter(self._open), mark) >= mark

    def divert(self, sink: Callable[[list[Any]], None] | None) -> Callable[[list[Any]], None] | None:
        """Give the rows of further chunks to `sink`, and count them as delivered; None: queue them again.

        Returns what it was before. `sink` is called with the lock held: it must not use the buffer.
        """
        with self._lock:
            self._cut()
            before, self._sink = self._sink, sink
            return before

    def close(self, timeout_s: float = -1) -> None:
        """Count all that is held as dropped (`SHUTDOWN`), and from now on all that is recorded (`CLOSED`).

        Does nothing if it cannot be done within `timeout_s`, which is for ever where it is negative.
        """
        if not self._lock.acquire(timeout=timeout_s):
            return
        try:
            self._cut()
            self._closed = True
            self._queue.clear()
            self._queued_event_bytes = 0
            for number, samples in list(self._open.items()):
                self._settle(number, samples, Drop.SHUTDOWN)
        finally:
            self._lock.release()

    def stats(self) -> Stats:
        """All counts, consistent with each other."""
        with self._lock:
            if self._closed:
                self._cut()
            waiting = len(self.rows) // 3
            return Stats(self._recorded + waiting, self._delivered, self._held + waiting, dict(self._dropped))

    # With the lock held

    def _cut(self) -> None:
        length = len(self.rows)
        if length == 0:
            return
        chunk = Chunk(self._next_number, self.rows[:length], self.event_bytes)
        del self.rows[:length]  # what other threads have appended meanwhile stays
        self.event_bytes = 0
        self._next_number += 1
        self._recorded += chunk.samples
        self._held += chunk.samples
        self._open[chunk.number] = chunk.samples
        if self._closed:
            self._settle(chunk.number, chunk.samples, Drop.CLOSED)
            return
        if self._sink is not None:
            self._sink(chunk.rows)
            self._settle(chunk.number, chunk.samples, None)
            return
        self._queue.append(chunk)
        self._queued_event_bytes += chunk.event_bytes
        # What is on its way to the broker cannot be taken back, so the oldest chunk still here has to go.
        most = SAMPLE_BYTES * self.max_samples
        while self._queue and SAMPLE_BYTES * self._held + self._queued_event_bytes > most:
            oldest = self._queue.popleft()
            self._queued_event_bytes -= oldest.event_bytes
            self._lost += 1
            self._settle(oldest.number, oldest.samples, Drop.QUEUE_FULL)

    def _settle(self, number: int, samples: int, drop: Drop | None) -> None:
        left = self._open[number] - samples
        if left:
            self._open[number] = left
        else:
            del self._open[number]
        self._held -= samples
        if drop is None:
            self._delivered += samples
        else:
            self._dropped[drop.value] += samples
