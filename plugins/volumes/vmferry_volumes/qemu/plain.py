"""The file or device behind a block node whose bytes are the guest's as they are.

A raw disk is read twice if QEMU reads it for us: into QEMU, and out of its socket again. So it is
read as QEMU itself reads it, through the page cache or past it: what one has written the other then
finds, from the moment that the write has ended. (Of an asynchronous write past the cache to a block
device, pages in the cache are not told: ``blkdev_direct_write`` in block/fops.c.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from vmferry.api.volume import Access
from vmferry.errors import VolumeError
from vmferry_support.outlast import finished
from vmferry_support.qmp import Qmp
from vmferry_volumes.disks import OpenDisk, open_disk
from vmferry_volumes.raw_volume import RawVolume
from vmferry_volumes.threads import acquire, in_thread

__all__ = ["PlainVolume", "open_plain"]

_RAW = "raw"
_ON_HOST = ("file", "host_device")
_SECTOR = 512
Json = Mapping[str, Any]


class PlainVolume(RawVolume):
    """The file, and all that must be undone when it is closed."""

    def __init__(self, disk: OpenDisk, undo: AsyncExitStack) -> None:
        super().__init__(disk)
        self._undo = undo

    async def close(self) -> None:
        """As any raw volume's; then undo the rest."""
        await super().close()
        await finished(self._undo.aclose())


class _File(NamedTuple):
    path: str
    direct: bool


async def open_plain(qmp: Qmp, node: str, size: int, undo: AsyncExitStack) -> PlainVolume | None:
    """Open for reading what QEMU has open for ``node``; ``None`` if that is not to be had.

    It is if the node is raw, without an offset or filters below it, and its file of ``size`` bytes
    is found by its name as the very file that QEMU has open. A volume takes over ``undo``.

    Raises:
        QmpError: QEMU does not tell of its nodes.

    """
    nodes = await qmp.execute("query-named-block-nodes", flat=True)
    file = _file_of(nodes, node)
    if file is None or not await in_thread(_has_open, qmp.process, file.path):
        return None

    def opened() -> OpenDisk:
        return open_disk(file.path, Access.READ, _SECTOR, "on" if file.direct else "auto")

    try:
        disk = await acquire(opened, OpenDisk.close)
    except VolumeError:
        return None
    if disk.geometry.size != size:
        await in_thread(disk.close)
        return None
    return PlainVolume(disk, undo.pop_all())


def _file_of(nodes: Sequence[Json], name: str) -> _File | None:
    """Its path, which QEMU gives for a raw node only if nothing else is to be known of it."""
    top = next((node for node in nodes if node.get("node-name") == name), {})
    path = str(top.get("file") or "")
    below = [node for node in nodes if node.get("file") == path and node.get("drv") in _ON_HOST]
    if top.get("drv") not in (_RAW, *_ON_HOST) or not path.startswith("/") or not below:
        return None
    return _File(path, any(node["cache"]["direct"] for node in below))


def _has_open(process: int, path: str) -> bool:
    """Whether a process has the file open that we find at ``path``: it may have another root."""
    try:
        wanted = os.stat(path)
        return any(os.path.samestat(wanted, one) for one in _open_files(process))
    except OSError:
        return False


def _open_files(process: int) -> Iterator[os.stat_result]:
    folder = f"/proc/{process}/fd"
    for number in os.listdir(folder):
        try:
            yield os.stat(f"{folder}/{number}")
        except FileNotFoundError:  # closed meanwhile
            continue
