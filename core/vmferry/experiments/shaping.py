"""A link of a given rate, delay and loss between two processes of one machine.

It is a relay for TCP connections, so it shapes what TCP carries and no packets. Each direction of a
link has one rate, which its connections share. A piece leaves when the ones before it have, and
arrives ``latency`` later. Loss is what it does to a TCP stream: in a piece of *n* segments each is
lost with probability ``loss``; a piece that lost one arrives a round trip (at least 10 ms) later,
and so does everything behind it; and no connection gets beyond the rate that Mathis and others give
for such a loss, 1.22 segments a round trip over the root of it. Real packets are lost between the
laboratory's hosts only.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from vmferry.experiments.parameters import Parameters

__all__ = ["Link", "ShapedLink", "shaped"]

_PIECE = 1 << 16
_SEGMENT = 1448
_LEAST_RTT = 0.01
_MATHIS = 1.22
_BACKLOG = 64
"""Pieces of a connection under way at once: 4 MiB, as a large socket buffer."""


class Link(NamedTuple):
    """Bytes per second (0: no limit), seconds each way, share of packets lost."""

    bandwidth: int = 0
    latency: float = 0.0
    loss: float = 0.0

    @classmethod
    def of(cls, parameters: Parameters) -> Link:
        """The link of a run."""
        return cls(parameters.bandwidth, parameters.latency, parameters.loss)

    @property
    def shaped(self) -> bool:
        """Whether it differs from the machine's own loopback."""
        return any(self)

    @property
    def rate_of_one(self) -> float:
        """Bytes per second that one TCP connection gets under loss; 0 is no limit."""
        if not self.loss:
            return 0.0
        trip = max(_LEAST_RTT, 2 * self.latency)
        return float(_MATHIS * _SEGMENT / trip / self.loss**0.5)


class _Queue:
    """When bytes that share a rate have left: one after the other."""

    def __init__(self, rate: float) -> None:
        self._rate, self._free = rate, 0.0

    def leave(self, size: int, now: float) -> float:
        """The time at which ``size`` more bytes have left."""
        if not self._rate:
            return now
        self._free = max(self._free, now) + size / self._rate
        return self._free


class ShapedLink:
    """The relays of one link; ends with ``close``.

    Attributes:
        passed: bytes that went over it, both ways.

    """

    def __init__(self, link: Link, seed: int = 1) -> None:
        self._link, self._random = link, random.Random(seed)  # noqa: S311
        self._ways = (_Queue(link.bandwidth), _Queue(link.bandwidth))
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.passed = 0

    async def through(self, port: int) -> int:
        """The port of 127.0.0.1 that leads over the link to ``port``."""
        if not self._link.shaped:
            return port

        def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._join(reader, writer, port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(arrived, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """End all connections."""
        for server in self._servers:
            server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the transports to let go of their sockets

    async def _join(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        writers = [writer]
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            writers.append(back)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, back, 0))
                group.create_task(self._pass(there, writer, 1))
        except* OSError:
            pass
        finally:
            for each in writers:
                each.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int
    ) -> None:
        """Read as fast as the rate allows, write when it is due."""
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_BACKLOG)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._deliver(due, writer))
            await self._take(reader, due, self._ways[way])

    async def _take(
        self, reader: asyncio.StreamReader, due: asyncio.Queue[tuple[float, bytes]], shared: _Queue
    ) -> None:
        own, clock = _Queue(self._link.rate_of_one), asyncio.get_running_loop().time
        last = 0.0
        while data := await reader.read(_PIECE):
            self.passed += len(data)
            now = clock()
            left = max(shared.leave(len(data), now), own.leave(len(data), now))
            last = max(last, left + self._link.latency + self._repair(len(data)))
            await due.put((last, data))
            await asyncio.sleep(left - now)
        await due.put((last, b""))

    def _repair(self, size: int) -> float:
        """Seconds that a piece is late because a segment of it had to be sent again."""
        segments = -(-size // _SEGMENT)
        lost = self._random.random() >= (1 - self._link.loss) ** segments
        return max(_LEAST_RTT, 2 * self._link.latency) if lost else 0.0

    async def _deliver(
        self, due: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            when, data = await due.get()
            await asyncio.sleep(when - clock())
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def shaped(link: Link, seed: int = 1) -> AsyncIterator[ShapedLink]:
    """A link that is there while inside; by ``seed`` it is decided what it loses."""
    relays = ShapedLink(link, seed)
    try:
        yield relays
    finally:
        await relays.close()
