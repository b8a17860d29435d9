"""Pull disks shown to guests over NBD: what the engine is given as its exporter."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from vmferry.api.volume import BlockIO
from vmferry.export.nbd.budget import Limits
from vmferry.export.nbd.server import NbdServer

__all__ = ["NbdExporter"]


class NbdExporter:
    """Serves disks from one unix socket, ``nbd.sock`` in a folder of its own.

    The socket is there while something is exposed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, limits: Limits | None = None) -> None:
        self._path = Path(folder).absolute() / "nbd.sock"
        self._limits = limits
        self._server: NbdServer | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> NbdExporter:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def expose(self, name: str, disk: BlockIO) -> str:
        """Serve ``disk`` from now on; returns ``nbd+unix:///NAME?socket=PATH``, percent-encoded.

        Raises:
            InputError: the name is taken, or the socket cannot be made.
            VolumeGeometry: NBD cannot express the disk's geometry.

        """
        async with self._lock:
            server = self._server or NbdServer(limits=self._limits)
            server.add(name, disk)
            if self._server is None:
                await server.start_unix(self._path)
                self._server = server
        return f"nbd+unix:///{quote(name, safe='')}?socket={quote(str(self._path))}"

    async def withdraw(self, url: str) -> None:
        """Stop serving what ``expose`` returned ``url`` for; requests under way are answered first.

        A URL that is not served is no error.
        """
        name = unquote(urlsplit(url).path.removeprefix("/"))
        async with self._lock:
            if self._server is None:
                return
            await self._server.remove(name)
            if not self._server.exports:
                await self._close()

    async def close(self) -> None:
        """Withdraw everything. May be called twice."""
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.close()
