"""Back-pressure: what one connection may have under way."""

from __future__ import annotations

import asyncio

import msgspec

from vmferry.export.nbd.protocol import MAX_PAYLOAD

__all__ = ["Budget", "Limits"]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on what clients can make the server hold.

    Attributes:
        connections: open at once; further ones are closed at once.
        requests: read from one connection and not answered yet.
        bytes: data of those requests and of replies that wait to be sent, for one connection.
        handshake: seconds from connecting until transmission begins.
        grace: seconds that requests under way are given when an export is removed.

    """

    connections: int = 64
    requests: int = 128
    bytes: int = 2 * MAX_PAYLOAD
    handshake: float = 30.0
    grace: float = 30.0


class Budget:
    """Requests and bytes under way on one connection. One task acquires, many release."""

    __slots__ = ("_bytes", "_limits", "_requests", "_waiter")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests = self._bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def used(self) -> int:
        """Requests that are not answered yet."""
        return self._requests

    async def acquire(self, cost: int) -> None:
        """Wait until one more request of ``cost`` bytes fits; a lone request always does."""
        while not self._fits(cost):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._requests += 1
        self._bytes += cost

    def release(self, cost: int) -> None:
        """Give back what ``acquire`` took."""
        self._requests -= 1
        self._bytes -= cost
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _fits(self, cost: int) -> bool:
        limits = self._limits
        return not self._requests or (
            self._requests < limits.requests and self._bytes + cost <= limits.bytes
        )
