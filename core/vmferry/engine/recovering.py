"""What an agent that is started anew finds in its journal: guests that are here, running or not.

The disks are opened and shown again under their old URLs, with the pending map as it was when the
old agent ended: what was saved last, without what became local since (``livebits``). Then the job
waits for its source to attach again, as after any lost connection. Of a job in PUSH the disks are
kept the same way, without any map: what has come is for the source to find out (``comparing``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import msgspec

from vmferry.api.guest import ArrivingDisk, Disk, Guest
from vmferry.api.hooks import Phase
from vmferry.api.hypervisor import Hypervisor, Remains
from vmferry.api.volume import Access, Volume, VolumeDriver
from vmferry.dirtymap import DirtyMap
from vmferry.engine.accounts import withdraw_record
from vmferry.engine.arrivals import DestinationDisk, live_bits, pull_disk, taken_up
from vmferry.engine.clipped import clipped
from vmferry.engine.epochs import last_change
from vmferry.engine.journal import DiskRecord, JobRecord, unpacked
from vmferry.engine.meter import Meter
from vmferry.engine.services import DestinationServices
from vmferry.engine.stay import Stay
from vmferry.engine.tidying import left_disks, remove_guest, tidy_up
from vmferry.errors import HypervisorError, VmferryError, VolumeBusy, VolumeGeometry
from vmferry.wire.messages import Offer

__all__ = ["KeptFacts", "KeptPush", "recover"]

_log = logging.getLogger(__name__)


class KeptFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a destination's journal has in ``facts``.

    Attributes:
        reconnect: that of the offer, in seconds.

    """

    reconnect: float = 0.0


@dataclass(frozen=True)
class KeptPush:
    """A job in PUSH whose disks were taken up.

    Attributes:
        record: the job as the journal has it.
        offer: as the source made it.
        disks: opened and shown again.

    """

    record: JobRecord
    offer: Offer
    disks: Sequence[DestinationDisk]


async def recover(services: DestinationServices) -> list[Stay | KeptPush]:
    """Every job of this host that can be gone on with.

    A guest that is held here complete and has not run waits for its source again, and is run if it
    is this host's already. Of one that was in PUSH the disks are kept, and what was made of it is
    removed. Any other one is promised never to be run, and what is left of it is removed. What
    cannot be taken up is told to the observers (``not-recovered``) and left as it is.
    """
    found: list[Stay | KeptPush] = []
    for known in await services.journal.jobs():
        if known.role != "destination" or known.outcome:
            continue
        try:
            await _check_epoch(services, known)
            one = await _recover(services, await services.journal.load(known.job))
        except (VmferryError, OSError) as error:
            services.hooks.event(known.job, "not-recovered", guest=known.guest, error=str(error))
            _log.error("job %s, guest %s: %s", known.job, known.guest, error)
        else:
            found += [one] if one is not None else []
    return found


async def _check_epoch(services: DestinationServices, record: JobRecord) -> None:
    """A guest that has left since, or has come once more, is another job's."""
    later = await last_change(services, record.guest, above=record.epoch)
    if later is not None:
        raise VmferryError(
            f"epoch {record.epoch} is over: the guest changed hands under epoch {later.epoch}, "
            f"job {later.job}"
        )


async def _recover(services: DestinationServices, record: JobRecord) -> Stay | KeptPush | None:
    guest = unpacked(record, "description", Guest)
    hypervisor = services.registry.hypervisor(guest.hypervisor)
    if record.started:
        remains = Remains.RAN
    else:
        remains = await hypervisor.remains(guest)
    if record.owner:
        return await _take_up_owned(services, record, guest, hypervisor, remains)
    if remains is Remains.WAITING and record.phase is Phase.STOP and not record.withdrawn:
        stay = await _take_up(services, record, guest, hypervisor)
        services.hooks.event(record.job, "held", guest=guest.name)
        return stay
    if record.phase is Phase.PUSH_DISK and remains is not Remains.RAN and not record.withdrawn:
        try:
            return await _keep(services, record, guest)
        except (VmferryError, OSError) as error:
            _log.warning("job %s, guest %s: not kept: %s", record.job, record.guest, error)
    await _give_up(services, record)
    return None


async def _keep(services: DestinationServices, record: JobRecord, guest: Guest) -> KeptPush:
    """Remove the half-made guest, and show the disks again that were made for it."""
    facts = unpacked(record, "facts", KeptFacts)
    if not facts.reconnect:
        raise VmferryError("the source does not come back")
    places = left_disks(record, await services.journal.jobs())
    pairs = _paired(guest, record)
    if any(kept.location not in places for _, kept in pairs):
        raise VmferryError("another job has a disk in the same place")
    await remove_guest(services.registry, record)
    disks = []
    async with AsyncExitStack() as undo:
        for disk, kept in pairs:
            driver = services.registry.volume(kept.volume)
            opened = await driver.open(kept.location, Access.WRITE)
            disks.append(here := await _show(services, record, disk, kept, driver, opened))
            undo.push_async_callback(here.close, services)
        undo.pop_all()
    sizes = tuple(kept.block_size for kept in record.disks)
    offer = Offer(guest=guest, block_sizes=sizes, reconnect=facts.reconnect)
    return KeptPush(record, offer, disks)


async def _give_up(services: DestinationServices, record: JobRecord) -> None:
    """The guest is not complete here, or lost: the promise first, then it is removed.

    Its disks are left to ``migrate cleanup --disks``: meanwhile somebody may have put another disk
    in the same place.
    """
    reason = "the destination's agent ended, and the guest was lost with it before it ran"
    record = await withdraw_record(services.journal, record.job, reason)
    await tidy_up(services.registry, services.journal, record, disks=False)
    services.hooks.event(record.job, "given-up", guest=record.guest, reason=reason)


async def _take_up_owned(
    services: DestinationServices,
    record: JobRecord,
    guest: Guest,
    hypervisor: Hypervisor[Any],
    remains: Remains,
) -> Stay:
    if remains is Remains.NOTHING:
        raise HypervisorError(
            "the guest was taken over, but nothing of it is here; see `migrate resolve` on both "
            "hosts"
        )
    stay = await _take_up(services, record, guest, hypervisor)
    if remains is Remains.WAITING:
        await stay.own()
    else:
        if not record.started:  # it ran, and the agent ended before it could write so
            await services.journal.update(record.job, phase=Phase.PULL, started=True)
        stay.go_on()
    services.hooks.event(record.job, "recovered", guest=guest.name, pending=stay.pending)
    return stay


async def _take_up(
    services: DestinationServices, record: JobRecord, guest: Guest, hypervisor: Hypervisor[Any]
) -> Stay:
    """Show the disks again and take up the guest, running or not."""
    async with AsyncExitStack() as undo:
        disks: list[DestinationDisk] = []
        arriving: list[ArrivingDisk] = []
        for disk, kept in _paired(guest, record):
            if (here := await _reopen(services, record, disk, kept)) is None:
                arriving.append(taken_up(disk, kept))
                continue
            disks.append(here)
            arriving.append(here.arriving)
            undo.push_async_callback(here.close, services)
        arrival = await hypervisor.reattach(guest, arriving)
        undo.pop_all()
    return Stay(
        job=record.job,
        token=record.token,
        epoch=record.epoch,
        guest=guest,
        services=services,
        meter=Meter(record.job, "destination", services.hooks),
        disks=disks,
        hypervisor=hypervisor,
        arrival=arrival,
        suspended=asyncio.get_running_loop().time(),
        pending=sum(disk.pull.pending_bytes for disk in disks),
    )


def _paired(guest: Guest, record: JobRecord) -> list[tuple[Disk, DiskRecord]]:
    if [disk.name for disk in guest.disks] != [kept.name for kept in record.disks]:
        raise VmferryError("the journal does not have the disks of the guest that it describes")
    return list(zip(guest.disks, record.disks, strict=True))


async def _reopen(
    services: DestinationServices, record: JobRecord, disk: Disk, kept: DiskRecord
) -> DestinationDisk | None:
    """Show a disk again; ``None`` if the guest has it open by itself, since it was put on it."""
    driver, saved = services.registry.volume(kept.volume), _saved(kept)
    try:
        opened = await driver.open(kept.location, Access.WRITE)
    except VolumeBusy:
        if record.started and not saved:
            return None  # no disk is pivoted before the journal says that nothing is pending
        raise
    return await _show(services, record, disk, kept, driver, opened, saved)


async def _show(
    services: DestinationServices,
    record: JobRecord,
    disk: Disk,
    kept: DiskRecord,
    driver: VolumeDriver[Any],
    opened: Volume,
    saved: DirtyMap | None = None,
) -> DestinationDisk:
    """A pull disk over an opened volume; ready for the guest if a pending map was saved."""
    volume = clipped(opened, kept.size)
    try:
        if opened.geometry.size < kept.size:
            raise VolumeGeometry(f"{kept.location} is smaller than the {kept.size} bytes it had")
        bits = await live_bits(services, record.job, disk, kept.block_size)
        pull = pull_disk(services, record.job, disk, volume, kept.block_size, bits)
        if saved is not None:
            pending = bits.without(saved)
            # the map that is saved next calls blocks local that may not be durable
            await volume.flush()
            await pull.ready(pending)
        url = await services.exporter.expose(f"{record.job}-{disk.name}", pull)
    except BaseException:
        await volume.close()
        raise
    arriving = taken_up(disk, kept, url)
    return DestinationDisk(driver, volume, pull, arriving, blank=False, bits=bits)


def _saved(kept: DiskRecord) -> DirtyMap:
    if kept.pending is None:
        raise VmferryError(f"disk {kept.name}: the journal has no pending map of it")
    return DirtyMap.decode(kept.pending, size=kept.size, block_size=kept.block_size)
