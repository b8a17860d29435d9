"""Chance that repeats itself: independent random streams that a seed and a name decide."""

from __future__ import annotations

import random

__all__ = ["stream"]


def stream(seed: int | str, name: str) -> random.Random:
    """The generator of that seed and name; the same in every process and Python version."""
    return random.Random(f"{seed}/{name}")  # noqa: S311 - it must repeat, not be secret
