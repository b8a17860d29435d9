"""Tracking of one exported disk on behalf of a client that may vanish at any moment."""

from __future__ import annotations

import secrets

from vmferry.dirtymap import DirtyMap
from vmferry.errors import InputError
from vmferry.export.control import MAX_BLOCKS, ControlRefused
from vmferry.export.tracked import TrackedDisk

__all__ = ["DiskTracking"]


class DiskTracking:
    """Who tracks a disk, and which map was handed out and not confirmed.

    Attributes:
        disk: the disk.
        session: name of the tracking that is on; ``""`` when it is off.

    """

    def __init__(self, name: str, disk: TrackedDisk) -> None:
        self._name, self.disk = name, disk
        self.session = ""
        self._owner: object | None = None
        self._established = False
        self._number = 0
        self._unconfirmed: DirtyMap | None = None

    @property
    def tracked(self) -> bool:
        """Whether the client that tracks the disk is connected."""
        return self._owner is not None

    async def start(self, owner: object, block_size: int) -> int:
        """Begin anew for ``owner``; returns the block size really used.

        Raises:
            ControlRefused: another client is tracking, or the block size is impossible.

        """
        self._refuse_others(owner)
        self._end()
        self._owner, self.session = owner, secrets.token_hex(8)
        while block_size and -(-self.disk.geometry.size // block_size) > MAX_BLOCKS:
            block_size *= 2
        try:
            await self.disk.start(block_size)
        except BaseException as error:
            self._end()
            if isinstance(error, InputError):
                raise ControlRefused("bad-request", str(error)) from error
            raise
        return block_size

    def attach(self, owner: object, session: str) -> int:
        """Go on with ``session`` for ``owner``; returns the block size.

        Whoever knows the session is its tracker, on another connection: the end of the first one
        may not have been noticed yet.
        """
        if not session or session != self.session:
            raise ControlRefused("not-tracking", f"disk {self._name!r}: that session has ended")
        self._owner, self._established = owner, True
        self._put_back()
        return self.disk.block_size

    def harvest(self, owner: object, confirm: int) -> tuple[int, DirtyMap]:
        """Number and contents of a new map; the last one is confirmed or put back."""
        self._refuse_all_but(owner)
        self.confirm(owner, confirm)
        self._put_back()
        self._number += 1
        self._unconfirmed = self.disk.harvest()
        return self._number, self._unconfirmed

    def confirm(self, owner: object, number: int) -> None:
        """Forget the map that was handed out, if that was its number."""
        self._refuse_all_but(owner)
        if number == self._number:
            self._unconfirmed = None

    def stop(self, owner: object, session: str) -> None:
        """Track no longer. Without a session, nothing happens.

        Raises:
            ControlRefused: another client is tracking, or ``session`` is another's.

        """
        if not self.session:
            return
        if session != self.session:
            self._refuse_others(owner)
            if session:
                raise ControlRefused("not-tracking", f"disk {self._name!r}: that session has ended")
        self._end()

    def disown(self, owner: object) -> None:
        """The connection of ``owner`` ended: what it did not confirm may never have arrived.

        Tracking goes on for ``attach``, unless its start itself may never have arrived.
        """
        if self._owner is not owner:
            return
        if not self._established:
            self._end()
            return
        self._owner = None
        self._put_back()

    def _put_back(self) -> None:
        if self._unconfirmed is not None:
            self.disk.restore(self._unconfirmed)
            self._unconfirmed = None

    def _end(self) -> None:
        self.disk.stop()
        self._owner, self.session, self._unconfirmed = None, "", None
        self._established = False

    def _refuse_others(self, owner: object) -> None:
        if self._owner not in {None, owner}:
            raise ControlRefused(
                "busy",
                f"disk {self._name!r} is being tracked by another migration; let it end or end it",
            )

    def _refuse_all_but(self, owner: object) -> None:
        if self._owner is not owner:
            raise ControlRefused(
                "not-tracking", f"disk {self._name!r} is not tracked by this connection"
            )
        self._established = True
