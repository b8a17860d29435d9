"""The client: many requests under way at once on one connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from vmferry_support.nbd.errors import NbdError, NbdLost
from vmferry_support.nbd.handshake import Export, negotiate
from vmferry_support.nbd.pending import Pending, Status
from vmferry_support.nbd.protocol import (
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_MAGIC,
    SIMPLE_REST,
    STRUCTURED_MAGIC,
    STRUCTURED_REST,
    U32,
    Command,
    Flag,
)
from vmferry_support.nbd.wire import Wire
from vmferry_support.outlast import finished, outlast
from vmferry_support.unix import connect_unix

__all__ = ["NbdClient"]

_TOGETHER = 64 * 1024
"""Up to so many bytes of a write are copied behind its head: one call of the kernel, not two."""
_READ_PIECE = 512 * 1024
"""A server finds memory for each request: QEMU took twice as long to read 4 MiB in one piece."""
_ZERO_PIECE = 1 << 30
_STATUS_PIECE = 1 << 31


class NbdClient:
    """A connection to one export.

    Offsets and lengths are bytes, whole ``export.unit``s and inside the export: the server fails
    others. A request that the server fails raises ``OSError`` with its errno; when the connection
    has ended, every request raises ``NbdLost``. A request that is cancelled ends when its reply
    has come: nothing is read into a buffer, or sent from one, after it has raised.
    """

    def __init__(self, what: str, connection: socket.socket, wire: Wire, export: Export) -> None:
        self.export = export
        self._what, self._socket, self._wire = what, connection, wire
        self._pending: dict[int, Pending] = {}
        self._cookie = 0
        self._queue: asyncio.Queue[tuple[bytes, memoryview | None]] = asyncio.Queue()
        self._lost: NbdLost | None = None
        self._tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]

    @classmethod
    async def connect(
        cls, path: str, name: str, *, contexts: Sequence[str] = (), timeout: float = 30.0
    ) -> NbdClient:
        """Connect to the export ``name`` of the server at the unix socket ``path``.

        Args:
            path: of the socket.
            name: of the export.
            contexts: metadata contexts to ask for; one the server does not know is left out of
                ``export.contexts``.
            timeout: seconds.

        Raises:
            NbdRefused: there is no such export.
            NbdLost: nobody listens there, or no NBD server.

        """
        what = f"NBD export {name!r} at {path}"
        connection: socket.socket | None = None
        try:
            async with asyncio.timeout(timeout):
                connection = await connect_unix(path)
                wire = Wire(connection)
                export = await negotiate(connection, wire, name, contexts)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, TimeoutError):
                raise NbdLost(f"{what}: no answer within {timeout:g} s") from None
            if isinstance(error, NbdError):
                raise type(error)(f"{what}: {error}") from None
            if isinstance(error, OSError):
                raise NbdLost(f"{what}: {error}") from error
            raise
        return cls(what, connection, wire, export)

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self._lost is not None

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer``, which is contiguous bytes; a large one in pieces, asked for at once."""
        pieces = _pieces(offset, len(buffer), min(_READ_PIECE, self.export.largest))
        asked = [
            self._ask(Command.READ, start, size, buffer[start - offset :][:size])
            for start, size in pieces
        ]
        await self._answered(*asked)

    async def write(self, offset: int, data: memoryview, *, fua: bool = False) -> None:
        """Write ``data``, which is contiguous bytes; with ``fua`` it is durable on return."""
        for start, size in _pieces(offset, len(data), self.export.largest):
            piece = data[start - offset :][:size]
            flags = Flag.FUA if fua else 0
            await self._answered(self._ask(Command.WRITE, start, size, piece, flags))

    async def write_zeroes(
        self, offset: int, length: int, *, unmap: bool = True, fua: bool = False
    ) -> None:
        """Make the range read as zeroes; with ``unmap`` it may lose its allocation."""
        flags = (0 if unmap else Flag.NO_HOLE) | (Flag.FUA if fua else 0)
        for start, size in _pieces(offset, length, _ZERO_PIECE):
            await self._answered(self._ask(Command.WRITE_ZEROES, start, size, flags=flags))

    async def trim(self, offset: int, length: int) -> None:
        """The range is no longer needed."""
        for start, size in _pieces(offset, length, _ZERO_PIECE):
            await self._answered(self._ask(Command.TRIM, start, size))

    async def flush(self) -> None:
        """Make every write that was completed before the call durable."""
        await self._answered(self._ask(Command.FLUSH, 0, 0))

    async def status(self, context: str, offset: int, length: int) -> Status:
        """What a metadata context, one of ``export.contexts``, says from ``offset`` on.

        It covers at least one extent and at most the range; neighbouring extents may be alike.
        """
        number = self.export.contexts[context]
        asked = self._ask(Command.BLOCK_STATUS, offset, min(length, _STATUS_PIECE))
        await self._answered(asked)
        if number not in asked.statuses:
            raise self._end(NbdLost(f"{self._what}: a block status without {context!r}"))
        return asked.statuses[number]

    async def statuses(self, context: str, offset: int, length: int) -> AsyncIterator[Status]:
        """What a metadata context says of the whole range, piece by piece."""
        end = offset + length
        while offset < end:
            status = await self.status(context, offset, end - offset)
            yield status
            offset += int(status.lengths.sum())

    async def close(self) -> None:
        """End the connection; requests under way raise ``NbdLost``. May be called twice."""
        if self._lost is None and not self._pending:
            with suppress(OSError):  # the server's end, if the goodbye does not fit
                self._socket.send(REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
        self._end(NbdLost(f"{self._what} was closed"))
        await finished(self._close())

    async def _close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        self._socket.close()

    async def __aenter__(self) -> NbdClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def _ask(
        self,
        command: Command,
        offset: int,
        length: int,
        data: memoryview | None = None,
        flags: int = 0,
    ) -> Pending:
        if self._lost is not None:
            raise NbdLost(str(self._lost))
        self._cookie += 1
        pending = self._pending[self._cookie] = Pending(command, offset, length, data)
        head = REQUEST.pack(REQUEST_MAGIC, flags, command, self._cookie, offset, length)
        self._queue.put_nowait((head, data if command is Command.WRITE else None))
        return pending

    async def _answered(self, *asked: Pending) -> None:
        """Return when all are; a failure is raised, and a cancellation, when all are done with."""
        try:
            if len(asked) == 1:
                await outlast(asked[0].future)
                return
            await outlast(asyncio.gather(*(one.future for one in asked), return_exceptions=True))
            for one in asked:
                one.future.result()
        except NbdLost as error:
            raise NbdLost(str(error)) from None  # each with a traceback of its own

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                head, data = await self._queue.get()
                if data is not None and len(data) <= _TOGETHER:
                    head, data = head + data, None
                await loop.sock_sendall(self._socket, head)
                if data is not None:
                    await loop.sock_sendall(self._socket, data)
        except OSError as error:
            self._end(NbdLost(f"{self._what}: {error}"))

    async def _receive(self) -> None:
        try:
            while True:
                await self._take_reply()
        except (OSError, NbdLost) as error:
            self._end(NbdLost(f"{self._what}: {error}"))

    async def _take_reply(self) -> None:
        magic = U32.unpack(await self._wire.take(U32.size))[0]
        if magic == SIMPLE_MAGIC:
            number, cookie = SIMPLE_REST.unpack(await self._wire.take(SIMPLE_REST.size))
            self._asked(cookie).simple(number)
            del self._pending[cookie]
            return
        if magic != STRUCTURED_MAGIC:
            raise NbdLost(f"a reply that begins with {magic:#x}")
        flags, kind, cookie, length = STRUCTURED_REST.unpack(
            await self._wire.take(STRUCTURED_REST.size)
        )
        pending = self._asked(cookie)
        if await pending.chunk(self._wire, flags, kind, length):
            pending.finish()
            del self._pending[cookie]

    def _asked(self, cookie: int) -> Pending:
        pending = self._pending.get(cookie)
        if pending is None:
            raise NbdLost(f"a reply to request {cookie}, which is not under way")
        return pending

    def _end(self, error: NbdLost) -> NbdLost:
        """Fail what is under way and whatever will be asked for; send nothing more."""
        self._lost = self._lost or error
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for pending in self._pending.values():
            if not pending.future.done():
                pending.future.set_exception(error)
                pending.future.exception()  # who waits has it; nobody else misses it
        self._pending.clear()
        return error


def _pieces(offset: int, length: int, largest: int) -> list[tuple[int, int]]:
    """The range in pieces; a small one is one piece."""
    if length <= largest:
        return [(offset, length)] if length else []
    end = offset + length
    return [(start, min(largest, end - start)) for start in range(offset, end, largest)]
