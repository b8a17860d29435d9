"""Greetings over the stream by which both ends meet, with descriptors where there are any."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from vmferry.errors import LinkError
from vmferry_transports.rdma.ends import close_all
from vmferry_transports.rdma.greeting import Greeting

__all__ = ["Met", "Stream"]

READY = b"\0"
_MOST_DESCRIPTORS = 128
"""Two for each of the 64 lanes that a greeting may have."""


class Met:
    """What a peer has said, and the descriptors that it gave."""

    def __init__(self, greeting: Greeting, descriptors: list[int]) -> None:
        self.greeting, self._descriptors = greeting, descriptors

    def take(self) -> list[int]:
        """Hand over the descriptors."""
        taken, self._descriptors = self._descriptors, []
        return taken

    def close(self) -> None:
        """Close descriptors that nobody has taken."""
        close_all(self.take())


class Stream:
    """A non-blocking stream during the greeting. Raises ``OSError`` as sockets do."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._descriptors: list[int] = []

    async def greet(self, greeting: Greeting, descriptors: list[int]) -> None:
        """Send a greeting and descriptors, which the peer gets copies of."""
        data = greeting.encode()
        if descriptors:
            await self._when(self._loop.add_writer, self._loop.remove_writer)
            sent = socket.send_fds(self._sock, [data], descriptors)
            data = data[sent:]
        await self._loop.sock_sendall(self._sock, data)

    async def greeted(self) -> Met:
        """Receive a greeting. Raises ``LinkError`` when what comes is none."""
        try:
            greeting = Greeting.decode(await self._exactly(Greeting.START))
            greeting = greeting.with_endpoints(await self._exactly(greeting.rest))
        except BaseException:
            close_all(self._descriptors)
            raise
        return Met(greeting, self._descriptors)

    async def ready(self) -> None:
        """Tell the listener that it may send."""
        await self._loop.sock_sendall(self._sock, READY)

    async def until_ready(self) -> None:
        """Wait for the connecting end. Raises ``LinkError`` if it says anything else."""
        if await self._loop.sock_recv(self._sock, 1) != READY:
            raise LinkError("the peer did not come to be ready")

    async def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            await self._when(self._loop.add_reader, self._loop.remove_reader)
            data = self._receive(size - len(found))
            if not data:
                raise LinkError("the peer ended the greeting; does vmferry listen there?")
            found += data
        return found

    def _receive(self, size: int) -> bytes:
        if self._sock.family != socket.AF_UNIX:
            return self._sock.recv(size)
        room = _MOST_DESCRIPTORS - len(self._descriptors)
        data, found, flags, _ = socket.recv_fds(self._sock, size, room, socket.MSG_CMSG_CLOEXEC)
        self._descriptors += found
        if flags & socket.MSG_CTRUNC:
            raise LinkError("the peer gave more descriptors than there can be")
        return data

    async def _when(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        """Wait until the socket can be used."""
        possible: asyncio.Future[None] = self._loop.create_future()
        number = os.dup(self._sock.fileno())  # beside what the loop does with the socket itself
        add(number, _settle, possible)
        try:
            await possible
        finally:
            remove(number)
            os.close(number)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
