"""Checks of how connections and listeners begin and end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from vmferry.api.transport import Address, Connection, Transport
from vmferry.errors import ConnectionLost, LinkError
from vmferry.testing.checks import check, quote, refuses
from vmferry.testing.transport_pair import LIMITS, Pair, bulk, fill, start

__all__ = ["LifeChecks"]

_CLOSE = "The peer's ``receive`` gives the frames still on their way and then ``None``."
_ABORT = "End at once, without delivering; both ends get ``ConnectionLost``."
_TWICE = "May be called twice."
_LISTENER = "Stop listening. Accepted connections live on. May be called twice."
_ACCEPT = "ConnectionLost: the listener was closed."
_CANCEL = "Cancellation may hit every ``await``. It never leaves a half-made resource behind"


class LifeChecks:
    """Checks of closing, aborting, listening and connecting."""

    patience: float
    pause: float
    most_buffered: int

    async def test_close_delivers_all_and_then_none(self, pair: Pair) -> None:
        """Frames are on their way on every lane when the connection is closed."""
        for lane in pair.near.lanes:
            for number in range(5):
                await pair.send(lane, b"%d" % number, bulk(number, 100_000))
        closing = start(pair.near.close())
        await asyncio.sleep(self.pause)
        for lane in pair.far.lanes:
            for number in range(5):
                await pair.expect(lane, b"%d" % number, bulk(number, 100_000), _CLOSE)
            await pair.expect_end(lane, _CLOSE)
        await pair.works(closing, _CLOSE, "close()")

    async def test_close_is_seen_by_a_peer_that_waits(self, pair: Pair) -> None:
        """Of an idle connection; the peer has not closed its own end yet."""
        waiting = [start(lane.receive()) for lane in pair.far.lanes]
        await asyncio.sleep(0)
        closing = start(pair.near.close())
        for task in waiting:
            found = await pair.works(task, _CLOSE, "receive() of a closed lane")
            check(found is None, _CLOSE, f"{found!r} came instead of None")
        await pair.works(closing, _CLOSE, "close()")
        await pair.works(pair.far.close(), _CLOSE, "close() of the other end")

    async def test_close_from_both_ends_and_twice(self, pair: Pair) -> None:
        """At the same time, then once more; then nothing can be sent."""
        ends = (pair.near, pair.far)
        await pair.works(asyncio.gather(*(end.close() for end in ends)), _TWICE, "close()")
        for end in ends:
            await pair.works(end.close(), _TWICE, "the second close()")
            sentence = "ConnectionLost: the connection is gone"
            await pair.expect_lost(end.lanes[1].send(b"late"), sentence, "send() after close()")

    async def test_abort_reaches_calls_that_wait_at_both_ends(self, pair: Pair) -> None:
        """Receivers of all lanes, and a sender that is held back."""
        _, sending = await fill(pair.near.lanes[1], self.pause, self.most_buffered >> 20)
        waiting = [
            start(end.lanes[number].receive()) for end in (pair.near, pair.far) for number in (0, 2)
        ]
        await asyncio.sleep(0)
        held_back = sending is not None and not sending.done()
        pair.near.abort()
        pair.near.abort()
        for task in waiting:
            await pair.expect_lost(task, _ABORT, "receive() of an aborted connection")
        if held_back:
            await pair.expect_lost(sending, _ABORT, "send() on an aborted connection")

    async def test_abort_never_looks_like_a_close(self, pair: Pair) -> None:
        """Whatever still comes after an abort, it is not ``None``."""
        for number in range(3):
            await pair.send(pair.near.lanes[1], b"%d" % number, bulk(number, 10_000))
        pair.near.abort()
        for lane in (*pair.far.lanes, *pair.near.lanes):
            await self._drain_to_loss(pair, lane)

    async def _drain_to_loss(self, pair: Pair, lane: Any) -> None:
        try:
            while (await pair.soon(lane.receive(), _ABORT, "receive()")) is not None:
                pass
        except ConnectionLost:
            return
        pytest.fail(f"the lane ended in good order after an abort\n{quote(_ABORT)}")

    async def test_abort_is_learnt_by_a_sender(self, pair: Pair) -> None:
        """At the aborting end at once, at the other end as soon as it is known."""
        pair.near.abort()
        await pair.expect_lost(pair.near.lanes[1].send(b"late"), _ABORT, "send() after abort()")

        async def send_on() -> None:
            while True:
                await pair.far.lanes[1].send(b"late")
                await asyncio.sleep(self.pause / 100)

        await pair.expect_lost(send_on(), _ABORT, "send() to an aborted connection")
        await pair.works(pair.near.close(), _ABORT, "close() after abort()")

    async def test_a_closed_listener_leaves_connections_alone(self, pair: Pair) -> None:
        """And raises from ``accept``, waiting or called later."""
        waiting = start(pair.listener.accept())
        await asyncio.sleep(0)
        await pair.works(pair.listener.close(), _LISTENER, "close() of the listener")
        await pair.works(pair.listener.close(), _LISTENER, "the second close()")
        await pair.expect_lost(waiting, _ACCEPT, "accept() while the listener is closed")
        await pair.expect_lost(pair.listener.accept(), _ACCEPT, "accept() after close()")
        await pair.send(pair.near.lanes[0], b"still here")
        await pair.expect(pair.far.lanes[0], b"still here", b"", _LISTENER)

    async def test_the_address_has_the_port_that_was_taken(
        self, transport: Transport[Any], listen_address: Address
    ) -> None:
        """Two listeners on port 0 have different ports."""
        first = await transport.listen(listen_address, limits=LIMITS)
        try:
            if listen_address.port or not first.address.port:
                pytest.skip("the addresses have no port that could be chosen")
            second = await transport.listen(listen_address, limits=LIMITS)
            ports = (first.address.port, second.address.port)
            await second.close()
        finally:
            await first.close()
        sentence = "Where it listens, with the port that was really taken."
        check(0 not in ports and ports[0] != ports[1], sentence, f"ports {ports}")

    async def test_several_connections_at_once(self, pair: Pair, transport: Transport[Any]) -> None:
        """Each has its own frames, and ends alone."""
        sentence = "Several lanes to one peer."
        ends: list[tuple[Connection, Connection]] = [(pair.near, pair.far)]
        for lanes in (2, 4):
            accepting = start(pair.listener.accept())
            near = await transport.connect(pair.listener.address, lanes=lanes, limits=LIMITS)
            ends.append((near, await pair.works(accepting, sentence, "accept()")))
            check(len(ends[-1][1].lanes) == lanes, sentence, f"not {lanes} lanes")
        for number, (near, _) in enumerate(ends):
            await pair.send(near.lanes[1], b"connection %d" % number, bulk(number, 5000))
        for number, (_, far) in enumerate(ends):
            head = b"connection %d" % number
            await pair.expect(far.lanes[1], head, bulk(number, 5000), sentence)
        for near, far in ends[1:]:
            near.abort()
            far.abort()
            await asyncio.gather(near.close(), far.close())
        await pair.send(pair.near.lanes[0], b"still here")
        await pair.expect(pair.far.lanes[0], b"still here", b"", sentence)

    async def test_nobody_listens(self, transport: Transport[Any], listen_address: Address) -> None:
        """At an address whose listener was closed."""
        listener = await transport.listen(listen_address, limits=LIMITS)
        await listener.close()
        sentence = "LinkError: nobody answers there, or authentication failed; the message says"
        with refuses(LinkError, sentence):
            await transport.connect(listener.address, lanes=2, limits=LIMITS)

    async def test_a_cancelled_accept_loses_no_connection(
        self, pair: Pair, transport: Transport[Any]
    ) -> None:
        """The next call gives the connection that comes."""
        accepting = start(pair.listener.accept())
        await asyncio.sleep(0)
        accepting.cancel()
        await asyncio.wait([accepting])
        near = await transport.connect(pair.listener.address, lanes=2, limits=LIMITS)
        far = await pair.works(pair.listener.accept(), _CANCEL, "accept()")
        await pair.send(near.lanes[1], b"hello")
        await pair.expect(far.lanes[1], b"hello", b"", _CANCEL)
        for end in (near, far):
            end.abort()
            await end.close()

    async def test_the_peer_has_an_address(self, pair: Pair) -> None:
        """For people and logs, at both ends."""
        for end in (pair.near, pair.far):
            check(end.peer.address, "address: for people and logs.", f"{end.peer!r}")
