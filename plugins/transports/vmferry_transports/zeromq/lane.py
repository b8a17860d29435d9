"""Lanes: frames in order, and no more of them than the receiver has room for.

The receiver of a lane grants its *window* in bytes: the sender sends while the cost of what the
receiver has not consumed is below it, so that at most a window and one frame wait at the
receiver, in libzmq and here together. What was consumed is told with every message that goes the
other way, and by one of its own when a quarter of the window was. Frames are consumed when
``receive`` returns them, so a reader that stops holds back the sender wherever the bytes are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from vmferry.api.transport import Frame, Lane, Limits
from vmferry.errors import ConnectionLost, ProtocolError, VmferryError
from vmferry_transports.zeromq.messages import Header, Kind, cost

__all__ = ["LaneState", "Wire", "ZeromqLane"]

_COPIED = 128 << 10
"""Payloads up to this size are copied: that takes less time than to hear that libzmq is done with
a buffer. At 64 KiB a copy was three times as fast, at 256 KiB a quarter slower."""


def again(error: VmferryError) -> VmferryError:
    """Return a copy to raise, so that tracebacks do not pile up on one exception."""
    return type(error)(*error.args)


class Wire(Protocol):
    """Where a lane's messages go."""

    def send(self, first: bytes, payload: bytes | None) -> None:
        """Queue a message. Raises ``ConnectionLost``."""

    def send_large(self, first: bytes, payload: memoryview) -> asyncio.Future[None]:
        """Queue a message without copying; settled when ``payload`` is let go of."""


class LaneState:
    """What both directions of a lane have counted.

    Args:
        window: the smaller one of both ends.

    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._sent = self._taken = 0
        self._came = self._consumed = self._told = 0
        self._next_in = self._next_out = 0

    def header(self, kind: Kind, head: int = 0, payload: int = 0) -> Header:
        """Make the header of the next message out."""
        header = Header(kind, head, payload, self._next_out, self._consumed)
        self._next_out += 1
        self._told = self._consumed
        if kind is Kind.DATA:
            self._sent += cost(head, payload)
        return header

    def may_send(self) -> bool:
        """True while the receiver has room."""
        return self._sent - self._taken < self.window

    def arrived(self, header: Header) -> None:
        """Count a message in.

        Raises:
            ConnectionLost: messages are missing.
            ProtocolError: it is more than was granted, or takes back what was said.

        """
        if header.number != self._next_in:
            raise ConnectionLost(f"message {header.number} came, not {self._next_in}")
        if not self._taken <= header.consumed <= self._sent:
            raise ProtocolError(f"{header.consumed} bytes consumed of {self._sent} sent")
        self._next_in += 1
        self._taken = header.consumed
        if header.kind is Kind.DATA:
            if self._came - self._told >= self.window:
                raise ProtocolError("frames came for which there was no room")
            self._came += cost(header.head, header.payload)

    def consumed(self, frame: Frame) -> bool:
        """Count a frame as received; true when the peer should be told."""
        self._consumed += cost(len(frame.head), memoryview(frame.payload).nbytes)
        return self._consumed - self._told >= self.window // 4

    @property
    def waiting(self) -> int:
        """Cost of what has come and was not consumed."""
        return self._came - self._consumed


class ZeromqLane(Lane):
    """A lane.

    Args:
        wire: where its messages go.
        limits: of this end.
        state: with the window that both ends keep to.
        name: of the lane and its peer, for messages.
        broken: called when what came is wrong.

    Attributes:
        gone: settled when both directions have ended, in order or not.

    """

    def __init__(
        self,
        wire: Wire,
        limits: Limits,
        state: LaneState,
        name: str,
        broken: Callable[[VmferryError], None],
    ) -> None:
        self._wire, self._limits, self._state = wire, limits, state
        self._name, self._broken = name, broken
        self._loop = asyncio.get_running_loop()
        self._turn, self._room = asyncio.Lock(), asyncio.Event()
        self._frames: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._refusal: VmferryError | None = None
        self._over = False
        self._error: VmferryError | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()

    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        """Send one frame when there is room for it; large payloads are not copied.

        A cancelled call whose payload libzmq is reading ends when that is done.
        """
        data = memoryview(payload).cast("B")
        if len(head) > self._limits.head:
            raise ValueError(f"head of {len(head)} bytes; the limit is {self._limits.head}")
        if data.nbytes > self._limits.payload:
            raise ValueError(f"payload of {data.nbytes} bytes; the limit is {self._limits.payload}")
        async with self._turn:  # its waiters are served in the order in which they came
            while self._refusal is None and not self._state.may_send():
                self._room.clear()
                await self._room.wait()
            if self._refusal is not None:
                raise again(self._refusal)
            released = self._transmit(head, data)
        del data
        if released is not None:
            await _outlast(released)
            if self._error is not None:
                raise ConnectionLost(str(self._error))

    def _transmit(self, head: bytes, data: memoryview) -> asyncio.Future[None] | None:
        first = self._state.header(Kind.DATA, len(head), data.nbytes).encode() + head
        try:
            if data.nbytes > _COPIED:
                return self._wire.send_large(first, data)
            self._wire.send(first, bytes(data) if data.nbytes else None)
        except ConnectionLost as error:
            self._broken(ConnectionLost(f"{self._name}: {error}"))
            raise
        return None

    async def receive(self) -> Frame | None:
        """Return the next frame, ``None`` at the peer's end of the lane."""
        while not self._frames:
            if self._over:
                if self._error is None:
                    return None
                raise again(self._error)
            if self._waiter is not None and not self._waiter.done():
                raise RuntimeError("receive() was called while another call waits")
            waiter = self._waiter = self._loop.create_future()
            try:
                await waiter
            finally:
                waiter.cancel()
        frame = self._frames.popleft()
        if self._state.consumed(frame) and self._refusal is None:
            self._tell(Kind.CREDIT)
        return frame

    def probe(self) -> None:
        """Send something, to learn whether the peer is still there."""
        if self._refusal is None:
            self._tell(Kind.PROBE)

    def finish(self, text: str) -> None:
        """Send an end after what was sent; calls that wait for room get ``ConnectionLost``."""
        if self._refusal is None:
            self._tell(Kind.END)
            self._refuse(ConnectionLost(f"{self._name}: {text}"))
            self._settle()

    def fail(self, error: VmferryError, *, drop: bool = False) -> None:
        """End both directions at once; frames that have come are still given, unless ``drop``."""
        if self.gone.done():
            return
        self._refuse(ConnectionLost(str(error)))
        self._end(error)
        if drop:
            self._frames.clear()
            self._error = self._error or error
        self._settle(lost=True)

    def arrived(self, first: memoryview, payload: Any) -> None:
        """Take a message in; ``payload`` is a buffer or ``None``."""
        if self._over:
            return
        try:
            self._take(first, payload)
        except VmferryError as error:
            self._broken(type(error)(f"{self._name}: {error}"))
        except Exception as error:  # limits.allocate is not ours
            self._broken(ConnectionLost(f"{self._name}: no buffer for a payload: {error!r}"))

    def _take(self, first: memoryview, payload: Any) -> None:
        size = None if payload is None else memoryview(payload).nbytes
        header = Header.decode(first, size, self._limits)
        if header.kind is Kind.RESET:
            raise ConnectionLost("the peer has ended or forgotten the connection")
        self._state.arrived(header)
        if self._state.may_send():
            self._room.set()
        if header.kind is Kind.DATA:
            self._frames.append(Frame(bytes(first[Header.SIZE :]), self._keep(payload, size)))
            self._wake()
        elif header.kind is Kind.END:
            self._end(None)
            self.finish("closed by the peer")
            self._settle()
        elif header.kind in (Kind.HELLO, Kind.WELCOME):
            raise ProtocolError("a second greeting")

    def _keep(self, payload: Any, size: int | None) -> memoryview | bytes:
        if not size:
            return b""
        buffer = self._limits.allocate(size)
        if buffer.nbytes != size:
            raise ConnectionLost(f"limits.allocate({size}) gave a buffer of {buffer.nbytes} bytes")
        buffer[:] = payload
        return buffer

    def _tell(self, kind: Kind) -> None:
        try:
            self._wire.send(self._state.header(kind).encode(), None)
        except ConnectionLost as error:
            self._broken(ConnectionLost(f"{self._name}: {error}"))

    def _refuse(self, error: VmferryError) -> None:
        self._refusal = self._refusal or error
        self._room.set()

    def _end(self, error: VmferryError | None) -> None:
        if not self._over:
            self._over, self._error = True, error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _settle(self, *, lost: bool = False) -> None:
        if (lost or (self._over and self._refusal is not None)) and not self.gone.done():
            self.gone.set_result(None)


async def _outlast(future: asyncio.Future[None]) -> None:
    """Wait for ``future``; a cancellation is raised when it is done."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
