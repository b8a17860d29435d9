"""One limit on the bytes per second of a whole migration, changeable while it runs.

A token bucket. Its level rises by ``rate`` per second up to a burst and falls by what is taken,
below zero if a piece is larger than the burst; the next piece then waits until the debt is paid.
Over any span of ``t`` seconds no more goes than ``rate * t``, one burst, one piece, and the second
of credit that urgent pieces have.

One throttle is shared by all lanes, disks and the memory stream, so that a limit means the same
however many of them there are.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque

__all__ = ["Throttle"]

BURST_SECONDS = 0.05
CREDIT_SECONDS = 1.0
_SMOOTHING = 1.0
"""Time constant in seconds of ``rate_now``: as steady as a mean over the last two seconds."""
_FIRST_LOOK = 0.1
"""Seconds below which ``rate_now`` takes nothing for a trend."""

_Waiter = tuple["asyncio.Future[None]", int]


class Throttle:
    """Lets bytes go at no more than ``rate`` bytes per second; 0 means no limit.

    Time is the running loop's. All methods belong to one event loop.

    Attributes:
        sent: bytes let through since the beginning.

    """

    def __init__(self, rate: int = 0) -> None:
        self._rate = _checked(rate)
        self._level = self._burst
        self._filled: float | None = None
        self._urgent: deque[_Waiter] = deque()
        self._normal: deque[_Waiter] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._meter = _Meter()
        self.sent = 0

    @property
    def rate(self) -> int:
        """The limit in bytes per second; 0 is none."""
        return self._rate

    @property
    def _burst(self) -> float:
        return self._rate * BURST_SECONDS

    def rate_now(self) -> float:
        """Bytes per second let through, smoothed over about two seconds."""
        return self._meter.read(asyncio.get_running_loop().time())

    @property
    def waiting(self) -> bool:
        """Whether the limit holds anybody back now."""
        return bool(self._urgent or self._normal)

    def set(self, rate: int) -> None:
        """Change the limit. Those who wait are judged by the new one at once."""
        _checked(rate)
        self._fill()
        self._rate = rate
        self._level = min(self._level, self._burst) if rate else 0.0
        self._pump()

    async def take(self, size: int, *, urgent: bool = False) -> None:
        """Return when ``size`` bytes may go, in the order of the calls.

        Urgent bytes go before all that wait and may be borrowed from the next second: what a guest
        waits for is not held up by a large piece that has just gone. They count all the same, so
        that the others go later.

        A call that is cancelled has taken nothing.
        """
        if not (self._urgent if urgent else self._urgent or self._normal):
            self._fill()
            if self._may_go(size, urgent):
                self._spend(size)
                return
        await self._wait(size, self._urgent if urgent else self._normal)

    async def _wait(self, size: int, queue: deque[_Waiter]) -> None:
        waiter = (asyncio.get_running_loop().create_future(), size)
        queue.append(waiter)
        self._pump()
        try:
            await waiter[0]
        except asyncio.CancelledError:
            if waiter in queue:
                queue.remove(waiter)
            elif not waiter[0].cancelled():
                self._give_back(size)
            self._pump()
            raise

    def _may_go(self, size: int, urgent: bool) -> bool:
        return self._level >= self._needed(size, urgent)

    def _needed(self, size: int, urgent: bool) -> float:
        """The level from which on a piece may go."""
        if not self._rate:
            return -math.inf
        return -self._rate * CREDIT_SECONDS if urgent else min(size, self._burst)

    def _spend(self, size: int) -> None:
        self.sent += size
        self._meter.add(size, asyncio.get_running_loop().time())
        if self._rate:
            self._level -= size

    def _give_back(self, size: int) -> None:
        self.sent -= size
        self._meter.add(-size, asyncio.get_running_loop().time())
        if self._rate:
            self._level += size

    def _fill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._filled is not None and self._rate:
            self._level = min(self._burst, self._level + (now - self._filled) * self._rate)
        self._filled = now

    def _pump(self) -> None:
        """Let go whoever may, and come back when the next one may."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._fill()
        for queue, urgent in ((self._urgent, True), (self._normal, False)):
            while queue:
                waiter, size = queue[0]
                if not waiter.cancelled():
                    if not self._may_go(size, urgent):
                        self._come_back(self._needed(size, urgent))
                        return
                    self._spend(size)
                    waiter.set_result(None)
                queue.popleft()

    def _come_back(self, level: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + (level - self._level) / self._rate
        # Rounding may leave the level a hair too low at the very moment computed.
        self._timer = loop.call_at(max(math.nextafter(due, math.inf), due + 1e-9), self._pump)


class _Meter:
    """Bytes per second, each byte weighing less as it ages."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._first: float | None = None
        self._last = 0.0

    def add(self, size: int, now: float) -> None:
        self._age(now)
        self._weight += size

    def read(self, now: float) -> float:
        if self._first is None:
            return 0.0
        self._age(now)
        seen = max(now - self._first, _FIRST_LOOK)
        return self._weight / (_SMOOTHING * -math.expm1(-seen / _SMOOTHING))

    def _age(self, now: float) -> None:
        if self._first is None:
            self._first = now
        else:
            self._weight *= math.exp((self._last - now) / _SMOOTHING)
        self._last = now


def _checked(rate: int) -> int:
    if rate < 0:
        raise ValueError(f"a rate of {rate} bytes/s is below 0; 0 means no limit")
    return rate
