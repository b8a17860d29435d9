"""Client of an export's control socket: one request at a time, each answered or timed out.

The protocol is described in ``core/vmferry/export/control.py``.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]
import msgspec

from vmferry.errors import ConnectionLost, LinkTimeout, PeerError, ProtocolError
from vmferry.units import MIB

__all__ = ["ControlClient", "DiskStatus", "Refused", "Reply"]

_MAX_REPLY: Final = 256 * MIB
_LENGTH: Final = 4


class DiskStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One exported disk, as its daemon describes it."""

    size: int
    sector_size: int = 512
    read_only: bool = False
    tracking: bool = False
    tracked: bool = False
    block_size: int = 0


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Any reply; fields that the request does not ask for have their defaults."""

    ok: bool
    code: str = ""
    error: str = ""
    block_size: int = 0
    session: str = ""
    number: int = 0
    map: bytes = b""
    disks: dict[str, DiskStatus] = {}


class Refused(PeerError):
    """The daemon answered that it does not do what it was asked for.

    Attributes:
        code: its reason, for programs.

    """

    def __init__(self, reply: Reply) -> None:
        self.code = reply.code
        super().__init__(reply.error or reply.code)


class ControlClient:
    """A connection to a control socket.

    A call that is cancelled or times out does not disturb the next: its reply is still read, by
    a task in the background, and dropped.
    """

    def __init__(
        self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._path, self._reader, self._writer = path, reader, writer
        self._lock = asyncio.Lock()
        self._calls: set[asyncio.Task[Reply]] = set()

    @classmethod
    async def connect(cls, path: str, timeout: float) -> ControlClient:
        """Connect to the control socket at ``path``.

        Raises:
            ConnectionLost: nobody listens there.
            LinkTimeout: it took more than ``timeout`` seconds.

        """
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(path)
        except TimeoutError:
            raise LinkTimeout(f"control socket {path!r} did not accept in {timeout:g} s") from None
        except OSError as error:
            raise ConnectionLost(f"cannot connect to control socket {path!r}: {error}") from error
        return cls(path, reader, writer)

    async def call(self, op: str, wait: float, **fields: Any) -> Reply:
        """Send one request and return its reply.

        Raises:
            Refused: the daemon said no.
            LinkTimeout: there was no reply within ``wait`` seconds.
            ConnectionLost: the connection ended.
            ProtocolError: what came is no reply.

        """
        request = msgpack.packb({"op": op, **fields})
        task = asyncio.create_task(self._exchange(request))
        self._calls.add(task)
        task.add_done_callback(self._forget)
        try:
            async with asyncio.timeout(wait):
                reply = await asyncio.shield(task)
        except TimeoutError:
            raise LinkTimeout(
                f"control socket {self._path!r} did not answer {op!r} in {wait:g} s"
            ) from None
        if not reply.ok:
            raise Refused(reply)
        return reply

    async def close(self) -> None:
        """End the connection; calls under way end with ``ConnectionLost``. May be called twice."""
        self._writer.transport.abort()
        if self._calls:
            await asyncio.wait(list(self._calls))
        with suppress(OSError):  # what ended the connection
            await self._writer.wait_closed()

    def _forget(self, task: asyncio.Task[Reply]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited has it; nobody else misses it

    async def _exchange(self, request: bytes) -> Reply:
        async with self._lock:
            try:
                self._writer.write(len(request).to_bytes(_LENGTH) + request)
                await self._writer.drain()
                length = int.from_bytes(await self._reader.readexactly(_LENGTH))
                if length > _MAX_REPLY:
                    self._writer.transport.abort()
                    raise ProtocolError(f"control reply: {length} bytes are over {_MAX_REPLY}")
                body = await self._reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError) as error:
                raise ConnectionLost(
                    f"control socket {self._path!r} ended the connection; is the export running?"
                ) from error
        return self._parse(body)

    def _parse(self, body: bytes) -> Reply:
        try:
            return msgspec.convert(msgpack.unpackb(body), Reply)
        except (ValueError, msgpack.UnpackException) as error:
            raise ProtocolError(f"control socket {self._path!r}: not a reply: {error}") from error
