"""The blocks behind a dirty map: chunks that exist only where something is dirty.

A chunk is clear, full or has a bitmap. Clear and full chunks cost one bit in each of two
summaries; a bitmap costs 32 KiB. A chunk with a bitmap has at least one bit set, so that
``live`` alone answers whether anything is dirty, and one with every bit set may keep its bitmap.
"""

from __future__ import annotations

from collections.abc import Iterator

from bitarray import bitarray

from vmferry.dirtymap.bits import CHUNK_BLOCKS, CHUNK_MASK, CHUNK_SHIFT, clear_bits

__all__ = ["BlockTable"]


class BlockTable:
    """A set of block numbers below ``blocks``. Arguments are trusted: the map checks them.

    Attributes:
        blocks: how many blocks there are.
        bitmaps: the bitmap of each chunk that is neither clear nor known to be full; bits past
            ``blocks`` are always clear.
        live: one bit per chunk: something in it is dirty.
        full: one bit per chunk: all of it is dirty, and it has no bitmap.

    """

    __slots__ = ("bitmaps", "blocks", "full", "live")

    def __init__(self, blocks: int) -> None:
        chunks = -(-blocks // CHUNK_BLOCKS)
        self.blocks = blocks
        self.bitmaps: dict[int, bitarray] = {}
        self.live = clear_bits(chunks)
        self.full = clear_bits(chunks)

    def width(self, k: int) -> int:
        """Blocks in chunk ``k``: ``CHUNK_BLOCKS`` but for the last one."""
        return min(CHUNK_BLOCKS, self.blocks - (k << CHUNK_SHIFT))

    def ones(self, k: int) -> bitarray:
        """A bitmap for chunk ``k`` with every block set."""
        bitmap = clear_bits()
        bitmap[: self.width(k)] = 1
        return bitmap

    def bits(self, k: int) -> bitarray:
        """The blocks of chunk ``k``, which is live, to read only."""
        return self.ones(k) if self.full[k] else self.bitmaps[k]

    def own(self, k: int) -> bitarray:
        """The bitmap of chunk ``k`` to write to; made if the chunk has none.

        A chunk that was clear must get a bit set by the caller.
        """
        bitmap = self.bitmaps.get(k)
        if bitmap is None:
            bitmap = self.ones(k) if self.full[k] else clear_bits()
            self.bitmaps[k] = bitmap
            self.full[k] = 0
            self.live[k] = 1
        return bitmap

    def put(self, k: int, bitmap: bitarray) -> None:
        """Make ``bitmap``, which has a bit set, the bitmap of chunk ``k``."""
        self.bitmaps[k] = bitmap
        self.full[k] = 0
        self.live[k] = 1

    def fill_chunks(self, first: int, stop: int) -> None:
        """Make the chunks ``[first, stop)`` full."""
        self._forget(first, stop)
        self.live[first:stop] = 1
        self.full[first:stop] = 1

    def drop_chunks(self, first: int, stop: int) -> None:
        """Make the chunks ``[first, stop)`` clear."""
        self._forget(first, stop)
        self.live[first:stop] = 0
        self.full[first:stop] = 0

    def _forget(self, first: int, stop: int) -> None:
        if stop - first < len(self.bitmaps):
            for k in range(first, stop):
                self.bitmaps.pop(k, None)
        else:
            for k in [k for k in self.bitmaps if first <= k < stop]:
                del self.bitmaps[k]

    def drop_if_clear(self, k: int) -> None:
        """Give up the bitmap of chunk ``k`` when no bit of it is set."""
        if not self.bitmaps[k].any():
            self.drop_chunks(k, k + 1)

    def set_range(self, first: int, stop: int) -> None:
        """Set the blocks ``[first, stop)``."""
        if first >= stop:
            return
        k, last = first >> CHUNK_SHIFT, (stop - 1) >> CHUNK_SHIFT
        low, high = first & CHUNK_MASK, ((stop - 1) & CHUNK_MASK) + 1
        if k == last:
            self._set_in(k, low, high)
            return
        self._set_in(k, low, CHUNK_BLOCKS)
        self.fill_chunks(k + 1, last)
        self._set_in(last, 0, high)

    def _set_in(self, k: int, low: int, high: int) -> None:
        if self.full[k]:
            return
        if high - low >= self.width(k):
            self.fill_chunks(k, k + 1)
        else:
            self.own(k)[low:high] = 1

    def clear_range(self, first: int, stop: int) -> None:
        """Clear the blocks ``[first, stop)``."""
        if first >= stop:
            return
        k, last = first >> CHUNK_SHIFT, (stop - 1) >> CHUNK_SHIFT
        low, high = first & CHUNK_MASK, ((stop - 1) & CHUNK_MASK) + 1
        if k == last:
            self._clear_in(k, low, high)
            return
        self._clear_in(k, low, CHUNK_BLOCKS)
        self.drop_chunks(k + 1, last)
        self._clear_in(last, 0, high)

    def _clear_in(self, k: int, low: int, high: int) -> None:
        if not self.live[k]:
            return
        if high - low >= self.width(k):
            self.drop_chunks(k, k + 1)
        else:
            self.own(k)[low:high] = 0
            self.drop_if_clear(k)

    def next_set(self, first: int, stop: int) -> int:
        """The first dirty block of ``[first, stop)``, or ``stop``."""
        k, end = first >> CHUNK_SHIFT, (stop + CHUNK_MASK) >> CHUNK_SHIFT
        while (k := self.live.find(1, k, end)) >= 0:
            base = k << CHUNK_SHIFT
            low = max(first - base, 0)
            found = low if self.full[k] else self.bitmaps[k].find(1, low)
            if found >= 0:
                return min(base + found, stop)
            k += 1
        return stop

    def next_clear(self, first: int, stop: int) -> int:
        """The first clean block of ``[first, stop)``, or ``stop``."""
        k, end = first >> CHUNK_SHIFT, (stop + CHUNK_MASK) >> CHUNK_SHIFT
        while (k := self.full.find(0, k, end)) >= 0:
            base = k << CHUNK_SHIFT
            low = max(first - base, 0)
            found = self.bitmaps[k].find(0, low) if self.live[k] else low
            if found >= 0:
                return min(base + found, stop)
            k += 1
        return stop

    def full_ranges(self) -> Iterator[tuple[int, int]]:
        """``(first, stop)`` of the blocks of each stretch of full chunks."""
        after = 0
        while (k := self.full.find(1, after)) >= 0:
            after = self.full.find(0, k)
            if after < 0:
                after = len(self.full)
            yield k << CHUNK_SHIFT, min(after << CHUNK_SHIFT, self.blocks)

    def count(self) -> int:
        """How many blocks are dirty."""
        full = sum(stop - first for first, stop in self.full_ranges())
        return full + sum(bitmap.count() for bitmap in self.bitmaps.values())

    def copy(self) -> BlockTable:
        """An independent table with the same blocks set."""
        twin = BlockTable(self.blocks)
        twin.bitmaps = {k: bitmap.copy() for k, bitmap in self.bitmaps.items()}
        twin.live, twin.full = self.live.copy(), self.full.copy()
        return twin
