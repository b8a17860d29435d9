"""What carries QEMU's migration when QEMU opens several connections."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmferry.errors import ConnectionLost, HypervisorError
from vmferry.testing.streams import MemoryStream, stream_pair
from vmferry_hypervisors.qemu.connections import incoming, outgoing
from vmferry_hypervisors.qemu.relay import BrokenOff

WORDS = [b"main " * 1000, b"first " * 1000, b"second " * 1000]


@pytest.fixture
def qmp() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        monitor = Path(folder) / "web1.qmp"
        monitor.touch()
        yield SimpleNamespace(path=str(monitor))


def beside(qmp: Any) -> Path:
    return Path(qmp.path).with_name(".web1.qmp-memory")


async def opened(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(str(path))


async def all_of(stream: MemoryStream) -> bytes:
    parts = b""
    while piece := await stream.read():
        parts += piece
    return parts


async def test_connections_are_carried_in_the_order_in_which_they_are_made(qmp: Any) -> None:
    near, far = stream_pair(channels=2)
    carried = outgoing(qmp, near)
    await carried.prepare()
    assert carried.uri == f"unix:{beside(qmp)}"
    assert stat.S_IMODE(beside(qmp).stat().st_mode) == 0o600
    carried.start()
    for word in WORDS:
        _, writer = await opened(beside(qmp))
        writer.write(word)
        writer.close()
    assert [await all_of(each) for each in (far, *far.channels)] == WORDS
    await carried.sent_all()
    await carried.close()
    await carried.close()
    assert os.listdir(beside(qmp).parent) == ["web1.qmp"]


async def test_each_is_made_once_its_first_bytes_have_come_and_the_stream_s_first(
    qmp: Any,
) -> None:
    near, far = stream_pair(channels=2)
    taken: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.put_nowait(await reader.readexactly(4))
        await reader.read()
        writer.close()

    carried = incoming(qmp, near)
    await carried.prepare()
    server = await asyncio.start_unix_server(take, str(beside(qmp)))
    carried.start()
    await far.channels[1].write(b"two!")
    await asyncio.sleep(0.05)
    assert taken.empty()
    await far.write(b"main")
    assert [await taken.get(), await taken.get()] == [b"main", b"two!"]
    assert taken.empty()
    await carried.close()
    server.close()


async def test_one_that_breaks_breaks_all(qmp: Any) -> None:
    near, far = stream_pair(channels=1)
    carried = outgoing(qmp, near)
    await carried.prepare()
    carried.start()
    writers = [(await opened(beside(qmp)))[1] for _ in range(2)]
    await far.channels[0].sever()
    writers[1].write(b"more")
    with pytest.raises(ConnectionLost):
        async with asyncio.timeout(5):
            await carried.broken()
    assert isinstance(carried.failure, ConnectionLost)
    await carried.close()
    for writer in writers:
        writer.close()


async def test_a_qemu_that_does_not_wait_has_broken_off(qmp: Any) -> None:
    near, far = stream_pair(channels=1)
    carried = incoming(qmp, near)
    await carried.prepare()
    carried.start()
    await far.write(b"main")
    with pytest.raises(BrokenOff):
        async with asyncio.timeout(5):
            await carried.broken()
    await carried.close()


async def test_what_was_left_by_another_is_no_hindrance(qmp: Any) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(beside(qmp)))
    carried = outgoing(qmp, stream_pair(channels=1)[0])
    await carried.prepare()
    await carried.close()
    assert not beside(qmp).exists()


async def test_a_path_that_is_too_long_is_named(qmp: Any) -> None:
    qmp.path = "/tmp/" + "x" * 100
    with pytest.raises(HypervisorError, match=r"xxx-memory is too long .* --memory-channels"):
        await outgoing(qmp, stream_pair(channels=1)[0]).prepare()
