"""A tracker against a model: the blocks that the next harvest must have, and a copy of the disk."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import pytest

from vmferry.dirtymap import DirtyMap
from vmferry.testing.checks import check, check_same, pattern
from vmferry.testing.machines import Await, run_machine
from vmferry.testing.tracker_rig import Spot, TrackerRig, copy_blocks

__all__ = ["TrackerModel"]

_NEVER_LACK = "They never lack one that was."
_EVERYTHING = 'returns "everything", never "nothing".'
_INVARIANT = (
    "no write acknowledged to the guest exists whose bit is clear and whose data has not been "
    "transferred."
)
_SECTOR = 512


class TrackerModel:
    """The test that hypothesis drives.

    Attributes:
        examples: sequences that are tried.
        steps: requests of each.
        shrink: look for the shortest sequence that fails, which may take minutes.

    """

    examples: ClassVar[int] = 8
    steps: ClassVar[int] = 25
    shrink: ClassVar[bool] = False

    async def test_behaves_like_a_set_of_blocks(self, rig: TrackerRig) -> None:
        """Changes, harvests, cancelled ones, lost events and new starts, in any order."""
        pytest.importorskip("hypothesis", reason="hypothesis is not installed")
        async with rig:
            await run_machine(
                lambda run: _machine(rig, run),
                examples=self.examples,
                steps=self.steps,
                shrink=self.shrink,
            )


class TrackerBesideModel:
    """A tracker, what its next harvest must have, and a copy kept as the engine keeps one."""

    def __init__(self, rig: TrackerRig) -> None:
        self._rig = rig
        self._copy = bytearray()
        self._wanted = DirtyMap(rig.disk.size, _SECTOR)
        self._lost = False

    async def start(self, asked: int) -> None:
        """Begin anew, with a full copy after the start."""
        await self._rig.tracker.stop()
        await self._rig.tracker.start(self._rig.disk, asked)
        self._copy = bytearray(self._rig.read_raw(0, self._rig.disk.size))
        self._wanted.clear_all()
        self._lost = False

    async def change(self, kind: str, spot: Spot, seed: int) -> None:
        """Write, zero or discard, as the guest does."""
        offset, length = spot
        if kind == "write":
            await self._rig.guest_write(offset, pattern(length, seed))
        else:
            await getattr(self._rig, f"guest_{kind}")(offset, length)
        self._wanted.mark(offset, length)

    def _due(self, beside: Spot = (0, 0)) -> list[Spot]:
        """What the next harvest must have: what was changed, and is not what the copy has.

        A write ``beside`` the harvest may put back what the copy has: there nothing is due.
        """
        changed = DirtyMap(self._wanted.size, _SECTOR)
        for offset, length in self._wanted.runs():
            there = self._rig.read_raw(offset, length)
            for place in range(0, length, _SECTOR):
                copied = self._copy[offset + place : offset + place + _SECTOR]
                free = beside[0] <= offset + place < sum(beside)
                if there[place : place + _SECTOR] != copied and not free:
                    changed.mark(offset + place, len(copied))
        return list(changed.runs())

    async def harvest(self) -> None:
        """It has all that is wanted; copy at once."""
        due = self._due()
        self._take(await self._rig.tracker.harvest(), due)

    def _take(self, dirty: DirtyMap, due: list[Spot]) -> None:
        missing = [spot for spot in due if not dirty.all(*spot)]
        check(not missing, _NEVER_LACK, f"offset and length that are missing: {missing[:3]}")
        if self._lost:
            said = f"after events were lost {dirty.count()} blocks are dirty"
            check(dirty.all(0, self._rig.disk.size), _EVERYTHING, said)
        copy_blocks(self._rig, dirty, self._copy)
        self._wanted.clear_all()
        self._lost = False

    async def cancelled_harvest(self, turns: int) -> None:
        """Nothing is forgotten unless it was told."""
        due = self._due()
        harvest = asyncio.ensure_future(self._rig.tracker.harvest())
        for _ in range(turns):
            await asyncio.sleep(0)
        harvest.cancel()
        await asyncio.wait([harvest])
        if not harvest.cancelled():
            self._take(harvest.result(), due)

    async def harvest_beside(self, spot: Spot, seed: int) -> None:
        """A write under way during a harvest is in this one or in the next."""
        due = self._due(spot)
        writing = asyncio.ensure_future(self._rig.guest_write(spot[0], pattern(spot[1], seed)))
        self._take(await self._rig.tracker.harvest(), due)
        await writing

    async def lose(self) -> None:
        """Lose events, where that can be had."""
        self._lost = await self._rig.lose_track() or self._lost

    async def finish(self) -> None:
        """The last harvest makes the copy equal to the disk."""
        try:
            await self._rig.tracker.drain()
            await self.harvest()
            disk = self._rig.read_raw(0, self._rig.disk.size)
            check_same(self._copy, disk, _INVARIANT)
        finally:
            await self._rig.tracker.stop()


def _machine(rig: TrackerRig, run: Await[Any]) -> type:
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

    sector = rig.disk.sector_size
    sectors = rig.disk.size // sector
    firsts = st.sampled_from([0, 7, 8, 127, sectors // 2, sectors - 1]) | st.integers(
        0, sectors - 1
    )
    counts = st.sampled_from([1, 2, 8, 9, 128, sectors]) | st.integers(1, 300)
    seeds, blocks = st.integers(2, 9), st.sampled_from([4096, 65536])

    def spot(first: int, count: int) -> Spot:
        return first * sector, min(count, sectors - first) * sector

    spots = st.builds(spot, firsts, counts)

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.both = TrackerBesideModel(rig)

        @initialize(asked=blocks)
        def begin(self, asked: int) -> None:
            run(self.both.start(asked))

        @rule(kind=st.sampled_from(["write", "write", "zero", "discard"]), spot=spots, seed=seeds)
        def change(self, kind: str, spot: Spot, seed: int) -> None:
            run(self.both.change(kind, spot, seed))

        @rule()
        def harvest(self) -> None:
            run(self.both.harvest())

        @rule(turns=st.integers(0, 3))
        def cancelled_harvest(self, turns: int) -> None:
            run(self.both.cancelled_harvest(turns))

        @rule(spot=spots, seed=seeds)
        def harvest_beside(self, spot: Spot, seed: int) -> None:
            run(self.both.harvest_beside(spot, seed))

        @rule()
        def lose(self) -> None:
            run(self.both.lose())

        @rule(asked=blocks)
        def start_again(self, asked: int) -> None:
            run(self.both.start(asked))

        def teardown(self) -> None:
            run(self.both.finish())

    return Machine
