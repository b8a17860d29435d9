"""Disk contents that say what they are: every 16 bytes of a sector name its place and its write.

A sector that was moved, torn or spoilt in any byte is no stamp of its place.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["FOREIGN", "ZERO", "Numbers", "decode", "encode"]

Numbers: TypeAlias = NDArray[np.int32]

FOREIGN = -1
"""A sector that no write of the guest's at this place can have made."""
ZERO = 0
"""A sector of zeroes."""

_MAGIC = 0x5AFE << 48
_WORD = np.dtype("<u8")


def _places(disk: int, first: int, count: int) -> NDArray[np.uint64]:
    return np.arange(first, first + count, dtype=np.uint64) + np.uint64(_MAGIC | disk << 40)


def encode(disk: int, first: int, count: int, sequence: int, sector_size: int) -> bytes:
    """What write number ``sequence`` puts into ``count`` sectors from ``first``."""
    words = np.empty((count, sector_size // 16, 2), _WORD)
    words[:, :, 0] = _places(disk, first, count)[:, None]
    words[:, :, 1] = sequence
    return words.tobytes()


def decode(data: memoryview, disk: int, first: int, sector_size: int) -> Numbers:
    """For each sector the number of its write, ``ZERO`` or ``FOREIGN``."""
    words = np.frombuffer(data, _WORD).reshape(-1, sector_size // 16, 2)
    place, sequence = words[:, 0, 0], words[:, 0, 1]
    whole = (words == words[:, :1]).all(axis=(1, 2))
    zero = whole & (place == 0) & (sequence == 0)
    ours = whole & (place == _places(disk, first, len(words))) & (sequence < 1 << 31)
    numbers = np.where(ours, sequence, np.uint64(0)).astype(np.int32)
    return np.where(ours | zero, numbers, np.int32(FOREIGN))
