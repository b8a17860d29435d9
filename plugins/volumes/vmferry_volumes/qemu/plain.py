"""The file or device behind a block node whose bytes are the guest's as they are.

A raw disk is read twice if QEMU reads it for us: into QEMU, and out of its socket again. So it is
read as QEMU itself reads it, through the page cache or past it: what one has written the other then
finds, from the moment that the write has ended. (Of an asynchronous write past the cache to a block
device, pages in the cache are not told: ``blkdev_direct_write`` in block/fops.c.)
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

from vmferry.api.volume import Access
from vmferry.errors import VolumeBusy, VolumeError
from vmferry_support.outlast import finished
from vmferry_support.qmp import Qmp
from vmferry_volumes.claim import claim_file
from vmferry_volumes.disks import OpenDisk, open_disk
from vmferry_volumes.raw_volume import RawVolume
from vmferry_volumes.threads import acquire, in_thread

__all__ = ["PlainVolume", "open_plain"]

_RAW = "raw"
_ON_HOST = ("file", "host_device")
_OWN = ("/proc/", "/dev/fd/")
"""Names that are another file's for each process."""
_SECTOR = 512
Json = Mapping[str, Any]


class PlainVolume(RawVolume):
    """The file, and all that must be undone when it is closed.

    It is read on when QEMU has ended, which has kept others from it until then: as long as no other
    QEMU writes it, and from then on none can.
    """

    def __init__(self, disk: OpenDisk, qmp: Qmp, undo: AsyncExitStack) -> None:
        super().__init__(disk)
        self._qmp, self._undo = qmp, undo
        self._claiming = asyncio.Lock()

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """As any raw volume's; ``VolumeError`` if QEMU has ended and another guest has the file."""
        with self._gate:
            await super().read_into(offset, buffer)
            if self._qmp.lost:
                await self._guard()

    async def _guard(self) -> None:
        async with self._claiming:
            if self._claim < 0:
                self._claim = await acquire(self._claimed, os.close)

    def _claimed(self) -> int:
        try:  # QEMU locks devices as it does files
            return claim_file(f"/proc/self/fd/{self._disk.fd}")  # whatever has its name by now
        except OSError as error:
            raise VolumeError(f"{self._disk.path} was let go of by QEMU: {error}") from error
        except VolumeBusy as error:
            raise VolumeError(
                f"{self._disk.path} was let go of by QEMU and is written by another program: "
                "what is still to be read there may not be the guest's any more"
            ) from error

    async def close(self) -> None:
        """As any raw volume's; then undo the rest, whatever became of the first."""
        try:
            await super().close()
        finally:
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
    file = _file_of(await qmp.execute("query-named-block-nodes", flat=True), node)
    if file is None:
        return None

    def opened() -> OpenDisk:
        return open_disk(file.path, Access.READ, _SECTOR, "on" if file.direct else "auto")

    try:
        disk = await acquire(opened, OpenDisk.close)
    except VolumeError:
        return None
    if not await in_thread(_is_it, disk, size, qmp.process, file.direct):
        await in_thread(disk.close)
        return None
    return PlainVolume(disk, qmp, undo.pop_all())


def _file_of(nodes: Sequence[Json], name: str) -> _File | None:
    """Its path, which QEMU gives for a raw node only if nothing else is to be known of it."""
    top = next((node for node in nodes if node.get("node-name") == name), {})
    path = str(top.get("file") or "")
    below = [node for node in nodes if node.get("file") == path and node.get("drv") in _ON_HOST]
    if top.get("drv") not in (_RAW, *_ON_HOST) or len(below) != 1:
        return None
    if not path.startswith("/") or path.startswith(_OWN):
        return None
    return _File(path, below[0]["cache"]["direct"])


def _is_it(disk: OpenDisk, size: int, process: int, direct: bool) -> bool:
    """Whether what was opened is as large and as finely read as wanted, and the process has it.

    The process may have another root, and a name may have become another file's.
    """
    found = disk.geometry
    if found.size != size or (found.sector_size > _SECTOR and not direct):
        return False
    try:
        wanted = os.fstat(disk.fd)
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
