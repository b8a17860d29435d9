"""A disk that remembers which of its blocks were written.

When to mark, with ``D`` the dispatch of a write, ``L`` the moment its data lands and ``A`` its
acknowledgement, and a migration that takes the map (harvest ``H``) and then reads the blocks:

* Marked at ``D`` alone, the order ``D H read L A`` loses the write: its bit was in a map whose
  block was read too early, and it is in no later one.
* Marked between ``L`` and ``A`` alone, nothing acknowledged is lost. But whoever looks at the map
  while a write is under way takes its block for clean, though part of it may have landed.
* Marked at both, a block is dirty in some harvest from before its data can change on, and in
  another one after it changed.

What fails is marked like what succeeds, since a part of it may have landed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable

from vmferry.api.volume import BlockIO, Extent, Geometry
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError

__all__ = ["TrackedDisk"]


class _Change:
    """A write, zeroing or discard under way."""

    __slots__ = ("length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset, self.length = offset, length


class TrackedDisk(BlockIO):
    """Passes everything on to another disk and, between ``start`` and ``stop``, tracks changes.

    One event loop uses it. It does not own the disk below it.
    """

    def __init__(self, disk: BlockIO) -> None:
        self._disk = disk
        self._geometry = disk.geometry
        self._map: DirtyMap | None = None
        self._uncertain: DirtyMap | None = None
        self._changes: set[_Change] = set()
        self._some_ended: asyncio.Event | None = None

    @property
    def geometry(self) -> Geometry:
        """That of the disk below."""
        return self._geometry

    @property
    def maps(self) -> bool:
        """Whether the disk below can tell holes from data."""
        return getattr(self._disk, "maps", type(self._disk).extents is not BlockIO.extents)

    @property
    def tracking(self) -> bool:
        """Whether changes are being tracked."""
        return self._map is not None

    @property
    def block_size(self) -> int:
        """Bytes of a tracked block; 0 while not tracking."""
        return self._map.block_size if self._map is not None else 0

    async def start(self, block_size: int) -> None:
        """Track from now on, with nothing dirty but what is being written, forgetting older marks.

        Returns when the changes that were under way have ended: none of them can land later
        without being in a harvest, and every one acknowledged from here on is in one.
        """
        size = self._geometry.size
        self._map, self._uncertain = DirtyMap(size, block_size), DirtyMap(size, block_size)
        under_way = set(self._changes)
        try:
            while not under_way.isdisjoint(self._changes):
                await self._next_end()
        except BaseException:
            self.stop()
            raise

    def harvest(self) -> DirtyMap:
        """Return what was changed since the last harvest, and forget it. Atomic: nothing awaits.

        Raises:
            TrackerError: changes are not being tracked.

        """
        current, uncertain = self._tracked()
        taken = current.take()
        taken.update(uncertain)
        return taken

    def restore(self, taken: DirtyMap) -> None:
        """Put back what ``harvest`` returned and nobody made use of. It is not kept."""
        self._tracked()[0].update(taken)

    async def drain(self) -> None:
        """Return at a moment when no change is under way. Does not keep new ones from beginning.

        A change that was cancelled does not count: it is never acknowledged. Its range is in every
        harvest until ``stop``, because nobody knows when it lands.
        """
        while self._changes:
            await self._next_end()

    def stop(self) -> None:
        """Track no longer and forget all marks. May be called at any time."""
        self._map = self._uncertain = None

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read from the disk below."""
        await self._disk.read_into(offset, buffer)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write to the disk below, tracked."""
        change = self._begin(offset, len(data))
        await self._follow(change, self._disk.write(offset, data))

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Zero a range of the disk below, tracked."""
        change = self._begin(offset, length)
        await self._follow(change, self._disk.write_zeroes(offset, length, unmap=unmap))

    async def discard(self, offset: int, length: int) -> None:
        """Discard a range of the disk below, tracked: its contents may have changed."""
        change = self._begin(offset, length)
        await self._follow(change, self._disk.discard(offset, length))

    async def flush(self) -> None:
        """Flush the disk below."""
        await self._disk.flush()

    def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """The extents of the disk below."""
        return self._disk.extents(offset, length)

    def _tracked(self) -> tuple[DirtyMap, DirtyMap]:
        if self._map is None or self._uncertain is None:
            raise TrackerError("writes are not being tracked; start tracking first")
        return self._map, self._uncertain

    def _begin(self, offset: int, length: int) -> _Change:
        if self._map is not None:
            self._map.mark(offset, length)
        change = _Change(offset, length)
        self._changes.add(change)
        return change

    async def _follow(self, change: _Change, work: Awaitable[None]) -> None:
        known = False
        try:
            await work
            known = True
        except Exception:
            known = True
            raise
        finally:
            self._end(change, known=known)

    def _end(self, change: _Change, *, known: bool) -> None:
        self._changes.discard(change)
        if self._map is not None:
            self._map.mark(change.offset, change.length)
        if self._uncertain is not None and not known:
            self._uncertain.mark(change.offset, change.length)
        if self._some_ended is not None:
            self._some_ended.set()
            self._some_ended = None

    async def _next_end(self) -> None:
        if self._some_ended is None:
            self._some_ended = asyncio.Event()
        await self._some_ended.wait()
