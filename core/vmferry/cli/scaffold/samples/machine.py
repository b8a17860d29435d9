"""A machine to be replaced by what drives yours: memory, a disk, and something that runs.

Every write says what it is, and the machine keeps a record of what it was told has completed, so
that it can be checked wherever it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import struct
from abc import ABC, abstractmethod
from random import Random
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from vmferry.errors import HypervisorError

PAGE, SECTOR = 4096, 512
_OPTION, _REQUEST = struct.Struct(">8sII"), struct.Struct(">IHHQQI")
_READ, _WRITE, _DISCONNECT = 0, 1, 2


def content(kind: str, number: int, version: int, size: int) -> bytes:
    """What a page or sector holds after its write number ``version``; zeroes before the first."""
    told = f"{kind} {number} {version}".encode()
    return hashlib.shake_128(told).digest(size) if version else bytes(size)


class MachineDisk(ABC):
    """A disk as the machine sees it."""

    @abstractmethod
    async def write(self, offset: int, data: bytes) -> None:
        """Return when it has completed."""

    @abstractmethod
    async def read(self, offset: int, length: int) -> bytes:
        """What is there."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of it. May be called twice."""


class FileDisk(MachineDisk):
    """A plain file."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    async def write(self, offset: int, data: bytes) -> None:
        """Write at once."""
        os.pwrite(self._file, data, offset)

    async def read(self, offset: int, length: int) -> bytes:
        """Read at once."""
        return os.pread(self._file, length, offset)

    async def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


class NbdDisk(MachineDisk):
    """An export on a unix socket, ``nbd+unix:///NAME?socket=PATH``; connects when it is used."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._name, self._socket = unquote(parts.path[1:]), parse_qs(parts.query)["socket"][0]
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def write(self, offset: int, data: bytes) -> None:
        """``NBD_CMD_WRITE``."""
        await self._request(_WRITE, offset, len(data), data)

    async def read(self, offset: int, length: int) -> bytes:
        """``NBD_CMD_READ``."""
        return await self._request(_READ, offset, length)

    async def _request(self, kind: int, offset: int, length: int, data: bytes = b"") -> bytes:
        reader, writer = self._streams or await self._connect()
        writer.write(_REQUEST.pack(0x25609513, 0, kind, 0, offset, length) + data)
        _, error, _ = struct.unpack(">IIQ", await reader.readexactly(16))
        if error:
            raise OSError(error, os.strerror(error))
        return await reader.readexactly(length if kind == _READ else 0)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Fixed newstyle without trailing zeroes, and ``NBD_OPT_EXPORT_NAME``."""
        reader, writer = self._streams = await asyncio.open_unix_connection(self._socket)
        await reader.readexactly(18)
        name = self._name.encode()
        writer.write(struct.pack(">I", 3) + _OPTION.pack(b"IHAVEOPT", 1, len(name)) + name)
        await reader.readexactly(10)
        return reader, writer

    async def close(self) -> None:
        """``NBD_CMD_DISC``."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].write(_REQUEST.pack(0x25609513, 0, _DISCONNECT, 0, 0, 0))
            streams[1].close()
            with contextlib.suppress(OSError):
                await streams[1].wait_closed()


class State(msgspec.Struct):
    """Everything of a machine but its memory.

    Attributes:
        steps: writes done so far.
        pages: version of each page of memory.
        sectors: version of each sector of the disk that the machine was told is written.

    """

    pages: list[int]
    sectors: dict[int, int] = {}
    steps: int = 0


class Machine:
    """Writes a page and a sector, again and again, while it runs.

    Attributes:
        name: of the machine.
        memory: its pages; ``dirty`` are the numbers of those written since they were last taken.
        state: everything else that moves.
        disk: what it is attached to now.
        location: its plain disk.
        crashed: it ended by itself.

    """

    def __init__(
        self, name: str, pages: int, sectors: int, disk: MachineDisk, location: str
    ) -> None:
        self.name, self.sectors, self.disk, self.location = name, sectors, disk, location
        self.memory = bytearray(pages * PAGE)
        self.dirty: set[int] = set()
        self.state = State([0] * pages)
        self.crashed = False
        self._random = Random()  # noqa: S311 -- not secret
        self._task: asyncio.Task[None] | None = None

    def put(self, page: int, data: bytes) -> None:
        """Fill a page."""
        if not 0 <= page < len(self.state.pages) or len(data) != PAGE:
            raise HypervisorError(f"{len(data)} bytes for page {page}: there is no such page")
        self.memory[page * PAGE : (page + 1) * PAGE] = data

    def get(self, page: int) -> bytes:
        """What a page holds."""
        return bytes(self.memory[page * PAGE : (page + 1) * PAGE])

    @property
    def running(self) -> bool:
        """Whether it runs now."""
        return self._task is not None and not self._task.done()

    def run(self) -> None:
        """Go on, if it stands still."""
        if not self.running:
            self._task = asyncio.create_task(self._run())

    async def suspend(self) -> None:
        """Stop at the end of a step: no request is in flight then."""
        task, self._task = self._task, None
        if task is not None:
            await task

    async def _run(self) -> None:
        while self._task is not None:
            await self._step()
            await asyncio.sleep(0.001)

    async def _step(self) -> None:
        state, version = self.state, self.state.steps + 1
        page = self._random.randrange(len(state.pages))
        sector = self._random.randrange(self.sectors)
        self.put(page, content("page", page, version, PAGE))
        state.pages[page] = version
        self.dirty.add(page)
        await self.disk.write(sector * SECTOR, content("sector", sector, version, SECTOR))
        state.sectors[sector] = version
        state.steps = version

    async def attach(self, disk: MachineDisk) -> None:
        """Put it on another disk; no request is in flight on the old one on return."""
        was_running = self.running
        await self.suspend()
        old, self.disk = self.disk, disk
        await old.close()
        if was_running:
            self.run()

    async def end(self) -> None:
        """Remove it. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        await self.disk.close()
