"""The destination's disks of one job: made, shown to the hypervisor, and undone on failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vmferry.api.guest import ArrivingDisk, Disk, Guest
from vmferry.api.hooks import Phase
from vmferry.api.hypervisor import Arrival
from vmferry.api.volume import ExtentKind, Geometry, Volume, VolumeDriver
from vmferry.engine.attempt import attempt
from vmferry.engine.clipped import clipped
from vmferry.engine.journal import DiskRecord
from vmferry.engine.livebits import LiveBits
from vmferry.engine.pool import Pool
from vmferry.engine.pulldisk import PullDisk
from vmferry.engine.services import DestinationServices
from vmferry.wire.messages import AcceptedDisk, Offer

__all__ = [
    "DestinationDisk",
    "disk_records",
    "live_bits",
    "prepare_disks",
    "pull_disk",
    "taken_up",
    "undo",
]


class DestinationDisk:
    """One arriving disk.

    Attributes:
        volume: the local copy.
        pull: what the guest sees until the pivot.
        arriving: what the hypervisor is told.
        blank: the local copy reads as zeroes throughout.

    """

    def __init__(
        self,
        driver: VolumeDriver[Any],
        volume: Volume,
        pull: PullDisk,
        arriving: ArrivingDisk,
        blank: bool,
        bits: LiveBits,
    ) -> None:
        self.volume, self.pull, self.arriving, self.blank = volume, pull, arriving, blank
        self._driver, self._bits = driver, bits

    @property
    def accepted(self) -> AcceptedDisk:
        """What the source is told."""
        return AcceptedDisk(location=self.arriving.location, blank=self.blank)

    async def close(self, services: DestinationServices) -> None:
        """Stop showing it and close the volume; the local copy stays."""
        await services.exporter.withdraw(self.arriving.export)
        await self.volume.close()
        self._bits.release()

    async def undo(self, services: DestinationServices, *, remove: bool = True) -> None:
        """As if it had never been made; whoever waits for a block of it gets an error.

        Without ``remove`` the local copy stays.
        """
        self.pull.fail("the migration was given up")
        await self.close(services)
        if remove:
            await self._driver.remove(self.arriving.location)


async def undo(
    job: str,
    arrival: Arrival | None,
    disks: Sequence[DestinationDisk],
    services: DestinationServices,
    reason: str,
    *,
    remove: bool = True,
) -> None:
    """As if the guest had never come: every step is tried, whatever becomes of the others.

    The guest was withdrawn before. What could not be removed is left to ``migrate cleanup``, and
    without ``remove`` the disks are.
    """
    tidy = remove
    if arrival is not None:
        aborted = attempt("the half-made guest could not be removed", arrival.abort())
        tidy = await aborted and tidy
    for disk in disks:
        removed = attempt(
            f"{disk.arriving.location} could not be removed", disk.undo(services, remove=remove)
        )
        tidy = await removed and tidy
    record = services.journal.update(
        job, phase=Phase.FAILED, outcome="failed", error=reason, tidy=tidy
    )
    await attempt("the journal could not be written", record)


async def _is_blank(volume: Volume) -> bool:
    async for extent in volume.extents(0, volume.geometry.size):
        if extent.kind is ExtentKind.DATA:
            return False
    return True


async def live_bits(
    services: DestinationServices, job: str, disk: Disk, block_size: int
) -> LiveBits:
    """What became local since the map of this disk was saved."""
    need = LiveBits.size_for(disk.size, block_size)
    buffer = await services.journal.scratch(job, disk.name, need)
    return LiveBits(buffer, disk.size, block_size)


def pull_disk(
    services: DestinationServices,
    job: str,
    disk: Disk,
    volume: Volume,
    block_size: int,
    bits: LiveBits,
) -> PullDisk:
    """The pull disk over ``volume``, whose map is kept in the journal."""

    async def save(encoded: bytes) -> None:
        await services.journal.save_pending(job, disk.name, encoded)

    return PullDisk(volume, block_size, save, workers=services.workers, note=bits.became_local)


def taken_up(disk: Disk, kept: DiskRecord, export: str = "") -> ArrivingDisk:
    """A disk of an earlier agent's job as the hypervisor is told of it, with its export if any."""
    return ArrivingDisk(disk=disk, volume=kept.volume, location=kept.location, export=export)


def disk_records(pool: Pool, offer: Offer) -> tuple[DiskRecord, ...]:
    """The disks of an offer, for the journal: noted before they are made.

    So after a crash it is known what may be there.
    """
    return tuple(
        DiskRecord(
            name=disk.name,
            location=pool.location(offer.guest, disk),
            volume=pool.volume,
            size=disk.size,
            block_size=block_size,
        )
        for disk, block_size in zip(offer.guest.disks, offer.block_sizes, strict=True)
    )


async def _prepare(
    services: DestinationServices, pool: Pool, job: str, offer: Offer, index: int
) -> DestinationDisk:
    guest: Guest = offer.guest
    disk = guest.disks[index]
    location = pool.location(guest, disk)
    driver = services.registry.volume(pool.volume)
    created = await driver.create(location, Geometry(disk.size, disk.sector_size))
    volume = clipped(created, disk.size)

    url = ""
    try:
        bits = await live_bits(services, job, disk, offer.block_sizes[index])
        pull = pull_disk(services, job, disk, volume, offer.block_sizes[index], bits)
        url = await services.exporter.expose(f"{job}-{disk.name}", pull)
        arriving = ArrivingDisk(disk=disk, volume=pool.volume, location=location, export=url)
        return DestinationDisk(driver, volume, pull, arriving, await _is_blank(volume), bits)
    except BaseException:
        if url:
            await services.exporter.withdraw(url)
        await volume.close()
        await driver.remove(location)
        raise


async def prepare_disks(
    services: DestinationServices, pool: Pool, job: str, offer: Offer
) -> Sequence[DestinationDisk]:
    """Make all disks of the offer; on failure none is left behind."""
    disks: list[DestinationDisk] = []
    try:
        for index in range(len(offer.guest.disks)):
            disks.append(await _prepare(services, pool, job, offer, index))
    except BaseException:
        for disk in disks:
            await disk.undo(services)
        raise
    return disks
