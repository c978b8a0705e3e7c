"""What a detector may be told, and the constants of its model. docs/anomalies.md explains them and measures them."""

from dataclasses import dataclass
from enum import StrEnum
from math import inf, log

__all__ = ["DETECTOR_VERSION", "STATE_VERSION", "AnomalyConfig", "Direction"]

STATE_VERSION = 1
"""Of a bank's snapshots. Raise it when state of an older version would be misread."""
DETECTOR_VERSION = 2
"""Of a single detector's."""


class Direction(StrEnum):
    """Which deviations may be flagged."""

    ABOVE = "above"
    BELOW = "below"
    BOTH = "both"


@dataclass(frozen=True)
class AnomalyConfig:
    """One setting serves every series; these are what an operator may still want to say.

    Raises:
        ValueError: a value outside its range, naming it.
    """

    warmup_points: int = 100
    """The first points of a series have score 0 and are never flagged."""
    direction: Direction = Direction.BOTH
    min_deviation: float = 0.0
    """A flag needs at least this distance from what was expected, in the series' own unit ..."""
    min_relative_deviation: float = 0.1
    """... and at least this share of what was expected."""
    flag_score: float = 0.95
    """A flag needs this score (before damping) besides evidence beyond the band; a raised bar asks for more."""

    def __post_init__(self) -> None:
        if self.warmup_points < 3:
            raise ValueError(f"warmup_points {self.warmup_points} is less than 3: nothing is known of a series before")
        for name in ("min_deviation", "min_relative_deviation"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name} {getattr(self, name)} is not a finite number of 0 or more")
        if not 0 < self.flag_score < 1:
            raise ValueError(f"flag_score {self.flag_score} is not between 0 and 1")
        Direction(self.direction)

    @property
    def flag_rarity(self) -> float:
        """-log(1 - flag_score)."""
        return -log(1 - self.flag_score)


LARGEST = 1e30
"""Values from here on, which no measurement has, are taken for no numbers: profiles are kept in single precision."""

# The model. Rates are shares per point: a rate of 0.002 remembers some 500 points. They were chosen once, on
# the series of docs/anomalies.md, from the middle of a plateau: halving or doubling one changes little.

FAST, MID, SLOW = 0.2, 0.06, 0.002
"""Levels: exponentially weighted means."""
OFFSET = 0.1
"""How fast a seasonal profile is moved to where the series is now."""
SCALE = 0.002
"""Mean absolute errors of the predictors."""
ERROR_LIMIT = 4.0
"""An error counts towards the scale with at most so many scales, or one spike would blind the detector."""
UNLIMITED_POINTS = 30
"""The scale is still being found in the first points, so their errors count in full."""
SCALE_FLOOR_RATIO, SCALE_FLOOR = 0.01, 1e-9
"""Scales are never below this share of the slow level: the first change of a constant series is no infinite one."""

PROFILES = ((60_000_000, 60), (1_800_000_000, 48), (3_600_000_000, 168))
"""(width of a bin in us, bins): the hour by minutes, the day by half hours, the week by hours, in UTC."""
PROFILE_BINS = sum(bins for _, bins in PROFILES)
PROFILE_PLACES = tuple((width, bins, sum(n for _, n in PROFILES[:j])) for j, (width, bins) in enumerate(PROFILES))
"""The same with where each begins."""
PROFILE = 0.3
"""Weight of the latest visit to a bin."""

SURPRISE_Z2 = 10.0
"""Surprise is log(1 + z^2 / 10) of the most surprised predictor: a Student t's with few degrees of freedom."""
SMOOTHING = 0.08
"""Of the surprise's running mean, which makes up half of what is ranked."""
PER_GRADE, GRADES = 1.6, 12
"""Surprise is ranked in coarse grades, each side of the expected by itself."""
MEMORY = 10_000
"""Points: how long a series remembers its past surprises (a week of 1 m windows)."""
LOG_MEMORY = log(MEMORY)
"""While a series is young its ranks are stretched as if the memory were full: its first record counts as one."""
GROWTH, WEIGHT_MAX = 1 / (1 - 1 / MEMORY), 1e6
"""Each point weighs more than the one before, which fades the past; scaled back before numbers get too big."""

HELD_SCORE = 0.99
"""A score above it starts an episode; further scores above it show as this one until the episode is forgotten."""
HELD_RARITY = -log(1 - HELD_SCORE)
CLIMB = 0.5
"""An episode shows again when its rarity, -log(1 - score), grows by this."""
FORGET_SHARE, FORGET_MIN, FORGET_MAX = 0.1, 20.0, 400.0
"""Points in which an episode fades by a factor e: a tenth of those seen, within these limits."""

NEAR = 1.5
"""Predictors whose usual error is within this factor of the best one's must all agree that a point is off."""
EVIDENCE_KEPT = 0.7
"""Evidence of one side adds up over neighbouring points with this weight ..."""
EVIDENCE_DRIFT = 1.5
"""... less this many scales for each point (a CUSUM, Page 1954, that forgets) ..."""
EVIDENCE = 5.0
"""... and a flag needs this much; both are multiplied by the bar of the series."""
BAND = EVIDENCE_DRIFT + EVIDENCE
"""Scales from the expected value to the band's edge: what flags a single point after quiet ones."""
QUIET_POINTS = 10
"""A flag marks the start of an episode: after so many points without evidence the next one may come."""
BAR_STEP, BAR_MAX = 1.05, 4.0
"""Each episode raises the bar of its series, ..."""
BAR_KEPT = 1 - 5e-6
"""... which comes down so slowly per point that one episode in 10,000 points holds it level."""
FEEDBACK_STEP = 1.25
"""A false alarm reported by a person raises the bar for a month of 1 m windows."""
