"""Checks of a transport whose bytes are cut short or damaged on the way, and of strangers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from vmferry.api.transport import Address, Connection, Lane, Limits, Listener, Transport
from vmferry.errors import ConnectionLost, InputError, LinkError, ProtocolError, VmferryError
from vmferry.testing.checks import check, pattern, quote, refuses
from vmferry.testing.relay import Relay
from vmferry.testing.transport_pair import (
    LANES,
    LIMITS,
    LOSES_NOTHING,
    Pair,
    bulk,
    start,
)

__all__ = ["FaultChecks"]

_ENDS = "ConnectionLost: the connection ended without being closed in good order."
_NO_FRAME = "ProtocolError: what arrived is no frame, or exceeds the limits."
_FIRST = "What a peer may send; checked before memory is allocated."
_SECRET = "encrypted: others on the network cannot read what is sent."  # noqa: S105
_STRANGERS = "is dropped and logged, and holds up nobody else."
_TAKEN = "InputError: the address cannot be listened on, or would be unsafe"
_CANCEL = "Cancellation may hit every ``await``. It never leaves a half-made resource behind"
_SIZE = 100_000


class FaultChecks:
    """Checks that get between the ends."""

    patience: float
    pause: float

    def relayed(self, address: Address, port: int) -> Address | None:
        """Where to connect to so as to reach ``address`` through a relay on 127.0.0.1 at ``port``.

        ``None`` where nothing can get between: the checks that damage what is sent are skipped.
        Override it where an address has its port in another place.
        """
        if not address.port:
            return None
        return msgspec.structs.replace(address, host="127.0.0.1", port=port)

    async def _needs_port(self, listener: Listener) -> None:
        if self.relayed(listener.address, 1) is None:
            pytest.skip(f"{type(self).__name__}.relayed gives None: nothing can get between")
        try:
            _stranger(listener.address).close()
        except OSError:
            pytest.skip(f"{listener.address} is no TCP port: nothing can get between")

    @contextlib.asynccontextmanager
    async def _relayed_pair(
        self, transport: Transport[Any], address: Address, limits: Limits
    ) -> AsyncIterator[tuple[Pair, Relay]]:
        """As ``open_pair``, with a relay between."""
        listener = await transport.listen(address, limits=limits)
        ends: list[Connection] = []
        try:
            await self._needs_port(listener)
            async with Relay(listener.address.host, listener.address.port) as relay:
                through = self.relayed(listener.address, relay.port)
                assert through is not None
                accepting = start(listener.accept())
                ends.append(await transport.connect(through, lanes=LANES, limits=limits))
                async with asyncio.timeout(self.patience):
                    ends.append(await accepting)
                yield Pair(ends[0], ends[1], listener, self.patience), relay
        finally:
            await _end(ends, listener, self.patience)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.5])
    async def test_a_stream_cut_short_is_a_loss(
        self, transport: Transport[Any], listen_address: Address, share: float
    ) -> None:
        """What is under way ends within a frame or between two; that is no close in good order."""
        async with self._relayed_pair(transport, listen_address, LIMITS) as (pair, relay):
            await pair.send(pair.near.lanes[1], b"whole", bulk(0, _SIZE))
            await pair.expect(pair.far.lanes[1], b"whole", bulk(0, _SIZE))
            relay.arm(cut=int(_SIZE * share))
            sending = start(self._send_on(pair.near.lanes[1]))
            got = await self._until_loss(pair, pair.far.lanes[1])
            most = int(share) + 1
            check(len(got) <= most, LOSES_NOTHING, f"{len(got)} frames came, {most} were sent")
            for lane in (pair.far.lanes[0], pair.far.lanes[2]):
                check(not await self._until_loss(pair, lane), _ENDS, "a frame that nobody sent")
            await pair.expect_lost(sending, LOSES_NOTHING, "send() on a lost connection")

    async def _send_on(self, lane: Lane) -> None:
        number = 0
        while True:
            await lane.send(b"%d" % number, bulk(number, _SIZE))
            number += 1
            await asyncio.sleep(self.pause / 100)

    async def _until_loss(self, pair: Pair, lane: Lane) -> list[bytes]:
        """The frames that come, each right, up to the loss of the lane."""
        heads: list[bytes] = []
        while True:
            try:
                frame = await pair.soon(lane.receive(), _ENDS, "receive() of a stream cut short")
            except (ConnectionLost, ProtocolError):
                return heads
            if frame is None:
                pytest.fail(f"the lane ended in good order\n{quote(_ENDS)}")
            pair.compare(frame, b"%d" % len(heads), bulk(len(heads), _SIZE), LOSES_NOTHING)
            heads.append(bytes(frame.head))

    @pytest.mark.parametrize("place", [0, 1, 4, 7, 30, 5000, 150_000])
    async def test_damaged_bytes_do_no_harm(
        self, transport: Transport[Any], listen_address: Address, place: int
    ) -> None:
        """Four bytes are changed: an error of the right kind, and nothing beyond the limits."""
        asked: list[int] = []

        def allocate(size: int) -> memoryview:
            asked.append(size)
            check(size <= LIMITS.payload, _FIRST, f"{size} bytes were allocated")
            return memoryview(bytearray(size))

        limits = msgspec.structs.replace(LIMITS, allocate=allocate)
        async with self._relayed_pair(transport, listen_address, limits) as (pair, relay):
            relay.arm(damage=place)
            sending = start(self._send_some(pair.near.lanes[1]))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.pause * 2):
                    await asyncio.shield(sending)
            receiving = start(self._receive_all(pair, pair.far.lanes[1]))
            await asyncio.wait([receiving], timeout=self.pause)
            pair.near.abort()
            frames = await pair.soon(receiving, _NO_FRAME, "receive() of damaged bytes")
            sending.cancel()
            await asyncio.wait([sending])
            self._inspect(pair, frames)

    async def _send_some(self, lane: Lane) -> None:
        with contextlib.suppress(LinkError, ProtocolError):
            for number in range(3):
                await lane.send(b"%d" % number, bulk(number, _SIZE))

    async def _receive_all(self, pair: Pair, lane: Lane) -> list[tuple[bytes, bytes]]:
        """Frames up to an end of whatever kind; any other error is the transport's."""
        frames: list[tuple[bytes, bytes]] = []
        try:
            while (frame := await lane.receive()) is not None:
                frames.append((bytes(frame.head), bytes(frame.payload)))
        except (LinkError, ProtocolError):
            return frames
        except Exception as error:
            pytest.fail(f"receive() of damaged bytes raised {error!r}\n{quote(_NO_FRAME)}")
        return frames

    def _inspect(self, pair: Pair, frames: list[tuple[bytes, bytes]]) -> None:
        for head, payload in frames:
            fits = len(head) <= LIMITS.head and len(payload) <= LIMITS.payload
            check(fits, _NO_FRAME, f"a frame of {len(head)} and {len(payload)} bytes came")
        if pair.far.peer.encrypted:
            sent = [(b"%d" % number, bulk(number, _SIZE)) for number in range(3)]
            check(frames == sent[: len(frames)], _SECRET, "a frame that was changed was delivered")

    @pytest.mark.parametrize(
        "words", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(999)]
    )
    async def test_strangers_hold_up_nobody(
        self, transport: Transport[Any], listen_address: Address, words: bytes
    ) -> None:
        """Some who say nothing, or something else, and stay; then a peer comes."""
        listener = await transport.listen(listen_address, limits=LIMITS)
        strangers, ends = [], list[Connection]()
        try:
            await self._needs_port(listener)
            for _ in range(3):
                strangers.append(_stranger(listener.address))
                strangers[-1].sendall(words)
            async with asyncio.timeout(self.patience):
                accepting = start(listener.accept())
                near = await transport.connect(listener.address, lanes=LANES, limits=LIMITS)
                ends.append(near)
                ends.append(await accepting)
            pair = Pair(ends[0], ends[1], listener, self.patience)
            await pair.send(pair.near.lanes[1], b"hello", b"there", _STRANGERS)
            await pair.expect(pair.far.lanes[1], b"hello", b"there", _STRANGERS)
        except (TimeoutError, VmferryError) as error:
            pytest.fail(f"a peer came, and was not accepted: {error!r}\n{quote(_STRANGERS)}")
        finally:
            for each in strangers:
                each.close()
            await _end(ends, listener, self.patience)

    async def test_a_taken_address_is_refused(self, pair: Pair, transport: Transport[Any]) -> None:
        """Whoever listens already goes on."""
        with refuses(InputError, _TAKEN):
            await (await transport.listen(pair.listener.address, limits=LIMITS)).close()
        near = await transport.connect(pair.listener.address, lanes=2, limits=LIMITS)
        far = await pair.works(pair.listener.accept(), _TAKEN, "accept()")
        await pair.send(near.lanes[1], b"hello", sentence=_TAKEN)
        await pair.expect(far.lanes[1], b"hello", b"", _TAKEN)
        for end in (near, far):
            end.abort()
            await end.close()

    @pytest.mark.parametrize("turns", [0, 1, 2, 4, 8])
    async def test_a_cancelled_connect_does_no_harm(
        self, pair: Pair, transport: Transport[Any], turns: int
    ) -> None:
        """The next one is accepted, be it after one that nobody is at the other end of."""
        address, made = pair.listener.address, []
        connecting = start(transport.connect(address, lanes=2, limits=LIMITS))
        for _ in range(turns):
            await asyncio.sleep(0)
        connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            made.append(connecting.result())
        near = await transport.connect(address, lanes=2, limits=LIMITS)
        made.append(near)
        word = pattern(20, turns)
        await pair.send(near.lanes[1], word, sentence=_CANCEL)
        found = False
        while not found:
            far = await pair.works(pair.listener.accept(), _CANCEL, "accept()")
            made.append(far)
            if far.peer and (frame := await self._first(pair, far, len(made))) is not None:
                found = bytes(frame) == word
        for end in made:
            end.abort()
            await end.close()

    async def _first(self, pair: Pair, far: Connection, _: int) -> bytes | None:
        """The first head that comes, ``None`` from a connection that was cut or is silent."""
        with contextlib.suppress(LinkError, TimeoutError):
            async with asyncio.timeout(self.pause * 12):
                frame = await far.lanes[1].receive()
                return None if frame is None else bytes(frame.head)
        return None


def _stranger(address: Address) -> socket.socket:
    """A socket connected to a listener of this machine: the kernel accepts at once."""
    return socket.create_connection((address.host, address.port), timeout=5)


async def _end(ends: list[Connection], listener: Listener, patience: float) -> None:
    for end in ends:
        end.abort()
    for close in (*(end.close for end in ends), listener.close):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await close()
