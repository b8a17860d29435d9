"""The dirty map of one disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from vmferry.dirtymap.algebra import difference_into, intersect_into, same_blocks, union_into
from vmferry.dirtymap.bits import CHUNK_MASK, CHUNK_SHIFT, Blocks
from vmferry.dirtymap.bulk import Integers, merge_runs, range_arrays, set_edges
from vmferry.dirtymap.codec import decode_table, encode_table
from vmferry.dirtymap.geometry import block_count, check_geometry, inner_blocks, outer_blocks
from vmferry.dirtymap.runs import Window, byte_runs, run_segments
from vmferry.dirtymap.scale import coarsen_into, refine_into
from vmferry.dirtymap.table import BlockTable
from vmferry.units import MIB

__all__ = ["DirtyMap"]


class DirtyMap:
    """Which blocks of a disk are dirty.

    Offsets and lengths are bytes unless said otherwise. A range that is not wholly on the disk
    raises ``ValueError``. The disk's last block may be partial.

    Memory goes where dirty blocks are: 32 KiB for each 2**18 blocks of which some but not all are
    dirty, nothing to speak of for the rest. A map of 1 TiB in blocks of 4 KiB takes 32 MiB at
    most.

    No method awaits, so each is atomic for whatever else runs on the event loop, ``take`` above
    all. A map is not to be used by two threads at once: hand another thread a taken map or a
    copy.

    Args:
        size: bytes of the disk, up to 2**53.
        block_size: bytes of a block, a power of two from 512 to 16 MiB.

    Raises:
        InputError: ``size`` or ``block_size`` is not possible.

    """

    __slots__ = ("_block_size", "_blocks", "_shift", "_size", "_table")

    def __init__(self, size: int, block_size: int) -> None:
        check_geometry(size, block_size)
        self._size = size
        self._block_size = block_size
        self._shift = block_size.bit_length() - 1
        self._blocks = block_count(size, block_size)
        self._table = BlockTable(self._blocks)

    @classmethod
    def full(cls, size: int, block_size: int) -> DirtyMap:
        """A map of a disk of which everything is dirty."""
        made = cls(size, block_size)
        made.mark_all()
        return made

    @classmethod
    def from_runs(cls, size: int, block_size: int, runs: Iterable[tuple[int, int]]) -> DirtyMap:
        """A map with every block dirty that one of the ``(offset, length)`` runs touches."""
        made = cls(size, block_size)
        pairs = np.array(list(runs)).reshape(-1, 2)
        made.mark_runs(pairs[:, 0], pairs[:, 1])
        return made

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._size

    @property
    def block_size(self) -> int:
        """Bytes of a block."""
        return self._block_size

    @property
    def blocks(self) -> int:
        """Blocks of the disk, dirty or not; the last may be partial."""
        return self._blocks

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self._size:
            raise ValueError(f"{length} bytes at {offset} are not on a disk of {self._size} bytes")

    def mark(self, offset: int, length: int) -> None:
        """Make every block dirty that the range touches; no byte, no block."""
        if offset < 0 or length <= 0 or offset + length > self._size:
            self._check_range(offset, length)
            return
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        k = first >> CHUNK_SHIFT
        bitmap = self._table.bitmaps.get(k)
        if bitmap is not None and k == last >> CHUNK_SHIFT:
            bitmap[first & CHUNK_MASK : (last & CHUNK_MASK) + 1] = 1
        else:
            self._table.set_range(first, last + 1)

    def mark_runs(self, offsets: Integers, lengths: Integers) -> None:
        """Do ``mark`` for each offset with its length, all at once.

        The runs may come in any order and overlap. When one is not on the disk, nothing is
        marked.
        """
        begins, ends = range_arrays(offsets, lengths, self._size)
        round_up = self._block_size - 1
        edges = merge_runs(begins >> self._shift, (ends + round_up) >> self._shift)
        set_edges(self._table, edges)

    def mark_all(self) -> None:
        """Make every block dirty."""
        self._table.set_range(0, self._blocks)

    def clear(self, offset: int, length: int) -> None:
        """Make every block clean that lies wholly inside the range.

        A partial last block lies inside when the range reaches the end of the disk.
        """
        self._check_range(offset, length)
        first, stop = inner_blocks(offset, length, self._block_size, self._size)
        self._table.clear_range(first, stop)

    def clear_all(self) -> None:
        """Make every block clean."""
        self._table.clear_range(0, self._blocks)

    def any(self, offset: int, length: int) -> bool:
        """Whether some block that the range touches is dirty; no byte, no block."""
        if offset < 0 or length <= 0 or offset + length > self._size:
            self._check_range(offset, length)
            return False
        first, last = offset >> self._shift, (offset + length - 1) >> self._shift
        k = first >> CHUNK_SHIFT
        if k != last >> CHUNK_SHIFT:
            return self._table.next_set(first, last + 1) <= last
        bitmap = self._table.bitmaps.get(k)
        if bitmap is None:
            return self._table.live[k] == 1
        return bitmap.find(1, first & CHUNK_MASK, (last & CHUNK_MASK) + 1) >= 0

    def all(self, offset: int, length: int) -> bool:
        """Whether every block that the range touches is dirty; true of a range without a byte."""
        self._check_range(offset, length)
        first, stop = outer_blocks(offset, length, self._block_size)
        return first == stop or self._table.next_clear(first, stop) == stop

    def count(self) -> int:
        """Dirty blocks."""
        return self._table.count()

    def dirty_bytes(self) -> int:
        """Bytes of the disk in dirty blocks; a partial last block counts what it has."""
        last = self._blocks - 1
        missing = (self._blocks << self._shift) - self._size
        dirty = self._table.next_set(last, last + 1) == last
        return (self.count() << self._shift) - (missing if dirty else 0)

    def __bool__(self) -> bool:
        """Whether any block is dirty."""
        return self._table.live.any()

    def take(self) -> DirtyMap:
        """A map with what was dirty; this one is left clean, at the cost of making an empty map.

        Nothing is copied and nothing is lost: a block marked before the call is in the returned
        map, one marked after it in this one.
        """
        taken = DirtyMap(self._size, self._block_size)
        taken._table, self._table = self._table, taken._table
        return taken

    def copy(self) -> DirtyMap:
        """An independent map with the same blocks dirty."""
        return self._with(self._table.copy())

    def _with(self, table: BlockTable) -> DirtyMap:
        made = DirtyMap(self._size, self._block_size)
        made._table = table
        return made

    def __eq__(self, other: object) -> bool:
        """Whether both are of the same size, in the same blocks, with the same ones dirty."""
        if not isinstance(other, DirtyMap):
            return NotImplemented
        ours, theirs = (self._size, self._block_size), (other._size, other._block_size)
        return ours == theirs and same_blocks(self._table, other._table)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"<DirtyMap {self.count()} of {self._blocks} blocks of {self._block_size} bytes dirty>"
        )

    def _table_of(self, other: DirtyMap) -> BlockTable:
        if (other._size, other._block_size) != (self._size, self._block_size):
            raise ValueError(
                f"a map of {other._size} bytes in blocks of {other._block_size} does not combine "
                f"with one of {self._size} bytes in blocks of {self._block_size}"
            )
        return other._table

    def update(self, other: DirtyMap) -> None:
        """Make dirty what is dirty in ``other``, a map of the same size and block size."""
        union_into(self._table, self._table_of(other))

    def difference_update(self, other: DirtyMap) -> None:
        """Make clean what is dirty in ``other``, a map of the same size and block size."""
        difference_into(self._table, self._table_of(other))

    def intersection_update(self, other: DirtyMap) -> None:
        """Make clean what is clean in ``other``, a map of the same size and block size."""
        intersect_into(self._table, self._table_of(other))

    def __ior__(self, other: DirtyMap) -> DirtyMap:
        self.update(other)
        return self

    def __isub__(self, other: DirtyMap) -> DirtyMap:
        self.difference_update(other)
        return self

    def __iand__(self, other: DirtyMap) -> DirtyMap:
        self.intersection_update(other)
        return self

    def __or__(self, other: DirtyMap) -> DirtyMap:
        made = self.copy()
        made.update(other)
        return made

    def __sub__(self, other: DirtyMap) -> DirtyMap:
        made = self.copy()
        made.difference_update(other)
        return made

    def __and__(self, other: DirtyMap) -> DirtyMap:
        made = self.copy()
        made.intersection_update(other)
        return made

    def runs(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        max_extent: int | None = None,
        merge_gap: int = 0,
    ) -> Iterator[tuple[int, int]]:
        """``(offset, length)`` of each run of dirty blocks in ``[start, stop)``, ascending.

        A lazy iterator that looks at 2**18 blocks at a time. To walk over a map that is being
        marked or cleared, walk over ``take()`` or ``copy()``; walking over the map itself is
        safe in that each block that is dirty throughout comes exactly once, and one that changed
        meanwhile may come or not.

        Args:
            start: where to begin; a block that straddles it is cut.
            stop: where to end, the end of the disk if not given; likewise.
            max_extent: longest run to return, a multiple of the block size. Longer ones are cut
                at multiples of it from the first block of the run on.
            merge_gap: clean bytes between two runs up to which they are returned as one,
                clean blocks included.

        """
        stop = self._size if stop is None else stop
        if not (0 <= start <= self._size and 0 <= stop <= self._size):
            raise ValueError(f"[{start}, {stop}) is not on a disk of {self._size} bytes")
        if merge_gap < 0:
            raise ValueError(f"a gap of {merge_gap} bytes to merge over is negative")
        limit = 0 if max_extent is None else self._extent_blocks(max_extent)
        window = Window(start, stop, self._shift)
        return byte_runs(self._table, window, gap=merge_gap >> self._shift, limit=limit)

    def _extent_blocks(self, max_extent: int) -> int:
        if max_extent <= 0 or max_extent % self._block_size:
            raise ValueError(
                f"an extent of {max_extent} bytes is not a multiple of the block size, "
                f"{self._block_size}"
            )
        return max_extent >> self._shift

    def run_arrays(self) -> tuple[Blocks, Blocks]:
        """First block and number of blocks of every run of dirty blocks, ascending."""
        empty = np.empty(0, np.int64)
        segments = [(empty, empty), *run_segments(self._table, 0, self._blocks)]
        starts = np.concatenate([segment[0] for segment in segments])
        return starts, np.concatenate([segment[1] for segment in segments]) - starts

    def first_run(self, start: int = 0, *, max_extent: int) -> tuple[int, int] | None:
        """``(offset, length)`` of the first dirty run from ``start`` on, of up to ``max_extent``.

        Takes microseconds: meant for picking the next extent of a map that changes all the time.

        Args:
            start: where to begin to look; a block that straddles it is cut.
            max_extent: most bytes to return, a multiple of the block size.

        """
        self._check_range(start, 0)
        limit = self._extent_blocks(max_extent)
        first = self._table.next_set(start >> self._shift, self._blocks)
        if start == self._size or first == self._blocks:
            return None
        stop = self._table.next_clear(first, min(first + limit, self._blocks))
        offset = max(start, first << self._shift)
        return offset, min(stop << self._shift, self._size) - offset

    def coarsen(self, block_size: int) -> DirtyMap:
        """The map in blocks of ``block_size``, larger or the same: dirty where any part is."""
        made = DirtyMap(self._size, block_size)
        shift = made._shift - self._shift
        if shift < 0:
            raise ValueError(f"{block_size} is less than the block size, {self._block_size}")
        coarsen_into(made._table, self._table, shift)
        return made

    def refine(self, block_size: int) -> DirtyMap:
        """The map in blocks of ``block_size``, smaller or the same: dirty where the whole is."""
        made = DirtyMap(self._size, block_size)
        shift = self._shift - made._shift
        if shift < 0:
            raise ValueError(f"{block_size} is more than the block size, {self._block_size}")
        refine_into(made._table, self._table, shift)
        return made

    def encode(self) -> bytes:
        """The map for the wire: 28 bytes and about 1 to 2 for each run, see ``codec``."""
        return encode_table(self._table, self._size, self._block_size)

    @classmethod
    def decode(
        cls, data: bytes | memoryview, *, size: int, block_size: int, max_bytes: int = 512 * MIB
    ) -> DirtyMap:
        """The map that a peer encoded; nothing about ``data`` is trusted.

        Args:
            data: what ``encode`` returned, and not a byte more.
            size: bytes of the disk; the map must be of a disk of that size.
            block_size: bytes of its blocks; likewise.
            max_bytes: most memory to spend, on what was sent, on expanding it and on the map
                each. The default admits every map of up to 2**31 blocks: 8 TiB in 4 KiB.

        Raises:
            ProtocolError: names the field that is wrong.

        """
        made = cls(size, block_size)
        made._table = decode_table(data, size=size, block_size=block_size, max_bytes=max_bytes)
        return made
