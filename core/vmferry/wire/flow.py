"""How a stream fares: what its link takes, and whether its receiver waits for more.

Both sides buffer, so that a link carries one piece while the next is being compressed. What it
takes shows only while a piece has to wait for it; otherwise it may take more than is seen. A piece
waits for a slow receiver as it does for a slow link, and only the receiver can tell the two apart.
"""

from __future__ import annotations

from vmferry.units import MIB

__all__ = ["Flow"]

_FADES = 0.8
_BLOCKED = 0.5
"""Share of its time for which a stream has waited whose link shows what it takes: to hand over a
piece costs some time in any case."""
_FIRST = 4 * MIB
"""Bytes by which the link is judged for the first time."""
_HOPES = 1.02
"""With each piece that hardly waits, the link is thought to take that much more: it may have become
faster, and nothing else would show it."""
_STARVING, _SATED = 50, 20
"""Percent of its time for which a receiver waits that would take more, and that would not."""


class Flow:
    """The sender's view of a stream; the last pieces weigh most."""

    def __init__(self) -> None:
        self._total = 0
        self._capacity = 0.0
        self._length = self._payload = self._elapsed = self._blocked = 0.0
        self._besides = self._idle = 0.0

    def went(
        self, length: int, payload: int, *, elapsed: float, packing: float, blocked: float
    ) -> None:
        """A piece has gone.

        Args:
            length: its bytes, uncompressed.
            payload: its bytes on the link.
            elapsed: seconds that it took.
            packing: those of them in which it was compressed.
            blocked: those in which it waited for the link.

        """
        self._length = _FADES * self._length + length
        self._besides = _FADES * self._besides + elapsed - packing - blocked
        self._total += length
        self._payload = _FADES * self._payload + payload
        self._elapsed = _FADES * self._elapsed + elapsed
        self._blocked = _FADES * self._blocked + blocked
        if not self._elapsed:
            return
        seen = self._payload / self._elapsed
        held_up = self._blocked > _BLOCKED * self._elapsed
        self._capacity = seen if held_up else max(self._capacity, seen) * _HOPES

    def heard(self, idle: int) -> None:
        """The receiver has waited for more for so many percent of its time of late."""
        self._idle = _FADES * self._idle + (1 - _FADES) * idle

    @property
    def capacity(self) -> float:
        """Payload bytes per second that the link takes, or more; 0 if not known yet."""
        return self._capacity if self._total >= _FIRST else 0.0

    @property
    def besides(self) -> float:
        """Seconds per byte that a piece takes besides compressing and waiting for the link."""
        return self._besides / self._length if self._length else 0.0

    @property
    def starving(self) -> bool:
        """Whether the receiver would take more than comes."""
        return self._idle > _STARVING

    @property
    def sated(self) -> bool:
        """Whether the receiver has all that it can take."""
        return self._idle < _SATED
