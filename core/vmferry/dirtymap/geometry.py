"""Sizes, block sizes and how bytes are rounded to blocks."""

from __future__ import annotations

from vmferry.errors import InputError
from vmferry.units import MIB

__all__ = [
    "MAX_BLOCK_SIZE",
    "MAX_SIZE",
    "MIN_BLOCK_SIZE",
    "block_count",
    "check_geometry",
    "inner_blocks",
    "outer_blocks",
]

MIN_BLOCK_SIZE = 512
MAX_BLOCK_SIZE = 16 * MIB
MAX_SIZE = 2**53
"""Bytes of the largest disk: beyond it, sums of two offsets are no longer checked for overflow."""


def check_geometry(size: int, block_size: int) -> None:
    """Raise ``InputError`` unless ``size`` bytes can be tracked in blocks of ``block_size``."""
    if not isinstance(size, int) or not 0 < size <= MAX_SIZE:
        raise InputError(f"disk size {size!r} is not a whole number from 1 to {MAX_SIZE} bytes")
    if not isinstance(block_size, int) or not _is_block_size(block_size):
        raise InputError(
            f"block size {block_size!r} is not a power of two "
            f"from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE} bytes"
        )


def _is_block_size(value: int) -> bool:
    return MIN_BLOCK_SIZE <= value <= MAX_BLOCK_SIZE and not value & (value - 1)


def block_count(size: int, block_size: int) -> int:
    """Blocks of a disk of ``size`` bytes; the last one may be partial."""
    return -(-size // block_size)


def outer_blocks(offset: int, length: int, block_size: int) -> tuple[int, int]:
    """``(first, stop)`` of the blocks that ``[offset, offset + length)`` touches.

    Without a byte there is no block: ``first == stop`` when ``length`` is 0.
    """
    first = offset // block_size
    return first, first if not length else -(-(offset + length) // block_size)


def inner_blocks(offset: int, length: int, block_size: int, size: int) -> tuple[int, int]:
    """``(first, stop)`` of the blocks wholly inside ``[offset, offset + length)``.

    The partial last block of a disk of ``size`` bytes is inside when the range reaches the end
    of the disk. ``first == stop`` when there is none.
    """
    end = offset + length
    first = -(-offset // block_size)
    stop = block_count(size, block_size) if end >= size else end // block_size
    return first, max(first, stop)
