"""The seeds that ever failed: every run of their attack tries them first.

A seed stands for its world only as long as what makes worlds stays the same;
what it found gets a test of its own, too.
"""

from pathlib import Path

__all__ = ["failed_before"]

FILE = Path(__file__).parent / "failed_seeds.txt"


def failed_before(attack: str) -> list[int]:
    """The seeds of this attack, in the order in which they were found."""
    lines = (line.split("#")[0].split() for line in FILE.read_text().splitlines())
    return [int(line[1]) for line in lines if line and line[0] == attack]
