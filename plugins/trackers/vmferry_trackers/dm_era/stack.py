"""A device-mapper device with an era target put below it, live, and taken out again.

::

    guest - DEVICE: its own table                guest - DEVICE: era - ORIGIN: DEVICE's table
                                                                   - loop device: metadata

A table is exchanged by one ``resume``, in which the kernel suspends the device, waits for what is
in flight and goes on with the new table (``do_resume`` in ``drivers/md/dm-ioctl.c``): there is no
moment at which the death of this process would leave the guest's disk suspended.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vmferry.errors import TrackerError
from vmferry.units import SECTOR
from vmferry_support.dm import DmDevice, DmMissing, Segment
from vmferry_trackers.devices import DeviceError
from vmferry_trackers.dm_era.discards import (
    granularity,
    is_aligned,
    limit_discards,
    restore_discards,
)
from vmferry_trackers.dm_era.metadata import Metadata, metadata_bytes

__all__ = ["EraStack", "EraStatus", "parse_status", "refuse_table"]

_PREFIX = "vmferry-era-"
_STATELESS = frozenset({"linear", "striped"})
"""Targets of which two may exist for the same sectors at once."""


class EraStatus(NamedTuple):
    """What the era target says of itself.

    Attributes:
        used: metadata blocks in use.
        total: metadata blocks there are.
        era: the current one.
        held: there is a metadata snapshot.

    """

    used: int
    total: int
    era: int
    held: bool


def parse_status(arguments: str) -> EraStatus:
    """The arguments of a status line: ``8 37/1024 5 -``.

    Raises:
        TrackerError: the target failed, or says what is not understood.

    """
    try:
        _, room, era, held = arguments.split()
        used, total = room.split("/")
        return EraStatus(int(used), int(total), int(era), held != "-")
    except ValueError:
        raise TrackerError(f"the era target says {arguments!r}: its metadata failed") from None


def refuse_table(name: str, table: tuple[Segment, ...]) -> None:
    """Raise ``DeviceError`` if the era target cannot be put below a device with that table."""
    others = sorted({segment.target for segment in table} - _STATELESS)
    if others or not table:
        raise DeviceError(
            f"device-mapper device {name} is made of {', '.join(others) or 'nothing'}; dm-era can "
            f"be put below {' and '.join(sorted(_STATELESS))} only",
            "put a linear device above it, or use the tracker blkback",
        )


class EraStack:
    """What tracking puts below one device; finds and removes what an earlier process left.

    Attributes:
        device: the guest's.
        number: the guest's device's ``major:minor``.

    """

    def __init__(self, name: str, number: str, state_dir: Path) -> None:
        self.device, self.number = DmDevice(name), number
        self._origin = DmDevice(_PREFIX + number.replace(":", "-"))
        self._metadata = Metadata(state_dir / f"{self._origin.name}.metadata")
        self.metadata_device = ""
        """Path of the loop device, once inserted."""

    async def insert(self, block_size: int, *, split_discards: bool) -> None:
        """Put the era target below the device. On return all earlier writes have ended.

        Whatever fails, nothing was changed in the end.
        """
        await self.remove()
        table = await self.device.table()
        refuse_table(self.device.name, table)
        try:
            await self._insert(table, block_size, split_discards=split_discards)
        except BaseException:
            await self.remove()
            raise

    async def _insert(
        self, table: tuple[Segment, ...], block_size: int, *, split_discards: bool
    ) -> None:
        sectors = table[-1].start + table[-1].length
        size = metadata_bytes(sectors * SECTOR, block_size)
        self.metadata_device = await self._metadata.make(size)
        await self._origin.create(table, uuid=self._origin.name)
        arguments = f"{self.metadata_device} {self._origin.path} {block_size // SECTOR}"
        await self.device.load([Segment(0, sectors, "era", arguments)])
        await self.device.resume()
        await self._limit_discards(table, block_size, split=split_discards)

    async def _limit_discards(
        self, table: tuple[Segment, ...], block_size: int, *, split: bool
    ) -> None:
        granule = granularity(self.number)
        if not granule:
            return
        fits = split and block_size % granule == 0 and await is_aligned(table, granule)
        limit_discards(self.number, granule if fits else 0)
        await self.device.barrier()  # a discard may have slipped through before the limit

    async def remove(self) -> None:
        """Give the device its own table back and remove the rest; may be called at any time."""
        was_inserted = await self._origin.exists()
        if was_inserted:
            await self._give_table_back()
            await self._origin.remove()
        await self._metadata.remove()
        if was_inserted:
            restore_discards(self.number)

    async def _give_table_back(self) -> None:
        try:
            info = await self.device.info()
        except DmMissing:
            return
        if info.loaded:
            await self.device.clear()
        if await self.inserted():
            await self.device.load(await self._origin.table())
            await self.device.resume()
        elif info.suspended:
            await self.device.resume()

    async def inserted(self) -> bool:
        """Whether the device's table is the one that this class gave it."""
        table = await self.device.table()
        if len(table) != 1 or table[0].target != "era" or not await self._origin.exists():
            return False
        return table[0].arguments.split()[1] == (await self._origin.info()).devno

    async def status(self) -> EraStatus:
        """The era target's own words. Does not return while the device is suspended."""
        (segment,) = await self.device.status()
        if segment.target != "era":
            raise TrackerError(f"somebody took the era target out of {self.device.name}")
        return parse_status(segment.arguments)
