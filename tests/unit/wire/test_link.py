from __future__ import annotations

import asyncio

import pytest

from vmferry.api import Address, Connection
from vmferry.errors import ConnectionLost, DigestMismatch, LinkTimeout, PeerError, ProtocolError
from vmferry.simulation.loop import run
from vmferry.wire.codec import encode
from vmferry.wire.digests import digest_of
from vmferry.wire.handshake import answer, greet
from vmferry.wire.link import LIMITS, Link
from vmferry.wire.messages import (
    PROTOCOL_NEWEST,
    Barrier,
    Bye,
    Extent,
    Go,
    Heartbeat,
    Hello,
    Reached,
    Ready,
    Stream,
    Welcome,
)
from vmferry.wire.tasks import together, until
from vmferry_transports.memory import MemoryTransport

Pair = tuple[Connection, Connection]


async def test_a_dialogue(connections: Pair) -> None:
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        await source.send(Go(epoch=4))
        assert await destination.expect(Go) == Go(epoch=4)
        assert len(source.bulk_lanes) == 2


async def test_a_message_out_of_turn_is_named(connections: Pair) -> None:
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        await source.send(Bye())
        with pytest.raises(ProtocolError, match="Bye received where Go or Ready is due"):
            await destination.receive(Go, Ready)


async def test_a_handler_is_beside_the_dialogue(connections: Pair) -> None:
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        heard = []
        extent = Extent(disk=0, offset=0, length=512)
        destination.on(Extent, lambda message, payload: heard.append((message, bytes(payload))))
        await source.send(extent, b"xyz")
        await source.send(Go(epoch=1))
        await destination.expect(Go)
        assert heard == [(extent, b"xyz")]


async def test_a_payload_where_none_belongs_ends_the_link(connections: Pair) -> None:
    await connections[0].lanes[0].send(encode(Go(epoch=1)), b"x" * 100)
    with pytest.raises(ProtocolError, match="Go: 100 bytes of payload"):
        async with Link(connections[1]) as link:
            await link.guard(link.expect(Go))


async def test_a_handler_gets_what_came_before_it(connections: Pair) -> None:
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        for message in (Go(epoch=1), Reached(serial=1), Bye()):
            await source.send(message)
        await asyncio.sleep(0.01)
        heard = []
        destination.on(Reached, lambda message, payload: heard.append(message))
        assert heard == [Reached(serial=1)]
        assert await destination.expect(Go)
        assert await destination.expect(Bye)


async def test_guard_ends_the_work_when_the_peer_gives_up(connections: Pair) -> None:
    async with Link(connections[0]) as source:
        destination = Link(connections[1])
        with pytest.raises(PeerError, match=r"no space left \(VolumeError\)"):
            async with destination:
                await source.fail(type("VolumeError", (Exception,), {})("no space left"))
                await destination.guard(asyncio.Event().wait())


async def test_guard_ends_the_work_when_the_connection_is_lost(connections: Pair) -> None:
    link = Link(connections[1])
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            cleaned = True

    with pytest.raises(ConnectionLost):
        async with link:
            asyncio.get_running_loop().call_later(0.01, connections[0].abort)
            await link.guard(work())
    assert cleaned


async def test_silence_is_noticed(connections: Pair) -> None:
    link = Link(connections[1], patience=0.1)
    with pytest.raises(LinkTimeout, match=r"nothing was heard .* for 0\.1 seconds"):
        async with link:
            await link.guard(asyncio.Event().wait())


async def test_heartbeats_keep_an_idle_link_alive(connections: Pair) -> None:
    async with Link(connections[0], patience=1), Link(connections[1], patience=1) as link:
        await link.guard(asyncio.sleep(1.5))


async def test_garbage_ends_the_link(connections: Pair) -> None:
    await connections[0].lanes[0].send(b"\xc1garbage")
    link = Link(connections[1])
    with pytest.raises(ProtocolError, match="does not match its checksum"):
        async with link:
            await link.guard(asyncio.Event().wait())


async def test_an_inbox_nobody_reads_is_bounded(connections: Pair) -> None:
    async with Link(connections[1]) as link:
        head = encode(Go(epoch=1))
        sent = 0
        try:
            async with asyncio.timeout(0.2):
                while sent < 100_000:
                    await connections[0].lanes[0].send(head)
                    sent += 1
        except TimeoutError:
            pass
        assert link._inbox.qsize() <= 64
        assert sent < 1000


async def test_versions_and_codecs_are_agreed(connections: Pair) -> None:
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        welcome, (hello, _) = await asyncio.gather(
            greet(source, "a1b2c3d4", codecs=("zstd", "middle-out", "lz4")), answer(destination)
        )
        assert welcome.version == PROTOCOL_NEWEST
        assert welcome.codecs == ("zstd", "lz4")
        assert hello.job == "a1b2c3d4"


@pytest.mark.parametrize("connections", [5], indirect=True)
async def test_channels_are_agreed(connections: Pair) -> None:
    async with Link(connections[0], channels=2) as source, Link(connections[1]) as destination:
        await asyncio.gather(greet(source, "a1b2c3d4"), answer(destination))
        assert destination.channels == 2
        assert len(destination.stream_lanes) == 3
        assert len(destination.bulk_lanes) == 1


async def test_more_channels_than_lanes_are_refused(connections: Pair) -> None:
    with pytest.raises(ProtocolError, match="5 lanes, the peer opened 4"):
        Link(connections[0], channels=2)
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        hello = Hello(oldest=1, newest=1, agent="x", job="a1b2c3d4", channels=2)
        await source.send(hello)
        with pytest.raises(ProtocolError, match="5 lanes, the peer opened 4"):
            await answer(destination)


async def test_an_agent_that_knows_no_channels_is_told_apart(connections: Pair) -> None:
    async with Link(connections[0], channels=1) as source, Link(connections[1]) as destination:
        greeting = asyncio.ensure_future(greet(source, "a1b2c3d4"))
        await destination.expect(Hello)
        await destination.send(Welcome(version=1, agent="vmferry 0.0"))
        with pytest.raises(ProtocolError, match=r"vmferry 0.0 .* leave --memory-channels out"):
            await greeting


async def test_no_common_version_is_said_to_both(connections: Pair) -> None:
    source = Link(connections[0])
    with pytest.raises(PeerError, match="no common protocol version: future speaks 8 to 9"):
        async with source, Link(connections[1]) as destination:
            await source.send(Hello(oldest=8, newest=9, agent="future", job="a1b2c3d4"))
            with pytest.raises(ProtocolError, match="update the older"):
                await destination.guard(answer(destination))
            await source.guard(source.expect(Welcome))


async def test_together_raises_the_first_failure_plainly() -> None:
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def fail() -> None:
        raise ProtocolError("no")

    with pytest.raises(ProtocolError, match="no"):
        await together(wait(), fail())
    assert ended == [True]


async def test_until_ends_the_others() -> None:
    assert await until(asyncio.sleep(0.01, "done"), asyncio.Event().wait()) == "done"
    with pytest.raises(ZeroDivisionError):
        await until(asyncio.Event().wait(), _divide())


async def _divide() -> None:
    raise ZeroDivisionError


async def test_heartbeat_is_no_part_of_the_dialogue(connections: Pair) -> None:
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        await source.send(Heartbeat())
        await source.send(Go(epoch=1))
        assert await destination.expect(Go)


def test_a_patient_peer_is_heard_by_an_impatient_one() -> None:
    async def main() -> None:
        transport, address = MemoryTransport(), Address.parse("memory://patience")
        listener = await transport.listen(address, limits=LIMITS)
        ends = await asyncio.gather(
            transport.connect(address, lanes=3, limits=LIMITS), listener.accept()
        )
        async with Link(ends[0], patience=2) as here, Link(ends[1], patience=300):
            await here.guard(asyncio.sleep(600))
            assert here.moved == 0  # heartbeats are no movement
        await listener.close()

    run(main())


async def test_a_frame_of_an_earlier_connection_is_refused_on_every_lane_but_control(
    connections: Pair,
) -> None:
    """One that comes late would put old data over new data, or answer for what is on its way."""
    async with Link(connections[0]) as source, Link(connections[1]) as destination:
        await asyncio.gather(greet(source, "a1b2c3d4"), answer(destination, 0xFFFF_FFFF))
        for mine, theirs in zip(source.bulk_lanes, destination.bulk_lanes, strict=True):
            await mine.send(encode(Barrier(serial=1)))
            assert await destination.receive_on(theirs) == (Barrier(serial=1), b"")
        source.bind(0x1234_5678)
        await source.bulk_lanes[0].send(encode(Barrier(serial=2)))
        await source.stream_lanes[0].send(encode(Stream(length=0, digest=digest_of(b""))))
        for lane in (destination.bulk_lanes[0], destination.stream_lanes[0]):
            with pytest.raises(DigestMismatch, match="does not match its checksum"):
                await destination.receive_on(lane)
        await source.send(Go(epoch=4))
        assert await destination.expect(Go) == Go(epoch=4)
