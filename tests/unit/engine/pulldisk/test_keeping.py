"""When the pull disk serves, waits and saves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from vmferry.dirtymap import DirtyMap
from vmferry.engine.pulldisk import PullDisk
from vmferry.errors import ConnectionLost, ProtocolError, VolumeError, VolumeGeometry

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


# -- before it is ready, paused, failed


async def test_every_request_waits_until_ready(rig_of: Any) -> None:
    rig = rig_of(0)
    buffer = memoryview(bytearray(SECTOR))
    tasks = [
        await started(work)
        for work in (
            rig.disk.read_into(BLOCK, buffer),
            rig.disk.write(BLOCK, buffer),
            rig.disk.flush(),
            rig.disk.discard(BLOCK, SECTOR),
        )
    ]
    assert not any(task.done() for task in tasks)
    with pytest.raises(ProtocolError, match="before the pending map"):
        await rig.disk.arrive(0, BLOCK, REMOTE * BLOCK)
    await rig.disk.ready(rig.map)
    await asyncio.gather(*tasks)
    assert DirtyMap.decode(rig.saved[0], size=SIZE, block_size=BLOCK) == rig.map
    with pytest.raises(RuntimeError, match="given once"):
        await rig.disk.ready(rig.map)


async def test_a_map_that_does_not_fit_is_refused(rig_of: Any) -> None:
    with pytest.raises(VolumeGeometry):
        await rig_of().disk.ready(DirtyMap(SIZE + BLOCK, BLOCK))
    with pytest.raises(VolumeGeometry):
        await rig_of().disk.ready(DirtyMap(SIZE, 2 * BLOCK))

    with pytest.raises(VolumeGeometry, match="whole sectors"):
        PullDisk(rig_of().volume, SECTOR // 2, rig_of().save)


async def test_pause_waits_for_those_in_flight_and_holds_others_back(rig_of: Any) -> None:
    async with rig_of() as rig:
        rig.volume.held.add("write")
        writing = await started(rig.write(0, BLOCK))
        pausing = await started(rig.disk.pause())
        draining = await started(rig.disk.drained())
        reading = await started(rig.read(0, BLOCK))
        assert not pausing.done()
        assert not draining.done()
        rig.volume.go.set()
        await asyncio.gather(writing, pausing, draining)
        assert not reading.done()
        rig.disk.resume()
        assert await reading == GUEST * BLOCK


async def test_failed_disk_serves_what_is_local(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        waiting = await started(rig.read(0, BLOCK))
        local = await started(rig.disk.wait_local())
        rig.disk.fail("the source is lost")
        for task in (waiting, local, rig.read(0, SECTOR), rig.write(0, SECTOR)):
            with pytest.raises(VolumeError, match="the source is lost"):
                await task
        assert await rig.read(BLOCK, SECTOR) == OLD * SECTOR
        await rig.write(0, BLOCK)
        assert await rig.read(0, BLOCK) == GUEST * BLOCK

    unready = rig_of()
    waiting = await started(unready.read(0, SECTOR))
    unready.disk.fail("the source is lost")
    with pytest.raises(VolumeError):
        await waiting


# -- the source gone and back


async def test_without_the_source_requests_wait_and_are_asked_again(rig_of: Any) -> None:
    async with rig_of(0, 1, 2) as rig:
        reading = await started(rig.read(0, BLOCK))
        rig.disk.link_lost()
        writing = await started(rig.write(BLOCK, SECTOR))
        assert await rig.read(3 * BLOCK, SECTOR) == OLD * SECTOR
        assert rig.asked == [(0, BLOCK)]
        assert not rig.disk.connected
        assert rig.disk.outstanding() == [(0, 2 * BLOCK)]
        rig.asked.clear()
        rig.disk.link_restored(rig.fetch)
        await started(asyncio.sleep(0))
        assert sorted(rig.asked) == [(0, BLOCK), (BLOCK, BLOCK)]
        await rig.answer()
        assert await reading == REMOTE * BLOCK
        await writing


async def test_a_link_that_breaks_while_asking_is_no_error_for_the_guest(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        rig.fetch_error = ConnectionLost("gone")
        reading = await started(rig.read(0, BLOCK))
        assert not reading.done()
        assert not rig.disk.connected
        rig.fetch_error = None
        rig.disk.link_restored(rig.fetch)
        await started(asyncio.sleep(0))
        await rig.answer()
        assert await reading == REMOTE * BLOCK


# -- flush and checkpoint


async def test_data_is_flushed_before_the_map_is_saved(rig_of: Any) -> None:
    async with rig_of(0, 1, 2) as rig:
        await rig.write(0, BLOCK)
        rig.volume.log.clear()
        await rig.disk.flush()
        assert rig.volume.log == [("flush", 0, 0), ("save", 0, 0)]
        assert list(rig.saved_map().runs()) == [(BLOCK, 2 * BLOCK)]


async def test_a_block_made_local_during_the_flush_is_not_in_the_saved_map(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        await rig.write(0, BLOCK)
        rig.volume.held.add("flush")
        flushing = await started(rig.disk.flush())
        await rig.write(BLOCK, BLOCK)
        rig.volume.go.set()
        await flushing
        assert list(rig.saved_map().runs()) == [(BLOCK, BLOCK)]
        await rig.disk.flush()
        assert not rig.saved_map()


async def test_a_flush_saves_the_map_only_for_the_guests_writes(rig_of: Any) -> None:
    async with rig_of(0, 1, 2) as rig:
        await rig.disk.arrive(0, BLOCK, REMOTE * BLOCK)
        await rig.write(3 * BLOCK, BLOCK)
        await rig.disk.flush()
        assert rig.saved == []
        await rig.write(0, SECTOR)  # local by now, but pending on disk: it would be fetched again
        await rig.disk.flush()
        assert list(rig.saved_map().runs()) == [(BLOCK, 2 * BLOCK)]
        await rig.write(0, SECTOR)
        await rig.disk.flush()
        assert len(rig.saved) == 1


async def test_checkpoint_saves_what_arrived_and_nothing_twice(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        await rig.disk.checkpoint()
        assert rig.saved == []
        await rig.disk.arrive(0, BLOCK, REMOTE * BLOCK)
        await rig.disk.checkpoint()
        await rig.disk.checkpoint()
        assert len(rig.saved) == 1
        assert list(rig.saved_map().runs()) == [(BLOCK, BLOCK)]
    await rig_of().disk.checkpoint()


async def test_flushes_that_overlap_share_the_work(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        await rig.write(0, BLOCK)
        rig.volume.held.add("flush")
        first = await started(rig.disk.flush())
        others = [await started(rig.disk.flush()) for _ in range(10)]
        await cancelled_later(others.pop(), rig)
        await asyncio.gather(first, *others)
        assert len(rig.volume.did("flush")) == 2
        assert len(rig.saved) == 1


async def cancelled_later(task: asyncio.Task[Any], rig: Any) -> None:
    task.cancel()
    await started(asyncio.sleep(0))
    rig.volume.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_save_that_fails_fails_the_flush_and_is_done_again(rig_of: Any) -> None:
    async with rig_of(0, 1) as rig:
        await rig.write(0, BLOCK)
        rig.save_error = VolumeError("no space for the map")
        with pytest.raises(VolumeError, match="no space"):
            await rig.disk.flush()
        rig.save_error = None
        await rig.disk.flush()
        assert list(rig.saved_map().runs()) == [(BLOCK, BLOCK)]


async def test_a_flush_that_fails_saves_nothing(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        await rig.write(0, BLOCK)
        rig.volume.broken.add("flush")
        with pytest.raises(OSError, match="broken"):
            await rig.disk.flush()
        assert rig.saved == []


async def test_when_all_is_local_and_saved_a_flush_is_a_flush(rig_of: Any) -> None:
    async with rig_of(0) as rig:
        await rig.write(0, BLOCK)
        await rig.disk.wait_local()
        await rig.disk.checkpoint()
        rig.volume.log.clear()
        await rig.write(0, BLOCK)
        await rig.disk.flush()
        assert [name for name, *_ in rig.volume.log] == ["write", "flush"]
