"""ZeroMQ sockets on an event loop, without a thread of Python's.

libzmq's own threads move the data. A socket's descriptor tells the loop that there may be
something to do (zmq_getsockopt(3), ZMQ_FD): it is an edge that other calls may take away, so
after each of them ``ZMQ_EVENTS`` is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from vmferry.errors import ConnectionLost
from vmferry_transports.zeromq.keys import KeyPair
from vmferry_transports.zeromq.messages import LEAST_COST
from vmferry_transports.zeromq.options import ZeromqOptions

__all__ = ["Parts", "Port", "Station", "secure_client", "secure_listener"]

Parts = Sequence[Any]
"""The parts of a received message, as ``zmq.Frame``."""

_AT_ONCE = 16
"""Messages taken before other work of the loop has its turn."""

_NEVER = (1 << 31) - 1
_SPARE = 64
"""Messages beside frames that may wait in a socket."""

_WATCHED = (
    zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Port:
    """One socket on the running loop.

    Args:
        sock: which the port closes.
        arrived: called on the loop with the parts of each message.

    """

    def __init__(self, sock: zmq.Socket[bytes], arrived: Callable[[Parts], None]) -> None:
        self.sock, self._arrived = sock, arrived
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._descriptor: int = sock.FD
        self._loop.add_reader(self._descriptor, self._pump)
        self.look()

    @property
    def closed(self) -> bool:
        """True after ``close``."""
        return bool(self.sock.closed)

    def send(self, parts: Sequence[bytes]) -> None:
        """Queue a message of small parts, without waiting.

        Raises:
            ConnectionLost: the peer is gone, or does not read what it must.

        """
        try:
            self.sock.send_multipart(list(parts), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise ConnectionLost(_lost(error)) from None
        finally:
            self.look()  # a call that fails takes the edge away, too

    def send_large(self, parts: Sequence[bytes], payload: memoryview) -> asyncio.Future[None]:
        """Queue a message whose last part is not copied.

        Returns:
            What is settled when libzmq has let go of ``payload``: it is in the kernel's hands, or
            was dropped with the connection.

        Raises:
            ConnectionLost: as ``send``.

        """
        released = self._loop.create_future()
        view = payload[:]  # an object of our own, which lives as long as libzmq reads from it
        weakref.finalize(view, _settle_soon, self._loop, released).atexit = False
        try:
            for part in parts:
                self.sock.send(part, zmq.NOBLOCK | zmq.SNDMORE)
            self.sock.send(view, zmq.NOBLOCK, copy=False)
        except zmq.ZMQError as error:
            raise ConnectionLost(_lost(error)) from None
        finally:
            self.look()
        return released

    def look(self) -> None:
        """See to it that what has come is taken, although the descriptor may not tell."""
        if (
            not self._scheduled
            and not self.closed
            and int(self.sock.getsockopt(zmq.EVENTS)) & zmq.POLLIN
        ):
            self._scheduled = True
            self._loop.call_soon(self._again)

    def _again(self) -> None:
        self._scheduled = False
        self._pump()

    def _pump(self) -> None:
        self.take(_AT_ONCE)
        self.look()

    def take(self, most: int = _NEVER) -> None:
        """Take messages until there are none, or ``most`` were taken."""
        for _ in range(most):
            if self.closed:
                return
            try:
                parts = self.sock.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._arrived(parts)

    def close(self, linger: int) -> None:
        """Close the socket; what was sent is kept for ``linger`` milliseconds. Twice is fine."""
        if not self.closed:
            self._loop.remove_reader(self._descriptor)
            self.sock.close(linger)


def _lost(error: zmq.ZMQError) -> str:
    if error.errno == zmq.EAGAIN:
        return "the peer does not take what is sent to it"
    return "the peer is gone"


def _settle_soon(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    def settle() -> None:
        if not future.done():
            future.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(settle)


class Station:
    """A ZeroMQ context and its sockets, which end together."""

    def __init__(self, options: ZeromqOptions) -> None:
        self._options = options
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(options.io_threads)
        self._ports: list[Port] = []
        self._sockets: list[zmq.Socket[bytes]] = []
        self._watched: list[zmq.Socket[bytes]] = []
        self._end: threading.Thread | None = None

    def socket(self, kind: int, most: int) -> zmq.Socket[bytes]:
        """Make a socket whose parts have at most ``most`` bytes; libzmq checks before it allocates.

        It does not reconnect, and ends a connection that does not answer its probes.
        """
        sock: zmq.Socket[bytes] = self._context.socket(kind)
        self._sockets.append(sock)
        options = self._options
        waiting = options.window // LEAST_COST + _SPARE
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.MAXMSGSIZE, most)
        sock.setsockopt(zmq.IPV6, 1)
        sock.setsockopt(zmq.RECONNECT_IVL, _NEVER)
        sock.setsockopt(zmq.HANDSHAKE_IVL, _milliseconds(options.connect_timeout))
        sock.setsockopt(zmq.RCVHWM, waiting)
        sock.setsockopt(zmq.SNDHWM, waiting)
        if options.heartbeat:
            sock.setsockopt(zmq.HEARTBEAT_IVL, _milliseconds(options.heartbeat))
            sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, _milliseconds(options.heartbeat_timeout))
        return sock

    def add(self, sock: zmq.Socket[bytes], arrived: Callable[[Parts], None]) -> Port:
        """Let the loop look after a socket of this station."""
        port = Port(sock, arrived)
        self._ports.append(port)
        return port

    def watch(self, sock: zmq.Socket[bytes], happened: Callable[[int, int], None]) -> None:
        """Call ``happened`` with event and value of what happens to streams of ``sock``.

        See zmq_socket_monitor(3). Do so before it is bound or connected.
        """

        def arrived(parts: Parts) -> None:
            found = parse_monitor_message([part.bytes for part in parts])
            happened(found["event"], found["value"])

        self._watched.append(sock)
        self._sockets.append(sock.get_monitor_socket(_WATCHED))
        self.add(self._sockets[-1], arrived)

    def end(self, linger: float) -> None:
        """Close all sockets; what was sent is kept for ``linger`` seconds. Twice is fine.

        A thread waits for libzmq to be done.
        """
        if self._end is None:
            kept = _milliseconds(linger) if linger else 0
            for sock in self._watched:
                sock.disable_monitor()
            for port in self._ports:
                port.close(kept)
            for sock in self._sockets:
                sock.close(kept)
            self._end = threading.Thread(target=self._context.term, name="zeromq end", daemon=True)
            self._end.start()

    async def ended(self) -> None:
        """Wait until nothing of the station is left."""
        if self._end is not None and self._end.is_alive():
            await asyncio.to_thread(self._end.join)


def _milliseconds(seconds: float) -> int:
    return max(1, min(round(seconds * 1000), _NEVER))


def secure_listener(sock: zmq.Socket[bytes], pair: KeyPair, domain: bytes) -> None:
    """Let only peers in that the ZAP handler of ``domain`` allows."""
    sock.setsockopt(zmq.CURVE_SERVER, 1)
    sock.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    sock.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    sock.setsockopt(zmq.ZAP_DOMAIN, domain)


def secure_client(sock: zmq.Socket[bytes], pair: KeyPair, listener: bytes) -> None:
    """Talk only to the holder of the secret key of ``listener``."""
    sock.setsockopt(zmq.CURVE_SERVERKEY, listener)
    sock.setsockopt(zmq.CURVE_PUBLICKEY, pair.public)
    sock.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
