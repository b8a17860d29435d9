"""The tracker plugins of this distribution, and the one in memory, against their contract."""

from __future__ import annotations

import asyncio
import os
import struct
from pathlib import Path

import pytest

from vmferry.api.guest import Disk
from vmferry.api.volume import Access, Geometry
from vmferry.export.daemon import ExportDaemon, ExportPaths
from vmferry.testing.memory import MemoryDisk
from vmferry.testing.memory_tracker import MemoryBackend, MemoryTracker
from vmferry.testing.tracker import TrackerConformance, TrackerRig
from vmferry.units import MIB
from vmferry_trackers.export import ExportTracker
from vmferry_volumes.raw import RawDriver

SIZE = 2 * MIB + 512


class MemoryRig(TrackerRig):
    def __init__(self) -> None:
        self.backend = MemoryBackend(MemoryDisk(Geometry(SIZE)))
        self.disk = Disk(name="disk0", size=SIZE, location="disk0")
        self.tracker = MemoryTracker(backends={"disk0": self.backend})

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def guest_write(self, offset: int, data: bytes) -> None:
        await self.backend.write(offset, data)

    async def guest_zero(self, offset: int, length: int) -> None:
        await self.backend.write_zeroes(offset, length)

    async def guest_discard(self, offset: int, length: int) -> None:
        await self.backend.discard(offset, length)

    def read_raw(self, offset: int, length: int) -> bytes:
        return self.backend.disk.read(offset, length)

    def in_flight(self) -> list[tuple[int, int]]:
        return list(self.backend.in_flight.values())

    async def lose_track(self) -> bool:
        self.tracker.lose_track()
        return True


class TestMemoryTracker(TrackerConformance):
    @pytest.fixture
    def rig(self) -> MemoryRig:
        return MemoryRig()


class NbdGuest:
    """As much of an NBD client as a guest needs: several requests at once, simple replies."""

    WRITE, TRIM, ZEROES = 1, 4, 6

    def __init__(self) -> None:
        self.waiting: dict[int, tuple[asyncio.Future[int], tuple[int, int]]] = {}
        self._cookie = 0

    async def connect(self, socket: Path, name: str) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(socket)
        await self._reader.readexactly(18)
        chosen = name.encode()
        self._writer.write(struct.pack(">I", 3))
        self._writer.write(b"IHAVEOPT" + struct.pack(">II", 1, len(chosen)) + chosen)
        await self._reader.readexactly(10)
        self._replies = asyncio.create_task(self._receive())

    async def request(self, kind: int, offset: int, length: int, data: bytes = b"") -> None:
        self._cookie += 1
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.waiting[self._cookie] = future, (offset, length)
        head = struct.pack(">IHHQQI", 0x25609513, 0, kind, self._cookie, offset, length)
        self._writer.write(head + data)
        error = await future
        if error:
            raise OSError(error, os.strerror(error))

    async def _receive(self) -> None:
        while True:
            magic, error, cookie = struct.unpack(">IIQ", await self._reader.readexactly(16))
            assert magic == 0x67446698
            self.waiting.pop(cookie)[0].set_result(error)

    async def close(self) -> None:
        self._replies.cancel()
        await asyncio.wait([self._replies])
        self._writer.close()
        await self._writer.wait_closed()


class ExportRig(TrackerRig):
    """A file served by the disk daemon, to a guest that speaks NBD."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / "disk0.raw"
        self._guest = NbdGuest()
        self.tracker = ExportTracker()
        facts = {"control": str(folder / "control"), "export": "disk0"}
        self.disk = Disk(name="disk0", size=SIZE, location=str(self._file), facts=facts)

    async def open(self) -> None:
        self._file.touch()
        os.truncate(self._file, SIZE)
        self._volume = await RawDriver().open(str(self._file), Access.WRITE)
        self._daemon = ExportDaemon({"disk0": self._volume})
        paths = ExportPaths(socket=self._folder / "nbd", control=self._folder / "control")
        await self._daemon.start(paths)
        await self._guest.connect(paths.socket, "disk0")

    async def close(self) -> None:
        await self._guest.close()
        await self._daemon.close()
        await self._volume.close()

    async def guest_write(self, offset: int, data: bytes) -> None:
        await self._guest.request(NbdGuest.WRITE, offset, len(data), data)

    async def guest_zero(self, offset: int, length: int) -> None:
        await self._guest.request(NbdGuest.ZEROES, offset, length)

    async def guest_discard(self, offset: int, length: int) -> None:
        await self._guest.request(NbdGuest.TRIM, offset, length)

    def read_raw(self, offset: int, length: int) -> bytes:
        with self._file.open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def in_flight(self) -> list[tuple[int, int]]:
        return [spot for _, spot in self._guest.waiting.values()]


class TestExportTracker(TrackerConformance):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> ExportRig:
        return ExportRig(tmp_path)
