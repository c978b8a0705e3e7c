"""Where a partition ended, and when: what its reader has read of it, as of which time."""

from typing import Final

__all__ = ["Ends"]

KEPT: Final = 64


class Ends:
    """Those that have not been read yet, and the last one that has. A plain state machine.

    Of a reader that is an hour behind and asks every 2 s, 313 ends; of one that is a day behind, 516.
    """

    def __init__(self) -> None:
        self._known: list[tuple[int, int]] = []
        """(end, time), ascending; but for the first, none has been read."""

    def found(self, end: int, at_us: int) -> None:
        """The partition ended before the offset `end`, at this time or later."""
        known = self._known
        if known and end < known[-1][0]:  # the topic was made anew, or has lost its end
            known.clear()
        # The further ahead of the reader, the fewer: a time is told to within a 64th of how far it is behind.
        if len(known) > 2 and at_us - known[-2][1] < (at_us - known[0][1]) // KEPT:
            known.pop()
        known.append((end, at_us))

    def read_until_us(self, offset: int) -> int | None:
        """Who has read to before `offset` has read all that there was at this time; None: that is not known."""
        known = self._known
        while len(known) > 1 and offset >= known[1][0]:
            del known[0]
        return known[0][1] if known and offset >= known[0][0] else None
