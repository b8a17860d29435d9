"""Medians and what they may be: percentile bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

__all__ = ["LEVEL", "Estimate", "median", "ratio"]

LEVEL = 0.95
_SAMPLES = 4000
_LEAST = 3
"""Values below which no interval is given."""


class Estimate(msgspec.Struct, frozen=True):
    """A value, the ends of its interval (``None``: too few values), and of how many it is made."""

    value: float
    low: float | None
    high: float | None
    count: int


def _medians(values: Sequence[float], seed: int) -> np.ndarray:
    """Medians of samples of the values, drawn with replacement."""
    array = np.asarray(values, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(array), (_SAMPLES, len(array)))
    medians: np.ndarray = np.median(array[drawn], axis=1)
    return medians


def _bounds(samples: np.ndarray) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def median(values: Sequence[float], seed: int = 1) -> Estimate | None:
    """The median with its 95 % interval; ``None`` of no values. Equal input, equal result."""
    if not values:
        return None
    low, high = _bounds(_medians(values, seed)) if len(values) >= _LEAST else (None, None)
    return Estimate(float(np.median(values)), low, high, len(values))


def ratio(values: Sequence[float], base: Sequence[float], seed: int = 1) -> Estimate | None:
    """How many times the median of ``base`` that of ``values`` is; ``None`` if that is nothing."""
    if not values or not base or not np.median(base):
        return None
    point = float(np.median(values) / np.median(base))
    count = min(len(values), len(base))
    if count < _LEAST:
        return Estimate(point, None, None, count)
    above, below = _medians(values, seed), _medians(base, seed + 1)
    samples = above[below > 0] / below[below > 0]
    return Estimate(point, *_bounds(samples), count)
