"""A guest's disks at the source: volume, tracker and what is still to send.

The engine's part of the invariant lives in ``todo``: a block written by the guest is marked in the
tracker or in ``todo`` until it is being sent. ``take`` hands out what is to send and forgets it
*before* a byte of it is read, so a write that lands meanwhile is marked again by the tracker.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from vmferry.api.guest import Disk
from vmferry.api.tracker import Tracker
from vmferry.api.volume import ExtentKind, Volume
from vmferry.dirtymap import DirtyMap
from vmferry.engine.sender import Piece
from vmferry.wire.tasks import together

__all__ = [
    "SourceDisk",
    "dirty_bytes",
    "dirty_pieces",
    "harvest_all",
    "rest_pieces",
    "whole_disk",
]

_ZERO_RUN = 1 << 30
Stop = Callable[[], bool]


def _never() -> bool:
    return False


class SourceDisk:
    """One disk that is leaving.

    Attributes:
        index: its number in the offer.
        block_size: bytes per bit, as the tracker really uses it.
        offered: bytes per bit of the map on the wire, as agreed with the destination.
        blank: the destination's volume reads as zeroes, so holes need not be sent.
        todo: blocks that were harvested and not yet handed to the sender.
        unsure: blocks that the destination may have, unless they are in ``todo``: to be compared.
        tracked: its tracker has started, or it needs none.

    """

    def __init__(
        self,
        index: int,
        disk: Disk,
        volume: Volume,
        tracker: Tracker[Any] | None,
        block_size: int,
    ) -> None:
        self.index, self.disk, self.volume, self.tracker = index, disk, volume, tracker
        self.block_size = self.offered = block_size
        self.blank = self.tracked = False
        self.todo = DirtyMap(disk.size, block_size)
        self.unsure = DirtyMap(disk.size, block_size)
        self._harvesting: asyncio.Task[None] | None = None

    async def start_tracking(self) -> None:
        """From here on no acknowledged write escapes. Nothing has been read yet. Happens once."""
        if self.tracked:
            return
        if self.tracker is not None:
            self.block_size = await self.tracker.start(self.disk, self.block_size)
            self.todo = DirtyMap(self.disk.size, self.block_size)
            none = DirtyMap(self.disk.size, self.block_size)
            self.unsure = DirtyMap.full(self.disk.size, self.block_size) if self.unsure else none
        self.tracked = True

    async def harvest(self) -> None:
        """Move what the tracker has marked into ``todo``.

        Cancelled, it goes on by itself: what a tracker has forgotten must come to ``todo``.
        """
        if self.tracker is None:
            return
        await self.settle()
        self._harvesting = asyncio.get_running_loop().create_task(self._harvest(self.tracker))
        await self.settle()

    async def _harvest(self, tracker: Tracker[Any]) -> None:
        self.todo.update(await tracker.harvest())

    async def settle(self) -> None:
        """Return when no harvest is under way; raises what the last one raised."""
        if self._harvesting is not None:
            await asyncio.shield(self._harvesting)

    async def last_harvest(self) -> None:
        """Wait for the suspended guest's writes in flight, then harvest: nothing follows."""
        if self.tracker is not None:
            await self.tracker.drain()
        await self.harvest()

    def left(self) -> int:
        """Bytes that are to be sent or compared."""
        return (self.todo | self.unsure if self.unsure else self.todo).dirty_bytes()

    def wire_map(self) -> DirtyMap:
        """``todo`` in the block size that was offered."""
        if self.offered < self.block_size:
            return self.todo.refine(self.offered)
        return self.todo.coarsen(self.offered)

    async def close(self) -> None:
        """Stop tracking and close the volume."""
        try:
            if self._harvesting is not None:
                self._harvesting.cancel()
                await asyncio.gather(self._harvesting, return_exceptions=True)
            if self.tracker is not None:
                await self.tracker.stop()
        finally:
            await self.volume.close()


async def harvest_all(disks: Sequence[SourceDisk]) -> None:
    """Harvest every disk."""
    await together(*(disk.harvest() for disk in disks))


def dirty_bytes(disks: Sequence[SourceDisk]) -> int:
    """Bytes known to be still to send."""
    return sum(disk.todo.dirty_bytes() for disk in disks)


def _split(disk: int, offset: int, length: int, most: int, zero: bool) -> list[Piece]:
    """Cut a range into pieces at multiples of ``most``."""
    pieces = []
    end = offset + length
    while offset < end:
        size = min(most - offset % most, end - offset)
        pieces.append(Piece(disk, offset, size, zero))
        offset += size
    return pieces


async def whole_disk(
    disk: SourceDisk, piece: int, skipped: Callable[[int], None]
) -> AsyncGenerator[Piece, None]:
    """Round 0 of one disk: all data, and the holes only if the destination may hold something.

    ``skipped`` is told the bytes that need not be sent. Closed before its end, what is left goes
    into ``todo``.
    """
    holes = skipped if disk.blank else None
    async with aclosing(_known_pieces(disk, 0, disk.disk.size, piece, holes)) as pieces:
        async for one in pieces:
            yield one


async def _known_pieces(
    disk: SourceDisk, offset: int, length: int, piece: int, skipped: Callable[[int], None] | None
) -> AsyncGenerator[Piece, None]:
    """A range by what its volume knows of it; zeroes are not read, and skipped if that is told."""
    reached, end = offset, offset + length
    try:
        async for extent in disk.volume.extents(offset, length):
            data = extent.kind is ExtentKind.DATA
            if not data and skipped is not None:
                skipped(extent.length)
                reached = extent.offset + extent.length
                continue
            most = piece if data else _ZERO_RUN
            for one in _split(disk.index, extent.offset, extent.length, most, not data):
                reached = one.offset + one.length
                yield one
    finally:
        if reached < end:
            disk.todo.mark(reached, end - reached)


async def dirty_pieces(
    disks: Sequence[SourceDisk], piece: int, stop: Stop = _never
) -> AsyncGenerator[Piece, None]:
    """A further round: what ``todo`` holds at this moment, forgotten before it is read.

    Once ``stop`` says so, or closed before its end, the rest goes back into ``todo``.
    """
    with _taken(disks, piece) as taken:
        for disk, runs in taken:
            for offset, length in runs:
                if stop():
                    disk.todo.mark(offset, length)
                else:
                    yield Piece(disk.index, offset, length)


async def rest_pieces(
    disks: Sequence[SourceDisk], piece: int, stop: Stop = _never
) -> AsyncGenerator[Piece, None]:
    """As ``dirty_pieces``, for what may be most of a disk: zeroes that are known are not read.

    They are sent nevertheless: the destination may hold something there by now.
    """
    with _taken(disks, None) as taken:
        for disk, runs in taken:
            for offset, length in runs:
                async with aclosing(_known_pieces(disk, offset, length, piece, None)) as pieces:
                    async for one in pieces:
                        if stop():
                            disk.todo.mark(one.offset, one.length)
                        else:
                            yield one


@contextmanager
def _taken(
    disks: Sequence[SourceDisk], piece: int | None
) -> Iterator[list[tuple[SourceDisk, Iterator[tuple[int, int]]]]]:
    """The runs of each ``todo``, forgotten; those that nobody has taken by the end go back."""
    taken = []
    for disk in disks:
        most = None if piece is None else max(piece, disk.block_size)
        taken.append((disk, disk.todo.take().runs(max_extent=most)))
    try:
        yield taken
    finally:
        for disk, runs in taken:
            for offset, length in runs:
                disk.todo.mark(offset, length)
