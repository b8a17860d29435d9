"""How frames travel: one direction of a lane, and the wire that lanes share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated

import msgspec

from vmferry.errors import ConnectionLost

__all__ = ["LinkParameters", "Parcel", "Pipe", "Wire"]

Seconds = Annotated[float, msgspec.Meta(ge=0)]


class LinkParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What a network is like.

    Attributes:
        latency: seconds from the last bit sent to the first received.
        jitter: up to so many seconds more, at random, frame by frame.
        bandwidth: bytes per second in each direction of a connection, shared by its lanes.
        window: bytes per lane that are sent and not received, at most; one frame always fits.
        notice: longest time until an end that did nothing learns that a connection is lost.

    """

    latency: Seconds = 0.0005
    jitter: Seconds = 0.0005
    bandwidth: Annotated[float, msgspec.Meta(gt=0)] = 100e6
    window: int = 1 << 20
    notice: Seconds = 0.05


@dataclass(slots=True)
class Parcel:
    """One frame under way; ``last`` marks the end of a lane instead, ``label`` is the judge's."""

    head: bytes = b""
    payload: bytes = b""
    last: bool = False
    label: object = None

    @property
    def size(self) -> int:
        """Bytes of head and payload."""
        return len(self.head) + len(self.payload)


class Pipe:
    """One direction of one lane: where its frames are.

    Attributes:
        number: of the lane.
        queue: taken from the sender, not on the wire.
        flight: on the wire.
        inbox: arrived, not received.
        ended: the end of the lane was received.

    """

    def __init__(self, number: int, window: int) -> None:
        self.number = number
        self.queue: deque[Parcel] = deque()
        self.flight: deque[Parcel] = deque()
        self.inbox: deque[Parcel] = deque()
        self.ended = False
        self.latest = 0.0
        self._window = window
        self._held = 0
        self._senders: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._reader: asyncio.Future[None] | None = None

    def _fits(self, size: int) -> bool:
        return self._held == 0 or self._held + size <= self._window

    async def admit(self, size: int) -> None:
        """Wait, in turn, until ``size`` bytes more may be under way."""
        if not self._senders and self._fits(size):
            self._held += size
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._senders.append((size, granted))
        try:
            await granted
        except asyncio.CancelledError:
            self._give_up(size, granted)
            raise

    def _give_up(self, size: int, granted: asyncio.Future[None]) -> None:
        if granted.cancelled():
            self._senders = deque(entry for entry in self._senders if entry[1] is not granted)
            self._grant()
        elif granted.exception() is None:
            self.release(size)

    def force(self, size: int) -> None:
        """Account for ``size`` bytes that nobody waited to send."""
        self._held += size

    def release(self, size: int) -> None:
        """Account for ``size`` bytes that were received."""
        self._held -= size
        self._grant()

    def _grant(self) -> None:
        while self._senders and self._fits(self._senders[0][0]):
            size, granted = self._senders.popleft()
            if not granted.done():
                self._held += size
                granted.set_result(None)

    def refuse_senders(self, reason: str) -> None:
        """Let everybody who waits to send have ``ConnectionLost``."""
        while self._senders:
            granted = self._senders.popleft()[1]
            if not granted.done():
                granted.set_exception(ConnectionLost(reason))

    def arrive(self, parcel: Parcel) -> None:
        """Put a frame where the receiver finds it."""
        self.inbox.append(parcel)
        self.wake()

    def wake(self) -> None:
        """Let the receiver look again."""
        if self._reader and not self._reader.done():
            self._reader.set_result(None)

    async def wait(self) -> None:
        """Return when the receiver should look again."""
        if self._reader:
            raise RuntimeError("receive was called while another call was waiting on this lane")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None

    def discard(self) -> None:
        """Throw away what arrived and let the sender go on."""
        while self.inbox:
            self.release(self.inbox.popleft().size)

    def lose(self, random: Random) -> None:
        """Throw away all that is under way but for a random beginning."""
        if any(parcel.last for parcel in self.inbox):
            return
        arrived = [*self.inbox, *self.flight]
        self.queue.clear()
        self.flight.clear()
        self.inbox = deque(arrived[: random.randint(0, len(arrived))])


class Wire:
    """One direction of a connection. Its pipes take turns, frame by frame.

    Args:
        pipes: the lanes that share it.
        parameters: latency and bandwidth.
        random: decides the jitter.
        judge: sees each frame as it goes onto the wire and returns what is really sent; may cut.
        deliver: takes a frame that has arrived.

    Attributes:
        dead: nothing goes through any more.
        stalled_until: nothing goes through before that time.

    """

    def __init__(
        self,
        pipes: Sequence[Pipe],
        parameters: LinkParameters,
        random: Random,
        judge: Callable[[Pipe, Parcel], Parcel],
        deliver: Callable[[Pipe, Parcel], None],
    ) -> None:
        self.dead = False
        self.stalled_until = 0.0
        self._pipes, self._parameters, self._random = pipes, parameters, random
        self._judge, self._deliver = judge, deliver
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._turn = 0

    def put(self, pipe: Pipe, parcel: Parcel) -> None:
        """Send a frame; on a dead wire it is lost, and nobody is told."""
        if not self.dead:
            pipe.queue.append(parcel)
            self._next()

    def _next(self) -> None:
        if self._busy or self.dead or not (pipe := self._choose()):
            return
        parcel = self._judge(pipe, pipe.queue.popleft())
        pipe.flight.append(parcel)
        if self.dead:
            return
        self._busy = True
        delay = max(0.0, self.stalled_until - self._loop.time())
        delay += parcel.size / self._parameters.bandwidth
        self._loop.call_later(delay, self._sent, pipe)

    def _choose(self) -> Pipe | None:
        count = len(self._pipes)
        for step in range(count):
            pipe = self._pipes[(self._turn + step) % count]
            if pipe.queue:
                self._turn = (self._turn + step + 1) % count
                return pipe
        return None

    def _sent(self, pipe: Pipe) -> None:
        self._busy = False
        delay = self._parameters.latency + self._random.random() * self._parameters.jitter
        pipe.latest = max(pipe.latest, self._loop.time() + delay)
        self._loop.call_at(pipe.latest, self._arrive, pipe)
        self._next()

    def _arrive(self, pipe: Pipe) -> None:
        if self.dead or not pipe.flight:
            return
        if self._loop.time() < self.stalled_until:
            pipe.latest = max(pipe.latest, self.stalled_until)
            self._loop.call_at(pipe.latest, self._arrive, pipe)
            return
        self._deliver(pipe, pipe.flight.popleft())
