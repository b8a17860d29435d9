from __future__ import annotations

import asyncio
import random
import socket
import struct

import pytest

from vmferry.errors import ConnectionLost
from vmferry.export.nbd.stream import BufferPool, Incoming, Outbox


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    with ours, theirs:
        yield ours, theirs


async def receive(sock, length, chance):
    loop, found = asyncio.get_running_loop(), bytearray()
    while len(found) < length:
        found += await loop.sock_recv(sock, chance.randrange(1, 20_000))
    return bytes(found)


@pytest.mark.parametrize("seed", range(5))
async def test_the_outbox_sends_everything_whole_and_in_order(pair, seed):
    chance, sent, told = random.Random(seed), bytearray(), []
    outbox = Outbox(pair[0], broken=pytest.fail)
    assert outbox.is_empty
    for number in range(300):
        parts = [chance.randbytes(chance.choice((1, 16, 4096, 70_000))) for _ in range(2)]
        sent += b"".join(parts)
        outbox.send([parts[0], memoryview(parts[1])], lambda number=number: told.append(number))
    assert not outbox.is_empty
    assert await receive(pair[1], len(sent), chance) == bytes(sent)
    await outbox.drained()
    assert told == list(range(300))
    outbox.close()


async def test_what_cannot_be_sent_is_given_back(pair):
    told, broken = [], asyncio.Event()
    outbox = Outbox(pair[0], broken=broken.set)
    outbox.send([bytes(1 << 20)], lambda: told.append(1))
    await asyncio.sleep(0.01)
    assert told == []
    pair[1].close()
    await broken.wait()
    outbox.send([b"later"], lambda: told.append(2))
    assert told == [1, 2]
    await outbox.drained()


@pytest.mark.parametrize("seed", range(5))
async def test_incoming_gives_what_was_sent(pair, seed):
    chance, loop = random.Random(seed), asyncio.get_running_loop()
    data = chance.randbytes(2_000_000)
    sending = asyncio.create_task(loop.sock_sendall(pair[0], data))
    incoming, at = Incoming(pair[1]), 0
    while at < len(data) - 200_000:
        length = chance.choice((1, 28, 500, 131_072, 150_000))
        match chance.randrange(4):
            case 0:
                length = 8
                assert await incoming.unpack(struct.Struct(">8s")) == (data[at : at + 8],)
            case 1:
                assert await incoming.take(length) == data[at : at + length]
            case 2:
                target = bytearray(length)
                await incoming.into(memoryview(target))
                assert target == data[at : at + length]
            case 3:
                await incoming.skip(length)
        at += length
    assert await incoming.take(len(data) - at) == data[at:]
    await sending
    pair[0].close()
    with pytest.raises(ConnectionLost):
        await incoming.take(1)


def test_the_pool_keeps_large_buffers_up_to_its_bound():
    pool = BufferPool(keep=300_000)
    assert len(pool.take(4096)) == 4096
    first, second, third = (pool.take(100_000) for _ in range(3))
    assert len(first) == 131_072
    for buffer in (first, second, third):
        pool.give(buffer)
    again = [pool.take(100_000) for _ in range(3)]
    assert sum(any(buffer is kept for kept in (first, second, third)) for buffer in again) == 2
