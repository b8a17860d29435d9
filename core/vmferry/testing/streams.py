"""A pair of byte streams in memory that can be broken at a chosen byte or made slow."""

from __future__ import annotations

import asyncio
from collections import deque

from vmferry.errors import ConnectionLost

__all__ = ["MemoryStream", "stream_pair"]

_WINDOW = 4 << 20


class _Pipe:
    """One direction: a bounded queue of pieces."""

    def __init__(self) -> None:
        self.pieces: deque[bytes] = deque()
        self.size = 0
        self.ended = self.broken = False
        self.changed = asyncio.Condition()


class _Fault:
    """The fate of both directions: how many more bytes get through, and how slowly."""

    def __init__(self, break_after: int | None, delay: float) -> None:
        self.left, self.delay = break_after, delay
        self.sent = 0


class MemoryStream:
    """One end; a ``ByteStream``. Attribute ``sent``: bytes that both ends have sent."""

    def __init__(self, out: _Pipe, into: _Pipe, fault: _Fault) -> None:
        self._out, self._in, self._fault = out, into, fault

    @property
    def sent(self) -> int:
        """Bytes that went through, both directions together."""
        return self._fault.sent

    @property
    def broke(self) -> bool:
        """Whether the stream was broken."""
        return self._out.broken

    async def write(self, data: bytes | memoryview) -> None:
        """Queue ``data``; waits while the peer is far behind. Raises ``ConnectionLost``."""
        await asyncio.sleep(self._fault.delay)
        piece = bytes(data)
        lost = self._fault.left is not None and self._fault.left < len(piece)
        if lost:
            piece = piece[: self._fault.left]
        if self._fault.left is not None:
            self._fault.left -= len(piece)
        await self._put(piece)
        if lost:
            await self.sever()
            raise ConnectionLost("the stream was broken on purpose")

    async def _put(self, piece: bytes) -> None:
        async with self._out.changed:
            await self._out.changed.wait_for(lambda: self._out.broken or self._out.size < _WINDOW)
            if self._out.broken:
                raise ConnectionLost("the stream was broken on purpose")
            self._out.pieces.append(piece)
            self._out.size += len(piece)
            self._fault.sent += len(piece)
            self._out.changed.notify_all()

    async def read(self, limit: int = 1 << 20) -> bytes:
        """Some bytes; none at the end. Raises ``ConnectionLost``."""
        pipe = self._in
        async with pipe.changed:
            await pipe.changed.wait_for(lambda: pipe.pieces or pipe.ended or pipe.broken)
            if not pipe.pieces:
                if pipe.broken:
                    raise ConnectionLost("the stream was broken on purpose")
                return b""
            piece = pipe.pieces.popleft()
            if len(piece) > limit:
                pipe.pieces.appendleft(piece[limit:])
                piece = piece[:limit]
            pipe.size -= len(piece)
            pipe.changed.notify_all()
            return piece

    async def write_eof(self) -> None:
        """Nothing follows."""
        async with self._out.changed:
            self._out.ended = True
            self._out.changed.notify_all()

    async def sever(self) -> None:
        """Break both directions."""
        for pipe in (self._out, self._in):
            async with pipe.changed:
                pipe.broken = True
                pipe.changed.notify_all()


def stream_pair(
    *, break_after: int | None = None, delay: float = 0.0
) -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one stream.

    ``break_after`` bytes, counted over both directions, get through before it breaks; each write
    takes ``delay`` seconds.
    """
    there, back, fault = _Pipe(), _Pipe(), _Fault(break_after, delay)
    return MemoryStream(there, back, fault), MemoryStream(back, there, fault)
