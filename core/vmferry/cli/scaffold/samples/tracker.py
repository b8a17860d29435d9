"""A tracker that needs nobody's help: it reads the whole disk and compares digests."""

from __future__ import annotations

import asyncio
import hashlib

from vmferry.api import Disk, Finding, NoOptions, Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError


class ScanTracker(Tracker[NoOptions]):
    """Slow, but right whatever it is that writes the disk. A failed harvest forgets nothing."""

    api_version = 1
    name = "scan"
    summary = "compares the disk with digests of its blocks"
    capabilities = TrackerCapabilities()
    _disk: Disk | None = None

    async def check(self, disk: Disk, block_size: int) -> list[Finding]:
        """Refuse a disk whose writes in flight ``drain`` could not wait for."""
        served = f"disk {disk.name}: another process writes it for the guest; use its tracker"
        return [Finding.error("scan-served", served)] if disk.facts else []

    async def start(self, disk: Disk, block_size: int) -> int:
        """Take digests. What lands later is another digest at the next harvest."""
        try:
            self._seen = await asyncio.to_thread(_digests, disk, block_size)
        except OSError as error:
            raise TrackerError(f"disk {disk.name} cannot be read: {error}") from error
        self._disk, self._block = disk, block_size
        return block_size

    async def harvest(self) -> DirtyMap:
        """Take digests again; forget the old ones when nothing can fail any more."""
        if (disk := self._disk) is None:
            raise TrackerError("the tracker was not started")
        now = await asyncio.to_thread(_digests, disk, self._block)
        dirty = DirtyMap(disk.size, self._block)
        for number, old in enumerate(self._seen):
            if old != now[number]:
                offset = number * self._block
                dirty.mark(offset, min(self._block, disk.size - offset))
        self._seen = now
        return dirty

    async def drain(self) -> None:
        """The guest writes the disk itself: since it was suspended, nothing is in flight."""

    async def stop(self) -> None:
        """Forget the disk."""
        self._disk = None


def _digests(disk: Disk, block: int) -> list[bytes]:
    with open(disk.location, "rb") as file:
        return [hashlib.blake2b(file.read(block)).digest() for _ in range(0, disk.size, block)]
