"""The number of each agreement on who owns a guest. It only grows, whichever way the guest moves.

A guest goes there and back, so both journals of a host are asked: the one it keeps as a source and
the one it keeps as a destination.
"""

from __future__ import annotations

from vmferry.api.findings import Finding
from vmferry.api.guest import Guest
from vmferry.engine.journal import JobRecord, unpacked
from vmferry.engine.services import Services

__all__ = ["check_not_handed_over", "known_epoch", "last_change"]


async def known_epoch(services: Services, guest: str) -> int:
    """The highest epoch that this host knows of a guest, by its name; 0 if it knows none."""
    return max([await journal.epoch(guest) for journal in services.journals])


async def last_change(services: Services, guest: str, above: int = 0) -> JobRecord | None:
    """The job of the highest epoch by which a guest left this host or came to it.

    Args:
        services: with the journals of this host.
        guest: its name.
        above: jobs of this epoch or a lower one do not count.

    """
    changes = [
        record
        for journal in services.journals
        for record in await journal.jobs()
        if record.guest == guest and record.epoch > above and (record.committed or record.owner)
    ]
    return max(changes, key=lambda record: record.epoch, default=None)


async def check_not_handed_over(services: Services, guest: Guest) -> list[Finding]:
    """Whether the guest that is here may be one that was handed over and has not come back.

    It is one for certain if it has the same uuid: then its disk here is old.
    """
    last = await last_change(services, guest.name)
    if last is None or not last.committed:
        return []
    before = unpacked(last, "description", Guest).uuid
    if guest.uuid and before and guest.uuid != before:
        return []
    text = (
        f"guest {guest.name} was handed over to {last.peer} (job {last.job}, epoch {last.epoch}) "
        "and is not known to have come back: its disks here may be old"
    )
    hint = (
        "make sure that it runs nowhere else; to use what is here all the same: "
        f"migrate cleanup --forget 0s, which forgets job {last.job}"
    )
    kind = Finding.error if guest.uuid and guest.uuid == before else Finding.warning
    return [kind("handed-over", text, hint)]
