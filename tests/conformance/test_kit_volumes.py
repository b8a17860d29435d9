"""The volume kit fails volumes that are broken on purpose, each by the test made for its fault."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from vmferry.api.plugin import Grade
from vmferry.api.volume import Access, Extent, ExtentKind, VolumeCapabilities
from vmferry.testing.memory import PIECE, MemoryDisk, MemoryDriver, MemoryVolume
from vmferry.testing.volume import VolumeConformance

pytest_plugins = ("pytester",)

Broken = type[MemoryVolume] | type[MemoryDriver]


class LosesTheLastSector(MemoryVolume):
    async def write(self, offset, data):
        if offset + data.nbytes == self.geometry.size:
            data = data[:-512]
        await super().write(offset, data)


class ReadsShort(MemoryVolume):
    async def read_into(self, offset, buffer):
        await super().read_into(offset, buffer[:65536])


class IsOffByASector(MemoryVolume):
    """Reads what it wrote, though all of it is in the wrong place."""

    async def read_into(self, offset, buffer):
        await super().read_into(self._moved(offset, buffer.nbytes), buffer)

    async def write(self, offset, data):
        await super().write(self._moved(offset, data.nbytes), data)

    def _moved(self, offset, length):
        return offset + 512 if 0 < offset < self.geometry.size - length - 512 else offset


class ZeroesWholePiecesOnly(MemoryVolume):
    async def write_zeroes(self, offset, length, *, unmap=True):
        await super().discard(offset, length)


class ZeroesOnlyByUnmapping(MemoryVolume):
    async def write_zeroes(self, offset, length, *, unmap=True):
        if unmap:
            await super().write_zeroes(offset, length)


class DiscardsTheNeighbour(MemoryVolume):
    async def discard(self, offset, length):
        start = offset // PIECE * PIECE
        await super().discard(offset, length)
        self._disk.zero(start, offset + length - start)


class KeepsBuffers(MemoryVolume):
    kept: tuple[int, memoryview] | None = None

    async def write(self, offset, data):
        await super().write(offset, data)
        self.kept = offset, data

    async def flush(self):
        if self.kept:
            await super().write(*self.kept)
        await super().flush()


class AnswersBeforeItWrites(MemoryVolume):
    queued: tuple[tuple[int, memoryview], ...] = ()

    async def write(self, offset, data):
        self._check_open()
        await self._catch_up()
        self.queued += ((offset, data),)

    async def flush(self):
        await self._catch_up()
        await super().flush()

    async def _catch_up(self):
        queued, self.queued = self.queued, ()
        for offset, data in queued:
            await super().write(offset, data)


class WritesOnWhenCancelled(MemoryVolume):
    async def write(self, offset, data):
        await asyncio.shield(asyncio.ensure_future(self._late(offset, data)))

    async def _late(self, offset, data):
        await asyncio.sleep(0.002)
        await super().write(offset, data)


class ReadsOnWhenCancelled(MemoryVolume):
    async def read_into(self, offset, buffer):
        await asyncio.shield(asyncio.ensure_future(self._late(offset, buffer)))

    async def _late(self, offset, buffer):
        await asyncio.sleep(0.002)
        await super().read_into(offset, buffer)


class FlushesNothing(MemoryVolume):
    async def flush(self):
        await asyncio.sleep(0)


class ForgetsTheBounds(MemoryVolume):
    async def write(self, offset, data):
        size = self.geometry.size
        self._disk.write(max(0, min(offset, size - data.nbytes)), data[:size])


class RoundsWritesDown(MemoryVolume):
    async def write(self, offset, data):
        await super().write(offset - offset % 512, data[: data.nbytes - data.nbytes % 512])


class IsNotLocked(MemoryVolume):
    def __init__(self, location, disk, access):
        super().__init__(location, disk, access)
        disk.writer = None


class IsNeverUnlocked(MemoryVolume):
    async def unlock(self):
        if not self._open:
            await super().unlock()


class TakesTheLockAlong(MemoryVolume):
    """Its close, after ``unlock``, takes the lock from whoever has it now."""

    async def close(self):
        await super().close()
        self._disk.writer = None


class CallsDataAHole(MemoryVolume):
    async def extents(self, offset, length):
        if length:
            yield Extent(offset, length, ExtentKind.HOLE)


class LeavesAGap(MemoryVolume):
    async def extents(self, offset, length):
        async for extent in super().extents(offset, length):
            if extent.offset + extent.length < self.geometry.size or extent.length > PIECE:
                yield extent


class SplitsExtents(MemoryVolume):
    async def extents(self, offset, length):
        async for extent in super().extents(offset, length):
            half = extent.length // 2
            yield Extent(extent.offset, half, extent.kind)
            yield Extent(extent.offset + half, extent.length - half, extent.kind)


class KnowsNoHoles(MemoryVolume):
    async def extents(self, offset, length):
        if length:
            yield Extent(offset, length, ExtentKind.DATA)


class ClosesTooSoon(MemoryVolume):
    async def close(self):
        self._idle.set()
        await super().close()


class WorksAfterClose(MemoryVolume):
    def _check_open(self):
        return


class WritesWhenOpenForReading(MemoryVolume):
    def __init__(self, location, disk, access):
        super().__init__(location, disk, access)
        self._access = Access.WRITE


class RemembersWhatItRead(MemoryVolume):
    cache: bytes | None = None

    async def read_into(self, offset, buffer):
        await super().read_into(offset, buffer)
        if self._access is Access.READ and buffer.nbytes == self.geometry.size:
            self.cache = self.cache or bytes(buffer)
            buffer[:] = self.cache


class StumblesAfterADiscard(MemoryVolume):
    """Right in each request alone: the first write after a discard loses its end."""

    stumbling = False

    async def discard(self, offset, length):
        await super().discard(offset, length)
        self.stumbling = True

    async def write(self, offset, data):
        if self.stumbling and data.nbytes > 512:
            data = data[:-512]
        self.stumbling = False
        await super().write(offset, data)


class Overwrites(MemoryDriver):
    async def create(self, location, geometry):
        self.disks.pop(location, None)
        return await super().create(location, geometry)


class LeavesHalfADisk(MemoryDriver):
    async def create(self, location, geometry):
        volume = await super().create(location, geometry)
        await asyncio.sleep(0)
        return volume


class LeavesALock(MemoryDriver):
    async def open(self, location, access):
        volume = await super().open(location, access)
        await asyncio.sleep(0)
        return volume


class ChecksByCreating(MemoryDriver):
    async def check_create(self, location, geometry):
        await super().check_create(location, geometry)
        self.disks[location] = MemoryDisk(geometry)


class TakesHalfSectors(MemoryDriver):
    async def check_create(self, location, geometry):
        return


class HasOldBytes(MemoryDriver):
    async def create(self, location, geometry):
        volume = await super().create(location, geometry)
        volume._disk.write(geometry.size - 512, b"\x01" * 512)
        return volume


class RemovesNothing(MemoryDriver):
    async def remove(self, location):
        return


FAULTS: list[tuple[Broken, str, dict[str, Any]]] = [
    (LosesTheLastSector, "test_write", {"number": 1}),
    (ReadsShort, "test_read", {"number": 2}),
    (IsOffByASector, "test_write", {"number": 3}),
    (ZeroesWholePiecesOnly, "test_zeroes", {"number": 4, "unmap": True}),
    (ZeroesOnlyByUnmapping, "test_zeroes", {"number": 0, "unmap": False}),
    (DiscardsTheNeighbour, "test_discard", {"number": 3}),
    (KeepsBuffers, "test_buffer_of_a_write", {"length": 4096}),
    (AnswersBeforeItWrites, "test_many_writes_share_a_buffer", {}),
    (WritesOnWhenCancelled, "test_cancelled_write", {"length": 4096, "turns": 1}),
    (ReadsOnWhenCancelled, "test_cancelled_read", {"length": 4096, "turns": 1}),
    (FlushesNothing, "test_durable_after_flush", {}),
    (ForgetsTheBounds, "test_out_of_bounds", {"kind": "write"}),
    (RoundsWritesDown, "test_out_of_bounds", {"kind": "write"}),
    (IsNotLocked, "test_one_writer", {}),
    (IsNeverUnlocked, "test_unlock", {}),
    (TakesTheLockAlong, "test_unlock", {}),
    (CallsDataAHole, "test_extents", {"number": 0}),
    (LeavesAGap, "test_extents", {"number": 1}),
    (SplitsExtents, "test_extents", {"number": 2}),
    (KnowsNoHoles, "test_holes_are_told", {}),
    (ClosesTooSoon, "test_close_finishes_requests", {}),
    (WorksAfterClose, "test_close_twice_and_use_after", {}),
    (WritesWhenOpenForReading, "test_reader_cannot_write", {}),
    (RemembersWhatItRead, "test_reader_sees_a_writer", {}),
    (StumblesAfterADiscard, "test_behaves_like_a_bytearray", {}),
    (Overwrites, "test_create_does_not_overwrite", {}),
    (LeavesHalfADisk, "test_cancelled_create", {"turns": 1}),
    (LeavesALock, "test_cancelled_open", {"turns": 1}),
    (ChecksByCreating, "test_check_create_changes_nothing", {}),
    (TakesHalfSectors, "test_impossible_geometry", {}),
    (HasOldBytes, "test_made_disk_is_as_asked", {}),
    (RemovesNothing, "test_remove", {}),
]


class Kit(VolumeConformance):
    """The kit over one driver, its tests called by name."""

    def __init__(self, driver: MemoryDriver) -> None:
        self.under_test = driver

    def read_raw(self, location, offset, length):
        return self.under_test.disks[location].read(offset, length)

    def crash(self, location):
        self.under_test.disks[location].crash()
        return True

    async def run(self, test, arguments):
        await getattr(self, test)(self.under_test, "disk0", **arguments)


def driver_of(broken: Broken) -> MemoryDriver:
    if issubclass(broken, MemoryDriver):
        return broken()
    return type("Driver", (MemoryDriver,), {"volume_type": broken})()


def _id(value):
    return value.__name__ if isinstance(value, type) else ""


@pytest.mark.mutant
@pytest.mark.parametrize(("broken", "test", "arguments"), FAULTS, ids=_id)
async def test_fault_is_found(broken, test, arguments):
    with pytest.raises(pytest.fail.Exception, match=r'vmferry\.api\.\w+ says: "'):
        await Kit(driver_of(broken)).run(test, arguments)


@pytest.mark.parametrize(
    ("test", "arguments"), [fault[1:] for fault in FAULTS], ids=[fault[1] for fault in FAULTS]
)
async def test_sound_volume_passes(test, arguments):
    await Kit(MemoryDriver()).run(test, arguments)


class NoHoles(MemoryDriver):
    capabilities = VolumeCapabilities(holes=Grade.NONE)


async def test_what_a_driver_cannot_do_is_skipped_aloud():
    with pytest.raises(pytest.skip.Exception, match=r"NoHoles.capabilities.holes is NONE"):
        await Kit(NoHoles()).run("test_holes_are_told", {})


THIRD_PARTY = """
    import pytest
    from vmferry.testing.memory import MemoryDriver, MemoryVolume
    from vmferry.testing.volume import VolumeConformance

    class Forgetful(MemoryVolume):
        async def write(self, offset, data):
            await super().write(offset, data[:-512])

    class ForgetfulDriver(MemoryDriver):
        volume_type = Forgetful

    class TestForgetful(VolumeConformance):
        @pytest.fixture
        def driver(self):
            self.made_driver = ForgetfulDriver()
            return self.made_driver

        @pytest.fixture
        def location(self):
            return "disk0"

        def read_raw(self, location, offset, length):
            return self.made_driver.disks[location].read(offset, length)
"""


def test_third_party_file_is_run_as_it_stands(pytester):
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(THIRD_PARTY)
    result = pytester.runpytest_inprocess(
        "-p", "no:cacheprovider", "-rs", "-k", "test_write or flush or missing"
    )
    result.assert_outcomes(
        passed=1, failed=8, skipped=1, deselected=result.parseoutcomes()["deselected"]
    )
    result.stdout.fnmatch_lines(
        ['*vmferry.api.volume says: "on return every later read sees it"', "SKIPPED*crash()*"]
    )


def test_memory_implementations_want_no_test_library():
    code = (
        "import sys, vmferry.testing.memory, vmferry.testing.memory_tracker\n"
        "print(sorted({'pytest', 'hypothesis', 'pytest_asyncio'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
