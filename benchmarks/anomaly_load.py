"""Synthetic series of a service: daily and weekly seasons, noise of several kinds, and shifts to be found."""

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["NOISES", "Load", "generate"]

MINUTE_US = 60_000_000
DAY = 1_440
START_US = 1_699_833_600_000_000  # Monday 2023-11-13 00:00 UTC

NOISES = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "autocorrelated": lambda rng, shape: _autocorrelated(rng, shape),
    "log-normal": lambda rng, shape: rng.standard_normal(shape),
    "Student t, 4 d.f.": lambda rng, shape: rng.standard_t(4, shape) / np.sqrt(2),
}
"""Of unit deviation; log-normal noise is applied in the exponent."""


@dataclass(frozen=True)
class Load:
    """1 m windows of `series` series over `days`; noise is the standard deviation relative to the level."""

    series: int = 1_000
    days: int = 28
    noise: float = 0.05
    kind: str = "normal"
    seed: int = 1
    shifts: bool = False
    """Add 50 % for 10 minutes on the days 9, 16 and 23 (at a random minute)."""


def generate(load: Load) -> tuple[Any, Any, Any]:
    """Times in us, values (series, minutes), and where shifts begin (series, shifts): minutes, empty without shifts.

    Each series has its own level (0.01 to 10,000), daily wave of 10 to 50 % with a half-day overtone, and a quieter
    weekend (up to -50 %, over some hours).
    """
    rng = np.random.default_rng(load.seed)
    minutes = load.days * DAY
    times_us = START_US + MINUTE_US * np.arange(minutes, dtype="i8")
    at = np.arange(minutes) / DAY
    one = (load.series, 1)
    wave = rng.uniform(0.1, 0.5, one) * np.sin(2 * np.pi * (at - rng.random(one)))
    wave += rng.uniform(0, 0.15, one) * np.sin(4 * np.pi * (at - rng.random(one)))
    hour = at * 24 % 168
    weekend = 1 / (1 + np.exp(-(hour - 120) / 1.5)) - 1 / (1 + np.exp(-(hour - 167) / 1.5))
    values = (1 + wave) * (1 - rng.uniform(0, 0.5, one) * weekend)
    noise = load.noise * NOISES[load.kind](rng, values.shape)
    values *= np.exp(noise) if load.kind == "log-normal" else 1 + noise
    values *= 10 ** rng.uniform(-2, 4, one)
    begins = np.empty((load.series, 0), dtype="i8")
    if load.shifts:
        days = np.arange(8, load.days, 7)
        begins = days * DAY + rng.integers(0, DAY - 10, (load.series, days.size))
        rows = np.arange(load.series)[:, None]
        for step in range(10):
            values[rows, begins + step] *= 1.5
    return times_us, values, begins


def _autocorrelated(rng: Any, shape: tuple[int, int]) -> Any:
    """AR(1) with a coefficient of 0.8."""
    noise = rng.standard_normal(shape) * np.sqrt(1 - 0.8**2)
    for step in range(1, shape[1]):
        noise[:, step] += 0.8 * noise[:, step - 1]
    return noise
