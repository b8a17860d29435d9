"""Pipes to and from xl, read and written in large pieces without a thread."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os

from vmferry.errors import HypervisorError

__all__ = ["Pipe"]

_CAPACITY = 1 << 20


class Pipe:
    """One end of a pipe, which this object owns and one task at a time uses.

    Raises from ``read_exactly`` and ``write``: ``HypervisorError``, with ``name``.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd, self._name = fd, name
        self._waiting: asyncio.Future[None] | None = None
        os.set_blocking(fd, False)
        with contextlib.suppress(OSError):  # the user's share of pipe buffers may be used up
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _CAPACITY)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._fd < 0

    async def read(self, limit: int = _CAPACITY) -> bytes:
        """Some bytes, at most ``limit``; none at the end, also after ``close``."""
        while self._fd >= 0:
            try:
                return os.read(self._fd, limit)
            except BlockingIOError:
                await self._wait(write=False)
        return b""

    async def read_exactly(self, length: int, timeout: float) -> bytes:
        """``length`` bytes, within ``timeout`` seconds."""
        data = b""
        try:
            async with asyncio.timeout(timeout):
                while len(data) < length:
                    piece = await self.read(length - len(data))
                    if not piece:
                        raise HypervisorError(f"{self._name} ended")
                    data += piece
        except TimeoutError:
            raise HypervisorError(f"{self._name}: no answer within {timeout:g} seconds") from None
        return data

    async def write(self, data: bytes | memoryview, timeout: float) -> None:
        """All of ``data``; each piece that the other end takes begins the ``timeout`` anew."""
        view = memoryview(data).cast("B")
        while view:
            if self._fd < 0:
                raise HypervisorError(f"{self._name} is closed")
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                await self._wait_for_room(timeout)
            except OSError as error:
                raise HypervisorError(f"{self._name}: {error.strerror}") from error

    async def _wait_for_room(self, timeout: float) -> None:
        try:
            async with asyncio.timeout(timeout):
                await self._wait(write=True)
        except TimeoutError:
            text = f"{self._name}: nothing was taken for {timeout:g} seconds"
            raise HypervisorError(text) from None

    async def _wait(self, *, write: bool) -> None:
        loop, fd = asyncio.get_running_loop(), self._fd
        ready: asyncio.Future[None] = loop.create_future()

        self._waiting = ready
        (loop.add_writer if write else loop.add_reader)(fd, self._wake)
        try:
            await ready
        finally:
            if self._fd == fd:
                (loop.remove_writer if write else loop.remove_reader)(fd)

    def close(self) -> None:
        """Close this end; who waits in ``read`` gets its end. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(fd)
            loop.remove_writer(fd)
            os.close(fd)
            self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
