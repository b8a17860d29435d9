"""Contract of a tracker plugin: which blocks of one disk were written since the last harvest.

The invariant of a migration: *no write acknowledged to the guest exists whose bit is clear and
whose data has not been transferred.* A tracker's part of it:

* After ``start`` returns, every write the guest is told has completed is in some later harvest.
  Writes in flight while tracking starts are the trap: enable, wait for those in flight, return.
* ``harvest`` returns what was written and forgets it, atomically. The engine reads a block only
  after the harvest that cleared its bit. A tracker that marks a write only when it is *submitted*
  must wait, inside ``harvest``, for the writes in flight at the swap; one that marks at completion,
  before the acknowledgement, need not.
* A tracker that lost track (overflow, crash, dropped event) returns "everything", never "nothing".
* ``drain`` followed by ``harvest`` after the guest was suspended is complete: no write lands later.
* Writes, zeroes and discards all count as writes.

Harvests may contain blocks that were not written. They never lack one that was.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic

from vmferry.api.findings import Finding
from vmferry.api.guest import Disk
from vmferry.api.plugin import Capabilities, Grade, OptionsT, Plugin
from vmferry.dirtymap import DirtyMap

__all__ = ["Tracker", "TrackerCapabilities"]


class TrackerCapabilities(Capabilities, frozen=True, kw_only=True):
    """What a tracker can do beyond the required core.

    Attributes:
        live: can be started on a disk that a running guest has open.
        discards: tracks discards exactly, rather than as far too much.
        survives: its record outlives a crash of the migration's own process.

    """

    live: Grade = Grade.NATIVE
    discards: Grade = Grade.NATIVE
    survives: Grade = Grade.NONE


class Tracker(Plugin[OptionsT], ABC, Generic[OptionsT]):
    """Tracks one disk.

    Life: ``check``, ``start``, ``harvest`` at will, ``drain``, ``harvest``, ``stop``.
    """

    capabilities: ClassVar[TrackerCapabilities] = TrackerCapabilities()

    async def check(self, disk: Disk, block_size: int) -> Sequence[Finding]:
        """Reasons why ``start`` would fail; changes nothing."""
        return ()

    @abstractmethod
    async def start(self, disk: Disk, block_size: int) -> int:
        """Begin to track ``disk`` in blocks of ``block_size`` bytes (a power of two).

        Returns the block size that is really used, which may be larger if the backend's unit is.
        On return every write acknowledged from here on will be harvested.

        Raises:
            TrackerError: the disk cannot be tracked; nothing was left behind.

        """

    @abstractmethod
    async def harvest(self) -> DirtyMap:
        """Return the blocks written since the last harvest, or since ``start``, and forget them.

        The map has the disk's size and the block size that ``start`` returned; it is the caller's.
        If the call is cancelled or fails, the blocks are in the next harvest.

        Raises:
            TrackerError: tracking broke in a way that "everything" does not mend.

        """

    @abstractmethod
    async def drain(self) -> None:
        """Return when no write of the (suspended) guest is in flight below the tracker.

        Writes in flight have by then reached the disk and are in the next harvest.
        """

    @abstractmethod
    async def stop(self) -> None:
        """End tracking and remove all traces of it. May be called twice, and before ``start``.

        The guest's I/O goes on undisturbed.
        """
