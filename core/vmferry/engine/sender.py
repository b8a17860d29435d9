"""Reads, seals and sends extents over all bulk lanes: the data path of PUSH and of PULL's push.

Each lane has a few workers, each with a buffer of its own: while one's extent is being sent, the
next one's is read and digested. Extents of one ``send`` may arrive in any order; the barrier after
it keeps two sends apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from vmferry.api.transport import Lane
from vmferry.api.volume import BlockIO
from vmferry.engine.context import Workers
from vmferry.engine.throttle import Throttle
from vmferry.wire.codec import encode
from vmferry.wire.compress import Codec
from vmferry.wire.extents import seal
from vmferry.wire.link import Link
from vmferry.wire.messages import Barrier, Extent, Reached
from vmferry.wire.tasks import together

__all__ = ["Chooser", "Piece", "Sender", "Sent"]

Chooser = Callable[[memoryview], Codec]
"""Decides how a piece is compressed, looking at its bytes."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Work for the sender: ``length`` bytes of a disk; ``zero`` if known to be zeroes unread."""

    disk: int
    offset: int
    length: int
    zero: bool = False


@dataclass(slots=True)
class Sent:
    """What a sender has sent: bytes covered, payload bytes on the wire, bytes of zero extents."""

    covered: int = 0
    payload: int = 0
    zeroes: int = 0


_COUNT_BITS = 20
"""Of a barrier's serial; those above are the connection's salt."""


class Sender:
    """Sends pieces of the disks.

    Args:
        link: its bulk lanes are used; one ``send`` at a time.
        disks: by index in the offer.
        workers: where digests and compression are computed.
        throttle: the job's bandwidth limit.
        choose: compression of each piece.
        depth: extents in preparation per lane.

    Attributes:
        total: everything sent so far.
        flushing: the destination is being waited for to make things durable.

    """

    def __init__(
        self,
        link: Link,
        disks: Sequence[BlockIO],
        workers: Workers,
        throttle: Throttle,
        choose: Chooser,
        depth: int = 3,
    ) -> None:
        self._link, self._disks, self._workers = link, disks, workers
        self._throttle, self._choose, self._depth = throttle, choose, depth
        self._barriers = 0
        self._buffers = [bytearray() for _ in range(len(link.bulk_lanes) * depth)]
        self.total = Sent()
        self.flushing = False

    @property
    def limit(self) -> int:
        """Bytes per second that may go at the moment; 0 is no limit."""
        return self._throttle.rate

    async def send(
        self,
        work: AsyncGenerator[Piece, None],
        done: Callable[[Piece], None] | None = None,
        *,
        most_lanes: int | None = None,
    ) -> Sent:
        """Send all of ``work``; on return it has been handed to the transport.

        ``done`` is called for every piece that has gone; ``most_lanes`` leaves lanes unused.
        """
        sent = Sent()
        queue: asyncio.Queue[Piece | None] = asyncio.Queue(len(self._buffers))
        used = self._link.bulk_lanes[:most_lanes]
        lanes = [lane for lane in used for _ in range(self._depth)]

        async def feed() -> None:
            async with aclosing(work):
                async for piece in work:
                    await queue.put(piece)
            for _ in lanes:
                await queue.put(None)

        async def drain(lane: Lane, slot: int) -> None:
            while (piece := await queue.get()) is not None:
                await self._send_one(lane, slot, piece, sent)
                if done is not None:
                    done(piece)

        await together(feed(), *(drain(lane, slot) for slot, lane in enumerate(lanes)))
        return sent

    async def barrier(self, *, durable: bool = False) -> None:
        """Return when everything sent so far is in its volume, or on stable storage, over there."""
        self._barriers += 1
        # no answer to a barrier of another connection is taken for one to this
        serial = (self._link.salt << _COUNT_BITS) + self._barriers % (1 << _COUNT_BITS)
        head = encode(Barrier(serial=serial, durable=durable))
        for lane in self._link.bulk_lanes:
            await lane.send(head)
        self.flushing = durable
        try:
            while (await self._link.expect(Reached)).serial != serial:
                pass
        finally:
            self.flushing = False

    async def _send_one(self, lane: Lane, slot: int, piece: Piece, sent: Sent) -> None:
        head, payload = await self._sealed(slot, piece)
        await self._throttle.take(len(payload))
        await lane.send(encode(head), payload)
        for tally in (sent, self.total):
            tally.covered += piece.length
            tally.payload += len(payload)
            tally.zeroes += piece.length if head.zero else 0

    async def _sealed(self, slot: int, piece: Piece) -> tuple[Extent, memoryview | bytes]:
        if piece.zero:
            zero = Extent(disk=piece.disk, offset=piece.offset, length=piece.length, zero=True)
            return zero, b""
        buffer = self._buffer(slot, piece.length)
        await self._disks[piece.disk].read_into(piece.offset, buffer)
        codec = self._choose(buffer)
        return await self._workers.run(seal, piece.disk, piece.offset, buffer, codec)

    def _buffer(self, slot: int, length: int) -> memoryview:
        if len(self._buffers[slot]) < length:
            self._buffers[slot] = bytearray(length)
        return memoryview(self._buffers[slot])[:length]
