"""The end of PULL for a guest that runs here, whichever agent let it run."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from vmferry.api.guest import ArrivingDisk
from vmferry.api.hypervisor import Arrival
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.disks import AttachedDisk
from vmferry_support.outlast import finished
from vmferry_support.qmp import Qmp, QmpError, QmpLost, QmpTimeout

__all__ = ["Pivots", "ReattachedArrival"]

_MARK = "vmferry-held"
"""A node that nothing uses; while it is there, the guest stands still because of us."""


class Pivots:
    """Puts the disks of a running guest on their local volumes; one that has ended needs none."""

    def __init__(self, qmp: Qmp, disks: Mapping[str, AttachedDisk], *, direct: bool) -> None:
        self._qmp, self._disks, self._direct = qmp, disks, direct

    @contextlib.asynccontextmanager
    async def held(self, disk: ArrivingDisk) -> AsyncIterator[None]:
        """Pause the guest unless its local disk is raw: two writers would destroy an image.

        ``stop`` writes out all that is under way, on the export too; see ``vm_stop`` of QEMU. That
        the guest stands still because of us is noted in QEMU, for an agent after this one.
        """
        if disk.volume == "raw":
            yield
            return
        try:
            await self._hold()
            yield
        finally:
            await finished(self.let_go())

    async def _hold(self) -> None:
        """Pause the guest if it runs."""
        await self.let_go()  # an agent that has ended may have been about to
        with contextlib.suppress(QmpLost):
            if (await self._qmp.execute("query-status"))["running"]:
                mark = {"driver": "null-co", "node-name": _MARK, "size": 512}
                await self._qmp.execute("blockdev-add", mark)
                await self._qmp.execute("stop")

    async def let_go(self) -> None:
        """Let a guest run that was paused for its disks, by whichever agent.

        A ``stop`` that still writes out what is under way keeps QEMU from answering: it is waited
        for, however long it takes.
        """
        with contextlib.suppress(QmpLost):
            while True:
                with contextlib.suppress(QmpTimeout):
                    return await self._let_go()

    async def _let_go(self) -> None:
        nodes = await self._qmp.execute("query-named-block-nodes", flat=True)
        if any(node.get("node-name") == _MARK for node in nodes):
            await self._qmp.execute("cont")
            await self._qmp.execute("blockdev-del", node_name=_MARK)

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
        """Let the guest run if an agent has ended while it held it; let go of the monitor."""
        if self._pivots is not None:
            await self._pivots.let_go()
        if self._qmp is not None:
            with contextlib.suppress(QmpError):
                await self._qmp.close()
