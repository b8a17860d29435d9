"""A small NBD server over a file that notes what is asked of it and can be made to misbehave.

For what attaches a guest to an export: the hypervisor's conformance class counts with it whether a
guest reads too early or goes on using an export it was taken off. It knows fixed newstyle with
``NBD_OPT_GO`` and ``NBD_OPT_EXPORT_NAME``, and simple replies.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

__all__ = ["RecordingExport"]

_GREETING = struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3)
_OPTION, _REPLY = struct.Struct(">QII"), struct.Struct(">QIII")
_REQUEST, _SIMPLE = struct.Struct(">IHHQQI"), struct.Struct(">IIQ")
_EXPORT_NAME, _GO, _ACK, _INFO, _UNSUPPORTED = 1, 7, 1, 3, (1 << 31) | 1
_POLL = 0.001
_FLAGS = 1 | 1 << 2 | 1 << 5 | 1 << 6
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZEROES = 0, 1, 2, 3, 4, 6


class RecordingExport:
    """Serves ``path`` as ``name`` on the unix socket ``socket``.

    Attributes:
        requests: requests received so far, answered or not.
        opened: set while requests are carried out; clear it to make them wait.
        refuse: error numbers that the next requests are answered with, without being carried out.

    """

    def __init__(self, path: Path, socket: Path, name: str = "disk0") -> None:
        self.requests = 0
        self.opened = asyncio.Event()
        self.opened.set()
        self.refuse: list[int] = []
        self._path, self._socket, self._name = path, socket, name
        self._server: asyncio.Server | None = None
        self._file = -1
        self._writers: set[asyncio.StreamWriter] = set()
        self._ended: set[asyncio.Future[None]] = set()
        self._breaks = 0
        self._missing: dict[int, bytes] = {}
        self._fetching = threading.Lock()

    @property
    def url(self) -> str:
        """Where a guest finds it."""
        return f"nbd+unix:///{quote(self._name)}?socket={quote(str(self._socket))}"

    async def start(self) -> None:
        """Listen. May be called again after ``stop``."""
        self._file = os.open(self._path, os.O_RDWR)
        folder = os.open(self._socket.parent, os.O_PATH)
        try:
            at = f"/proc/self/fd/{folder}/{self._socket.name}"
            self._server = await asyncio.start_unix_server(self._serve, at)
        finally:
            os.close(folder)

    async def stop(self) -> None:
        """Stop listening and drop all connections. May be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        self.drop()
        await asyncio.gather(*self._ended, return_exceptions=True)
        self._socket.unlink(missing_ok=True)
        os.close(self._file)

    def pend(self, pieces: Mapping[int, bytes]) -> None:
        """Take the disk's contents at these offsets away: the export alone still knows them.

        The file holds nonsense there until a request touches the piece, or ``complete`` is called.
        """
        self._missing = dict(pieces)
        for offset, data in pieces.items():
            os.pwrite(self._file, b"\xee" * len(data), offset)

    def complete(self) -> None:
        """Put everything that is still missing into the file."""
        self._fetch(0, 1 << 62)

    def _fetch(self, offset: int, length: int) -> None:
        """Put the missing pieces that the range touches into the file."""
        with self._fetching:  # `complete` is called in a thread
            for start in list(self._missing):
                if start < offset + length and offset < start + len(self._missing[start]):
                    os.pwrite(self._file, self._missing.pop(start), start)

    def drop(self) -> None:
        """Break all connections, as if the server had died; requests under way are not answered."""
        self._breaks += 1
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        ended = asyncio.get_running_loop().create_future()
        self._ended.add(ended)
        try:
            writer.write(_GREETING)
            await reader.readexactly(4)
            if await self._negotiate(reader, writer):
                while await self._answer(reader, writer):
                    await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._ended.discard(ended)
            ended.set_result(None)

    async def _negotiate(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        while True:
            _, option, length = _OPTION.unpack(await reader.readexactly(_OPTION.size))
            await reader.readexactly(length)
            size = os.fstat(self._file).st_size
            if option == _EXPORT_NAME:
                writer.write(struct.pack(">QH", size, _FLAGS))
                return True
            if option != _GO:
                writer.write(_REPLY.pack(0x3E889045565A9, option, _UNSUPPORTED, 0))
                continue
            writer.write(_REPLY.pack(0x3E889045565A9, option, _INFO, 12))
            writer.write(struct.pack(">HQH", 0, size, _FLAGS))
            writer.write(_REPLY.pack(0x3E889045565A9, option, _ACK, 0))
            return True

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        header = await reader.readexactly(_REQUEST.size)
        _, _, command, handle, offset, length = _REQUEST.unpack(header)
        if command == _DISCONNECT:
            return False
        data = await reader.readexactly(length) if command == _WRITE else b""
        self.requests += 1
        await self._admitted(self._breaks)
        error = self.refuse.pop(0) if self.refuse else 0
        reply = b"" if error else self._perform(command, offset, length, data)
        writer.write(_SIMPLE.pack(0x67446698, error, handle) + reply)
        return True

    async def _admitted(self, breaks: int) -> None:
        """Wait until requests are carried out, or the connection was broken meanwhile."""
        while not self.opened.is_set():
            if self._breaks != breaks:
                raise ConnectionResetError
            await asyncio.sleep(_POLL)

    def _perform(self, command: int, offset: int, length: int, data: bytes) -> bytes:
        self._fetch(offset, length)
        if command == _READ:
            return os.pread(self._file, length, offset)
        if command in (_WRITE, _ZEROES, _TRIM):
            os.pwrite(self._file, data or bytes(length), offset)
        return b""
