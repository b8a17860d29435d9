"""An arriving guest's disks in its QEMU: nothing, then the agent's export, then the plain disk.

The device's node is ``raw`` over something that is exchanged by ``blockdev-reopen``, which lets the
requests under way end first. It is not noticed by the guest.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from vmferry.api.guest import ArrivingDisk
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.describe import Drive
from vmferry_support.qmp import Qmp, QmpRefused

__all__ = ["AttachedDisk", "attach_disks", "match_drives"]


def match_drives(disks: Sequence[ArrivingDisk], drives: Sequence[Drive]) -> dict[str, Drive]:
    """Which of a waiting QEMU's drives is which disk: by name, or the only one is the only one.

    Raises:
        HypervisorError: a disk has no drive, or one of another size, or whose node cannot be
            exchanged, or there is a drive more.

    """
    usable = [drive for drive in drives if not drive.flash]
    names = {drive.name: drive for drive in usable}
    if len(disks) == len(usable) == 1:
        names = {disks[0].disk.name: usable[0]}
    wanted = {arriving.disk.name for arriving in disks}
    if wanted != set(names):
        raise HypervisorError(
            f"the waiting QEMU has drives {sorted(names)}, the guest has {sorted(wanted)}; "
            f"give each -device the id of the source's"
        )
    for arriving in disks:
        _check_drive(arriving, names[arriving.disk.name])
    return names


def _check_drive(arriving: ArrivingDisk, drive: Drive) -> None:
    disk = arriving.disk
    if drive.size != disk.size:
        raise HypervisorError(
            f"disk {disk.name}: {disk.size} bytes, but {drive.size} in the waiting QEMU"
        )
    if drive.driver != "raw" or drive.node.startswith("#"):
        raise HypervisorError(
            f"disk {disk.name}: its node in the waiting QEMU must be a raw one with a name: "
            f"-blockdev raw,node-name=NAME,file=..."
        )
    if drive.read_only != disk.read_only:
        raise HypervisorError(f"disk {disk.name} can be written on one side only")


class AttachedDisk:
    """One disk's nodes.

    Args:
        qmp: the monitor.
        number: of the disk, in the names of its nodes.
        arriving: the disk.
        drive: the device's node as it was found.

    """

    def __init__(self, qmp: Qmp, number: int, arriving: ArrivingDisk, drive: Drive) -> None:
        self._qmp, self._arriving, self._drive = qmp, arriving, drive
        self._remote, self._local = f"vmferry-remote{number}", f"vmferry-local{number}"
        self._void = f"vmferry-void{number}"

    async def attach(self, reconnect: int) -> None:
        """Put the device on the agent's export; requests wait ``reconnect`` seconds for it."""
        url = urlsplit(self._arriving.export)
        server = {"type": "unix", "path": parse_qs(url.query)["socket"][0]}
        await self._qmp.execute(
            "blockdev-add",
            {
                "driver": "nbd",
                "node-name": self._remote,
                "server": server,
                "export": unquote(url.path.removeprefix("/")),
                "reconnect-delay": reconnect,
                "read-only": self._arriving.disk.read_only,
                "discard": "unmap",
            },
        )
        await self._put_on(self._remote)
        with contextlib.suppress(QmpRefused):  # an operator's own node may stay
            await self._qmp.execute("blockdev-del", node_name=self._void)

    async def _put_on(self, child: str) -> None:
        top = {
            "driver": "raw",
            "node-name": self._drive.node,
            "file": child,
            "read-only": self._arriving.disk.read_only,
            "discard": "unmap",
            "detect-zeroes": self._drive.detect_zeroes,
        }
        await self._qmp.execute("blockdev-reopen", options=[top])

    async def pivot(self, *, direct: bool) -> None:
        """Put the device on the plain disk. May be called again if it failed."""
        if await self._is_local():
            return
        await self._exchange(_plain(self._arriving, self._local, direct=direct))
        await self._qmp.execute("blockdev-del", node_name=self._remote)

    async def _is_local(self) -> bool:
        nodes = {each["node-name"] for each in await self._qmp.execute("query-named-block-nodes")}
        if self._local in nodes and self._remote in nodes:  # an attempt that ended halfway
            with contextlib.suppress(QmpRefused):
                await self._qmp.execute("blockdev-del", node_name=self._local)
                return False
            await self._qmp.execute("blockdev-del", node_name=self._remote)
        return self._local in nodes

    async def _exchange(self, local: Mapping[str, Any]) -> None:
        await self._qmp.execute("blockdev-add", local)
        try:
            await self._put_on(self._local)
        except QmpRefused:
            await self._qmp.execute("blockdev-del", node_name=self._local)
            raise


def _plain(arriving: ArrivingDisk, node: str, *, direct: bool) -> dict[str, Any]:
    """The node of the local copy."""
    device = stat.S_ISBLK(os.stat(arriving.location).st_mode)
    protocol: dict[str, Any] = {
        "driver": "host_device" if device else "file",
        "filename": arriving.location,
        "discard": "unmap",
        "cache": {"direct": direct},
        "read-only": arriving.disk.read_only,
    }
    if arriving.volume == "raw":
        return {"node-name": node, **protocol}
    return {
        "driver": arriving.volume,
        "node-name": node,
        "file": protocol,
        "discard": "unmap",
        "cache": {"direct": direct},
        "read-only": arriving.disk.read_only,
    }


async def attach_disks(
    qmp: Qmp, disks: Sequence[ArrivingDisk], drives: Mapping[str, Drive], reconnect: int
) -> dict[str, AttachedDisk]:
    """Attach all, by name."""
    attached = {}
    for number, arriving in enumerate(disks):
        name = arriving.disk.name
        attached[name] = AttachedDisk(qmp, number, arriving, drives[name])
        await attached[name].attach(reconnect)
    return attached
