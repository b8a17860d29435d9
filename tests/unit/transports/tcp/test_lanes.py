"""Lanes: what breaks them, and what a close leaves."""

import asyncio
import select
import socket
import threading

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, LinkError, ProtocolError
from vmferry_transports.tcp import TcpOptions, TcpTransport
from vmferry_transports.tcp.frames import data_header

LOCAL = Address.parse("tcp://127.0.0.1")


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (data_header(0, (1 << 20) + 1), "payload of 1048577 bytes; the limit is 1048576"),
        (data_header((1 << 20) + 1, 0), "head of 1048577 bytes"),
        (b"\0" * 12, "no frame"),
    ],
    ids=["payload", "head", "magic"],
)
async def test_what_is_no_frame_ends_the_connection(
    listener, sent, text, hang_up, accepted, expect_reset
):
    far, streams = await accepted(listener)
    streams[1][1].write(sent)
    with pytest.raises(ProtocolError, match=f"lane 1: {text}"):
        await far.lanes[1].receive()
    with pytest.raises(ConnectionLost, match="lane 1"):
        await far.lanes[0].receive()
    with pytest.raises(ConnectionLost):
        await far.lanes[0].send(b"")
    await expect_reset(streams[0])
    await far.close()
    await hang_up(*(writer for _, writer, _ in streams))


async def test_an_end_of_file_without_an_end_is_a_loss(listener, hang_up, accepted):
    far, streams = await accepted(listener)
    streams[1][1].write(data_header(2, 0) + b"hi")
    await hang_up(streams[1][1])
    assert bytes((await far.lanes[1].receive()).head) == b"hi"
    for lane in reversed(far.lanes):
        with pytest.raises(ConnectionLost, match="without closing it"):
            await lane.receive()
    await far.close()
    await hang_up(streams[0][1])


async def test_abort_resets(listener, hang_up, accepted, expect_reset):
    far, streams = await accepted(listener)
    far.abort()
    for stream in streams:
        await expect_reset(stream)
        await hang_up(stream[1])


async def full(sock):
    """Return when the kernel takes no more of what is sent, and the peer's neither."""
    looks = 0
    while looks < 20:
        looks = 0 if select.select([], [sock], [], 0)[1] else looks + 1
        await asyncio.sleep(0.01)


async def test_abort_does_not_deliver_what_the_kernel_holds(listener, hang_up, accepted):
    far, streams = await accepted(listener)
    sends = [asyncio.ensure_future(far.lanes[1].send(b"", bytes(1 << 20))) for _ in range(64)]
    await full(far.lanes[1]._link._sock)
    far.abort()
    await asyncio.gather(*sends, return_exceptions=True)
    await far.close()  # its threads have let go: until then the peer could read on
    with pytest.raises(ConnectionResetError):
        await streams[1][0].read()
    await hang_up(*(writer for _, writer, _ in streams))


async def test_close_gives_up_on_a_peer_that_does_not_answer(listener, caplog, hang_up, accepted):
    far, streams = await accepted(listener)
    far._close_timeout = 0.1
    await far.close()
    assert "did not take what was sent within 0.1 s (close_timeout)" in caplog.text
    with pytest.raises(ConnectionLost):
        await far.lanes[0].receive()
    await hang_up(*(writer for _, writer, _ in streams))


async def test_close_lets_calls_that_wait_end(connect_pair):
    async with connect_pair() as (near, far):
        waiting = asyncio.ensure_future(near.lanes[1].receive())
        await asyncio.sleep(0)
        await near.close()
        assert await waiting is None
        assert await near.lanes[1].receive() is None
        assert await far.lanes[1].receive() is None


async def test_frames_dropped_after_close_are_owned_up_to(connect_pair):
    async with connect_pair() as (near, far):
        sending = [asyncio.ensure_future(far.lanes[1].send(b"", bytes(1 << 20))) for _ in range(20)]
        await asyncio.wait(sending, timeout=0.3)
        await near.close()
        with pytest.raises(ConnectionLost, match="after close"):
            while await near.lanes[1].receive() is not None:
                pass
        results = await asyncio.gather(*sending, return_exceptions=True)
        assert {type(each) for each in results} <= {type(None), ConnectionLost}


async def test_a_cancelled_frame_under_way_is_sent_from_a_copy(connect_pair):
    limits = Limits(payload=64 << 20)
    async with connect_pair(limits=limits) as (near, far):
        for _ in range(2):  # one waits to be received, one in the hands of the thread
            await near.lanes[1].send(b"", bytes(64 << 20))
        buffer = bytearray(b"x" * (64 << 20))
        sending = asyncio.ensure_future(near.lanes[1].send(b"big", memoryview(buffer)))
        await asyncio.wait([sending], timeout=0.2)
        sending.cancel()
        await asyncio.wait([sending])
        assert sending.cancelled()
        buffer[:] = bytes(len(buffer))
        follow = asyncio.ensure_future(near.lanes[1].send(b"next"))
        frame = [await far.lanes[1].receive() for _ in range(3)][2]
        assert bytes(frame.payload) == b"x" * (64 << 20)
        assert bytes((await far.lanes[1].receive()).head) == b"next"
        await follow


async def test_a_frame_that_was_not_begun_is_taken_back(connect_pair):
    limits = Limits(payload=64 << 20)
    async with connect_pair(limits=limits) as (near, far):
        lane = near.lanes[1]
        sends = [asyncio.ensure_future(lane.send(b"%d" % n, bytes(64 << 20))) for n in range(5)]
        await asyncio.wait(sends, timeout=0.4)
        sends[3].cancel()
        heads = [bytes((await far.lanes[1].receive()).head) for _ in range(4)]
        assert heads == [b"0", b"1", b"2", b"4"]


async def test_small_frames_behind_a_full_socket_stay_whole(connect_pair):
    async with connect_pair() as (near, far):
        lane = near.lanes[1]
        sends = [
            asyncio.ensure_future(lane.send(b"%d" % n, b"%d" % (n % 10) * 60_000))
            for n in range(600)
        ]
        await asyncio.wait(sends, timeout=0.3)
        gone = {n for n in range(1, 600, 2) if not sends[n].done()}
        for number in gone:
            sends[number].cancel()
        assert gone
        seen = []
        while not seen or seen[-1] != 598:
            frame = await far.lanes[1].receive()
            seen.append(int(bytes(frame.head)))
            assert bytes(frame.payload) == b"%d" % (seen[-1] % 10) * 60_000
        assert seen == sorted(seen)
        assert set(range(600)) - set(seen) - {599} <= gone


async def test_a_second_receive_at_a_time_is_an_error(connect_pair):
    async with connect_pair() as (near, _):
        waiting = asyncio.ensure_future(near.lanes[0].receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="while another call waits"):
            await near.lanes[0].receive()
        waiting.cancel()


async def test_a_buffer_that_cannot_be_had_ends_the_connection(connect_pair):
    def allocate(size):
        raise MemoryError(size)

    async with connect_pair(limits=Limits(allocate=allocate)) as (near, far):
        await near.lanes[1].send(b"", b"x")
        with pytest.raises(ConnectionLost, match="no buffer for a payload"):
            await far.lanes[1].receive()


async def test_socket_options_are_set(connect_pair):
    options = TcpOptions(
        keepalive_idle=7,
        keepalive_interval=3,
        keepalive_probes=2,
        user_timeout=1.5,
        send_buffer=50_000,
        receive_buffer=60_000,
    )
    async with connect_pair(options, options) as ends:
        for end in ends:
            sock = end.lanes[1]._link._sock
            tcp = socket.IPPROTO_TCP
            assert sock.getsockopt(tcp, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(tcp, socket.TCP_KEEPIDLE) == 7
            assert sock.getsockopt(tcp, socket.TCP_KEEPINTVL) == 3
            assert sock.getsockopt(tcp, socket.TCP_KEEPCNT) == 2
            assert sock.getsockopt(tcp, socket.TCP_USER_TIMEOUT) == 1500
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 100_000
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 120_000


async def test_a_loop_that_ends_with_open_connections_leaves_no_thread(connect):
    async def abandon():
        listener = await TcpTransport().listen(LOCAL, limits=Limits())
        near, far = await asyncio.gather(connect(str(listener.address)), listener.accept())
        near.abort()
        far.abort()
        await listener.close()

    await asyncio.to_thread(asyncio.run, abandon())


async def test_a_thread_that_cannot_start_leaves_no_lane(listener, connect, monkeypatch):
    """The lanes made before it are failed, the sockets of those after it closed."""
    start, started = threading.Thread.start, []

    def refuse(thread):
        if thread.name.startswith("receive tcp://127"):
            started.append(thread)
            if len(started) == 2:
                raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LinkError, match="can't start new thread"):
        await connect(str(listener.address), lanes=4)
    monkeypatch.undo()
    await asyncio.to_thread(started[0].join, 10)
    assert not started[0].is_alive()
    far = await listener.accept()
    for lane in far.lanes:
        with pytest.raises(ConnectionLost):
            await lane.receive()
    await far.close()
