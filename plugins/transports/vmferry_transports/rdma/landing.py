"""The receiving side of a lane: posted receives, and the landing zone for bulk data.

Data stays where it has landed until somebody calls ``receive``; only then are slots and receives
given back. So what waits is what was registered when the lane was made, and one frame.
"""

from __future__ import annotations

from collections import deque

from vmferry.api.transport import Frame, Limits
from vmferry.errors import ConnectionLost, ProtocolError
from vmferry_transports.rdma.frames import SEND_SIZE, Kind, Message
from vmferry_transports.rdma.providers.base import Completion, Device, QueuePair, Region

__all__ = ["SENDS", "SPARE", "Landing"]

SENDS = 64
"""Messages with frames that may be under way."""
SPARE = 32
"""Receives for credits and the end, which need no credit: of each kind of credit four are under
way at most."""


class _Building:
    """The frame that is being put together from slots."""

    def __init__(self, message: Message, limits: Limits) -> None:
        self.message, self.have = message, 0
        self.head = memoryview(bytearray(message.head))
        self.payload = memoryview(b"")
        if message.payload:
            self.payload = limits.allocate(message.payload)
            if self.payload.nbytes != message.payload:
                raise ConnectionLost(
                    f"limits.allocate({message.payload}) gave a buffer of"
                    f" {self.payload.nbytes} bytes"
                )

    @property
    def missing(self) -> int:
        return self.message.body - self.have

    def add(self, data: memoryview) -> None:
        """Put the next bytes where they belong."""
        rest = max(0, self.message.head - self.have)
        if rest:
            first = data[:rest]
            self.head[self.have : self.have + first.nbytes] = first
        if data.nbytes > rest:
            start = self.have + rest - self.message.head
            self.payload[start : start + data.nbytes - rest] = data[rest:]
        self.have += data.nbytes

    def frame(self) -> Frame:
        return Frame(self.head, self.payload)


class Landing:
    """Receives of one lane.

    Args:
        device: on which memory is registered.
        limits: of this end.
        slot: bytes of a slot.
        slots: their number.

    Attributes:
        zone: the landing zone.
        receives: how many receives were consumed.
        freed: how many slots were.
        closed: the memory is gone, and what was in it.

    """

    def __init__(self, device: Device, limits: Limits, slot: int, slots: int) -> None:
        self._limits, self._slot, self._slots = limits, slot, slots
        self.zone = device.register(slot * slots, remote=True)
        self._buffers: Region = device.register(self.posted * SEND_SIZE)
        self._queue: QueuePair | None = None
        self._frames: deque[tuple[Message, memoryview]] = deque()
        self._pieces: deque[tuple[int, int]] = deque()
        self._next = self._landed = self._announced = 0
        self._building: _Building | None = None
        self.receives = self.freed = 0
        self._told = (0, 0)
        self.closed = False

    @property
    def posted(self) -> int:
        """How many receives are posted at the start."""
        return SENDS + SPARE + self._slots

    def start(self, queue: QueuePair) -> None:
        """Post all receives."""
        self._queue = queue
        for work in range(self.posted):
            self._post(work)

    def _post(self, work: int) -> None:
        assert self._queue is not None
        self._queue.post_receive(work, self._buffers, work * SEND_SIZE, SEND_SIZE)

    def message(self, completion: Completion) -> Message:
        """Take in a SEND, and keep its body if it has one.

        Raises:
            ProtocolError: it is no message, or there was no credit for it.

        """
        start = completion.work * SEND_SIZE
        data = self._buffers.view[start : start + completion.size]
        message = Message.decode(data, self._limits)
        if message.kind is Kind.DATA:
            if len(self._frames) >= SENDS:
                raise ProtocolError("a frame for which there was no credit")
            self._announced += message.body - message.inline
            self._frames.append((message, memoryview(bytes(data[Message.SIZE :]))))
        self._post(completion.work)
        return message

    def written(self, completion: Completion) -> None:
        """Take note of a slot that was written.

        Raises:
            ProtocolError: it is not the next one, or was not free, or nobody announced it.

        """
        if completion.immediate != self._next or len(self._pieces) >= self._slots:
            raise ProtocolError(f"slot {completion.immediate} was written, not {self._next}")
        self._landed += completion.size
        if not 0 < completion.size <= self._slot or self._landed > self._announced:
            raise ProtocolError(f"{completion.size} bytes were written that are no frame's")
        self._pieces.append((self._next, completion.size))
        self._next = (self._next + 1) % self._slots
        self._post(completion.work)

    def take(self) -> Frame | None:
        """Return the next frame if all of it is there.

        Raises:
            ProtocolError: slots were filled otherwise than announced.
            ConnectionLost: ``limits.allocate`` gave no buffer.

        """
        if self._building is None:
            if not self._frames:
                return None
            message, body = self._frames.popleft()
            self._building = _Building(message, self._limits)
            self._building.add(body)
        self._fill(self._building)
        if self._building.missing:
            return None
        frame, self._building = self._building.frame(), None
        self.receives += 1
        return frame

    def _fill(self, building: _Building) -> None:
        while building.missing and self._pieces:
            slot, size = self._pieces.popleft()
            if size != min(self._slot, building.missing):
                raise ProtocolError(f"{size} bytes in a slot, {building.missing} are missing")
            start = slot * self._slot
            building.add(self.zone.view[start : start + size])
            self.freed += 1

    @property
    def unfinished(self) -> bool:
        """True while a frame is there that is not complete."""
        return self._landed < self._announced

    @property
    def should_tell(self) -> bool:
        """True when a quarter of the receives or slots was consumed since the peer was told."""
        receives, freed = self._told
        return self.receives - receives >= SENDS // 4 or self.freed - freed >= self._slots // 4

    def told(self) -> tuple[int, int]:
        """Return what was consumed, which the peer is told now."""
        self._told = (self.receives, self.freed)
        return self._told

    @property
    def empty(self) -> bool:
        """True when no part of a frame is there."""
        return not self._frames and self._building is None

    def drop(self) -> None:
        """Forget all frames."""
        self._frames.clear()
        self._building = None

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        self.closed = True
        self.zone.close()
        self._buffers.close()
