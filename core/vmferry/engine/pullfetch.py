"""Getting blocks from the source because the guest waits for them.

``coming`` holds the blocks for which nothing needs to be asked: a request is with the source, or
somebody at the destination is making them local at this moment. It only saves traffic; what is
local is said by ``pending`` alone.

Whoever takes a block out of ``coming`` without having made it local wakes those who wait for it,
and they ask again themselves. So no wait depends on another request staying alive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeAlias

import msgspec

from vmferry.dirtymap import DirtyMap
from vmferry.errors import VmferryError
from vmferry.units import MIB

__all__ = ["Fetch", "Fetcher", "PullStats", "dirty_runs"]

Fetch: TypeAlias = Callable[[int, int], Awaitable[None]]
"""``await fetch(offset, length)`` asks the source for a range ahead of all else. It returns when
the request is on its way; the data comes by ``PullDisk.arrive``. Raises a ``VmferryError``,
commonly a ``LinkError``, if the source cannot be asked, at the latest when the connection ends."""

_FEW_BLOCKS = 256
"""Up to so many blocks, finding one run after the other beats looking at a chunk of the map."""


class PullStats(msgspec.Struct):
    """What PULL did on one disk, so far.

    Attributes:
        on_demand: requests of the guest that had to wait for the source.
        fetched: bytes asked of the source because the guest waited for them, read-ahead included.
        fetched_blocks: the same in blocks.
        waited: seconds that requests waited for blocks to become local, summed.
        longest: longest of these waits, in seconds.
        arrived: bytes from the source that were stored.
        late: bytes from the source that were dropped because the block was local already.
        overwritten: blocks the guest made local by writing, zeroing or discarding them whole.

    """

    on_demand: int = 0
    fetched: int = 0
    fetched_blocks: int = 0
    waited: float = 0.0
    longest: float = 0.0
    arrived: int = 0
    late: int = 0
    overwritten: int = 0


def dirty_runs(dirty: DirtyMap, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """``(offset, length)`` of the runs of dirty blocks in ``[start, stop)``, cut to it."""
    if stop - start > _FEW_BLOCKS * dirty.block_size:
        yield from dirty.runs(start, stop)
        return
    reach = ((stop - start) // dirty.block_size + 2) * dirty.block_size
    while start < stop and (run := dirty.first_run(start, max_extent=reach)):
        offset, length = run
        if offset >= stop:
            return
        start = min(offset + length, stop)
        yield offset, start - offset


class _Waiter:
    __slots__ = ("ahead", "buffer", "error", "filled", "length", "offset", "woken")

    def __init__(self, offset: int, length: int, ahead: int, buffer: memoryview | None) -> None:
        self.offset, self.length, self.ahead, self.buffer = offset, length, ahead, buffer
        self.filled = False
        self.woken = asyncio.Event()
        self.error: BaseException | None = None


class Fetcher:
    """Asks the source for pending blocks, once each, and lets requests wait for them.

    Args:
        pending: the disk's pending map; only read here.
        fetch: how to ask the source; ``None`` if it cannot be reached yet.
        stats: where to count.
        max_extent: most bytes to ask for at once, a multiple of the block size.

    """

    def __init__(
        self,
        pending: DirtyMap,
        fetch: Fetch | None,
        stats: PullStats,
        *,
        max_extent: int = MIB,
    ) -> None:
        self._pending, self._fetch, self._stats = pending, fetch, stats
        self._coming = DirtyMap(pending.size, pending.block_size)
        self._max_extent = max(max_extent, pending.block_size)
        self._link = 0
        self._waiters: dict[_Waiter, None] = {}
        self._failure: BaseException | None = None

    @property
    def awaited(self) -> bool:
        """Whether a request waits for blocks at this moment."""
        return bool(self._waiters)

    async def read(self, offset: int, buffer: memoryview, ahead: int = 0) -> bool:
        """Wait for the range of ``buffer``; true if it was filled from what arrived.

        Otherwise no block that the range touches is pending any more. If the range ends in a
        pending run, up to ``ahead`` more bytes of it are asked for.
        """
        return await self._local(_Waiter(offset, buffer.nbytes, ahead, buffer))

    async def make_local(self, offset: int, length: int) -> None:
        """Return when no block that the range touches is pending; ask for those that are.

        While the source is out of reach this waits, without an error.
        """
        await self._local(_Waiter(offset, length, 0, None))

    async def _local(self, waiter: _Waiter) -> bool:
        if not self._pending.any(waiter.offset, waiter.length):
            return False
        time = asyncio.get_running_loop().time
        begun, waiter.error = time(), self._failure
        self._waiters[waiter] = None
        try:
            await self._wait(waiter)
        finally:
            del self._waiters[waiter]
            self._count_wait(time() - begun)
        return waiter.filled

    async def _wait(self, waiter: _Waiter) -> None:
        while not waiter.filled and self._pending.any(waiter.offset, waiter.length):
            if waiter.error:
                raise waiter.error
            waiter.woken.clear()
            await self.request(waiter.offset, waiter.length, waiter.ahead)
            await waiter.woken.wait()

    def _count_wait(self, seconds: float) -> None:
        self._stats.on_demand += 1
        self._stats.waited += seconds
        self._stats.longest = max(self._stats.longest, seconds)

    async def request(self, offset: int, length: int, ahead: int = 0) -> None:
        """Ask for what is pending in the range and not coming; does not wait for it."""
        if self._fetch is None:
            return
        link, fetch = self._link, self._fetch
        runs = list(self._missing(offset, length, ahead))
        for run in runs:
            self._coming.mark(*run)
        asked = 0
        try:
            for run in runs:
                await fetch(*run)
                self._count_fetch(run[1])
                asked += 1
        except VmferryError:
            if link == self._link:
                self.link_lost()
        finally:
            for run in runs[asked:]:
                self.retry(*run)

    def _count_fetch(self, length: int) -> None:
        self._stats.fetched += length
        self._stats.fetched_blocks += -(-length // self._pending.block_size)

    def missing(self, max_extent: int | None = None) -> list[tuple[int, int]]:
        """``(offset, length)`` of the runs that are pending and not coming, ascending."""
        block = self._pending.block_size
        most = max((max_extent or self._max_extent) // block, 1) * block
        return list((self._pending - self._coming).runs(max_extent=most))

    def _missing(self, offset: int, length: int, ahead: int) -> Iterator[tuple[int, int]]:
        """Whole blocks that are pending and not coming, in pieces of up to ``max_extent``."""
        block = self._pending.block_size
        start, stop = offset // block * block, -(-(offset + length) // block) * block
        step = self._max_extent // block * block
        for begin, size in self._wanted(start, min(stop, self._pending.size), ahead):
            for low, left in self._gaps_in_coming(begin, begin + size):
                for at in range(low, low + left, step):
                    yield at, min(step, low + left - at)

    def _wanted(self, start: int, stop: int, ahead: int) -> Iterator[tuple[int, int]]:
        """Pending runs in ``[start, stop)``; one that reaches the end is prolonged."""
        block = self._pending.block_size
        more = ahead // block * block if stop < self._pending.size else 0
        for offset, length in dirty_runs(self._pending, start, stop):
            if more and offset + length == stop:
                run = self._pending.first_run(offset, max_extent=length + more)
                yield run or (offset, length)
            else:
                yield offset, length

    def _gaps_in_coming(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for offset, length in dirty_runs(self._coming, start, stop):
            if start < offset:
                yield start, offset - start
            start = offset + length
        if start < stop:
            yield start, stop - start

    def offer(self, offset: int, data: memoryview) -> bool:
        """Answer reads from what arrived, before it is stored; true if there were any.

        A read is answered only if all of its range is in ``data`` and pending at this moment: no
        write to it was acknowledged, so what the source sent is what the guest may see.
        """
        some = False
        for waiter in self._touching(offset, data.nbytes):
            at, buffer = waiter.offset - offset, waiter.buffer
            if buffer is None or at < 0 or at + waiter.length > data.nbytes:
                continue
            if self._pending.all(waiter.offset, waiter.length):
                buffer[:] = data[at : at + waiter.length]
                waiter.filled = some = True
                waiter.woken.set()
        return some

    def claim(self, offset: int, length: int) -> None:
        """Somebody is making these blocks local: nothing needs to be asked for."""
        self._coming.mark(offset, length)

    def landed(self, offset: int, length: int) -> None:
        """These blocks are local: let those go on whose whole range is."""
        self._coming.clear(offset, length)
        for waiter in self._touching(offset, length):
            if not self._pending.any(waiter.offset, waiter.length):
                waiter.woken.set()

    def retry(self, offset: int, length: int) -> None:
        """These blocks are no longer coming: let those who wait for them see for themselves."""
        self._coming.clear(offset, length)
        for waiter in self._touching(offset, length):
            waiter.woken.set()

    def fail(self, offset: int, length: int, error: BaseException) -> None:
        """These blocks came and could not be stored: those who wait for them get ``error``."""
        for waiter in self._touching(offset, length):
            waiter.error = error
        self.retry(offset, length)

    def fail_all(self, error: BaseException) -> None:
        """Nothing will come any more: whoever waits, or would have to, gets ``error``."""
        self._failure = error
        self.fail(0, self._pending.size, error)

    def _touching(self, offset: int, length: int) -> list[_Waiter]:
        """Those who wait for a block of the range, which is made of whole blocks."""
        end = offset + length
        return [
            waiter
            for waiter in self._waiters
            if waiter.offset < end and offset < waiter.offset + waiter.length
        ]

    @property
    def connected(self) -> bool:
        """Whether the source can be asked."""
        return self._fetch is not None

    def link_lost(self) -> None:
        """Nothing that was asked for will come; do not ask until ``link_restored``."""
        self._link += 1
        self._fetch = None
        self._coming.clear_all()

    def link_restored(self, fetch: Fetch) -> None:
        """Ask by ``fetch`` from here on, at once for all that is waited for."""
        self.link_lost()
        self._fetch = fetch
        self.retry(0, self._pending.size)

    def outstanding(self) -> list[tuple[int, int]]:
        """``(offset, length)`` of the pending runs that requests wait for, ascending."""
        wanted = DirtyMap(self._pending.size, self._pending.block_size)
        for waiter in self._waiters:
            wanted.mark(waiter.offset, waiter.length)
        wanted &= self._pending
        return list(wanted.runs())
