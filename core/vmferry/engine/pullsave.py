"""Keeping the pending map on disk, behind the data and never ahead of it.

After a crash the map on disk, *S*, is the pending map. So at every moment:

* *S is not ahead*: a block that S calls local is durable in the volume as it was when it became
  local. A map is saved only after a ``volume.flush`` that began when the map had been copied.
* *S is not behind a promise*: once a ``flush`` has returned, no block with a guest's write that was
  completed before it is pending in S. Otherwise the block would be fetched again and the write be
  lost. So a flush saves the map if, since the last one saved, the guest wrote a block pending in S.

A block that only arrived from the source may be pending in S: it would be fetched again, the same.
Saves go one after the other, so that an older map never replaces a younger one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from vmferry.api import Volume
from vmferry.dirtymap import DirtyMap
from vmferry.engine.context import Workers
from vmferry.engine.maps import encoded
from vmferry.engine.outlast import outlast
from vmferry.errors import VolumeError

__all__ = ["MapKeeper", "Save"]

Save = Callable[[bytes], Awaitable[None]]
"""``await save(encoded)`` makes an encoded pending map durable before it returns."""


class _Batch:
    """Callers that share one flush, since none of them came after it began."""

    def __init__(self) -> None:
        self.save_map = False
        self.task: asyncio.Task[None] | None = None


class MapKeeper:
    """Flushes a volume and saves the pending map that goes with it.

    Args:
        volume: where the data is.
        pending: the disk's pending map, equal to the one on disk.
        save: how to put an encoded map on disk.
        workers: where to encode it.

    """

    def __init__(self, volume: Volume, pending: DirtyMap, save: Save, workers: Workers) -> None:
        self._volume, self._pending, self._save, self._workers = volume, pending, save, workers
        self._saved = pending.copy()
        self._changes = self._saved_changes = 0
        self._writes = self._saved_writes = 0
        self._turn = asyncio.Lock()
        self._next: _Batch | None = None
        self._broken: Exception | None = None

    @property
    def settled(self) -> bool:
        """Whether the map on disk calls everything local, so that nothing is left to save."""
        return not self._saved

    def cleared(self) -> None:
        """The pending map lost blocks."""
        self._changes += 1

    def wrote(self, offset: int, length: int) -> None:
        """The guest's write to the range is complete; to be called before it is told so."""
        if self._saved.any(offset, length):
            self._writes += 1

    async def flush(self) -> None:
        """Make every write of the guest that was completed before the call survive a crash."""
        if self.settled:
            await self._flush_volume()
        else:
            await self._join(save_map=False)

    async def checkpoint(self) -> None:
        """Save the map if it changed, behind the data: what became local need not come again."""
        if self._broken is not None or self._changes != self._saved_changes:
            await self._join(save_map=True)

    async def _flush_volume(self) -> None:
        """Flush, and never trust the volume again if that fails once.

        Linux reports a lost write to one ``fsync`` only, and the next one succeeds
        (https://wiki.postgresql.org/wiki/Fsync_Errors). What the map calls local may be gone.
        """
        if self._broken is not None:
            raise VolumeError(f"an earlier flush failed: {self._broken}") from self._broken
        try:
            await self._volume.flush()
        except (OSError, VolumeError) as error:
            self._broken = error
            raise

    async def _join(self, *, save_map: bool) -> None:
        batch = self._next
        if batch is None:
            batch = self._next = _Batch()
            batch.task = asyncio.ensure_future(self._run(batch))
        batch.save_map |= save_map
        assert batch.task is not None
        await outlast(batch.task)

    async def _run(self, batch: _Batch) -> None:
        async with self._turn:
            self._next = None  # who comes from here on needs a flush that begins later
            await self._sync(save_map=batch.save_map)

    async def _sync(self, *, save_map: bool) -> None:
        writes, changes = self._writes, self._changes
        if not save_map and writes == self._saved_writes:
            await self._flush_volume()
            return
        snapshot = self._pending.copy()
        await self._flush_volume()
        await self._save(await encoded(snapshot, self._workers))
        self._saved, self._saved_writes, self._saved_changes = snapshot, writes, changes
