"""The domain that stays behind at the source: named back, or removed with what was made for it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vmferry.errors import GuestStopped, HypervisorError, VmferryError
from vmferry_hypervisors.xen import libxl
from vmferry_hypervisors.xen.config import DomainConfig
from vmferry_hypervisors.xen.suspension import state_of
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import xl
from vmferry_support.commands import CommandFailed, run
from vmferry_support.dm import DmDevice

__all__ = ["AWAY", "INCOMING", "domain_uuid", "make_run", "remove_domain"]

AWAY = "--migratedaway"
"""What xl appends to the name of a domain that it has given away."""
INCOMING = "--incoming"
"""What xl appends to the name of a domain that it receives."""


async def make_run(domid: int, name: str, socket: str) -> None:
    """See to it that a domain runs, whatever xl has done or not, and has its own name.

    Raises:
        GuestStopped: it shut down, crashed or is gone.
        HypervisorError: it cannot be resumed.

    """
    state = await state_of(domid)
    if state is not None and state.suspended:
        program = str(Path(libxl.__file__))
        try:
            await run(sys.executable, program, "resume", str(domid), timeout=60)
        except CommandFailed as error:
            raise HypervisorError(
                f"guest {name} could not be resumed: {error}; domain {domid} is suspended, its "
                "memory is complete"
            ) from error
        state = await state_of(domid)
    if state is None or state.shutdown:
        raise GuestStopped(f"guest {name} shut down, crashed or was destroyed")
    await rename_back(domid, name, socket)


async def rename_back(domid: int, name: str, socket: str) -> None:
    """Give a domain that runs on the name it had."""
    async with XenStore(socket) as store:
        now = await store.get(f"/local/domain/{domid}/name")
    if now == name + AWAY:
        await xl("rename", str(domid), name)


async def domain_uuid(store: XenStore, domid: int) -> str:
    """The uuid of a domain; ``""`` if there is none of that number."""
    return (await store.get(f"/local/domain/{domid}/vm")).removeprefix("/vm/")


async def remove_domain(domid: int, config: DomainConfig, devices: Sequence[str]) -> None:
    """Destroy the suspended domain, if it is still there, and devices of an earlier arrival.

    Raises:
        HypervisorError: the domain is not suspended, or cannot be destroyed.

    """
    state = await state_of(domid)
    if state is not None and not state.dying:
        if not state.suspended:
            raise HypervisorError(
                f"domain {domid} is not suspended, though guest {config.name} has left: "
                "see which of the two is right before destroying one"
            )
        await xl("destroy", str(domid))
    for name in devices:
        try:
            await DmDevice(name).remove()
        except VmferryError as error:
            raise HypervisorError(f"a device of guest {config.name} is left: {error}") from error
