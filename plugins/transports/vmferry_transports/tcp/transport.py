"""Connecting and listening over TCP."""

from __future__ import annotations

import asyncio
import os
import ssl
from typing import ClassVar

import msgspec

from vmferry.api.plugin import Grade
from vmferry.api.transport import (
    Address,
    Connection,
    Limits,
    Listener,
    PeerInfo,
    Transport,
    TransportCapabilities,
)
from vmferry.errors import InputError, LinkError, LinkTimeout
from vmferry_transports.tcp import sockets, tls
from vmferry_transports.tcp.connection import TcpConnection
from vmferry_transports.tcp.greeting import Greeting
from vmferry_transports.tcp.listener import TcpListener
from vmferry_transports.tcp.opening import Opening, TlsOpening
from vmferry_transports.tcp.options import TcpOptions

__all__ = ["TcpTransport"]

_LANES = 0xFFFF


class TcpTransport(Transport[TcpOptions]):
    """One TCP socket per lane: ``tcp://host:port``.

    Payloads of 64 KiB and more go straight between the caller's and the receiver's buffers and
    the kernel; smaller ones are copied once when sent. At most 64 frames or 4 MiB wait in a lane
    on top of the socket's own buffers. ``limits.allocate`` is called in a thread of the lane.

    Threads that block in the kernel carry bulk data, instead of the event loop, so that a request
    on the control lane need not wait until the loop has copied a megabyte for every other lane.
    Between two processes on a busy machine of two cores, with two lanes of 1 MiB payloads
    (``benchmarks/transports.py``, three runs): 1.3 to 2.1 GB/s, and a median round trip on the
    control lane of 0.08 to 0.09 ms when idle and 0.4 to 1.0 ms when both bulk lanes are full. A
    trial with ``loop.sock_sendall`` and ``sock_recv_into`` moved about as much, with round trips
    of 6 to 8 ms when full. TLS moves 0.3 to 0.4 GB/s there.
    """

    api_version = 1
    name = "tcp"
    summary = "one TCP connection per lane, with mutual TLS 1.3 if certificates are given"
    options_type = TcpOptions
    capabilities: ClassVar[TransportCapabilities] = TransportCapabilities(
        encryption=Grade.NATIVE,
        authentication=Grade.NATIVE,
        lanes=Grade.NATIVE,
        zero_copy=Grade.NATIVE,
    )

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Open all sockets; the listener has grouped them when this returns."""
        _check(address)
        if not address.host or not address.port:
            raise InputError(f"{address} needs a host and a port; write e.g. tcp://host:7420")
        if not 2 <= lanes <= min(limits.lanes, _LANES):
            raise InputError(f"{lanes} lanes; a connection has 2 to {limits.lanes}")
        context = tls.context(self.options, server=False) if tls.wanted(self.options) else None
        openings = await self._open_all(address, lanes, context)
        peer = PeerInfo(
            address=str(address),
            identity=openings[0].identity,
            encrypted=openings[0].encrypted,
        )
        links = [opening.link() for opening in openings]
        try:
            return TcpConnection(links, limits, peer, self.options.close_timeout)
        except RuntimeError as error:
            raise LinkError(f"{address}: {error}") from None

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen; an empty host means all addresses of this host."""
        _check(address)
        context = tls.context(self.options, server=True) if tls.wanted(self.options) else None
        sock = await sockets.listen(address, self.options, secure=context is not None)
        taken = msgspec.structs.replace(address, port=sock.getsockname()[1])
        return TcpListener(sock, taken, limits, self.options, context)

    async def _open_all(
        self, address: Address, lanes: int, context: ssl.SSLContext | None
    ) -> list[Opening]:
        """Open one socket per lane, the first alone: its error then is the only one."""
        session = os.urandom(16)
        opened: dict[int, Opening] = {}

        async def add(lane: int) -> None:
            greeting = Greeting(session=session, lane=lane, lanes=lanes)
            opened[lane] = await self._open(address, greeting, context)

        try:
            await add(0)
            async with asyncio.TaskGroup() as group:
                for lane in range(1, lanes):
                    group.create_task(add(lane))
        except BaseException as error:
            for opening in opened.values():
                opening.close()
            if isinstance(error, ExceptionGroup):
                raise error.exceptions[0] from None
            raise
        return [opened[lane] for lane in range(lanes)]

    async def _open(
        self, address: Address, greeting: Greeting, context: ssl.SSLContext | None
    ) -> Opening:
        sock = await sockets.connect(address, self.options)
        try:
            opening = Opening(sock)
            if context is not None:
                opening = TlsOpening(sock, context, name=self._expected_name(address))
            await self._greet(opening, address, greeting)
        except BaseException:
            sock.close()
            raise
        return opening

    def _expected_name(self, address: Address) -> str:
        name = self.options.tls_name
        return address.host if name in ("", "*") else name

    async def _greet(self, opening: Opening, address: Address, greeting: Greeting) -> None:
        timeout = self.options.handshake_timeout
        try:
            async with asyncio.timeout(timeout):
                await opening.handshake()
                await opening.send_greeting(greeting)
                greeting.check_answer(await opening.receive_greeting())
        except TimeoutError:
            raise LinkTimeout(
                f"{address} took the connection but did not answer the greeting within"
                f" {timeout:g} s (handshake_timeout); does vmferry listen there?"
            ) from None
        except LinkError as error:
            raise LinkError(f"{address}: {error}") from None
        except OSError as error:
            raise LinkError(f"{address}: handshake failed: {error.strerror or error}") from None


def _check(address: Address) -> None:
    if address.scheme != "tcp" or address.path not in ("", "/") or address.query:
        raise InputError(f"{address} is no address of this transport; write tcp://host:7420")
