"""Connecting and listening over ZeroMQ."""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

import zmq

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
from vmferry_transports.zeromq import addresses, keys
from vmferry_transports.zeromq.connection import ZeromqConnection
from vmferry_transports.zeromq.dealer import Dealer
from vmferry_transports.zeromq.lane import ZeromqLane
from vmferry_transports.zeromq.listener import ZeromqListener
from vmferry_transports.zeromq.messages import Greeting, largest_part
from vmferry_transports.zeromq.options import ZeromqOptions
from vmferry_transports.zeromq.port import Station, secure_client, secure_listener
from vmferry_transports.zeromq.zap import DOMAIN, Doorkeeper

__all__ = ["ZeromqTransport"]

_LANES = 0xFFFF
_LINGER = 1.0


class ZeromqTransport(Transport[ZeromqOptions]):
    """ZeroMQ over TCP: ``zeromq://host:port``, with CURVE when keys are given.

    See the package for the choice of sockets. At most ``window`` bytes and one frame wait at the
    receiver of each direction of a lane. Payloads above 128 KiB are not copied when sent; all are
    copied once, into the receiver's ``limits.allocate``. There is no thread of Python's for data;
    libzmq's ``io_threads`` move it.
    """

    api_version = 1
    name = "zeromq"
    summary = "ZeroMQ, with CURVE if keys are given"
    options_type = ZeromqOptions
    capabilities: ClassVar[TransportCapabilities] = TransportCapabilities(
        encryption=Grade.NATIVE,
        authentication=Grade.NATIVE,
        lanes=Grade.NATIVE,
        zero_copy=Grade.EMULATED,
    )

    async def connect(self, address: Address, *, lanes: int, limits: Limits) -> Connection:
        """Open a socket for each lane; the listener has grouped them when this returns."""
        addresses.check(address)
        if not address.host or not address.port:
            raise InputError(f"{address} needs a host and a port; write e.g. zeromq://host:7420")
        if not 2 <= lanes <= min(limits.lanes, _LANES):
            raise InputError(f"{lanes} lanes; a connection has 2 to {limits.lanes}")
        pair = self._client_keys()
        endpoint = await addresses.endpoint(address, passive=False)
        station = Station(self.options)
        try:
            dealers = await self._open_all(station, address, endpoint, lanes, limits, pair)
        except BaseException:
            station.end(0)
            await asyncio.shield(station.ended())
            raise
        return self._assemble(station, dealers, address)

    def _client_keys(self) -> tuple[keys.KeyPair, bytes] | None:
        if not keys.wanted(self.options):
            return None
        if not self.options.curve_server_key:
            raise InputError("curve_server_key is missing: the listener's public key, to connect")
        return keys.secret(self.options.curve_key), keys.public(self.options.curve_server_key)

    async def _open_all(
        self,
        station: Station,
        address: Address,
        endpoint: str,
        lanes: int,
        limits: Limits,
        pair: tuple[keys.KeyPair, bytes] | None,
    ) -> list[Dealer]:
        """Open one socket per lane, the first alone: its error then is the only one."""
        session, dealers = os.urandom(16), []

        async def greet(lane: int) -> None:
            sock = station.socket(zmq.DEALER, largest_part(limits))
            if pair is not None:
                secure_client(sock, *pair)
            dealers.append(Dealer(station, sock, endpoint, str(address), limits))
            await dealers[lane].greet(
                Greeting(session=session, lane=lane, lanes=lanes, window=self.options.window)
            )

        try:
            async with asyncio.timeout(self.options.connect_timeout):
                await greet(0)
                async with asyncio.TaskGroup() as group:
                    for lane in range(1, lanes):
                        group.create_task(greet(lane))
        except* TimeoutError:
            raise LinkTimeout(
                f"{address} did not answer within {self.options.connect_timeout:g} s"
                " (connect_timeout); is the host up, does vmferry listen there with zeromq, and is"
                " CURVE on at both ends or at none?"
            ) from None
        except* LinkError as errors:
            raise LinkError(f"{address} {_first(errors)}") from None
        return dealers

    def _assemble(
        self, station: Station, dealers: list[Dealer], address: Address
    ) -> ZeromqConnection:
        lanes = [lane for dealer in dealers if isinstance(lane := dealer.lane, ZeromqLane)]
        encrypted = bool(self.options.curve_key)
        peer = PeerInfo(address=str(address), identity=self._identity(), encrypted=encrypted)

        def end(good: bool) -> None:
            station.end(_LINGER if good else 0)

        timeout = self.options.close_timeout
        connection = ZeromqConnection(lanes, peer, timeout, end, station.ended)
        for dealer in dealers:
            dealer.broken = connection.lose
            if dealer.error is not None:
                connection.lose(dealer.error)
        return connection

    def _identity(self) -> str:
        name = os.path.basename(self.options.curve_server_key)
        return name.removesuffix(".key")

    async def listen(self, address: Address, *, limits: Limits) -> Listener:
        """Listen; an empty host means all addresses of this host."""
        addresses.check(address)
        pair = keys.secret(self.options.curve_key) if keys.wanted(self.options) else None
        allowed = keys.AllowList(self.options.curve_allow) if pair is not None else None
        try:
            endpoint = await addresses.endpoint(address, passive=True)
        except LinkError as error:
            raise InputError(str(error)) from None
        if pair is None and not self.options.insecure and not addresses.is_loopback(endpoint):
            raise InputError(
                f"{address} can be reached by other hosts, and without CURVE anybody there could"
                " read and change the guest; set curve_key and curve_allow, or listen on 127.0.0.1"
                " behind a tunnel, or accept the risk with insecure=true"
            )
        station = Station(self.options)
        try:
            sock = station.socket(zmq.ROUTER, largest_part(limits))
            sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
            if pair is not None and allowed is not None:
                Doorkeeper(station, allowed)
                secure_listener(sock, pair, DOMAIN)
            listener = ZeromqListener(station, sock, address, limits, self.options)
            sock.bind(endpoint)
        except BaseException as error:
            station.end(0)
            if isinstance(error, zmq.ZMQError):
                raise InputError(f"cannot listen at {address}: {error.strerror}") from None
            raise
        taken = str(sock.get_string(zmq.LAST_ENDPOINT))
        listener.bound(int(taken.rstrip("\0").rpartition(":")[2]))
        return listener


def _first(errors: BaseExceptionGroup[LinkError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
