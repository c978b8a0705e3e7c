"""Which messages of one partition are finished: what is committed to Kafka, so that a restart repeats next to nothing.

A consumer group commits one offset a partition. Receivers finish in any order, and a receiver that fails for an hour
must not make a restart repeat an hour of what others got. So what is finished beyond the offset is committed along, as
the offset's metadata: a bitmap, at most `WINDOW` wide (1.7 kB; brokers take 4 kB).
"""

from base64 import b64decode, b64encode
from binascii import Error
from heapq import heappop, heappush
from typing import Final, Self

__all__ = ["WINDOW", "Ledger"]

WINDOW: Final = 10_000
MOST_BITS: Final = 2 * WINDOW
"""3.3 kB. It is wider than `WINDOW` only while a message takes so long to be sent that it cannot be ended."""
_MARK: Final = "tailrace-1:"


class Ledger:
    """One partition's. Offsets may have holes."""

    def __init__(self, committed: int, finished: frozenset[int] = frozenset()) -> None:
        self._finished = set(finished)
        self._pending: set[int] = set()
        self._order: list[int] = []
        """A heap of what is or was pending."""
        self._next = committed
        """All before it were read, by us or by who committed it."""

    @classmethod
    def read(cls, committed: int, metadata: str | None) -> Self:
        """From what is committed. Metadata that is none of ours is as good as none."""
        text = metadata or ""
        if not text.startswith(_MARK) or len(text) > 2 * WINDOW:
            return cls(committed)
        try:
            bits = int.from_bytes(b64decode(text.removeprefix(_MARK), validate=True), "little")
        except (Error, ValueError):
            return cls(committed)
        return cls(committed, frozenset(committed + place for place in range(bits.bit_length()) if bits >> place & 1))

    def begin(self, offset: int) -> bool:
        """A message was read; False: it is finished already, before a restart."""
        if offset < self.position or offset in self._pending:
            return False
        self._next = max(self._next, offset + 1)
        if offset in self._finished:
            return False
        self._pending.add(offset)
        heappush(self._order, offset)
        return True

    def finish(self, offset: int) -> None:
        """It needs nothing more."""
        if offset not in self._pending:
            return
        before = self.position
        self._pending.discard(offset)
        self._finished.add(offset)
        if (position := self.position) > before:
            self._finished = {one for one in self._finished if one >= position}

    @property
    def position(self) -> int:
        """What is to be committed: everything before it is finished."""
        while self._order and self._order[0] not in self._pending:
            heappop(self._order)
        return self._order[0] if self._order else self._next

    @property
    def metadata(self) -> str:
        """To be committed along. What is too far beyond is left out, and done again after a restart."""
        position = self.position
        bits = 0
        for offset in self._finished:
            if offset - position < MOST_BITS:
                bits |= 1 << offset - position
        if not bits:
            return ""
        return _MARK + b64encode(bits.to_bytes((bits.bit_length() + 7) // 8, "little")).decode()

    def too_wide(self) -> int | None:
        """The offset that must be finished now, since what is known beyond it would no longer fit."""
        return self.position if self._next - self.position > WINDOW else None
