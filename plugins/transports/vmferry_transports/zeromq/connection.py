"""Connections: lanes of one session that live and end together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from vmferry.api.transport import Connection, Lane, PeerInfo
from vmferry.errors import ConnectionLost, VmferryError
from vmferry_transports.zeromq.lane import ZeromqLane

__all__ = ["ZeromqConnection"]

_log = logging.getLogger("vmferry_transports.zeromq")


class ZeromqConnection(Connection):
    """Lanes of one session.

    Args:
        lanes: in order.
        peer: who is at the other end.
        close_timeout: most seconds that ``close`` waits for the peer to take what was sent.
        end: lets go of the sockets, told whether all lanes ended in good order; may be called
            twice.
        ended: waits until nothing is left of them.

    """

    def __init__(
        self,
        lanes: Sequence[ZeromqLane],
        peer: PeerInfo,
        close_timeout: float,
        end: Callable[[bool], None],
        ended: Callable[[], Awaitable[None]],
    ) -> None:
        self._lanes, self._peer, self._close_timeout = lanes, peer, close_timeout
        self._end, self._ended = end, ended
        self._lost = False

    @property
    def lanes(self) -> Sequence[Lane]:
        """All lanes, the control lane first."""
        return self._lanes

    @property
    def peer(self) -> PeerInfo:
        """Who is at the other end."""
        return self._peer

    @property
    def over(self) -> bool:
        """True when every lane has ended."""
        return all(lane.gone.done() for lane in self._lanes)

    async def close(self) -> None:
        """End all lanes; wait until the peer has everything. Aborts after ``close_timeout``."""
        for lane in self._lanes:
            lane.finish(f"{self._peer.address} was closed at this end")
        _, waiting = await asyncio.wait(
            [lane.gone for lane in self._lanes], timeout=self._close_timeout
        )
        if waiting:
            _log.warning(
                "%s did not take what was sent within %g s (close_timeout); aborted",
                self._peer.address,
                self._close_timeout,
            )
            self.lose(ConnectionLost(f"{self._peer.address}: not closed in time"))
        self._end(not self._lost)
        await self._ended()

    def abort(self) -> None:
        """Drop all that is on its way, at both ends."""
        self.lose(ConnectionLost(f"{self._peer.address}: aborted at this end"), drop=True)
        self._end(not self._lost)

    def lose(self, error: VmferryError, *, drop: bool = False) -> None:
        """Lose all lanes with one, as a connection is there as a whole or not at all."""
        if self.over:
            return
        self._lost = True
        for lane in self._lanes:
            lane.fail(error, drop=drop)
        self._end(False)
