"""What migrations that were cut short have left on this host, found by names and removed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from vmferry_hypervisors.xen.describe import read_backends
from vmferry_hypervisors.xen.devices import DM_UUID
from vmferry_hypervisors.xen.incoming import domain_names
from vmferry_hypervisors.xen.leaving import AWAY, INCOMING
from vmferry_hypervisors.xen.netlink import disconnect_nbd, nbd_devices
from vmferry_hypervisors.xen.pulldevice import PREFIX
from vmferry_hypervisors.xen.suspension import state_of
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import xl
from vmferry_support.dm import DmDevice, list_devices

__all__ = ["Leftover", "find_leftovers", "remove_leftovers"]


class Leftover(NamedTuple):
    """One thing that is left.

    Attributes:
        kind: ``domain``, ``mapping`` or ``nbd``.
        name: as its own tools name it.
        safe: nobody uses it, and nothing can be lost by removing it.

    """

    kind: str
    name: str
    safe: bool = True

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.kind} {self.name}"


async def find_leftovers(socket: str = "") -> Sequence[Leftover]:
    """Devices of ours that no domain uses, half-built domains, domains given away.

    Those of a migration that is under way are among them while no domain uses them yet.
    """
    async with XenStore(socket) as store:
        names = await domain_names(store)
        used = {
            backend.fields.get("params", "").removeprefix("/dev/mapper/")
            for domid in names
            for backend in await read_backends(store, domid)
        }
    found = []
    for domid, name in sorted(names.items()):
        if name.endswith((AWAY, INCOMING)):
            state = await state_of(domid)
            idle = state is not None and (state.suspended or state.paused)
            found.append(Leftover("domain", name, safe=idle and name.endswith(INCOMING)))
    mappings = [each for each in await list_devices(PREFIX) if each.uuid.startswith(DM_UUID)]
    found += [
        Leftover("mapping", each.name, safe=not each.opened)
        for each in mappings
        if each.name not in used
    ]
    mapped = {each.name for each in mappings}
    found += [
        Leftover("nbd", name)
        for name in await asyncio.to_thread(nbd_devices, PREFIX)
        if name not in mapped
    ]
    return found


async def remove_leftovers(socket: str = "") -> Sequence[Leftover]:
    """Remove what is safe to remove; returns what was removed.

    Not to be called while a guest is arriving.
    """
    removed = []
    for each in await find_leftovers(socket):
        if not each.safe:
            continue
        if each.kind == "domain":
            await xl("destroy", each.name)
        else:
            path = (await asyncio.to_thread(nbd_devices, each.name)).get(each.name)
            if path is not None:
                await asyncio.to_thread(disconnect_nbd, path)
            if each.kind == "mapping":
                await DmDevice(each.name).remove()
        removed.append(each)
    return removed
