"""The plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.api.plugin import Grade
from vmferry.api.tracker import Tracker, TrackerCapabilities
from vmferry.dirtymap import DirtyMap
from vmferry.errors import TrackerError
from vmferry_support.nbd import NbdError
from vmferry_support.outlast import finished, outlast
from vmferry_support.qemu_nodes import Node, NodeMissing
from vmferry_support.qmp import Qmp, QmpError, QmpLost
from vmferry_trackers.qcow2.bitmaps import Bitmaps
from vmferry_trackers.qcow2.options import Qcow2TrackerOptions

__all__ = ["Qcow2Tracker"]

_ERRORS = (QmpError, NbdError)
_LARGEST = 1 << 31
"""Bytes of a bit at most (``block-dirty-bitmap-add``)."""


class Qcow2Tracker(Tracker[Qcow2TrackerOptions]):
    """Tracks a disk with the facts ``qmp``, a monitor socket of its QEMU, and ``node``.

    The node is the one that the guest's device uses; its disk may be raw or of any format. A third
    fact, ``nbd``, is the unix socket of an NBD server that the user runs in that QEMU. Bitmaps of
    others are left alone.
    """

    api_version = 1
    name = "qcow2"
    summary = "the disk is served by a running QEMU, which marks writes in dirty bitmaps"
    options_type = Qcow2TrackerOptions
    capabilities: ClassVar[TrackerCapabilities] = TrackerCapabilities(
        live=Grade.NATIVE, discards=Grade.NATIVE
    )
    options: Qcow2TrackerOptions

    def __init__(self, options: Qcow2TrackerOptions | None = None) -> None:
        super().__init__(options)
        self._disk: Disk | None = None
        self._bitmaps: Bitmaps | None = None
        self._block_size = 0
        self._owed: DirtyMap | None = None
        self._guarded = False
        self._turn = asyncio.Lock()

    async def check(self, disk: Disk, block_size: int) -> Sequence[Finding]:
        """Missing facts, no monitor, no such node, another size, or tracked by another job."""
        try:
            bitmaps = await self._attached(disk)
        except TrackerError as error:
            return [Finding.error("qcow2-unreachable", str(error), _REMEDY)]
        try:
            return await self._judge(disk, bitmaps)
        except _ERRORS as error:
            return [Finding.error("qcow2-node", f"disk {disk.name!r}: {error}", _REMEDY)]
        finally:
            await bitmaps.qmp.close()

    async def _judge(self, disk: Disk, bitmaps: Bitmaps) -> list[Finding]:
        found = []
        reason = _unfit(disk, await bitmaps.look())
        if reason:
            found.append(Finding.error("qcow2-unfit", reason))
        if others := await bitmaps.others():
            found.append(
                Finding.error(
                    "qcow2-tracked",
                    f"disk {disk.name!r} is tracked by another migration: {', '.join(others)}",
                    "let that migration end, or end it",
                )
            )
        return found

    async def start(self, disk: Disk, block_size: int) -> int:
        """Add a bitmap to the disk's node; what an ended process of ours left there is removed."""
        await self.stop()
        self._bitmaps = await self._attached(disk)
        self._disk, self._block_size = disk, min(block_size, _LARGEST)
        try:
            await self._begin(disk, self._bitmaps)
        except BaseException as error:
            with suppress(TrackerError):
                await self.stop()
            if isinstance(error, _ERRORS):
                raise TrackerError(f"disk {disk.name!r} cannot be tracked: {error}") from error
            raise
        return self._block_size

    async def _begin(self, disk: Disk, bitmaps: Bitmaps) -> None:
        if reason := _unfit(disk, await bitmaps.look()):
            raise TrackerError(reason)
        if others := await bitmaps.others():
            raise TrackerError(f"disk {disk.name!r} is tracked by somebody else: {others}")
        await bitmaps.sweep()
        await finished(bitmaps.add_live(self._block_size))
        self._guarded = await bitmaps.is_in_use()
        self._owed = await self._base(disk, bitmaps) if self.options.base else None

    async def _base(self, disk: Disk, bitmaps: Bitmaps) -> DirtyMap:
        """What the base holds, or everything."""
        base = (await bitmaps.look()).bitmaps.get(self.options.base)
        if base is None or base.inconsistent or not base.recording:
            return DirtyMap.full(disk.size, self._block_size)
        return await bitmaps.read(base.name, base.granularity, self._block_size)

    async def harvest(self) -> DirtyMap:
        """Take a snapshot and what it holds; everything, if the bitmap was lost meanwhile.

        Raises:
            TrackerError: QEMU refused, or the guest writes to another node by now.

        """
        async with self._turn:
            disk, bitmaps = self._tracked()
            work = asyncio.ensure_future(self._round(disk, bitmaps))
            try:
                dirty = await outlast(work)
            except _ERRORS as error:
                raise TrackerError(f"tracking disk {disk.name!r} failed: {error}") from error
            except asyncio.CancelledError:
                if not work.cancelled() and work.exception() is None:
                    self._owe(work.result())
                raise
            owed, self._owed = self._owed, None
            return dirty if owed is None else dirty | owed

    async def _round(self, disk: Disk, bitmaps: Bitmaps) -> DirtyMap:
        """Swap the bitmaps; read and remove the one that recorded.

        What fails on the way is mended by the next round.
        """
        await bitmaps.settle()
        if self._guarded and not await bitmaps.is_in_use():
            raise TrackerError(_MOVED.format(disk=disk.name, node=bitmaps.node))
        node = await bitmaps.look()
        if not bitmaps.find_live(node, self._block_size):
            await bitmaps.begin_again(node, self._block_size)
            return DirtyMap.full(disk.size, self._block_size)
        await bitmaps.gather(node)
        recorded, copy = await bitmaps.swap(self._block_size)
        try:
            dirty = await bitmaps.read_recorded(recorded, copy, self._block_size)
        except BaseException:
            with suppress(QmpError):
                await bitmaps.take_back(recorded)
            raise
        bitmaps.end_round(recorded)
        return dirty

    def _owe(self, dirty: DirtyMap) -> None:
        self._owed = dirty if self._owed is None else self._owed | dirty

    async def drain(self) -> None:
        """Wait until QEMU has nothing under way."""
        disk, bitmaps = self._tracked()
        try:
            await bitmaps.drain(self.options.drain_timeout)
        except QmpError as error:
            raise TrackerError(f"disk {disk.name!r} cannot be drained: {error}") from error

    async def stop(self) -> None:
        """Remove our bitmaps and exports; a QEMU that is gone has none."""
        await finished(self._stop())

    async def _stop(self) -> None:
        async with self._turn:
            bitmaps, self._bitmaps = self._bitmaps, None
            disk, self._disk, self._owed = self._disk, None, None
            if bitmaps is None or disk is None:
                return
            try:
                with suppress(*_ERRORS):  # what is still there is swept
                    await bitmaps.settle()
                await bitmaps.sweep()
            except (QmpLost, NodeMissing):
                return
            except QmpError as error:
                raise TrackerError(
                    f"tracking disk {disk.name!r} cannot be ended: {error}"
                ) from error
            finally:
                await bitmaps.qmp.close()

    async def _attached(self, disk: Disk) -> Bitmaps:
        for fact, meaning in _FACTS.items():
            if not disk.facts.get(fact):
                raise TrackerError(f"disk {disk.name!r} has no fact {fact!r}, {meaning}")
        try:
            qmp = await Qmp.connect(disk.facts["qmp"], timeout=self.options.connect_timeout)
        except QmpError as error:
            raise TrackerError(f"disk {disk.name!r}: {error}") from error
        return Bitmaps(qmp, disk.facts["node"], disk.size, disk.facts.get("nbd", ""))

    def _tracked(self) -> tuple[Disk, Bitmaps]:
        if self._disk is None or self._bitmaps is None:
            raise TrackerError("the tracker was not started")
        return self._disk, self._bitmaps


_FACTS = {
    "qmp": "the monitor socket of its QEMU",
    "node": "the name of the block node that the guest's device uses",
}
_MOVED = (
    "disk {disk!r}: the guest's device is not on node {node!r} any more, since somebody has taken "
    "a snapshot or ended a block job; what it writes now is tracked nowhere"
)
_REMEDY = "correct the disk's facts, or choose the tracker that suits its backend"


def _unfit(disk: Disk, node: Node) -> str:
    if node.size != disk.size:
        return f"disk {disk.name!r} has {disk.size} bytes, but its node {node.name!r} {node.size}"
    return ""
