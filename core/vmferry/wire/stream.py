"""The hypervisor's byte stream over the stream lane of a link."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from vmferry.errors import ConnectionLost, ProtocolError
from vmferry.units import KIB
from vmferry.wire.codec import encode
from vmferry.wire.compress import Codec, expand, shrink
from vmferry.wire.digests import check_digest, digest_of
from vmferry.wire.flow import Flow
from vmferry.wire.link import Link, Payload
from vmferry.wire.messages import Message, Stream, Taken
from vmferry.wire.window import STEP, Window

__all__ = ["LinkStream", "StreamChooser"]

PIECE = 512 * KIB
"""Most bytes at once. Half of what may be on its way: with what the receiver has taken and not told
of, less than ``STEP``, that always fits."""

_END = Stream(length=0, digest=digest_of(b""))


StreamChooser = Callable[[memoryview, Flow], Codec]
"""Decides how a piece is compressed, by its bytes and by how the stream fares."""


def _as_it_is(_: memoryview, __: Flow) -> Codec:
    return Codec.NONE


def _opened(message: Message, payload: Payload) -> memoryview:
    """The bytes of a piece, verified; none at the end."""
    if not isinstance(message, Stream):
        raise ProtocolError(f"{type(message).__name__} received on the stream lane")
    data = payload
    if payload or message.length:
        data = memoryview(expand("Stream", message.codec, payload, message.length))
    check_digest("Stream", data, message.digest)
    return memoryview(data)


class LinkStream:
    """A ``vmferry.api.ByteStream``: that of a link's stream lane, or of one of its channels.

    Each side says on the control lane what it has taken of the other's bytes, and sends no more
    than its ``Window`` allows.

    A piece is compressed at once, between taking it and sending it: it is small, and a worker of
    low priority would be one more to wait for while the guest stands still.

    Args:
        link: whose stream lane is used.
        allow: called with the bytes that are to go before they do; waits while the bandwidth is
            used up.
        choose: compression of each piece; none if left out.
        number: of the channel; 0 for the stream itself, which makes those of its channels.

    Attributes:
        channels: the streams of the link's channels.
        sent: bytes that were written and have gone, uncompressed.

    """

    def __init__(
        self,
        link: Link,
        allow: Callable[[int], Awaitable[None]],
        choose: StreamChooser = _as_it_is,
        number: int = 0,
    ) -> None:
        self._link, self._allow, self._choose = link, allow, choose
        self._rest = memoryview(b"")
        self._ended = self._closed = False
        self._flow = Flow()
        self._clock = asyncio.get_running_loop().time
        self._window = Window(self._clock)
        self._given = self._told = 0
        self._told_at, self._waited = self._clock(), 0.0
        self.sent = 0
        self._number, self._lane = number, link.stream_lanes[number]
        self.channels: tuple[LinkStream, ...] = ()
        if not number:
            rest = range(1, len(link.stream_lanes))
            self.channels = tuple(LinkStream(link, allow, choose, each) for each in rest)
            link.on(Taken, self._taken)

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        if self._closed:
            raise ValueError("the stream was ended with write_eof")
        view = memoryview(data).cast("B")
        while view:
            size = min(PIECE, self._window.size // 2)
            await self._write(view[:size])
            view = view[size:]

    async def _write(self, piece: memoryview) -> None:
        began = self._clock()
        codec, payload = shrink(self._choose(piece, self._flow), piece)
        packed = self._clock()
        head = Stream(length=len(piece), digest=digest_of(piece), codec=codec.value)
        ready = self._clock()
        await self._allow(len(payload))
        if not self._window.fits(len(payload)):
            await self._link.guard(self._window.wait(len(payload)))
        self._window.sent(len(piece), len(payload))
        await self._lane.send(encode(head), payload)
        gone = self._clock()
        self._flow.went(
            len(piece),
            len(payload),
            elapsed=gone - began,
            packing=packed - began,
            blocked=gone - ready,
        )
        self.sent += len(piece)

    def _taken(self, message: Message, _: Payload) -> None:
        assert isinstance(message, Taken)
        if message.channel > len(self.channels):
            raise ProtocolError(f"Taken: channel {message.channel} of {len(self.channels)}")
        stream = self.channels[message.channel - 1] if message.channel else self
        stream._window.taken(message.total)
        stream._flow.heard(message.idle)

    async def read(self, limit: int = PIECE) -> bytes | memoryview:
        """Return some bytes, at most ``limit``; empty at the end.

        Those returned before count as taken.
        """
        if self._given - self._told >= STEP:
            await self._tell()
        while not self._rest and not self._ended:
            began = self._clock()
            received = await self._link.receive_on(self._lane)
            self._waited += self._clock() - began
            self._take(received)
        piece, self._rest = self._rest[:limit], self._rest[limit:]
        self._given += len(piece)
        return piece

    async def _tell(self) -> None:
        now = self._clock()
        span = now - self._told_at
        idle = round(100 * min(1.0, self._waited / span)) if span else 0
        self._told, self._told_at, self._waited = self._given, now, 0.0
        await self._link.send(Taken(total=self._told, channel=self._number, idle=idle))

    def _take(self, received: tuple[Message, Payload] | None) -> None:
        if received is None:
            raise ConnectionLost("the peer closed the hypervisor's stream before its end")
        self._rest = _opened(*received)
        self._ended = not self._rest

    async def write_eof(self) -> None:
        """Tell the peer that nothing follows."""
        if not self._closed:
            self._closed = True
            await self._lane.send(encode(_END))
