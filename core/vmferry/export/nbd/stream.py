"""Bytes in and out of one non-blocking socket, with as few copies and system calls as is easy.

asyncio's streams copy each byte twice and wake a task per piece; a request costs more that way
than the work it asks for.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final

from vmferry.errors import ConnectionLost
from vmferry.units import KIB, MIB

__all__ = ["BufferPool", "Incoming", "Outbox"]

_SCRATCH: Final = 128 * KIB
_VECTORS: Final = 128
_SENDS_AT_ONCE: Final = 16
_POOLED_FROM: Final = 64 * KIB


class Incoming:
    """Reads exact amounts. Small ones come out of a buffer that is filled as far as possible."""

    __slots__ = ("_buffer", "_end", "_loop", "_sock", "_start", "_view")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_SCRATCH)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0

    async def unpack(self, layout: struct.Struct) -> tuple[Any, ...]:
        """The fields of the next ``layout.size`` bytes. Raises ``ConnectionLost`` at the end."""
        if self._end - self._start < layout.size:
            await self._more(layout.size)
        fields = layout.unpack_from(self._buffer, self._start)
        self._start += layout.size
        return fields

    async def take(self, length: int) -> bytes:
        """A copy of the next ``length`` bytes, of which the caller has checked the number."""
        data = bytearray(length)
        await self.into(memoryview(data))
        return bytes(data)

    async def into(self, target: memoryview) -> None:
        """Fill all of ``target``; what is not buffered yet goes straight into it."""
        ready = min(len(target), self._end - self._start)
        target[:ready] = self._view[self._start : self._start + ready]
        self._start += ready
        while ready < len(target):
            ready += await self._receive(target[ready:])

    async def skip(self, length: int) -> None:
        """Read ``length`` bytes and forget them, in no more memory than the buffer."""
        ready = min(length, self._end - self._start)
        self._start += ready
        while ready < length:
            ready += await self._receive(self._view[: length - ready])
            self._start = self._end = 0

    async def _more(self, size: int) -> None:
        if self._start:
            left = self._end - self._start
            self._buffer[:left] = self._buffer[self._start : self._end]
            self._start, self._end = 0, left
        while self._end < size:
            self._end += await self._receive(self._view[self._end :])

    async def _receive(self, target: memoryview) -> int:
        try:
            count = await self._loop.sock_recv_into(self._sock, target)
        except OSError as error:
            raise ConnectionLost(f"the client's connection broke: {error}") from error
        if not count:
            raise ConnectionLost("the client closed its connection")
        return count


class Outbox:
    """Sends replies whole and in the order of ``send``, many to one system call.

    Whoever sends does not wait; the owner bounds what is queued by what it admits.
    """

    def __init__(self, sock: socket.socket, broken: Callable[[], None]) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[memoryview, Callable[[], None] | None]] = deque()
        self._broken = broken
        self._failed = self._scheduled = False
        self._empty = asyncio.Event()
        self._empty.set()

    def send(self, parts: Iterable[bytes | memoryview], sent: Callable[[], None]) -> None:
        """Queue one reply. ``sent`` is called once it left, or can no longer leave."""
        if self._failed:
            sent()
            return
        queue = self._queue
        for part in parts:
            queue.append((memoryview(part), None))
        queue.append((queue.pop()[0], sent))
        if not self._scheduled:
            self._scheduled = True
            self._empty.clear()
            self._loop.call_soon(self._pump)

    @property
    def is_empty(self) -> bool:
        """Nothing is left to send."""
        return self._empty.is_set()

    async def drained(self) -> None:
        """Return when nothing is left to send."""
        await self._empty.wait()

    def close(self) -> None:
        """Forget what is queued."""
        if not self._failed:
            self._failed = True
            self._loop.remove_writer(self._sock)
            self._finish()

    def _pump(self) -> None:
        if self._failed:
            return
        try:
            for _ in range(_SENDS_AT_ONCE):
                self._advance(self._sock.sendmsg([v for v, _ in islice(self._queue, _VECTORS)]))
                if not self._queue:
                    self._loop.remove_writer(self._sock)
                    self._finish()
                    return
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
            self._broken()
            return
        self._loop.add_writer(self._sock, self._pump)

    def _advance(self, count: int) -> None:
        queue = self._queue
        while count:
            view, sent = queue.popleft()
            if len(view) > count:
                queue.appendleft((view[count:], sent))
                return
            count -= len(view)
            if sent is not None:
                sent()

    def _finish(self) -> None:
        waiting, self._queue = self._queue, deque()
        for _, sent in waiting:
            if sent is not None:
                sent()
        self._scheduled = False
        self._empty.set()


class BufferPool:
    """Keeps large buffers for the next request: fresh memory costs as much as filling it.

    A buffer that may still be written to, because its request was cancelled, is not given back.
    """

    def __init__(self, keep: int = 16 * MIB) -> None:
        self._free: dict[int, list[bytearray]] = {}
        self._keep = keep

    def take(self, length: int) -> bytearray:
        """A buffer of at least ``length`` bytes with anything in it."""
        if length < _POOLED_FROM:
            return bytearray(length)
        size = 1 << (length - 1).bit_length()
        free = self._free.get(size)
        if not free:
            return bytearray(size)
        self._keep += size
        return free.pop()

    def give(self, buffer: bytearray) -> None:
        """Take back what ``take`` returned."""
        size = len(buffer)
        if _POOLED_FROM <= size <= self._keep:
            self._keep -= size
            self._free.setdefault(size, []).append(buffer)
