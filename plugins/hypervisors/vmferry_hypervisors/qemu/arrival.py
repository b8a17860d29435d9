"""Receiving a QEMU guest in a QEMU that waits for it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.hypervisor import Arrival, ByteStream
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.qemu.config import decode_config, differences
from vmferry_hypervisors.qemu.connections import incoming
from vmferry_hypervisors.qemu.describe import list_drives, read_config
from vmferry_hypervisors.qemu.disks import attach_disks, match_drives
from vmferry_hypervisors.qemu.launch import StartedQemu
from vmferry_hypervisors.qemu.migration import UNCARRIED, Migration, raced
from vmferry_hypervisors.qemu.options import QemuOptions
from vmferry_hypervisors.qemu.pivoting import Pivots
from vmferry_hypervisors.qemu.remains import end_qemu
from vmferry_support.qmp import Qmp, QmpError

__all__ = ["QemuArrival"]

_PATIENCE = 2.0
_CAPABILITIES = {"events": True, "return-path": True, "late-block-activate": True}


class QemuArrival(Arrival):
    """A QEMU guest on its way in; ``arrive`` makes it.

    Args:
        qmp: the waiting QEMU's monitor, which becomes the arrival's.
        started: that QEMU if it was started for this; ``None`` if it was there.
        guest: what is to come.
        stream: from the other side.
        options: the plugin's.

    """

    def __init__(
        self,
        qmp: Qmp,
        started: StartedQemu | None,
        guest: Guest,
        stream: ByteStream,
        options: QemuOptions,
    ) -> None:
        self._qmp, self._started, self._guest, self._options = qmp, started, guest, options
        self._migration = Migration(qmp, guest.name, options.timeout)
        self._channels = len(stream.channels)
        self._carried = incoming(qmp, stream)
        self._pivots = Pivots(qmp, {}, direct=options.direct)
        self._touched = self._complete = self._active = self._over = False

    async def prepare(self, disks: Sequence[ArrivingDisk]) -> None:
        """Hold the waiting QEMU against the source's, attach the disks, let it listen.

        Raises:
            HypervisorError: the guest cannot go on in this QEMU; says all that differs.

        """
        status = (await self._qmp.execute("query-status"))["status"]
        if status != "inmigrate":
            raise HypervisorError(
                f"QEMU at {self._qmp.path} is {status}, not waiting: start it with -S "
                f"-incoming defer"
            )
        await self._refuse_settings()
        await self._compare()
        drives = match_drives(disks, await list_drives(self._qmp))
        self._touched = True
        attached = await attach_disks(self._qmp, disks, drives, self._options.reconnect)
        self._pivots = Pivots(self._qmp, attached, direct=self._options.direct)
        await self._migration.set(_CAPABILITIES, {}, self._channels)
        await self._carried.prepare()
        await self._qmp.execute("migrate-incoming", uri=self._carried.uri)

    async def _refuse_settings(self) -> None:
        """One that is set to what cannot be carried would wait for ever, or do something else."""
        said = await self._qmp.execute("query-migrate-capabilities")
        on = {each["capability"] for each in said if each["state"]}
        if found := [name for name in UNCARRIED if name in on]:
            raise HypervisorError(
                f"QEMU at {self._qmp.path} is set to {', '.join(found)}, which cannot be carried: "
                f"turn that off (migrate-set-capabilities)"
            )

    async def _compare(self) -> None:
        found = differences(decode_config(self._guest.config), await read_config(self._qmp))
        said = await self._qmp.execute("query-memory-size-summary")
        memory = said["base-memory"] + said.get("plugged-memory", 0)
        if memory != self._guest.memory:
            found.append(f"{memory} bytes of memory where the source has {self._guest.memory}")
        vcpus = len(await self._qmp.execute("query-cpus-fast"))
        if vcpus != self._guest.vcpus:
            found.append(f"{vcpus} processors where the source has {self._guest.vcpus}")
        if found:
            raise HypervisorError(
                f"guest {self._guest.name} cannot go on in this QEMU: {'; '.join(found)}"
            )

    async def receive(self) -> None:
        """Hand QEMU all that comes; on return it says ``completed``, and the guest is paused.

        QEMU ends if the stream is broken or wrong.
        """
        if self._over:
            raise HypervisorError(f"guest {self._guest.name}: its arrival has ended")
        self._carried.start()
        try:
            await raced(self._migration.reach(("completed",)), self._carried)
        except GuestStopped as error:
            if failure := self._carried.failure:
                raise failure from error
            said = f": {self._started.said()}" if self._started is not None else ""
            raise HypervisorError(
                f"guest {self._guest.name}: QEMU did not take its memory{said}"
            ) from error
        self._complete = True

    async def activate(self) -> None:
        """``cont``; on return QEMU says that the guest runs."""
        if not self._complete:
            raise HypervisorError(f"guest {self._guest.name} is not complete")
        self._active = True
        with self._qmp.listen("RESUME", "SHUTDOWN") as events:
            await self._qmp.execute("cont")
            if not (await self._qmp.execute("query-status"))["running"]:
                await events.wait(timeout=self._options.timeout)
        self._migration.deafen()

    @contextlib.asynccontextmanager
    async def pivoting(self, disk: ArrivingDisk) -> AsyncIterator[None]:
        """As ``Pivots.held``."""
        async with self._pivots.held(disk):
            yield

    async def pivot(self, disk: ArrivingDisk) -> None:
        """As ``Pivots.pivot``."""
        await self._pivots.pivot(disk)

    async def finish(self) -> None:
        """Put the settings back and let go of the monitor."""
        if self._over:
            return
        with contextlib.suppress(QmpError):
            await self._migration.restore()
        await self._close()
        if self._started is not None:
            self._started.forget()

    async def leave(self) -> None:
        """Take back what ``prepare`` did, if it failed: a QEMU that was touched is ended."""
        if self._touched:
            await self.abort()
        else:
            await self._close()

    async def abort(self) -> None:
        """End the waiting QEMU, which cannot wait for another guest, and remove what was made."""
        if self._active:
            raise HypervisorError(f"guest {self._guest.name} runs here and cannot be aborted")
        if self._over:
            return
        await self._carried.close()  # a QEMU that waits for more of the stream does not quit
        if self._started is not None:
            await self._started.kill()
        else:
            await end_qemu(self._qmp.path, _PATIENCE)
        await self._close()

    async def _close(self) -> None:
        self._over = True
        self._migration.deafen()
        await self._carried.close()
        with contextlib.suppress(QmpError):
            await self._qmp.close()
