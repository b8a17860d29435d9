from __future__ import annotations

import asyncio
import random
import time

import msgspec
import pytest

from vmferry.api import Address, Connection
from vmferry.errors import ConnectionLost, DigestMismatch, ProtocolError
from vmferry.simulation.loop import run
from vmferry.units import MIB
from vmferry.wire.codec import encode
from vmferry.wire.compress import Codec, compress
from vmferry.wire.digests import digest_of
from vmferry.wire.link import LIMITS, Link
from vmferry.wire.messages import Barrier, Stream, Taken
from vmferry.wire.sampling import StreamSampler
from vmferry.wire.stream import PIECE, LinkStream
from vmferry.wire.tasks import together
from vmferry.wire.window import LEAST
from vmferry_transports.memory import MemoryTransport

Pair = tuple[Connection, Connection]
TEXT = b"all work and no play " * 100_000
NOISE = random.Random(1).randbytes(2 * PIECE)


async def at_once(_: int) -> None:
    """No limit."""


async def test_the_stream_carries_bytes_both_ways(connections: Pair) -> None:
    allowed = 0

    async def allow(size: int) -> None:
        nonlocal allowed
        allowed += size

    async with Link(connections[0]) as one, Link(connections[1]) as other:
        left, right = LinkStream(one, allow), LinkStream(other, allow)
        data = bytes(range(256)) * 10_000

        async def send() -> None:
            await left.write(data)
            await left.write_eof()
            await left.write_eof()
            assert bytes(await left.read()) == b"thanks"

        async def receive() -> bytes:
            parts = bytearray()
            while piece := await right.read(100_000):
                assert len(piece) <= 100_000
                parts += piece
            await right.write(b"thanks")
            return bytes(parts)

        _, got = await together(send(), receive())
        assert got == data
        assert allowed == len(data) + 6
        assert await right.read() == b""


async def test_a_stream_nobody_takes_is_held_back_and_goes_on(connections: Pair) -> None:
    async with Link(connections[0]) as one, Link(connections[1]) as other:
        left, right = LinkStream(one, at_once), LinkStream(other, at_once)
        sending = asyncio.ensure_future(left.write(bytes(64 * LEAST)))
        await asyncio.sleep(0.1)
        assert left.sent <= LEAST
        taken = 0
        while taken < 64 * LEAST:
            taken += len(await right.read())
        await asyncio.wait_for(sending, 10)


async def test_a_stream_that_is_held_back_ends_with_the_link(connections: Pair) -> None:
    with pytest.raises(ConnectionLost):
        async with Link(connections[0]) as link:
            sending = asyncio.ensure_future(LinkStream(link, at_once).write(bytes(2 * LEAST)))
            await asyncio.sleep(0.1)
            assert not sending.done()
            connections[1].abort()
            await sending


async def test_a_foreign_message_on_the_stream_lane_is_refused(connections: Pair) -> None:
    async with Link(connections[1]) as link:
        await connections[0].lanes[1].send(encode(Barrier(serial=1)))
        with pytest.raises(ProtocolError, match="Barrier received on the stream lane"):
            await LinkStream(link, asyncio.sleep).read()


async def test_a_flipped_bit_in_the_stream_is_found(connections: Pair) -> None:
    async with Link(connections[1]) as link:
        head = encode(Stream(length=6, digest=digest_of(b"memory")))
        await connections[0].lanes[1].send(head, b"nenory")
        with pytest.raises(DigestMismatch, match="Stream"):
            await LinkStream(link, asyncio.sleep).read()


async def carried(pair: Pair, data: bytes, codec: Codec) -> tuple[bytes, int]:
    """What arrives, and the bytes that went for it."""
    went = 0

    async def allow(size: int) -> None:
        nonlocal went
        went += size

    async with Link(pair[0]) as one, Link(pair[1]) as other:
        left, right = LinkStream(one, allow, lambda *_: codec), LinkStream(other, at_once)

        async def send() -> None:
            await left.write(data)
            await left.write_eof()

        async def receive() -> bytes:
            parts = bytearray()
            while piece := await right.read():
                parts += piece
            return bytes(parts)

        _, got = await one.guard(together(send(), receive()))
        assert left.sent == len(data)
        assert not one.lost
    assert isinstance(got, bytes)
    return got, went


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
async def test_memory_that_shrinks_goes_compressed(connections: Pair, codec: Codec) -> None:
    got, went = await carried(connections, TEXT, codec)
    assert got == TEXT
    assert went < len(TEXT) / 50


async def test_memory_that_does_not_shrink_goes_as_it_is(connections: Pair) -> None:
    got, went = await carried(connections, NOISE, Codec.ZSTD)
    assert got == NOISE
    assert went == len(NOISE)


async def carried_slowly(rate: float) -> float:
    """The share of what was written that went, over a link that takes so many bytes a second."""
    transport, address = MemoryTransport(), Address.parse("memory://slowly")
    listener = await transport.listen(address, limits=LIMITS)
    ends = await asyncio.gather(
        transport.connect(address, lanes=3, limits=LIMITS), listener.accept()
    )
    went = 0

    async def allow(size: int) -> None:
        nonlocal went
        went += size
        await asyncio.sleep(size / rate)

    async with Link(ends[0]) as one, Link(ends[1]) as other:
        left = LinkStream(one, allow, StreamSampler(clock=time.perf_counter).choose)
        right = LinkStream(other, at_once)

        async def receive() -> None:
            while await right.read():
                pass

        async def send() -> None:
            await left.write(TEXT * 20)
            await left.write_eof()

        await one.guard(together(send(), receive()))
    return went / (20 * len(TEXT))


def test_memory_is_compressed_once_a_link_turns_out_to_be_slow() -> None:
    assert run(carried_slowly(MIB)) < 0.2
    assert run(carried_slowly(1e6 * MIB)) == 1


PACKED = compress(Codec.ZSTD, TEXT[:4096])
GOOD = Stream(length=4096, digest=digest_of(TEXT[:4096]), codec=Codec.ZSTD.value)


@pytest.mark.parametrize(
    ("changes", "payload", "says"),
    [
        ({}, PACKED[:-1], "damaged"),
        ({"length": 4095}, PACKED, "announces 4096 bytes where 4095 are due"),
        ({"codec": 9}, PACKED, "codec 9 is not known"),
        ({"codec": 0}, PACKED, "where length says 4096"),
        ({"codec": 0, "length": 0}, PACKED, "where length says 0"),
        ({"length": PIECE}, compress(Codec.ZSTD, bytes(2 * PIECE)), "where 524288 are due"),
        ({}, compress(Codec.ZSTD, b"\0" * 4096), "digest"),
        ({"length": 0}, b"", "digest"),
    ],
)
async def test_a_piece_that_is_not_what_it_says_is_refused(
    connections: Pair, changes: dict[str, int], payload: bytes, says: str
) -> None:
    async with Link(connections[1]) as link:
        head = encode(msgspec.structs.replace(GOOD, **changes))
        await connections[0].lanes[1].send(head, payload)
        with pytest.raises((ProtocolError, DigestMismatch), match=says):
            await LinkStream(link, asyncio.sleep).read()


async def test_a_piece_that_is_too_long_is_refused_unpacked(connections: Pair) -> None:
    async with Link(connections[1]) as link:
        head = encode(msgspec.structs.replace(GOOD, length=PIECE + 1))
        await connections[0].lanes[1].send(head, PACKED)
        with pytest.raises(ProtocolError, match="length"):
            await LinkStream(link, asyncio.sleep).read()


@pytest.mark.parametrize("connections", [6], indirect=True)
async def test_channels_carry_what_is_theirs(connections: Pair) -> None:
    async with Link(connections[0], channels=3) as one, Link(connections[1]) as other:
        other.spread(3)
        left, right = LinkStream(one, at_once), LinkStream(other, at_once)
        assert len(one.bulk_lanes) == len(other.bulk_lanes) == 1
        for number, each in enumerate((left, *left.channels)):
            await each.write(bytes([number]) * 100)
            await each.write_eof()
        for number, each in enumerate((right, *right.channels)):
            assert bytes(await each.read()) == bytes([number]) * 100
            assert not await each.read()


@pytest.mark.parametrize("connections", [6], indirect=True)
async def test_a_channel_that_nobody_reads_holds_up_no_other(connections: Pair) -> None:
    async with Link(connections[0], channels=2) as one, Link(connections[1]) as other:
        other.spread(2)
        left, right = LinkStream(one, at_once), LinkStream(other, at_once)
        waiting = asyncio.ensure_future(left.channels[0].write(bytes(8 * LEAST)))
        data = NOISE * 16

        async def receive() -> bytes:
            parts = bytearray()
            while piece := await right.channels[1].read():
                parts += piece
            return bytes(parts)

        async def send() -> None:
            await left.channels[1].write(data)
            await left.channels[1].write_eof()

        _, got = await asyncio.wait_for(together(send(), receive()), 20)
        assert got == data
        assert not waiting.done()
        assert left.channels[0].sent <= LEAST
        waiting.cancel()


async def test_what_is_said_of_a_channel_that_is_not_there_ends_the_link(
    connections: Pair,
) -> None:
    with pytest.raises(ProtocolError, match="channel 1 of 0"):
        async with Link(connections[0]) as one, Link(connections[1]) as other:
            LinkStream(one, at_once)
            await other.send(Taken(total=1, channel=1))
            await one.guard(asyncio.sleep(5))
