"""A connection spoken in messages: control lane, stream lane, bulk lanes, heartbeat.

Lane 0 carries the dialogue and the extents a guest waits for, lane 1 the hypervisor's stream, the
others bulk data; with channels, as many lanes after lane 1 carry further streams. The link notices
a peer that is gone (``ConnectionLost``), silent for longer than ``patience`` (``LinkTimeout``), or
that gave up (``PeerError``); ``guard`` ends whatever was being done with exactly that error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from vmferry.api.transport import Connection, Frame, Lane, Limits
from vmferry.errors import ConnectionLost, LinkError, LinkTimeout, PeerError, ProtocolError
from vmferry.wire.buffers import Buffers
from vmferry.wire.codec import MAX_HEAD, decode, encode, salted
from vmferry.wire.messages import (
    MAX_CHANNELS,
    Digests,
    Extent,
    Failure,
    Heartbeat,
    Message,
    PendingMap,
)

__all__ = ["LIMITS", "Link", "Payload"]

Payload = memoryview | bytes
_BUFFERS = Buffers()
LIMITS = Limits(
    head=MAX_HEAD, payload=17 << 20, lanes=34 + MAX_CHANNELS, allocate=_BUFFERS.allocate
)
"""What any peer may send in one frame."""

_INBOX = 64
_BEAT = 1.0
T = TypeVar("T")
M = TypeVar("M", bound=Message)
Handler = Callable[[Any, Payload], None]


class _BoundLane(Lane):
    """A lane whose sent frames the link counts, and no other connection's peer takes for its own.

    Attributes:
        salt: of the connection.

    """

    salt = 0

    def __init__(self, lane: Lane, sent: Callable[[], None]) -> None:
        self._lane, self._sent = lane, sent

    async def send(self, head: bytes, payload: Payload = b"") -> None:
        """As the lane's own."""
        await self._lane.send(salted(head, self.salt), payload)
        self._sent()

    async def receive(self) -> Frame | None:
        """As the lane's own."""
        return await self._lane.receive()


def _check_lanes(connection: Connection, channels: int) -> None:
    if (found := len(connection.lanes)) < 3 + channels:
        raise ProtocolError(f"a link needs {3 + channels} lanes, the peer opened {found}")


class Link:
    """One connection to the other agent. Use it with ``async with``.

    Args:
        connection: from a transport; the link owns it and closes it.
        patience: seconds without any frame after which the peer counts as gone. A heartbeat is
            sent five times in that span, and every second at least: the peer may have less.
        channels: see ``spread``.

    Attributes:
        channels: lanes after the stream lane that carry further streams.
        peer: who is at the other end.
        moved: frames sent and received so far on all lanes, heartbeats not counted. It stands
            still while nothing moves, although the peer may well answer.
        salt: agreed on for this connection; 0 before. See ``bind``.

    """

    def __init__(
        self, connection: Connection, *, patience: float = 30.0, channels: int = 0
    ) -> None:
        _check_lanes(connection, channels)
        self.peer = connection.peer
        self.moved = self.salt = 0
        self._lanes = [_BoundLane(lane, self._count) for lane in connection.lanes[1:]]
        self._connection, self.channels = connection, channels
        self._patience = patience
        self._inbox: asyncio.Queue[tuple[Message, Payload]] = asyncio.Queue(_INBOX)
        self._handlers: dict[type[Message], Handler] = {}
        self._heard = 0.0
        self._fatal: asyncio.Future[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def gave_up(self) -> PeerError | None:
        """What the peer said when it gave up; ``None`` if it has not."""
        error = self._fatal.exception() if self._fatal is not None and self._fatal.done() else None
        return error if isinstance(error, PeerError) else None

    @property
    def lost(self) -> bool:
        """The connection is no more, and the peer has not said that it gives up."""
        error = self._fatal.exception() if self._fatal is not None and self._fatal.done() else None
        return isinstance(error, LinkError)

    @property
    def stream_lanes(self) -> Sequence[Lane]:
        """The lanes of the hypervisor's byte stream and of its channels."""
        return self._lanes[: 1 + self.channels]

    @property
    def bulk_lanes(self) -> Sequence[Lane]:
        """The lanes of bulk data, at least one."""
        return self._lanes[1 + self.channels :]

    async def __aenter__(self) -> Link:
        loop = asyncio.get_running_loop()
        self._fatal = loop.create_future()
        self._heard = loop.time()
        self._tasks = [
            loop.create_task(self._watch(work)) for work in (self._read, self._beat, self._listen)
        ]
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._fatal is not None and self._fatal.done():
            self._fatal.exception()
        try:
            if error is None:
                await self._connection.close()
            else:
                self._connection.abort()
        finally:
            _BUFFERS.trim()

    def bind(self, salt: int) -> None:
        """Take nothing, but on the control lane, that was not sent on this very connection.

        A frame that comes late, of an earlier connection of the job, would put old data over new
        data, or answer for what has not arrived.
        """
        self.salt = salt
        for lane in self._lanes:
            lane.salt = salt

    def spread(self, channels: int) -> None:
        """As many lanes after the stream lane carry further streams: the peer says so.

        Raises:
            ProtocolError: it has not opened so many lanes.

        """
        _check_lanes(self._connection, channels)
        self.channels = channels

    def abort(self) -> None:
        """End the connection at once, as if the network had failed."""
        self._connection.abort()

    # -- the dialogue on the control lane

    async def send(self, message: Message, payload: Payload = b"") -> None:
        """Send on the control lane."""
        await self._connection.lanes[0].send(encode(message), payload)
        if not isinstance(message, Heartbeat):
            self._count()

    def _count(self) -> None:
        self.moved += 1

    async def receive(self, *kinds: type[Message]) -> tuple[Message, Payload]:
        """The next message of the dialogue with its payload; it must be of one of ``kinds``."""
        message, payload = await self._inbox.get()
        if not isinstance(message, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise ProtocolError(f"{type(message).__name__} received where {wanted} is due")
        return message, payload

    async def expect(self, kind: type[M]) -> M:
        """The next message of the dialogue, which must be a ``kind``."""
        message, _ = await self.receive(kind)
        assert isinstance(message, kind)
        return message

    def on(self, kind: type[Message], handler: Handler | None) -> None:
        """Give every ``kind`` to ``handler`` at once, beside the dialogue; ``None`` ends that.

        It also gets those that came already and were not taken. A handler must not block; one that
        raises ends the link.
        """
        if handler is None:
            self._handlers.pop(kind, None)
            return
        self._handlers[kind] = handler
        for message, payload in self._emptied():
            if isinstance(message, kind):
                handler(message, payload)
            else:
                self._inbox.put_nowait((message, payload))

    def _emptied(self) -> list[tuple[Message, Payload]]:
        return [self._inbox.get_nowait() for _ in range(self._inbox.qsize())]

    async def ends(self, seconds: float) -> bool:
        """Whether the connection is lost, or is so within that time."""
        if self._fatal is not None:
            await asyncio.wait({self._fatal}, timeout=seconds)
        return self.lost

    async def fail(self, error: BaseException) -> bool:
        """Tell the peer why this side gives up; whether that was sent, within a second."""
        failure = Failure(kind=type(error).__name__, text=str(error)[:4096])
        try:
            async with asyncio.timeout(1):
                await self.send(failure)
        except Exception:
            return False
        return True

    async def dismiss(self, error: BaseException) -> bool:
        """As ``fail``; whether the peer has heard it, and ended the connection within a second."""
        if self._fatal is None or self._fatal.done() or not await self.fail(error):
            return False
        return await self.ends(1)

    # -- bulk lanes

    async def receive_on(self, lane: Lane) -> tuple[Message, Payload] | None:
        """The next message on a lane other than control; ``None`` once the peer closed it."""
        frame = await lane.receive()
        return None if frame is None else self._opened(frame, self.salt)

    # -- life

    async def guard(self, work: Coroutine[Any, Any, T]) -> T:
        """Do ``work``; if the link dies meanwhile, end it and raise why the link died."""
        assert self._fatal is not None, "enter the link first"
        task = asyncio.get_running_loop().create_task(work)
        both: set[asyncio.Future[Any]] = {task, self._fatal}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self.gave_up is not None:
                raise self.gave_up
            if not task.done():
                self._fatal.result()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()

    async def _watch(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except Exception as error:
            if self._fatal is not None and not self._fatal.done():
                self._fatal.set_exception(error)

    async def _read(self) -> None:
        while True:
            frame = await self._connection.lanes[0].receive()
            if frame is None:
                raise ConnectionLost("the peer closed the connection")
            await self._dispatch(*self._opened(frame))

    async def _dispatch(self, message: Message, payload: Payload) -> None:
        if isinstance(message, Heartbeat):
            return
        if isinstance(message, Failure):
            raise PeerError(f"{self.peer.address} gave up: {message.text} ({message.kind})")
        if payload and not isinstance(message, Digests | Extent | PendingMap):
            raise ProtocolError(f"{type(message).__name__}: {len(payload)} bytes of payload")
        handler = self._handlers.get(type(message))
        if handler is not None:
            handler(message, payload)
        else:
            await self._inbox.put((message, payload))

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(min(self._patience / 5, _BEAT))
            await self.send(Heartbeat())

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while (left := self._heard + self._patience - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)
        raise LinkTimeout(
            f"nothing was heard from {self.peer.address} for {self._patience:g} seconds"
        )

    def _opened(self, frame: Frame, salt: int = 0) -> tuple[Message, Payload]:
        self._heard = asyncio.get_running_loop().time()
        message = decode(frame.head, salt)
        if not isinstance(message, Heartbeat):
            self._count()
        return message, frame.payload
