"""What a job that came to nothing has left at the destination, removed by the journal alone.

The agent that made it is gone. Only what the journal says that the job made is touched, only if the
guest is promised never to run here, and no disk at whose place another job has put one since.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vmferry.api.guest import Guest
from vmferry.api.hypervisor import Remains
from vmferry.engine.arrivals import taken_up
from vmferry.engine.attempt import attempt
from vmferry.engine.context import Registry
from vmferry.engine.journal import JobRecord, Journal, unpacked

__all__ = ["guards", "left_disks", "remove_guest", "tidy_up", "untidy"]

_log = logging.getLogger(__name__)


def untidy(records: Sequence[JobRecord]) -> list[JobRecord]:
    """Jobs that came to nothing here and may have left something."""
    return [
        one
        for one in records
        if one.role == "destination" and one.withdrawn and not one.owner and not one.tidy
    ]


def left_disks(record: JobRecord, records: Sequence[JobRecord]) -> list[str]:
    """Places of the disks that a job made, but for those that another job uses."""
    others = {
        disk.location
        for one in records
        if one.role == "destination" and one.job != record.job and not one.tidy
        for disk in one.disks
    }
    return [disk.location for disk in record.disks if disk.location not in others]


def guards(record: JobRecord, records: Sequence[JobRecord]) -> bool:
    """Whether a job has to be known still, lest the clean-up of another one removes its disks."""
    places = {disk.location for disk in record.disks}
    return any(
        not places.isdisjoint(disk.location for disk in one.disks)
        for one in untidy(records)
        if one.job != record.job
    )


async def tidy_up(
    registry: Registry, journal: Journal, record: JobRecord, *, disks: bool = True
) -> bool:
    """Remove what a withdrawn job left here; whether nothing is left. May be called again.

    Args:
        registry: plugins by name.
        journal: of this host.
        record: a job that is ``withdrawn``.
        disks: also the disks it made.

    """
    assert record.withdrawn
    tidy = await attempt(
        f"what is left of guest {record.guest} could not be removed",
        remove_guest(registry, record),
    )
    places = left_disks(record, await journal.jobs())
    for disk in record.disks:
        if disk.location in places and disks:
            removing = registry.volume(disk.volume).remove(disk.location)
            tidy = await attempt(f"{disk.location} could not be removed", removing) and tidy
    if tidy and (disks or not places):
        await journal.update(record.job, tidy=True)
        return True
    return False


async def remove_guest(registry: Registry, record: JobRecord) -> None:
    """Remove a guest that has never run here and outlived its agent; fine if there is none."""
    guest = unpacked(record, "description", Guest)
    hypervisor = registry.hypervisor(guest.hypervisor)
    if await hypervisor.remains(guest) is not Remains.WAITING:
        return
    disks = [taken_up(*each) for each in zip(guest.disks, record.disks, strict=False)]
    arrival = await hypervisor.reattach(guest, disks)
    await arrival.abort()
