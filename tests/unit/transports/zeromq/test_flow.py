"""Back-pressure and buffers of the ``zeromq`` transport."""

import asyncio

import psutil
import pytest

from vmferry.api.transport import Limits
from vmferry_transports.zeromq import ZeromqOptions

MIB = 1 << 20


class TestBackPressure:
    """A reader that stops holds back its sender, and memory stays small."""

    @pytest.mark.parametrize("window", [MIB, 8 * MIB])
    async def test_bytes_taken_are_the_window_and_a_frame(self, connect_pair, window):
        options = ZeromqOptions(window=window)
        async with connect_pair(options, options) as (near, far):
            taken = await fill(near.lanes[1], bytes(300_000))
            assert window <= taken * 300_000 <= window + 300_000
            assert far.lanes[1]._state.waiting <= window + 300_000
            for number in range(taken):
                assert bytes((await far.lanes[1].receive()).head) == b"%d" % number

    async def test_the_smaller_window_holds(self, connect_pair):
        small = ZeromqOptions(window=64 << 10)
        for here, there in ((small, None), (None, small)):
            async with connect_pair(here, there) as (near, far):
                assert await fill(near.lanes[1], bytes(64 << 10)) == 1
                for _ in range(20):
                    await far.lanes[1].receive()
                    await near.lanes[1].send(b"", bytes(64 << 10))

    async def test_small_frames_are_bounded_too(self, connect_pair):
        async with connect_pair() as (near, _):
            assert await fill(near.lanes[1], b"x") == (4 * MIB) // (16 << 10)

    async def test_memory_does_not_grow_with_what_is_sent(self, connect_pair):
        """Nothing waits in libzmq either: not while Python is not even looking."""
        payload = memoryview(bytes(range(256)) * 4096)
        async with connect_pair(lanes=4) as (near, far):
            await fill(near.lanes[1], payload)
            before = psutil.Process().memory_info().rss
            for lane in (*near.lanes[2:], *far.lanes[1:]):
                assert await fill(lane, payload) == 4
            assert psutil.Process().memory_info().rss - before < 5 * 5 * MIB + 32 * MIB

    async def test_one_larger_than_the_window_passes(self, connect_pair):
        options = ZeromqOptions(window=64 << 10)
        async with connect_pair(options, options) as (near, far):
            for number in range(3):
                await near.lanes[1].send(b"%d" % number, bytes(10 * MIB))
                assert len((await far.lanes[1].receive()).payload) == 10 * MIB


async def fill(lane, payload):
    """Send until there is no room; returns how many were taken. One more has to wait."""
    taken = 0
    while lane._state.may_send():
        await lane.send(b"%d" % taken, payload)
        taken += 1
    waiting = asyncio.ensure_future(lane.send(b"more", payload))
    await asyncio.wait([waiting], timeout=0.2)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait([waiting])
    return taken


class TestBuffers:
    """Payloads are not copied, and are the caller's again afterwards."""

    async def test_a_large_payload_is_not_copied(self, connect_pair, monkeypatch):
        async with connect_pair() as (near, far):
            given = []
            port = near.lanes[1]._wire._port
            real = port.sock.send

            def send(data, *arguments, **more):
                given.append((data, more))
                return real(data, *arguments, **more)

            monkeypatch.setattr(port, "sock", _With(port.sock, send))
            payload = bytearray(MIB)
            sending = asyncio.ensure_future(near.lanes[1].send(b"", payload))
            await asyncio.sleep(0)
            (_, (data, more)) = given
            assert data.obj is payload
            assert more["copy"] is False
            del data
            given.clear()
            await sending
            await far.lanes[1].receive()

    async def test_nobody_holds_a_buffer_that_was_sent(self, connect_pair):
        async with connect_pair() as (near, far):
            for size in (1000, MIB):
                payload = bytearray(size)
                await near.lanes[1].send(b"", payload)
                payload.clear()  # raises BufferError while somebody looks at it
                await far.lanes[1].receive()

    async def test_a_cancelled_send_lets_go_of_its_buffer_first(self, connect_pair):
        async with connect_pair() as (near, far):
            payload = bytearray(b"x" * 4 * MIB)
            sending = asyncio.ensure_future(near.lanes[1].send(b"", payload))
            await asyncio.sleep(0)
            sending.cancel()
            await asyncio.wait([sending])
            payload.clear()
            assert bytes((await far.lanes[1].receive()).payload) == b"x" * 4 * MIB

    async def test_a_buffer_that_cannot_be_had_ends_the_connection(self, connect_pair, lost):
        def allocate(size):
            raise MemoryError(size)

        async with connect_pair(limits=Limits(allocate=allocate)) as (near, far):
            await near.lanes[1].send(b"", b"x")
            assert "no buffer for a payload" in await lost(far.lanes[1].receive())
            await lost(near.lanes[1].receive())


class _With:
    """A socket whose ``send`` is another."""

    def __init__(self, sock, send):
        self._sock, self.send = sock, send

    def __getattr__(self, name):
        return getattr(self._sock, name)
