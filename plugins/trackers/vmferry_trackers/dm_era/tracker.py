"""The ``dm-era`` tracker.

The era target marks a write when it is mapped, and forgets when it ends. So each harvest has a
barrier: the device is suspended, which waits for what is in flight, and resumed. What was written
before it has landed; what is written after it belongs to the era that began with the resume, and
that era is asked for again by the next harvest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

import msgspec
import numpy as np

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.api.plugin import Grade, Options
from vmferry.api.tracker import Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError, VmferryError
from vmferry.units import MIB, TIB, format_size
from vmferry_support.outlast import finished
from vmferry_trackers.dm_era.metadata import fitting_block_size, metadata_bytes
from vmferry_trackers.dm_era.needs import find_stack, needs
from vmferry_trackers.dm_era.stack import EraStack
from vmferry_trackers.dm_era.tools import EraTools, Ranges

__all__ = ["DmEraOptions", "DmEraTracker"]

_LARGEST_BLOCK = 16 * MIB
_T = TypeVar("_T")


class DmEraOptions(Options, frozen=True, kw_only=True):
    """Where the ``dm-era`` tracker keeps its metadata, and what it does with discards."""

    state_dir: Annotated[
        str,
        msgspec.Meta(
            min_length=1,
            description="folder for the file with the era metadata, which is flushed at the first "
            "write to a block in each round: best in memory",
        ),
    ] = "/run/vmferry/dm-era"
    max_metadata: Annotated[
        int,
        msgspec.Meta(
            ge=8 * MIB,
            le=TIB,
            description="most metadata for a disk; larger blocks are used when that is not enough",
            extra={"unit": "bytes"},
        ),
    ] = 256 * MIB
    discards: Annotated[
        Literal["split", "forbid"],
        msgspec.Meta(
            description="cut the guest's discards into pieces that the era target marks rightly "
            "(refuse them where the disk's pieces are not aligned), or refuse them in any case"
        ),
    ] = "split"
    timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for the list of written blocks to be read",
            extra={"unit": "seconds"},
        ),
    ] = 120.0


class DmEraTracker(Tracker[DmEraOptions]):
    """Tracks a disk on a device-mapper device: fact ``devno`` or ``device``, or location.

    The record is on the metadata device. It outlives the process, but nothing takes it up again:
    what was left behind is removed at the next start.
    """

    api_version = 1
    name = "dm-era"
    summary = "device-mapper's era target, put below the guest's logical volume while it runs"
    options_type = DmEraOptions
    capabilities: ClassVar[TrackerCapabilities] = TrackerCapabilities(
        live=Grade.NATIVE, discards=Grade.NATIVE, survives=Grade.NONE
    )
    options: DmEraOptions

    def __init__(self, options: DmEraOptions | None = None) -> None:
        super().__init__(options)
        self._stack: EraStack | None = None
        self._turn = asyncio.Lock()
        self._size = self._block_size = 0
        self._since = 0
        self._drained = False

    async def check(self, disk: Disk, block_size: int) -> Sequence[Finding]:
        """Not device-mapper, targets that cannot be doubled, programs, kernel, room."""
        used = self._fitting(disk, block_size)
        room = metadata_bytes(disk.size, used)
        found = await needs(disk, self._state_dir(), room)
        if used > max(block_size, 4096):
            found.append(_coarser(disk, block_size, used, self.options.max_metadata))
        return found

    async def start(self, disk: Disk, block_size: int) -> int:
        """Put the era target in. What an earlier process left there is removed first."""
        await self.stop()
        used = self._fitting(disk, block_size)
        if used > max(block_size, _LARGEST_BLOCK):
            raise TrackerError(
                f"disk {disk.name!r}: {format_size(self.options.max_metadata)} of metadata are "
                "not enough; raise the option max_metadata"
            )
        async with self._turn:
            await self._trying(lambda: self._begin(disk, used))
        return used

    async def _begin(self, disk: Disk, block_size: int) -> None:
        self._tools = await EraTools.probe()
        stack = await find_stack(disk, self._state_dir())
        await finished(stack.insert(block_size, split_discards=self.options.discards == "split"))
        self._stack = stack
        self._size, self._block_size = disk.size, block_size
        self._drained = False
        self._since = (await stack.status()).era

    async def harvest(self) -> DirtyMap:
        """Barrier, snapshot of the metadata, list of blocks, and the snapshot is let go."""
        async with self._turn:
            stack = self._tracked()
            return await self._trying(lambda: self._harvest(stack))

    async def _harvest(self, stack: EraStack) -> DirtyMap:
        if not self._drained:
            await stack.device.barrier()
        status = await stack.status()
        if status.held:  # by an earlier harvest that was cut short; a second is refused
            await stack.device.message("drop_metadata_snap")
        await stack.device.message("take_metadata_snap")
        written = await self._tools.written_since(
            stack.metadata_device, self._since, self.options.timeout
        )
        await stack.device.message("drop_metadata_snap")
        made = await asyncio.to_thread(_map_of, written, self._size, self._block_size)
        self._since, self._drained = status.era, False
        return made

    async def drain(self) -> None:
        """A barrier; the next harvest needs no other one."""
        async with self._turn:
            stack = self._tracked()
            await self._trying(stack.device.barrier)
            self._drained = True

    async def stop(self) -> None:
        """Give the device its own table back and remove the metadata."""
        async with self._turn:
            stack = self._stack
            if stack is not None:
                await self._trying(lambda: finished(stack.remove()))
                self._stack = None

    async def _trying(self, work: Callable[[], Awaitable[_T]]) -> _T:
        try:
            return await work()
        except TrackerError:
            raise
        except (VmferryError, OSError) as error:
            raise TrackerError(f"dm-era: {error}") from error

    def _tracked(self) -> EraStack:
        if self._stack is None:
            raise TrackerError("no disk is tracked: call start first")
        return self._stack

    def _fitting(self, disk: Disk, block_size: int) -> int:
        return fitting_block_size(disk.size, block_size, self.options.max_metadata)

    def _state_dir(self) -> Path:
        return Path(self.options.state_dir)


def _map_of(written: Ranges, size: int, block_size: int) -> DirtyMap:
    made = DirtyMap(size, block_size)
    shift = block_size.bit_length() - 1
    offsets = written.first << shift
    if offsets.size and offsets.max() >= size:
        raise TrackerError(f"era_invalidate lists blocks beyond the disk's {size} bytes")
    made.mark_runs(offsets, np.minimum(written.blocks << shift, size - offsets))
    return made


def _coarser(disk: Disk, asked: int, used: int, limit: int) -> Finding:
    return Finding.info(
        "dm-era-block-size",
        f"disk {disk.name!r}: blocks of {format_size(used)} in place of {format_size(asked)}, "
        f"since its metadata may take {format_size(limit)}",
        "raise the tracker's option max_metadata",
    )
