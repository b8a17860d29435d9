"""The volume plugin of a simulated host: opens and creates the host's disks."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random

from vmferry.api.plugin import Grade, NoOptions
from vmferry.api.volume import (
    Access,
    Extent,
    Geometry,
    Volume,
    VolumeCapabilities,
    VolumeDriver,
)
from vmferry.errors import VolumeBusy, VolumeError, VolumeExists, VolumeGeometry, VolumeMissing
from vmferry.simulation.disk import DiskParameters, Request, SimDisk
from vmferry.simulation.process import SimProcess
from vmferry.simulation.trace import Trace

__all__ = ["SimDriver", "SimStorage", "SimVolume"]

_OTHERS = {"zero": "write", "discard": "write"}


class SimStorage:
    """The disks of one host. They outlive its processes.

    Args:
        parameters: how its disks behave.
        random: gives each disk its own.
        trace: notes every request.

    Attributes:
        disks: by name, which is their location.
        space: bytes that disks made later may take.

    """

    def __init__(self, parameters: DiskParameters, random: Random, trace: Trace) -> None:
        self.parameters, self.random, self.trace = parameters, random, trace
        self.disks: dict[str, SimDisk] = {}
        self.space = 1 << 40

    def add(self, name: str, geometry: Geometry) -> SimDisk:
        """Make a disk of zeroes."""
        chance = Random(self.random.getrandbits(64))  # noqa: S311 - it must repeat
        self.disks[name] = SimDisk(name, geometry, self.parameters, chance)
        return self.disks[name]

    def lose_power(self) -> None:
        """Lose what was not durable on any disk."""
        for disk in self.disks.values():
            disk.lose_power()


class SimVolume(Volume):
    """One opener of a disk.

    Requests take a random time and act at a random moment of it, some in two parts. One that is
    cancelled has acted or never will.
    """

    def __init__(self, disk: SimDisk, process: SimProcess, access: Access, trace: Trace) -> None:
        self.disk = disk
        self._process, self._access, self._trace = process, access, trace
        self._under_way = 0
        self._idle = asyncio.Event()
        self._closed = False
        disk.openers += 1
        process.at_death(self._end)

    @property
    def geometry(self) -> Geometry:
        """Of the disk."""
        return self.disk.geometry

    def _check(self, offset: int, length: int, *, writing: bool) -> None:
        size, sector = self.geometry.size, self.geometry.sector_size
        if offset < 0 or length < 0 or offset + length > size or (offset | length) % sector:
            raise ValueError(f"{length} bytes at {offset} of {self.disk.name} is no range of it")
        if self._closed or (writing and self._access is Access.READ):
            raise ValueError(f"{self.disk.name} is not open for that")

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Read."""
        self._check(offset, len(buffer), writing=False)

        def act(start: int, stop: int) -> None:
            buffer[start:stop] = self.disk.view[offset + start : offset + stop]

        await self._serve("read", offset, len(buffer), act)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write."""
        self._check(offset, len(data), writing=True)

        def act(start: int, stop: int) -> None:
            self.disk.write(offset + start, memoryview(data)[start:stop])

        await self._serve("write", offset, len(data), act)

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Zero, giving whole units back with ``unmap``."""
        self._check(offset, length, writing=True)

        def act(start: int, stop: int) -> None:
            self.disk.zero(offset + start, stop - start, unmap=unmap)

        await self._serve("zero", offset, length, act)

    async def discard(self, offset: int, length: int) -> None:
        """Discard."""
        self._check(offset, length, writing=True)

        def act(start: int, stop: int) -> None:
            self.disk.discard(offset + start, stop - start)

        await self._serve("discard", offset, length, act)

    async def flush(self) -> None:
        """Flush what was done before."""
        self._check(0, 0, writing=False)
        mark = self.disk.changes()
        await self._serve("flush", 0, 0, lambda start, stop: self.disk.settle(mark))

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """The allocation of the range, as it was at some moment of the call."""
        self._check(offset, length, writing=False)
        found: list[Extent] = []

        def act(start: int, stop: int) -> None:
            found[:] = self.disk.extents(offset, length)

        if length:
            await self._serve("extents", 0, 0, act)
        for extent in found:
            yield extent

    async def _serve(
        self, kind: str, offset: int, length: int, act: Callable[[int, int], None]
    ) -> None:
        self._process.check()
        self._under_way += 1
        try:
            await self._do(kind, offset, length, act)
            self._process.check()
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    async def _do(
        self, kind: str, offset: int, length: int, act: Callable[[int, int], None]
    ) -> None:
        disk, random = self.disk, self.disk.random
        disk.requests += 1
        self._trace.add("disk", disk.name, disk.requests, kind, offset, length)
        errno = disk.tamper(Request(disk.requests, kind, offset, length))
        errno = errno or self._process.trouble.of_request(kind)
        middle = self._middle(length)
        parts = [(0, middle), (middle, length)] if middle else [(0, length)]
        if errno:
            parts = parts[: random.randrange(len(parts))] if middle else []
        await self._delay(kind)
        for start, stop in parts:
            if start:
                await self._delay(kind)
            self._process.check()
            act(start, stop)
        if random.random() < 0.5 or errno:
            await self._delay(kind)
        if errno:
            raise OSError(errno, os.strerror(errno), disk.name)

    def _middle(self, length: int) -> int:
        sector, random = self.geometry.sector_size, self.disk.random
        if length <= sector or random.random() >= self.disk.parameters.tear:
            return 0
        return random.randrange(1, length // sector) * sector

    def _delay(self, kind: str) -> Awaitable[None]:
        longest = getattr(self.disk.parameters, _OTHERS.get(kind, kind), 0.0)
        return asyncio.sleep(longest * self.disk.random.random())

    async def unlock(self) -> None:
        """Let another write the disk."""
        self._let_go()

    def _let_go(self) -> None:
        if self.disk.writer is self:
            self.disk.writer = None

    async def close(self) -> None:
        """Finish what is under way and let go of the disk."""
        while self._under_way:
            self._idle.clear()
            await self._idle.wait()
        self._end()

    def _end(self) -> None:
        if not self._closed:
            self._closed = True
            self.disk.openers -= 1
        self._let_go()


class SimDriver(VolumeDriver[NoOptions]):
    """Opens the disks of a simulated host; a location is a name."""

    api_version = 1
    name = "sim"
    summary = "disks within a simulation"
    capabilities = VolumeCapabilities(holes=Grade.NATIVE, zeroes=Grade.NATIVE, discard=Grade.NATIVE)

    def __init__(self, storage: SimStorage, process: SimProcess) -> None:
        super().__init__()
        self._storage, self._process = storage, process

    def _find(self, location: str) -> SimDisk:
        self._process.check()
        disk = self._storage.disks.get(location)
        if disk is None or not disk.served:
            raise VolumeMissing(f"there is no disk {location!r} on {self._process.host}")
        return disk

    async def probe(self, location: str) -> Geometry:
        """Geometry of a disk."""
        await asyncio.sleep(0)
        return self._find(location).geometry

    async def open(self, location: str, access: Access) -> Volume:
        """Open a disk."""
        await asyncio.sleep(0)
        return self._open(self._find(location), access)

    def _open(self, disk: SimDisk, access: Access) -> SimVolume:
        if access is Access.WRITE and disk.writer is not None:
            raise VolumeBusy(f"{disk.name} on {self._process.host} is being written already")
        volume = SimVolume(disk, self._process, access, self._storage.trace)
        if access is Access.WRITE:
            disk.writer = volume
        self._storage.trace.add("open", self._process.host, disk.name, access.value)
        return volume

    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Whether there is room, and nothing of that name."""
        self._process.check()
        if location in self._storage.disks:
            raise VolumeExists(f"there is a disk {location!r} on {self._process.host} already")
        if geometry.size % geometry.sector_size:
            raise VolumeGeometry(f"{geometry.size} bytes are not whole sectors")
        if geometry.size > self._storage.space:
            raise VolumeError(f"no space for {geometry.size} bytes on {self._process.host}")

    async def create(self, location: str, geometry: Geometry) -> Volume:
        """Make a disk and open it for writing."""
        await asyncio.sleep(0)
        await self.check_create(location, geometry)
        self._storage.space -= geometry.size
        return self._open(self._storage.add(location, geometry), Access.WRITE)

    async def remove(self, location: str) -> None:
        """Delete a disk."""
        self._process.check()
        await asyncio.sleep(0)
        disk = self._storage.disks.pop(location, None)
        if disk:
            self._storage.space += disk.geometry.size
            self._storage.trace.add("remove", self._process.host, location)
