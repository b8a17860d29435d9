"""Rigs for trackers of block devices: what the guest's disk is made of."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from blockdevices import (
    DirectGuest,
    device_number,
    make_loop,
    make_partition,
    map_device,
    needs_root,
)

from vmferry.api.guest import Disk
from vmferry.testing.tracker import TrackerRig
from vmferry.units import MIB, SECTOR

SIZE = 2 * MIB + 512
SECTORS = SIZE // SECTOR
DELAY = 20
"""Milliseconds that a write to a slow device takes."""


class DeviceRig(TrackerRig):
    """A disk on a block device. Subclasses say what it is made of, and which tracker."""

    size = SIZE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._undo = ExitStack()

    def build(self, undo: ExitStack) -> str:
        """Path of the device; what is to be undone goes onto ``undo``."""
        return make_loop(undo, self.folder / "disk.raw", self.size)

    def make_tracker(self) -> Any:
        raise NotImplementedError

    async def need(self) -> None:
        """Skip the test if the tracker cannot work on this machine."""

    async def open(self) -> None:
        needs_root()
        with ExitStack() as undo:
            self.device = self.build(undo)
            facts = {"device": self.device, "devno": device_number(self.device)}
            self.disk = Disk(name="disk0", size=self.size, facts=facts)
            self.tracker = self.make_tracker()
            await self.need()
            self.guest = DirectGuest(self.device)
            undo.callback(self.guest.close)
            self._undo = undo.pop_all()

    async def close(self) -> None:
        self._undo.close()

    async def guest_write(self, offset: int, data: bytes) -> None:
        await self.guest.write(offset, data)

    async def guest_zero(self, offset: int, length: int) -> None:
        await self.guest.zero(offset, length)

    async def guest_discard(self, offset: int, length: int) -> None:
        await self.guest.discard(offset, length)

    def read_raw(self, offset: int, length: int) -> bytes:
        return self.guest.read(offset, length)

    def in_flight(self) -> list[tuple[int, int]]:
        return self.guest.in_flight()


class PartitionRig(DeviceRig):
    """A partition that begins within a block, with others' writes around it."""

    START = 12288 + 512

    def build(self, undo: ExitStack) -> str:
        size = self.START + self.size + MIB
        self.device_below = make_loop(undo, self.folder / "disk.raw", size)
        return make_partition(undo, self.device_below, self.folder / "part", self.START, self.size)


class LinearRig(DeviceRig):
    """A logical volume of two pieces in the wrong order: requests across their border are cut."""

    BORDER = 1003
    """Sectors of the first piece."""
    PLACE = 3100
    """Sector of the loop device where it begins."""

    def build(self, undo: ExitStack) -> str:
        loop = make_loop(undo, self.folder / "disk.raw", self.size + MIB)
        rest = SECTORS - self.BORDER
        table = f"0 {self.BORDER} linear {loop} {self.PLACE}\n{self.BORDER} {rest} linear {loop} 0"
        return map_device(undo, "linear", table)


class AlignedRig(LinearRig):
    """A logical volume as LVM makes them: its pieces begin at multiples of 4 KiB."""

    BORDER, PLACE = 1008, 3104


class SlowRig(DeviceRig):
    """A device-mapper device that takes its time, so that much is in flight."""

    def build(self, undo: ExitStack) -> str:
        loop = make_loop(undo, self.folder / "disk.raw", self.size)
        table = f"0 {SECTORS} delay {loop} 0 0 {loop} 0 {DELAY}"
        return map_device(undo, "slow", table)


class SlowLoopRig(SlowRig):
    """A loop device, which has request queues, above one that takes its time."""

    def build(self, undo: ExitStack) -> str:
        return make_loop(undo, Path(super().build(undo)), self.size)
