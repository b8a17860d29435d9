"""PULL: the guest runs at the destination; what was pending at the switch follows it.

The source pushes the pending blocks in the background (``PullSource``) and answers requests for
those the guest waits for first, on the control lane. The destination (``PullDestination``) gives
whatever arrives to the pull disks, which know what is still wanted. If the link breaks, the guest's
requests wait; the destination's pending maps are the truth from which both go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from vmferry.api.volume import BlockIO, Geometry
from vmferry.dirtymap import DirtyMap
from vmferry.engine.context import Workers
from vmferry.engine.pulldisk import PullDisk
from vmferry.engine.receiver import Receiver, check_place
from vmferry.engine.sender import Piece, Sender
from vmferry.engine.throttle import Throttle
from vmferry.engine.turns import Turns
from vmferry.errors import ProtocolError
from vmferry.wire.compress import Codec
from vmferry.wire.extents import seal, unseal
from vmferry.wire.link import Link, Payload
from vmferry.wire.messages import Extent, Fetch, Local, Message, Pushed
from vmferry.wire.tasks import until

__all__ = ["PullDestination", "PullSource"]

_ANSWERERS = 4
_MOST_HELD = 256 << 20
"""Bytes of answers that wait to be stored: more was never asked for."""
_MOST_WAITING = 4096
_INLINE = 128 << 10
"""Pieces up to this size are digested on the event loop: a hop to a thread costs more."""
_URGENT_PIECE = 1 << 20
_PUSH_LANES = 1
"""Lanes of the background push: what is under way on several would be in the guest's way."""
_YIELD, _LOOK = 0.05, 0.001
"""Seconds that a pushed extent gives way to the guest's requests, and how often it looks."""


class PullSource:
    """The source's side: one instance per connection.

    Args:
        link: to the destination.
        disks: the frozen disks, by index.
        left: per disk what the destination lacks; owned by this object from here on.
        sender: pushes over the bulk lanes.
        workers: where digests are computed.
        throttle: the job's bandwidth limit; what the guest waits for goes ahead of it.
        piece: most bytes per extent of the background push.

    """

    def __init__(
        self,
        link: Link,
        disks: Sequence[BlockIO],
        left: Sequence[DirtyMap],
        sender: Sender,
        workers: Workers,
        throttle: Throttle,
        piece: int,
    ) -> None:
        self._link, self._disks, self._left, self._sender = link, disks, left, sender
        self._workers, self._throttle, self._piece = workers, throttle, piece
        self._asked: asyncio.Queue[Fetch] = asyncio.Queue(_MOST_WAITING)
        self._turns = Turns()

    def left_bytes(self) -> int:
        """Bytes not yet pushed."""
        return sum(left.dirty_bytes() for left in self._left)

    async def serve(self) -> Local:
        """Push and answer until the destination has everything; returns its last word."""
        local: asyncio.Future[Local] = asyncio.get_running_loop().create_future()
        self._link.on(Fetch, self._ask)
        self._link.on(Local, lambda message, _: _settle(local, message))
        try:
            answerers = (self._answer() for _ in range(_ANSWERERS))
            return await until(_result(local), self._push(), *answerers)
        finally:
            self._link.on(Fetch, None)
            self._link.on(Local, None)

    async def _push(self) -> None:
        await self._sender.send(self._remaining(), most_lanes=_PUSH_LANES)
        await self._sender.barrier()
        await self._link.send(Pushed())

    async def _remaining(self) -> AsyncGenerator[Piece, None]:
        for index, left in enumerate(self._left):
            start = 0
            most = max(self._piece, left.block_size)
            while (run := left.first_run(start, max_extent=most)) is not None:
                offset, length = run
                left.clear(offset, length)
                yield Piece(index, offset, length)
                start = offset + length
                await self._turns.push()

    def _ask(self, message: Message, _: Payload) -> None:
        assert isinstance(message, Fetch)
        if message.disk >= len(self._disks):
            raise ProtocolError(f"Fetch: there is no disk {message.disk}")
        size = self._disks[message.disk].geometry.size
        if message.offset + message.length > size:
            raise ProtocolError(f"Fetch: offset {message.offset} and length reach beyond {size}")
        if self._asked.full():
            raise ProtocolError(f"Fetch: more than {_MOST_WAITING} requests are waiting")
        self._turns.asked()
        self._asked.put_nowait(message)

    async def _answer(self) -> None:
        while True:
            fetch = await self._asked.get()
            left = self._left[fetch.disk]
            left.clear(fetch.offset, fetch.length)
            most, end = max(_URGENT_PIECE, left.block_size), fetch.offset + fetch.length
            for offset in range(fetch.offset, end, most):
                await self._send_urgent(fetch.disk, offset, min(most, end - offset))
            self._turns.answered()

    async def _send_urgent(self, disk: int, offset: int, length: int) -> None:
        buffer = memoryview(bytearray(length))
        await self._disks[disk].read_into(offset, buffer)
        if length <= _INLINE:
            head, payload = seal(disk, offset, buffer, Codec.NONE)
        else:
            head, payload = await self._workers.run(seal, disk, offset, buffer, Codec.NONE)
        await self._throttle.take(len(payload), urgent=True)
        await self._link.send(head, payload)


def _settle(future: asyncio.Future[Local], message: Local) -> None:
    if not future.done():
        future.set_result(message)


async def _result(future: asyncio.Future[Local]) -> Local:
    return await future


class PullDestination:
    """The destination's side: one instance for all connections of a job.

    Args:
        disks: the pull disks, by index in the offer.
        workers: where digests are verified.

    """

    def __init__(self, disks: Sequence[PullDisk], workers: Workers) -> None:
        self._disks, self._workers = disks, workers
        self._held = 0
        self._geometries: list[Geometry] = [disk.geometry for disk in disks]

    def pending_bytes(self) -> int:
        """Bytes not yet local."""
        return sum(disk.pending_bytes for disk in self._disks)

    async def wait_local(self) -> None:
        """Return when every disk is local."""
        for disk in self._disks:
            await disk.wait_local()

    async def take_pushed(self, extent: Extent, data: memoryview | None) -> None:
        """Take a verified extent of the background push: the receiver's sink during PULL.

        What the guest waits for goes first: while it waits, the push is held up for a moment, and
        by back-pressure the source's end of it.
        """
        deadline = asyncio.get_running_loop().time() + _YIELD
        while any(disk.guest_waits for disk in self._disks):
            if asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_LOOK)
        await self.arrive(extent, data)

    async def arrive(self, extent: Extent, data: memoryview | None) -> None:
        """Take a verified extent from any lane."""
        await self._disks[extent.disk].arrive(extent.offset, extent.length, data)

    async def serve(self, link: Link, receiver: Receiver) -> None:
        """Take what comes over this link until every disk is local."""
        urgent: asyncio.Queue[tuple[Extent, Payload]] = asyncio.Queue(_MOST_WAITING)
        self._held = 0
        link.on(Extent, lambda message, payload: self._enqueue(urgent, message, payload))
        for index, disk in enumerate(self._disks):
            disk.link_restored(self._fetcher(link, index))
        try:
            takers = (self._take_urgent(urgent) for _ in range(_ANSWERERS))
            await until(self.wait_local(), receiver.run(), self._after_push(link), *takers)
        finally:
            link.on(Extent, None)
            for disk in self._disks:
                disk.link_lost()

    def _fetcher(self, link: Link, index: int) -> Callable[[int, int], Awaitable[None]]:
        async def fetch(offset: int, length: int) -> None:
            await link.send(Fetch(disk=index, offset=offset, length=length))

        return fetch

    def _enqueue(
        self, urgent: asyncio.Queue[tuple[Extent, Payload]], message: Message, payload: Payload
    ) -> None:
        assert isinstance(message, Extent)
        check_place(message, self._geometries)
        self._held += len(payload)
        if urgent.full() or self._held > _MOST_HELD:
            raise ProtocolError("Extent: more on the control lane than was asked for")
        urgent.put_nowait((message, payload))

    async def _take_urgent(self, urgent: asyncio.Queue[tuple[Extent, Payload]]) -> None:
        while True:
            extent, payload = await urgent.get()
            self._held -= len(payload)
            if extent.length <= _INLINE:
                data = unseal(extent, payload)
            else:
                data = await self._workers.run(unseal, extent, payload)
            await self.arrive(extent, data)

    async def _after_push(self, link: Link) -> None:
        """The source has pushed all it knew of: ask for what is missing nevertheless."""
        await link.expect(Pushed)
        for index, disk in enumerate(self._disks):
            for offset, length in disk.missing(_URGENT_PIECE):
                await link.send(Fetch(disk=index, offset=offset, length=length))
