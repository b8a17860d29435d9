"""What a subclass of ``TrackerConformance`` gives, and the guest that its tests play."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from random import Random
from types import TracebackType
from typing import Any

from vmferry.api.guest import Disk
from vmferry.api.tracker import Tracker
from vmferry.dirtymap import DirtyMap
from vmferry.testing.checks import pattern

__all__ = ["BusyGuest", "Spot", "TrackerRig", "copy_blocks"]

Spot = tuple[int, int]
"""Offset and length in bytes."""


class TrackerRig(ABC):
    """A disk with a guest, and a tracker that was not started.

    The disk should be of some mebibytes, and of a size that is no multiple of 4096, so that its
    last block is a partial one.

    Attributes:
        tracker: the tracker under test.
        disk: the disk, as a hypervisor would describe it.

    """

    tracker: Tracker[Any]
    disk: Disk

    @abstractmethod
    async def open(self) -> None:
        """Make the disk, all zeroes, attach it, and set ``tracker`` and ``disk``."""

    @abstractmethod
    async def close(self) -> None:
        """Take all of it away; the tests have stopped the tracker."""

    @abstractmethod
    async def guest_write(self, offset: int, data: bytes) -> None:
        """Write as the guest does; return when the guest is told that it completed."""

    @abstractmethod
    async def guest_zero(self, offset: int, length: int) -> None:
        """Zero as the guest does (``WRITE_ZEROES``, or what the backend has for it)."""

    @abstractmethod
    async def guest_discard(self, offset: int, length: int) -> None:
        """Discard as the guest does."""

    @abstractmethod
    def read_raw(self, offset: int, length: int) -> bytes:
        """What the disk below the tracker holds, as the engine would read it."""

    def in_flight(self) -> list[Spot] | None:
        """Writes the guest has submitted and not been told of; None if that cannot be known."""
        return None

    async def lose_track(self) -> bool:
        """Make the tracker lose events (overflow its buffer, say); False if that is not possible.

        A tracker that cannot lose any has nothing to prove.
        """
        return False

    def unknown_disk(self) -> Disk:
        """A disk that cannot be tracked, since nothing is attached to it."""
        return Disk(name="nowhere", size=self.disk.size, location="/nowhere/disk")

    async def __aenter__(self) -> TrackerRig:
        """``open``."""
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        failure: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Stop the tracker and ``close``."""
        try:
            await self.tracker.stop()
        finally:
            await self.close()


class BusyGuest:
    """A guest that writes all the time, several requests at once, everywhere on its disk.

    Attributes:
        acknowledged: the ranges of all writes that completed, in order.

    """

    def __init__(self, rig: TrackerRig, *, lanes: int = 8, seed: int = 7) -> None:
        self.acknowledged: list[Spot] = []
        self._rig, self._lanes = rig, lanes
        self._random = Random(seed)  # noqa: S311 -- repeatable, not secret
        self._stopping = False
        self._written = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[BusyGuest]:
        """Write meanwhile; on leaving, every write has been acknowledged."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._lanes):
                group.create_task(self._write())
            try:
                yield self
            finally:
                self._stopping = True

    async def _write(self) -> None:
        sector, size = self._rig.disk.sector_size, self._rig.disk.size
        while not self._stopping:
            length = sector * self._random.choice([1, 1, 3, 8, 8, 8, 17, 64])
            offset = self._random.randrange((size - length) // sector + 1) * sector
            seed = self._random.randrange(1 << 30)
            await self._jitter()
            await self._rig.guest_write(offset, pattern(length, seed))
            self.acknowledged.append((offset, length))
            async with self._written:
                self._written.notify_all()

    async def more(self, count: int) -> None:
        """Return when ``count`` more writes have been acknowledged."""
        wanted = len(self.acknowledged) + count
        async with self._written:
            await self._written.wait_for(lambda: len(self.acknowledged) >= wanted)
        await self._jitter()

    async def _jitter(self) -> None:
        """Some turns of the loop, so that lanes and caller meet in ever other phases."""
        for _ in range(self._random.randrange(8)):
            await asyncio.sleep(0)


def copy_blocks(rig: TrackerRig, dirty: DirtyMap, copy: bytearray) -> None:
    """Do what the engine does after a harvest: read its blocks, at once."""
    for offset, length in dirty.runs():
        copy[offset : offset + length] = rig.read_raw(offset, length)
