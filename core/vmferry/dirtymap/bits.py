"""The arithmetic on one chunk: a bitmap of ``CHUNK_BLOCKS`` blocks, little-endian bit order.

A chunk is a ``bitarray``: it marks and searches ranges in a fraction of a microsecond. numpy
works on the same memory as 64-bit words where a whole chunk is to be turned into runs or back.
Runs are described by their edges: the blocks where clean turns dirty and dirty turns clean, in
turn.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros
from numpy.typing import NDArray

__all__ = [
    "CHUNK_BLOCKS",
    "CHUNK_BYTES",
    "CHUNK_MASK",
    "CHUNK_SHIFT",
    "Blocks",
    "Octets",
    "chunk_edges",
    "clear_bits",
    "coarsen_octets",
    "fill_chunk",
    "octets",
]

CHUNK_SHIFT = 18
CHUNK_BLOCKS = 1 << CHUNK_SHIFT
CHUNK_MASK = CHUNK_BLOCKS - 1
CHUNK_BYTES = CHUNK_BLOCKS // 8

Blocks: TypeAlias = NDArray[np.int64]
Words: TypeAlias = NDArray[np.uint64]
Octets: TypeAlias = NDArray[np.uint8]

_WORD = np.dtype("<u8")
_DENSE_WORDS = CHUNK_BYTES // 8 // 4
"""From so many words with an edge on, expanding all of them beats picking them out."""

_HALVED = np.array(
    [sum(1 << bit for bit in range(4) if byte >> 2 * bit & 3) for byte in range(256)], np.uint8
)
"""For each byte, its four pairs of bits ORed into the low four bits."""


def clear_bits(count: int = CHUNK_BLOCKS) -> bitarray:
    """A bitmap of ``count`` clear bits."""
    return zeros(count, "little")


def octets(chunk: bitarray) -> Octets:
    """The chunk's memory as bytes, not copied; the chunk cannot change length while it lives."""
    return np.frombuffer(memoryview(chunk), np.uint8)


def chunk_edges(chunk: bitarray) -> Blocks:
    """Edges of the runs of set bits, ascending; a run that ends the chunk has its end listed."""
    words = octets(chunk).view(_WORD)
    before = words << np.uint64(1)
    before[1:] |= words[:-1] >> np.uint64(63)
    edges = _set_bits(words ^ before)
    if chunk[-1]:
        edges = np.append(edges, CHUNK_BLOCKS)
    return edges


def _set_bits(words: Words) -> Blocks:
    used = _positions(words != 0)
    if used.size >= _DENSE_WORDS:
        return _positions(_expand(words))
    bits = _positions(_expand(words[used]))
    found: Blocks = (used[bits >> 6] << 6) + (bits & 63)
    return found


def _positions(flags: NDArray[np.bool_]) -> Blocks:
    return np.flatnonzero(flags).astype(np.int64, copy=False)


def _expand(words: Words) -> NDArray[np.bool_]:
    return np.unpackbits(words.view(np.uint8), bitorder="little").view(np.bool_)


def fill_chunk(edges: Blocks, inside: bool) -> bitarray:
    """The chunk whose runs have these edges: the inverse of ``chunk_edges``.

    Args:
        edges: ascending, distinct, each below ``CHUNK_BLOCKS``.
        inside: whether the chunk begins inside a run.

    """
    flags = np.zeros(CHUNK_BLOCKS, np.bool_)
    flags[edges] = True
    words = np.packbits(flags, bitorder="little").view(_WORD)
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    ends = np.bitwise_xor.accumulate(words >> np.uint64(63))
    entered = np.empty_like(ends)
    entered[0] = inside
    entered[1:] = ends[:-1] ^ np.uint64(inside)
    words ^= np.uint64(0) - entered
    return bitarray(words.tobytes(), endian="little")


def coarsen_octets(bits: Octets, shift: int) -> Octets:
    """OR each group of ``2**shift`` bits into one; the number of bytes must divide by that."""
    while 0 < shift < 3:
        halved = _HALVED[bits]
        bits = halved[0::2] | (halved[1::2] << np.uint8(4))
        shift -= 1
    if not shift:
        return bits
    direct = min(shift, 6)
    groups = bits.view(f"<u{1 << direct - 3}") != 0
    if shift > direct:
        groups = groups.reshape(-1, 1 << shift - direct).any(axis=1)
    return np.packbits(groups, bitorder="little")
