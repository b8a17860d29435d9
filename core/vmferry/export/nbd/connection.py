"""One client from its connection to its end."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping

from vmferry.errors import ConnectionLost, ProtocolError
from vmferry.export.nbd.budget import Limits
from vmferry.export.nbd.exports import Export, Session
from vmferry.export.nbd.negotiate import Handshake
from vmferry.export.nbd.stream import BufferPool, Incoming
from vmferry.export.nbd.transmission import Transmission

__all__ = ["Connection"]

_log = logging.getLogger(__name__)


class Connection:
    """Handshake and transmission of one client.

    Attributes:
        finished: done when the last request is finished and the socket is closed.

    """

    def __init__(
        self,
        sock: socket.socket,
        exports: Mapping[str, Export],
        limits: Limits,
        pool: BufferPool,
    ) -> None:
        self._sock, self._exports, self._limits, self._pool = sock, exports, limits, pool
        self._transmission: Transmission | None = None
        self.finished: asyncio.Task[None] = asyncio.create_task(self._run())
        self.finished.add_done_callback(lambda _: sock.close())

    @property
    def lost(self) -> bool:
        """The client went away without saying so; what it asked for is being finished."""
        return self._transmission is not None and self._transmission.lost

    @property
    def idle(self) -> bool:
        """Every request that was read whole is done and answered."""
        return self._transmission is None or self._transmission.idle

    async def end(self, grace: float) -> None:
        """Answer the requests under way, then close; give up on them after ``grace`` seconds."""
        if self._transmission is None:
            self.finished.cancel()
        else:
            self._transmission.stop()
        _, late = await asyncio.wait([self.finished], timeout=grace)
        if late:
            _log.warning("requests of an NBD client did not end within %g s; dropping it", grace)
            self.finished.cancel()
            await asyncio.wait([self.finished])

    async def _run(self) -> None:
        try:
            await self._talk()
        except (ConnectionLost, ProtocolError) as error:
            _log.warning("NBD client dropped: %s", error)
        except Exception:
            _log.exception("serving an NBD client failed")

    async def _talk(self) -> None:
        incoming = Incoming(self._sock)
        try:
            async with asyncio.timeout(self._limits.handshake):
                session = await Handshake(self._sock, incoming, self._exports).run()
        except TimeoutError:
            raise ProtocolError("the client did not choose an export in time") from None
        if session is not None:
            await self._transmit(incoming, session)

    async def _transmit(self, incoming: Incoming, session: Session) -> None:
        export = session.export
        await export.settled()
        if self._exports.get(export.name) is not export:
            return
        export.connections.add(self)
        try:
            self._transmission = Transmission(
                self._sock, incoming, session, self._limits, self._pool
            )
            await self._transmission.run()
        finally:
            export.connections.discard(self)
