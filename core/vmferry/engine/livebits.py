"""Which blocks became local since the pending map was saved; it outlives the agent's process.

When the agent dies and the host does not, whatever was acknowledged to the guest is still in the
volume, flushed or not; but the map in the journal may call such a block pending, and to fetch it
again would replace the guest's write. So each block that becomes local is marked here too, before
the write is acknowledged: bits in memory that the kernel keeps (``Journal.scratch``). After a crash
of the host they are gone, and with them every write that was not flushed: then the map that was
saved is the right one.
"""

from __future__ import annotations

import numpy as np
from bitarray import bitarray
from bitarray.util import intervals

from vmferry.dirtymap import DirtyMap, outer_blocks

__all__ = ["LiveBits"]


class LiveBits:
    """One bit per block over a buffer from ``Journal.scratch``.

    Args:
        buffer: at least ``LiveBits.size_for`` bytes, writable; zero where nothing became local.
        size: of the disk, bytes.
        block_size: bytes per block.

    """

    def __init__(self, buffer: memoryview, size: int, block_size: int) -> None:
        self._bits = bitarray(buffer=buffer[: self.size_for(size, block_size)], endian="little")
        self._size, self._block_size = size, block_size

    @staticmethod
    def size_for(size: int, block_size: int) -> int:
        """Bytes that the bits of such a disk take."""
        return -(-size // (block_size * 8))

    def became_local(self, offset: int, length: int) -> None:
        """Mark the blocks of a range, which is made of whole blocks."""
        first, stop = outer_blocks(offset, length, self._block_size)
        self._bits[first:stop] = 1

    def release(self) -> None:
        """Give the buffer back, with the descriptor and the mapping behind it; what comes is lost.

        An agent keeps what it knows of a finished job, and would keep these with it.
        """
        self._bits = bitarray(endian="little")

    def without(self, saved: DirtyMap) -> DirtyMap:
        """The map that was saved, without what became local since."""
        block, runs = self._block_size, []
        for value, start, stop in intervals(self._bits):
            begin, end = start * block, min(stop * block, self._size)
            if value and begin < end:
                runs.append((begin, end - begin))
        if not runs:
            return saved.copy()
        pairs = np.array(runs)
        local = DirtyMap(self._size, block)
        local.mark_runs(pairs[:, 0], pairs[:, 1])
        return saved - local
