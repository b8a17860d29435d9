"""Blocks that identify themselves: whose they are, where they belong and how old they are.

A unit is filled with 32-byte records of four little-endian 64-bit words::

    magic | position | sequence | checksum = mix64(position, sequence)

``position`` counts records from the start of the disk (or of memory), so that no two records of a
disk are alike and a sector that lands elsewhere is told from one that belongs. A unit is whole if
all its records are valid, belong where they are and have one and the same sequence. Sequence 0 is
what a disk held before the guest first wrote it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "DISK_MAGIC",
    "FOREIGN",
    "MEMORY_MAGIC",
    "RECORD",
    "ZERO",
    "mix64",
    "prefilled",
    "read_stamps",
    "stamp",
]

Words = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]

RECORD = 32
"""Bytes of one record."""
DISK_MAGIC = int.from_bytes(b"vmfydisk", "little")
MEMORY_MAGIC = int.from_bytes(b"vmfymemo", "little")
ZERO = -1
"""What ``read_stamps`` says of a unit that is all zeroes."""
FOREIGN = -2
"""What ``read_stamps`` says of a unit that is torn, misplaced, damaged or not ours."""
PREFILL_CHUNK = 256 * 1024
"""Bytes that are filled, or left a hole, together when a disk is made."""

_WORDS = RECORD // 8


def mix64(first: Words, second: Words) -> Words:
    """Checksum of two numbers: the finaliser of SplitMix64 over both; arrays, element by element.

    The constants are those of Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators" (OOPSLA 2014).
    """
    mixed: Words = first * np.uint64(0x9E3779B97F4A7C15) + second * np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _positions(units: Numbers, size: int) -> Words:
    """Positions of all records of ``units``, one row a unit."""
    per_unit = size // RECORD
    first = units.astype(np.uint64) * np.uint64(per_unit)
    positions: Words = np.add(first[:, None], np.arange(per_unit, dtype=np.uint64), dtype="<u8")
    return positions


def stamp(magic: int, units: Numbers, sequences: Numbers, size: int) -> Words:
    """Contents of ``units`` (indices of units of ``size`` bytes) written with ``sequences``.

    Returns one row of 64-bit words a unit.
    """
    records = np.empty((len(units), size // RECORD, _WORDS), dtype="<u8")
    records[:, :, 0] = magic
    records[:, :, 1] = _positions(units, size)
    records[:, :, 2] = sequences.astype(np.uint64)[:, None]
    records[:, :, 3] = mix64(records[:, :, 1], records[:, :, 2])
    return records.reshape(len(units), size // 8)


def read_stamps(magic: int, units: Numbers, data: Words) -> Numbers:
    """Sequence that each unit of ``data`` (one row a unit) holds, or ``ZERO`` or ``FOREIGN``."""
    size = data.shape[1] * 8
    records = data.reshape(len(units), size // RECORD, _WORDS)
    sequence = records[:, :, 2]
    whole = (records[:, :, 0] == np.uint64(magic)) & (records[:, :, 1] == _positions(units, size))
    whole &= sequence == sequence[:, :1]
    whole &= records[:, :, 3] == mix64(records[:, :, 1], sequence)
    found = np.where(whole.all(axis=1), sequence[:, 0].astype(np.int64), np.int64(FOREIGN))
    found[~data.any(axis=1)] = ZERO
    return found


def prefilled(units: Numbers, size: int, fraction: float) -> npt.NDArray[np.bool_]:
    """Which ``units`` of ``size`` bytes were filled with sequence 0 when the disk was made.

    Chunks of ``PREFILL_CHUNK`` bytes are filled or left holes, by a hash of their number, so that
    the original contents need no record. ``size`` divides the chunk.
    """
    if fraction >= 1:
        return np.ones(len(units), dtype=np.bool_)
    chunks = (units * size // PREFILL_CHUNK).astype(np.uint64)
    threshold = np.uint64(int(fraction * 2**64))
    return mix64(chunks, np.full_like(chunks, 0x6469736B)) < threshold
