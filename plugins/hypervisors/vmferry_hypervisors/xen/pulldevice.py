"""The block device that an arriving guest is given, from before it comes until long after.

::

    before the switch      dm: all ---------------------> loop -> local volume
    PULL                   dm: clean ranges ------------> loop -> local volume
                               pending ranges -> nbd ---> the agent's export
    after the pivot        dm: all -> loop -> local file, or -> local device

The guest has the device-mapper device open throughout; only its table changes. The loop device is
set to vanish with its last user, so it needs no other care.

The NBD device has no size before the switch. The export answers nobody until then, and what udev
reads of every new device would wait: after three minutes udev kills who waits, and until that one
has ended nobody can open the device any more.
"""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from vmferry.api.guest import ArrivingDisk
from vmferry.dirtymap import DirtyMap
from vmferry.errors import HypervisorError, InputError, VmferryError
from vmferry_hypervisors.process.nbd import connect, parse_url
from vmferry_hypervisors.xen.devices import DM_UUID, block_device
from vmferry_hypervisors.xen.modules import load_modules
from vmferry_hypervisors.xen.netlink import (
    connect_nbd,
    disconnect_nbd,
    nbd_devices,
    reconnect_nbd,
    size_nbd,
)
from vmferry_hypervisors.xen.pulltable import local_table, pull_table
from vmferry_support.commands import run
from vmferry_support.dm import DmDevice, DmMissing, Segment

__all__ = ["PREFIX", "PullDevice"]

PREFIX = "vmferry-"
"""How the names of all devices of ours begin."""

_NEGOTIATION = 30.0


class PullDevice:
    """The devices of one arriving disk. Each method raises ``HypervisorError``.

    Attributes:
        name: of the device-mapper device and of the NBD connection: the same whenever asked for.

    """

    def __init__(self, arriving: ArrivingDisk, max_segments: int) -> None:
        self._arriving, self._most = arriving, max_segments
        try:
            export, _ = parse_url(arriving.export)
        except InputError as error:
            raise HypervisorError(str(error)) from error
        self.name = f"{PREFIX}{export}"
        self._dm = DmDevice(self.name)
        self._loop = self._nbd = ""
        self._removed = False

    @property
    def path(self) -> str:
        """What the guest is attached to."""
        return self._dm.path

    @property
    def _size(self) -> int:
        return self._arriving.disk.size

    async def make(self) -> None:
        """Make all devices; on failure what was made is left for ``remove``."""
        try:
            await load_modules()
            self._loop = await self._make_loop()
            uuid = DM_UUID + self.name.removeprefix(PREFIX)
            read_only = self._arriving.disk.read_only
            await self._dm.create(
                local_table(self._size, self._loop), uuid=uuid, read_only=read_only
            )
            await run("losetup", "--detach", self._loop)  # lazily: when the mapping lets go of it
            if not read_only:
                self._nbd = await asyncio.to_thread(self._connect)
        except (VmferryError, OSError) as error:
            text = f"disk {self._arriving.disk.name}: its device could not be made: {error}"
            raise HypervisorError(text) from error

    async def _make_loop(self) -> str:
        """A loop device on the volume: a device is held exclusively by who fills it until then."""
        location, sector = self._arriving.location, self._arriving.disk.sector_size
        options = ["--direct-io=on"] if await asyncio.to_thread(_is_device, location) else []
        answer = await run(
            "losetup", "--find", "--show", "--sector-size", str(sector), *options, location
        )
        return answer.strip()

    def _connect(self) -> str:
        connection, export = connect(self._arriving.export, _NEGOTIATION)
        with connection:
            return connect_nbd(
                connection,
                size=0,
                sector_size=self._arriving.disk.sector_size,
                flags=export.flags,
                identifier=self.name,
            )

    async def adopt(self) -> None:
        """Take up devices that an agent made which has ended; requests that waited for it go on.

        A guest that has shut down meanwhile may have taken its devices along: then there is
        nothing to do, now or at the pivot.
        """
        try:
            table = await self._dm.table()
        except DmMissing:
            self._removed = True
            return
        except VmferryError as error:
            raise HypervisorError(f"disk {self._arriving.disk.name}: {error}") from error
        names = [await asyncio.to_thread(_device_name, each.arguments) for each in table]
        self._loop = next((f"/dev/{name}" for name in names if name.startswith("loop")), "")
        self._nbd = nbd_devices(self.name).get(self.name, "")
        if self._nbd:
            await asyncio.to_thread(self._reconnect)

    def _reconnect(self) -> None:
        connection, _ = connect(self._arriving.export, _NEGOTIATION)
        with connection:
            reconnect_nbd(self._nbd, connection, self.name)

    async def show(self, pending: DirtyMap) -> None:
        """Put pending ranges on the export; the guest is suspended."""
        if not pending:
            return
        if not self._nbd:
            raise HypervisorError(f"disk {self._arriving.disk.name} is read-only, yet dirty")
        await asyncio.to_thread(size_nbd, self._nbd, self._size, self.name)
        table = await asyncio.to_thread(pull_table, pending, self._loop, self._nbd, self._most)
        await self._swap(table)
        if all(each.arguments.startswith(self._nbd) for each in table):
            self._loop = ""  # it has vanished with its last user

    async def pivot(self) -> None:
        """Put everything on the local volume under the running guest; nothing else is left."""
        if self._removed or not await self._exists():
            await self._disconnect()
            return
        device = await asyncio.to_thread(_is_device, self._arriving.location)
        local = self._arriving.location if device else self._loop
        fresh = not local
        if fresh:
            local = self._loop = await self._make_loop()
        await self._swap(local_table(self._size, local))
        if fresh:
            await run("losetup", "--detach", local)
        await self._disconnect()

    async def _exists(self) -> bool:
        try:
            return await self._dm.exists()
        except VmferryError as error:
            raise HypervisorError(f"disk {self._arriving.disk.name}: {error}") from error

    async def _swap(self, table: list[Segment]) -> None:
        """A resume suspends by itself when there is a table to put in force."""
        try:
            await self._dm.load(table, read_only=self._arriving.disk.read_only)
            await self._dm.resume()
        except VmferryError as error:
            raise HypervisorError(f"disk {self._arriving.disk.name}: {error}") from error

    async def _disconnect(self) -> None:
        nbd, self._nbd = self._nbd, ""
        if nbd:
            await asyncio.to_thread(disconnect_nbd, nbd)

    async def remove(self) -> None:
        """Remove all devices; the guest is not attached any more. May be called twice."""
        if self._removed:
            return
        nbd = self._nbd or nbd_devices(self.name).get(self.name, "")
        try:
            if nbd:
                await asyncio.to_thread(disconnect_nbd, nbd)
            await self._dm.remove()
            if self._loop and await asyncio.to_thread(_loop_file, self._loop):
                await run("losetup", "--detach", self._loop)
        except VmferryError as error:
            raise HypervisorError(f"disk {self._arriving.disk.name}: {error}") from error
        self._removed, self._nbd = True, ""


def _device_name(arguments: str) -> str:
    """Kernel's name of the device in the arguments of a linear segment, such as ``7:0 2048``."""
    return block_device(arguments.split()[0]).name


def _is_device(path: str) -> bool:
    return stat.S_ISBLK(Path(path).stat().st_mode)


def _loop_file(loop: str) -> str:
    """The file of a loop device; ``""`` if it has none."""
    try:
        return Path(f"/sys/block/{Path(loop).name}/loop/backing_file").read_text().strip()
    except OSError:
        return ""
