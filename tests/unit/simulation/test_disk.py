import asyncio
import errno
from random import Random

import numpy as np
import pytest

from vmferry.api.volume import Access, ExtentKind, Geometry
from vmferry.errors import VolumeBusy, VolumeExists, VolumeMissing
from vmferry.simulation.disk import DiskParameters
from vmferry.simulation.loop import run
from vmferry.simulation.process import ProcessDied, SimProcess
from vmferry.simulation.trace import Trace
from vmferry.simulation.volume import SimDriver, SimStorage

SIZE = 64 * 1024


def with_disk(body, seed=1, **parameters):
    async def main():
        storage = SimStorage(DiskParameters(**parameters), Random(seed), Trace())
        driver = SimDriver(storage, SimProcess("a"))
        volume = await driver.create("disk", Geometry(SIZE))
        return await body(driver, volume)

    return run(main(), seed=seed)


async def read(volume, offset, length):
    buffer = bytearray(length)
    await volume.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def test_reads_see_writes_and_zeroes():
    async def body(driver, volume):
        await volume.write(512, memoryview(b"x" * 1024))
        assert await read(volume, 0, 2048) == bytes(512) + b"x" * 1024 + bytes(512)
        await volume.write_zeroes(1024, 512)
        assert await read(volume, 512, 1024) == b"x" * 512 + bytes(512)

    with_disk(body)


def test_ranges_are_checked():
    async def body(driver, volume):
        for offset, length in ((1, 512), (0, 100), (SIZE, 512), (-512, 512)):
            with pytest.raises(ValueError, match="no range"):
                await volume.write(offset, memoryview(bytes(length)))

    with_disk(body)


def test_requests_finish_out_of_order():
    async def body(driver, volume):
        done = []

        async def write(n):
            await volume.write(n * 512, memoryview(bytes(512)))
            done.append(n)

        async with asyncio.TaskGroup() as group:
            for n in range(20):
                group.create_task(write(n))
        return done

    assert with_disk(body) != list(range(20))


def test_a_crash_keeps_what_was_flushed_and_a_part_of_the_rest():
    def leftovers(seed):
        async def body(driver, volume):
            for n in range(8):
                await volume.write(n * 512, memoryview(b"a" * 512))
            await volume.flush()
            for n in range(4, 12):
                await volume.write(n * 512, memoryview(b"b" * 512))
            volume.disk.lose_power()
            return bytes(volume.disk.content[: 12 * 512 : 512])

        return with_disk(body, seed)

    seen = {leftovers(seed) for seed in range(30)}
    assert {text[:4] for text in seen} == {b"aaaa"}
    assert {text[4:8] for text in seen} > {b"aaaa", b"bbbb"}
    assert {text[8:] for text in seen} > {bytes(4), b"bbbb"}


def test_a_flush_does_not_cover_what_was_written_after_it_began():
    async def body(driver, volume):
        flush = asyncio.create_task(volume.flush())
        await asyncio.sleep(0)
        volume.disk.write(0, memoryview(b"x" * 512))
        await flush
        assert not volume.disk.durable.any()
        await volume.flush()
        assert volume.disk.durable[0] == ord("x")

    with_disk(body)


def test_big_writes_are_sometimes_seen_in_part():
    async def body(driver, volume):
        write = asyncio.create_task(volume.write(0, memoryview(b"x" * SIZE)))
        seen = set()
        while not write.done():
            seen.add(int(np.count_nonzero(volume.disk.content)))
            await asyncio.sleep(0.00001)
        return seen

    assert len(with_disk(body, tear=1.0) - {0, SIZE}) == 1
    assert not with_disk(body, tear=0.0) - {0, SIZE}


def test_injected_errors_hit_the_request_they_are_meant_for():
    async def body(driver, volume):
        volume.disk.tamper = lambda request: errno.EIO if request.number == 2 else None
        await volume.write(0, memoryview(b"x" * 512))
        with pytest.raises(OSError, match="disk") as caught:
            await volume.write(512, memoryview(b"x" * 512))
        assert caught.value.errno == errno.EIO
        await volume.write(1024, memoryview(b"x" * 512))

    with_disk(body)


def test_holes_are_told_from_data():
    async def body(driver, volume):
        await volume.write(8192, memoryview(b"x" * 512))
        await volume.write_zeroes(16384, 4096, unmap=False)
        found = [(e.offset, e.length, e.kind) async for e in volume.extents(4096, 16384)]
        assert found == [
            (4096, 4096, ExtentKind.HOLE),
            (8192, 4096, ExtentKind.DATA),
            (12288, 4096, ExtentKind.HOLE),
            (16384, 4096, ExtentKind.ZERO),
        ]
        await volume.write_zeroes(8192, 4096)
        found = [e.kind async for e in volume.extents(0, 16384)]
        assert found == [ExtentKind.HOLE]

    with_disk(body)


def test_discarded_ranges_are_anything_and_their_neighbours_untouched():
    async def body(driver, volume):
        await volume.write(0, memoryview(b"x" * 12288))
        await volume.discard(4096, 4096)
        content = await read(volume, 0, 12288)
        assert content[:4096] == content[8192:] == b"x" * 4096
        return content[4096]

    assert {with_disk(body, seed) for seed in range(20)} == {ord("x"), 0, 0xDD}


def test_one_writer_at_a_time():
    async def body(driver, volume):
        with pytest.raises(VolumeBusy):
            await driver.open("disk", Access.WRITE)
        await (await driver.open("disk", Access.READ)).close()
        await volume.unlock()
        other = await driver.open("disk", Access.WRITE)
        await volume.write(0, memoryview(bytes(512)))
        await volume.close()
        await volume.close()
        with pytest.raises(VolumeBusy):
            await driver.open("disk", Access.WRITE)
        await other.close()
        await driver.open("disk", Access.WRITE)

    with_disk(body)


def test_creating_and_removing():
    async def body(driver, volume):
        with pytest.raises(VolumeExists):
            await driver.create("disk", Geometry(SIZE))
        await volume.close()
        await driver.remove("disk")
        await driver.remove("disk")
        with pytest.raises(VolumeMissing):
            await driver.probe("disk")

    with_disk(body)


def test_a_dead_process_does_nothing_more():
    async def body(driver, volume):
        write = asyncio.create_task(volume.write(0, memoryview(b"x" * 512)))
        await asyncio.sleep(0)
        volume._process.kill()
        with pytest.raises(ProcessDied):
            await write
        assert not volume.disk.content.any()
        assert volume.disk.writer is None

    with_disk(body, write=1.0)
