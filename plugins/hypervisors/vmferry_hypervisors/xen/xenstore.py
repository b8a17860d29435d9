"""A client of xenstored over its unix socket.

The protocol is ``xen/include/public/io/xs_wire.h``: a header of four little numbers (type, request,
transaction, length) and a payload of NUL-terminated words. One request at a time and connection;
watches have a connection of their own, on which nothing but events comes once they are set.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Sequence

from vmferry.errors import HypervisorError

__all__ = ["XenStore", "XenStoreMissing"]

_HEADER = struct.Struct("=IIII")
_DIRECTORY, _READ, _WATCH, _WRITE, _RM, _EVENT, _ERROR = 1, 2, 4, 11, 13, 15, 16
_MAX_PAYLOAD = 4096
_SOCKETS = ("/var/run/xenstored/socket", "/run/xenstored/socket")


class XenStoreMissing(HypervisorError):
    """There is nothing at that path of xenstore."""


class XenStore:
    """A connection to xenstored: use it with ``async with``.

    ``socket`` is xenstored's; empty finds it.

    Every method raises ``HypervisorError`` if xenstored refuses or goes away, with the path.
    """

    def __init__(self, socket: str = "") -> None:
        self.socket = socket
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> XenStore:
        path = self.socket or next((each for each in _SOCKETS if os.path.exists(each)), "")  # noqa: ASYNC240 - at once
        if not path:
            raise HypervisorError("xenstored does not run here: no socket /run/xenstored/socket")
        try:
            self._streams = await asyncio.open_unix_connection(path)
        except OSError as error:
            raise HypervisorError(f"xenstored at {path}: {error.strerror}") from error
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def read(self, path: str) -> str:
        """The value at ``path``; raises ``XenStoreMissing``."""
        return (await self._ask(_READ, path)).decode(errors="replace")

    async def get(self, path: str, default: str = "") -> str:
        """The value at ``path``, or ``default`` if there is none."""
        try:
            return await self.read(path)
        except XenStoreMissing:
            return default

    async def list(self, path: str) -> Sequence[str]:
        """Names of the nodes below ``path``; none if it is not there."""
        try:
            answer = await self._ask(_DIRECTORY, path)
        except XenStoreMissing:
            return ()
        return tuple(word.decode(errors="replace") for word in answer.split(b"\0") if word)

    async def write(self, path: str, value: str) -> None:
        """Set the value at ``path``, making it if need be."""
        await self._ask(_WRITE, path, value.encode())

    async def remove(self, path: str) -> None:
        """Remove ``path`` and all below it; nothing there is no error."""
        try:
            await self._ask(_RM, path)
        except XenStoreMissing:
            return

    async def watch(self, path: str) -> None:
        """From here on ``event`` returns ``path`` whenever something at or below it changes."""
        await self._ask(_WATCH, path, b"vmferry\0")

    async def event(self) -> str:
        """The path of the next event of a watch; the first of each comes at once."""
        while True:
            kind, payload = await self._receive()
            if kind == _EVENT:
                return payload.split(b"\0")[0].decode(errors="replace")

    async def _ask(self, kind: int, path: str, more: bytes = b"") -> bytes:
        async with self._lock:
            await self._send(kind, path.encode() + b"\0" + more)
            while True:
                answer, data = await self._receive()
                if answer == _EVENT:
                    continue
                if answer == _ERROR:
                    raise _explain(path, data)
                return data

    async def _send(self, kind: int, payload: bytes) -> None:
        if len(payload) > _MAX_PAYLOAD:
            raise HypervisorError(f"xenstore: a request of {len(payload)} bytes is too long")
        if self._streams is None:
            raise HypervisorError("xenstore: not connected")
        writer = self._streams[1]
        writer.write(_HEADER.pack(kind, 0, 0, len(payload)) + payload)
        await writer.drain()

    async def _receive(self) -> tuple[int, bytes]:
        if self._streams is None:
            raise HypervisorError("xenstore: not connected")
        reader = self._streams[0]
        try:
            kind, _, _, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            if length > _MAX_PAYLOAD:
                raise HypervisorError(f"xenstored sent {length} bytes in one message")
            return kind, await reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise HypervisorError("xenstored ended the connection") from error


def _explain(path: str, data: bytes) -> HypervisorError:
    name = data.rstrip(b"\0").decode(errors="replace")
    if name == "ENOENT":
        return XenStoreMissing(f"xenstore has no {path}")
    number = getattr(errno, name, 0)
    return HypervisorError(f"xenstore: {path}: {os.strerror(number) if number else name}")
