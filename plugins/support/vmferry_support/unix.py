"""Unix sockets whose path may be longer than the 107 bytes that ``sockaddr_un`` holds."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

__all__ = ["connect_unix", "listener_of"]

_CREDENTIALS = struct.Struct("iII")


async def connect_unix(path: str) -> socket.socket:
    """A non-blocking stream socket, connected to the one that listens at ``path``.

    The folder is opened and the socket named relative to it, through ``/proc/self/fd``. A listener
    whose backlog is full is waited for; put ``asyncio.timeout`` around the call.

    Raises:
        OSError: nobody listens there.

    """
    folder, name = os.path.split(path)
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        connection.setblocking(False)
        await _connect(connection, f"/proc/self/fd/{fd}/{name}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(fd)
    return connection


async def _connect(connection: socket.socket, address: str) -> None:
    """``connect(2)`` to a unix socket gives EAGAIN, not EINPROGRESS, while the backlog is full."""
    while True:
        try:
            return connection.connect(address)
        except BlockingIOError:
            await asyncio.sleep(0.01)


def listener_of(connection: socket.socket) -> int:
    """Number of the process that listened where this is connected; 0 if it cannot be seen.

    It need not be the one that serves it: ``SO_PEERCRED`` of unix(7) tells who called listen(2).
    """
    said = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(said)[0])
