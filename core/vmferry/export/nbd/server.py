"""An NBD server for disks of this process, on a unix socket or on loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping
from typing import Final

from vmferry.api.volume import BlockIO
from vmferry.errors import InputError
from vmferry.export.nbd.budget import Limits
from vmferry.export.nbd.connection import Connection
from vmferry.export.nbd.exports import Export
from vmferry.export.nbd.stream import BufferPool
from vmferry.export.sockets import UnixListener, accept_all
from vmferry.units import MIB

__all__ = ["NbdServer"]

_log = logging.getLogger(__name__)
_SOCKET_BUFFER: Final = 2 * MIB
_POLL: Final = 0.001


class NbdServer:
    """Serves any number of ``BlockIO`` by name.

    A client that asks for the empty name gets the only export, if there is one alone. Exports may
    be added and removed at any time, before listening too.
    """

    def __init__(
        self,
        exports: Mapping[str, BlockIO] | None = None,
        *,
        read_only: bool = False,
        limits: Limits | None = None,
    ) -> None:
        """Prepare to serve ``exports``, all ``read_only`` if said so.

        Raises:
            VolumeGeometry: a disk has a sector size or size that NBD cannot express.

        """
        self._limits = limits or Limits()
        self._exports: dict[str, Export] = {}
        self._pool = BufferPool()
        self._connections: set[Connection] = set()
        self._unix: list[UnixListener] = []
        self._listening: dict[asyncio.Task[None], socket.socket] = {}
        for name, io in (exports or {}).items():
            self.add(name, io, read_only=read_only)

    async def __aenter__(self) -> NbdServer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def exports(self) -> tuple[str, ...]:
        """Names of what is served."""
        return tuple(self._exports)

    async def start_unix(self, path: str | os.PathLike[str], mode: int = 0o600) -> None:
        """Listen on the unix socket ``path``; clients can connect on return.

        A socket file that nobody listens on is replaced.

        Raises:
            InputError: the path cannot be used, or somebody listens on it.

        """
        listener = UnixListener(path, mode)
        self._unix.append(listener)
        self._listen(listener.sock)

    async def start_tcp(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen on a loopback address, ``127.0.0.1`` or ``::1``; returns address and port.

        There is neither authentication nor encryption, so other addresses are refused.

        Raises:
            InputError: the address is not loopback, or cannot be used.

        """
        if host not in {"127.0.0.1", "::1"}:
            raise InputError(f"NBD over TCP is served on 127.0.0.1 or ::1 only, not on {host!r}")
        try:
            sock = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise InputError(f"cannot listen on {host}:{port}: {error}") from error
        sock.setblocking(False)
        self._listen(sock)
        return host, sock.getsockname()[1]

    def add(self, name: str, io: BlockIO, read_only: bool = False) -> None:
        """Serve ``io`` as ``name`` from now on.

        Raises:
            InputError: the name is taken or too long.
            VolumeGeometry: NBD cannot express the disk's geometry.

        """
        if name in self._exports:
            raise InputError(f"an export named {name!r} is served already")
        self._exports[name] = Export(name, io, read_only=read_only)

    async def remove(self, name: str) -> None:
        """Stop serving ``name``: answer the requests under way, then drop its connections.

        Requests that outlive the grace period are cancelled. On return nothing of the server uses
        the disk. An unknown name is no error.
        """
        export = self._exports.pop(name, None)
        if export is not None:
            await self._end(export.connections)

    async def settle(self, name: str) -> None:
        """Return once everything that clients of ``name`` have sent is done and answered.

        Meant for a client that is suspended: what it had sent and the server had not read yet
        counts as sent. One that goes on sending may keep this from ever returning.
        """
        export, quiet = self._exports.get(name), 0
        while export is not None and quiet < 2:  # between two looks, what was received gets begun
            await asyncio.sleep(_POLL)
            quiet = quiet + 1 if all(c.idle for c in export.connections) else 0

    async def close(self) -> None:
        """Stop listening, answer the requests under way, drop all clients. May be called twice."""
        listening, self._listening = self._listening, {}
        for task in listening:
            task.cancel()
        if listening:
            await asyncio.wait(listening)
        for listener in self._unix:
            listener.close()
        self._unix.clear()
        for sock in listening.values():
            sock.close()
        self._exports.clear()
        await self._end(self._connections)

    async def _end(self, connections: set[Connection]) -> None:
        await asyncio.gather(*(c.end(self._limits.grace) for c in list(connections)))

    def _listen(self, sock: socket.socket) -> None:
        self._listening[asyncio.create_task(accept_all(sock, self._welcome))] = sock

    def _welcome(self, sock: socket.socket) -> None:
        if len(self._connections) >= self._limits.connections:
            _log.warning("more than %d NBD clients; closing one", self._limits.connections)
            sock.close()
            return
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock, self._exports, self._limits, self._pool)
        self._connections.add(connection)
        connection.finished.add_done_callback(lambda _: self._connections.discard(connection))
