"""Several signals of one thing together: what none of them says alone."""

from collections.abc import Mapping
from math import exp, log
from typing import Final, NamedTuple

from tailrace_flows.core.anomaly.config import BAR_KEPT, BAR_MAX, BAR_STEP, FEEDBACK_STEP, QUIET_POINTS

__all__ = ["Joint", "JointVerdict", "joint_rarity"]

RARITY_MAX: Final = 14.0
"""-log(1 - score) of one signal, at most."""
KEPT: Final = 0.7
"""Of the evidence, from one point to the next ..."""
DRIFT: Final = 1.0
"""... less this much: the mean rarity of ordinary points ..."""
EVIDENCE: Final = 10.0
"""... and a flag needs this much, multiplied by the bar."""


class JointVerdict(NamedTuple):
    """Of the signals of one point."""

    score: float
    """0..1; calibrated as far as the signals are independent."""
    flag: bool
    evidence: float
    needed: float
    """By a flag."""


def joint_rarity(rarities: Mapping[str, float]) -> float:
    """-log of the chance that so many independent signals are together at least so rare (Fisher, 1925).

    `rarities`: -log(1 - score) of each. Their sum is Erlang distributed.
    """
    total = sum(rarities.values())
    term = series = 1.0
    for number in range(1, len(rarities)):
        term *= total / number
        series += term
    return total - log(series)


class Joint:
    """The evidence of one label set. O(1) time and memory: three numbers."""

    __slots__ = ("bar", "evidence", "quiet")

    def __init__(self, state: tuple[float, int, float] = (0.0, QUIET_POINTS, 1.0)) -> None:
        """Anew, or from `snapshot`."""
        self.evidence, self.quiet, self.bar = state

    def update(self, scores: Mapping[str, float]) -> JointVerdict:
        """Judges one point by the scores of its signals, of which there is one at least."""
        rarity = joint_rarity({name: _rarity(score) for name, score in scores.items()})
        self.bar = max(1.0, self.bar * BAR_KEPT)
        self.evidence = max(0.0, KEPT * self.evidence + rarity - DRIFT)
        self.quiet = max(0, self.quiet - 1)
        needed = EVIDENCE * self.bar
        flag = False
        if self.evidence >= needed:
            flag = self.quiet == 0
            self.quiet = QUIET_POINTS
            if flag:
                self.bar = min(BAR_MAX, self.bar * BAR_STEP)
        return JointVerdict(1.0 - exp(-rarity), flag, self.evidence, needed)

    def false_positive(self) -> None:
        """As `Detector.false_positive`."""
        self.bar = min(BAR_MAX, self.bar * FEEDBACK_STEP)

    def snapshot(self) -> tuple[float, int, float]:
        """The state."""
        return self.evidence, self.quiet, self.bar


def _rarity(score: float) -> float:
    return min(RARITY_MAX, -log(max(1e-9, 1.0 - score)))
