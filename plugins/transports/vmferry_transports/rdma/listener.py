"""Accepting connections."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket

from vmferry.api.transport import Address, Connection, Limits, Listener, PeerInfo
from vmferry.errors import ConnectionLost, LinkError
from vmferry_transports.rdma.connection import RdmaConnection
from vmferry_transports.rdma.ends import Ends
from vmferry_transports.rdma.greeting import VERSION, Greeting, Refusal
from vmferry_transports.rdma.meeting import Met, Stream
from vmferry_transports.rdma.options import RdmaOptions
from vmferry_transports.rdma.providers.base import Provider

__all__ = ["RdmaListener"]

_log = logging.getLogger("vmferry_transports.rdma")

_MEETINGS = 64
"""Most peers in their greeting; further ones wait in the socket's backlog."""

_READY = 64
"""Most connections that wait for ``accept``; beyond, peers are told to try again."""


class RdmaListener(Listener):
    """Greets each peer in a task of its own, and gives those whose lanes are connected."""

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
        limits: Limits,
        options: RdmaOptions,
        provider: Provider,
    ) -> None:
        self._sock, self._address, self._limits = sock, address, limits
        self._options, self._provider = options, provider
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Queue[RdmaConnection | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_MEETINGS)
        self._meetings: set[asyncio.Task[None]] = set()
        self._closed = False
        self._accepting = asyncio.ensure_future(self._accept_on())

    @property
    def address(self) -> Address:
        """Where it listens, with the port that was taken."""
        return self._address

    async def accept(self) -> Connection:
        """Return the next connection whose lanes are all there."""
        connection = None if self._closed else await self._ready.get()
        if connection is None:
            self._ready.put_nowait(None)  # for whoever else waits
            raise ConnectionLost(f"the listener {self._address} is closed")
        return connection

    async def close(self) -> None:
        """Stop listening; connections that nobody has accepted are aborted."""
        self._closed = True
        tasks = [self._accepting, *self._meetings]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._sock.close()
        while not self._ready.empty():
            if (connection := self._ready.get_nowait()) is not None:
                _log.warning("%s: a connection nobody accepted is aborted", self._address)
                connection.abort()
        self._ready.put_nowait(None)

    async def _accept_on(self) -> None:
        while True:
            await self._room.acquire()
            try:
                sock, _ = await self._loop.sock_accept(self._sock)
            except OSError as error:  # no descriptors are left, or the peer is gone already
                _log.warning("%s: accept: %s", self._address, error.strerror or error)
                self._room.release()
                await asyncio.sleep(0.1)
                continue
            task = asyncio.ensure_future(self._meet(sock))
            self._meetings.add(task)
            task.add_done_callback(functools.partial(self._met, sock))

    def _met(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        """Close a socket that did not become a connection, also if its task never ran."""
        self._meetings.discard(task)
        self._room.release()
        if task.cancelled() or task.exception() is not None:
            sock.close()

    async def _meet(self, sock: socket.socket) -> None:
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                self._ready.put_nowait(await self._welcome(sock))
        except TimeoutError:
            _log.warning("%s: a peer did not greet in time (connect_timeout)", self._address)
            raise
        except (LinkError, OSError) as error:
            _log.warning("%s: a peer failed to connect: %s", self._address, error)
            raise

    async def _welcome(self, sock: socket.socket) -> RdmaConnection:
        sock.setblocking(False)
        stream, identity = Stream(sock), self._provider.identity(sock)
        met = await stream.greeted()
        try:
            if refusal := self._refusal(met.greeting):
                await stream.greet(self._answer(met, refusal=refusal), [])
                raise LinkError(f"refused: {refusal.name.lower()}")
            greeting = met.greeting
            ends = Ends(self._provider, greeting.lanes, self._limits, self._options, greeting.slots)
        except BaseException:
            met.close()
            raise
        try:
            ends.connect(greeting, met.take())
            answer = self._answer(met, ends=ends)
            await stream.greet(answer, ends.descriptors())
            ends.told()
            await stream.until_ready()
        except BaseException:
            ends.close()
            raise
        peer = PeerInfo(address=_name(sock), identity=identity)
        return RdmaConnection(sock, ends, self._limits, peer, self._options.close_timeout)

    def _answer(
        self, met: Met, *, ends: Ends | None = None, refusal: Refusal = Refusal.NONE
    ) -> Greeting:
        return Greeting(
            provider=self._provider.name,
            slot=self._options.slot,
            slots=self._options.slots,
            lanes=met.greeting.lanes,
            endpoints=ends.endpoints() if ends is not None else (),
            refusal=refusal,
        )

    def _refusal(self, greeting: Greeting) -> Refusal:
        if greeting.version != VERSION:
            return Refusal.VERSION
        if greeting.provider != self._provider.name:
            return Refusal.PROVIDER
        if not 2 <= greeting.lanes <= self._limits.lanes:
            return Refusal.LANES
        return Refusal.BUSY if self._ready.qsize() >= _READY else Refusal.NONE


def _name(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return "rdma://127.0.0.1"
    host = sock.getpeername()[0]
    return f"rdma://{f'[{host}]' if ':' in host else host}"
