"""STOP: the guest stands still while its last state and the dirty *bitmaps* go over.

The source's ``hand_over`` and the destination's ``take_over`` are the two ends of one dialogue.
When ``take_over`` has sent ``Ready``, the destination holds all it needs, durably; the commit that
follows is the source's alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from vmferry.api.hypervisor import Arrival, Departure
from vmferry.dirtymap import DirtyMap
from vmferry.engine.context import Workers
from vmferry.engine.disks import SourceDisk
from vmferry.engine.maps import MAX_MAP, decoded, encoded
from vmferry.errors import ProtocolError
from vmferry.wire.digests import check_digest, digest_of
from vmferry.wire.link import Link
from vmferry.wire.messages import PendingMap, Ready, Suspended
from vmferry.wire.tasks import together

__all__ = ["collect_map", "hand_over", "send_map", "take_over"]

Shape = tuple[int, int]
Store = Callable[[Sequence[DirtyMap]], Awaitable[None]]
_PIECE = 1 << 20


async def send_map(link: Link, index: int, pending: DirtyMap, workers: Workers) -> int:
    """Send the map of one disk on the control lane; returns its size in bytes on the wire."""
    whole = memoryview(await encoded(pending, workers))
    for offset in range(0, len(whole), _PIECE):
        piece = whole[offset : offset + _PIECE]
        head = PendingMap(
            disk=index,
            block_size=pending.block_size,
            total=len(whole),
            offset=offset,
            digest=digest_of(piece),
        )
        await link.send(head, piece)
    return len(whole)


async def collect_map(
    link: Link, index: int, size: int, block_size: int, workers: Workers
) -> DirtyMap:
    """Receive the map of one disk.

    Raises:
        ProtocolError: a piece is out of order, of another disk or geometry, or the map is none.

    """
    parts = bytearray()
    total = None
    most = _most_encoded(size, block_size)
    while total is None or len(parts) < total:
        head, payload = await link.receive(PendingMap)
        assert isinstance(head, PendingMap)
        total = _check_piece(head, len(payload), index, block_size, len(parts), total)
        if total > most:
            raise ProtocolError(f"PendingMap: total {total} for a disk of {size} bytes")
        check_digest("PendingMap", payload, head.digest)
        parts += payload
    return await decoded(bytes(parts), size, block_size, workers)


def _most_encoded(size: int, block_size: int) -> int:
    """Bytes that no encoding of a map needs: twice its plain bitmap."""
    return 65536 + 2 * (size // block_size // 8 + 32768)


def _check_piece(
    head: PendingMap, length: int, index: int, block_size: int, have: int, total: int | None
) -> int:
    if head.disk != index:
        raise ProtocolError(f"PendingMap: disk {head.disk} where {index} is due")
    if head.block_size != block_size:
        raise ProtocolError(f"PendingMap: block_size {head.block_size}, offered was {block_size}")
    if head.offset != have or not 0 < length <= _PIECE:
        raise ProtocolError(f"PendingMap: offset {head.offset}, length {length} is out of order")
    if head.total > MAX_MAP or head.total != (head.total if total is None else total):
        raise ProtocolError(f"PendingMap: total {head.total} is not possible")
    if have + length > head.total:
        raise ProtocolError(f"PendingMap: more than the total of {head.total} bytes")
    return head.total


async def hand_over(
    link: Link,
    departure: Departure,
    disks: Sequence[SourceDisk],
    workers: Workers,
    finish: Callable[[], Awaitable[None]],
) -> int:
    """Suspend the guest and deliver state and bitmaps; returns the bitmaps' bytes on the wire.

    ``finish`` is called between the last harvest and the bitmaps: what must not be pulled is sent.

    On return the destination has acknowledged that it holds everything durably. Nothing is
    committed: on any failure the caller resumes the guest here.
    """
    await departure.suspend()
    await link.send(Suspended())
    maps = _hand_over_maps(link, disks, workers, finish)
    _, size = await together(departure.transfer(), maps)
    await link.expect(Ready)
    return int(size)


async def _hand_over_maps(
    link: Link,
    disks: Sequence[SourceDisk],
    workers: Workers,
    finish: Callable[[], Awaitable[None]],
) -> int:
    """After the backend has drained: the last harvest and everything not yet sent."""
    size = 0
    await together(*(disk.last_harvest() for disk in disks))
    await finish()
    for disk in disks:
        size += await send_map(link, disk.index, disk.wire_map(), workers)
    return size


async def take_over(
    link: Link,
    arrival: Arrival,
    shapes: Sequence[Shape],
    store: Store,
    workers: Workers,
) -> float:
    """Receive memory and state, and once the guest stands still the bitmaps.

    Runs from the beginning of PUSH, since memory may come at any time. Returns the loop's time at
    which the guest was reported suspended; everything is durable then and the guest complete.

    Args:
        link: to the source.
        arrival: receives the guest.
        shapes: size and block size of each disk, bytes.
        store: makes the pending maps, and all data pushed before them, durable.
        workers: where maps are decoded.

    """
    _, began = await together(arrival.receive(), _take_maps(link, shapes, store, workers))
    return float(began)


async def _take_maps(link: Link, shapes: Sequence[Shape], store: Store, workers: Workers) -> float:
    await link.expect(Suspended)
    began = asyncio.get_running_loop().time()
    maps = [
        await collect_map(link, index, size, block_size, workers)
        for index, (size, block_size) in enumerate(shapes)
    ]
    await store(maps)
    return began
