"""The seeds that ever failed: every run of their attack tries them.

A seed stands for its world only as long as what makes worlds stays the same;
what it found gets a test of its own, too.
"""

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from tests.reliability.attack import Result, Run

__all__ = ["failed_before", "seeds"]

FILE = Path(__file__).parent / "failed_seeds.txt"


def failed_before(attack: str) -> list[int]:
    """The seeds of this attack, in the order in which they were found."""
    lines = (line.split("#")[0].split() for line in FILE.read_text().splitlines())
    return [int(line[1]) for line in lines if line and line[0] == attack]


def seeds(run: Run, result: Result) -> Iterator[int]:
    """The seeds of a run's worlds, which it notes: the run's, those that failed, and those after the run's.

    Ends when there are enough runs, but not before all that failed; a run of size 1 is of its own seed only.
    """
    failed = failed_before(run.name)
    for seed in chain([run.seed], failed, count(run.seed + 1)):
        if result.runs >= run.size and (run.size == 1 or len(result.seeds) > len(failed)):
            return
        result.seeds.append(seed)
        yield seed
