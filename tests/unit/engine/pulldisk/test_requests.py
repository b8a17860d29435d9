"""Each race and rule of the pull disk's requests by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from vmferry.api import ExtentKind
from vmferry.errors import ProtocolError

BLOCK, SECTOR, BLOCKS = 4096, 512, 16
SIZE = BLOCKS * BLOCK + 3 * SECTOR
OLD, REMOTE, GUEST = b"o", b"r", b"g"


async def started(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """``work``, run until it waits."""
    task = asyncio.ensure_future(work)
    for _ in range(20):
        await asyncio.sleep(0)
    return task


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- reads


async def test_a_read_fetches_what_is_pending_and_nothing_else(rig_of: Any) -> None:
    async with rig_of(1, 2, 5) as rig:
        assert await rig.read(0, SECTOR) == OLD * SECTOR
        reading = await started(rig.read(SECTOR, 6 * BLOCK))
        assert rig.asked == [(BLOCK, 2 * BLOCK), (5 * BLOCK, BLOCK)]
        assert rig.disk.outstanding() == rig.asked
        await rig.answer()
        data = await reading
        assert data[: BLOCK - SECTOR] == OLD * (BLOCK - SECTOR)
        assert data[BLOCK - SECTOR : 3 * BLOCK - SECTOR] == REMOTE * 2 * BLOCK
        assert (rig.pending(), rig.disk.pending_bytes) == ([], 0)
        stats = rig.disk.stats
        assert (stats.on_demand, stats.fetched_blocks, stats.arrived) == (1, 3, 3 * BLOCK)


async def test_a_block_is_fetched_once_however_many_wait(rig_of: Any) -> None:
    async with rig_of(0, 1, 2) as rig:
        readings = [
            await started(rig.read(*one)) for one in [(0, 1024), (512, BLOCK), (0, 3 * BLOCK)]
        ]
        assert rig.asked == [(0, BLOCK), (BLOCK, BLOCK), (2 * BLOCK, BLOCK)]
        await rig.answer()
        for data in await asyncio.gather(*readings):
            assert set(data) == set(REMOTE)


async def test_a_push_that_comes_first_ends_the_wait(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        reading = await started(rig.read(0, BLOCK))
        await rig.disk.arrive(0, 2 * BLOCK, REMOTE * 2 * BLOCK)
        assert await reading == REMOTE * BLOCK
        await rig.answer(b"x")
        assert await rig.read(0, BLOCK) == REMOTE * BLOCK
        assert rig.disk.stats.late == BLOCK


async def test_a_block_being_stored_is_not_asked_for_again(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.volume.held.add("write")
        arriving = await started(rig.disk.arrive(0, BLOCK, REMOTE * BLOCK))
        reading = await started(rig.read(0, BLOCK))
        assert (rig.asked, reading.done()) == ([], False)
        rig.volume.go.set()
        await arriving
        assert await reading == REMOTE * BLOCK


async def test_a_cancelled_reader_leaves_nobody_waiting(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        stuck = asyncio.Event()
        ask = rig.fetch

        async def slow(offset: int, length: int) -> None:
            await stuck.wait()
            await ask(offset, length)

        rig.disk.link_restored(slow)
        first = await started(rig.read(0, BLOCK))
        second = await started(rig.read(0, SECTOR))
        await cancelled(first)
        stuck.set()
        await started(asyncio.sleep(0))
        assert rig.asked == [(0, BLOCK)]
        await rig.answer()
        assert await second == REMOTE * SECTOR


async def test_read_ahead_and_the_largest_request(rig_of: Any) -> None:
    async with rig_of(*range(10), 12, read_ahead=3 * BLOCK, max_fetch=2 * BLOCK) as rig:
        await cancelled(await started(rig.read(BLOCK, BLOCK)))
        assert rig.asked == [(BLOCK, 2 * BLOCK), (3 * BLOCK, 2 * BLOCK)]
        rig.asked.clear()
        await cancelled(await started(rig.read(8 * BLOCK, SECTOR)))
        assert rig.asked == [(8 * BLOCK, 2 * BLOCK)]
        assert rig.disk.missing(8 * BLOCK) == [
            (0, BLOCK),
            (5 * BLOCK, 3 * BLOCK),
            (12 * BLOCK, BLOCK),
        ]
        rig.asked.clear()
        await cancelled(await started(rig.write(5 * BLOCK + SECTOR, SECTOR)))
        assert rig.asked == [(5 * BLOCK, BLOCK)]


# -- writes


async def test_whole_blocks_are_written_without_a_fetch(rig_of: Any) -> None:
    async with rig_of(*range(BLOCKS + 1)) as rig:
        await rig.write(BLOCK, 2 * BLOCK)
        await rig.write(BLOCKS * BLOCK, 3 * SECTOR)  # the partial last block, whole
        await rig.disk.write_zeroes(4 * BLOCK, BLOCK)
        assert rig.asked == []
        assert rig.pending() == [0, 3, *range(5, BLOCKS)]
        assert await rig.read(BLOCK, BLOCK) == GUEST * BLOCK
        assert await rig.read(4 * BLOCK, BLOCK) == bytes(BLOCK)
        assert rig.disk.stats.overwritten == 4


@pytest.mark.parametrize(
    ("offset", "length", "asked"),
    [
        (SECTOR, SECTOR, [0]),
        (0, SECTOR, [0]),
        (BLOCK - SECTOR, 2 * SECTOR, [0, 1]),
        (BLOCK - SECTOR, 2 * BLOCK, [0, 2]),
        (0, BLOCK + SECTOR, [1]),
        (BLOCKS * BLOCK, SECTOR, [BLOCKS]),
        (BLOCKS * BLOCK + SECTOR, 2 * SECTOR, [BLOCKS]),
    ],
)
async def test_blocks_written_in_part_are_fetched_first(
    rig_of: Any, offset: int, length: int, asked: list[int]
) -> None:
    async with rig_of(*range(BLOCKS + 1)) as rig:
        writing = await started(rig.write(offset, length))
        assert rig.asked == [(b * BLOCK, min(BLOCK, SIZE - b * BLOCK)) for b in asked]
        assert rig.volume.did("write") == []
        await rig.answer()
        await writing
        start, stop = offset // BLOCK * BLOCK, min(-(-(offset + length) // BLOCK) * BLOCK, SIZE)
        expected = bytearray(REMOTE * (stop - start))
        expected[offset - start : offset - start + length] = GUEST * length
        assert await rig.read(start, stop - start) == bytes(expected)


async def test_late_data_does_not_replace_the_guests(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        await rig.write(0, BLOCK)
        await rig.disk.arrive(0, 2 * BLOCK, REMOTE * 2 * BLOCK)
        assert await rig.read(0, 2 * BLOCK) == GUEST * BLOCK + REMOTE * BLOCK
        assert (rig.disk.stats.arrived, rig.disk.stats.late) == (BLOCK, BLOCK)


async def test_the_guest_writes_while_the_sources_data_is_being_stored(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.volume.held.add("write")
        arriving = await started(rig.disk.arrive(0, BLOCK, REMOTE * BLOCK))
        writing = await started(rig.write(0, BLOCK))
        assert len(rig.volume.did("write")) == 1
        rig.volume.go.set()
        await asyncio.gather(arriving, writing)
        assert await rig.read(0, BLOCK) == GUEST * BLOCK


async def test_the_sources_data_comes_while_the_guest_writes(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.volume.held.add("write")
        writing = await started(rig.write(0, BLOCK))
        arriving = await started(rig.disk.arrive(0, BLOCK, REMOTE * BLOCK))
        rig.volume.go.set()
        await asyncio.gather(arriving, writing)
        assert await rig.read(0, BLOCK) == GUEST * BLOCK
        assert rig.disk.stats.late == BLOCK


async def test_disjoint_requests_do_not_wait_for_each_other(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        rig.volume.held.add("write")
        writing = await started(rig.write(0, BLOCK))
        arriving = await started(rig.disk.arrive(BLOCK, BLOCK, REMOTE * BLOCK))
        assert len(rig.volume.did("write")) == 2
        rig.volume.go.set()
        await asyncio.gather(arriving, writing)


async def test_a_cancelled_arrival_holds_its_range_until_its_write_has_ended(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.volume.held.add("write")
        arriving = await started(rig.disk.arrive(0, BLOCK, REMOTE * BLOCK))
        arriving.cancel()
        writing = await started(rig.write(0, BLOCK))
        assert not arriving.done()
        assert len(rig.volume.did("write")) == 1
        rig.volume.go.set()
        await writing
        with pytest.raises(asyncio.CancelledError):
            await arriving
        assert await rig.read(0, BLOCK) == GUEST * BLOCK


async def test_a_failed_write_leaves_its_blocks_pending(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.volume.broken.add("write")
        with pytest.raises(OSError, match="broken"):
            await rig.write(0, BLOCK)
        rig.volume.broken.clear()
        assert rig.pending() == [0]
        reading = await started(rig.read(0, BLOCK))
        await rig.answer()
        assert await reading == REMOTE * BLOCK


async def test_a_reader_asks_when_the_write_it_counted_on_fails(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.volume.held.add("write")
        rig.volume.broken.add("write")
        writing = await started(rig.write(0, BLOCK))
        reading = await started(rig.read(0, BLOCK))
        assert rig.asked == []
        rig.volume.go.set()
        with pytest.raises(OSError, match="broken"):
            await writing
        await started(asyncio.sleep(0))
        assert rig.asked == [(0, BLOCK)]
        rig.volume.broken.clear()
        await rig.answer()
        assert await reading == REMOTE * BLOCK


# -- discards


async def test_discard_leaves_partial_blocks_and_zeroes_whole_ones(rig_of: Any) -> None:
    async with rig_of(0, 1, 2, 4) as rig:
        await rig.disk.discard(SECTOR, 4 * BLOCK)
        assert (rig.asked, rig.pending()) == ([], [0, 4])
        assert await rig.read(BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
        reading = await started(rig.read(0, BLOCK))
        await rig.answer()
        assert await reading == REMOTE * BLOCK


async def test_discard_of_local_blocks_goes_to_the_volume(rig_of: Any) -> None:
    async with rig_of(0, 7) as rig:
        await rig.disk.discard(2 * BLOCK, 2 * BLOCK)
        await rig.disk.discard(3 * BLOCK, 4 * BLOCK + SECTOR)
        assert rig.volume.did("discard", "zero") == [
            ("discard", 2 * BLOCK, 2 * BLOCK),
            ("discard", 3 * BLOCK, 4 * BLOCK),
        ]
        assert rig.pending() == [0, 7]


# -- arrivals


async def test_zeroes_arrive_without_data(rig_of: Any) -> None:
    async with rig_of(3, 4, 6) as rig:
        await rig.disk.arrive(2 * BLOCK, 6 * BLOCK)
        assert rig.volume.did("zero", "write") == [
            ("zero", 3 * BLOCK, 2 * BLOCK),
            ("zero", 6 * BLOCK, BLOCK),
        ]
        await rig.disk.wait_local()


@pytest.mark.parametrize(
    ("offset", "length", "size"),
    [
        (SECTOR, BLOCK, BLOCK),
        (0, SECTOR, SECTOR),
        (0, BLOCK, BLOCK - 1),
        (0, 0, 0),
        (-BLOCK, BLOCK, BLOCK),
        (BLOCKS * BLOCK, BLOCK, BLOCK),
        (1 << 60, BLOCK, BLOCK),
    ],
)
async def test_an_impossible_arrival_is_refused(
    rig_of: Any, offset: int, length: int, size: int
) -> None:
    async with rig_of(*range(BLOCKS + 1)) as rig:
        with pytest.raises(ProtocolError):
            await rig.disk.arrive(offset, length, bytes(size))
        assert rig.volume.log == [("save", 0, 0)]
        await rig.disk.arrive(BLOCKS * BLOCK, 3 * SECTOR, bytes(3 * SECTOR))
        await rig.disk.drained()


async def test_a_read_is_answered_from_what_arrived_though_it_cannot_be_stored(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        whole = await started(rig.read(0, BLOCK))
        part = await started(rig.read(SECTOR, SECTOR))
        both = await started(rig.read(SECTOR, BLOCK))
        rig.volume.broken.add("write")
        with pytest.raises(OSError, match="broken"):
            await rig.disk.arrive(0, BLOCK, REMOTE * BLOCK)
        assert await whole == REMOTE * BLOCK
        assert await part == REMOTE * SECTOR
        with pytest.raises(OSError, match="broken"):
            await both
        assert rig.disk.pending_blocks == 2


async def test_a_read_is_not_answered_with_data_the_guest_has_replaced(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        await rig.disk.write(0, memoryview(b"g" * BLOCK))
        both = await started(rig.read(0, 2 * BLOCK))
        await rig.disk.arrive(0, 2 * BLOCK, REMOTE * 2 * BLOCK)
        assert await both == b"g" * BLOCK + REMOTE * BLOCK


async def test_data_that_cannot_be_stored_is_an_error_for_those_who_wait(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        writing = await started(rig.disk.write(SECTOR, memoryview(bytes(SECTOR))))
        other = await started(rig.read(BLOCK, BLOCK))
        rig.volume.broken.add("write")
        with pytest.raises(OSError, match="broken"):
            await rig.disk.arrive(0, BLOCK, REMOTE * BLOCK)
        with pytest.raises(OSError, match="broken"):
            await writing
        assert not other.done()
        rig.volume.broken.clear()
        rig.asked.append((0, BLOCK))
        await rig.answer()
        assert await other == REMOTE * BLOCK
        assert await rig.read(0, BLOCK) == REMOTE * BLOCK


# -- the rest of a disk


async def test_extents_call_pending_blocks_data(rig_of: Any) -> None:
    async with rig_of(4, 5, 15) as rig:
        found = [one async for one in rig.disk.extents(0, SIZE)]
        assert [(one.offset // BLOCK, one.kind) for one in found] == [
            (0, ExtentKind.HOLE),
            (2, ExtentKind.DATA),
            (6, ExtentKind.HOLE),
            (10, ExtentKind.DATA),
        ]
        assert sum(one.length for one in found) == SIZE


async def test_requests_that_are_none_are_refused(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        buffer = memoryview(bytearray(SECTOR))
        for offset, length in ((1, SECTOR), (0, SECTOR - 1)):
            with pytest.raises(ValueError, match="whole sectors"):
                await rig.disk.read_into(offset, buffer[:length])
            with pytest.raises(ValueError, match="whole sectors"):
                await rig.disk.write(offset, buffer[:length])
        with pytest.raises(ValueError, match="not on a disk"):
            await rig.disk.read_into(SIZE, buffer)
        assert rig.asked == []
        await rig.disk.drained()


async def test_nothing_pending_is_local_at_once(rig_of: Any) -> None:
    async with rig_of() as rig:
        await rig.disk.wait_local()
        assert (rig.disk.pending_blocks, rig.disk.geometry.size) == (0, SIZE)
