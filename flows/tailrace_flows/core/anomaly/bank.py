"""The detectors of many series, a point of each at a time."""

import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tailrace_flows.core.anomaly.config import (
    BAND,
    BAR_KEPT,
    BAR_MAX,
    BAR_STEP,
    CLIMB,
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
    PROFILE_BINS,
    PROFILE_PLACES,
    QUIET_POINTS,
    SCALE,
    SCALE_FLOOR,
    SCALE_FLOOR_RATIO,
    SLOW,
    SMOOTHING,
    STATE_VERSION,
    SURPRISE_Z2,
    UNLIMITED_POINTS,
    WEIGHT_MAX,
    AnomalyConfig,
    Direction,
)
from tailrace_flows.core.sealed import foreign

__all__ = ["Band", "DetectorBank", "Verdicts"]

BLOCK = 4096
"""Series worked on at a time: their temporary arrays stay in the processor's cache."""

# name -> (shape of one series, type, first value)
FIELDS: dict[str, tuple[tuple[int, ...], str, float]] = {
    "points": ((), "i8", 0),
    "fast": ((), "f8", 0.0),
    "mid": ((), "f8", 0.0),
    "slow": ((), "f8", 0.0),
    "scales": ((7,), "f8", 0.0),
    "profiles": ((PROFILE_BINS,), "f4", np.nan),
    "offsets": ((3,), "f8", 0.0),
    "bins": ((3,), "i4", -1),
    "sums": ((3,), "f8", 0.0),
    "visits": ((3,), "i4", 0),
    "smooth": ((), "f8", 0.0),
    "ranks": ((2 * GRADES,), "f8", 0.0),
    "weight": ((), "f8", 1.0),
    "total": ((), "f8", 0.0),
    "peak": ((), "f8", 0.0),
    "evidence": ((), "f8", 0.0),
    "above": ((), "?", True),
    "quiet": ((), "i4", QUIET_POINTS),
    "bar": ((), "f8", 1.0),
}
BY_SERIES = ("profiles", "ranks")
"""Looked up by a bin or grade of each series, so laid out series by series; the rest lies column by column."""


class Verdicts(NamedTuple):
    """As `Verdict`, an array of each."""

    score: Any
    flag: Any
    expected: Any
    low: Any
    high: Any
    warming_up: Any


class Band(NamedTuple):
    """What is expected of the next point, an array of each."""

    expected: Any
    """NaN: nothing is known."""
    low: Any
    """What lies between low and high would neither be beyond the usual deviations nor matter."""
    high: Any
    warming_up: Any


class DetectorBank:
    """Detectors numbered from 0, their state in arrays. Each judges and learns exactly as a `Detector` of its own.

    "Exactly" is up to the last bits of `log`, which numpy and the C library compute differently.
    """

    def __init__(self, capacity: int = 0, config: AnomalyConfig | None = None, state: bytes | None = None) -> None:
        """New detectors, or those of a `snapshot`, of which then `capacity` is taken at least.

        Raises:
            ValueError: the snapshot is of another version.
        """
        self.config = config or AnomalyConfig()
        self.capacity = 0
        self._fields: dict[str, Any] = {name: _new(name, 0) for name in FIELDS}
        if state is not None:
            version, self.capacity, self._fields = pickle.loads(state)  # noqa: S301 - our own snapshot
            if version != STATE_VERSION:
                raise foreign(version, STATE_VERSION, "the detectors' state")
        self.grow(capacity)

    def grow(self, capacity: int) -> None:
        """Room for series 0 to `capacity - 1`; never shrinks."""
        if capacity <= self.capacity:
            return
        for name, old in self._fields.items():
            added = _new(name, capacity - self.capacity)
            self._fields[name] = np.concatenate([old, added], axis=0 if name in BY_SERIES else -1)
        self.capacity = capacity

    def reset(self, slots: Any) -> None:
        """Forgets what was learned of these series: their numbers can be given to others."""
        for name, (_, _, first) in FIELDS.items():
            field = self._fields[name]
            if name in BY_SERIES:
                field[slots] = first
            else:
                field[..., slots] = first
        self._fields["scales"][3:7, slots] = np.nan

    def snapshot(self) -> bytes:
        """The state; a bank made from it goes on as this one does. About 1.6 kB a series."""
        return pickle.dumps((STATE_VERSION, self.capacity, self._fields), protocol=5)

    @property
    def nbytes(self) -> int:
        """Memory of the state."""
        return sum(field.nbytes for field in self._fields.values())

    def false_positive(self, slot: int) -> None:
        """A person says that a flag was none: raises the bar of the series, as `Detector.false_positive` does."""
        bar = self._fields["bar"]
        bar[slot] = min(BAR_MAX, bar[slot] * FEEDBACK_STEP)

    @property
    def bar(self) -> Any:
        """How many times the usual evidence a flag needs, by series."""
        return self._fields["bar"].copy()

    @property
    def points(self) -> Any:
        """Finite points seen, by series."""
        return self._fields["points"].copy()

    def band(self, time_us: int, slots: Any) -> Band:
        """What would be expected of a point of each of these series at this time. Learns nothing."""
        fields = self._fields
        which = np.asarray(slots, "i8")
        points = fields["points"][which]
        scales = fields["scales"]
        predictions = [fields[name][which] for name in ("fast", "mid", "slow")]
        for number, (width_us, bins, begin) in enumerate(PROFILE_PLACES):
            usual = fields["profiles"][which, time_us // width_us % bins + begin].astype("f8")
            predictions.append(usual + fields["offsets"][number, which])
        best, least = self._best(predictions, [scales[number, which] for number in range(6)])
        scale = least + SCALE_FLOOR + SCALE_FLOOR_RATIO * np.abs(predictions[2])
        config = self.config
        margin = BAND * fields["bar"][which] * scale
        margin = np.maximum(margin, np.maximum(config.min_deviation, config.min_relative_deviation * np.abs(best)))
        best = np.where(points > 0, best, np.nan)
        return Band(best, best - margin, best + margin, points < config.warmup_points)

    @staticmethod
    def _best(predictions: Sequence[Any], scales: Sequence[Any]) -> tuple[Any, Any]:
        """The prediction with the least usual error, and that error; what is NaN is not known."""
        best, least = predictions[0].copy(), scales[0].copy()
        for prediction, scale in zip(predictions[1:6], scales[1:6], strict=True):
            better = scale < least
            better &= ~np.isnan(prediction)
            np.copyto(best, prediction, where=better)
            np.copyto(least, scale, where=better)
        return best, least

    def update(self, times_us: Any, values: Any, slots: Any = None) -> Verdicts:
        """Judges one point of each of these series, then learns from it; without `slots`, of all of them.

        `times_us` is one int or an array. Costs some 0.3 us a point in large batches.

        Raises:
            ValueError: a series named twice.
        """
        values = np.asarray(values, "f8")
        times_us = np.broadcast_to(np.asarray(times_us, "i8"), values.shape)
        if slots is None:
            return self._judge(times_us, values, None)
        slots = np.asarray(slots, "i8")
        # In order, neighbouring series are neighbours in memory: half the time of a shuffled batch.
        order = np.argsort(slots, kind="stable")
        ordered = slots[order]
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError("a series is named twice: give its points one after the other")
        in_order = times_us if times_us.strides == (0,) else times_us[order]  # one time stays one
        judged = self._judge(in_order, values[order], ordered)
        result = Verdicts(*(np.empty_like(part) for part in judged))
        for into, part in zip(result, judged, strict=True):
            into[order] = part
        return result

    def _judge(self, times_us: Any, values: Any, slots: Any) -> Verdicts:
        """`update` for series in their order, or all."""
        count = values.size
        expected, low, high = np.full((3, count), np.nan)
        result = Verdicts(np.zeros(count), np.zeros(count, bool), expected, low, high, np.zeros(count, bool))
        for start in range(0, count, BLOCK):
            at: Any = slice(start, min(start + BLOCK, count))
            known = np.abs(values[at]) < LARGEST
            which: Any = at if slots is None else slots[at]
            if not known.all():
                result.warming_up[at] = self._fields["points"][which] < self.config.warmup_points
                at = start + np.flatnonzero(known)
                if not at.size:
                    continue
                which = at if slots is None else slots[at]
            for into, part in zip(result, self._update(times_us[at], values[at], which), strict=True):
                into[at] = part
        return result

    def _update(self, times_us: Any, values: Any, which: Any) -> tuple[Any, ...]:
        fields = self._fields
        points = fields["points"][which] + 1
        fields["points"][which] = points
        if (new := points == 1).any():
            for name in ("fast", "mid", "slow"):
                fields[name][which] = np.where(new, values, fields[name][which])
        expected, scale, agreed, zs = self._predict(times_us, values, which, points)
        score, rarity = self._rank(zs, which, points)
        bar = np.maximum(1.0, fields["bar"][which] * BAR_KEPT)
        deviation = values - expected
        warming_up = points <= self.config.warmup_points
        beyond = self._beyond(deviation >= 0, agreed, zs, which, bar)
        beyond &= ~warming_up
        beyond &= rarity >= self.config.flag_rarity * bar
        beyond &= self._matters(deviation, expected)
        quiet = np.maximum(fields["quiet"][which] - 1, 0)
        flag = beyond & (quiet == 0)
        fields["quiet"][which] = np.where(beyond, QUIET_POINTS, quiet)
        margin = BAND * bar * scale
        fields["bar"][which] = np.where(flag, np.minimum(BAR_MAX, bar * BAR_STEP), bar)
        return score, flag, expected, expected - margin, expected + margin, warming_up

    def _predict(self, times_us: Any, values: Any, which: Any, points: Any) -> tuple[Any, Any, Any, list[Any]]:
        fields = self._fields
        scales = fields["scales"]
        rate = 1.0 / points
        scale_rate = np.maximum(rate, SCALE)
        fast, mid, slow = (fields[name][which] for name in ("fast", "mid", "slow"))
        floor = SCALE_FLOOR + SCALE_FLOOR_RATIO * np.abs(slow)
        predictions = [fast, mid, slow]
        day = values
        for number in range(len(PROFILE_PLACES)):
            usual, moved = self._season(number, times_us, values, which)
            predictions.append(moved)
            if number == 1:
                day = usual
        best, least = self._best(predictions, [scales[number, which] for number in range(6)])
        predictions.append(day)
        best_scale = least + floor
        near = NEAR * best_scale
        side = np.where(values >= best, 1.0, -1.0)
        agreed = np.full(len(values), np.inf)
        limit = np.where(points > UNLIMITED_POINTS, ERROR_LIMIT, np.inf)
        zs = []
        for number, prediction in enumerate(predictions):
            off = values - prediction
            unknown: Any = None
            if number >= 3 and not (known := ~np.isnan(off)).all():
                if not known.any():
                    if number == 6:
                        zs.append(np.zeros(len(values)))
                    continue
                unknown = ~known
            scale = scales[number, which]
            error = np.abs(off)
            if number >= 3 and (fresh := np.isnan(scale)).any():
                # a profile just known starts no better than the fast level
                scale = np.where(fresh, np.maximum(scales[0, which], error), scale)
            spread = scale + floor
            z = off / spread
            if number < 6:  # what is unknown has no say
                has_say = spread <= near
                if unknown is not None:
                    has_say &= known
                np.minimum(agreed, z * side, out=agreed, where=has_say)
            if number in (0, 1, 2, 6):
                zs.append(z if unknown is None else np.where(unknown, 0.0, z))
            np.minimum(error, limit * spread, out=error)
            error -= scale
            error *= scale_rate
            error += scale
            scales[number, which] = error if unknown is None else np.where(unknown, scales[number, which], error)
        fields["fast"][which] = fast + np.maximum(rate, FAST) * (values - fast)
        fields["mid"][which] = mid + np.maximum(rate, MID) * (values - mid)
        fields["slow"][which] = slow + np.maximum(rate, SLOW) * (values - slow)
        return best, best_scale, agreed, zs

    def _season(self, number: int, times_us: Any, values: Any, which: Any) -> tuple[Any, Any]:
        """What a profile says by itself, and moved to where the series is now; NaN where it knows nothing."""
        fields = self._fields
        width_us, bins, begin = PROFILE_PLACES[number]
        profiles = fields["profiles"].reshape(-1)
        sums, visits = fields["sums"][number], fields["visits"][number]
        at: Any
        if times_us.strides[0] == 0:  # one time for all
            at = int(times_us[0]) // width_us % bins + begin
        else:
            at = (times_us // width_us % bins + begin).astype("i4")
        left = fields["bins"][number, which]
        series = np.arange(which.start, which.stop) if isinstance(which, slice) else which
        rows = series * PROFILE_BINS
        moved = np.flatnonzero(at != left)
        if moved.size:
            ended = moved[left[moved] >= 0]
            gone = series[ended]
            mean = sums[gone] / visits[gone]
            place = rows[ended] + left[ended]
            usual = profiles[place].astype("f8")
            profiles[place] = np.where(np.isnan(usual), mean, usual + PROFILE * (mean - usual))
            fresh = series[moved]
            fields["bins"][number, fresh] = at if isinstance(at, int) else at[moved]
            sums[fresh] = 0.0
            visits[fresh] = 0
        sums[which] += values
        visits[which] += 1
        usual = profiles[rows + at].astype("f8")
        offset = fields["offsets"][number, which]
        prediction = usual + offset
        fields["offsets"][number, which] = np.where(np.isnan(usual), offset, offset + OFFSET * (values - prediction))
        return usual, prediction

    def _rank(self, zs: list[Any], which: Any, points: Any) -> tuple[Any, Any]:
        fields = self._fields
        most = np.zeros(len(points))
        below = np.zeros(len(points), bool)
        for z in zs:
            square = z * z
            more = square > most
            below = np.where(more, z < 0, below)
            most = np.where(more, square, most)
        surprise = np.log(1.0 + most / SURPRISE_Z2)
        smooth = fields["smooth"][which]
        smooth = smooth + SMOOTHING * (surprise - smooth)
        fields["smooth"][which] = smooth
        grade = np.minimum(GRADES - 1, 0.5 * (surprise + smooth) * PER_GRADE).astype("i8")
        series = np.arange(which.start, which.stop) if isinstance(which, slice) else which
        begin = series * (2 * GRADES) + np.where(below, GRADES, 0)
        ranks = fields["ranks"].reshape(-1)
        weight, total = fields["weight"][which], fields["total"][which]
        share = (2.0 * ranks[begin + grade] + weight) / (total + 2.0 * weight)
        stretch = np.maximum(1.0, LOG_MEMORY / np.log(total / weight + 2.5))
        weight = weight * GROWTH
        total = total + weight
        ranks[begin] += weight
        higher = np.flatnonzero(grade)
        for step in range(1, GRADES):
            if higher.size == 0:
                break
            ranks[begin[higher] + step] += weight[higher]
            higher = higher[grade[higher] > step]
        heavy = np.flatnonzero(weight > WEIGHT_MAX)
        if heavy.size:
            fields["ranks"][series[heavy]] /= weight[heavy, None]
            total[heavy] /= weight[heavy]
            weight[heavy] = 1.0
        fields["weight"][which], fields["total"][which] = weight, total
        warm = points > self.config.warmup_points
        rarity = np.where(warm, np.maximum(0.0, -np.log(share)) * stretch, 0.0)
        return self._damped(rarity, warm, which, points), rarity

    def _damped(self, rarity: Any, warm: Any, which: Any, points: Any) -> Any:
        """Scores; those of an episode that goes on are held down."""
        peak = self._fields["peak"][which]
        fade = 1.0 - 1.0 / np.minimum(FORGET_SHARE * points + FORGET_MIN, FORGET_MAX)
        peak = np.where(warm, peak * fade, peak)
        score = 1.0 - np.exp(-rarity)
        high = np.flatnonzero(rarity > HELD_RARITY)
        if high.size:
            score[high] = np.where(rarity[high] <= peak[high] + CLIMB, HELD_SCORE, score[high])
            peak[high] = np.maximum(peak[high], rarity[high])
        self._fields["peak"][which] = peak
        return score

    def _beyond(self, above: Any, agreed: Any, zs: list[Any], which: Any, bar: Any) -> Any:
        fields = self._fields
        kept = np.where(above == fields["above"][which], fields["evidence"][which], 0.0)
        fields["above"][which] = above
        a, b, c, d = (np.where(above, z, -z) for z in zs)
        second = np.maximum(
            np.minimum(np.maximum(a, b), np.maximum(c, d)), np.maximum(np.minimum(a, b), np.minimum(c, d))
        )
        evidence = EVIDENCE_KEPT * kept + np.minimum(agreed, second) - EVIDENCE_DRIFT * bar
        fields["evidence"][which] = np.maximum(0.0, evidence)
        return evidence >= EVIDENCE * bar

    def _matters(self, deviation: Any, expected: Any) -> Any:
        config = self.config
        size = np.abs(deviation)
        enough = (size >= config.min_deviation) & (size >= config.min_relative_deviation * np.abs(expected))
        if config.direction is Direction.ABOVE:
            enough &= deviation > 0
        elif config.direction is Direction.BELOW:
            enough &= deviation <= 0
        return enough


def _new(name: str, series: int) -> Any:
    shape, kind, first = FIELDS[name]
    field = np.full((series, *shape) if name in BY_SERIES else (*shape, series), first, kind)
    if name == "scales":
        field[3:7] = np.nan
    return field
