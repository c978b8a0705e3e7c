"""What the window flow should give, computed the slow and obvious way: plain Python, exact, all samples at hand.

Nothing here shares code with `tailrace_flows.core`. `expect` reads logs of batches as the flow would and says which
rows and counters must come out, however the logs were cut into polls and however often the flow was killed.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
from tailrace_flows.core.config import WindowConfig
from tailrace_schemas.samples import Series, encode_batch, encode_sample, encode_series_table
from tailrace_schemas.topics import shard_of

DAY_US = 24 * 3600 * 1_000_000
SMALLEST_NORMAL = 2.0**-1022
MAX_ROW_BUCKETS = 16_384
"""A row of more is as much coarser as it takes."""
MAX_TIME_US = 4_102_444_800_000_000


class Batch(NamedTuple):
    """A record of the samples topic. `samples` are (row of the table, time_us, value)."""

    service: str
    stream: str
    producer: str
    sequence: int
    table: tuple[Series, ...]
    samples: tuple[tuple[int, int, float], ...]
    record_time_us: int
    end: bool = False

    def encode(self) -> bytes:
        """The message."""
        base_us = min((time_us for _, time_us, _ in self.samples), default=0)
        base_us = min(max(base_us, 0), MAX_TIME_US)
        return encode_batch(
            service=self.service,
            producer_id=self.producer,
            sequence=self.sequence,
            base_time_us=base_us,
            series_table=encode_series_table(self.table),
            series_index=np.array([row for row, _, _ in self.samples], "<u4").tobytes(),
            time_offset_us=np.array([time_us - base_us for _, time_us, _ in self.samples], "<i4").tobytes(),
            value=np.array([value for _, _, value in self.samples], "<f8").tobytes(),
            stream=self.stream,
            end_of_stream=self.end,
        )


class Single(NamedTuple):
    """A record that is a `Sample` message."""

    service: str
    stream: str
    series: Series
    time_us: int
    value: float
    record_time_us: int

    def encode(self) -> bytes:
        """The message."""
        return encode_sample(self.service, self.series, self.time_us, self.value, self.stream)

    def as_batch(self) -> Batch:
        samples = ((0, self.time_us, self.value),)
        return Batch(self.service, self.stream, "", -1, (self.series,), samples, self.record_time_us)


class Garbage(NamedTuple):
    """A record that cannot be read."""

    value: bytes | None
    reason: str
    record_time_us: int

    def encode(self) -> bytes | None:
        """The message."""
        return self.value


Entry = Batch | Single | Garbage


class Sample(NamedTuple):
    """A sample that is in a window."""

    service: str
    stream: str
    series: Series
    time_us: int
    value: float


class Key(NamedTuple):
    """What names a row."""

    seconds: int
    service: str
    stream: str
    series: Series
    start_s: int


@dataclass
class Row:
    """A window row. `sum` and `increase` are exact, with the size of what was added up to judge an error by."""

    count: int
    sum: Fraction | None
    sum_size: Fraction
    min: float | None
    max: float | None
    last: float | None
    increase: Fraction | None
    increase_size: Fraction
    resets: int | None
    buckets: dict[int, int]
    scale: int | None
    points: int
    """Upper limit of the version's count."""


@dataclass
class Expected:
    """What must come out in the end."""

    rows: dict[Key, Row] = field(default_factory=dict)
    counters: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    """(scope, service, stream, name) -> total."""
    samples: list[Sample] = field(default_factory=list)
    """Those that are in windows."""
    letters: int = 0
    """Dead letters."""


@lru_cache(1 << 16)
def exact_code(value: float, scale: int) -> int:
    """The sketch code of a value, by comparing its 2^scale-th power with powers of two: no logarithm, no rounding."""
    if value == 0:
        return 0
    magnitude = Fraction(max(abs(value), SMALLEST_NORMAL)) ** (1 << scale)
    # magnitude = n / 2^k, so that ceil(log2(magnitude)) is that of n less k.
    upper = (magnitude.numerator - 1).bit_length() - (magnitude.denominator.bit_length() - 1)
    code = upper - 1 + (1024 << scale)
    return code if value > 0 else -code


def nearest_rank(values: Iterable[float], q: Fraction) -> float:
    """The sample of rank max(1, ceil(q * n))."""
    ordered = sorted(values)
    rank = max(1, -((-q * len(ordered)) // 1))
    return ordered[int(rank) - 1]


def rows_of(samples: Iterable[Sample], config: WindowConfig) -> dict[Key, Row]:
    """All rows of these samples."""
    by_series: dict[tuple[str, str, Series], list[Sample]] = defaultdict(list)
    for sample in samples:
        by_series[(sample.service, sample.stream, sample.series)].append(sample)
    rows: dict[Key, Row] = {}
    for (service, stream, series), group in by_series.items():
        steps = _steps(group) if series.kind == "cumulative" else []
        for seconds in (config.window_seconds, config.rollup_seconds):
            length_us = seconds * 1_000_000
            for start in sorted({s.time_us // length_us for s in group}):
                inside = [s for s in group if s.time_us // length_us == start]
                increases = [step for step in steps if step.time_us // length_us == start]
                key = Key(seconds, service, stream, series, start * seconds)
                rows[key] = _row(series.kind, inside, increases, config.scale)
    return rows


class _Step(NamedTuple):
    """A point of a cumulative counter, and what it adds."""

    time_us: int
    increase: Fraction | None
    reset: bool
    points: int


def _steps(group: list[Sample]) -> list[_Step]:
    steps: list[_Step] = []
    before: tuple[int, float] | None = None
    for points, (time_us, value) in enumerate(sorted((s.time_us, s.value) for s in group), start=1):
        if before is not None and time_us - before[0] > DAY_US:
            before = None
        if before is None:
            steps.append(_Step(time_us, None, False, points))
        elif value < before[1]:
            steps.append(_Step(time_us, Fraction(value), True, points))
        else:
            steps.append(_Step(time_us, Fraction(value) - Fraction(before[1]), False, points))
        before = (time_us, value)
    return steps


def _row(kind: str, inside: list[Sample], steps: list[_Step], scale: int) -> Row:
    values = [s.value for s in inside]
    exact = [Fraction(v) for v in values]
    spread = kind in ("distribution", "gauge")
    known = [step.increase for step in steps if step.increase is not None]
    increase = size = None
    if kind == "counter":
        increase, size = sum(exact, Fraction()), sum(map(abs, exact), Fraction())
    elif kind == "event":
        increase = size = Fraction(len(values))
    elif known:
        increase = size = sum(known, Fraction())
    buckets: Counter[int] = Counter()
    if kind == "distribution":
        buckets = Counter(exact_code(value, scale) for value in values)
        while len(buckets) > MAX_ROW_BUCKETS:
            scale -= 1
            buckets = Counter(exact_code(value, scale) for value in values)
    return Row(
        count=len(values),
        sum=None if kind == "cumulative" else sum(exact, Fraction()),
        sum_size=sum(map(abs, exact), Fraction()),
        min=min(values) if spread else None,
        max=max(values) if spread else None,
        last=max((s.time_us, s.value) for s in inside)[1] if kind in ("gauge", "cumulative") else None,
        increase=increase,
        increase_size=size or Fraction(),
        resets=sum(step.reset for step in steps) if kind == "cumulative" else None,
        buckets=dict(buckets),
        scale=scale if kind == "distribution" else None,
        points=max((step.points for step in steps), default=len(values)),
    )


def expect(logs: Sequence[Sequence[Entry]], config: WindowConfig, *, whole: bool = True) -> Expected:
    """What partitions with these logs must give, read from their starts.

    For services that are each in one partition, as long as no idleness and no series limit intervenes.
    `whole`: the partitions begin at offset 0.
    """
    found = Expected()
    counters: dict[tuple[str, str, str, str], int] = defaultdict(int)
    for number, log in enumerate(logs):
        _read_log(f"partition {number}", log, config, whole, found, counters)
    found.rows = rows_of(found.samples, config)
    found.counters = {key: total for key, total in counters.items() if total}
    return found


def _read_log(
    scope: str,
    log: Sequence[Entry],
    config: WindowConfig,
    whole: bool,
    found: Expected,
    counters: dict[tuple[str, str, str, str], int],
) -> None:
    watermarks: dict[tuple[str, str], float] = defaultdict(lambda: -inf)
    seen: dict[tuple[str, str, str], set[int]] = {}
    highest: dict[tuple[str, str, str], int] = {}
    for entry in log:
        if isinstance(entry, Garbage):
            counters[(scope, "", "", f"dead_letters.{entry.reason}")] += 1
            found.letters += 1
            continue
        batch = entry.as_batch() if isinstance(entry, Single) else entry
        name = (batch.service, batch.stream)
        if batch.sequence >= 0:
            producer = (*name, batch.producer)
            if producer not in seen:
                seen[producer] = set()
                highest[producer] = -1 if whole else batch.sequence - 1
            if batch.sequence in seen[producer] or (not seen[producer] and batch.sequence <= highest[producer]):
                counters[(scope, *name, "duplicate_batches")] += 1
                counters[(scope, *name, "duplicate_samples")] += len(batch.samples)
                continue
            seen[producer].add(batch.sequence)
            missing = batch.sequence - highest[producer] - 1
            counters[(scope, *name, "missing_batches")] += max(0, missing)
            counters[(scope, *name, "recovered_batches")] += missing < 0
            highest[producer] = max(highest[producer], batch.sequence)
        shard = f"shard {shard_of(batch.service)}"
        newest = -inf
        reasons = set()
        for row, time_us, value in batch.samples:
            reason = _refusal(batch, row, time_us, value, config)
            if reason:
                counters[(scope, *name, f"dead_letters.{reason}")] += 1
                reasons.add(reason)
                continue
            newest = max(newest, time_us)
            end_us = time_us // config.window_us * config.window_us + config.window_us
            if end_us + config.lateness_us <= watermarks[name]:
                counters[(shard, *name, "late_samples")] += 1
            else:
                counters[(shard, *name, "samples")] += 1
                found.samples.append(Sample(*name, batch.table[row], time_us, value))
        found.letters += len(reasons)
        watermarks[name] = max(watermarks[name], newest - config.disorder_us)
        if batch.end:
            watermarks[name] = inf
            counters[(shard, *name, "ended")] = 1


def _refusal(batch: Batch, row: int, time_us: int, value: float, config: WindowConfig) -> str | None:
    if row >= len(batch.table):
        return "bad_index"
    if not isfinite(value):
        return "not_finite"
    if not 0 <= time_us <= MAX_TIME_US:
        return "time_out_of_range"
    if time_us > batch.record_time_us + config.max_future_us:
        return "too_far_in_future"
    if batch.table[row].kind in ("counter", "cumulative") and value < 0:
        return "negative_count"
    return None
