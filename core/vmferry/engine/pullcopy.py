"""The local copy of a disk of which some blocks are still remote: what makes them local, and when.

The pending map *P* says which blocks are remote. A block in P is *pending*: the guest must not see
what the volume holds there. Any other is *local*. Blocks leave P and never come back.

Invariants, and why they hold
-----------------------------

1. *Nobody sees what the volume holds of a pending block.* A request that has to know a block's old
   content (a read, or a write to part of a block) goes to the volume only after a moment at which
   none of these blocks was in P. Since P only shrinks, none is later. That is also why a request
   that finds none of its blocks in P needs no lock. A read may be answered from the source's data
   itself at a moment when all of its blocks are in P: no write to them was acknowledged by then.

2. *A block leaves P only when the volume holds its content*: after the write that brings it was
   completed, be it data of the source or of the guest. Each clearing is done by whoever holds the
   range lock on the block, and has held it since before that write began.

3. *The source's data never replaces the guest's.* Data of the source is written by ``_store``
   alone, to blocks that are in P, and the check, the write and the clearing are under one hold of
   the lock. So it lands before the block leaves P. A guest's write to a block comes either

   - after the block left P, hence after the source's data landed; or
   - as a whole block, under the same lock: then the source's data landed before, or finds the
     block out of P and is dropped; or
   - as part of a block that is in P: then it waits until the block has left P, as above.

4. *A held range is let go only when its I/O has ended*, also if the request was cancelled
   (``uninterrupted``); otherwise a write could land after the lock was let go.

5. *No deadlock*: a request holds at most one range, taken as a whole, waits for nothing but the
   volume while it holds it, and fetches what it needs before.

A write that fails leaves its blocks in P: what it left behind is undefined for its range, so that
the source's old data may come there. What survives a crash is told in ``pullsave``, what happens
when the source is gone in ``pullfetch``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from vmferry.api import Extent, ExtentKind, Volume
from vmferry.dirtymap import DirtyMap, inner_blocks
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.pullfetch import Fetcher, PullStats, dirty_runs
from vmferry.engine.pullsave import MapKeeper
from vmferry.engine.rangelock import Hold, RangeLock
from vmferry.errors import ProtocolError, VolumeError
from vmferry.units import MIB

__all__ = ["LocalCopy", "Write"]

Write = Callable[[], Awaitable[None]]
"""Writes a range to the volume that was agreed on otherwise."""

_ZERO_GAP = MIB
"""Local bytes between two pending runs up to which a discard zeroes both as one."""


class LocalCopy:
    """Blocks become local: fetched, overwritten or dropped by the guest, or pushed by the source.

    Args:
        volume: where the local blocks are.
        pending: the pending map; changed here only.
        fetcher: gets blocks the guest waits for.
        keeper: is told when the map changes.
        stats: where to count.
        on_local: called once, when nothing is pending any more.
        note: called with offset and length of whole blocks that have become local, before anybody
            is told.

    """

    def __init__(
        self,
        volume: Volume,
        pending: DirtyMap,
        fetcher: Fetcher,
        keeper: MapKeeper,
        stats: PullStats,
        on_local: Callable[[], None],
        note: Callable[[int, int], None],
    ) -> None:
        self._volume, self._pending, self._fetcher = volume, pending, fetcher
        self._keeper, self._stats, self._on_local, self._note = keeper, stats, on_local, note
        self._size, self._sector = volume.geometry.size, volume.geometry.sector_size
        self._lock = RangeLock()
        self._any_pending = True
        self._note_if_local()

    def touches_pending(self, offset: int, length: int) -> bool:
        """Whether a request has to wait or to take a lock; raises ``ValueError`` if it is none."""
        if not (self._any_pending and self._pending.any(offset, length)):
            return False
        if (offset | length) % self._sector:
            raise ValueError(
                f"{length} bytes at {offset} are not whole sectors of {self._sector} bytes"
            )
        return True

    # -- the guest's requests --------------------------------------------------------------

    async def overwrite(self, offset: int, length: int, write: Write) -> None:
        """Write a range that touches pending blocks, fetching those it covers only in part."""
        await self._fetch_edges(offset, length)
        await self._write_whole(offset, length, write)

    async def _fetch_edges(self, offset: int, length: int) -> None:
        """Make local the blocks at either end that the range covers in part."""
        block, end = self._pending.block_size, offset + length
        edges = [offset] if offset % block else []
        if end % block and end != self._size and not (edges and offset // block == end // block):
            edges.append(end - end % block)
        for edge in edges:
            await self._fetcher.request(edge, 1)
        for edge in edges:
            await self._fetcher.make_local(edge, 1)

    async def _write_whole(self, offset: int, length: int, write: Write) -> None:
        """Write; pending blocks in the range are all covered whole."""
        inner = self._whole_blocks(offset, length)
        if not self._pending.any(*inner):
            await write()
            return

        async def write_and_clear() -> None:
            count = self._count_pending(*inner)
            await write()
            self._stats.overwritten += count
            self._clear(*inner)

        await self._claim(*inner, write_and_clear)

    async def discard(self, offset: int, length: int) -> None:
        """Drop a range that touches pending blocks."""

        async def drop() -> None:
            position, end = offset, offset + length
            for start, size in list(self._pending.runs(offset, end, merge_gap=_ZERO_GAP)):
                if position < start:
                    await self._volume.discard(position, start - position)
                await self._drop(*self._whole_blocks(start, size))
                position = start + size
            if position < end:
                await self._volume.discard(position, end - position)

        await self._claim(*self._whole_blocks(offset, length), drop)

    async def _drop(self, offset: int, length: int) -> None:
        """Make whole blocks local and zero: what the volume held there before must not show."""
        if length:
            count = self._count_pending(offset, length)
            await self._volume.write_zeroes(offset, length)
            self._stats.overwritten += count
            self._clear(offset, length)

    async def extents(self, start: int, stop: int) -> AsyncIterator[Extent]:
        """Extents of ``[start, stop)``; neighbours may be of one kind.

        The map is looked at anew for each piece: what is local then stays so.
        """
        while start < stop:
            run = self._pending.first_run(start, max_extent=self._pending.block_size << 10)
            begin, length = run if run and run[0] < stop else (stop, 0)
            if start < begin:
                async for extent in self._volume.extents(start, begin - start):
                    yield extent
            start = min(begin + length, stop)
            if begin < start:
                yield Extent(begin, start - begin, ExtentKind.DATA)

    # -- data from the source --------------------------------------------------------------

    async def arrive(self, offset: int, length: int, data: memoryview | None) -> None:
        """Store data of the source where it is still wanted; see ``PullDisk.arrive``."""
        self._check_arrival(offset, length, data)

        async def store() -> None:
            try:
                await self._store(offset, length, data)
            except (OSError, VolumeError) as error:
                self._fetcher.fail(offset, length, error)
                raise

        if self._pending.any(offset, length):
            if data is not None and self._fetcher.offer(offset, data):
                await asyncio.sleep(0)  # the answers go out first
            await self._claim(offset, length, store)
        else:
            self._stats.late += length

    def _check_arrival(self, offset: int, length: int, data: memoryview | None) -> None:
        block, end = self._pending.block_size, offset + length
        if offset < 0 or length <= 0 or end > self._size:
            raise ProtocolError(f"{length} bytes at {offset} came for a disk of {self._size} bytes")
        if offset % block or (end % block and end != self._size):
            raise ProtocolError(f"{length} bytes at {offset} are not whole blocks of {block} bytes")
        if data is not None and data.nbytes != length:
            raise ProtocolError(f"{data.nbytes} bytes came for {length} bytes at {offset}")

    async def _store(self, offset: int, length: int, data: memoryview | None) -> None:
        """Write what is pending at this moment; the range is held."""
        runs = list(dirty_runs(self._pending, offset, offset + length))
        self._stats.late += length - sum(size for _, size in runs)
        for start, size in runs:
            await self._store_run(start, size, data and data[start - offset :][:size])

    async def _store_run(self, offset: int, length: int, data: memoryview | None) -> None:
        if data is None:
            await self._volume.write_zeroes(offset, length)
        else:
            await self._volume.write(offset, data)
        self._stats.arrived += length
        self._clear(offset, length)

    # -- the range lock and the pending map ------------------------------------------------

    async def _claim(self, offset: int, length: int, work: Write) -> None:
        """Do ``work``, which makes all pending blocks of the range local, alone in the range."""
        hold = await self._lock.acquire(offset, length)
        await uninterrupted(self._claimed(hold, work))

    async def _claimed(self, hold: Hold, work: Write) -> None:
        self._fetcher.claim(hold.offset, hold.length)
        try:
            await work()
        except BaseException:
            self._fetcher.retry(hold.offset, hold.length)
            raise
        finally:
            self._lock.release(hold)
        self._fetcher.landed(hold.offset, hold.length)

    def _whole_blocks(self, offset: int, length: int) -> tuple[int, int]:
        """``(offset, length)`` of the blocks wholly inside the range; the length may be 0."""
        block = self._pending.block_size
        first, stop = inner_blocks(offset, length, block, self._size)
        begin, end = min(first * block, self._size), min(stop * block, self._size)
        return begin, end - begin

    def _count_pending(self, offset: int, length: int) -> int:
        block = self._pending.block_size
        runs = dirty_runs(self._pending, offset, offset + length)
        return sum(-(-size // block) for _, size in runs)

    def _clear(self, offset: int, length: int) -> None:
        """The volume holds these blocks: they are local, and those who waited go on."""
        self._note(offset, length)
        self._pending.clear(offset, length)
        self._keeper.cleared()
        self._fetcher.landed(offset, length)
        self._note_if_local()

    def _note_if_local(self) -> None:
        if self._any_pending and not self._pending:
            self._any_pending = False
            self._on_local()
