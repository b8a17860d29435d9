"""The tracker plugin of a simulated host, in right variants and in wrong ones."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Mapping
from random import Random
from typing import Annotated

import msgspec

from vmferry.api.guest import Disk
from vmferry.api.plugin import NoOptions
from vmferry.api.tracker import Tracker
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry.simulation.backend import SimBackend
from vmferry.simulation.process import SimProcess
from vmferry.simulation.table import Kind

__all__ = ["Mistake", "SimTracker", "Style", "TrackerParameters"]


class Style(enum.StrEnum):
    """When a write is marked. All of them are right."""

    BOTH = "both"
    """At dispatch and again at completion."""
    COMPLETION = "completion"
    """At completion, before the guest is told."""
    BARRIER = "barrier"
    """At dispatch; ``start`` and ``harvest`` wait for the writes in flight at the swap."""


class Mistake(enum.Enum):
    """What a wrong tracker does wrong."""

    NONE = "none"
    NO_BARRIER = "marks at dispatch and waits for nothing"
    LATE_CLEAR = "clears the map a while after it was read"
    FORGETS_OVERFLOW = "marks nothing more when its record is full"
    NO_DRAIN = "drain waits for nothing"
    IGNORES_ZEROES = "does not take zeroes and discards for writes"
    FIRST_BLOCK_ONLY = "marks the first block of a write only"


class TrackerParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a tracker is like.

    Attributes:
        style: when writes are marked.
        unit: smallest block it can track; a power of two.
        capacity: marks until it takes everything for dirty; 0 is no limit.
        delay: longest time that ``start``, ``harvest`` and ``stop`` take, in seconds.
        spurious: chance that a harvest has more in it than was written.
        mistake: what it does wrong.

    """

    style: Style = Style.BOTH
    unit: int = 512
    capacity: int = 0
    delay: Annotated[float, msgspec.Meta(ge=0)] = 0.005
    spurious: float = 0.1
    mistake: Mistake = Mistake.NONE


class SimTracker(Tracker[NoOptions]):
    """Tracks one disk of a guest on its host, whatever the disk is attached to."""

    api_version = 1
    name = "sim"
    summary = "dirty tracking within a simulation"

    def __init__(
        self,
        backends: Mapping[str, SimBackend],
        process: SimProcess,
        random: Random,
        parameters: TrackerParameters,
    ) -> None:
        super().__init__()
        self._backends, self._process = backends, process
        self._random, self._parameters = random, parameters
        self._backend: SimBackend | None = None
        self._map = DirtyMap(512, 512)
        self._marks = 0

    def _wrong(self, mistake: Mistake) -> bool:
        return self._parameters.mistake is mistake

    async def _pause(self) -> None:
        self._process.check()
        await asyncio.sleep(self._random.random() * self._parameters.delay)
        self._process.check()

    async def start(self, disk: Disk, block_size: int) -> int:
        """Watch the disk's backend."""
        await self._pause()
        if disk.name not in self._backends:
            raise TrackerError(f"no guest has a disk {disk.name} on {self._process.host}")
        used = max(block_size, self._parameters.unit)
        self._map, self._marks = DirtyMap(disk.size, used), 0
        self._backend = self._backends[disk.name]
        self._backend.observers.append(self)
        self._process.at_death(self._detach)
        await self._barrier()
        await self._pause()
        return used

    async def _barrier(self) -> None:
        needed = self._parameters.style is Style.BARRIER and not self._wrong(Mistake.NO_BARRIER)
        if needed and self._backend and (tasks := self._backend.under_way()):
            await asyncio.wait(tasks)

    def dispatched(self, kind: Kind, offset: int, length: int) -> None:
        """Mark, unless only completions count."""
        if self._parameters.style is not Style.COMPLETION:
            self._mark(kind, offset, length)

    def completed(self, kind: Kind, offset: int, length: int) -> None:
        """Mark, unless a barrier makes up for it."""
        if self._parameters.style is not Style.BARRIER and not self._wrong(Mistake.NO_BARRIER):
            self._mark(kind, offset, length)

    def _mark(self, kind: Kind, offset: int, length: int) -> None:
        self._marks += 1
        if self._wrong(Mistake.IGNORES_ZEROES) and kind is not Kind.WRITE:
            return
        if self._wrong(Mistake.FIRST_BLOCK_ONLY):
            length = min(length, 512)
        if not self._parameters.capacity or self._marks <= self._parameters.capacity:
            self._map.mark(offset, length)
        elif not self._wrong(Mistake.FORGETS_OVERFLOW):
            self._map.mark_all()

    async def harvest(self) -> DirtyMap:
        """Swap the map, and wait for the writes in flight if it is the kind that must."""
        await self._pause()
        if self._wrong(Mistake.LATE_CLEAR):
            return await self._harvest_wrongly()
        taken, self._marks = self._map.take(), 0
        try:
            await self._barrier()
        except asyncio.CancelledError:
            self._map.update(taken)
            raise
        if self._random.random() < self._parameters.spurious:
            taken.mark(self._random.randrange(taken.size // 512) * 512, 512)
        return taken

    async def _harvest_wrongly(self) -> DirtyMap:
        seen = self._map.copy()
        await self._pause()
        self._map.clear_all()
        return seen

    async def drain(self) -> None:
        """Wait for the backend's writes, those on the ring included."""
        await self._pause()
        if self._backend and not self._wrong(Mistake.NO_DRAIN):
            await self._backend.idle(writes_only=True)

    async def stop(self) -> None:
        """Watch no more."""
        self._detach()
        await asyncio.sleep(0)

    def _detach(self) -> None:
        if self._backend and self in self._backend.observers:
            self._backend.observers.remove(self)
        self._backend = None
