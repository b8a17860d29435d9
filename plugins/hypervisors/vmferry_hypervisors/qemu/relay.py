"""QEMU's migration stream, between a socket that QEMU has and the stream to the other side."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from vmferry.api.hypervisor import ByteStream
from vmferry.errors import ConnectionLost

__all__ = [
    "BrokenOff",
    "NoStream",
    "Relay",
    "end_task",
    "enlarge",
    "failure_of",
    "socket_pair",
]

_PIECE = 512 << 10
_SPAN = 0.02
"""Seconds for which a piece may be on its way out: it, too, is taken for sent."""
_FADES = 0.7
_MUCH = 64 << 10
"""More than QEMU says at a time but of its memory: there is more to come."""
_BUFFER = 256 << 10
"""What QEMU has handed over and the link has not carried, it takes for sent when it reckons how
long the guest will stand still: so little."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Ours, non-blocking, and QEMU's."""
    ours, theirs = map(enlarge, socket.socketpair())
    ours.setblocking(False)
    return ours, theirs


def enlarge(connection: socket.socket) -> socket.socket:
    """The same, with buffers of the size that suits a migration."""
    for usual, forced in ((socket.SO_SNDBUF, 32), (socket.SO_RCVBUF, 33)):
        try:
            connection.setsockopt(socket.SOL_SOCKET, forced, _BUFFER)  # SO_SNDBUFFORCE of socket(7)
        except OSError:
            connection.setsockopt(socket.SOL_SOCKET, usual, _BUFFER)
    return connection


class NoStream:
    """A ``ByteStream`` to nobody, where none will be used."""

    channels = ()

    async def write(self, data: bytes | memoryview) -> None:
        """Nobody takes it."""
        raise ConnectionLost("there is no stream")

    async def read(self, limit: int = _PIECE) -> bytes:
        """Nobody says anything."""
        return b""

    async def write_eof(self) -> None:
        """Nobody minds."""


class BrokenOff(ConnectionLost):
    """QEMU ended the stream: it, or its migration, has ended."""


class _Pace:
    """How much the stream takes in a short while, the last pieces weighing most."""

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0

    def add(self, size: int, seconds: float) -> None:
        """A piece of ``size`` bytes was handed over in that time."""
        self._bytes = _FADES * self._bytes + size
        self._seconds = _FADES * self._seconds + seconds

    @property
    def piece(self) -> int:
        """Bytes to hand over at once."""
        if self._seconds * _PIECE <= self._bytes * _SPAN:
            return _PIECE
        return max(_MUCH, int(self._bytes / self._seconds * _SPAN))


class Relay:
    """Carries both directions, each to its end. If either fails both do, and QEMU is told so.

    QEMU learns that the other side is gone only by the end of its connection: without it, it would
    wait for ever.

    Args:
        connection: with QEMU.
        stream: to the other side.
        begins: what came from there before.

    Attributes:
        sent: bytes from QEMU so far.

    """

    def __init__(self, connection: socket.socket, stream: ByteStream, begins: bytes = b"") -> None:
        self.sent = 0
        self._begins = begins
        self._socket, self._stream = connection, stream
        self._out: asyncio.Task[None] | None = None
        self._directions: list[asyncio.Task[None]] = []
        self._both: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to carry."""
        loop = asyncio.get_running_loop()
        self._out = loop.create_task(self._outward())
        self._directions = [self._out, loop.create_task(self._inward())]
        self._both = loop.create_task(self._carry())

    async def _carry(self) -> None:
        try:
            done, _ = await asyncio.wait(self._directions, return_when=asyncio.FIRST_EXCEPTION)
            for each in done:
                each.result()
        finally:
            await self._end()

    async def _end(self) -> None:
        for each in self._directions:
            each.cancel()
        if self._directions:
            await asyncio.wait(self._directions)
        for each in self._directions:
            _ = each.cancelled() or each.exception()
        self._socket.close()

    async def _outward(self) -> None:
        """From QEMU to the other side."""
        view, pace = memoryview(bytearray(_PIECE)), _Pace()
        loop = asyncio.get_running_loop()
        while size := await self._piece(view[: pace.piece]):
            began = loop.time()
            await self._stream.write(bytes(view[:size]))
            pace.add(size, loop.time() - began)
            self.sent += size
        await self._stream.write_eof()

    async def _piece(self, view: memoryview) -> int:
        """Take what is there, and of memory all that QEMU adds when it is given room.

        Each piece costs the processors the same whatever its size: with what is there alone, some
        110 KB, memory moved half as fast.
        """
        size = await asyncio.get_running_loop().sock_recv_into(self._socket, view)
        while size:
            more = self._more(view[size:])
            size += more
            if not more or size < _MUCH:
                break
            await asyncio.sleep(0)
        return size

    def _more(self, view: memoryview) -> int:
        """What else can be had without waiting."""
        size = 0
        with contextlib.suppress(BlockingIOError):
            while size < len(view) and (got := self._socket.recv_into(view[size:])):
                size += got
        return size

    async def _inward(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, self._begins)
        while data := await self._stream.read(_PIECE):
            await loop.sock_sendall(self._socket, data)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    @property
    def failure(self) -> BaseException | None:
        """Why it broke; ``None`` while it has not."""
        return _told(failure_of(self._both))

    async def broken(self) -> None:
        """Return never, but raise when the relay breaks."""
        while self._both is not None:
            await asyncio.wait({self._both})
            if failure := self.failure:
                raise failure
            await asyncio.Event().wait()

    async def sent_all(self) -> None:
        """Return when all that QEMU had to say has been handed to the stream, its end included."""
        if self._out is not None:
            await asyncio.wait({self._out})
            if failure := _told(failure_of(self._out)):
                raise failure

    async def close(self) -> None:
        """End it as it is. May be called twice."""
        if self._both is not None:
            await end_task(self._both)
        await self._end()  # if it had not begun to carry, or was cut short


def failure_of(task: asyncio.Task[None] | None) -> BaseException | None:
    """Why a task failed; ``None`` if it has not, or not yet."""
    if task is None or not task.done() or task.cancelled():
        return None
    return task.exception()


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end; its failure counts as looked at."""
    task.cancel()
    await asyncio.wait({task})
    failure_of(task)


def _told(failure: BaseException | None) -> BaseException | None:
    """A socket's error as what it means: the connection with QEMU ended."""
    if isinstance(failure, OSError):
        return BrokenOff(f"QEMU broke off its migration stream: {failure}")
    return failure
