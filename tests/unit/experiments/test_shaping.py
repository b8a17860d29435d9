"""A shaped link delays, limits and loses, and never changes a byte."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator

import pytest

from vmferry.experiments.shaping import Link, shaped

DATA = random.Random(1).randbytes(1 << 20)


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """The port of a server that sends back what it gets."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def there_and_back(port: int, data: bytes) -> tuple[bytes, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    received = await reader.read(-1)
    await sending
    seconds = time.monotonic() - began
    writer.close()
    await writer.wait_closed()
    return received, seconds


async def test_a_link_that_is_not_shaped_is_not_there(echo: int) -> None:
    async with shaped(Link()) as link:
        assert await link.through(echo) == echo


async def test_delay_is_added_each_way(echo: int) -> None:
    async with shaped(Link(latency=0.1)) as link:
        received, seconds = await there_and_back(await link.through(echo), b"x")
    assert received == b"x"
    assert seconds >= 0.2


async def test_the_rate_is_kept_to_and_counted(echo: int) -> None:
    async with shaped(Link(bandwidth=4 << 20)) as link:
        received, seconds = await there_and_back(await link.through(echo), DATA)
        assert link.passed == 2 * len(DATA)
    assert received == DATA
    assert seconds >= 0.25


async def test_two_connections_share_the_rate(echo: int) -> None:
    async with shaped(Link(bandwidth=4 << 20)) as link:
        port = await link.through(echo)
        both = await asyncio.gather(*(there_and_back(port, DATA) for _ in range(2)))
    assert max(seconds for _, seconds in both) >= 0.5


async def test_loss_slows_and_spoils_nothing(echo: int) -> None:
    async with shaped(Link(loss=0.01)) as link:
        received, seconds = await there_and_back(await link.through(echo), DATA)
    assert received == DATA
    assert seconds >= len(DATA) / Link(loss=0.01).rate_of_one


async def test_what_is_lost_is_decided_by_the_seed() -> None:
    lost = []
    for seed in (1, 1, 2):
        async with shaped(Link(loss=0.3), seed) as link:
            lost.append([link._repair(1000) for _ in range(64)])
    assert lost[0] == lost[1] != lost[2]


async def test_a_target_that_is_gone_ends_the_connection() -> None:
    async with shaped(Link(latency=0.001)) as link:
        port = await link.through(1)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ConnectionError):
            assert not await reader.read()
            raise ConnectionResetError
        writer.close()


async def test_the_link_ends_with_its_block(echo: int) -> None:
    async with shaped(Link(latency=5)) as link:
        port = await link.through(echo)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"never answered")
    with contextlib.suppress(ConnectionError):
        assert not await reader.read()
    writer.close()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", port)
