"""Where a guest's disk meets its host: requests come off the ring and go to a target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from random import Random
from typing import Protocol

import msgspec

from vmferry.api.volume import BlockIO, Geometry
from vmferry.simulation import stamps
from vmferry.simulation.table import Kind

__all__ = ["Op", "SimBackend", "WriteObserver"]

_RING_DELAY = 0.0001
"""Longest time in seconds that a request lies on the ring."""


class Op(msgspec.Struct, array_like=True):
    """One request of a guest.

    Attributes:
        kind: what to do.
        disk: number of the disk.
        first: first sector.
        count: sectors.
        number: of the write or flush in the record; 0 for reads.

    """

    kind: Kind
    disk: int
    first: int = 0
    count: int = 0
    number: int = 0

    @property
    def writes(self) -> bool:
        """Whether it changes the disk."""
        return self.kind in {Kind.WRITE, Kind.ZERO, Kind.DISCARD}


class WriteObserver(Protocol):
    """Is told of every write."""

    def dispatched(self, kind: Kind, offset: int, length: int) -> None:
        """It is about to be handed to the disk."""

    def completed(self, kind: Kind, offset: int, length: int) -> None:
        """It has ended, well or not; the guest has not been told yet."""


class SimBackend:
    """Serves one disk of one guest on one host.

    Args:
        geometry: of the disk.
        target: what requests go to.
        random: decides how long requests lie on the ring.

    Attributes:
        target: what requests go to at present.
        observers: who is told of writes.
        pending: requests submitted and not answered, those on the ring included.

    """

    def __init__(self, geometry: Geometry, target: BlockIO, random: Random) -> None:
        self.geometry, self.target = geometry, target
        self.observers: list[WriteObserver] = []
        self.pending = 0
        self._random = random
        self._active = 0
        self._held = False
        self._changed = asyncio.Event()
        self._tasks: dict[asyncio.Task[bytearray | None], Op] = {}

    def submit(self, op: Op) -> asyncio.Task[bytearray | None]:
        """Put a request on the ring; the result of a read is what was read."""
        self.pending += 1
        task = asyncio.get_running_loop().create_task(self._serve(op))
        self._tasks[task] = op
        task.add_done_callback(self._answered)
        return task

    def _answered(self, task: asyncio.Task[bytearray | None]) -> None:
        del self._tasks[task]
        self.pending -= 1
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _serve(self, op: Op) -> bytearray | None:
        await asyncio.sleep(self._random.random() * _RING_DELAY)
        while self._held:
            await self._changed.wait()
        self._active += 1
        sector = self.geometry.sector_size
        place = (op.kind, op.first * sector, op.count * sector)
        observers = self.observers if op.writes else ()
        for observer in observers:
            observer.dispatched(*place)
        try:
            return await self._do(op)
        finally:
            for observer in self.observers if op.writes else ():
                observer.completed(*place)
            self._active -= 1
            self._tell()

    async def _do(self, op: Op) -> bytearray | None:
        if op.kind is not Kind.READ:
            await self._change(op)
            return None
        sector = self.geometry.sector_size
        buffer = bytearray(op.count * sector)
        await self.target.read_into(op.first * sector, memoryview(buffer))
        return buffer

    def _change(self, op: Op) -> Awaitable[None]:
        sector = self.geometry.sector_size
        offset, length = op.first * sector, op.count * sector
        if op.kind is Kind.WRITE:
            data = stamps.encode(op.disk, op.first, op.count, op.number, sector)
            return self.target.write(offset, memoryview(data))
        if op.kind is Kind.ZERO:
            return self.target.write_zeroes(offset, length, unmap=op.number % 2 == 0)
        if op.kind is Kind.DISCARD:
            return self.target.discard(offset, length)
        return self.target.flush()

    async def idle(self, *, writes_only: bool = False) -> None:
        """Return when no request, or no write, is pending."""
        while any(op.writes or not writes_only for op in self._tasks.values()):
            await self._changed.wait()

    def under_way(self) -> list[asyncio.Task[bytearray | None]]:
        """The writes that are pending."""
        return [task for task, op in self._tasks.items() if op.writes]

    async def switch(self, target: BlockIO) -> None:
        """Send later requests to another target; on return none is in flight on the old one."""
        self._held = True
        try:
            while self._active:
                await self._changed.wait()
            self.target = target
        finally:
            self._held = False
            self._tell()

    def drop(self) -> None:
        """Forget all requests: the guest is gone."""
        for task in list(self._tasks):
            task.cancel()
