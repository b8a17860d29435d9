"""The ``blkback`` tracker.

A write is marked when it completes, before the block backend tells the guest. So a harvest needs
no barrier; only the last one must wait for what is still under way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.api.plugin import Grade, Options
from vmferry.api.tracker import Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry.units import MIB, TIB, format_size
from vmferry_support.threads import in_thread
from vmferry_trackers.blkback.device import BlockDevice, find_device
from vmferry_trackers.blkback.needs import kernel_findings
from vmferry_trackers.blkback.record import Record, fitting_block_size
from vmferry_trackers.devices import DeviceError

__all__ = ["BlkbackOptions", "BlkbackTracker"]

_LARGEST_BLOCK = 16 * MIB
_POLL = 0.002
_now = time.monotonic
_SETTLING = 25
"""Looks, of 20 ms, at writes that were under way when tracking of a device-mapper device began."""


class BlkbackOptions(Options, frozen=True, kw_only=True):
    """What the ``blkback`` tracker may use, and how long it waits."""

    max_memory: Annotated[
        int,
        msgspec.Meta(
            ge=MIB,
            le=TIB,
            description="most kernel memory for the two bitmaps of a disk; larger blocks are "
            "used when that is not enough",
            extra={"unit": "bytes"},
        ),
    ] = 256 * MIB
    settle: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=60,
            description="how long no write must be in flight before the device counts as drained; "
            "covers requests that an I/O scheduler holds back",
            extra={"unit": "seconds"},
        ),
    ] = 0.01
    drain_timeout: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=3600,
            description="longest wait for the writes of the suspended guest to end",
            extra={"unit": "seconds"},
        ),
    ] = 30.0


class BlkbackTracker(Tracker[BlkbackOptions]):
    """Tracks a disk on a block device: the fact ``devno`` or ``device``, or else its location.

    The record is the kernel's, but belongs to this process: the kernel discards it when the
    process ends.
    """

    api_version = 1
    name = "blkback"
    summary = "eBPF programs in the kernel mark what is written to the backend's block device"
    options_type = BlkbackOptions
    capabilities: ClassVar[TrackerCapabilities] = TrackerCapabilities(
        live=Grade.NATIVE, discards=Grade.NATIVE, survives=Grade.NONE
    )
    options: BlkbackOptions

    def __init__(self, options: BlkbackOptions | None = None) -> None:
        super().__init__(options)
        self._record: Record | None = None
        self._turn = asyncio.Lock()

    async def check(self, disk: Disk, block_size: int) -> Sequence[Finding]:
        """No such device, one whose writes cannot be followed, rights or kernel features."""
        try:
            device = find_device(disk)
            used = self._block_size(disk, block_size)
        except TrackerError as error:
            remedy = error.remedy if isinstance(error, DeviceError) else ""
            text = error.text if isinstance(error, DeviceError) else str(error)
            return [Finding.error("blkback-device", text, remedy)]
        found = await in_thread(kernel_findings, device)
        if used > block_size:
            found.append(_coarser(disk, block_size, used, self.options.max_memory))
        return found

    async def start(self, disk: Disk, block_size: int) -> int:
        """Load and attach the programs. The blocks may be larger, see the option ``max_memory``."""
        await self.stop()
        used = self._block_size(disk, block_size)
        device = find_device(disk)
        async with self._turn:
            # Before the thread may be cancelled, the record is where ``stop`` finds it.
            await in_thread(self._begin, device, used)
        try:
            await self._settle(device)
        except BaseException:
            await self.stop()
            raise
        return used

    async def harvest(self) -> DirtyMap:
        """Exchange the bitmaps, wait for programs under way, read the one that was retired."""
        async with self._turn:
            record = self._tracked()
            await in_thread(record.collect)
            return record.take()

    async def drain(self) -> None:
        """Wait until, for the time ``settle``, no write was in flight on the device."""
        deadline = _now() + self.options.drain_timeout
        quiet_since: float | None = None
        while True:
            asked = _now()
            if await self._in_flight():
                quiet_since = None
            elif quiet_since is None:
                quiet_since = _now()
            if quiet_since is not None and asked - quiet_since >= self.options.settle:
                return
            if asked > deadline:
                raise TrackerError(
                    f"writes are still in flight after {self.options.drain_timeout:g} s; is the "
                    "guest suspended, and does anybody else write to its disk?"
                )
            await asyncio.sleep(_POLL)

    async def stop(self) -> None:
        """Detach the programs and free the maps."""
        async with self._turn:
            record, self._record = self._record, None
            if record is not None:
                await in_thread(record.close)

    def _begin(self, device: BlockDevice, block_size: int) -> None:
        record = Record(device, block_size)
        try:
            record.attach()
        except BaseException:
            record.close()
            raise
        self._record = record

    async def _settle(self, device: BlockDevice) -> None:
        """Wait a while for writes whose beginning was not seen.

        They make everything dirty when they complete. Those that complete before tracking has
        begun need not: the engine reads the disk later.
        """
        if device.kind.requests:
            return
        for _ in range(_SETTLING):
            if not device.writes_in_flight():
                break
            await asyncio.sleep(0.02)
        self._tracked().forget_loss()

    async def _in_flight(self) -> int:
        async with self._turn:
            return await in_thread(self._tracked().in_flight)

    def _tracked(self) -> Record:
        if self._record is None:
            raise TrackerError("no disk is tracked: call start first")
        return self._record

    def _block_size(self, disk: Disk, block_size: int) -> int:
        used = fitting_block_size(disk.size, block_size, self.options.max_memory)
        if used > max(block_size, _LARGEST_BLOCK):
            raise TrackerError(
                f"disk {disk.name!r}: {format_size(self.options.max_memory)} are not enough to "
                f"track {format_size(disk.size)}; raise the option max_memory"
            )
        return used


def _coarser(disk: Disk, asked: int, used: int, memory: int) -> Finding:
    return Finding.info(
        "blkback-block-size",
        f"disk {disk.name!r}: blocks of {format_size(used)} in place of {format_size(asked)}, "
        f"since its bitmaps may take {format_size(memory)}",
        "raise the tracker's option max_memory",
    )
