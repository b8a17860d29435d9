"""A xenstored for tests: the wire protocol over a dictionary, watches included."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

HEADER = struct.Struct("=IIII")


class FakeXenStored:
    """Serves ``values`` at a socket; ``change`` and ``fire`` set watches off."""

    def __init__(self, path: Path, values: dict[str, str]) -> None:
        self.path, self.values = path, values
        self._server: asyncio.Server | None = None
        self._watches: list[tuple[str, asyncio.StreamWriter]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> FakeXenStored:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        self.drop()
        await self._server.wait_closed()

    def drop(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.close()

    def change(self, path: str, value: str) -> None:
        self.values[path] = value
        self.fire(path)

    def fire(self, path: str) -> None:
        for watched, writer in self._watches:
            if not writer.is_closing() and (path == watched or path.startswith(f"{watched}/")):
                self._send(writer, 15, path.encode() + b"\0vmferry\0")

    def _send(self, writer: asyncio.StreamWriter, kind: int, payload: bytes) -> None:
        writer.write(HEADER.pack(kind, 0, 0, len(payload)) + payload)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while True:
                kind, _, _, length = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._answer(writer, kind, await reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def _answer(self, writer: asyncio.StreamWriter, kind: int, payload: bytes) -> None:
        path, _, rest = payload.partition(b"\0")
        name = path.decode()
        if kind == 2 and name in self.values:
            self._send(writer, kind, self.values[name].encode())
        elif kind == 1 and (below := self._below(name)):
            self._send(writer, kind, b"".join(word.encode() + b"\0" for word in below))
        elif kind == 11:
            self._send(writer, kind, b"OK\0")
            self.change(name, rest.decode())
        elif kind == 4:
            assert rest.endswith(b"\0")
            self._send(writer, kind, b"OK\0")
            self._watches.append((name, writer))
            self._send(writer, 15, path + b"\0vmferry\0")
        elif kind == 13 and name in self.values:
            del self.values[name]
            self._send(writer, kind, b"OK\0")
        else:
            self._send(writer, 16, b"ENOENT\0" if kind in (1, 2, 13) else b"EACCES\0")

    def _below(self, path: str) -> list[str]:
        start = f"{path}/"
        inside = {key[len(start) :].split("/")[0] for key in self.values if key.startswith(start)}
        return sorted(inside)
