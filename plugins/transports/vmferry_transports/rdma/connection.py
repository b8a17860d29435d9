"""Connections: lanes on one device, and the stream by which the ends have met."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

from vmferry.api.transport import Connection, Lane, Limits, PeerInfo
from vmferry.errors import ConnectionLost, VmferryError
from vmferry_transports.rdma.ends import Ends
from vmferry_transports.rdma.lane import RdmaLane

__all__ = ["RdmaConnection"]

_log = logging.getLogger("vmferry_transports.rdma")


class RdmaConnection(Connection):
    """Lanes of one connection.

    Args:
        sock: the stream; its end is the end of the connection.
        ends: connected queue pairs.
        limits: of this end.
        peer: who is at the other end.
        close_timeout: most seconds that ``close`` waits for the peer to take what was sent.

    """

    def __init__(
        self,
        sock: socket.socket,
        ends: Ends,
        limits: Limits,
        peer: PeerInfo,
        close_timeout: float,
    ) -> None:
        self._sock, self._ends, self._peer, self._close_timeout = sock, ends, peer, close_timeout
        self._loop = asyncio.get_running_loop()
        self._lanes: list[RdmaLane] = []
        self._loop.add_reader(sock, self._stream_ended)
        for number, (queue, landing, takeoff) in enumerate(ends.parts()):
            name = f"{peer.address} lane {number}"
            self._lanes.append(RdmaLane(queue, landing, takeoff, limits, name, self._broken))

    @property
    def lanes(self) -> Sequence[Lane]:
        """All lanes, the control lane first."""
        return self._lanes

    @property
    def peer(self) -> PeerInfo:
        """Who is at the other end."""
        return self._peer

    async def close(self) -> None:
        """End all lanes; wait until the peer has everything. Aborts after ``close_timeout``."""
        for lane in self._lanes:
            lane.finish()
        _, waiting = await asyncio.wait(
            [lane.gone for lane in self._lanes], timeout=self._close_timeout
        )
        if waiting:
            _log.warning(
                "%s did not take what was sent within %g s (close_timeout); aborted",
                self._peer.address,
                self._close_timeout,
            )
            self._broken(ConnectionLost(f"{self._peer.address}: not closed in time"))
        self._let_go()

    def abort(self) -> None:
        """Close all queue pairs; nothing more is delivered at either end."""
        self._lose(ConnectionLost(f"{self._peer.address}: aborted at this end"), drop=True)
        self._let_go()

    def _stream_ended(self) -> None:
        """Handle the end of the stream: anything else that comes there is as wrong."""
        for lane in self._lanes:
            lane.pump()  # what was sent before
        self._end_stream()
        self._broken(ConnectionLost(f"{self._peer.address}: the peer is gone"))

    def _broken(self, error: VmferryError) -> None:
        """Lose all lanes with one, as a connection is there as a whole or not at all."""
        self._lose(error, drop=False)

    def _lose(self, error: VmferryError, *, drop: bool) -> None:
        for lane in self._lanes:
            lane.fail(error, drop=drop)
        if self._lanes:
            self._end_stream()

    def _end_stream(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _let_go(self) -> None:
        self._end_stream()
        self._ends.close()
