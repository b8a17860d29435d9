"""Where the destination keeps the disks of arriving guests, and how it takes them in.

Names come from the network; a location is only ever a plain file name inside the pool's folder, or
one the operator has named for that disk beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk, Guest
from vmferry.api.volume import Geometry
from vmferry.engine.context import Registry
from vmferry.errors import InputError, VmferryError

__all__ = ["Pool"]

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class Pool:
    """The destination's storage for arriving disks.

    Args:
        folder: where new disks are made.
        volume: volume plugin that makes them.
        places: locations chosen by the operator, by ``GUEST/DISK`` or ``DISK``: an existing block
            device, for instance.

    """

    def __init__(
        self, folder: str, volume: str = "raw", places: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.volume = folder, volume
        self.places = dict(places or {})

    def location(self, guest: Guest, disk: Disk) -> str:
        """Where the disk will be; raises ``InputError`` if a name is no safe file name."""
        for key in (f"{guest.name}/{disk.name}", disk.name):
            if key in self.places:
                return self.places[key]
        for what, name in (("guest", guest.name), ("disk", disk.name)):
            if not _SAFE.fullmatch(name) or ".." in name:
                raise InputError(
                    f"the {what} name {name!r} cannot be used as a file name; "
                    f"name a place for it with --place {disk.name}=PATH at the destination"
                )
        suffix = "raw" if self.volume == "raw" else self.volume
        return str(PurePosixPath(self.folder) / f"{guest.name}-{disk.name}.{suffix}")

    async def check(self, guest: Guest, registry: Registry) -> list[Finding]:
        """Reasons why the guest's disks cannot be taken; changes nothing."""
        findings = []
        seen: dict[str, str] = {}
        for disk in guest.disks:
            try:
                location = self.location(guest, disk)
                driver = registry.volume(self.volume)
                await driver.check_create(location, Geometry(disk.size, disk.sector_size))
            except (VmferryError, OSError, ValueError) as error:
                findings.append(
                    Finding.error("disk-refused", f"disk {disk.name}: {error}", "see --pool")
                )
                continue
            if location in seen:
                text = f"disks {seen[location]} and {disk.name} would share {location}"
                findings.append(Finding.error("disk-shared", text, "give each its own --place"))
            seen[location] = disk.name
        if len({disk.name for disk in guest.disks}) < len(guest.disks):
            findings.append(Finding.error("disk-names", "two disks of the guest have one name"))
        return findings
