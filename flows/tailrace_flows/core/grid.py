"""Counting codes in place: a band of neighbouring buckets for each slot, so that hardly a sample has to be sorted.

Sorting costs 30 ns a sample, adding one to a cell 1.5 ns. A distribution's samples of ten seconds mostly lie within
four octaves (a factor of 16), which one earlier look at them places; what lies outside is sorted as before.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tailrace_flows.core.sketch import CODE_BITS

__all__ = ["CODE_BIAS", "CODE_MASK", "Bands", "Grid", "Run"]

Ints = NDArray[np.int64]

Run = tuple[Ints, Ints]
"""Ascending keys `slot << CODE_BITS | code + CODE_BIAS`, and how often each occurs."""

CODE_BIAS: Final = 1 << (CODE_BITS - 1)
CODE_MASK: Final = (1 << CODE_BITS) - 1
OCTAVES: Final = 4
NOWHERE: Final = 1 << 40
"""Above any code: the band of a slot that has none."""


class Bands:
    """Where each slot's band begins; shared by the windows of a table. Only speed depends on it."""

    def __init__(self, scale: int) -> None:
        self.scale = scale
        self.width = OCTAVES << scale  # a power of two
        self.lowest: Ints = np.empty(0, np.int64)
        """(c,) the lowest code of each slot's band, or NOWHERE. Never changed in place: grids keep it."""
        self.known = 0
        """Slots that have a band."""

    def learn(self, run: Run) -> None:
        """Places the bands of the slots in a run: over all of its codes, else around their median. 0.3 us a slot."""
        keys, counts = run
        if keys.size == 0:
            return
        slots = keys >> CODE_BITS
        begins = np.flatnonzero(np.concatenate([[True], slots[1:] != slots[:-1]]))
        present = slots[begins]
        codes = (keys & CODE_MASK) - CODE_BIAS
        least, greatest = codes[begins], codes[np.append(begins[1:], keys.size) - 1]
        total = np.cumsum(counts)
        before = total[begins] - counts[begins]
        upto = np.append(before[1:], total[-1])
        median = codes[np.searchsorted(total, (before + upto + 1) // 2)]
        middle = np.where(greatest - least < self.width, (least + greatest + 1) // 2, median)
        self.lowest = _grown(self.lowest, int(present[-1]) + 1).copy()
        self.lowest[present] = middle - self.width // 2
        self.known = int(np.count_nonzero(self.lowest != NOWHERE))

    def keep(self, used: NDArray[np.bool_]) -> None:
        """Drops the slots that are not `used`."""
        self.lowest = _grown(self.lowest, used.size)[used]
        self.known = int(np.count_nonzero(self.lowest != NOWHERE))


class Grid:
    """Counts by slot and code within the bands as they were when it was made. Memory: 4 bytes a cell."""

    def __init__(self, bands: Bands) -> None:
        self._width, self._width_bits = bands.width, bands.width.bit_length() - 1
        self._lowest = bands.lowest
        slots = np.flatnonzero(bands.lowest != NOWHERE)
        self._first_keys = (slots << CODE_BITS) + bands.lowest[slots] + CODE_BIAS
        self._row_begins = np.zeros(bands.lowest.size, np.int64)
        self._row_begins[slots] = np.arange(slots.size) * bands.width
        # One more, for what lies outside: to take that out first would cost 3 ns a sample.
        self._cells = np.zeros(slots.size * bands.width + 1, np.uint32)
        self.samples = 0

    def add(self, slots: Ints, codes: Ints, size: int, counts: Ints | None = None) -> Ints | None:
        """Counts what lies within the bands, `counts` times or once; returns which of (n,) do not, or None.

        `size`: all slots there are. About 4 ns a sample.
        """
        if self._lowest.size < size:
            self._lowest = _grown(self._lowest, size)
            self._row_begins = np.concatenate([self._row_begins, np.zeros(size - self._row_begins.size, np.int64)])
        at = codes - self._lowest.take(slots)  # twice as fast as indexing
        outside = np.flatnonzero(at.view(np.uint64) >= self._width)  # what lies below the band is huge
        at += self._row_begins.take(slots)
        at[outside] = self._cells.size - 1
        np.add.at(self._cells, at, np.uint32(1) if counts is None else counts.astype(np.uint32))
        self.samples += at.size
        return outside if outside.size else None

    def run(self) -> Run:
        """What was counted, as a run. About 5 ns a bucket."""
        at = np.flatnonzero(self._cells[:-1] != 0)  # of booleans six times as fast
        keys = self._first_keys[at >> self._width_bits]
        keys += at & (self._width - 1)
        return keys, self._cells[at].astype(np.int64)


def _grown(lowest: Ints, size: int) -> Ints:
    more = size - lowest.size
    return np.concatenate([lowest, np.full(more, NOWHERE)]) if more > 0 else lowest
