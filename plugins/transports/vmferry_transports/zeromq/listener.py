"""Accepting connections."""

from __future__ import annotations

import asyncio
import logging

import msgspec
import zmq

from vmferry.api.transport import Address, Connection, Limits, Listener
from vmferry.errors import ConnectionLost
from vmferry_transports.zeromq.connection import ZeromqConnection
from vmferry_transports.zeromq.hub import Hub
from vmferry_transports.zeromq.options import ZeromqOptions
from vmferry_transports.zeromq.port import Station

__all__ = ["ZeromqListener"]

_log = logging.getLogger("vmferry_transports.zeromq")

_READY = 64
"""Most connections that wait for ``accept``; further ones are aborted."""


class ZeromqListener(Listener):
    """Gives the connections that its hub has put together."""

    def __init__(
        self,
        station: Station,
        sock: zmq.Socket[bytes],
        address: Address,
        limits: Limits,
        options: ZeromqOptions,
    ) -> None:
        self._address = address
        self._ready: asyncio.Queue[ZeromqConnection | None] = asyncio.Queue()
        self._closed = False
        self._hub = Hub(station, sock, limits, options, self._offer)

    def bound(self, port: int) -> None:
        """Take note of the port that was taken."""
        self._address = msgspec.structs.replace(self._address, port=port)

    @property
    def address(self) -> Address:
        """Where it listens, with the port that was taken."""
        return self._address

    def _offer(self, connection: ZeromqConnection) -> bool:
        if self._closed or self._ready.qsize() >= _READY:
            return False
        self._ready.put_nowait(connection)
        return True

    async def accept(self) -> Connection:
        """Return the next connection whose lanes are all there."""
        connection = None if self._closed else await self._ready.get()
        if connection is None:
            self._ready.put_nowait(None)  # for whoever else waits
            raise ConnectionLost(f"the listener {self._address} is closed")
        return connection

    async def close(self) -> None:
        """Greet nobody any more; the port is free when the last connection has ended.

        ZeroMQ ends the streams of a socket that is unbound, so it cannot be before.
        """
        if not self._closed:
            self._closed = True
            while not self._ready.empty():
                if (connection := self._ready.get_nowait()) is not None:
                    _log.warning("%s: a connection nobody accepted is aborted", self._address)
                    connection.abort()
            self._ready.put_nowait(None)
            self._hub.close()
        await self._hub.ended()
