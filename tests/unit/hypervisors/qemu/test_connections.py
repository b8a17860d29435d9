"""What carries QEMU's migration when QEMU opens several connections."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmferry.errors import ConnectionLost, HypervisorError
from vmferry.testing.streams import MemoryStream, stream_pair
from vmferry_hypervisors.qemu import connections, remains
from vmferry_hypervisors.qemu.connections import incoming, outgoing

WORDS = [b"main " * 1000, b"first " * 1000, b"second " * 1000]


@pytest.fixture
def qmp() -> Iterator[Any]:
    with tempfile.TemporaryDirectory() as folder:
        monitor = Path(folder) / "web1.qmp"
        monitor.touch()
        yield SimpleNamespace(path=str(monitor), process=0)


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
    made: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.append(b"")
        place = len(made) - 1
        made[place] = await reader.readexactly(4)
        await reader.read()
        writer.close()

    async def until(count: int) -> None:
        async with asyncio.timeout(5):
            while len(made) < count or b"" in made:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    carried = incoming(qmp, near)
    await carried.prepare()
    server = await asyncio.start_unix_server(take, str(beside(qmp)))
    carried.start()
    await far.channels[1].write(b"two!")
    await asyncio.sleep(0.05)
    assert made == []
    await far.write(b"main")
    await until(2)
    await asyncio.sleep(0.05)
    assert made == [b"main", b"two!"]
    await carried.close()
    server.close()


async def test_one_that_breaks_breaks_all(qmp: Any) -> None:
    near, far = stream_pair(channels=1)
    carried = outgoing(qmp, near)
    await carried.prepare()
    carried.start()
    ends = [await opened(beside(qmp)) for _ in range(2)]
    await far.channels[0].sever()
    ends[1][1].write(b"more")
    with pytest.raises(ConnectionLost):
        async with asyncio.timeout(5):
            await carried.broken()
    assert isinstance(carried.failure, ConnectionLost)
    for reader, writer in ends:
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
    await carried.close()


async def test_all_is_sent_once_the_streams_have_taken_it(qmp: Any) -> None:
    near, far = stream_pair(channels=1)
    carried = outgoing(qmp, near)
    await carried.prepare()
    carried.start()
    for _ in range(2):
        _, writer = await opened(beside(qmp))
        writer.write(bytes(8 << 20))  # more than the stream holds
        writer.close()
    await asyncio.sleep(0.05)
    sending = asyncio.ensure_future(carried.sent_all())
    assert len(await all_of(far)) == 8 << 20
    await asyncio.sleep(0.05)
    assert not sending.done()
    assert len(await all_of(far.channels[0])) == 8 << 20
    async with asyncio.timeout(5):
        await sending
    await carried.close()


async def test_nobody_but_qemu_takes_a_place(qmp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "qemu_of", lambda _: os.getpid())
    monkeypatch.setattr(connections, "user_of", lambda _: (os.geteuid(), os.getegid()))
    near, far = stream_pair(channels=1)
    carried = outgoing(qmp, near)
    await carried.prepare()
    carried.start()
    stranger = f"import socket; socket.socket(socket.AF_UNIX).connect({str(beside(qmp))!r})"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", stranger)
    assert await process.wait() == 0
    for word in WORDS[:2]:
        _, writer = await opened(beside(qmp))
        writer.write(word)
        writer.close()
    assert [await all_of(each) for each in (far, *far.channels)] == WORDS[:2]
    await carried.close()


async def test_what_nobody_connected_to_leaves_nothing(qmp: Any) -> None:
    for started in (False, True):
        carried = outgoing(qmp, stream_pair(channels=2)[0])
        await carried.prepare()
        if started:
            carried.start()
            await asyncio.sleep(0)
        await carried.close()
        assert os.listdir(beside(qmp).parent) == ["web1.qmp"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
async def test_a_qemu_of_another_user_may_connect(qmp: Any) -> None:
    os.chown(qmp.path, 65534, 65534)
    carried = outgoing(qmp, stream_pair(channels=1)[0])
    await carried.prepare()
    assert beside(qmp).stat().st_uid == 65534
    await carried.close()


def test_who_a_qemu_runs_as_is_seen(qmp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remains, "_program", lambda _: "qemu-system-x86")
    qmp.process = os.getpid()
    assert remains.user_of(qmp) == (os.geteuid(), os.getegid())
    assert remains.qemu_of(qmp) == os.getpid()


async def test_a_qemu_that_does_not_wait_is_no_lost_connection(qmp: Any) -> None:
    near, far = stream_pair(channels=1)
    carried = incoming(qmp, near)
    await carried.prepare()
    carried.start()
    await far.write(b"main")
    with pytest.raises(HypervisorError, match=r"web1\.qmp-memory: No such file"):
        async with asyncio.timeout(5):
            await carried.broken()
    await carried.close()


async def test_a_place_that_cannot_be_used_is_named_and_ends_nothing_else(qmp: Any) -> None:
    beside(qmp).mkdir()
    for carried in (
        outgoing(qmp, stream_pair(channels=1)[0]),
        incoming(qmp, stream_pair(channels=1)[0]),
    ):
        with pytest.raises(HypervisorError, match=r"web1\.qmp-memory: Is a directory"):
            await carried.prepare()
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
    with pytest.raises(HypervisorError, match=r"xxx-memory: it is too long .* --memory-channels"):
        await outgoing(qmp, stream_pair(channels=1)[0]).prepare()
