"""The sending side of a lane: what may be sent, and from which registered memory."""

from __future__ import annotations

from vmferry.errors import ProtocolError
from vmferry_transports.rdma.frames import SEND_SIZE, Message
from vmferry_transports.rdma.landing import SENDS, SPARE
from vmferry_transports.rdma.providers.base import Device, QueuePair, Region

__all__ = ["Takeoff"]

_MODULO = 1 << 32


class Takeoff:
    """Sends of one lane.

    A buffer is used again when the peer has consumed what it held, which is later than its
    completion.

    Args:
        device: on which memory is registered.
        slot: bytes of a slot of the peer's.
        slots: their number.

    """

    def __init__(self, device: Device, slot: int, slots: int) -> None:
        self._device, self._slot, self._slots = device, slot, slots
        self._buffers: Region = device.register((SENDS + SPARE) * SEND_SIZE)
        self._staging: Region | None = None
        self._free = list(range(SENDS + SPARE))
        self._sent = self._taken = 0
        self._written = self._freed = 0

    @property
    def slot(self) -> int:
        """Bytes of a slot."""
        return self._slot

    @property
    def may_send(self) -> bool:
        """True while the peer has a receive for a frame."""
        return self._sent - self._taken < SENDS

    @property
    def may_write(self) -> bool:
        """True while the peer has a free slot."""
        return self._written - self._freed < self._slots

    def credit(self, message: Message) -> None:
        """Take note of what the peer has consumed.

        Raises:
            ProtocolError: it cannot have consumed that much.

        """
        taken = (message.receives - self._taken) % _MODULO
        freed = (message.slots - self._freed) % _MODULO
        if taken > self._sent - self._taken or freed > self._written - self._freed:
            raise ProtocolError(f"{taken} receives and {freed} slots consumed that were not used")
        self._taken += taken
        self._freed += freed

    def completed(self, work: int) -> None:
        """Take back the buffer of a SEND."""
        self._free.append(work)

    def send(self, queue: QueuePair, message: Message, body: bytes, *, frame: bool) -> None:
        """Post a message."""
        work = self._free.pop()
        data = message.encode() + body
        start = work * SEND_SIZE
        self._buffers.view[start : start + len(data)] = data
        self._sent += frame
        queue.post_send(work, self._buffers, start, len(data))

    def write(self, queue: QueuePair, piece: memoryview) -> None:
        """Write the next slot; ``piece`` is the caller's again on return."""
        slot = self._written % self._slots
        region, start = self._device.borrow(piece), 0
        if region is None:
            region, start = self._stage(slot, piece)
        self._written += 1
        queue.post_write(slot, region, start, piece.nbytes, slot * self._slot, slot)

    def _stage(self, slot: int, piece: memoryview) -> tuple[Region, int]:
        if self._staging is None:
            self._staging = self._device.register(self._slot * self._slots)
        start = slot * self._slot
        self._staging.view[start : start + piece.nbytes] = piece
        return self._staging, start

    def close(self) -> None:
        """Let go of the memory. May be called twice."""
        self._buffers.close()
        if self._staging is not None:
            self._staging.close()
