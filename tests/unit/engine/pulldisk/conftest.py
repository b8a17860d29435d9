"""A pull disk whose volume and source do what a test tells them."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import Any

import pytest

from vmferry.api import Extent, ExtentKind, Geometry, Volume
from vmferry.dirtymap import DirtyMap
from vmferry.engine.pulldisk import PullDisk

BLOCK, SECTOR, BLOCKS = 4096, 512, 16
SIZE = BLOCKS * BLOCK + 3 * SECTOR
OLD, REMOTE, GUEST = b"o", b"r", b"g"


class Held(Volume):
    """Bytes in memory; operations named in ``held`` wait for ``go``, those in ``broken`` fail."""

    def __init__(self) -> None:
        self.bytes = bytearray(OLD * SIZE)
        self.log: list[tuple[str, int, int]] = []
        self.held: set[str] = set()
        self.broken: set[str] = set()
        self.go = asyncio.Event()

    @property
    def geometry(self) -> Geometry:
        return Geometry(SIZE, SECTOR)

    async def _do(self, name: str, offset: int = 0, length: int = 0) -> None:
        self.log.append((name, offset, length))
        if name in self.held:
            await self.go.wait()
        if name in self.broken:
            raise OSError(errno.EIO, "broken")

    def did(self, *names: str) -> list[tuple[str, int, int]]:
        return [entry for entry in self.log if entry[0] in names]

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._do("read", offset, len(buffer))
        buffer[:] = self.bytes[offset : offset + len(buffer)]

    async def write(self, offset: int, data: memoryview) -> None:
        await self._do("write", offset, len(data))
        self.bytes[offset : offset + len(data)] = data

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        await self._do("zero", offset, length)
        self.bytes[offset : offset + length] = bytes(length)

    async def discard(self, offset: int, length: int) -> None:
        await self._do("discard", offset, length)

    async def flush(self) -> None:
        await self._do("flush")

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        half = length // 2 // BLOCK * BLOCK
        if half:
            yield Extent(offset, half, ExtentKind.HOLE)
        yield Extent(offset + half, length - half, ExtentKind.DATA)

    async def close(self) -> None:
        pass


class Rig:
    """A pull disk whose source answers when told to."""

    def __init__(self, *pending: int, **options: Any) -> None:
        self.volume = Held()
        self.asked: list[tuple[int, int]] = []
        self.saved: list[bytes] = []
        self.save_error: Exception | None = None
        self.fetch_error: Exception | None = None
        self.disk = PullDisk(self.volume, BLOCK, self.save, self.fetch, **options)
        self.map = DirtyMap(SIZE, BLOCK)
        for block in pending:
            self.map.mark(block * BLOCK, 1)

    async def __aenter__(self) -> Rig:
        await self.disk.ready(self.map)
        self.saved.clear()
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def save(self, encoded: bytes) -> None:
        self.volume.log.append(("save", 0, 0))
        if self.save_error:
            raise self.save_error
        self.saved.append(encoded)

    async def fetch(self, offset: int, length: int) -> None:
        if self.fetch_error:
            raise self.fetch_error
        self.asked.append((offset, length))

    async def answer(self, data: bytes = REMOTE) -> None:
        """Deliver all that was asked for."""
        asked, self.asked = self.asked, []
        for offset, length in asked:
            await self.disk.arrive(offset, length, data * length)

    async def read(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        await self.disk.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    async def write(self, offset: int, length: int) -> None:
        await self.disk.write(offset, memoryview(GUEST * length))

    def pending(self) -> list[int]:
        return [b for b in range(BLOCKS + 1) if self.disk.pending().any(b * BLOCK, 1)]

    def saved_map(self) -> DirtyMap:
        return DirtyMap.decode(self.saved[-1], size=SIZE, block_size=BLOCK)


@pytest.fixture
def rig_of() -> type[Rig]:
    """``rig_of(*pending blocks)`` makes a pull disk with its surroundings."""
    return Rig
