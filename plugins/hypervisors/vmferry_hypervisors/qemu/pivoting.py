"""The end of PULL for a guest that runs here, whichever agent let it run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from vmferry.api.guest import ArrivingDisk
from vmferry.api.hypervisor import Arrival
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.disks import AttachedDisk
from vmferry_support.qmp import Qmp, QmpError, QmpLost

__all__ = ["Pivots", "ReattachedArrival"]


class Pivots:
    """Puts the disks of a running guest on their local volumes; one that has ended needs none."""

    def __init__(self, qmp: Qmp, disks: Mapping[str, AttachedDisk], *, direct: bool) -> None:
        self._qmp, self._disks, self._direct = qmp, disks, direct

    @contextlib.asynccontextmanager
    async def held(self, disk: ArrivingDisk) -> AsyncIterator[None]:
        """Pause the guest unless its local disk is raw: two writers would destroy an image.

        ``stop`` writes out all that is under way, on the export too; see ``vm_stop`` of QEMU.
        """
        held = disk.volume != "raw" and await self._pause()
        try:
            yield
        finally:
            if held:
                with contextlib.suppress(QmpLost):
                    await self._qmp.execute("cont")

    async def _pause(self) -> bool:
        """Whether it ran."""
        try:
            running = bool((await self._qmp.execute("query-status"))["running"])
            if running:
                await self._qmp.execute("stop")
        except QmpLost:
            return False
        return running

    async def pivot(self, disk: ArrivingDisk) -> None:
        """Exchange the export for the plain disk; see ``disks``."""
        with contextlib.suppress(QmpLost):
            await self._disks[disk.disk.name].pivot(direct=self._direct)


class ReattachedArrival(Arrival):
    """A guest that an agent let run which has ended since; ``pivots`` is ``None`` if it is gone."""

    def __init__(self, qmp: Qmp | None, pivots: Pivots | None) -> None:
        self._qmp, self._pivots = qmp, pivots

    async def receive(self) -> None:
        """It has been received."""
        raise HypervisorError("the guest runs here already")

    async def activate(self) -> None:
        """It has been activated."""
        raise HypervisorError("the guest runs here already")

    async def abort(self) -> None:
        """It cannot be."""
        raise HypervisorError("the guest runs here and cannot be aborted")

    @contextlib.asynccontextmanager
    async def pivoting(self, disk: ArrivingDisk) -> AsyncIterator[None]:
        """As ``Pivots.held``."""
        async with contextlib.AsyncExitStack() as stack:
            if self._pivots is not None:
                await stack.enter_async_context(self._pivots.held(disk))
            yield

    async def pivot(self, disk: ArrivingDisk) -> None:
        """As ``Pivots.pivot``."""
        if self._pivots is not None:
            await self._pivots.pivot(disk)

    async def finish(self) -> None:
        """Let go of the monitor."""
        if self._qmp is not None:
            with contextlib.suppress(QmpError):
                await self._qmp.close()
