"""Bytes received in order: small things by way of a buffer, large ones straight to their place."""

from __future__ import annotations

import asyncio
import socket

__all__ = ["Wire"]

_BUFFER = 64 * 1024


class Wire:
    """The receiving half of a connected non-blocking socket; one task at a time uses it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._begin = self._end = 0

    async def take(self, length: int) -> bytes:
        """The next ``length`` bytes; raises ``ConnectionResetError`` if there are fewer."""
        if self._end - self._begin < length:
            if length > _BUFFER:
                large = bytearray(length)
                await self.fill(memoryview(large))
                return bytes(large)
            await self._refill(length)
        begin = self._begin
        self._begin += length
        return bytes(self._view[begin : self._begin])

    async def fill(self, view: memoryview) -> None:
        """Receive the next bytes into all of ``view``."""
        got = min(len(view), self._end - self._begin)
        view[:got] = self._view[self._begin : self._begin + got]
        self._begin += got
        while got < len(view):
            got += await self._receive(view[got:])

    async def _refill(self, length: int) -> None:
        kept = self._end - self._begin
        self._buffer[:kept] = self._buffer[self._begin : self._end]
        self._begin, self._end = 0, kept
        while self._end < length:
            self._end += await self._receive(self._view[self._end :])

    async def _receive(self, view: memoryview) -> int:
        count = await self._loop.sock_recv_into(self._socket, view)
        if not count:
            raise ConnectionResetError("the server ended the connection")
        return count
