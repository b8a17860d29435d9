"""Exclusive locks on ranges of a disk: disjoint ranges are held at once, others in turn."""

from __future__ import annotations

import asyncio

__all__ = ["Hold", "RangeLock"]


class Hold:
    """A range that is held, or waited for."""

    __slots__ = ("_granted", "length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset, self.length = offset, length
        self._granted: asyncio.Future[None] | None = None

    def overlaps(self, other: Hold) -> bool:
        """Whether both have a byte in common."""
        return (
            self.offset < other.offset + other.length and other.offset < self.offset + self.length
        )


class RangeLock:
    """Grants ranges first come, first served among those that overlap.

    One range per request, taken as a whole, so that no two requests can wait for each other. Costs
    a look at each range that is held or waited for.
    """

    def __init__(self) -> None:
        self._held: list[Hold] = []
        self._waiting: list[Hold] = []

    async def acquire(self, offset: int, length: int) -> Hold:
        """Wait until nothing overlaps the range and hold it. Cancelled, it holds nothing."""
        hold = Hold(offset, length)
        if self._is_free(hold, self._waiting):
            self._held.append(hold)
            return hold
        hold._granted = asyncio.get_running_loop().create_future()
        self._waiting.append(hold)
        try:
            await hold._granted
        except asyncio.CancelledError:
            self._forget(hold)
            raise
        return hold

    def release(self, hold: Hold) -> None:
        """Let go of the range; those who waited for it have it before the next await returns."""
        self._held.remove(hold)
        self._grant()

    def _is_free(self, hold: Hold, earlier: list[Hold]) -> bool:
        return not any(map(hold.overlaps, self._held)) and not any(map(hold.overlaps, earlier))

    def _forget(self, hold: Hold) -> None:
        if hold in self._held:
            self._held.remove(hold)
        else:
            self._waiting.remove(hold)
        self._grant()

    def _grant(self) -> None:
        still: list[Hold] = []
        for hold in self._waiting:
            granted = hold._granted
            if granted is None or granted.done() or not self._is_free(hold, still):
                still.append(hold)
            else:
                self._held.append(hold)
                granted.set_result(None)
        self._waiting = still
