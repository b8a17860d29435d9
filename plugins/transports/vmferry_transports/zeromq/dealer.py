"""The connecting end of a lane: a DEALER, the greeting, and what can go wrong before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import zmq

from vmferry.api.transport import Limits
from vmferry.errors import ConnectionLost, LinkError, VmferryError
from vmferry_transports.zeromq.lane import LaneState, ZeromqLane
from vmferry_transports.zeromq.messages import Greeting, Header, Kind
from vmferry_transports.zeromq.port import Parts, Port, Station

__all__ = ["Dealer"]

_MISMATCH = (
    "ended the handshake; is the port right? CURVE must be on at both ends or at none, and"
    " curve_server_key the listener's key; its log may say more"
)
_PROBLEMS: dict[int, str] = {
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: (
        "refuses this host's key; put its public key into the folder curve_allow there"
    ),
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: _MISMATCH,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: _MISMATCH,
    zmq.EVENT_DISCONNECTED: _MISMATCH,
}


class Dealer:
    """A socket that becomes a lane once the listener has welcomed it.

    Args:
        station: owns the socket.
        sock: a DEALER, not connected yet.
        endpoint: where to connect to, numeric.
        name: of the listener, for messages.
        limits: of this end.

    Attributes:
        lane: the lane, once welcomed.
        broken: called when the lane is lost; until it is set, errors are kept in ``error``.
        error: the first error of the lane.

    """

    def __init__(
        self, station: Station, sock: zmq.Socket[bytes], endpoint: str, name: str, limits: Limits
    ) -> None:
        self._limits, self._name = limits, name
        self._answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._greeting: Greeting | None = None
        self.lane: ZeromqLane | None = None
        self.broken: Callable[[VmferryError], None] | None = None
        self.error: VmferryError | None = None
        station.watch(sock, self._happened)
        self._port: Port = station.add(sock, self._arrived)
        sock.connect(endpoint)

    async def greet(self, greeting: Greeting) -> None:
        """Say hello and wait to be welcomed.

        Raises:
            LinkError: nobody listens there, or refuses; says which.

        """
        self._greeting = greeting
        self._port.send([greeting.encode(Kind.HELLO)])
        await self._answer

    def send(self, first: bytes, payload: bytes | None) -> None:
        """Queue a message."""
        self._port.send([first] if payload is None else [first, payload])

    def send_large(self, first: bytes, payload: memoryview) -> asyncio.Future[None]:
        """Queue a message without copying its payload."""
        return self._port.send_large([first], payload)

    def _arrived(self, parts: Parts) -> None:
        if len(parts) > 2:
            self._lose(ConnectionLost(f"{self._name}: a message of {len(parts)} parts"))
        elif self.lane is not None:
            self.lane.arrived(parts[0].buffer, parts[1].buffer if len(parts) == 2 else None)
        elif not self._answer.done():
            try:
                self._welcome(parts[0].buffer)
            except VmferryError as error:
                self._answer.set_exception(LinkError(str(error)))

    def _welcome(self, first: memoryview) -> None:
        header = Header.decode(first, None, self._limits)
        if header.kind is not Kind.WELCOME or self._greeting is None:
            raise LinkError("did not answer with a greeting")
        answer = Greeting.decode(first[Header.SIZE :])
        self._greeting.check_answer(answer)
        state = LaneState(min(self._greeting.window, max(answer.window, 1)))
        name = f"{self._name} lane {answer.lane}"
        self.lane = ZeromqLane(self, self._limits, state, name, self._lose)
        self._answer.set_result(None)

    def _happened(self, event: int, value: int) -> None:
        """Handle what the socket's monitor tells."""
        if self.lane is not None:
            self._port.take()  # what came before the stream ended
            if not self.lane.gone.done():
                self._lose(ConnectionLost(f"{self._name}: the stream of a lane ended"))
        elif not self._answer.done():
            text = _PROBLEMS.get(
                event,
                "cannot be reached: nobody listens there; start the receiving side, or correct"
                " the port",
            )
            self._answer.set_exception(LinkError(text))

    def _lose(self, error: VmferryError) -> None:
        self.error = self.error or error
        if self.broken is not None:
            self.broken(error)
