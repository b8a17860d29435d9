"""Copies of bitmaps on nodes of ours: they are exported and read, never the guest's own node.

Only a disabled bitmap can be exported, and it is busy meanwhile. And before 9.0, QEMU aborts when a
client leaves an export of a disk whose I/O is done in an iothread, as it is for all disks of Xen
guests (``nbd_blockdev_client_closed`` in blockdev-nbd.c, hw/block/xen-block.c; seen with 7.2). A
node of ours is in no iothread.
"""

from __future__ import annotations

import itertools
import re

import numpy as np

from vmferry.dirtymap import DirtyMap
from vmferry_support.nbd import NbdClient, NbdRefused, Status, dirty_bitmap
from vmferry_support.qemu_exports import QemuExports, is_left_over, our_name
from vmferry_support.qmp import Qmp, QmpRefused

__all__ = ["BitmapCopy", "sweep_copies"]

_NAME = re.compile(r"vmferry-\d+-copy-\d+")
_count = itertools.count(1)


class BitmapCopy:
    """A node of ``size`` bytes with a copy of one bitmap; failures are ``QmpError``, ``NbdError``.

    Args:
        qmp: the monitor.
        exports: of the same QEMU.
        size: bytes of the disk.

    """

    def __init__(self, qmp: Qmp, exports: QemuExports, size: int) -> None:
        self._qmp, self._exports, self._size = qmp, exports, size
        self._name = our_name(f"copy-{next(_count)}")
        self._export = ""

    async def make(self) -> None:
        """Make the node."""
        await self._qmp.execute(
            "blockdev-add", driver="null-co", node_name=self._name, size=self._size
        )

    def taking(self, node: str, bitmap: str, granularity: int) -> list[dict[str, object]]:
        """Actions of a transaction that copy ``bitmap`` of ``node``, whether or not it records."""
        added = {
            "node": self._name,
            "name": self._name,
            "granularity": granularity,
            "disabled": True,
        }
        source = {"node": node, "name": bitmap}
        merge = {"node": self._name, "target": self._name, "bitmaps": [source]}
        return [
            {"type": "block-dirty-bitmap-add", "data": added},
            {"type": "block-dirty-bitmap-merge", "data": merge},
        ]

    async def read(self, block_size: int) -> DirtyMap:
        """What the copy holds, in blocks of ``block_size``: dirty where any part is."""
        export = await self._exports.add(self._name, "dirty", [self._name], ours=True)
        self._export = export.name
        context = dirty_bitmap(self._name)
        async with await NbdClient.connect(
            export.socket, export.name, contexts=[context]
        ) as client:
            if context not in client.export.contexts:
                raise NbdRefused(f"export {export.name!r} does not show its bitmap")
            return await self._statuses(client, context, block_size)

    async def _statuses(self, client: NbdClient, context: str, block_size: int) -> DirtyMap:
        found = DirtyMap(self._size, block_size)
        async for status in client.statuses(context, 0, min(self._size, client.export.size)):
            _mark(found, status)
        return found

    async def remove(self) -> None:
        """Remove the export and the node; none is no error."""
        if self._export:
            await self._exports.remove(self._export)
        await _remove(self._qmp, self._name)


def _mark(found: DirtyMap, status: Status) -> None:
    ends = status.offset + np.cumsum(status.lengths)
    dirty = (status.flags & 1).astype(bool)
    found.mark_runs((ends - status.lengths)[dirty], status.lengths[dirty])


async def _copies(qmp: Qmp) -> list[str]:
    nodes = await qmp.execute("query-named-block-nodes", flat=True)
    names = [str(node.get("node-name")) for node in nodes]
    return [name for name in names if _NAME.fullmatch(name)]


async def _remove(qmp: Qmp, name: str) -> None:
    try:
        await qmp.execute("blockdev-del", node_name=name)
    except QmpRefused:
        if name in await _copies(qmp):
            raise


async def sweep_copies(qmp: Qmp) -> None:
    """Remove the copies that processes left which are no more, also while others do so."""
    for name in await _copies(qmp):
        if is_left_over(name):
            await _remove(qmp, name)
