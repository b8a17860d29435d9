"""``TrackerConformance``: subclass it to test a tracker plugin against its contract.

Give it one fixture, ``rig``: a ``TrackerRig`` of yours that was not opened::

    class TestFloppyTracker(TrackerConformance):
        @pytest.fixture
        def rig(self, tmp_path):
            return FloppyRig(tmp_path)

A rig plays the guest and reads the disk below the tracker, so that lost writes show as what they
are: a copy that differs from its disk.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest

from vmferry.api.findings import Severity
from vmferry.api.plugin import API_VERSION, Grade
from vmferry.api.tracker import TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry.testing.checks import check, check_same, pattern, refuses
from vmferry.testing.tracker_machine import TrackerModel
from vmferry.testing.tracker_rig import BusyGuest, Spot, TrackerRig, copy_blocks

__all__ = ["TrackerConformance", "TrackerRig"]

_LATER = "every write the guest is told has completed is in some later harvest."
_FORGETS = "``harvest`` returns what was written and forgets it, atomically."
_NEVER_LACK = "They never lack one that was."
_CANCELLED = "If the call is cancelled or fails, the blocks are in the next harvest."
_INVARIANT = (
    "no write acknowledged to the guest exists whose bit is clear and whose data has not been "
    "transferred."
)
_DRAINED = "Writes in flight have by then reached the disk and are in the next harvest."
_COMPLETE = (
    "``drain`` followed by ``harvest`` after the guest was suspended is complete: "
    "no write lands later."
)
_COUNT = "Writes, zeroes and discards all count as writes."


@pytest.mark.asyncio
class TrackerConformance(TrackerModel):
    """The contract of ``vmferry.api.tracker`` as tests.

    Attributes:
        block_size: bytes; what the tracker is asked for.
        rounds: harvests taken while the guest is busy; more find rarer races.

    """

    block_size: ClassVar[int] = 4096
    rounds: ClassVar[int] = 20

    @pytest.fixture
    def rig(self) -> TrackerRig:
        """The rig under test, not opened."""
        raise NotImplementedError("give a fixture `rig` that returns your TrackerRig")

    async def begin(self, rig: TrackerRig) -> int:
        """Start the tracker; returns the block size that it uses."""
        return await rig.tracker.start(rig.disk, self.block_size)

    def spots(self, rig: TrackerRig, block: int) -> list[Spot]:
        """Where trackers forget: both ends, a partial last block, borders, one sector, all."""
        size, sector = rig.disk.size, rig.disk.sector_size
        return [
            (0, sector),
            (size - sector, sector),
            (block - sector, 2 * sector),
            (3 * block, block),
            (5 * block + sector, 2 * block),
            (8 * block, 8 * block),
            ((size - sector) // block * block - sector, 2 * sector),
            (0, size),
        ]

    async def test_says_what_it_is(self, rig: TrackerRig) -> None:
        """The class attributes that every plugin has."""
        async with rig:
            kind = type(rig.tracker)
            check(
                kind.api_version in {API_VERSION, API_VERSION - 1},
                "api_version: the contract version the plugin was written for",
                f"api_version is {kind.api_version!r}",
            )
            check(
                kind.name and isinstance(kind.capabilities, TrackerCapabilities),
                "capabilities: what the plugin can do beyond the required core.",
                f"name {kind.name!r}, capabilities {kind.capabilities!r}",
            )

    async def test_check_finds_a_good_disk_good(self, rig: TrackerRig) -> None:
        """No error is found, also the second time, and it can then be started."""
        says = "Reasons why ``start`` would fail; changes nothing."
        async with rig:
            for _ in range(2):
                found = await rig.tracker.check(rig.disk, self.block_size)
                errors = [finding for finding in found if finding.severity is Severity.ERROR]
                check(not errors, says, f"check found {errors}")
            await self.begin(rig)

    async def test_disk_that_cannot_be_tracked(self, rig: TrackerRig) -> None:
        """A failed start says so, and does not hinder the next."""
        async with rig:
            with refuses(TrackerError, "TrackerError: the disk cannot be tracked"):
                await rig.tracker.start(rig.unknown_disk(), self.block_size)
            await self.begin(rig)
            await self._write_is_found(rig, (0, rig.disk.sector_size))

    @pytest.mark.parametrize("asked", [4096, 65536, 1 << 20])
    async def test_block_size(self, rig: TrackerRig, asked: int) -> None:
        """What start returns is what harvests have, and no smaller than asked."""
        async with rig:
            block = await rig.tracker.start(rig.disk, asked)
            check(
                block >= asked and not block & (block - 1),
                "Returns the block size that is really used, which may be larger",
                f"{asked} bytes were asked for and {block} are used",
            )
            dirty = await rig.tracker.harvest()
            check(
                (dirty.size, dirty.block_size) == (rig.disk.size, block),
                "The map has the disk's size and the block size that ``start`` returned",
                f"the map has {dirty.size} bytes in blocks of {dirty.block_size}",
            )
            await self._write_is_found(rig, (rig.disk.size - 512, 512))

    async def _write_is_found(self, rig: TrackerRig, spot: Spot) -> None:
        offset, length = spot
        await rig.guest_write(offset, pattern(length, 3))
        dirty = await rig.tracker.harvest()
        check(dirty.all(offset, length), _NEVER_LACK, f"{length} bytes at {offset} are missing")

    @pytest.mark.parametrize("number", range(8))
    async def test_write_is_harvested(self, rig: TrackerRig, number: int) -> None:
        """Every block that a write touches is in the next harvest."""
        async with rig:
            block = await self.begin(rig)
            await self._write_is_found(rig, self.spots(rig, block)[number])

    @pytest.mark.parametrize("kind", ["guest_zero", "guest_discard"])
    @pytest.mark.parametrize("number", range(8))
    async def test_zeroes_and_discards_count(self, rig: TrackerRig, number: int, kind: str) -> None:
        """Every block that a zeroing or a discard touches is in the next harvest."""
        async with rig:
            block = await self.begin(rig)
            offset, length = self.spots(rig, block)[number]
            await rig.guest_write(0, pattern(rig.disk.size, 3))
            await rig.tracker.harvest()
            await getattr(rig, kind)(offset, length)
            dirty = await rig.tracker.harvest()
            said = f"{kind} of {length} bytes at {offset} is missing"
            check(dirty.all(offset, length), _COUNT, said)

    async def test_discard_is_exact(self, rig: TrackerRig) -> None:
        """A small discard does not make everything dirty."""
        async with rig:
            if rig.tracker.capabilities.discards is not Grade.NATIVE:
                pytest.skip(f"{type(rig.tracker).__name__}.capabilities.discards is not NATIVE")
            block = await self.begin(rig)
            await self._quiet(rig)
            await rig.guest_discard(4 * block, block)
            dirty = await rig.tracker.harvest()
            says = "discards: tracks discards exactly, rather than as far too much."
            many = dirty.count()
            check(many <= 8, says, f"one block was discarded and {many} are dirty")

    async def _quiet(self, rig: TrackerRig) -> DirtyMap:
        """The third harvest in which the guest writes nothing."""
        for _ in range(2):
            await rig.tracker.harvest()
        return await rig.tracker.harvest()

    async def test_harvest_forgets(self, rig: TrackerRig) -> None:
        """When the guest writes nothing, what was harvested does not come again and again."""
        async with rig:
            await self.begin(rig)
            await rig.guest_write(0, pattern(rig.disk.size))
            await rig.tracker.harvest()
            left = (await self._quiet(rig)).count()
            check(not left, _FORGETS, f"{left} blocks are still there")

    async def test_map_is_the_callers(self, rig: TrackerRig) -> None:
        """What the caller does to a harvested map is nothing to the tracker."""
        async with rig:
            block = await self.begin(rig)
            taken = await rig.tracker.harvest()
            taken.mark_all()
            await rig.guest_write(0, pattern(block))
            taken.clear_all()
            dirty = await rig.tracker.harvest()
            says = "it is the caller's."
            check(dirty.any(0, block), says, "clearing an older map cleared the tracker's")
            await self._quiet(rig)
            dirty.mark_all()
            left = (await rig.tracker.harvest()).count()
            check(not left, says, "marking an older map marked the tracker's")

    @pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 40])
    async def test_cancelled_harvest(self, rig: TrackerRig, turns: int) -> None:
        """What a cancelled harvest would have returned is in the next one."""
        async with rig:
            block = await self.begin(rig)
            await rig.tracker.harvest()
            await rig.guest_write(block, pattern(block))
            harvest = asyncio.create_task(rig.tracker.harvest())
            for _ in range(turns):
                await asyncio.sleep(0)
            if not harvest.cancel():
                check(harvest.result().all(block, block), _LATER, "a plain harvest lacks it")
                return
            await asyncio.wait([harvest])
            dirty = await rig.tracker.harvest()
            check(dirty.all(block, block), _CANCELLED, f"after {turns} turns it is in neither")

    async def test_nothing_acknowledged_is_missing(self, rig: TrackerRig) -> None:
        """With a busy guest, all harvests together hold every acknowledged write."""
        async with rig:
            block = await self.begin(rig)
            union = DirtyMap(rig.disk.size, block)
            async with BusyGuest(rig).running() as guest:
                for _ in range(self.rounds):
                    await guest.more(4)
                    union |= await rig.tracker.harvest()
            await rig.tracker.drain()
            union |= await rig.tracker.harvest()
            lost = [spot for spot in guest.acknowledged if not union.all(*spot)]
            check(not lost, _LATER, f"in no harvest: {lost[:5]}")

    async def test_acknowledged_is_in_a_later_harvest(self, rig: TrackerRig) -> None:
        """Each write is in a harvest that was asked for after it was acknowledged, or before."""
        async with rig:
            block = await self.begin(rig)
            for number in range(self.rounds):
                offset = number * block
                writing = asyncio.create_task(rig.guest_write(offset, pattern(block)))
                early = await rig.tracker.harvest()
                landed = rig.read_raw(offset, block) == pattern(block)
                await writing
                late = await rig.tracker.harvest()
                found = late.any(offset, block) or (early.any(offset, block) and landed)
                said = f"a write at {offset} that landed after its harvest is in no later one"
                check(found, _INVARIANT, said)

    @pytest.mark.parametrize("asked", [4096, 65536])
    async def test_copy_equals_disk(self, rig: TrackerRig, asked: int) -> None:
        """A migration: start under load, copy, harvest and copy in rounds, drain, the last one."""
        async with rig:
            async with BusyGuest(rig, seed=asked).running() as guest:
                await guest.more(8)
                async with asyncio.timeout(30):
                    await rig.tracker.start(rig.disk, asked)
                copy = bytearray(rig.read_raw(0, rig.disk.size))
                for _ in range(self.rounds):
                    await guest.more(6)
                    copy_blocks(rig, await rig.tracker.harvest(), copy)
            await rig.tracker.drain()
            copy_blocks(rig, await rig.tracker.harvest(), copy)
            check_same(copy, rig.read_raw(0, rig.disk.size), _INVARIANT)

    @pytest.mark.parametrize("turns", range(6))
    async def test_writes_in_flight_at_start(self, rig: TrackerRig, turns: int) -> None:
        """What was submitted before start is on the disk when it returns, or is harvested."""
        says = "Writes in flight while tracking starts are the trap"
        async with rig:
            data = pattern(8 * self.block_size)
            writing = asyncio.create_task(rig.guest_write(0, data))
            for _ in range(turns):
                await asyncio.sleep(0)
            await self.begin(rig)
            copy = bytearray(rig.read_raw(0, len(data)))
            await writing
            dirty = await rig.tracker.harvest()
            found = bytes(copy) == data or dirty.all(0, len(data))
            check(found, says, "it landed after start, and is in no harvest")

    @pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
    async def test_drain(self, rig: TrackerRig, turns: int) -> None:
        """After drain, what was in flight is on the disk and in the harvest; nothing follows."""
        async with rig:
            if rig.in_flight() is None:
                pytest.skip(f"{type(rig).__name__}.in_flight cannot tell what is in flight")
            block = await self.begin(rig)
            length = 2 * block
            async with asyncio.TaskGroup() as group:
                for place in range(0, 8 * length, length):
                    group.create_task(rig.guest_write(place, pattern(length, place)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                flying = rig.in_flight() or []
                async with asyncio.timeout(30):
                    await rig.tracker.drain()
                landed = rig.read_raw(0, 8 * length)
                dirty = await rig.tracker.harvest()
            after = rig.read_raw(0, 8 * length)
        for place, size in flying:
            there = landed[place : place + size]
            check_same(there, pattern(size, place), _DRAINED, place)
            check(dirty.all(place, size), _DRAINED, f"the write at {place} is not in the harvest")
            check_same(after[place : place + size], there, _COMPLETE, place)

    async def test_lost_track_is_everything(self, rig: TrackerRig) -> None:
        """A tracker that lost events says that all is dirty."""
        says = 'returns "everything", never "nothing".'
        async with rig:
            await self.begin(rig)
            await self._quiet(rig)
            if not await rig.lose_track():
                pytest.skip(f"{type(rig).__name__}.lose_track: there is no way to lose events")
            dirty = await rig.tracker.harvest()
            check(dirty.all(0, rig.disk.size), says, f"{dirty.count()} blocks are dirty")

    async def test_stop(self, rig: TrackerRig) -> None:
        """Before start, twice, and with a guest that writes on undisturbed."""
        says = "The guest's I/O goes on undisturbed."
        async with rig:
            await rig.tracker.stop()
            await self.begin(rig)
            data = pattern(rig.disk.size)
            async with BusyGuest(rig).running() as guest:
                await guest.more(8)
                for _ in range(2):
                    await rig.tracker.stop()
                await guest.more(8)
            await rig.guest_write(0, data)
            check_same(rig.read_raw(0, len(data)), data, says)

    async def test_starts_again(self, rig: TrackerRig) -> None:
        """After a stop it starts as at first, also with other blocks."""
        async with rig:
            for asked in (self.block_size, 8 * self.block_size):
                block = await rig.tracker.start(rig.disk, asked)
                await rig.guest_write(block, pattern(block))
                dirty = await rig.tracker.harvest()
                check(dirty.all(block, block), _LATER, "a write after starting again is missing")
                await rig.tracker.stop()
