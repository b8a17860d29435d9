"""Comparing disks by digests, so that of what the destination may have only the rest is sent.

The source asks for the digests of one stretch after the other, a few at a time, and reads the same
stretch meanwhile: both ends read and digest at once. Zeroes that a volume knows of are read on
neither side. What turns out different is a piece for the sender; what is equal needs nothing, since
it is in the destination's volume, which is flushed before the switch. A write by the guest that
comes meanwhile is the tracker's affair, as in the full copy: it has been started before.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from vmferry.api.volume import BlockIO, ExtentKind, Geometry
from vmferry.engine.context import Workers
from vmferry.engine.disks import SourceDisk
from vmferry.engine.receiver import check_place
from vmferry.engine.sender import Piece
from vmferry.errors import ProtocolError
from vmferry.units import KIB, MIB
from vmferry.wire.digests import check_digest, digest_of
from vmferry.wire.extents import is_zero
from vmferry.wire.link import Link, Payload
from vmferry.wire.messages import Compare, Digests
from vmferry.wire.tasks import together

__all__ = ["MOST_ASKED", "MOST_DIGESTS", "Answerer", "Comparer", "check_compare", "unsure_pieces"]

MOST_DIGESTS = 1024
"""Most pieces in one ``Compare``."""
MOST_ASKED = 64
"""Most ``Compare`` that may wait for their answers."""
_WINDOW = 8
_AT_ONCE = 3
_SIZE = 32
_ZEROES = bytes(_SIZE)
_READ = 4 * MIB
_FINE = 64 * KIB
_COARSE = 4 * MIB
_LONGEST = 1 << 30

Equal = Callable[[SourceDisk, int], None]
"""Told of bytes of a disk that turned out to be equal."""


def _digests(data: memoryview, piece: int) -> bytes:
    parts = (data[start : start + piece] for start in range(0, len(data), piece))
    return b"".join(_ZEROES if is_zero(part) else digest_of(part) for part in parts)


async def _digests_of(
    volume: BlockIO, offset: int, length: int, piece: int, workers: Workers
) -> bytes:
    """The digests of a stretch of a volume; what it knows to be zeroes is not read."""
    found = bytearray(-(-length // piece) * _SIZE)
    step = max(1, _READ // piece)
    for first, last in await _data_pieces(volume, offset, length, piece):
        for index in range(first, last, step):
            start, stop = index * piece, min(min(index + step, last) * piece, length)
            buffer = memoryview(bytearray(stop - start))
            await volume.read_into(offset + start, buffer)
            digests = await workers.run(_digests, buffer, piece)
            found[index * _SIZE : index * _SIZE + len(digests)] = digests
    return bytes(found)


async def _data_pieces(
    volume: BlockIO, offset: int, length: int, piece: int
) -> list[tuple[int, int]]:
    """First piece, and the one after the last, of each run of pieces that may not be zeroes."""
    runs: list[tuple[int, int]] = []
    async for extent in volume.extents(offset, length):
        if extent.kind is not ExtentKind.DATA:
            continue
        start = extent.offset - offset
        first, last = start // piece, -(-(start + extent.length) // piece)
        if runs and first <= runs[-1][1]:
            first = runs.pop()[0]
        runs.append((first, last))
    return runs


# -- the destination


def check_compare(asked: Compare, disks: Sequence[Geometry]) -> None:
    """Raise ``ProtocolError`` unless it is about whole sectors of a disk, and not too many."""
    if asked.piece % check_place(asked, disks).sector_size:
        raise ProtocolError("Compare: piece is no whole sector")
    if -(-asked.length // asked.piece) > MOST_DIGESTS:
        raise ProtocolError(f"Compare: more than {MOST_DIGESTS} pieces of {asked.piece} bytes")


class Answerer:
    """Answers ``Compare`` on a link, from when it is made.

    Args:
        link: to the source.
        volumes: the job's disks.
        workers: where digests are computed.
        asked: called at each request.

    """

    def __init__(
        self,
        link: Link,
        volumes: Sequence[BlockIO],
        workers: Workers,
        asked: Callable[[], None] = lambda: None,
    ) -> None:
        self._link, self._volumes, self._workers = link, volumes, workers
        self._asked = asked
        self._queue: asyncio.Queue[Compare] = asyncio.Queue(MOST_ASKED)
        link.on(Compare, self._take)

    def _take(self, asked: Compare, _: Payload) -> None:
        check_compare(asked, [volume.geometry for volume in self._volumes])
        self._asked()
        try:
            self._queue.put_nowait(asked)
        except asyncio.QueueFull:
            raise ProtocolError(f"Compare: more than {MOST_ASKED} are waiting") from None

    async def run(self) -> None:
        """Answer until cancelled; then nothing more is taken."""
        try:
            await together(*(self._answer() for _ in range(_AT_ONCE)))
        finally:
            self._link.on(Compare, None)

    async def _answer(self) -> None:
        while True:
            asked = await self._queue.get()
            volume = self._volumes[asked.disk]
            found = await _digests_of(
                volume, asked.offset, asked.length, asked.piece, self._workers
            )
            head = Digests(disk=asked.disk, offset=asked.offset, digest=digest_of(found))
            await self._link.send(head, found)


# -- the source


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What is compared by one request; ``zero`` if it is known to be zeroes unread."""

    offset: int
    length: int
    piece: int
    zero: bool = False


class Comparer:
    """Asks the destination over one link."""

    def __init__(self, link: Link, workers: Workers) -> None:
        self._link, self._workers = link, workers
        self._waiting: dict[tuple[int, int], tuple[int, asyncio.Future[bytes]]] = {}
        link.on(Digests, self._take)

    def _take(self, head: Digests, payload: Payload) -> None:
        count, answer = self._waiting.pop((head.disk, head.offset), (0, None))
        if answer is None:
            raise ProtocolError(f"Digests: disk {head.disk}, offset {head.offset}: not asked for")
        if len(payload) != count * _SIZE:
            raise ProtocolError(f"Digests: {len(payload)} bytes of payload for {count} pieces")
        check_digest("Digests", payload, head.digest)
        if not answer.done():
            answer.set_result(bytes(payload))

    async def differing(self, disk: SourceDisk, stretch: _Stretch) -> list[Piece]:
        """What of a stretch the destination does not have."""
        mine, theirs = await together(self._mine(disk, stretch), self._theirs(disk, stretch))
        return list(_differences(disk.index, stretch, mine, theirs))

    async def _mine(self, disk: SourceDisk, stretch: _Stretch) -> bytes:
        if stretch.zero:
            return bytes(-(-stretch.length // stretch.piece) * _SIZE)
        place = (stretch.offset, stretch.length, stretch.piece)
        return await _digests_of(disk.volume, *place, self._workers)

    async def _theirs(self, disk: SourceDisk, stretch: _Stretch) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        count = -(-stretch.length // stretch.piece)
        self._waiting[disk.index, stretch.offset] = (count, answer)
        await self._link.send(
            Compare(
                disk=disk.index, offset=stretch.offset, length=stretch.length, piece=stretch.piece
            )
        )
        return await answer


def _differences(disk: int, stretch: _Stretch, mine: bytes, theirs: bytes) -> Iterator[Piece]:
    """Runs of pieces whose digests differ."""
    begun: int | None = None
    for at in range(0, len(mine) + 1, _SIZE):
        differ = at < len(mine) and mine[at : at + _SIZE] != theirs[at : at + _SIZE]
        reached = min(at // _SIZE * stretch.piece, stretch.length)
        if differ and begun is None:
            begun = reached
        elif not differ and begun is not None:
            yield Piece(disk, stretch.offset + begun, reached - begun, stretch.zero)
            begun = None


async def unsure_pieces(
    disks: Sequence[SourceDisk],
    comparer: Comparer,
    piece: int,
    stop: Callable[[], bool],
    equal: Equal,
) -> AsyncGenerator[Piece, None]:
    """What differs of what the destination may have; ``todo`` is left out, it is sent anyway.

    Once ``stop`` says so, what was not compared goes into ``todo``. Closed before its end, that
    remains unsure.
    """
    for disk in disks:
        async with aclosing(_of_disk(disk, comparer, piece, stop, equal)) as pieces:
            async for one in pieces:
                yield one


async def _of_disk(
    disk: SourceDisk,
    comparer: Comparer,
    piece: int,
    stop: Callable[[], bool],
    equal: Equal,
) -> AsyncGenerator[Piece, None]:
    unsure = disk.unsure.take() - disk.todo
    under_way: deque[tuple[_Stretch, asyncio.Task[list[Piece]]]] = deque()
    settled = 0

    async def found() -> AsyncGenerator[Piece, None]:
        """The oldest stretch under way; it stays so until all its pieces were taken."""
        nonlocal settled
        stretch, task = under_way[0]
        pieces = await task
        equal(disk, stretch.length - sum(one.length for one in pieces))
        for one in pieces:
            if stop():
                disk.todo.mark(one.offset, one.length)
            else:
                yield one
        settled = stretch.offset + stretch.length
        under_way.popleft()

    try:
        async with aclosing(_stretches(disk, unsure.runs(), piece)) as stretches:
            async for stretch in stretches:
                if stop():
                    disk.todo.mark(stretch.offset, stretch.length)
                    continue
                loop = asyncio.get_running_loop()
                under_way.append((stretch, loop.create_task(comparer.differing(disk, stretch))))
                if len(under_way) == _WINDOW:
                    async with aclosing(found()) as pieces:
                        async for one in pieces:
                            yield one
        while under_way:
            async with aclosing(found()) as pieces:
                async for one in pieces:
                    yield one
        settled = disk.disk.size
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        for offset, length in unsure.runs(settled):
            disk.unsure.mark(offset, length)


async def _stretches(
    disk: SourceDisk, runs: Iterator[tuple[int, int]], piece: int
) -> AsyncGenerator[_Stretch, None]:
    """Runs of a disk cut for comparing; only long zeroes are worth a stretch of their own."""
    most = max(piece, disk.disk.sector_size)
    fine = min(_FINE, most)
    for offset, length in runs:
        reached, end = offset, offset + length
        async for extent in disk.volume.extents(offset, length):
            stop = extent.offset + extent.length
            if extent.kind is ExtentKind.DATA or extent.length < most:
                while stop - reached >= most:
                    yield _Stretch(reached, most, fine)
                    reached += most
                continue
            if reached < extent.offset:
                yield _Stretch(reached, extent.offset - reached, fine)
            for start in range(extent.offset, stop, _LONGEST):
                size = min(_LONGEST, stop - start)
                yield _Stretch(start, size, _COARSE, zero=True)
            reached = stop
        if reached < end:
            yield _Stretch(reached, end - reached, fine)
