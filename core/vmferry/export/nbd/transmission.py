"""The transmission phase of one connection: many requests at once, answered as they finish."""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial

from vmferry.errors import ConnectionLost, ProtocolError, VmferryError
from vmferry.export.nbd.budget import Budget, Limits
from vmferry.export.nbd.commands import CANCELLABLE, Request, answer_failure, perform, refuse
from vmferry.export.nbd.exports import Session
from vmferry.export.nbd.failure import RequestRefused
from vmferry.export.nbd.protocol import REQUEST, REQUEST_MAGIC, Command
from vmferry.export.nbd.stream import BufferPool, Incoming, Outbox

__all__ = ["Transmission"]

_log = logging.getLogger(__name__)
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)


class Transmission:
    """Serves one client until it leaves, breaks the protocol or is stopped.

    Attributes:
        lost: the client went away without ``DISC``.

    """

    def __init__(
        self,
        sock: socket.socket,
        incoming: Incoming,
        session: Session,
        limits: Limits,
        pool: BufferPool,
    ) -> None:
        self._incoming, self._session, self._pool = incoming, session, pool
        self._budget = Budget(limits)
        self._outbox = Outbox(sock, self._broken)
        self._group = asyncio.TaskGroup()
        self._reader: asyncio.Task[None] | None = None
        self._running: set[Request] = set()
        self._fault: ProtocolError | None = None
        self.lost = False

    @property
    def idle(self) -> bool:
        """Every request that was read whole is finished, and its reply has left."""
        return not self._running and self._outbox.is_empty

    def stop(self) -> None:
        """Read no further request; ``run`` returns when those under way are answered."""
        if self._reader is not None:
            self._reader.cancel()

    async def run(self) -> None:
        """Serve; return when every request that was read is finished and answered.

        The disk's work for a client that is gone is finished too, but for reads.

        Raises:
            ProtocolError: what came is no request.

        """
        try:
            async with self._group as group:
                self._reader = group.create_task(self._receive())
            await self._outbox.drained()
        finally:
            self._outbox.close()
        if self._fault is not None:
            raise self._fault

    async def _receive(self) -> None:
        try:
            while (request := await self._next()) is not None:
                await self._admit(request)
        except ConnectionLost:
            self._abandon()
        except ProtocolError as fault:
            self._fault = fault

    async def _next(self) -> Request | None:
        magic, flags, kind, cookie, offset, length = await self._incoming.unpack(REQUEST)
        if magic != REQUEST_MAGIC:
            raise ProtocolError(f"a request begins with {magic:#x} instead of {REQUEST_MAGIC:#x}")
        if kind == _DISC:
            return None
        request = Request(flags, kind, cookie, offset, length)
        await self._budget.acquire(request.cost)
        return request

    async def _admit(self, request: Request) -> None:
        refused = refuse(self._session, request)
        if refused is not None:
            await self._turn_away(request, refused)
            return
        if request.kind == _READ:
            request.buffer = self._pool.take(request.length)
        elif request.kind == _WRITE:
            request.buffer = self._pool.take(request.length)
            await self._incoming.into(request.data)
        self._running.add(request)
        request.task = self._group.create_task(self._perform(request))

    async def _turn_away(self, request: Request, refused: RequestRefused) -> None:
        if request.kind == _WRITE:
            await self._incoming.skip(request.length)
        parts = answer_failure(self._session, request, refused)
        self._outbox.send(parts, partial(self._answered, request))

    async def _perform(self, request: Request) -> None:
        try:
            parts = await perform(self._session, request)
        except Exception as error:
            self._report(request, error)
            parts = answer_failure(self._session, request, error)
            request.buffer = None  # the disk may still hold on to it
        finally:
            self._running.discard(request)
        self._outbox.send(parts, partial(self._answered, request))

    def _answered(self, request: Request) -> None:
        self._budget.release(request.cost)
        if request.buffer is not None:
            self._pool.give(request.buffer)

    def _report(self, request: Request, error: Exception) -> None:
        expected = isinstance(error, OSError | ValueError | VmferryError)
        _log.warning(
            "export %r: command %d on %d bytes at %d failed: %s",
            self._session.export.name,
            request.kind,
            request.length,
            request.offset,
            error,
            exc_info=None if expected else error,
        )

    def _broken(self) -> None:
        self.stop()
        self._abandon()

    def _abandon(self) -> None:
        self.lost = True
        self._outbox.close()
        for request in self._running:
            if request.kind in CANCELLABLE and request.task is not None:
                request.task.cancel()
