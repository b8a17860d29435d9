"""The listener against its peers."""

import asyncio
import contextlib
import os

import pytest

from vmferry.api.transport import Address
from vmferry.errors import ConnectionLost, LinkError
from vmferry_transports.tcp.greeting import Refusal

LOCAL = Address.parse("tcp://127.0.0.1")


@pytest.mark.parametrize(
    ("greeting", "refusal"),
    [
        ({"version": 2}, Refusal.VERSION),
        ({"lanes": 5}, Refusal.LANES),
        ({"lanes": 1}, Refusal.LANES),
        ({"lane": 2}, Refusal.LANES),
    ],
)
async def test_greetings_that_are_refused(listener, greeting, refusal, raw, hang_up):
    _, writer, answer = await raw(listener, **greeting)
    assert answer.refusal == refusal
    await hang_up(writer)


async def test_a_lane_comes_once(listener, raw, hang_up):
    _, first, _ = await raw(listener)
    _, second, answer = await raw(listener)
    assert answer.refusal == Refusal.SESSION
    await hang_up(first, second)


async def test_a_half_complete_group_is_dropped_in_time(listener, caplog, raw, hang_up):
    reader, writer, answer = await raw(listener)
    assert not answer.refusal
    async with asyncio.timeout(60):
        assert await reader.read() == b""
    assert "only 1 of 2 lanes" in caplog.text
    await hang_up(writer)


async def test_silent_and_bad_peers_hold_up_nobody(listener, caplog, hang_up, connect):
    streams = [await asyncio.open_connection("127.0.0.1", listener.address.port) for _ in range(20)]
    for _, writer in streams[10:]:
        writer.write(os.urandom(100))
    near, far = await asyncio.gather(connect(str(listener.address)), listener.accept())
    await asyncio.gather(near.close(), far.close())
    async with asyncio.timeout(60):
        for reader, _ in streams:
            with contextlib.suppress(OSError):
                await reader.read()
    assert caplog.text.count("no greeting in time (handshake_timeout)") == 10
    assert caplog.text.count("no vmferry greeting") == 10
    await hang_up(*(writer for _, writer in streams))


async def test_more_silent_peers_than_places(listener, monkeypatch, hang_up, connect):
    monkeypatch.setattr("vmferry_transports.tcp.listener._HANDSHAKES", 3)
    streams = [await asyncio.open_connection("127.0.0.1", listener.address.port) for _ in range(10)]
    near, far = await asyncio.gather(connect(str(listener.address)), listener.accept())
    await asyncio.gather(near.close(), far.close())
    await hang_up(*(writer for _, writer in streams))


async def test_more_half_complete_groups_than_places(patient_listener, monkeypatch, raw, hang_up):
    monkeypatch.setattr("vmferry_transports.tcp.groups._SOCKETS", 2)
    streams = [await raw(patient_listener, session=b"%016d" % n) for n in range(3)]
    async with asyncio.timeout(120):
        assert await streams[0][0].read() == b""
    await hang_up(*(writer for _, writer, _ in streams))


async def test_connections_beyond_the_queue_are_told_to_try_again(listener, monkeypatch, connect):
    monkeypatch.setattr("vmferry_transports.tcp.listener._READY", 1)
    first = await connect(str(listener.address))
    await asyncio.sleep(0.05)
    with pytest.raises(LinkError, match="too many connections waiting; try again"):
        await connect(str(listener.address))
    first.abort()
    await first.close()


async def test_closing_the_listener_drops_what_nobody_accepted(listener, raw, hang_up, connect):
    near = await connect(str(listener.address))
    _, half, _ = await raw(listener)
    await asyncio.sleep(0.05)
    await listener.close()
    with pytest.raises(ConnectionLost):
        await near.lanes[0].receive()
    await near.close()
    await hang_up(half)
