"""Domains that xl has made for an arriving guest and that never ran."""

from __future__ import annotations

from vmferry_hypervisors.xen.leaving import INCOMING, domain_uuid
from vmferry_hypervisors.xen.suspension import state_of
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import xl

__all__ = ["destroy_incoming", "domain_names"]


async def domain_names(store: XenStore) -> dict[int, str]:
    """Names of all domains but dom0, by number."""
    found = {}
    for word in await store.list("/local/domain"):
        if word.isdigit() and word != "0":
            found[int(word)] = await store.get(f"/local/domain/{word}/name")
    return {domid: name for domid, name in found.items() if name}


async def destroy_incoming(name: str, uuid: str, socket: str) -> None:
    """Destroy the half-built domain of that guest, if there is one."""
    async with XenStore(socket) as store:
        for domid, each in (await domain_names(store)).items():
            if each != name + INCOMING or (uuid and await domain_uuid(store, domid) != uuid):
                continue
            state = await state_of(domid)
            if state is not None and not state.dying:
                await xl("destroy", str(domid))
