"""NBD exports of ours in a running QEMU or qemu-storage-daemon, beside those of others.

QEMU has one NBD server at most, and does not tell where it listens. Where none runs, one is started
on a socket of ours, which is found again by a later process; where the user runs one, its socket
must be named. It is stopped with our last export, unless somebody else has one on it by then.

Names begin with ``vmferry-`` and the number of the process that made them, so that what a process
left that is no more can be told from what another one needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import re
import socket
import stat
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from vmferry_support.outlast import finished, outlast
from vmferry_support.qmp import Qmp, QmpError, QmpLost, QmpRefused

__all__ = ["DISK", "QemuExport", "QemuExports", "is_left_over", "is_of_disk", "our_name"]

DISK = "disk"
"""Part of the name of an export by which a migration reads a disk, or would."""
_PREFIX = "vmferry-"
_PATIENCE = 60.0
_SAFE = (9, 0, 0)
_LOOKS = 4
_ACCEPTING = b"00010000"  # __SO_ACCEPTCON, linux/net.h
_count = itertools.count(1)
_locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = (
    weakref.WeakKeyDictionary()
)


def our_name(what: str) -> str:
    """A name in QEMU that says whose it is."""
    return f"{_PREFIX}{os.getpid()}-{what}"


def is_left_over(name: str) -> bool:
    """Whether it was made by a vmferry process that lives no more."""
    number = name.removeprefix(_PREFIX).partition("-")[0]
    if not name.startswith(_PREFIX) or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def is_of_disk(name: str) -> bool:
    """Whether an export is of a disk that a migration may still read."""
    return re.fullmatch(rf"{_PREFIX}\d+-{DISK}-\d+", name) is not None and not is_left_over(name)


class QemuExport(NamedTuple):
    """An export of ours.

    Attributes:
        name: its id in QEMU, and the name an NBD client asks for.
        socket: where the server listens.

    """

    name: str
    socket: str


class QemuExports:
    """Adds and removes exports by a monitor."""

    def __init__(self, qmp: Qmp, server: str = "") -> None:
        """``server`` is the socket of the NBD server that the user runs; ``""`` if none."""
        self._qmp, self._server = qmp, server
        locks = _locks.setdefault(asyncio.get_running_loop(), {})
        self._lock = locks.setdefault(qmp.path, asyncio.Lock())

    async def check(self) -> None:
        """Raise ``QmpError`` if exports of the guest's own nodes are not safe in this QEMU.

        Before 9.0, QEMU aborts when a client leaves an export of a disk whose I/O is done in an
        iothread (``nbd_blockdev_client_closed`` in blockdev-nbd.c, seen with 7.2).
        """
        if self._qmp.version >= _SAFE:
            return
        try:
            threads = await self._qmp.execute("query-iothreads")
        except QmpRefused:  # a storage daemon
            return
        if threads:
            version = ".".join(map(str, self._qmp.version))
            raise QmpError(
                f"QEMU {version} at {self._qmp.path} has iothreads, and would crash when their "
                "disk was exported; use QEMU 9.0 or later, or a guest without iothreads"
            )

    async def add(
        self, node: str, what: str, bitmaps: Sequence[str] = (), *, ours: bool = False
    ) -> QemuExport:
        """Export ``node`` for reading, with these disabled bitmaps of it.

        Args:
            node: its name.
            what: part of the export's name.
            bitmaps: names.
            ours: we have made the node, and it is in no iothread.

        Raises:
            QmpError: there is no such node or bitmap, or an NBD server of unknown address, or
                exports of the guest's nodes are not safe.

        """
        if not ours:
            await self.check()
        adding = asyncio.ensure_future(self._add(node, what, bitmaps))
        try:
            return await outlast(adding)
        except asyncio.CancelledError:
            if not adding.cancelled() and adding.exception() is None:
                await self.remove(adding.result().name)
            raise

    async def _add(self, node: str, what: str, bitmaps: Sequence[str]) -> QemuExport:
        async with self._lock:
            place = self._server or await self._serve()
            name = our_name(f"{what}-{next(_count)}")
            try:
                await self._qmp.execute(
                    "block-export-add",
                    {"type": "nbd", "id": name, "node-name": node, "name": name},
                    bitmaps=list(bitmaps) or None,
                    writable=False,
                )
            except BaseException:
                await self._stop_if_idle()
                raise
            return QemuExport(name, place)

    async def remove(self, name: str) -> None:
        """Remove an export of ours, whoever is connected; no error if it, or QEMU, is gone."""
        await finished(self._remove(name))

    async def _remove(self, name: str) -> None:
        async with self._lock:
            try:
                await self._delete(name)
                await self._stop_if_idle()
            except QmpLost:
                place = _place(self._qmp.path)
                if not self._server and not _listens(place):
                    _unlink(place)

    async def sweep(self) -> None:
        """Remove what vmferry processes that are no more have left."""
        await finished(self._sweep())

    async def _sweep(self) -> None:
        async with self._lock:
            left = [name for name in await self._names() if is_left_over(name)]
            for name in left:
                await self._delete(name)
            if left:
                await self._stop_if_idle()

    async def _names(self) -> list[str]:
        exports: list[dict[str, Any]] = await self._qmp.execute("query-block-exports")
        return [str(export["id"]) for export in exports if export.get("type") == "nbd"]

    async def _delete(self, name: str) -> None:
        """Return when it is gone: until then its bitmaps are busy."""
        with self._qmp.listen("BLOCK_EXPORT_DELETED") as events:
            try:
                await self._qmp.execute("block-export-del", id=name, mode="hard")
            except QmpRefused:
                if name not in await self._names():
                    return
                raise
            await events.wait(lambda event: event.data.get("id") == name, timeout=_PATIENCE)

    async def _serve(self) -> str:
        """The socket of the server that is ours, started if need be."""
        place = _place(self._qmp.path)
        try:
            await self._start(place)
        except QmpRefused as refused:
            if "already running" not in refused.reason:
                raise
            if not _listens(place):
                raise QmpError(
                    f"an NBD server of somebody else's runs in QEMU at {self._qmp.path}, which "
                    "does not tell where it listens; name its unix socket (nbd=PATH)",
                    refused.command,
                ) from refused
        return place

    async def _start(self, place: str) -> None:
        if _listens(place):
            # It is asked for its refusal only: the socket may be that of another, ended QEMU.
            await self._qmp.execute("nbd-server-start", addr=_unix(place))
            return
        listener = _bound(place)
        try:
            await self._qmp.give_fd(_PREFIX + "nbd", listener.fileno())
            await self._qmp.execute(
                "nbd-server-start", addr={"type": "fd", "data": {"str": _PREFIX + "nbd"}}
            )
        except QmpRefused as refused:
            if refused.kind == "CommandNotFound":  # qemu-storage-daemon has no getfd
                await self._qmp.execute("nbd-server-start", addr=_unix(place))
                return
            _unlink(place)
            with suppress(QmpRefused):  # taken already
                await self._qmp.execute("closefd", fdname=_PREFIX + "nbd")
            raise
        finally:
            listener.close()

    async def _stop_if_idle(self) -> None:
        place = _place(self._qmp.path)
        if self._server or await self._names() or not _listens(place):
            return
        with suppress(QmpRefused):  # none runs
            await self._qmp.execute("nbd-server-stop")
        _unlink(place)


def _unix(place: str) -> dict[str, Any]:
    return {"type": "unix", "data": {"path": place}}


def _listens(place: str) -> bool:
    """Whether a socket listens there, by the kernel's table: a server may log a mere knock.

    The table is read in parts, and lacks a socket now and then while others near it come and go.
    """
    looks = _LOOKS if os.path.lexists(place) else 1
    return any(_in_table(place) for _ in range(looks))


def _in_table(place: str) -> bool:
    with open("/proc/net/unix", "rb") as table:
        lines = [line.split(maxsplit=7) for line in table]
    wanted = os.fsencode(place)
    return any(
        len(line) == 8 and line[3] == _ACCEPTING and line[7].rstrip(b"\n") == wanted
        for line in lines
    )


def _bound(place: str) -> socket.socket:
    _unlink(place)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(place)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def _unlink(place: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(place)


def _place(monitor: str) -> str:
    """Where the server of the QEMU with this monitor listens, if it is ours."""
    digest = hashlib.blake2b(os.fsencode(os.path.realpath(monitor)), digest_size=8).hexdigest()
    return f"{_folder()}/{digest}"


def _folder() -> str:
    """A folder of this user's alone, the same for all his processes."""
    user = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if user == 0:
        path = "/run/vmferry/nbd"
    elif runtime:
        path = f"{runtime}/vmferry/nbd"
    else:
        path = f"{tempfile.gettempdir()}/vmferry-{user}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        raise QmpError(f"{path} is not a folder of this user's alone; remove it")
    return path
