"""The hypervisor's byte stream over the stream lane of a link."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from vmferry.errors import ConnectionLost, ProtocolError
from vmferry.wire.codec import encode
from vmferry.wire.digests import check_digest, digest_of
from vmferry.wire.link import Link, Payload
from vmferry.wire.messages import Stream

__all__ = ["LinkStream"]

PIECE = 1 << 20


def _head(piece: Payload) -> bytes:
    return encode(Stream(digest=digest_of(piece)))


class LinkStream:
    """A ``vmferry.api.ByteStream``.

    Args:
        link: whose stream lane is used.
        allow: called with the size before a piece is sent; waits while the bandwidth is used up.

    """

    def __init__(self, link: Link, allow: Callable[[int], Awaitable[None]]) -> None:
        self._link, self._allow = link, allow
        self._rest = memoryview(b"")
        self._ended = self._closed = False
        self.sent = 0

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``."""
        if self._closed:
            raise ValueError("the stream was ended with write_eof")
        view = memoryview(data).cast("B")
        for start in range(0, len(view), PIECE):
            piece = view[start : start + PIECE]
            await self._allow(len(piece))
            await self._link.stream_lane.send(_head(piece), piece)
            self.sent += len(piece)

    async def read(self, limit: int = PIECE) -> bytes | memoryview:
        """Return some bytes, at most ``limit``; empty at the end."""
        while not self._rest and not self._ended:
            self._take(await self._link.receive_on(self._link.stream_lane))
        piece, self._rest = self._rest[:limit], self._rest[limit:]
        return piece

    def _take(self, received: tuple[object, Payload] | None) -> None:
        if received is None:
            raise ConnectionLost("the peer closed the hypervisor's stream before its end")
        message, payload = received
        if not isinstance(message, Stream):
            raise ProtocolError(f"{type(message).__name__} received on the stream lane")
        check_digest("Stream", payload, message.digest)
        self._rest = memoryview(payload)
        self._ended = not payload

    async def write_eof(self) -> None:
        """Tell the peer that nothing follows."""
        if not self._closed:
            self._closed = True
            await self._link.stream_lane.send(_head(b""))
