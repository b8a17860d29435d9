"""Medians and what they may be: percentile bootstrap, and the range of few values."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

__all__ = ["LEVEL", "SPREAD", "Estimate", "median", "ratio"]

LEVEL = 0.95
_SAMPLES = 4000
_LEAST = 6
"""Values below which there is no such interval: even from the least to the greatest of ``n``, the
true median is missed with a chance of ``2 ** (1 - n)``."""
SPREAD = f"{LEVEL:.0%} interval by bootstrap, of fewer than {_LEAST} runs their range"
"""What the ends of an ``Estimate`` are, for people."""


class Estimate(msgspec.Struct, frozen=True):
    """A value, and between what it may be.

    Attributes:
        value: the value.
        low, high: ends of its interval, or of the range if there are too few values for one;
            ``None`` of a single value.
        count: of how many values it is made.

    """

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def spread(self) -> str:
        """What ``low`` and ``high`` are the ends of, for people."""
        return f"{LEVEL:.0%}" if self.count >= _LEAST else f"range of {self.count}"


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
    """The median with its interval or range; ``None`` of no values. Equal input, equal result."""
    if not values:
        return None
    point, count = float(np.median(values)), len(values)
    if count == 1:
        return Estimate(point, None, None, count)
    if count < _LEAST:
        return Estimate(point, float(min(values)), float(max(values)), count)
    return Estimate(point, *_bounds(_medians(values, seed)), count)


def ratio(values: Sequence[float], base: Sequence[float], seed: int = 1) -> Estimate | None:
    """How many times the median of ``base`` that of ``values`` is; ``None`` if that is nothing.

    The range is that of what any of the ``values`` is to any of ``base``.
    """
    if not values or not base or not np.median(base):
        return None
    point = float(np.median(values) / np.median(base))
    count = min(len(values), len(base))
    if count == 1:
        return Estimate(point, None, None, count)
    if count < _LEAST:
        some = [value for value in base if value > 0]
        return Estimate(point, min(values) / max(some), max(values) / min(some), count)
    above, below = _medians(values, seed), _medians(base, seed + 1)
    samples = above[below > 0] / below[below > 0]
    return Estimate(point, *_bounds(samples), count)
