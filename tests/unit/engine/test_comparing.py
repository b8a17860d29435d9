"""Comparing by digests: exactly what differs is found, and the peer's numbers are bounded."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from vmferry.api import Address, Connection
from vmferry.api.guest import Disk
from vmferry.api.volume import Geometry
from vmferry.dirtymap import DirtyMap
from vmferry.engine.comparing import (
    MOST_ASKED,
    MOST_DIGESTS,
    Answerer,
    Comparer,
    check_compare,
    unsure_pieces,
)
from vmferry.engine.context import InlineWorkers
from vmferry.engine.disks import SourceDisk
from vmferry.errors import ProtocolError
from vmferry.testing.memory import MemoryDriver
from vmferry.wire.codec import decode, encode
from vmferry.wire.digests import digest_of
from vmferry.wire.link import LIMITS, Link
from vmferry.wire.messages import Compare, Digests
from vmferry_transports.memory import MemoryTransport

_NUMBERS = itertools.count()
KIB, MIB = 1 << 10, 1 << 20
FINE = 64 * KIB
BLOCK = 64 * KIB
PIECE = MIB
SIZE = 16 * MIB + 3 * 512
_RANDOM = random.Random(1).randbytes(SIZE)


def never() -> bool:
    return False


class Both:
    """A disk at both ends, and what compares them."""

    def __init__(self, disk: SourceDisk, there: Any, links: tuple[Link, Link]) -> None:
        self.disk, self.there = disk, there
        self.equal = 0
        self.connect(links)

    def connect(self, links: tuple[Link, Link]) -> None:
        self.links = links
        self.answerer = Answerer(links[1], [self.there], InlineWorkers())
        self.comparer = Comparer(links[0], InlineWorkers())

    def found_equal(self, disk: SourceDisk, count: int) -> None:
        self.equal += count

    async def differing(self, stop: Any = never, most: int = 10**6) -> list[tuple[int, int, bool]]:
        """What is found, up to a number of pieces; then it is broken off."""
        answering = asyncio.create_task(self.answerer.run())
        found: list[tuple[int, int, bool]] = []
        work = unsure_pieces([self.disk], self.comparer, PIECE, stop, self.found_equal)
        async with aclosing(work) as pieces:
            async for one in pieces:
                found.append((one.offset, one.length, one.zero))
                if len(found) == most:
                    break
        answering.cancel()
        await asyncio.wait([answering])
        return found


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, Link]]:
    transport, address = MemoryTransport(), Address.parse(f"memory://compare-{next(_NUMBERS)}")
    listener = await transport.listen(address, limits=LIMITS)
    ends: tuple[Connection, Connection] = tuple(  # type: ignore[assignment]
        await asyncio.gather(transport.connect(address, lanes=4, limits=LIMITS), listener.accept())
    )
    async with Link(ends[0]) as source, Link(ends[1]) as destination:
        yield source, destination
    await listener.close()


@pytest.fixture
async def links() -> AsyncIterator[tuple[Link, Link]]:
    async with linked() as both:
        yield both


class Counting:
    """A volume that notes what is read of it."""

    def __init__(self, volume: Any) -> None:
        self._volume, self.read = volume, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._volume, name)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.read += len(buffer)
        await self._volume.read_into(offset, buffer)


@pytest.fixture
async def both(links: tuple[Link, Link]) -> Both:
    driver = MemoryDriver()
    here = Counting(await driver.create("here", Geometry(SIZE)))
    there = Counting(await driver.create("there", Geometry(SIZE)))
    described = Disk(name="d", size=SIZE, volume="memory", location="here", tracker="")
    disk: Any = SourceDisk(0, described, here, None, BLOCK)  # type: ignore[arg-type]
    disk.unsure.mark_all()
    return Both(disk, there, links)


async def fill(volume: Any, offset: int, length: int, seed: int) -> None:
    await volume.write(offset, memoryview(random.Random(seed).randbytes(length)))


async def make_equal(both: Both, length: int = SIZE) -> None:
    for volume in (both.disk.volume, both.there):
        await volume.write(0, memoryview(_RANDOM)[:length])


async def test_equal_disks_are_found_equal_and_nothing_remains_unsure(both: Both) -> None:
    await make_equal(both)
    assert await both.differing() == []
    assert both.equal == SIZE
    assert not both.disk.unsure
    assert not both.disk.todo


@pytest.mark.parametrize("seed", range(4))
async def test_exactly_what_differs_is_found(both: Both, seed: int) -> None:
    await make_equal(both)
    places = random.Random(seed)
    changed = {places.randrange(SIZE // 512) * 512 for _ in range(20)} | {SIZE - 512}
    for place in changed:
        side = places.choice((both.disk.volume, both.there))
        await fill(side, place, 512, place)
    want = DirtyMap(SIZE, FINE)
    for place in changed:
        want.mark(place, 512)
    found = await both.differing()
    assert both.equal == SIZE - sum(length for _, length, _ in found)
    assert not any(zero for *_, zero in found)
    assert DirtyMap.from_runs(SIZE, FINE, [one[:2] for one in found]) == want
    assert sum(length for _, length, _ in found) == want.dirty_bytes()


async def test_holes_of_both_are_not_read(both: Both) -> None:
    for volume in (both.disk.volume, both.there):
        await fill(volume, 5 * MIB, MIB, 3)
    assert await both.differing() == []
    assert both.equal == SIZE
    assert both.disk.volume.read == both.there.read == MIB  # type: ignore[attr-defined]


async def test_what_is_a_hole_here_and_data_there_is_sent_as_zeroes(both: Both) -> None:
    await make_equal(both, MIB)
    await fill(both.there, 9 * MIB, 512, 4)
    found = await both.differing()
    assert len(found) == 1
    (offset, length, zero) = found[0]
    assert zero
    assert offset <= 9 * MIB < offset + length <= SIZE
    assert both.disk.volume.read == MIB  # type: ignore[attr-defined]


async def test_what_is_data_here_and_a_hole_there_is_sent(both: Both) -> None:
    await fill(both.disk.volume, 3 * MIB, FINE, 5)
    assert await both.differing() == [(3 * MIB, FINE, False)]


async def test_what_is_to_be_sent_anyway_is_not_compared(both: Both) -> None:
    await make_equal(both)
    await fill(both.there, 2 * MIB, 4 * BLOCK, 6)
    both.disk.todo.mark(2 * MIB, 4 * BLOCK)
    assert await both.differing() == []
    assert both.equal == SIZE - 4 * BLOCK
    assert both.disk.todo.dirty_bytes() == 4 * BLOCK


async def test_told_to_stop_all_that_was_not_compared_is_to_be_sent(both: Both) -> None:
    await make_equal(both)
    assert await both.differing(stop=lambda: both.equal > 4 * MIB) == []
    assert 4 * MIB < both.equal < SIZE
    assert both.disk.todo.dirty_bytes() >= SIZE - both.equal


@pytest.mark.parametrize("most", [1, 3])
async def test_broken_off_what_was_not_settled_remains_unsure(both: Both, most: int) -> None:
    await make_equal(both)
    changed = [1 * MIB, 1 * MIB + 3 * FINE, 7 * MIB, 11 * MIB]
    for place in changed:
        await fill(both.there, place, 512, place)
    found = await both.differing(most=most)
    assert [offset for offset, *_ in found] == changed[:most]
    for place in changed[most - 1 :]:
        assert both.disk.unsure.all(place, FINE)
    assert not both.disk.unsure.any(0, MIB)
    async with linked() as links:
        both.connect(links)
        again = await both.differing()
    assert {offset for offset, *_ in [*found, *again]} == set(changed)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("piece", 511),
        ("piece", (1 << 24) + 1),
        ("length", 0),
        ("length", (1 << 30) + 1),
        ("disk", 256),
        ("offset", -1),
    ],
)
def test_numbers_are_bounded_on_the_wire(field: str, value: int) -> None:
    good = {"disk": 0, "offset": 0, "length": 512, "piece": 512}
    assert decode(encode(Compare(**good))) == Compare(**good)
    with pytest.raises(ProtocolError):
        decode(encode(Compare(**(good | {field: value}))))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Compare(disk=1, offset=0, length=512, piece=512), "no disk 1"),
        (Compare(disk=0, offset=SIZE - 512, length=1024, piece=512), "beyond"),
        (Compare(disk=0, offset=1, length=512, piece=512), "sector"),
        (Compare(disk=0, offset=0, length=513, piece=512), "sector"),
        (Compare(disk=0, offset=0, length=1024, piece=513), "sector"),
        (Compare(disk=0, offset=0, length=512 * (MOST_DIGESTS + 1), piece=512), "more than"),
    ],
)
def test_what_does_not_fit_the_job_is_refused(asked: Compare, said: str) -> None:
    check_compare(Compare(disk=0, offset=0, length=512 * MOST_DIGESTS, piece=512), [Geometry(SIZE)])
    with pytest.raises(ProtocolError, match=said):
        check_compare(asked, [Geometry(SIZE)])


async def test_no_more_than_a_bounded_number_may_wait(both: Both) -> None:
    source, destination = both.links
    for _ in range(MOST_ASKED + 1):
        await source.send(Compare(disk=0, offset=0, length=512, piece=512))
    with pytest.raises(ProtocolError, match="are waiting"):
        await destination.guard(asyncio.sleep(10))


@pytest.mark.parametrize(
    ("offset", "length", "spoilt", "said"),
    [
        (512, 32, False, "not asked for"),
        (0, 64, False, "64 bytes of payload for 1 pieces"),
        (0, 0, False, "0 bytes of payload for 1 pieces"),
        (0, 32, True, "does not match"),
    ],
)
async def test_an_answer_that_answers_nothing_ends_the_link(
    both: Both, offset: int, length: int, spoilt: bool, said: str
) -> None:
    source, destination = both.links
    asked, payload = asyncio.Event(), bytes(length)
    destination.on(Compare, lambda *_: asked.set())
    await fill(both.disk.volume, 0, 512, 7)
    both.disk.unsure.clear_all()
    both.disk.unsure.mark(0, BLOCK)
    digest = bytes(32) if spoilt else digest_of(payload)

    async def compare() -> None:
        work = unsure_pieces([both.disk], both.comparer, BLOCK, never, both.found_equal)
        async with aclosing(work) as pieces:
            async for _ in pieces:
                pass

    async def reply() -> None:
        await asked.wait()
        await destination.send(Digests(disk=0, offset=offset, digest=digest), payload)

    with pytest.raises(ProtocolError, match=said):
        await source.guard(_both(compare(), reply()))
    assert both.disk.unsure.all(0, BLOCK)


async def _both(*work: Any) -> None:
    await asyncio.gather(*work)
