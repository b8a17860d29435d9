"""The smallest migration that is right, and the ways to get it wrong.

One process that sees both hosts, one disk, no protocol: it exists to show that the world finds
what is planted in it.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from typing import Any

from vmferry.api.guest import ArrivingDisk
from vmferry.api.tracker import Tracker
from vmferry.api.volume import Access, BlockIO, Geometry, Volume
from vmferry.dirtymap import DirtyMap
from vmferry.simulation.world import DESTINATION, SOURCE, World

__all__ = ["Flaw", "ferry"]

_BLOCK = 16384


class Flaw(enum.Enum):
    """What the migration does wrong."""

    NONE = "none"
    FORGETS_LAST_HARVEST = "what was written since the last round is not pending"
    CLEARS_AFTER_READING = "forgets a block's bit after the block was read"
    NO_DRAIN = "harvests without waiting for the writes in flight"
    LATE_ARRIVAL_WINS = "a fetched block overwrites what the guest wrote meanwhile"
    PARTIAL_WRITE_CLEARS = "a partial write makes the whole block local"
    DISCARD_CLEARS = "a partial discard makes the whole block local"
    RESUMES_SOURCE = "both guests run"
    FORGETS_FLUSH = "the destination's disk is not flushed"


class _Pipe:
    """A byte stream within the process."""

    channels = ()

    def __init__(self) -> None:
        self._pieces: deque[bytes] = deque()
        self._news = asyncio.Event()

    async def write(self, data: bytes | memoryview) -> None:
        """Keep a copy."""
        self._pieces.append(bytes(data))
        self._news.set()
        await asyncio.sleep(0)

    async def write_eof(self) -> None:
        """Keep an end."""
        await self.write(b"")

    async def read(self, limit: int = 1 << 20) -> bytes:
        """The oldest bytes."""
        while not self._pieces:
            self._news.clear()
            await self._news.wait()
        piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft(piece[limit:])
        return piece[:limit]


class _PullDisk(BlockIO):
    """The destination's disk while some blocks are still at the source; one request at a time."""

    def __init__(self, local: Volume, remote: Volume, flaw: Flaw) -> None:
        self._local, self._remote, self._flaw = local, remote, flaw
        self.pending = DirtyMap(local.geometry.size, _BLOCK)
        self._turn = asyncio.Lock()

    @property
    def geometry(self) -> Geometry:
        """Of both."""
        return self._local.geometry

    async def fetch(self, offset: int, length: int) -> None:
        """Make the pending blocks of a range local."""
        async with self._turn:
            await self._fetch(offset, length)

    async def _fetch(self, offset: int, length: int) -> None:
        last = -(-(offset + length) // _BLOCK) * _BLOCK
        runs = self.pending.runs(offset // _BLOCK * _BLOCK, last, max_extent=_BLOCK)
        for place, size in list(runs):
            await _copy(self._remote, self._local, place, size)
            self.pending.clear(place, size)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fetch, then read."""
        async with self._turn:
            await self._fetch(offset, len(buffer))
            await self._local.read_into(offset, buffer)

    async def _prepare(self, offset: int, length: int, lax: Flaw) -> None:
        end = offset + length
        if self._flaw is lax:
            self.pending.clear(offset // _BLOCK * _BLOCK, -(-length // _BLOCK) * _BLOCK)
        elif offset % _BLOCK or end % _BLOCK:
            await self._fetch(offset, length)
        self.pending.clear(offset, length)

    async def write(self, offset: int, data: memoryview) -> None:
        """Fetch what is written in part, then write."""
        turn = asyncio.Lock() if self._flaw is Flaw.LATE_ARRIVAL_WINS else self._turn
        async with turn:
            await self._prepare(offset, len(data), Flaw.PARTIAL_WRITE_CLEARS)
            await self._local.write(offset, data)

    async def discard(self, offset: int, length: int) -> None:
        """Fetch what is discarded in part."""
        async with self._turn:
            await self._prepare(offset, length, Flaw.DISCARD_CLEARS)
            await self._local.discard(offset, length)

    async def flush(self) -> None:
        """Flush."""
        await self._local.flush()

    async def push(self) -> None:
        """Make everything local."""
        while run := self.pending.first_run(max_extent=_BLOCK):
            if self._flaw is Flaw.LATE_ARRIVAL_WINS:
                await self._fetch(*run)
            else:
                await self.fetch(*run)


async def _copy(source: Volume, target: Volume, offset: int, length: int) -> None:
    buffer = memoryview(bytearray(length))
    await source.read_into(offset, buffer)
    await target.write(offset, buffer)


async def _copy_all(source: Volume, target: Volume, dirty: DirtyMap) -> None:
    for offset, length in dirty.runs(max_extent=_BLOCK):
        await _copy(source, target, offset, length)


async def _round(source: Volume, target: Volume, tracker: Tracker[Any], flaw: Flaw) -> None:
    dirty = await tracker.harvest()
    await _copy_all(source, target, dirty)
    if flaw is Flaw.CLEARS_AFTER_READING:
        await tracker.harvest()


async def ferry(world: World, flaw: Flaw = Flaw.NONE, name: str = "guest") -> None:
    """Move a guest with one disk from the source host to the destination."""
    here, there = world.process(SOURCE), world.process(DESTINATION)
    near, far, exporter = world.registry(here), world.registry(there), world.exporter(there)
    described = await near.hypervisor("sim").describe(name)
    disk = described.disks[0]
    source = await near.volume("sim").open(disk.location, Access.READ)
    target = await far.volume("sim").create("copy", source.geometry)
    pull = _PullDisk(target, source, flaw)
    url = await exporter.expose(name, pull)
    tracker = near.tracker("sim")
    await tracker.start(disk, _BLOCK)
    await _copy_all(source, target, DirtyMap.full(disk.size, _BLOCK))
    await _round(source, target, tracker, flaw)

    stream = _Pipe()
    departure = await near.hypervisor("sim").depart(described, stream)
    arriving = ArrivingDisk(disk=disk, volume="sim", location="copy", export=url)
    arrival = await far.hypervisor("sim").arrive(described, [arriving], stream)
    receiving = asyncio.create_task(arrival.receive())
    await departure.precopy()
    await departure.suspend()
    await departure.transfer()
    if flaw is not Flaw.NO_DRAIN:
        await tracker.drain()
    if flaw is not Flaw.FORGETS_LAST_HARVEST:
        pull.pending.update(await tracker.harvest())
    await receiving
    await departure.release()
    await arrival.activate()
    if flaw is Flaw.RESUMES_SOURCE:
        await departure.resume()
    await pull.push()
    if flaw is not Flaw.FORGETS_FLUSH:
        await target.flush()
    await target.unlock()
    await arrival.pivot(arriving)
    await arrival.finish()
    await tracker.stop()
    await departure.destroy()
