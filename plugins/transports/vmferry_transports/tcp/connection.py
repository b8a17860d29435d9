"""Lanes and connections over established sockets.

Each bulk lane has a thread that receives; the control lane is received on the event loop. Each has
a thread that sends, started when a frame does not fit into the socket at once. Threads end when
both directions of their lane have ended, in order or not. Those of lane 1 do not give way: its
bytes are what a guest waits for while it stands still.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

from vmferry.api.transport import Connection, Frame, Lane, Limits, PeerInfo
from vmferry.errors import ConnectionLost, VmferryError
from vmferry_transports.tcp.arrivals import LoopReceiver, Receiver, ThreadReceiver
from vmferry_transports.tcp.frames import data_header
from vmferry_transports.tcp.inbox import Inbox, resolve
from vmferry_transports.tcp.link import Link
from vmferry_transports.tcp.outbox import Outbox

__all__ = ["TcpConnection", "TcpLane"]

_log = logging.getLogger("vmferry_transports.tcp")


class TcpLane(Lane):
    """A lane over one socket.

    Args:
        link: the socket; the lane closes it.
        limits: of this end.
        name: of the lane and its peer, for messages and threads.
        broken: called on the loop when the lane is lost.
        bulk: it is received in a thread.
        background: its threads give way to others.

    Attributes:
        gone: settled when the lane's threads have ended and its socket is closed.

    """

    def __init__(
        self,
        link: Link,
        limits: Limits,
        name: str,
        broken: Callable[[VmferryError], None],
        *,
        bulk: bool = False,
        background: bool = False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._link, self._limits, self._name, self._broken = link, limits, name, broken
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()
        self._users = 2
        self._over = False
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._inbox = Inbox()
        self._outbox = Outbox(
            link, f"send {name}", self._send_failed, self._let_go, background=background
        )
        self._receiver: Receiver
        if bulk:
            self._receiver = ThreadReceiver(
                link, limits, self._inbox, name, self._received, background=background
            )
        else:
            self._receiver = LoopReceiver(link, limits, self._inbox, self._received)

    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        """Queue one frame behind those sent before."""
        data = memoryview(payload).cast("B")
        if len(head) > self._limits.head:
            raise ValueError(f"head of {len(head)} bytes; the limit is {self._limits.head}")
        if data.nbytes > self._limits.payload:
            raise ValueError(f"payload of {data.nbytes} bytes; the limit is {self._limits.payload}")
        await self._outbox.send(data_header(len(head), data.nbytes) + head, data)

    async def receive(self) -> Frame | None:
        """Return the next frame, ``None`` at the peer's end of the lane."""
        return await self._inbox.get()

    def finish(self) -> None:
        """Send an end after what was sent, and stop holding back the peer."""
        self._outbox.finish(ConnectionLost(f"{self._name}: closed at this end"), drop=False)
        self._inbox.overflow()

    def join(self) -> None:
        """Wait for the lane's threads, which have nothing left to do once it is gone."""
        self._outbox.join()
        self._receiver.join()

    def fail(self, error: VmferryError, *, drop: bool = False) -> bool:
        """End the lane at once, from any thread; false when it had ended before.

        Frames received before are still delivered, unless ``drop``.
        """
        if not drop and threading.get_ident() == self._loop_thread:
            self._receiver.catch_up()
        with self._lock:
            if self._over or not self._users:
                return False
            self._over = True
        self._inbox.end(error, drop=drop)
        self._outbox.fail(ConnectionLost(str(error)))
        self._link.break_off()
        return True

    def _received(self, error: Exception | None) -> None:
        """All that will ever come is in the inbox."""
        try:
            if error is None:
                self._inbox.end(None)
                self._call(self._peer_ended)
            elif isinstance(error, VmferryError):
                self._report(type(error)(f"{self._name}: {error}"))
            elif isinstance(error, OSError):
                self._lost(error)
            else:  # limits.allocate is not ours
                self._report(ConnectionLost(f"{self._name}: no buffer for a payload: {error!r}"))
        finally:
            self._link.release()
            self._let_go()

    def _send_failed(self, error: OSError) -> None:
        """On the loop: what the peer said before is to be heard first."""
        self._call(lambda: self._lost(error))

    def _peer_ended(self) -> None:
        self._outbox.finish(ConnectionLost(f"{self._name}: closed by the peer"), drop=True)

    def _lost(self, error: OSError) -> None:
        self._report(ConnectionLost(f"{self._name}: lost: {error.strerror or error}"))

    def _report(self, error: VmferryError) -> None:
        if self.fail(error):
            self._call(lambda: self._broken(error))

    def _call(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:  # the loop is closed
            self._outbox.fail(ConnectionLost("the event loop is closed"))
            self._link.break_off()

    def _let_go(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
        resolve(self._loop, self.gone)


class TcpConnection(Connection):
    """Lanes over sockets of one session.

    Args:
        links: one for each lane, in order.
        limits: of this end.
        peer: who is at the other end.
        close_timeout: most seconds that ``close`` waits for the peer to take what was sent.

    Raises:
        RuntimeError: no thread could be started; all links have been broken off.

    """

    def __init__(
        self, links: Sequence[Link], limits: Limits, peer: PeerInfo, close_timeout: float
    ) -> None:
        self._peer, self._close_timeout, self._closing = peer, close_timeout, False
        self._lanes: list[TcpLane] = []
        try:
            for number, link in enumerate(links):
                name = f"{peer.address} lane {number}"
                lane = TcpLane(
                    link, limits, name, self._broken, bulk=number > 0, background=number > 1
                )
                self._lanes.append(lane)
        except BaseException:
            self._fail(ConnectionLost(f"{peer.address}: not all lanes could start"), drop=True)
            for link in links[len(self._lanes) :]:
                link.drop()
            raise

    @property
    def lanes(self) -> Sequence[Lane]:
        """All lanes, the control lane first."""
        return self._lanes

    @property
    def peer(self) -> PeerInfo:
        """Who is at the other end."""
        return self._peer

    async def close(self) -> None:
        """End all lanes; wait until the peer's end has taken everything.

        After ``close_timeout`` the connection is aborted, which is logged. Frames that come
        while closing and find no room are dropped; ``receive`` says so.
        """
        for lane in self._lanes:
            lane.finish()
        gone = [lane.gone for lane in self._lanes]
        _, waiting = await asyncio.wait(gone, timeout=self._close_timeout)
        if waiting:
            _log.warning(
                "%s did not take what was sent within %g s (close_timeout); aborted",
                self._peer.address,
                self._close_timeout,
            )
            self._fail(ConnectionLost(f"{self._peer.address}: not closed in time"), drop=False)
            await asyncio.wait(gone)
        for lane in self._lanes:
            lane.join()

    def abort(self) -> None:
        """Reset all sockets; nothing more is delivered at either end."""
        self._fail(ConnectionLost(f"{self._peer.address}: aborted at this end"), drop=True)

    def _broken(self, error: VmferryError) -> None:
        """Lose all lanes with one, as a connection is there as a whole or not at all."""
        self._fail(ConnectionLost(str(error)), drop=False)

    def _fail(self, error: VmferryError, *, drop: bool) -> None:
        for lane in self._lanes:
            lane.fail(error, drop=drop)
