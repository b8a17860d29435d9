"""Volumes in memory: the volume contract in its plainest form, to read and to test with.

A ``MemoryDisk`` is sparse, so a disk of a tebibyte costs what was written to it. It knows what
would survive a crash: ``crash`` drops whatever no ``flush`` has made durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import ClassVar

from vmferry.api.plugin import Grade, NoOptions
from vmferry.api.volume import (
    Access,
    Extent,
    ExtentKind,
    Geometry,
    Volume,
    VolumeCapabilities,
    VolumeDriver,
)
from vmferry.errors import VolumeBusy, VolumeError, VolumeExists, VolumeGeometry, VolumeMissing
from vmferry.units import KIB

__all__ = ["PIECE", "MemoryDisk", "MemoryDriver", "MemoryVolume"]

PIECE = 64 * KIB
"""Bytes in which a disk is allocated and its holes are told."""


class MemoryDisk:
    """The bytes of one disk, zero where nothing was written. No method awaits.

    Attributes:
        geometry: its size and sector size.
        writer: the volume that has it open for writing, if one does.

    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.writer: MemoryVolume | None = None
        self._durable: dict[int, bytearray] = {}
        self._volatile: dict[int, bytearray | None] = {}

    def _piece(self, number: int) -> bytearray | None:
        if number in self._volatile:
            return self._volatile[number]
        return self._durable.get(number)

    def allocated(self, offset: int, length: int) -> list[int]:
        """Numbers of the allocated pieces that the range touches, ascending."""
        first, stop = offset // PIECE, -(-(offset + length) // PIECE)
        known = self._durable.keys() | self._volatile.keys()
        return sorted(k for k in known if first <= k < stop and self._piece(k) is not None)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` from byte ``offset``."""
        for number, start, place, count in _pieces(offset, view.nbytes):
            piece = self._piece(number)
            view[place : place + count] = (
                bytes(count) if piece is None else piece[start : start + count]
            )

    def read(self, offset: int, length: int) -> bytes:
        """A copy of the range."""
        copy = bytearray(length)
        self.read_into(offset, memoryview(copy))
        return bytes(copy)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Store a copy of ``data`` from byte ``offset`` on."""
        for number, start, place, count in _pieces(offset, len(data)):
            piece = self._volatile.get(number)
            if piece is None:
                piece = bytearray(self._piece(number) or PIECE)
                self._volatile[number] = piece
            piece[start : start + count] = data[place : place + count]

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeroes; pieces wholly inside it become holes."""
        first, stop = self._inner(offset, length)
        if first >= stop:
            self.write(offset, bytes(length))
            return
        self.write(offset, bytes(first * PIECE - offset))
        self.drop(offset, length)
        end = min(stop * PIECE, offset + length)
        self.write(end, bytes(offset + length - end))

    def drop(self, offset: int, length: int) -> None:
        """Make holes of the pieces wholly inside the range."""
        first, stop = self._inner(offset, length)
        for number in [*self._durable, *self._volatile]:
            if first <= number < stop:
                self._volatile[number] = None

    def _inner(self, offset: int, length: int) -> tuple[int, int]:
        end = offset + length
        stop = -(-end // PIECE) if end == self.geometry.size else end // PIECE
        return -(-offset // PIECE), stop

    def flush(self) -> None:
        """Make everything written so far survive a crash."""
        for number, piece in self._volatile.items():
            if piece is None:
                self._durable.pop(number, None)
            else:
                self._durable[number] = piece
        self._volatile = {}

    def crash(self) -> None:
        """Forget what was never flushed, and who had the disk open."""
        self._volatile, self.writer = {}, None


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int, int, int]]:
    """Number of each piece touched, where in it, where in the buffer, and how many bytes."""
    place = 0
    while place < length:
        number, start = divmod(offset + place, PIECE)
        count = min(PIECE - start, length - place)
        yield number, start, place, count
        place += count


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """``(first, stop)`` of the runs of neighbours among ascending ``numbers``."""
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1] + 1


class MemoryVolume(Volume):
    """One open ``MemoryDisk``. Each request lets the loop run once, then is done at once."""

    def __init__(self, location: str, disk: MemoryDisk, access: Access) -> None:
        self._location, self._disk, self._access = location, disk, access
        self._open = True
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()
        if access is Access.WRITE:
            disk.writer = self

    @property
    def geometry(self) -> Geometry:
        """Size and sector size of the disk."""
        return self._disk.geometry

    @contextlib.asynccontextmanager
    async def _request(self, offset: int, length: int, *, writing: bool) -> AsyncIterator[None]:
        """Check the request, let the loop run, and keep ``close`` waiting meanwhile."""
        size, sector = self.geometry.size, self.geometry.sector_size
        if offset < 0 or length < 0 or offset + length > size or (offset | length) % sector:
            raise ValueError(
                f"{length} bytes at {offset} of {self._location}: not whole {sector}-byte "
                f"sectors of a disk of {size} bytes"
            )
        self._check_open()
        if writing and self._access is Access.READ:
            raise OSError(errno.EBADF, f"{self._location} is open for reading only")
        self._under_way += 1
        self._idle.clear()
        try:
            await asyncio.sleep(0)
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def _check_open(self) -> None:
        if not self._open:
            raise VolumeError(f"{self._location} is closed")

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Copy the range into ``buffer``."""
        async with self._request(offset, buffer.nbytes, writing=False):
            self._disk.read_into(offset, buffer.cast("B"))

    async def write(self, offset: int, data: memoryview) -> None:
        """Store a copy of ``data``."""
        async with self._request(offset, data.nbytes, writing=True):
            self._disk.write(offset, data.cast("B"))

    async def flush(self) -> None:
        """Make every write so far survive ``MemoryDisk.crash``."""
        async with self._request(0, 0, writing=False):
            self._disk.flush()

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        """Zero the range; whole pieces become holes, whatever ``unmap`` says."""
        async with self._request(offset, length, writing=True):
            self._disk.zero(offset, length)

    async def discard(self, offset: int, length: int) -> None:
        """Make holes of whole pieces; the rest of the range keeps what it has."""
        async with self._request(offset, length, writing=True):
            self._disk.drop(offset, length)

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        """Allocated pieces as data, the others as holes."""
        async with self._request(offset, length, writing=False):
            allocated = self._disk.allocated(offset, length)
        end = offset + length
        for start, stop in _runs(allocated):
            start, stop = max(offset, start * PIECE), min(end, stop * PIECE)
            if start > offset:
                yield Extent(offset, start - offset, ExtentKind.HOLE)
            yield Extent(start, stop - start, ExtentKind.DATA)
            offset = stop
        if offset < end:
            yield Extent(offset, end - offset, ExtentKind.HOLE)

    async def unlock(self) -> None:
        """Let another volume open the disk for writing."""
        if self._disk.writer is self:
            self._disk.writer = None

    async def close(self) -> None:
        """Give up the disk."""
        self._open = False
        await self._idle.wait()
        await self.unlock()


class MemoryDriver(VolumeDriver[NoOptions]):
    """Disks in a dictionary, by name.

    Attributes:
        disks: the disks there are; share it between drivers that shall see the same ones.
        volume_type: what ``open`` and ``create`` return.

    """

    api_version = 1
    name = "memory"
    summary = "disks in this process's memory, for tests"
    capabilities: ClassVar[VolumeCapabilities] = VolumeCapabilities(
        holes=Grade.NATIVE, zeroes=Grade.NATIVE, discard=Grade.NATIVE
    )

    volume_type: ClassVar[type[MemoryVolume]] = MemoryVolume

    def __init__(
        self, options: NoOptions | None = None, *, disks: dict[str, MemoryDisk] | None = None
    ) -> None:
        super().__init__(options)
        self.disks: dict[str, MemoryDisk] = {} if disks is None else disks

    def _find(self, location: str) -> MemoryDisk:
        try:
            return self.disks[location]
        except KeyError:
            known = ", ".join(sorted(self.disks)) or "none"
            raise VolumeMissing(f"no disk named {location!r}; there are: {known}") from None

    async def probe(self, location: str) -> Geometry:
        """Geometry of the disk of that name."""
        return self._find(location).geometry

    async def open(self, location: str, access: Access) -> MemoryVolume:
        """Open the disk of that name."""
        disk = self._find(location)
        if access is Access.WRITE and disk.writer is not None:
            raise VolumeBusy(f"disk {location!r} is open for writing; close that volume first")
        return self.volume_type(location, disk, access)

    async def check_create(self, location: str, geometry: Geometry) -> None:
        """Check the name and the geometry."""
        if geometry.size <= 0 or geometry.size % geometry.sector_size:
            raise VolumeGeometry(
                f"disk {location!r} cannot have {geometry.size} bytes: not a whole number of "
                f"{geometry.sector_size}-byte sectors"
            )
        if location in self.disks:
            raise VolumeExists(f"disk {location!r} exists already; remove it or choose a name")

    async def create(self, location: str, geometry: Geometry) -> MemoryVolume:
        """Make a disk of that name."""
        await self.check_create(location, geometry)
        disk = self.disks[location] = MemoryDisk(geometry)
        return self.volume_type(location, disk, Access.WRITE)

    async def remove(self, location: str) -> None:
        """Forget the disk of that name, if there is one."""
        self.disks.pop(location, None)
