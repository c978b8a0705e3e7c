"""The seeds that ever failed: every run of their attack tries them.

A seed stands for its world only as long as what makes worlds stays the same;
what it found gets a test of its own, too.
"""

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

__all__ = ["failed_before", "seeds"]

FILE = Path(__file__).parent / "failed_seeds.txt"


def failed_before(attack: str) -> list[int]:
    """The seeds of this attack, in the order in which they were found."""
    lines = (line.split("#")[0].split() for line in FILE.read_text().splitlines())
    return [int(line[1]) for line in lines if line and line[0] == attack]


def seeds(attack: str, first: int) -> Iterator[int]:
    """`first`, so that a run of one world is that one; the seeds that failed; and those after `first`."""
    return chain([first], failed_before(attack), count(first + 1))
