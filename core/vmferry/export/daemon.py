"""The disk daemon: disks of one process, served over NBD and tracked over a control socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from vmferry.api.volume import BlockIO
from vmferry.errors import VmferryError
from vmferry.export.control_server import ControlServer
from vmferry.export.nbd.budget import Limits
from vmferry.export.nbd.server import NbdServer
from vmferry.export.tracked import TrackedDisk
from vmferry.export.tracking import DiskTracking

__all__ = ["ExportDaemon", "ExportPaths", "serve_disks"]

_log = logging.getLogger(__name__)


class ExportPaths(msgspec.Struct, frozen=True, kw_only=True):
    """Where a daemon listens.

    Attributes:
        socket: unix socket for NBD.
        control: unix socket for trackers.

    """

    socket: Path
    control: Path


class ExportDaemon:
    """Serves and tracks ``disks``, by export name. Does not own them: it flushes, not closes them.

    Raises:
        InputError: an export's name is too long.
        VolumeGeometry: NBD cannot express a disk's geometry.

    """

    def __init__(
        self,
        disks: Mapping[str, BlockIO],
        *,
        read_only: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._read_only = read_only
        self._disks = {name: TrackedDisk(disk) for name, disk in disks.items()}
        self._nbd = NbdServer(self._disks, read_only=read_only, limits=limits)
        trackings = {name: DiskTracking(name, disk) for name, disk in self._disks.items()}
        self._control = ControlServer(trackings, settle=self._nbd.settle, read_only=read_only)

    async def start(self, paths: ExportPaths) -> None:
        """Listen; clients can connect to both sockets on return.

        Raises:
            InputError: a socket cannot be made; then neither is left behind.

        """
        try:
            self._control.start(paths.control)
            await self._nbd.start_unix(paths.socket)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Answer the requests under way, drop all clients, flush. May be called twice.

        Raises:
            OSError: a disk could not be flushed: what was written since its last flush may be lost.

        """
        await self._nbd.close()
        await self._control.close()
        if not self._read_only:
            await self._flush()

    async def _flush(self) -> None:
        failures: list[Exception] = []
        for name, disk in self._disks.items():
            try:
                await disk.flush()
            except (OSError, VmferryError) as error:
                _log.error("disk %r could not be flushed: %s", name, error)
                failures.append(error)
        if failures:
            raise failures[0]


async def serve_disks(
    disks: Mapping[str, BlockIO],
    paths: ExportPaths,
    *,
    stop: asyncio.Event,
    ready: Callable[[], None] = lambda: None,
    read_only: bool = False,
) -> None:
    """Serve ``disks`` until ``stop`` is set, then close the daemon; ``ready`` is called in between.

    Raises what ``ExportDaemon`` raises.
    """
    daemon = ExportDaemon(disks, read_only=read_only)
    await daemon.start(paths)
    try:
        ready()
        await stop.wait()
    finally:
        await daemon.close()
