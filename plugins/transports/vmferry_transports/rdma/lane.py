"""Lanes over queue pairs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vmferry.api.transport import Frame, Lane, Limits
from vmferry.errors import ConnectionLost, VmferryError
from vmferry_transports.rdma.frames import Kind, Message
from vmferry_transports.rdma.landing import Landing
from vmferry_transports.rdma.providers.base import Completion, Opcode, QueuePair
from vmferry_transports.rdma.takeoff import Takeoff

__all__ = ["RdmaLane"]

_MODULO = 1 << 32


class RdmaLane(Lane):
    """A lane.

    Args:
        queue: connected, with its receives posted.
        landing: the receiving side.
        takeoff: the sending side.
        limits: of this end.
        name: of the lane and its peer, for messages.
        broken: called when the lane is lost.

    Attributes:
        gone: settled when both directions have ended, in order or not.

    """

    def __init__(
        self,
        queue: QueuePair,
        landing: Landing,
        takeoff: Takeoff,
        limits: Limits,
        name: str,
        broken: Callable[[VmferryError], None],
    ) -> None:
        self._queue, self._landing, self._takeoff = queue, landing, takeoff
        self._limits, self._name, self._broken = limits, name, broken
        self._loop = asyncio.get_running_loop()
        self._turn, self._room = asyncio.Lock(), asyncio.Event()
        self._came = asyncio.Event()
        self._receiving = False
        self._rest: asyncio.Task[None] | None = None
        self._refusal: VmferryError | None = None
        self._error: VmferryError | None = None
        self._busy = self._ended = self._over = self._pumping = False
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(queue.descriptor, self.pump)
        self._loop.call_soon(self.pump)

    async def send(self, head: bytes, payload: memoryview | bytes = b"") -> None:
        """Send one frame as the peer frees its slots.

        When cancelled, a frame that has not been begun is not sent; of one that has, the rest is
        copied and sent.
        """
        data = memoryview(payload).cast("B")
        if len(head) > self._limits.head:
            raise ValueError(f"head of {len(head)} bytes; the limit is {self._limits.head}")
        if data.nbytes > self._limits.payload:
            raise ValueError(f"payload of {data.nbytes} bytes; the limit is {self._limits.payload}")
        await self._turn.acquire()  # its waiters are served in the order in which they came
        try:
            await self._until(lambda: self._takeoff.may_send)
            message = self._message(Kind.DATA, len(head), data.nbytes)
            if message.inline == message.body:
                self._post(message, head + bytes(data))
            else:
                first = head[: message.inline]
                self._post(message, first)
                await self._send_body(_Body(head[len(first) :], data, self._takeoff.slot))
        finally:
            if self._rest is None:
                self._turn.release()

    async def _send_body(self, body: _Body) -> None:
        self._busy = True
        try:
            await self._write(body)
        except asyncio.CancelledError:
            body.detach()
            self._rest = asyncio.ensure_future(self._write(body))
            self._rest.add_done_callback(self._rest_sent)
            raise
        finally:
            if self._rest is None:
                self._body_sent()

    def _rest_sent(self, task: asyncio.Task[None]) -> None:
        self._rest = None
        if not task.cancelled():
            task.exception()  # the lane tells
        self._body_sent()
        self._turn.release()

    def _body_sent(self) -> None:
        self._busy = False
        if self._refusal is not None and not self._over_out():
            self._say_end()

    async def _write(self, body: _Body) -> None:
        while not body.done:
            await self._until(lambda: self._takeoff.may_write, begun=True)
            self._takeoff.write(self._queue, body.next())
            self.pump()
            await asyncio.sleep(0)  # others have their turn between two copies

    async def _until(self, possible: Callable[[], bool], *, begun: bool = False) -> None:
        """Wait for room; a frame that was begun may go on after ``finish``."""
        while True:
            if self._refusal is not None and not (begun and not self._over_out()):
                raise type(self._refusal)(*self._refusal.args)
            if possible():
                return
            self._room.clear()
            await self._room.wait()

    def _over_out(self) -> bool:
        """True when nothing more can be sent."""
        return self._ended or self.gone.done()

    async def receive(self) -> Frame | None:
        """Return the next frame, ``None`` at the peer's end of the lane."""
        if self._receiving:
            raise RuntimeError("receive() was called while another call waits")
        self._receiving = True
        try:
            await asyncio.sleep(0)  # others have their turn between two copies
            while True:
                self._came.clear()
                if (frame := self._take()) is not None:
                    return frame
                if self._over:
                    self._check_end()
                    return None
                await self._came.wait()
        finally:
            self._receiving = False

    def _take(self) -> Frame | None:
        if self._landing.closed:
            return None
        try:
            frame = self._landing.take()
        except VmferryError as error:
            self._lose(error)
            return None
        except Exception as error:  # limits.allocate is not ours
            self._lose(ConnectionLost(f"no buffer for a payload: {error!r}"))
            return None
        if self._landing.should_tell and not self._over_out() and not self._over:
            self._post(self._message(Kind.CREDIT), b"")
        return frame

    def _check_end(self) -> None:
        """Raise unless the lane has ended in good order."""
        if self._error is not None:
            raise type(self._error)(*self._error.args)
        if self._landing.unfinished:
            raise ConnectionLost(f"{self._name}: the peer closed it within a frame")
        if not self._landing.empty:
            raise ConnectionLost(f"{self._name}: closed at this end before all was received")

    def pump(self) -> None:
        """Handle what has completed, in its order."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while not self.gone.done() and (found := self._queue.poll()):
                for completion in found:
                    self._completed(completion)
        except VmferryError as error:
            self._lose(error)
        finally:
            self._pumping = False

    def _completed(self, completion: Completion) -> None:
        if completion.error:
            raise ConnectionLost(completion.error)
        if completion.opcode is Opcode.SEND:
            self._takeoff.completed(completion.work)
        elif completion.opcode is Opcode.RECEIVE_WRITE:
            self._landing.written(completion)
            self._came.set()
        elif completion.opcode is Opcode.RECEIVE:
            self._handle(self._landing.message(completion))

    def _handle(self, message: Message) -> None:
        self._takeoff.credit(message)
        self._room.set()
        if message.kind is Kind.END:
            self._over = True
            self._refuse(ConnectionLost(f"{self._name}: closed by the peer"))
            if not self._over_out():
                self._say_end()
            self._settle()
        self._came.set()

    def finish(self) -> None:
        """Send an end after what was sent; calls that wait for room get ``ConnectionLost``."""
        if self._refusal is None:
            self._refuse(ConnectionLost(f"{self._name}: closed at this end"))
            if not self._busy:
                self._say_end()

    def _say_end(self) -> None:
        self._post(self._message(Kind.END), b"")
        self._ended = True
        self._room.set()
        self._settle()

    def fail(self, error: VmferryError, *, drop: bool = False) -> None:
        """End both directions at once; frames that are there are still given, unless ``drop``."""
        if self.gone.done():
            return
        self._refuse(ConnectionLost(str(error)))
        self._error = error if not self._over or drop else self._error
        self._over = True
        if drop:
            self._landing.drop()
        self._stop()
        self._queue.close()

    def _message(self, kind: Kind, head: int = 0, payload: int = 0) -> Message:
        receives, slots = self._landing.told()
        return Message(kind, head, payload, receives % _MODULO, slots % _MODULO)

    def _post(self, message: Message, body: bytes) -> None:
        try:
            self._takeoff.send(self._queue, message, body, frame=message.kind is Kind.DATA)
        except IndexError:
            self._lose(ConnectionLost("no buffer for a message: the peer does not take them"))
        self.pump()

    def _lose(self, error: VmferryError) -> None:
        self._broken(type(error)(f"{self._name}: {error}"))

    def _refuse(self, error: VmferryError) -> None:
        self._refusal = self._refusal or error
        self._room.set()

    def _settle(self) -> None:
        if self._over and self._ended and not self.gone.done():
            self._stop()

    def _stop(self) -> None:
        self._loop.remove_reader(self._queue.descriptor)
        self.gone.set_result(None)
        self._room.set()
        self._came.set()


class _Body:
    """What goes into slots: head and payload, piece by piece."""

    def __init__(self, head: bytes, payload: memoryview, slot: int) -> None:
        self._parts = [memoryview(head), payload]
        self._slot = slot

    @property
    def done(self) -> bool:
        return not any(part.nbytes for part in self._parts)

    def detach(self) -> None:
        """Copy what is left, so that the caller's buffer is no longer needed."""
        self._parts = [memoryview(bytes(part)) for part in self._parts]

    def next(self) -> memoryview:
        """Return the next piece, as large as a slot if there is that much."""
        head, payload = self._parts
        if not head.nbytes:
            self._parts[1] = payload[self._slot :]
            return payload[: self._slot]
        first = head[: self._slot]
        more = self._slot - first.nbytes
        self._parts = [head[self._slot :], payload[more:]]
        return memoryview(b"".join((first, payload[:more]))) if more else first
