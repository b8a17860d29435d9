from __future__ import annotations

import asyncio
import errno
import random

import pytest

from vmferry.errors import InputError, TrackerError
from vmferry.export.tracked import TrackedDisk

BLOCK = 4096


def change(disk, kind, offset, length):
    if kind == "write":
        return disk.write(offset, memoryview(bytes(length)))
    if kind == "zero":
        return disk.write_zeroes(offset, length)
    return disk.discard(offset, length)


@pytest.fixture
def inner(make_disk):
    return make_disk()


@pytest.fixture
def disk(inner):
    return TrackedDisk(inner)


def runs(taken):
    return list(taken.runs())


@pytest.mark.parametrize("kind", ["write", "zero", "discard"])
async def test_every_kind_of_change_is_marked(disk, kind):
    await disk.start(BLOCK)
    await change(disk, kind, BLOCK - 512, 1024)
    await disk.read_into(0, memoryview(bytearray(512)))
    await disk.flush()
    assert runs(disk.harvest()) == [(0, 2 * BLOCK)]
    assert runs(disk.harvest()) == []


@pytest.mark.parametrize("kind", ["write", "zero", "discard"])
async def test_marked_at_dispatch_and_again_at_the_end(disk, inner, kind):
    await disk.start(BLOCK)
    inner.gate.clear()
    task = asyncio.create_task(change(disk, kind, 0, 512))
    await asyncio.sleep(0)
    assert runs(disk.harvest()) == [(0, BLOCK)]
    inner.gate.set()
    await task
    assert runs(disk.harvest()) == [(0, BLOCK)]


@pytest.mark.parametrize("kind", ["write", "zero", "discard"])
async def test_a_failed_change_is_marked(disk, inner, kind):
    await disk.start(BLOCK)
    inner.gate.clear()
    task = asyncio.create_task(change(disk, kind, 0, 512))
    await asyncio.sleep(0)
    disk.harvest()
    inner.failure = OSError(errno.EIO, "broken")
    inner.gate.set()
    with pytest.raises(OSError, match="broken"):
        await task
    assert runs(disk.harvest()) == [(0, BLOCK)]
    assert runs(disk.harvest()) == []


async def test_a_cancelled_change_is_in_every_later_harvest(disk, inner):
    await disk.start(BLOCK)
    inner.gate.clear()
    task = asyncio.create_task(change(disk, "write", 0, 512))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await disk.drain()
    for _ in range(3):
        assert runs(disk.harvest()) == [(0, BLOCK)]
    await disk.start(BLOCK)
    assert runs(disk.harvest()) == []


async def test_start_waits_for_what_is_under_way_and_marks_it(disk, inner):
    inner.gate.clear()
    task = asyncio.create_task(change(disk, "write", 0, 512))
    await asyncio.sleep(0)
    starting = asyncio.create_task(disk.start(BLOCK))
    await asyncio.sleep(0)
    held, inner.gate = inner.gate, asyncio.Event()
    later = asyncio.create_task(change(disk, "write", 8 * BLOCK, 512))
    await asyncio.sleep(0.01)
    assert not starting.done()
    held.set()
    await starting
    assert task.done()
    assert not later.done()
    assert runs(disk.harvest()) == [(0, BLOCK), (8 * BLOCK, BLOCK)]
    inner.gate.set()
    await later


async def test_a_start_that_is_cancelled_tracks_nothing(disk, inner):
    inner.gate.clear()
    task = asyncio.create_task(change(disk, "write", 0, 512))
    await asyncio.sleep(0)
    starting = asyncio.create_task(disk.start(BLOCK))
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not disk.tracking
    inner.gate.set()
    await task


async def test_drain_ends_when_nothing_is_under_way(disk, inner):
    inner.gate.clear()
    tasks = [asyncio.create_task(change(disk, "write", n * BLOCK, 512)) for n in range(3)]
    await asyncio.sleep(0)
    draining = asyncio.create_task(disk.drain())
    await asyncio.sleep(0.01)
    assert not draining.done()
    inner.gate.set()
    await draining
    assert all(task.done() for task in tasks)
    await disk.drain()


async def test_restore_and_stop(disk):
    with pytest.raises(TrackerError, match="not being tracked"):
        disk.harvest()
    disk.stop()
    await disk.start(BLOCK)
    assert disk.block_size == BLOCK
    await change(disk, "write", 0, 512)
    taken = disk.harvest()
    await change(disk, "write", 4 * BLOCK, 512)
    disk.restore(taken)
    assert runs(disk.harvest()) == [(0, BLOCK), (4 * BLOCK, BLOCK)]
    disk.stop()
    disk.stop()
    assert not disk.tracking
    with pytest.raises(TrackerError):
        disk.restore(taken)


async def test_a_range_beyond_the_disk_is_refused_by_the_disk(disk, inner):
    await disk.start(BLOCK)
    with pytest.raises(ValueError, match="bytes"):
        await change(disk, "write", 1 << 20, 512)
    assert runs(disk.harvest()) == []
    await disk.drain()


async def test_impossible_blocks(disk):
    with pytest.raises(InputError):
        await disk.start(1000)
    assert not disk.tracking


async def test_the_map_of_extents_is_that_of_the_disk_below(make_disk, make_holey_disk):
    assert TrackedDisk(make_holey_disk()).maps
    assert TrackedDisk(TrackedDisk(make_holey_disk())).maps
    assert not TrackedDisk(make_disk()).maps
    found = [e.length async for e in TrackedDisk(make_holey_disk()).extents(0, 131072)]
    assert found == [65536, 65536]


class LateDisk:
    """Lands data at a random moment and ends the write at another random one."""

    def __init__(self, disk, chance):
        self.disk, self.chance = disk, chance
        self.geometry = disk.geometry

    async def _pause(self):
        for _ in range(self.chance.randrange(6)):
            await asyncio.sleep(0)

    async def write(self, offset, data):
        await self._pause()
        self.disk.bytes[offset : offset + len(data)] = data
        await self._pause()


@pytest.mark.parametrize("seed", range(12))
async def test_rounds_of_harvest_and_copy_end_in_an_equal_disk(make_disk, seed):
    chance = random.Random(seed)
    source = make_disk(64 * BLOCK)
    disk = TrackedDisk(LateDisk(source, chance))
    stop = asyncio.Event()
    acknowledged = {}

    async def writer(number):
        sequence = 0
        while not stop.is_set():
            sequence += 1
            block = 4 * chance.randrange(16) + number  # each block has one writer
            data = bytes([number + 1, sequence % 256]) * (BLOCK // 2)
            await disk.write(block * BLOCK, memoryview(data))
            acknowledged[block] = data
            if chance.random() < 0.3:
                await asyncio.sleep(0)

    async def copy(taken):
        for offset, length in list(taken.runs()):
            await asyncio.sleep(0)
            target[offset : offset + length] = source.bytes[offset : offset + length]

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(writer(number))
        await asyncio.sleep(0)
        await disk.start(BLOCK)
        target = bytearray(source.bytes)
        for _ in range(30):
            await copy(disk.harvest())
        stop.set()
    await disk.drain()
    await copy(disk.harvest())
    assert target == source.bytes
    for block, data in acknowledged.items():
        assert target[block * BLOCK : (block + 1) * BLOCK] == data
    assert len(acknowledged) > 30
