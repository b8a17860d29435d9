"""A disk in memory that can be held up and made to fail, and a bare NBD client."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from vmferry.api import BlockIO, Extent, ExtentKind, Geometry
from vmferry.export.nbd import NbdServer

KIB = 1024


class Disk(BlockIO):
    """Bytes; ``calls`` lists what was asked for, ``gate`` holds it up, ``failure`` fails it."""

    def __init__(self, size: int = 1 << 20, sector_size: int = 512) -> None:
        self.bytes = bytearray((bytes(range(1, 256)) * (size // 255 + 1))[:size])
        self._geometry = Geometry(size, sector_size)
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: BaseException | None = None
        self.calls: list[tuple[str, int, int]] = []

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    async def _call(self, kind: str, offset: int = 0, length: int = 0) -> None:
        self.calls.append((kind, offset, length))
        if not self.gate.is_set():
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._call("read", offset, len(buffer))
        buffer[:] = self.bytes[offset : offset + len(buffer)]

    async def write(self, offset: int, data: memoryview) -> None:
        await self._call("write", offset, len(data))
        self.bytes[offset : offset + len(data)] = data

    async def flush(self) -> None:
        await self._call("flush")

    async def write_zeroes(self, offset: int, length: int, *, unmap: bool = True) -> None:
        await self._call("zero+unmap" if unmap else "zero", offset, length)
        self.bytes[offset : offset + length] = bytes(length)

    async def discard(self, offset: int, length: int) -> None:
        await self._call("discard", offset, length)


class HoleyDisk(Disk):
    """Data in every odd 64 KiB; a hole in every even one, a zero in every fourth."""

    def __init__(self, size: int = 1 << 20) -> None:
        super().__init__(size)
        for start in range(0, size, 128 * KIB):
            self.bytes[start : start + 64 * KIB] = bytes(64 * KIB)

    async def extents(self, offset: int, length: int) -> AsyncIterator[Extent]:
        end = offset + length
        while offset < end:
            stop = min(end, (offset // (64 * KIB) + 1) * 64 * KIB)
            yield Extent(offset, stop - offset, self.kind(offset))
            offset = stop

    @staticmethod
    def kind(offset: int) -> ExtentKind:
        piece = offset // (64 * KIB)
        if piece % 2:
            return ExtentKind.DATA
        return ExtentKind.ZERO if piece % 4 else ExtentKind.HOLE


class OptionAnswer(NamedTuple):
    kind: int
    data: bytes


class Chunk(NamedTuple):
    flags: int
    kind: int
    cookie: int
    data: bytes


class Client:
    """Speaks NBD as the test says, right or wrong."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.cookie = 0

    async def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, await self.reader.readexactly(struct.calcsize(layout)))

    async def greet(self, flags: int = 3) -> None:
        assert await self.unpack(">QQH") == (0x4E42444D41474943, 0x49484156454F5054, 3)
        self.writer.write(struct.pack(">I", flags))

    def send_option(self, option: int, data: bytes = b"") -> None:
        self.writer.write(struct.pack(">QII", 0x49484156454F5054, option, len(data)) + data)

    async def option(self, option: int, data: bytes = b"") -> list[OptionAnswer]:
        """Answers up to the one that ends them."""
        self.send_option(option, data)
        answers = []
        while True:
            magic, echoed, kind, length = await self.unpack(">QIII")
            assert (magic, echoed) == (0x3E889045565A9, option)
            answers.append(OptionAnswer(kind, await self.reader.readexactly(length)))
            if kind == 1 or kind & 0x80000000:
                return answers

    async def go(self, name: str, *infos: int, option: int = 7) -> list[OptionAnswer]:
        wanted = struct.pack(f">H{len(infos)}H", len(infos), *infos)
        return await self.option(option, named(name) + wanted)

    async def enter(self, name: str = "d", *, structured: bool = False, meta: bool = False) -> None:
        await self.greet()
        if structured:
            assert (await self.option(8))[-1].kind == 1
        if meta:
            assert len(await self.option(10, named(name) + meta_queries("base:allocation"))) == 2
        assert (await self.go(name))[-1].kind == 1

    def request(
        self, kind: int, offset: int = 0, length: int = 0, *, flags: int = 0, data: bytes = b""
    ) -> int:
        self.cookie += 1
        head = struct.pack(">IHHQQI", 0x25609513, flags, kind, self.cookie, offset, length)
        self.writer.write(head + data)
        return self.cookie

    async def simple(self) -> tuple[int, int]:
        """Error and cookie of a simple reply."""
        magic, error, cookie = await self.unpack(">IIQ")
        assert magic == 0x67446698
        return error, cookie

    async def chunk(self) -> Chunk:
        magic, flags, kind, cookie, length = await self.unpack(">IHHQI")
        assert magic == 0x668E33EF
        return Chunk(flags, kind, cookie, await self.reader.readexactly(length))

    async def chunks(self) -> list[Chunk]:
        found = [await self.chunk()]
        while not found[-1].flags & 1:
            found.append(await self.chunk())
        return found

    async def error(self) -> int:
        """Error number in a structured reply of one chunk; 0 if it is none."""
        chunk = await self.chunk()
        assert chunk.flags == 1
        return struct.unpack_from(">I", chunk.data)[0] if chunk.kind & 0x8000 else 0

    async def gone(self) -> bool:
        try:
            return not await self.reader.read(1)
        except ConnectionError:
            return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


def named(name: str | bytes) -> bytes:
    encoded = name if isinstance(name, bytes) else name.encode()
    return struct.pack(">I", len(encoded)) + encoded


def meta_queries(*queries: str) -> bytes:
    return struct.pack(">I", len(queries)) + b"".join(named(query) for query in queries)


class Bench:
    """A server on a socket, and clients of it."""

    def __init__(self, server: NbdServer, path: Path) -> None:
        self.server, self.path = server, path

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = Client(*await asyncio.open_unix_connection(str(self.path)))
        try:
            yield client
        finally:
            await client.close()


@pytest.fixture
def make_disk():
    return Disk


@pytest.fixture
def make_holey_disk():
    return HoleyDisk


@pytest.fixture
def serve(tmp_path):
    """``async with serve({"d": disk}) as bench``."""

    @asynccontextmanager
    async def serving(exports, **options):
        async with NbdServer(exports, **options) as server:
            await server.start_unix(tmp_path / "nbd.sock")
            yield Bench(server, tmp_path / "nbd.sock")

    return serving
