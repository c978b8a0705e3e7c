"""The quantile sketch: OpenTelemetry's base-2 exponential histogram, as sorted integer codes.

At scale s the base is 2^(2^-s); OpenTelemetry's bucket b holds (base^b, base^(b+1)]. A *code* is one signed integer
that orders all values: a positive value's code is b + 1024 * 2^s (so at least 1), zero is 0, and -v has the negative of
v's code. Subnormals count as the smallest normal number. Reducing the scale by k shifts a code's magnitude right
by k, exactly, so sketches of any scales merge without loss beyond the coarser one's error.

A quantile answers the sample of *nearest rank* (rank max(1, ceil(q * count)); Hyndman-Fan type 1, numpy's
`inverted_cdf`) with a relative error of at most (base - 1) / (base + 1): 0.55 % at scale 6.

A window row has at most MAX_BUCKETS buckets: with more, it is written at the finest scale at which it has no more, and
each scale less doubles the error (1.1 % at 5, 2.2 % at 4). That takes values which fill 256 octaves (77 orders of
magnitude) at scale 6, or 64 at scale 8. OpenTelemetry's histogram does the same beyond its `max_size`, of 160.

Source: opentelemetry-proto metrics.proto, `ExponentialHistogramDataPoint`; the error is that of DDSketch
(Masson, Rim, Lee 2019, section 2.1), whose midpoint this uses.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tailrace_flows.core.config import DEFAULT_SCALE, MAX_SCALE

__all__ = [
    "CODE_BITS", "DEFAULT_SCALE", "MAX_BUCKETS", "MAX_SCALE", "codes_of", "downscale", "quantiles", "relative_error",
    "values_of",
]  # fmt: skip

CODE_BITS: Final = 21
"""Bits that hold any code plus 2^20, at any scale up to MAX_SCALE."""

MAX_BUCKETS: Final = 1 << 14
"""Of one row, which then has 200 kB of them and fits into a message. At scale 0 there are 4,093 in all."""

_SMALLEST_NORMAL: Final = float(np.finfo(np.float64).tiny)


def relative_error(scale: int) -> float:
    """The greatest relative error of a quantile at this scale."""
    base: float = 2.0 ** (2.0**-scale)
    return (base - 1) / (base + 1)


@lru_cache(maxsize=MAX_SCALE + 1)
def _mantissas(scale: int) -> NDArray[np.float64]:
    """2^(j / 2^scale) for j in 0..2^scale, rounded down, so that a float is above the edge if it is above this.

    Integer square roots of square roots: exact on every platform, where a long double is not.
    """
    edges = []
    for step in range((1 << scale) + 1):
        root = 1 << ((52 << scale) + step)  # (2^52 * 2^(step / 2^scale)) ^ (2^scale)
        for _ in range(scale):
            root = math.isqrt(root)
        edges.append(root / 2.0**52)
    return np.array(edges)


def codes_of(values: NDArray[np.float64], scale: int) -> NDArray[np.int64]:
    """The code of each finite value. About 5 ns a value.

    The logarithm decides, but for values within 1e-9 of a bucket's edge, which are compared with the edge itself:
    powers of two always fall below their edge, as OpenTelemetry demands.
    """
    if values.size == 0:
        return np.empty(0, np.int64)
    least = values.min()
    if least >= _SMALLEST_NORMAL:
        return _positive_codes(values, scale)
    magnitudes = np.maximum(np.abs(values), _SMALLEST_NORMAL)
    codes = _positive_codes(magnitudes, scale)
    return np.where(values > 0, codes, np.where(values < 0, -codes, 0))


def _positive_codes(values: NDArray[np.float64], scale: int) -> NDArray[np.int64]:
    per_octave = 1 << scale
    position = np.log2(values)
    position *= per_octave
    upper = np.ceil(position)  # the bucket's upper edge; bucket b = upper - 1
    codes = upper.astype(np.int64)
    codes += 1024 * per_octave - 1
    # Distance to the nearest edge, reusing the arrays: upper - position is in [0, 1).
    upper -= position
    np.minimum(upper, 1.0 - upper, out=upper)
    near = np.flatnonzero(upper < 1e-9)
    if near.size:
        edge = np.rint(position[near]).astype(np.int64)  # v is next to 2^(edge / per_octave)
        exponent, step = np.divmod(edge, per_octave)
        # 2^1024 overflows to inf, which no value exceeds.
        with np.errstate(over="ignore"):
            above = values[near] > np.ldexp(_mantissas(scale)[step], exponent)
        codes[near] = edge - 1 + above + 1024 * per_octave
    return codes


def downscale(codes: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """The codes `by` scales coarser: exact merges of neighbouring buckets."""
    coarser: NDArray[np.int64] = np.sign(codes) * (np.abs(codes) >> by)
    return coarser


def values_of(codes: NDArray[np.int64], scale: int) -> NDArray[np.float64]:
    """The value that stands for each code: the harmonic mean of its bucket's edges, which halves the error."""
    base: float = 2.0 ** (2.0**-scale)
    lower = np.exp2((np.abs(codes) - (1024 << scale)) / (1 << scale))
    middle: NDArray[np.float64] = np.sign(codes) * lower * (2 * base / (1 + base))
    return middle


def quantiles(
    codes: NDArray[np.int64],
    counts: NDArray[np.int64],
    scale: int,
    qs: NDArray[np.float64],
    minimum: float,
    maximum: float,
) -> NDArray[np.float64]:
    """The quantiles `qs` (0..1) of a sketch with ascending codes, clamped to the exact minimum and maximum.

    Raises:
        ValueError: the sketch is empty, or a q is outside 0..1.
    """
    if counts.size == 0:
        raise ValueError("an empty sketch has no quantiles")
    if not ((qs >= 0) & (qs <= 1)).all():
        raise ValueError("a quantile is asked for by a fraction from 0 to 1")
    cumulative = np.cumsum(counts)
    # ceil(q * n), forgiving the last bits of q * n: 0.07 * 100 is 7.000000000000001 in floats.
    product = qs * cumulative[-1]
    ranks = np.maximum(1, np.ceil(product - 1e-12 * np.maximum(product, 1)))
    found = values_of(codes[np.searchsorted(cumulative, ranks)], scale)
    found = np.clip(found, minimum, maximum)
    return np.where(qs == 0, minimum, np.where(qs == 1, maximum, found))
