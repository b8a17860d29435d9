"""A pair of byte streams in memory that can be broken at a chosen byte or made slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

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
    """One end; a ``ByteStream``.

    Attributes:
        channels: further streams, which share its fate.
        written: bytes that this end has sent by itself.

    """

    def __init__(
        self, out: _Pipe, into: _Pipe, fault: _Fault, channels: Sequence[MemoryStream] = ()
    ) -> None:
        self._out, self._in, self._fault = out, into, fault
        self.channels = channels
        self.written = 0

    @property
    def sent(self) -> int:
        """Bytes that went through, both directions and all channels together."""
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
            self.written += len(piece)
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
        """Break both directions, and the channels."""
        for pipe in (self._out, self._in):
            async with pipe.changed:
                pipe.broken = True
                pipe.changed.notify_all()
        for each in self.channels:
            await each.sever()


def stream_pair(
    *, break_after: int | None = None, delay: float = 0.0, channels: int = 0
) -> tuple[MemoryStream, MemoryStream]:
    """Two ends of one stream, with so many channels.

    ``break_after`` bytes, counted over both directions and all channels, get through before it
    breaks; each write takes ``delay`` seconds.
    """
    fault = _Fault(break_after, delay)
    beside = [_pair(fault) for _ in range(channels)]
    return _pair(fault, beside)


def _pair(
    fault: _Fault, beside: Sequence[tuple[MemoryStream, MemoryStream]] = ()
) -> tuple[MemoryStream, MemoryStream]:
    there, back = _Pipe(), _Pipe()
    near, far = [pair[0] for pair in beside], [pair[1] for pair in beside]
    return MemoryStream(there, back, fault, near), MemoryStream(back, there, fault, far)
