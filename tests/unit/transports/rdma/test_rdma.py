"""What the ``rdma`` transport promises beyond the contract of all transports."""

import asyncio
import contextlib
import os
import re
import socket
import sys

import psutil
import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, InputError, LinkError, ProtocolError
from vmferry_transports.rdma import RdmaOptions, RdmaTransport
from vmferry_transports.rdma.frames import INLINE
from vmferry_transports.rdma.greeting import Greeting
from vmferry_transports.rdma.providers.shared_memory import SharedMemory

LOCAL = Address.parse("rdma://127.0.0.1")
MIB = 1 << 20
SMALL = RdmaOptions(slot=4096, slots=4)


async def lost(call, kind=ConnectionLost):
    async with asyncio.timeout(120):
        with pytest.raises(kind) as caught:
            await call
    return str(caught.value)


class TestFlow:
    @pytest.mark.parametrize("options", [RdmaOptions(), SMALL])
    @pytest.mark.parametrize("head", [0, 1, 4095, 4096, 4097, 20_000])
    @pytest.mark.parametrize("payload", [0, 1, INLINE, INLINE + 1, 4096 * 3, 300_001])
    async def test_bodies_of_all_sizes(self, connect_pair, options, head, payload):
        """In a message or in slots, with the border of head and payload anywhere."""
        first, second = os.urandom(head), os.urandom(payload)
        async with connect_pair(options, options) as (near, far):
            sending = asyncio.ensure_future(near.lanes[1].send(first, second))
            async with asyncio.timeout(120):
                frame = await far.lanes[1].receive()
                await sending
        assert bytes(frame.head) == first
        assert bytes(frame.payload) == second

    async def test_ends_may_have_zones_of_their_own(self, connect_pair):
        async with connect_pair(SMALL, RdmaOptions()) as (near, far):
            for here, there in ((near, far), (far, near)):
                sending = asyncio.ensure_future(here.lanes[1].send(b"x", bytes(MIB)))
                assert len((await there.lanes[1].receive()).payload) == MIB
                await sending

    async def test_credits_come_back_for_ever(self, connect_pair):
        async with connect_pair(SMALL, SMALL) as (near, far):
            for number in range(1000):
                size = 10_000 if number % 3 else 10
                sending = asyncio.ensure_future(near.lanes[1].send(b"%d" % number, bytes(size)))
                assert bytes((await far.lanes[1].receive()).head) == b"%d" % number
                await sending

    async def test_counters_wrap(self, connect_pair):
        async with connect_pair(SMALL, SMALL) as (near, far):
            close = (1 << 32) - 7
            takeoff, landing = near.lanes[1]._takeoff, far.lanes[1]._landing
            takeoff._sent = takeoff._taken = takeoff._freed = close
            takeoff._written = close
            landing.receives = landing.freed = close
            landing._told = (close, close)
            landing._next = close % 4
            for number in range(50):
                sending = asyncio.ensure_future(near.lanes[1].send(b"%d" % number, bytes(9000)))
                assert bytes((await far.lanes[1].receive()).head) == b"%d" % number
                await sending


class TestBackPressure:
    async def test_what_waits_is_the_landing_zone(self, connect_pair):
        options = RdmaOptions(slot=64 << 10, slots=8)
        async with connect_pair(options, options) as (near, far):
            for number in range(8):
                await near.lanes[1].send(b"%d" % number, bytes(64 << 10))
            waiting = asyncio.ensure_future(near.lanes[1].send(b"8", bytes(200_000)))
            await asyncio.wait([waiting], timeout=0.2)
            assert not waiting.done()
            assert far.lanes[1]._landing._building is None  # nothing was allocated for it yet
            for number in range(9):
                assert bytes((await far.lanes[1].receive()).head) == b"%d" % number
            await waiting

    async def test_small_frames_are_bounded_too(self, connect_pair):
        async with connect_pair() as (near, far):
            for number in range(64):
                await near.lanes[1].send(b"%d" % number)
            waiting = asyncio.ensure_future(near.lanes[1].send(b"64"))
            await asyncio.wait([waiting], timeout=0.2)
            assert not waiting.done()
            for number in range(65):
                assert bytes((await far.lanes[1].receive()).head) == b"%d" % number
            await waiting

    async def test_a_cancelled_frame_under_way_is_sent_from_a_copy(self, connect_pair):
        async with connect_pair() as (near, far):
            payload = bytearray(b"x" * 8 * MIB)
            sending = asyncio.ensure_future(near.lanes[1].send(b"big", payload))
            await asyncio.wait([sending], timeout=0.2)
            sending.cancel()
            await asyncio.wait([sending])
            payload[:] = bytes(len(payload))
            after = asyncio.ensure_future(near.lanes[1].send(b"after"))
            frame = await far.lanes[1].receive()
            assert bytes(frame.payload) == b"x" * 8 * MIB
            assert bytes((await far.lanes[1].receive()).head) == b"after"
            await after


class TestEnds:
    async def test_a_frame_that_a_close_cuts_is_not_given(self, connect_pair):
        """The peer closes while a frame is half in its slots."""
        async with connect_pair(SMALL, SMALL) as (near, far):
            sending = asyncio.ensure_future(near.lanes[1].send(b"half", bytes(MIB)))
            await asyncio.wait([sending], timeout=0.2)
            await far.close()
            await lost(sending)
            await lost(far.lanes[1].receive())

    async def test_frames_are_there_after_the_peer_has_closed(self, connect_pair):
        async with connect_pair() as (near, far):
            for number in range(10):
                await near.lanes[1].send(b"%d" % number, bytes(MIB // 4))
            await near.close()
            for number in range(10):
                assert bytes((await far.lanes[1].receive()).head) == b"%d" % number
            assert await far.lanes[1].receive() is None

    async def test_a_peer_that_is_killed_is_a_loss(self):
        listener = await RdmaTransport().listen(LOCAL, limits=Limits())
        code = (
            "import asyncio, os\n"
            "from vmferry.api.transport import Address, Limits\n"
            "from vmferry_transports.rdma import RdmaTransport\n"
            "async def main():\n"
            f"    address = Address.parse({str(listener.address)!r})\n"
            "    near = await RdmaTransport().connect(address, lanes=2, limits=Limits())\n"
            "    await near.lanes[1].send(b'last', bytes(1 << 20))\n"
            "    os.read(0, 1)  # accepted: one that dies before that is no connection\n"
            "    os.kill(os.getpid(), 9)\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdin=asyncio.subprocess.PIPE
        )
        assert process.stdin is not None
        try:
            async with asyncio.timeout(60):
                far = await listener.accept()
                process.stdin.write(b"!")
                await process.wait()
                frame = await far.lanes[1].receive()
                assert len(frame.payload) == MIB
            for lane in far.lanes:
                await lost(lane.receive())
        finally:
            await process.wait()
        far.abort()
        await far.close()
        await listener.close()

    async def test_a_buffer_that_cannot_be_had_ends_the_connection(self, connect_pair):
        def allocate(size):
            raise MemoryError(size)

        async with connect_pair(limits=Limits(allocate=allocate)) as (near, far):
            await near.lanes[1].send(b"", b"x")
            assert "no buffer for a payload" in await lost(far.lanes[1].receive())
            await lost(near.lanes[1].receive())

    async def test_nothing_is_left_behind(self, connect_pair):
        def counts():
            process = psutil.Process()
            return process.num_fds(), process.num_threads()

        async with connect_pair() as (near, far):
            await near.lanes[1].send(b"x")
        before = counts()
        for _ in range(5):
            async with connect_pair(lanes=4) as (near, far):
                await near.lanes[1].send(b"", bytes(MIB))
                await far.lanes[1].receive()
        assert counts() == before

    async def test_a_connect_that_is_cancelled_leaves_nothing(self):
        listener = await RdmaTransport().listen(LOCAL, limits=Limits())
        before = psutil.Process().num_fds()
        for turns in range(20):
            connecting = asyncio.ensure_future(
                RdmaTransport().connect(listener.address, lanes=3, limits=Limits())
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                connecting.result().abort()
        await listener.close()
        assert psutil.Process().num_fds() <= before

    async def test_a_second_receive_at_a_time_is_an_error(self, connect_pair):
        async with connect_pair() as (near, _):
            waiting = asyncio.ensure_future(near.lanes[0].receive())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="while another call waits"):
                await near.lanes[0].receive()
            waiting.cancel()
            await asyncio.wait([waiting])


class TestAddresses:
    @pytest.mark.parametrize("url", ["rdma://127.0.0.1", "tcp://h:1", "rdma://h:1/x"])
    async def test_where_one_cannot_connect(self, url):
        with pytest.raises(InputError, match=re.escape(url)):
            await RdmaTransport().connect(Address.parse(url), lanes=2, limits=Limits())

    async def test_shared_memory_is_of_one_host(self):
        transport = RdmaTransport(RdmaOptions(provider="shared_memory"))
        with pytest.raises(InputError, match="reaches this host only"):
            await transport.listen(Address.parse("rdma://192.0.2.1"), limits=Limits())

    async def test_other_hosts_need_a_device(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyverbs", None)
        with pytest.raises(LinkError, match="needs pyverbs"):
            await RdmaTransport().listen(Address.parse("rdma://0.0.0.0"), limits=Limits())

    async def test_the_summary_says_that_it_is_a_stub(self):
        assert "stub" in RdmaTransport.summary

    async def test_a_landing_zone_that_is_too_large(self):
        transport = RdmaTransport(RdmaOptions(slot=16 << 20, slots=64))
        with pytest.raises(InputError, match="more than 256 MiB"):
            await transport.listen(LOCAL, limits=Limits())

    async def test_more_lanes_than_the_listener_takes(self):
        listener = await RdmaTransport().listen(LOCAL, limits=Limits(lanes=3))
        with pytest.raises(LinkError, match="does not take that many lanes"):
            await RdmaTransport().connect(listener.address, lanes=4, limits=Limits())
        await listener.close()

    async def test_another_provider(self, monkeypatch):
        listener = await RdmaTransport().listen(LOCAL, limits=Limits())
        encode = Greeting.encode
        monkeypatch.setattr(
            Greeting,
            "encode",
            lambda each: encode(each).replace(b"shared_memory", b"shared_memorx"),
        )
        with pytest.raises(LinkError, match=r"uses another provider|another greeting"):
            await RdmaTransport().connect(listener.address, lanes=2, limits=Limits())
        await listener.close()

    async def test_a_peer_that_says_nothing_is_dropped(self, caplog):
        listener = await RdmaTransport(RdmaOptions(connect_timeout=0.3)).listen(
            LOCAL, limits=Limits()
        )
        sock = await SharedMemory().connect(listener.address)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(120):
            assert await loop.sock_recv(sock, 1) == b""
        sock.close()
        await listener.close()
        assert "did not greet in time" in caplog.text

    async def test_another_user_is_not_let_in(self, monkeypatch):
        class Stranger(socket.socket):
            def getsockopt(self, *_):
                return (1).to_bytes(4, sys.byteorder) + (4242).to_bytes(4, sys.byteorder) * 2

        sock = Stranger(socket.AF_UNIX)
        with pytest.raises(LinkError, match="user 4242 must not be there"):
            SharedMemory().identity(sock)
        sock.close()


class TestHostile:
    """A peer that has mapped the landing zone, and lies."""

    @pytest.mark.parametrize(
        ("fault", "text"),
        [
            (lambda q: q._put(b"", _done()), ""),
            (lambda q: q._put(b"\x01\0\0", _done()), "no wire message"),
            (lambda q: q._put(b"\x03" + bytes(11), _done()), "no wire message"),
            (lambda q: q._put(b"\x02\0\0\0" + b"\xff" * 8, _done()), "no wire message"),
            (lambda q: q._put(b"\x01\0\0\0" + bytes(8) + b"xx", _done()), "no wire message"),
            (lambda q: q._put(b"\x01\0\0\0" + bytes(8), _done()), "no message"),
            (lambda q: q._put(_write(0, 4096), _done()), "are no frame's"),
            (lambda q: q._put(_write(3, 4096), _done()), "slot 3 was written, not 0"),
        ],
    )
    async def test_what_it_says_ends_the_connection(self, connect_pair, fault, text):
        async with connect_pair(SMALL, SMALL) as (near, far):
            fault(near.lanes[1]._queue)
            assert text in await lost(far.lanes[1].receive(), (ConnectionLost, ProtocolError))
            await lost(near.lanes[0].receive())

    async def test_more_receives_than_there_are(self, connect_pair):
        async with connect_pair(SMALL, SMALL) as (near, far):
            queue = near.lanes[1]._queue
            takeoff = near.lanes[1]._takeoff
            for _ in range(200):
                takeoff._free.append(0)
                takeoff._taken = takeoff._sent
                queue._put(_send(near.lanes[1]), _done())
            error = await lost(_drain(far.lanes[0]), (ConnectionLost, ProtocolError))
            assert error

    async def test_descriptors_of_another_kind(self):
        listener = await RdmaTransport().listen(LOCAL, limits=Limits())
        greeting = Greeting(provider="shared_memory", slot=4096, slots=4, lanes=2)
        before = psutil.Process().num_fds()
        for given in ([0], [0] * 4, [0] * 200):
            sock = await SharedMemory().connect(listener.address)
            sock.setblocking(True)
            data = greeting.encode() + (bytes(12) + (16384).to_bytes(8, "big") + bytes(44)) * 2
            socket.send_fds(sock, [data], given)
            sock.setblocking(False)
            async with asyncio.timeout(120):
                with_reset = asyncio.get_running_loop().sock_recv(sock, 1)
                with contextlib.suppress(ConnectionResetError):
                    assert await with_reset == b""
            sock.close()
        await listener.close()
        assert psutil.Process().num_fds() <= before

    def test_a_landing_zone_that_can_shrink_is_refused(self):
        from vmferry_transports.rdma.providers import shared_memory

        descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, 16384)
        with pytest.raises(LinkError, match="landing zone of 16384 bytes, sealed 0x0"):
            shared_memory._foreign(descriptor, 16384)
        os.close(descriptor)


def _done():
    from vmferry_transports.rdma.providers.base import Completion, Opcode

    return Completion(Opcode.WRITE)


def _write(slot, size):
    return b"\x02\0\0\0" + slot.to_bytes(4, "big") + size.to_bytes(4, "big")


def _send(lane):
    from vmferry_transports.rdma.frames import Kind, Message

    data = Message(Kind.DATA, 0, 0).encode()
    return b"\x01\0\0\0" + bytes(4) + len(data).to_bytes(4, "big") + data


async def _drain(lane):
    while await lane.receive() is not None:
        pass
