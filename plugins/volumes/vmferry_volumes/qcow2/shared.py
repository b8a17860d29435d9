"""One image and all of this process's volumes of it, served by one daemon.

An image's tables are cached by whoever has it open, so that a second opener does not see what the
first one writes. Hence all volumes of an image share one daemon: a writing one as long as there is
a writer, a reading one otherwise. Requests wait while one takes over from the other.
"""

from __future__ import annotations

import asyncio
import os
import weakref

from vmferry.errors import VolumeBusy, VolumeError, VolumeGeometry
from vmferry_support.nbd import NbdClient, NbdLost
from vmferry_support.outlast import finished
from vmferry_support.storage_daemon import StorageDaemon, StorageDaemonFailed
from vmferry_volumes.claim import is_written
from vmferry_volumes.nbd_volume import Backend, NbdVolume
from vmferry_volumes.qcow2.images import node
from vmferry_volumes.threads import in_thread

__all__ = ["SharedImage"]

_LOCKED = 'Failed to get "'


class SharedImage(Backend):
    """An image that at least one volume of this event loop has open, or is about to."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._changing = asyncio.Lock()
        self._waiting = 0
        self._flatten = False
        self._users: set[NbdVolume] = set()
        self._writer: NbdVolume | None = None
        self._daemon: StorageDaemon | None = None
        self._reason = VolumeError(f"{what} is closed")
        self._under_way = 0
        self._idle, self._ready = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._ready.set()

    @classmethod
    def at(cls, path: str) -> SharedImage:
        """The one of the image at ``path`` in this event loop."""
        images = _images.setdefault(asyncio.get_running_loop(), {})
        return images.setdefault(os.path.realpath(path), cls(path))

    async def join(self, volume: NbdVolume, *, write: bool, flatten: bool) -> None:
        """Serve one volume more.

        Raises:
            VolumeBusy: the image is being written, by this process or another.
            VolumeError: the daemon cannot open it.

        """
        self._waiting += 1
        try:
            async with self._changing:
                await finished(self._join(volume, write=write, flatten=flatten))
        finally:
            self._waiting -= 1
            self._forget_if_unused()

    async def _join(self, volume: NbdVolume, *, write: bool, flatten: bool) -> None:
        if write and self._writer is not None:
            raise VolumeBusy(f"{self.what} is open for writing already; close that first")
        if write or self._daemon is None:
            if not write and await in_thread(is_written, self.what):
                raise VolumeBusy(
                    f"{self.what} is being written by somebody else, so that its tables change "
                    "under a reader; read a running QEMU's disk by the volume qemu"
                )
            self._flatten = flatten
            await self._serve(write=write)
        self._users.add(volume)
        if write:
            self._writer = volume

    async def hand_over(self, volume: NbdVolume) -> None:
        """Let somebody else write the image; ``volume`` reads on."""
        async with self._changing:
            if self._writer is volume:
                await finished(self._to_reading())

    async def _to_reading(self) -> None:
        await self._hold()
        try:
            await self._end_daemon()
            self._writer = None
            self._daemon = await self._started(write=False)
        except VolumeError as error:
            self._reason = error
            raise
        finally:
            self._ready.set()

    async def release(self, volume: NbdVolume) -> None:
        """Serve one volume fewer, and nobody if it was the last."""
        await finished(self._release(volume))

    async def _release(self, volume: NbdVolume) -> None:
        async with self._changing:
            self._users.discard(volume)
            if not self._users:
                self._writer = None
                await self._end_daemon()
            elif self._writer is volume:
                await self._to_reading()
        self._forget_if_unused()

    def _forget_if_unused(self) -> None:
        if self._users or self._waiting:
            return
        images = _images.get(asyncio.get_running_loop(), {})
        for path in [path for path, image in images.items() if image is self]:
            del images[path]

    async def _serve(self, *, write: bool) -> None:
        """Start a daemon; the one there was, a reading one, ends when the new one serves."""
        new = await self._started(write=write)
        await self._hold()
        try:
            await self._end_daemon()
            self._daemon = new
        finally:
            self._ready.set()

    async def _started(self, *, write: bool) -> StorageDaemon:
        try:
            return await StorageDaemon.start(
                node(self.what, write=write, flatten=self._flatten), writable=write
            )
        except StorageDaemonFailed as error:
            if _LOCKED in error.complaint:
                raise VolumeBusy(
                    f"{self.what} is in use by somebody else; stop the guest or program that uses "
                    f"it ({error.complaint})"
                ) from error
            raise VolumeGeometry(f"{self.what} cannot be opened: {error.complaint}") from error

    async def _end_daemon(self) -> None:
        daemon, self._daemon = self._daemon, None
        if daemon is not None:
            await daemon.stop()

    async def _hold(self) -> None:
        """Return when no request is under way; later ones wait until ``_ready`` is set."""
        self._ready.clear()
        await self._idle.wait()

    async def enter(self) -> NbdClient:
        """The connection for one request."""
        while not self._ready.is_set():
            await self._ready.wait()
        if self._daemon is None:
            raise VolumeError(str(self._reason))
        self._under_way += 1
        self._idle.clear()
        return self._daemon.client

    def leave(self) -> None:
        """A request has ended."""
        self._under_way -= 1
        if not self._under_way:
            self._idle.set()

    def explain(self, lost: NbdLost) -> VolumeError:
        """The daemon's own last words, if it had any."""
        said = self._daemon.complaint() if self._daemon else ""
        return VolumeError(
            f"{self.what} is no longer served: {said or lost}; check the image by `qemu-img check`"
        )


_Loop = asyncio.AbstractEventLoop
_images: weakref.WeakKeyDictionary[_Loop, dict[str, SharedImage]] = weakref.WeakKeyDictionary()
