"""The word that lets QEMU stop its guest stands between the other side's messages."""

from __future__ import annotations

import asyncio

import pytest

from vmferry_hypervisors.qemu.returnpath import ReturnPath

ACK = b"\x00\x07\x00\x00"
PONG = b"\x00\x02\x00\x04\x00\x00\x00\x2a"


class Stream:
    """What the other side says, as it comes."""

    channels = ()

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[bytes] = asyncio.Queue()
        self.wrote: list[bytes] = []

    async def write(self, data: bytes | memoryview) -> None:
        self.wrote.append(bytes(data))

    async def read(self, limit: int = 1 << 20) -> bytes:
        return await self.inbox.get()

    async def write_eof(self) -> None:
        self.wrote.append(b"")


async def drain(path: ReturnPath, count: int) -> list[bytes]:
    async with asyncio.timeout(5):
        return [bytes(await path.read()) for _ in range(count)]


async def test_it_is_said_once_and_only_when_allowed() -> None:
    stream = Stream()
    path = ReturnPath(stream)
    reading = asyncio.ensure_future(path.read())
    await asyncio.sleep(0.01)
    assert not reading.done()
    path.allow()
    path.allow()
    assert await reading == ACK
    stream.inbox.put_nowait(PONG)
    stream.inbox.put_nowait(b"")
    assert await drain(path, 2) == [PONG, b""]


@pytest.mark.parametrize("cut", range(1, 8))
async def test_never_into_a_message(cut: int) -> None:
    stream = Stream()
    path = ReturnPath(stream)
    stream.inbox.put_nowait(PONG + PONG[:cut])
    assert await drain(path, 1) == [PONG + PONG[:cut]]
    path.allow()
    reading = asyncio.ensure_future(path.read())
    await asyncio.sleep(0.01)
    assert not reading.done()
    stream.inbox.put_nowait(PONG[cut:])
    assert await reading == PONG[cut:]
    assert await drain(path, 1) == [ACK]


async def test_what_came_before_goes_before() -> None:
    stream = Stream()
    path = ReturnPath(stream)
    reading = asyncio.ensure_future(path.read())
    await asyncio.sleep(0)
    stream.inbox.put_nowait(PONG)
    path.allow()
    said = [bytes(await reading), *await drain(path, 1)]
    assert sorted(said) == sorted([PONG, ACK])


async def test_an_end_is_passed_on() -> None:
    stream = Stream()
    path = ReturnPath(stream)
    stream.inbox.put_nowait(b"")
    assert await drain(path, 1) == [b""]


async def test_a_reader_that_is_cancelled_leaves_nothing_behind() -> None:
    stream = Stream()
    path = ReturnPath(stream)
    reading = asyncio.ensure_future(path.read())
    await asyncio.sleep(0.01)
    reading.cancel()
    await asyncio.wait({reading})
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_the_other_direction_is_the_streams() -> None:
    stream = Stream()
    path = ReturnPath(stream)
    await path.write(b"memory")
    await path.write_eof()
    assert stream.wrote == [b"memory", b""]
