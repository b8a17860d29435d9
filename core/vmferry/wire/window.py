"""How much of the hypervisor's stream may be on its way at once.

The guest is stopped when its hypervisor has handed over all but a little of the memory, and stands
still until the other side has taken what is on its way then. Sockets and queues hold many
megabytes, so the sender goes by what the receiver says it has taken: it lets so much out that the
way is full and no queue builds up on it, as TCP Vegas does (Brakmo and Peterson, "TCP Vegas: End to
End Congestion Avoidance on a Global Internet", 1995).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from vmferry.errors import ProtocolError
from vmferry.units import KIB, MIB

__all__ = ["LEAST", "MOST", "STEP", "Window"]

LEAST = 256 * KIB
"""A twentieth of a second on a link of 5 MiB/s, for which a guest would stand still."""
MOST = 64 * MIB
"""A delay of 50 ms at 10 Gbit/s."""
STEP = 64 * KIB
"""Bytes after which the receiver says again what it has taken; well below ``LEAST``."""
_SLACK = 0.002
"""Seconds in a queue that are not one: what a busy machine makes of any delay."""


class _Mark(NamedTuple):
    """The end of a piece: bytes of the stream and of payload since the beginning, and when."""

    total: int
    payload: int
    at: float


class Window:
    """The sender's account of one stream.

    The receiver tells what it has taken of the stream as it was before compression; what is on its
    way is counted as it is on the way.

    Args:
        clock: seconds, from anywhere.

    Attributes:
        size: bytes of payload that may be on their way.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = LEAST
        self._clock = clock
        self._sent = self._last = _Mark(0, 0, 0.0)
        self._total = self._taken = 0
        self._marks: deque[_Mark] = deque()
        self._shortest = float("inf")
        self._full = False
        self._room = asyncio.Event()

    def fits(self, payload: int) -> bool:
        """Whether so many bytes more may be sent now; when nothing is on its way, any number."""
        under_way = self._sent.payload - self._taken
        return not under_way or under_way + payload <= self.size

    async def wait(self, payload: int) -> None:
        """Return when so many bytes more may be sent."""
        while not self.fits(payload):
            self._full = True
            self._room.clear()
            await self._room.wait()

    def sent(self, length: int, payload: int) -> None:
        """So many bytes more of the stream are on their way, as so many bytes of payload."""
        total, gone = self._sent.total + length, self._sent.payload + payload
        self._sent = _Mark(total, gone, self._clock())
        self._marks.append(self._sent)

    def taken(self, total: int) -> None:
        """The receiver has taken ``total`` bytes of the stream since the beginning.

        Raises:
            ProtocolError: that is less than it had before, or more than was sent.

        """
        if not self._total < total <= self._sent.total:
            raise ProtocolError(f"Taken: {total} bytes, of {self._sent.total}, after {self._total}")
        delay = self._delay(total)
        taken = self._payload(total)
        self._adapt(taken - self._taken, delay)
        self._total, self._taken = total, taken
        self._room.set()

    def _delay(self, total: int) -> float:
        """Seconds that the youngest of what was taken was on its way."""
        since = self._marks[0].at
        while self._marks and self._marks[0].total <= total:
            self._last = self._marks.popleft()
            since = self._last.at
        return self._clock() - since

    def _payload(self, total: int) -> int:
        """The payload of the first ``total`` bytes; of a piece that was taken in part, that part.

        Without the part, a receiver that has taken all but a little, and does not tell that, could
        be waited for for ever.
        """
        last = self._last
        if not self._marks:
            return last.payload
        piece = self._marks[0]
        share = (total - last.total) / (piece.total - last.total)
        return last.payload + int(share * (piece.payload - last.payload))

    def _adapt(self, length: int, delay: float) -> None:
        """Twice as much with each round trip until a queue builds up; then less."""
        self._shortest = min(self._shortest, delay)
        if delay > 1.5 * self._shortest + _SLACK:
            self.size = max(LEAST, self.size - length // 4)
        elif self._full:
            self.size = min(MOST, self.size + length)
        self._full = False
