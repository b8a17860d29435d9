"""The listening end: one ROUTER for all lanes of all connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import zmq

from vmferry.api.transport import Limits, PeerInfo
from vmferry.errors import ConnectionLost, VmferryError
from vmferry_transports.zeromq.connection import ZeromqConnection
from vmferry_transports.zeromq.groups import Group, Groups
from vmferry_transports.zeromq.lane import LaneState, ZeromqLane
from vmferry_transports.zeromq.messages import VERSION, Greeting, Header, Kind, Refusal
from vmferry_transports.zeromq.options import ZeromqOptions
from vmferry_transports.zeromq.port import Parts, Port, Station

__all__ = ["Hub"]

_log = logging.getLogger("vmferry_transports.zeromq")

_RESET = Header(Kind.RESET).encode()
_PROBES = (0.0, 0.02, 0.2, 1.0)
"""When to probe all lanes after a stream has ended: the monitor may tell a moment before the
socket knows."""

_LINGER = 1.0
_FAILED: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "a key that is not allowed",
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: "no CURVE where it is on, or the other way round",
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: "the peer went away, or is no ZeroMQ",
}


class _Route:
    """The way to one lane."""

    def __init__(self, port: Port, identity: bytes) -> None:
        self._port, self.identity = port, identity
        self.lane: ZeromqLane | None = None

    def send(self, first: bytes, payload: bytes | None) -> None:
        parts = [self.identity, first]
        self._port.send(parts if payload is None else [*parts, payload])

    def send_large(self, first: bytes, payload: memoryview) -> asyncio.Future[None]:
        return self._port.send_large([self.identity, first], payload)

    def reset(self) -> None:
        """Tell the peer that there is no connection, if it can be told."""
        try:
            self._port.send([self.identity, _RESET])
        except ConnectionLost:
            return


class Hub:
    """Groups greetings into connections, and hands messages to their lanes.

    It lives until the listener and all its connections have ended.

    Args:
        station: owns the socket, which is bound.
        sock: the ROUTER.
        limits: of this end.
        options: of this end.
        ready: called with every connection whose lanes are all there; false if it is not taken.

    """

    def __init__(
        self,
        station: Station,
        sock: zmq.Socket[bytes],
        limits: Limits,
        options: ZeromqOptions,
        ready: Callable[[ZeromqConnection], bool],
    ) -> None:
        self._station, self._limits, self._options, self._ready = station, limits, options, ready
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[bytes, ZeromqLane] = {}
        self._groups = Groups(options.connect_timeout, self._drop)
        self._connections: set[ZeromqConnection] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._listening = True
        station.watch(sock, self._happened)
        self._port = station.add(sock, self._arrived)
        self._probe_on()

    def close(self) -> None:
        """Take no more greetings."""
        self._listening = False
        self._groups.close()
        self._end_if_unused()

    async def ended(self) -> None:
        """Wait until nothing is left, if there is no connection."""
        if not self._connections:
            await self._station.ended()

    def _arrived(self, parts: Parts) -> None:
        identity = parts[0].bytes
        lane = self._lanes.get(identity)
        if len(parts) not in (2, 3):
            self._refuse(identity, lane, f"a message of {len(parts) - 1} parts")
        elif lane is not None:
            lane.arrived(parts[1].buffer, parts[2].buffer if len(parts) == 3 else None)
        else:
            try:
                self._greeted(identity, parts[1])
            except VmferryError as error:
                self._refuse(identity, None, str(error))

    def _refuse(self, identity: bytes, lane: ZeromqLane | None, text: str) -> None:
        _log.debug("reset: %s", text)
        _Route(self._port, identity).reset()
        if lane is not None:
            lane.fail(ConnectionLost(text))

    def _greeted(self, identity: bytes, part: Any) -> None:
        header = Header.decode(part.buffer, None, self._limits)
        if header.kind is not Kind.HELLO:
            raise ConnectionLost("a message of a lane that is not known")
        greeting = Greeting.decode(part.buffer[Header.SIZE :])
        name = _metadata(part, "User-Id")
        address = _metadata(part, "Peer-Address").removeprefix("::ffff:")
        peer = PeerInfo(
            address=f"zeromq://{f'[{address}]' if ':' in address else address}",
            identity=name,
            encrypted=bool(self._options.curve_key),
        )
        refusal = self._refusal(greeting, peer)
        route = _Route(self._port, identity)
        window = min(self._options.window, max(greeting.window, 1))
        route.send(_answer(greeting, window, refusal), None)
        if refusal:
            _log.warning("%s: refused: %s", peer.address, refusal.name.lower())
            return
        self._add(route, greeting, LaneState(window), peer)

    def _refusal(self, greeting: Greeting, peer: PeerInfo) -> Refusal:
        if greeting.version != VERSION:
            return Refusal.VERSION
        if not self._listening:
            return Refusal.CLOSED
        if not 2 <= greeting.lanes <= self._limits.lanes or greeting.lane >= greeting.lanes:
            return Refusal.LANES
        return self._groups.refusal(greeting, peer)

    def _add(self, route: _Route, greeting: Greeting, state: LaneState, peer: PeerInfo) -> None:
        group = self._groups.of(greeting, peer)
        name = f"{peer.address} lane {greeting.lane}"
        lane = ZeromqLane(route, self._limits, state, name, group.lose)
        self._lanes[route.identity] = lane
        group.lanes[greeting.lane] = (route.identity, lane)
        if len(group.lanes) == greeting.lanes:
            self._complete(self._groups.take(greeting.session))

    def _complete(self, group: Group) -> None:
        lanes = [group.lanes[number][1] for number in range(len(group.lanes))]
        identities = [group.lanes[number][0] for number in range(len(group.lanes))]

        def end(good: bool) -> None:
            self._connections.discard(connection)
            self._forget(identities, reset=not good)
            self._end_if_unused()

        timeout = self._options.close_timeout
        connection = ZeromqConnection(lanes, group.peer, timeout, end, self.ended)
        self._connections.add(connection)
        group.connection = connection
        if group.error is not None:
            connection.lose(group.error)
        if not self._ready(connection):
            connection.abort()

    def _drop(self, group: Group) -> None:
        _log.warning(
            "%s: only %d lanes came in time; dropped", group.peer.address, len(group.lanes)
        )
        for _, lane in group.lanes.values():
            lane.fail(ConnectionLost("not all lanes came"))
        self._forget([identity for identity, _ in group.lanes.values()], reset=True)

    def _forget(self, identities: list[bytes], *, reset: bool) -> None:
        for identity in identities:
            if self._lanes.pop(identity, None) is not None and reset and not self._port.closed:
                _Route(self._port, identity).reset()

    def _end_if_unused(self) -> None:
        if not self._listening and not self._connections:
            for timer in self._timers:
                timer.cancel()
            self._timers.clear()
            self._station.end(_LINGER)

    def _happened(self, event: int, value: int) -> None:
        """Handle what the socket's monitor tells; it does not tell whose stream ended."""
        if event in _FAILED:
            _log.warning("a handshake failed: %s", _FAILED[event])
        elif event == zmq.EVENT_DISCONNECTED:
            self._port.take()
            for delay in _PROBES:
                self._later(delay, self._probe)

    def _later(self, delay: float, what: Callable[[], None]) -> None:
        def run() -> None:
            self._timers.discard(timer)
            what()

        if self._listening or self._connections:
            timer = self._loop.call_later(delay, run)
            self._timers.add(timer)

    def _probe_on(self) -> None:
        self._probe()
        self._later(self._options.heartbeat or 5.0, self._probe_on)

    def _probe(self) -> None:
        for lane in list(self._lanes.values()):
            lane.probe()


def _answer(greeting: Greeting, window: int, refusal: Refusal) -> bytes:
    return Greeting(
        session=greeting.session,
        lane=greeting.lane,
        lanes=greeting.lanes,
        window=window,
        refusal=refusal,
    ).encode(Kind.WELCOME)


def _metadata(part: Any, name: str) -> str:
    try:
        return str(part.get(name))
    except (KeyError, zmq.ZMQError):
        return ""
