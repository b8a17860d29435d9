"""Takes extents from all bulk lanes, verifies them and gives them to a sink.

Per lane a few extents are verified and written at once; a barrier waits for all of its lane's, and
is answered when every lane has reached it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from vmferry.api.transport import Lane
from vmferry.api.volume import Geometry
from vmferry.engine.context import Workers
from vmferry.errors import ProtocolError
from vmferry.wire.extents import unseal
from vmferry.wire.link import Link, Payload
from vmferry.wire.messages import Barrier, Compare, Extent, Reached
from vmferry.wire.tasks import plain, together

__all__ = ["Receiver", "Sink", "check_place"]

Sink = Callable[[Extent, memoryview | None], Awaitable[None]]
"""Takes a verified extent; ``None`` stands for zeroes."""

_DEPTH = 3


def check_place(message: Extent | Compare, disks: Sequence[Geometry]) -> Geometry:
    """The disk of this job that a message is about.

    Raises ``ProtocolError`` unless what it names lies on that disk, in whole sectors.
    """
    name = type(message).__name__
    if message.disk >= len(disks):
        raise ProtocolError(f"{name}: there is no disk {message.disk}, only {len(disks)}")
    geometry = disks[message.disk]
    if message.offset + message.length > geometry.size:
        raise ProtocolError(
            f"{name}: offset {message.offset} and length {message.length} reach beyond "
            f"the {geometry.size} bytes of disk {message.disk}"
        )
    if (message.offset | message.length) % geometry.sector_size:
        raise ProtocolError(f"{name}: offset {message.offset} or length is no whole sector")
    return geometry


class Receiver:
    """Receives on all bulk lanes of a link until it closes.

    Args:
        link: whose bulk lanes are read.
        disks: the job's disks, to check extents against.
        workers: where digests are verified.
        sink: takes what was verified; may be exchanged between two barriers.
        flush: makes durable what the sink took.

    """

    def __init__(
        self,
        link: Link,
        disks: Sequence[Geometry],
        workers: Workers,
        sink: Sink,
        flush: Callable[[], Awaitable[None]],
    ) -> None:
        self.sink = sink
        self._flush = flush
        self._link, self._disks, self._workers = link, disks, workers
        self._arrived: dict[int, int] = {}

    async def run(self) -> None:
        """Receive until the peer closes the lanes in good order."""
        await together(*(self._receive(lane) for lane in self._link.bulk_lanes))

    async def _receive(self, lane: Lane) -> None:
        slots = asyncio.Semaphore(_DEPTH)
        try:
            async with asyncio.TaskGroup() as group:
                while (received := await self._link.receive_on(lane)) is not None:
                    message, payload = received
                    if isinstance(message, Extent):
                        check_place(message, self._disks)
                        await slots.acquire()
                        group.create_task(self._take(message, payload, slots))
                    elif isinstance(message, Barrier):
                        await _all_of(slots)
                        await self._reached(message)
                    else:
                        raise ProtocolError(f"{type(message).__name__} received on a bulk lane")
        except BaseExceptionGroup as failed:
            raise plain(failed) from None

    async def _take(self, extent: Extent, payload: Payload, slots: asyncio.Semaphore) -> None:
        try:
            data = await self._workers.run(unseal, extent, payload)
            await self.sink(extent, data)
        finally:
            slots.release()

    async def _reached(self, barrier: Barrier) -> None:
        count = self._arrived[barrier.serial] = self._arrived.get(barrier.serial, 0) + 1
        if len(self._arrived) > 2:
            raise ProtocolError(f"Barrier: serial {barrier.serial} while two others are open")
        if count == len(self._link.bulk_lanes):
            del self._arrived[barrier.serial]
            if barrier.durable:
                await self._flush()
            await self._link.send(Reached(serial=barrier.serial))


async def _all_of(slots: asyncio.Semaphore) -> None:
    for _ in range(_DEPTH):
        await slots.acquire()
    for _ in range(_DEPTH):
        slots.release()
