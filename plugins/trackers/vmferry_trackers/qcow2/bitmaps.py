"""The bitmaps of one tracked node, in QEMU: one that records, and before it the one that did.

QEMU marks a write at its completion, before the guest is told (``bdrv_co_write_req_finish`` in
block/io.c), in every bitmap that records. For each round the next bitmap is added before the last
one is disabled, so that a write is in one of them or in both, also where a disk's I/O runs in a
thread of its own: copying and then clearing a single one would lose what is marked in between. Only
a disabled bitmap can be exported, and it is busy meanwhile.
"""

from __future__ import annotations

import re

from vmferry.dirtymap import DirtyMap
from vmferry_support.outlast import Chores
from vmferry_support.qemu_exports import QemuExports, is_left_over, our_name
from vmferry_support.qemu_nodes import Node, find_node
from vmferry_support.qmp import Qmp, QmpRefused
from vmferry_trackers.qcow2.copies import BitmapCopy, sweep_copies

__all__ = ["Bitmaps"]

_OURS = re.compile(r"vmferry-\d+-dirty-[ab]")


class Bitmaps:
    """Ours, on the node ``node`` of ``size`` bytes; every failure is a ``QmpError``, ``NbdError``.

    What is read leaves things to remove: ``settle`` before the next round.

    Attributes:
        live: the one that records.

    """

    def __init__(self, qmp: Qmp, node: str, size: int, server: str) -> None:
        self.qmp, self.node, self._size = qmp, node, size
        self._exports = QemuExports(qmp, server)
        self._pair = our_name("dirty-a"), our_name("dirty-b")
        self.live = self._pair[0]
        self._chores = Chores()
        self._spare: BitmapCopy | None = None

    async def look(self) -> Node:
        """The node as it is."""
        return await find_node(self.qmp, self.node)

    async def is_in_use(self) -> bool:
        """Whether a device of the guest is on the node, and not on another above or beside it."""
        devices = await self.qmp.execute("query-block")
        return any(one.get("inserted", {}).get("node-name") == self.node for one in devices)

    async def add_live(self, granularity: int) -> None:
        """Begin to record."""
        await self.qmp.execute(
            "block-dirty-bitmap-add", node=self.node, name=self.live, granularity=granularity
        )

    def find_live(self, node: Node, granularity: int) -> bool:
        """See which one records; False if none does, so that nothing is known of what was written.

        After a swap without an answer it may be either.
        """
        sound = [
            name
            for name in self._pair
            if (bitmap := node.bitmaps.get(name)) is not None
            and bitmap.recording
            and not bitmap.inconsistent
            and bitmap.granularity == granularity
        ]
        if sound and self.live not in sound:
            self.live = sound[0]
        return bool(sound)

    async def begin_again(self, node: Node, granularity: int) -> None:
        """Add one in place of those there are."""
        for name in self._pair:
            if name in node.bitmaps:
                await self.remove(name)
        await self.add_live(granularity)

    async def gather(self, node: Node) -> None:
        """Put what an unfinished round has left into the one that records."""
        if self._idle in node.bitmaps:
            await self.take_back(self._idle)

    async def swap(self, granularity: int) -> tuple[str, BitmapCopy]:
        """Record in the other one from here on; returns the one that did, now disabled, and a copy.

        The copy is for ``read_recorded``, which removes it.
        """
        before, after = self.live, self._idle
        added = {"node": self.node, "name": after, "granularity": granularity}
        disabled = {"node": self.node, "name": before}
        copy = await self._ready_copy()
        try:
            await self.qmp.execute(
                "transaction",
                actions=[
                    {"type": "block-dirty-bitmap-add", "data": added},
                    {"type": "block-dirty-bitmap-disable", "data": disabled},
                    *copy.taking(self.node, before, granularity),
                ],
            )
        except BaseException:
            self._chores.add(copy.remove())
            raise
        self.live = after
        return before, copy

    async def _ready_copy(self) -> BitmapCopy:
        copy, self._spare = self._spare, None
        return copy or await self._new_copy()

    async def _new_copy(self) -> BitmapCopy:
        copy = BitmapCopy(self.qmp, self._exports, self._size)
        await copy.make()
        return copy

    async def _make_spare(self) -> None:
        self._spare = await self._new_copy()

    async def take_back(self, name: str) -> None:
        """Put what ``name`` holds into the one that records, and remove it."""
        await self.qmp.execute(
            "block-dirty-bitmap-merge", node=self.node, target=self.live, bitmaps=[name]
        )
        await self.remove(name)

    @property
    def _idle(self) -> str:
        return self._pair[self.live == self._pair[0]]

    async def read(self, name: str, granularity: int, block_size: int) -> DirtyMap:
        """What a bitmap of ``granularity`` holds at the moment."""
        copy = await self._ready_copy()
        try:
            actions = copy.taking(self.node, name, granularity)
            await self.qmp.execute("transaction", actions=actions)
            return await copy.read(block_size)
        finally:
            self._chores.add(copy.remove())

    async def read_recorded(self, name: str, copy: BitmapCopy, granularity: int) -> DirtyMap:
        """What ``swap`` has returned holds, which records no more."""
        try:
            bitmap = (await self.look()).bitmaps.get(name)
            if bitmap is not None and not bitmap.count:
                return DirtyMap(self._size, granularity)
            return await copy.read(granularity)
        finally:
            self._chores.add(copy.remove())

    def end_round(self, name: str) -> None:
        """Remove a bitmap that was read, and prepare the next round; ``settle`` waits for it."""
        self._chores.add(self.remove(name))
        self._chores.add(self._make_spare())

    async def settle(self) -> None:
        """Return when what was left to remove is removed, also when cancelled meanwhile."""
        await self._chores.done()

    async def remove(self, name: str) -> None:
        """Remove a bitmap; none is no error."""
        try:
            await self.qmp.execute("block-dirty-bitmap-remove", node=self.node, name=name)
        except QmpRefused:
            if name in (await self.look()).bitmaps:
                raise

    async def drain(self, timeout: float) -> None:
        """Wait for all I/O under way: ``qmp_transaction`` (blockdev.c) begins by that."""
        await self.qmp.execute("transaction", actions=[], timeout=timeout)

    async def sweep(self) -> None:
        """Remove all of ours, and what processes left that are no more."""
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.remove()
        await self._exports.sweep()
        await sweep_copies(self.qmp)
        for name in (await self.look()).bitmaps:
            if name in self._pair or is_left_over(name):
                await self.remove(name)

    async def others(self) -> list[str]:
        """Bitmaps here of other vmferry processes that live."""
        return [
            name
            for name in (await self.look()).bitmaps
            if _OURS.fullmatch(name) and name not in self._pair and not is_left_over(name)
        ]
