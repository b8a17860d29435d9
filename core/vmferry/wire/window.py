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

from vmferry.errors import ProtocolError
from vmferry.units import MIB

__all__ = ["LEAST", "MOST", "STEP", "Window"]

LEAST = MIB
MOST = 64 * MIB
"""A delay of 50 ms at 10 Gbit/s."""
STEP = 256 << 10
"""Bytes after which the receiver says again what it has taken; well below ``LEAST``."""
_SLACK = 0.002
"""Seconds in a queue that are not one: what a busy machine makes of any delay."""


class Window:
    """The sender's account of one stream.

    Args:
        clock: seconds, from anywhere.

    Attributes:
        size: bytes that may be on their way.

    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = LEAST
        self._clock = clock
        self._sent = self._taken = 0
        self._marks: deque[tuple[int, float]] = deque()
        self._shortest = float("inf")
        self._full = False
        self._room = asyncio.Event()

    def fits(self, length: int) -> bool:
        """Whether so many bytes more may be sent now; when nothing is on its way, any number."""
        under_way = self._sent - self._taken
        return not under_way or under_way + length <= self.size

    async def wait(self, length: int) -> None:
        """Return when so many bytes more may be sent."""
        while not self.fits(length):
            self._full = True
            self._room.clear()
            await self._room.wait()

    def sent(self, length: int) -> None:
        """So many bytes more are on their way."""
        self._sent += length
        self._marks.append((self._sent, self._clock()))

    def taken(self, total: int) -> None:
        """The receiver has taken ``total`` bytes since the beginning.

        Raises:
            ProtocolError: that is less than it had before, or more than was sent.

        """
        if not self._taken < total <= self._sent:
            raise ProtocolError(f"Taken: {total} bytes, of {self._sent}, after {self._taken}")
        delay = self._delay(total)
        self._adapt(total - self._taken, delay)
        self._taken = total
        self._room.set()

    def _delay(self, total: int) -> float:
        """Seconds that the youngest of what was taken was on its way."""
        since = self._marks[0][1]
        while self._marks and self._marks[0][0] <= total:
            since = self._marks.popleft()[1]
        return self._clock() - since

    def _adapt(self, length: int, delay: float) -> None:
        """Twice as much with each round trip until a queue builds up; then less."""
        self._shortest = min(self._shortest, delay)
        if delay > 1.5 * self._shortest + _SLACK:
            self.size = max(LEAST, self.size - length // 4)
        elif self._full:
            self.size = min(MOST, self.size + length)
        self._full = False
