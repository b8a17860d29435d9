"""The disk a guest sees at the destination while PULL lasts.

Reads of remote blocks fetch them, whole-block writes make them local without a fetch, and if the
source is gone requests wait. How blocks become local, and why no write is ever lost, is in
``pullcopy``; what survives a crash in ``pullsave``; what happens when the source is gone in
``pullfetch``. This module is the door: before ``ready`` and during ``pause`` nobody comes in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from vmferry.api import BlockIO, Extent, Geometry, Volume
from vmferry.dirtymap import DirtyMap
from vmferry.engine.context import InlineWorkers, Workers
from vmferry.engine.maps import encoded
from vmferry.engine.pullcopy import LocalCopy, Write
from vmferry.engine.pullfetch import Fetch, Fetcher, PullStats
from vmferry.engine.pullsave import MapKeeper, Save
from vmferry.errors import ProtocolError, VolumeError, VolumeGeometry
from vmferry.units import MIB

__all__ = ["Fetch", "PullDisk", "PullStats", "Save"]


def _nobody(offset: int, length: int) -> None:
    """Nobody wants to know what has become local."""


class PullDisk(BlockIO):
    """A disk that fetches from the source what is not local yet.

    Every request waits until ``ready``, so that the disk can be attached to a guest that is not
    running. All methods belong to one event loop.

    Args:
        volume: the local copy, open for writing; it stays the caller's to close.
        block_size: bytes per block of the pending map; whole sectors.
        save: makes an encoded pending map durable.
        fetch: asks the source for a range; ``None`` until ``link_restored``.
        workers: where maps are encoded.
        read_ahead: bytes to fetch beyond what a read needs, as far as they are pending.
        max_fetch: most bytes to ask the source for in one request.
        note: called with offset and length of whole blocks that have become local, before the
            guest is told.

    Attributes:
        block_size: as given.
        stats: what was done so far.

    Raises:
        VolumeGeometry: blocks of ``block_size`` are not whole sectors.

    """

    def __init__(
        self,
        volume: Volume,
        block_size: int,
        save: Save,
        fetch: Fetch | None = None,
        *,
        workers: Workers | None = None,
        read_ahead: int = 0,
        max_fetch: int = MIB,
        note: Callable[[int, int], None] = _nobody,
    ) -> None:
        self._note = note
        self._volume, self.block_size, self._save = volume, block_size, save
        geometry = volume.geometry
        if block_size % geometry.sector_size:
            raise VolumeGeometry(
                f"blocks of {block_size} bytes are no whole sectors of {geometry.sector_size}"
            )
        self.stats = PullStats()
        self._workers = workers or InlineWorkers()
        self._read_ahead = read_ahead
        self._pending = DirtyMap(geometry.size, block_size)
        self._fetcher = Fetcher(self._pending, fetch, self.stats, max_extent=max_fetch)
        self._copy: LocalCopy | None = None
        self._keeper: MapKeeper
        self._open, self._in_flight = False, 0
        self._opened, self._local, self._idle = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._failure: VolumeError | None = None

    # -- life ------------------------------------------------------------------------------

    async def ready(self, pending: DirtyMap) -> None:
        """Make ``pending`` durable, then serve requests with it in force.

        Everything it does not mark must be durable in the volume already. It stays the caller's.

        Raises:
            VolumeGeometry: the map is not of this disk's size and block size.
            RuntimeError: called before.

        """
        if (pending.size, pending.block_size) != (self._pending.size, self.block_size):
            raise VolumeGeometry(
                f"a pending map of {pending.size} bytes in blocks of {pending.block_size} is not "
                f"one of {self._pending.size} bytes in blocks of {self.block_size}"
            )
        if self._copy:
            raise RuntimeError("the pending map of a pull disk is given once")
        await self._save(await encoded(pending, self._workers))
        self._pending.update(pending)
        self._keeper = MapKeeper(self._volume, self._pending, self._save, self._workers)
        self._copy = LocalCopy(
            self._volume,
            self._pending,
            self._fetcher,
            self._keeper,
            self.stats,
            self._local.set,
            self._note,
        )
        self.resume()

    async def pause(self) -> None:
        """Let requests wait at the door; return when none is in flight. Undone by ``resume``.

        For the pivot, when nothing is pending: one that waits for the source is in flight.
        """
        self._open = False
        self._opened.clear()
        await self._idle.wait()

    def resume(self) -> None:
        """Let requests in again after ``pause``."""
        self._open = self._copy is not None
        if self._open:
            self._opened.set()

    async def drained(self) -> None:
        """Return when no request was in flight at some moment; others are let in meanwhile."""
        await self._idle.wait()

    def fail(self, reason: str) -> None:
        """Give up on the source: requests that need it, now or later, raise ``VolumeError``.

        What is local can still be read and written. Before ``ready`` every request raises.
        """
        self._failure = VolumeError(reason)
        self._fetcher.fail_all(self._failure)
        self._local.set()
        if self._copy is None:
            self._opened.set()

    async def _enter(self) -> LocalCopy:
        while not self._open:
            if self._failure and self._copy is None:
                raise self._failure
            await self._opened.wait()
        assert self._copy is not None
        self._in_flight += 1
        self._idle.clear()
        return self._copy

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    # -- the guest's requests --------------------------------------------------------------

    @property
    def geometry(self) -> Geometry:
        """Size and sector size: the volume's."""
        return self._volume.geometry

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fetch what is pending in the range, then fill ``buffer``."""
        copy = await self._enter()
        try:
            if copy.touches_pending(offset, buffer.nbytes):  # noqa: SIM102
                if await self._fetcher.read(offset, buffer, self._read_ahead):
                    return
            await self._volume.read_into(offset, buffer)
        finally:
            self._leave()

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``; pending blocks it covers whole are not fetched."""

        async def write() -> None:
            await self._volume.write(offset, data)

        await self._overwrite(offset, data.nbytes, write)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Make the range read as zeroes; pending blocks it covers whole are not fetched."""

        async def write() -> None:
            await self._volume.write_zeroes(offset, length, unmap=unmap)

        await self._overwrite(offset, length, write)

    async def _overwrite(self, offset: int, length: int, write: Write) -> None:
        copy = await self._enter()
        try:
            if copy.touches_pending(offset, length):
                await copy.overwrite(offset, length, write)
            else:
                await write()
            self._keeper.wrote(offset, length)
        finally:
            self._leave()

    async def discard(self, offset: int, length: int) -> None:
        """Drop the range. A pending block that it covers whole becomes local and reads as zeroes.

        A pending block of which it covers a part is left alone: it is neither local by that, nor
        is it fetched.
        """
        copy = await self._enter()
        try:
            if copy.touches_pending(offset, length):
                await copy.discard(offset, length)
            else:
                await self._volume.discard(offset, length)
        finally:
            self._leave()

    async def flush(self) -> None:
        """Make every write that was completed before the call survive a crash.

        First the data, then the pending map if such a write needs it. Calls that overlap share the
        work.
        """
        await self._enter()
        try:
            await self._keeper.flush()
        finally:
            self._leave()

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """As the volume has it; what is pending is ``DATA``."""
        copy = await self._enter()
        self._leave()
        last: Extent | None = None
        async for extent in copy.extents(offset, offset + length):
            if last and last.kind is extent.kind:
                last = Extent(last.offset, last.length + extent.length, last.kind)
            else:
                if last:
                    yield last
                last = extent
        if last:
            yield last

    # -- the engine's side -----------------------------------------------------------------

    async def arrive(
        self, offset: int, length: int, data: bytes | bytearray | memoryview | None = None
    ) -> None:
        """Store what the source sent for a range; ``None`` stands for zeroes.

        Only blocks that are pending are written; late, repeated and unasked data does no harm. On
        return the blocks are local and those who waited for them go on. ``data`` is the caller's
        again, also after a cancellation.

        Raises:
            ProtocolError: before ``ready``, or the range is not on the disk, not whole blocks, or
                not as long as ``data``. Nothing was written.
            OSError, VolumeError: the volume failed. Requests that waited for the range get it too,
                but for reads, which the data itself has answered.

        """
        if self._copy is None:
            raise ProtocolError(f"{length} bytes at {offset} came before the pending map")
        self._in_flight += 1
        self._idle.clear()
        try:
            view = None if data is None else memoryview(data).cast("B")
            await self._copy.arrive(offset, length, view)
        finally:
            self._leave()

    async def checkpoint(self) -> None:
        """Make the pending map durable if it changed, and all data it tells of before it.

        To be called now and then, so that little is fetched again after a crash, and once nothing
        is pending, before the source is told so. Does nothing before ``ready``.
        """
        if self._copy:
            await self._keeper.checkpoint()

    async def wait_local(self) -> None:
        """Return when nothing is pending. Call ``checkpoint`` before the source may forget.

        Raises:
            VolumeError: ``fail`` was called.

        """
        await self._local.wait()
        if self._failure and (self._copy is None or self._pending):
            raise self._failure

    @property
    def pending_bytes(self) -> int:
        """Bytes that are still remote; 0 before ``ready``."""
        return self._pending.dirty_bytes()

    @property
    def pending_blocks(self) -> int:
        """Blocks that are still remote; 0 before ``ready``."""
        return self._pending.count()

    def pending(self) -> DirtyMap:
        """A copy of the pending map; nothing is marked before ``ready``."""
        return self._pending.copy()

    def missing(self, max_extent: int | None = None) -> list[tuple[int, int]]:
        """``(offset, length)`` of what is pending and was not asked for, ascending.

        Pieces are of up to ``max_extent`` bytes, or ``max_fetch`` if not given.
        """
        return self._fetcher.missing(max_extent)

    def outstanding(self) -> list[tuple[int, int]]:
        """``(offset, length)`` of the pending runs that requests wait for at this moment."""
        return self._fetcher.outstanding()

    @property
    def guest_waits(self) -> bool:
        """Whether a request of the guest waits for the source at this moment."""
        return self._fetcher.awaited

    @property
    def connected(self) -> bool:
        """Whether the source can be asked for blocks."""
        return self._fetcher.connected

    def link_lost(self) -> None:
        """The source is out of reach: requests that need it wait for ``link_restored``."""
        self._fetcher.link_lost()

    def link_restored(self, fetch: Fetch) -> None:
        """Ask the source by ``fetch`` from here on, first for all that requests wait for."""
        self._fetcher.link_restored(fetch)
