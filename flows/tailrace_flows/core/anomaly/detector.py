"""The detector of one series, point by point."""

import pickle
from array import array
from math import exp, inf, log, nan
from typing import Any, NamedTuple

from tailrace_flows.core.anomaly.config import (
    BAND,
    BAR_KEPT,
    BAR_MAX,
    BAR_STEP,
    CLIMB,
    DETECTOR_VERSION,
    ERROR_LIMIT,
    EVIDENCE,
    EVIDENCE_DRIFT,
    EVIDENCE_KEPT,
    FAST,
    FEEDBACK_STEP,
    FORGET_MAX,
    FORGET_MIN,
    FORGET_SHARE,
    GRADES,
    GROWTH,
    HELD_RARITY,
    HELD_SCORE,
    LARGEST,
    LOG_MEMORY,
    MID,
    NEAR,
    OFFSET,
    PER_GRADE,
    PROFILE,
    PROFILES,
    QUIET_POINTS,
    SCALE,
    SCALE_FLOOR,
    SCALE_FLOOR_RATIO,
    SLOW,
    SMOOTHING,
    SURPRISE_Z2,
    UNLIMITED_POINTS,
    WEIGHT_MAX,
    AnomalyConfig,
    Direction,
)
from tailrace_flows.core.sealed import foreign

__all__ = ["Detector", "Verdict"]


class Verdict(NamedTuple):
    """What is thought of one point, from it and the points before it."""

    score: float
    """0..1; on ordinary data at most a share of 1 - s of the points has a score above s (docs/anomalies.md)."""
    flag: bool
    """This point starts an episode that somebody should look at."""
    expected: float
    """NaN where nothing is known: the first point, and points that are no numbers."""
    low: float
    """Between low and high a point after quiet ones is not flagged."""
    high: float
    warming_up: bool


UNKNOWN = Verdict(0.0, False, nan, nan, nan, True)


class Profile:
    """What is usual at each place of a cycle: means of the visits to each bin, the latest weighing most."""

    __slots__ = ("begin_us", "bins", "count", "end_us", "here", "known", "offset", "total", "usual", "width_us")

    def __init__(self, width_us: int, bins: int) -> None:
        self.width_us, self.bins = width_us, bins
        self.usual = array("f", [nan] * bins)
        self.offset = 0.0
        """Where the series is now, relative to the profile."""
        self.here = -1
        self.known = nan
        """What was usual here before the visit under way; NaN: not known."""
        self.begin_us = self.end_us = 0
        self.total = 0.0
        self.count = 0

    def enter(self, time_us: int) -> None:
        """The time has left the bin, or come around to it again."""
        number = time_us // self.width_us
        self.begin_us = number * self.width_us
        self.end_us = self.begin_us + self.width_us
        here = number % self.bins
        if here == self.here:
            return
        if self.count:
            mean = self.total / self.count
            usual = self.usual[self.here]
            self.usual[self.here] = mean if usual != usual else usual + PROFILE * (mean - usual)
        self.here = here
        self.known = self.usual[here]
        self.total = 0.0
        self.count = 0


class Detector:
    """Judges the points of one series in the order given; O(1) time and memory per point.

    A few predictors, each an exponentially weighted mean or a seasonal profile, say what to expect. How far the most
    surprised of them is off, in units of its own usual error, is ranked among the series' own past surprises: that is
    the score. The flag wants more: evidence against the best predictor and one other, which adds up over neighbouring
    points, the minimum deviations, the direction, and a bar that rises with every flag and with `false_positive`.

    A value that is not finite, or not below 1e30, is judged 0, has no band, and teaches nothing. Times only choose the
    seasonal bins (UTC): gaps and irregular points are taken as they come.
    """

    __slots__ = (
        "_above", "_bar", "_evidence", "_fast", "_mid", "_peak", "_profiles", "_quiet", "_ranks", "_scales", "_slow",
        "_smooth", "_total", "_weight", "config", "points",
    )  # fmt: skip

    def __init__(self, config: AnomalyConfig | None = None, state: bytes | None = None) -> None:
        """Starts anew, or goes on from a `snapshot`.

        Raises:
            ValueError: the snapshot is of another version.
        """
        self.config = config or AnomalyConfig()
        self.points = 0
        """Finite points seen."""
        self._fast = self._mid = self._slow = 0.0
        self._scales = [0.0, 0.0, 0.0, nan, nan, nan, nan]
        """Of fast, mid, slow; hour, day, week moved to the present; the day as it is."""
        self._profiles = tuple(Profile(width_us, bins) for width_us, bins in PROFILES)
        self._smooth = 0.0
        self._ranks = [0.0] * (2 * GRADES)
        """Weight of past surprises of at least a grade; above the expected, then below."""
        self._weight = 1.0
        """Of the next point: it grows, which fades the past."""
        self._total = 0.0
        self._peak = 0.0
        self._evidence = 0.0
        self._above = True
        self._quiet = QUIET_POINTS
        self._bar = 1.0
        if state is not None:
            version, fields = pickle.loads(state)  # noqa: S301 - our own snapshot
            if version != DETECTOR_VERSION:
                raise foreign(version, DETECTOR_VERSION, "the detector's state")
            for name, value in fields.items():
                setattr(self, name, value)

    def snapshot(self) -> bytes:
        """The state; a detector made from it goes on as this one does. About 2 kB."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__ if name != "config"}
        return pickle.dumps((DETECTOR_VERSION, fields), protocol=5)

    def false_positive(self) -> None:
        """A person says that a flag was none: raises the bar, which comes down again within a month of 1 m windows."""
        self._bar = min(BAR_MAX, self._bar * FEEDBACK_STEP)

    @property
    def bar(self) -> float:
        """How many times the usual evidence a flag needs: 1 to `BAR_MAX`."""
        return self._bar

    def update(self, time_us: int, value: float) -> Verdict:
        """Judges a point by itself and the points before it, then learns from it. Some 5 us."""
        if not -LARGEST < value < LARGEST:
            return UNKNOWN._replace(warming_up=self.points < self.config.warmup_points)
        self.points += 1
        points = self.points
        if points == 1:
            self._fast = self._mid = self._slow = value
        expected, scale, agreed, zs = self._predict(time_us, value)
        score, rarity = self._rank(zs)
        bar = self._bar * BAR_KEPT
        self._bar = bar = bar if bar > 1.0 else 1.0
        deviation = value - expected
        beyond = self._beyond(deviation >= 0.0, agreed, zs)
        config = self.config
        warming_up = points <= config.warmup_points
        flag = False
        if self._quiet:
            self._quiet -= 1
        if beyond and not warming_up and rarity >= config.flag_rarity * bar and self._matters(deviation, expected):
            flag = self._quiet == 0
            self._quiet = QUIET_POINTS
            if flag:
                self._bar = min(BAR_MAX, bar * BAR_STEP)
        margin = BAND * bar * scale
        return Verdict(score, flag, expected, expected - margin, expected + margin, warming_up)

    def _predict(self, time_us: int, value: float) -> tuple[float, float, float, tuple[float, float, float, float]]:
        """The best prediction and its scale, what the good predictors agree that the value is off, and what four
        predictors say each, in scales; then learns the value."""
        fast, mid, slow = self._fast, self._mid, self._slow
        scales = self._scales
        best, least = fast, scales[0]
        if scales[1] < least:
            best, least = mid, scales[1]
        if scales[2] < least:
            best, least = slow, scales[2]
        hour, day, week = self._profiles
        predictions = [fast, mid, slow]
        for number, profile in ((3, hour), (4, day), (5, week)):
            if not profile.begin_us <= time_us < profile.end_us:
                profile.enter(time_us)
            profile.total += value
            profile.count += 1
            prediction = profile.known + profile.offset
            predictions.append(prediction)
            if prediction == prediction:
                profile.offset += OFFSET * (value - prediction)
                if scales[number] < least:
                    best, least = prediction, scales[number]
        predictions.append(day.known)
        floor = SCALE_FLOOR + SCALE_FLOOR_RATIO * (slow if slow >= 0.0 else -slow)
        points = self.points
        rate = 1.0 / points
        scale_rate = rate if rate > SCALE else SCALE
        limit = ERROR_LIMIT if points > UNLIMITED_POINTS else inf
        best_scale = least + floor
        near = NEAR * best_scale
        above = value >= best
        agreed = inf
        zs = []
        for number, prediction in enumerate(predictions):
            off = value - prediction
            if off == off:
                scale = scales[number]
                error = off if off >= 0.0 else -off
                if scale != scale:  # a profile just known starts no better than the fast level
                    scale = scales[0] if scales[0] > error else error
                spread = scale + floor
                z = off / spread
                zs.append(z)
                if spread <= near and number < 6:
                    if not above:
                        z = -z
                    if z < agreed:
                        agreed = z
                if error > limit * spread:
                    error = limit * spread
                scales[number] = scale + scale_rate * (error - scale)
            else:
                zs.append(0.0)
        self._fast = fast + (rate if rate > FAST else FAST) * (value - fast)
        self._mid = mid + (rate if rate > MID else MID) * (value - mid)
        self._slow = slow + (rate if rate > SLOW else SLOW) * (value - slow)
        return best, best_scale, agreed, (zs[0], zs[1], zs[2], zs[6])

    def _rank(self, zs: tuple[float, float, float, float]) -> tuple[float, float]:
        """The score, and the rarity that it would show without an episode going on."""
        most = 0.0
        below = False
        for z in zs:
            square = z * z
            if square > most:
                most = square
                below = z < 0
        surprise = log(1.0 + most / SURPRISE_Z2)
        self._smooth += SMOOTHING * (surprise - self._smooth)
        grade = int(0.5 * (surprise + self._smooth) * PER_GRADE)
        if grade >= GRADES:
            grade = GRADES - 1
        ranks, weight, total = self._ranks, self._weight, self._total
        begin = GRADES if below else 0
        share = (2.0 * ranks[begin + grade] + weight) / (total + 2.0 * weight)
        stretch = LOG_MEMORY / log(total / weight + 2.5)
        weight *= GROWTH
        self._total = total + weight
        for at in range(begin, begin + grade + 1):
            ranks[at] += weight
        if weight > WEIGHT_MAX:
            self._ranks = [rank / weight for rank in ranks]
            self._total /= weight
            weight = 1.0
        self._weight = weight
        if self.points <= self.config.warmup_points:
            return 0.0, 0.0
        rarity = 0.0 if share >= 1.0 else -log(share) * (stretch if stretch > 1.0 else 1.0)
        fade = FORGET_SHARE * self.points + FORGET_MIN
        self._peak *= 1.0 - 1.0 / (fade if fade < FORGET_MAX else FORGET_MAX)
        score = 1.0 - exp(-rarity) if rarity else 0.0
        if rarity > HELD_RARITY:
            if rarity <= self._peak + CLIMB:
                score = HELD_SCORE
            if rarity > self._peak:
                self._peak = rarity
        return score, rarity

    def _beyond(self, above: bool, agreed: float, zs: tuple[float, float, float, float]) -> bool:
        """Adds what the good predictors and any two of the four agree on as evidence; whether it is enough."""
        if above != self._above:
            self._above = above
            self._evidence = 0.0
        a, b, c, d = zs if above else (-zs[0], -zs[1], -zs[2], -zs[3])
        if a < b:
            a, b = b, a
        if c < d:
            c, d = d, c
        # The second largest of the four.
        second = max(b, c) if a > c else max(a, d)
        if second < agreed:
            agreed = second
        evidence = EVIDENCE_KEPT * self._evidence + agreed - EVIDENCE_DRIFT * self._bar
        self._evidence = evidence if evidence > 0.0 else 0.0
        return evidence >= EVIDENCE * self._bar

    def _matters(self, deviation: float, expected: float) -> bool:
        config = self.config
        if config.direction is not Direction.BOTH and (deviation > 0) != (config.direction is Direction.ABOVE):
            return False
        size = abs(deviation)
        return size >= config.min_deviation and size >= config.min_relative_deviation * abs(expected)
