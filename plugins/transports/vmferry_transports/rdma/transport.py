"""Connecting and listening."""

from __future__ import annotations

import asyncio
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
from vmferry_transports.rdma.connection import RdmaConnection
from vmferry_transports.rdma.ends import Ends
from vmferry_transports.rdma.greeting import Greeting
from vmferry_transports.rdma.listener import RdmaListener
from vmferry_transports.rdma.meeting import Stream
from vmferry_transports.rdma.options import RdmaOptions
from vmferry_transports.rdma.providers import choose
from vmferry_transports.rdma.providers.base import Provider

__all__ = ["RdmaTransport"]

_LANES = 64


class RdmaTransport(Transport[RdmaOptions]):
    """RDMA verbs, or a stub of them: ``rdma://host:port``.

    What waits at a receiver is at most the landing zone of a lane (``slots`` times ``slot``),
    64 small frames of 4 KiB, and the frame that is being received.
    """

    api_version = 1
    name = "rdma"
    summary = "a stub of RDMA: shared memory on one host; a device through pyverbs, if there is one"
    options_type = RdmaOptions
    capabilities: ClassVar[TransportCapabilities] = TransportCapabilities(
        authentication=Grade.EMULATED, lanes=Grade.NATIVE, zero_copy=Grade.EMULATED
    )

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Connect all lanes at once."""
        _check(address, self.options)
        if not address.port:
            raise InputError(f"{address} needs a port; write e.g. rdma://127.0.0.1:7420")
        if not 2 <= lanes <= min(limits.lanes, _LANES):
            raise InputError(f"{lanes} lanes; a connection has 2 to {min(limits.lanes, _LANES)}")
        provider = choose(self.options, address)
        try:
            async with asyncio.timeout(self.options.connect_timeout):
                return await self._connect(provider, address, lanes, limits)
        except TimeoutError:
            raise LinkTimeout(
                f"{address} did not answer within {self.options.connect_timeout:g} s"
                " (connect_timeout); is the host up, and does vmferry listen there?"
            ) from None

    async def _connect(
        self, provider: Provider, address: Address, lanes: int, limits: Limits
    ) -> Connection:
        sock = await provider.connect(address)
        try:
            identity = provider.identity(sock)
            ends = await self._meet(provider, Stream(sock), lanes, limits)
        except BaseException as error:
            sock.close()
            if isinstance(error, LinkError):
                raise LinkError(f"{address}: {error}") from None
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise LinkError(f"{address}: {error.strerror or error}") from None
            raise
        peer = PeerInfo(address=str(address), identity=identity)
        return RdmaConnection(sock, ends, limits, peer, self.options.close_timeout)

    async def _meet(self, provider: Provider, stream: Stream, lanes: int, limits: Limits) -> Ends:
        ends = Ends(provider, lanes, limits, self.options, 1024)
        try:
            greeting = Greeting(
                provider=provider.name,
                slot=self.options.slot,
                slots=self.options.slots,
                lanes=lanes,
                endpoints=ends.endpoints(),
            )
            await stream.greet(greeting, ends.descriptors())
            ends.told()
            met = await stream.greeted()
            try:
                greeting.check_answer(met.greeting)
                ends.connect(met.greeting, met.take())
            finally:
                met.close()
            await stream.ready()
        except BaseException:
            ends.close()
            raise
        return ends

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen; port 0 takes a free one."""
        _check(address, self.options)
        provider = choose(self.options, address)
        sock, port = await provider.listen(address)
        taken = msgspec.structs.replace(address, port=port)
        return RdmaListener(sock, taken, limits, self.options, provider)


def _check(address: Address, options: RdmaOptions) -> None:
    if address.scheme != "rdma" or address.path not in ("", "/") or address.query:
        raise InputError(f"{address} is no address of this transport; write rdma://host:7420")
    if options.slot * options.slots > 256 << 20:
        raise InputError("slot times slots is more than 256 MiB; make one of them smaller")
