"""The tracker kit fails trackers broken on purpose, each by the test made for its fault."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.api.volume import Geometry
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry.testing.memory import MemoryDisk
from vmferry.testing.memory_tracker import MemoryBackend, MemoryTracker
from vmferry.testing.tracker import TrackerConformance, TrackerRig
from vmferry.units import MIB

SIZE = 2 * MIB + 512
BLOCK = 4096


class MarksOnce(MemoryTracker):
    """Of the two events of each change, it takes note of one."""

    at_submission: bool

    def __init__(self, **given):
        super().__init__(**given)
        self.seen = []

    def _mark(self, offset, length):
        spot, submitted = (offset, length), (offset, length) not in self.seen
        (self.seen.append if submitted else self.seen.remove)(spot)
        if submitted is self.at_submission:
            super()._mark(offset, length)


class MarksAtSubmissionOnly(MarksOnce):
    """Its harvest has no barrier for the writes in flight."""

    at_submission = True


class NeverForgets(MemoryTracker):
    async def harvest(self):
        return self._tracked().copy()


class ForgetsWithoutTelling(MemoryTracker):
    async def harvest(self):
        self._tracked().clear_all()
        return await super().harvest()


class LosesABitUnderARace(MemoryTracker):
    async def harvest(self):
        taken = self._tracked().copy()
        for _ in range(10):  # longer than a whole request takes
            await asyncio.sleep(0)
        self._tracked().clear_all()
        return taken


class LosesTheOnlyBitUnderARace(LosesABitUnderARace, MarksOnce):
    at_submission = False


class LosesACancelledHarvest(MemoryTracker):
    async def harvest(self):
        taken = self._tracked().take()
        await asyncio.sleep(0)
        return taken


class HandsOutOneMap(MemoryTracker):
    """The same map each time, refilled."""

    async def harvest(self):
        return self._tracked()


class ForgetsThePartialBlock(MemoryTracker):
    def _mark(self, offset, length):
        whole = SIZE // BLOCK * BLOCK
        if offset < whole:
            super()._mark(offset, min(length, whole - offset))


class ForgetsTheSecondBlock(MemoryTracker):
    def _mark(self, offset, length):
        super()._mark(offset, min(length, BLOCK - offset % BLOCK))


class ForgetsBlockZero(MemoryTracker):
    def _mark(self, offset, length):
        if offset:
            super()._mark(offset, length)


class AnswersNothingWhenLost(MemoryTracker):
    def lose_track(self):
        self._tracked().clear_all()


class StartsWithoutWaiting(MarksAtSubmissionOnly):
    async def start(self, disk, block_size):
        self._backend, self._map = self.backends[disk.location], DirtyMap(disk.size, block_size)
        self.seen = list(self._backend.in_flight.values())
        self._backend.watchers.append(self._mark)
        return block_size


class DrainsNothing(MemoryTracker):
    async def drain(self):
        return


class UsesSmallerBlocks(MemoryTracker):
    async def start(self, disk, block_size):
        await super().start(disk, block_size)
        self._map = DirtyMap(disk.size, 512)
        return 512


class SaysAnotherBlockSize(MemoryTracker):
    async def start(self, disk, block_size):
        return 2 * await super().start(disk, block_size)


class TracksAnything(MemoryTracker):
    async def start(self, disk, block_size):
        known = Disk(name="disk0", size=SIZE, location="disk0")
        return await super().start(known, block_size)


class BreaksTheGuestWhenStopped(MemoryTracker):
    async def stop(self):
        was, self._backend = self._backend, None
        self._map = None
        if was:
            was.disk.write = lambda *_: None


class StartsOnce(MemoryTracker):
    started = False

    def _mark(self, offset, length):
        if not self.started:
            super()._mark(offset, length)

    async def stop(self):
        self.started = self._map is not None or self.started
        await super().stop()


class StartsWithAnOldMap(MemoryTracker):
    """A new start with other blocks goes on with a map that marks only some of each change."""

    async def start(self, disk, block_size):
        self.again = getattr(self, "again", 0) + 1
        return await super().start(disk, block_size)

    def _mark(self, offset, length):
        if self.again > 1 and length > BLOCK:
            length = BLOCK
        super()._mark(offset, length)


class FindsFault(MemoryTracker):
    async def check(self, disk, block_size):
        return [Finding.error("no-luck", "not today")]


class DiscardsEverything(MemoryTracker):
    def _mark(self, offset, length):
        if offset == 4 * BLOCK and length == BLOCK:
            self.lose_track()
        super()._mark(offset, length)


class Rig(TrackerRig):
    """A guest in memory, whose requests take some turns of the loop."""

    def __init__(self, tracker: type[MemoryTracker], unseen: str = "", first_only: bool = False):
        self.backend = MemoryBackend(MemoryDisk(Geometry(SIZE)), self._pause)
        self.tracker = tracker(backends={"disk0": self.backend})
        self.disk = Disk(name="disk0", size=SIZE, location="disk0")
        self._unseen, self._first_only = unseen, first_only

    async def _pause(self):
        for _ in range(3):
            await asyncio.sleep(0)

    async def open(self):
        return

    async def close(self):
        return

    async def guest_write(self, offset, data):
        await self.backend.write(offset, data)

    async def guest_zero(self, offset, length):
        await self._change("zero", offset, length)

    async def guest_discard(self, offset, length):
        await self._change("drop", offset, length)

    async def _change(self, kind, offset, length):
        """Let the tracker overlook what the fault says."""
        if self._unseen != kind:
            change = {"zero": self.backend.write_zeroes, "drop": self.backend.discard}[kind]
            await change(offset, length)
            return
        getattr(self.backend.disk, kind)(offset, length)
        if self._first_only:
            for watcher in self.backend.watchers:
                watcher(offset, 512)

    def read_raw(self, offset, length):
        return self.backend.disk.read(offset, length)

    def in_flight(self):
        return list(self.backend.in_flight.values())

    async def lose_track(self):
        self.tracker.lose_track()
        return True


Fault = tuple[type[MemoryTracker], dict[str, Any], str, dict[str, Any]]
FAULTS: dict[str, Fault] = {
    "marks at submission": (MarksAtSubmissionOnly, {}, "test_copy_equals_disk", {"asked": 4096}),
    "marks at submission, one write": (
        MarksAtSubmissionOnly,
        {},
        "test_acknowledged_is_in_a_later_harvest",
        {},
    ),
    "never forgets": (NeverForgets, {}, "test_harvest_forgets", {}),
    "forgets without telling": (
        ForgetsWithoutTelling,
        {},
        "test_write_is_harvested",
        {"number": 3},
    ),
    "bit lost under a race": (LosesABitUnderARace, {}, "test_copy_equals_disk", {"asked": 4096}),
    "only bit lost under a race": (
        LosesTheOnlyBitUnderARace,
        {},
        "test_nothing_acknowledged_is_missing",
        {},
    ),
    "cancelled harvest lost": (LosesACancelledHarvest, {}, "test_cancelled_harvest", {"turns": 1}),
    "hands out its own map": (HandsOutOneMap, {}, "test_map_is_the_callers", {}),
    "partial last block": (ForgetsThePartialBlock, {}, "test_write_is_harvested", {"number": 1}),
    "block border": (ForgetsTheSecondBlock, {}, "test_write_is_harvested", {"number": 2}),
    "first block": (ForgetsBlockZero, {}, "test_write_is_harvested", {"number": 0}),
    "overflow is nothing": (AnswersNothingWhenLost, {}, "test_lost_track_is_everything", {}),
    "start does not wait": (
        StartsWithoutWaiting,
        {},
        "test_writes_in_flight_at_start",
        {"turns": 2},
    ),
    "drain does not wait": (DrainsNothing, {}, "test_drain", {"turns": 2}),
    "smaller blocks": (UsesSmallerBlocks, {}, "test_block_size", {"asked": 4096}),
    "another block size": (SaysAnotherBlockSize, {}, "test_block_size", {"asked": 4096}),
    "tracks anything": (TracksAnything, {}, "test_disk_that_cannot_be_tracked", {}),
    "stop breaks the guest": (BreaksTheGuestWhenStopped, {}, "test_stop", {}),
    "starts once": (StartsOnce, {}, "test_starts_again", {}),
    "check is wrong": (FindsFault, {}, "test_check_finds_a_good_disk_good", {}),
    "discard is everything": (DiscardsEverything, {}, "test_discard_is_exact", {}),
    "bit lost under a race, in a sequence": (
        LosesABitUnderARace,
        {},
        "test_behaves_like_a_set_of_blocks",
        {},
    ),
    "cancelled harvest lost, in a sequence": (
        LosesACancelledHarvest,
        {},
        "test_behaves_like_a_set_of_blocks",
        {},
    ),
    "overflow is nothing, in a sequence": (
        AnswersNothingWhenLost,
        {},
        "test_behaves_like_a_set_of_blocks",
        {},
    ),
    "stale start": (StartsWithAnOldMap, {}, "test_behaves_like_a_set_of_blocks", {}),
    "zeroes unseen": (
        MemoryTracker,
        {"unseen": "zero"},
        "test_zeroes_and_discards_count",
        {"number": 3, "kind": "guest_zero"},
    ),
    "first block of a discard": (
        MemoryTracker,
        {"unseen": "drop", "first_only": True},
        "test_zeroes_and_discards_count",
        {"number": 5, "kind": "guest_discard"},
    ),
}


@pytest.mark.mutant
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_fault_is_found(fault: Fault) -> None:
    tracker, blindness, test, arguments = fault
    with pytest.raises(pytest.fail.Exception, match=r'vmferry\.api\.\w+ says: "'):
        await getattr(TrackerConformance(), test)(Rig(tracker, **blindness), **arguments)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_sound_tracker_passes(fault: Fault) -> None:
    _, _, test, arguments = fault
    await getattr(TrackerConformance(), test)(Rig(MemoryTracker), **arguments)


class CannotTell(Rig):
    def in_flight(self):
        return None

    async def lose_track(self):
        return False


@pytest.mark.parametrize(
    ("test", "arguments"), [("test_drain", {"turns": 1}), ("test_lost_track_is_everything", {})]
)
async def test_what_a_rig_cannot_do_is_skipped_aloud(test: str, arguments: dict[str, int]) -> None:
    with pytest.raises(pytest.skip.Exception, match=r"CannotTell\."):
        await getattr(TrackerConformance(), test)(CannotTell(MemoryTracker), **arguments)


async def test_reference_refuses_to_harvest_before_start() -> None:
    with pytest.raises(TrackerError, match="not started"):
        await MemoryTracker().harvest()
