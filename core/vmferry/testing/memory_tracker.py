"""A tracker in memory: the tracker contract in its plainest form, and the backend it watches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

from vmferry.api.guest import Disk
from vmferry.api.plugin import Grade, NoOptions
from vmferry.api.tracker import Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry.testing.memory import MemoryDisk

__all__ = ["MemoryBackend", "MemoryTracker"]

Watcher = Callable[[int, int], None]
Pause = Callable[[], Awaitable[None]]


async def _one_turn() -> None:
    await asyncio.sleep(0)


class MemoryBackend:
    """What a guest's disk is attached to: each request takes a while, then changes the disk.

    A watcher is called with the range of every change twice: when it is submitted, and after it
    landed, before the guest is told.

    Attributes:
        disk: the disk below.
        watchers: called for each change.
        in_flight: ranges that were submitted and not acknowledged, each with its end to come.

    """

    def __init__(self, disk: MemoryDisk, pause: Pause = _one_turn) -> None:
        """Attach to ``disk``; ``pause`` is awaited before and after each change."""
        self.disk = disk
        self.watchers: list[Watcher] = []
        self.in_flight: dict[asyncio.Event, tuple[int, int]] = {}
        self._pause = pause

    async def write(self, offset: int, data: bytes) -> None:
        """Write; the guest is told on return."""
        await self._change(offset, len(data), lambda: self.disk.write(offset, data))

    async def write_zeroes(self, offset: int, length: int) -> None:
        """Zero a range; the guest is told on return."""
        await self._change(offset, length, lambda: self.disk.zero(offset, length))

    async def discard(self, offset: int, length: int) -> None:
        """Discard a range; the guest is told on return."""
        await self._change(offset, length, lambda: self.disk.drop(offset, length))

    async def _change(self, offset: int, length: int, land: Callable[[], None]) -> None:
        ended = asyncio.Event()
        self.in_flight[ended] = offset, length
        try:
            self._tell(offset, length)
            await self._pause()
            land()
            await self._pause()
            self._tell(offset, length)
        finally:
            del self.in_flight[ended]
            ended.set()

    def _tell(self, offset: int, length: int) -> None:
        for watcher in self.watchers:
            watcher(offset, length)

    async def settle(self) -> None:
        """Return when all that is in flight at the call has ended, whatever begins meanwhile."""
        for ended in list(self.in_flight):
            await ended.wait()


class MemoryTracker(Tracker[NoOptions]):
    """Watches a ``MemoryBackend``, found by the disk's location."""

    api_version = 1
    name = "memory"
    summary = "the disk is in this process's memory, for tests"
    capabilities: ClassVar[TrackerCapabilities] = TrackerCapabilities(
        live=Grade.NATIVE, discards=Grade.NATIVE
    )

    def __init__(
        self,
        options: NoOptions | None = None,
        *,
        backends: dict[str, MemoryBackend] | None = None,
    ) -> None:
        super().__init__(options)
        self.backends: dict[str, MemoryBackend] = {} if backends is None else backends
        self._backend: MemoryBackend | None = None
        self._map: DirtyMap | None = None

    async def start(self, disk: Disk, block_size: int) -> int:
        """Watch the backend, then wait for what was in flight before."""
        await self.stop()
        backend = self.backends.get(disk.location)
        if backend is None or backend.disk.geometry.size != disk.size:
            raise TrackerError(f"disk {disk.name!r}: no backend of its size at {disk.location!r}")
        self._backend, self._map = backend, DirtyMap(disk.size, block_size)
        backend.watchers.append(self._mark)
        try:
            await backend.settle()
        except BaseException:
            await self.stop()
            raise
        return block_size

    def _mark(self, offset: int, length: int) -> None:
        if self._map is not None:
            self._map.mark(offset, length)

    def lose_track(self) -> None:
        """Behave as if events had been dropped: everything may have been written."""
        self._tracked().mark_all()

    def _tracked(self) -> DirtyMap:
        if self._map is None:
            raise TrackerError("the tracker was not started")
        return self._map

    async def harvest(self) -> DirtyMap:
        """Take the map. What is in flight marks again when it has landed: no barrier is needed."""
        await asyncio.sleep(0)
        return self._tracked().take()

    async def drain(self) -> None:
        """Wait for what is in flight."""
        if self._backend is not None:
            await self._backend.settle()

    async def stop(self) -> None:
        """Stop watching."""
        if self._backend is not None and self._mark in self._backend.watchers:
            self._backend.watchers.remove(self._mark)
        self._backend = self._map = None
