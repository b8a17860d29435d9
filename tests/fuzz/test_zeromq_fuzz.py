"""Hostile peers of a ZeroMQ listener, and messages of every shape."""

import asyncio
import contextlib
import os
import random
import socket

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, LinkError, ProtocolError
from vmferry_transports.zeromq import ZeromqTransport
from vmferry_transports.zeromq.lane import LaneState
from vmferry_transports.zeromq.messages import Greeting, Header, Kind

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""

LOCAL = Address.parse("zeromq://127.0.0.1")
LIMITS = Limits(head=4096, payload=64 << 10, lanes=8)


@given(st.binary(max_size=200), st.none() | st.integers(0, 1 << 20))
def test_a_message_is_understood_or_refused(data, payload):
    try:
        found = Header.decode(memoryview(data), payload, LIMITS)
    except ProtocolError:
        return
    assert found.head + Header.SIZE == len(data)
    assert found.payload == (payload or 0)


@given(
    st.sampled_from(Kind),
    st.integers(0, 5000),
    st.integers(0, 70_000),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 64) - 1),
)
def test_no_header_exceeds_the_limits(kind, head, payload, number, consumed):
    data = Header(kind, head, payload, number, consumed).encode() + bytes(head)
    try:
        found = Header.decode(memoryview(data), payload or None, LIMITS)
    except ProtocolError:
        return
    assert found == Header(kind, head, payload, number, consumed)
    assert found.kind is Kind.DATA or not found.payload
    if found.kind is Kind.DATA:
        assert found.head <= LIMITS.head
        assert found.payload <= LIMITS.payload


@given(st.binary(min_size=28, max_size=28))
def test_greetings_come_back_as_they_were(data):
    with contextlib.suppress(LinkError):
        body = memoryview(data)
        greeting = Greeting.decode(body)
        greeting.check_answer(Greeting.decode(memoryview(greeting.encode(Kind.HELLO))[-28:]))
    assert greeting.encode(Kind.HELLO)[Header.SIZE :] == data


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 100_000), st.booleans())))
def test_a_peer_never_has_more_than_window_and_frame_waiting(messages):
    """Whatever numbers it sends: too much, and what it takes back, ends the lane."""
    state = LaneState(64 << 10)
    for number, (skip, size, read) in enumerate(messages):
        header = Header(Kind.DATA, 0, size, number + skip // 3, 0)
        try:
            state.arrived(header)
        except (ProtocolError, ConnectionLost):
            break
        if read:
            state.consumed(_Frame(size))
            state.header(Kind.CREDIT)
        assert state.waiting <= (64 << 10) + 100_000


class _Frame:
    def __init__(self, size):
        self.head, self.payload = b"", bytes(size)


class Peer:
    """A DEALER in other hands."""

    def __init__(self, port):
        self.context = zmq.Context()
        self.sock = self.context.socket(zmq.DEALER)
        self.sock.setsockopt(zmq.RCVTIMEO, 20_000)
        self.sock.connect(f"tcp://127.0.0.1:{port}")

    def close(self):
        self.sock.close(0)
        self.context.term()


def hello(lane=0, lanes=2, session=bytes(16), window=1 << 20):
    return Greeting(session=session, lane=lane, lanes=lanes, window=window).encode(Kind.HELLO)


@pytest.fixture
async def listener():
    listener = await ZeromqTransport().listen(LOCAL, limits=LIMITS)
    yield listener
    await works(listener)
    await listener.close()


async def works(listener):
    """Somebody else is served as if nothing had been."""
    async with asyncio.timeout(100):
        near = await ZeromqTransport().connect(listener.address, lanes=2, limits=LIMITS)
        far = None
        while far is None:
            far = await listener.accept()
            await near.lanes[1].send(b"hello")
            try:
                async with asyncio.timeout(120):
                    frame = await far.lanes[1].receive()
                assert bytes(frame.head) == b"hello"
            except (ConnectionLost, ProtocolError, TimeoutError):
                far.abort()
                await far.close()
                far = None
    for end in (near, far):
        end.abort()
        await end.close()


@pytest.mark.parametrize("seed", range(8 * EFFORT))
async def test_noise_is_answered_by_reset(listener, seed):
    rng = random.Random(seed)
    peer = Peer(listener.address.port)
    for _ in range(50):
        parts = [rng.randbytes(rng.choice([0, 1, 28, 62, 500])) for _ in range(rng.randint(1, 4))]
        peer.sock.send_multipart(parts)
    answer = await asyncio.to_thread(peer.sock.recv)
    assert answer[2] == Kind.RESET
    peer.close()


@pytest.mark.parametrize("seed", range(8 * EFFORT))
async def test_a_damaged_greeting_or_frame(listener, seed):
    rng = random.Random(seed)
    peers = [Peer(listener.address.port) for _ in range(2)]
    for lane, peer in enumerate(peers):
        data = bytearray(hello(lane, session=rng.randbytes(16)))
        if rng.random() < 0.5:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        peer.sock.send(bytes(data))
        for _ in range(20):
            first = bytearray(Header(Kind.DATA, 3, 100).encode() + b"abc")
            first[rng.randrange(len(first))] ^= 1 << rng.randrange(8)
            peer.sock.send_multipart([bytes(first), bytes(100)])
    for peer in peers:
        await asyncio.to_thread(peer.sock.recv)
        peer.close()


async def test_a_peer_that_ignores_credits_is_ended(listener):
    peers = [Peer(listener.address.port) for _ in range(2)]
    for lane, peer in enumerate(peers):
        peer.sock.send(hello(lane))
        await asyncio.to_thread(peer.sock.recv)
    far = await listener.accept()
    for number in range(400):
        first = Header(Kind.DATA, 0, 60_000, number).encode()
        peers[1].sock.send_multipart([first, bytes(60_000)])
    with pytest.raises(ProtocolError, match="for which there was no room"):
        async with asyncio.timeout(100):
            while await asyncio.sleep(0.2, True):
                if far.lanes[1].gone.done():
                    while True:
                        await far.lanes[1].receive()
    far.abort()
    await far.close()
    for peer in peers:
        peer.close()


async def test_a_part_larger_than_the_limits_is_not_taken(listener, monkeypatch):
    """libzmq itself ends the stream before it allocates (ZMQ_MAXMSGSIZE)."""
    port, sizes = listener._hub._port, []
    arrived = port._arrived

    def note(parts):
        sizes.extend(len(part.buffer) for part in parts)
        arrived(parts)

    monkeypatch.setattr(port, "_arrived", note)
    peer = Peer(listener.address.port)
    peer.sock.send(hello())
    answer = await asyncio.to_thread(peer.sock.recv)
    assert answer[2] == Kind.WELCOME
    events = peer.sock.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    events.setsockopt(zmq.RCVTIMEO, 20_000)
    peer.sock.send_multipart([Header(Kind.DATA, 0, 1 << 20).encode(), bytes(1 << 20)])
    try:
        await asyncio.to_thread(events.recv_multipart)
    finally:
        peer.sock.disable_monitor()
        events.close(0)
        peer.close()
    assert max(sizes) <= LIMITS.payload


@pytest.mark.parametrize(
    "data",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, bytes(10_000), b"\xff" + bytes(8) + b"\x7f"],
)
async def test_strangers_that_speak_no_zeromq(listener, data):
    with socket.create_connection(("127.0.0.1", listener.address.port)) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(data)
        await works(listener)


async def test_many_sessions_that_are_never_complete(listener):
    peer = Peer(listener.address.port)
    for number in range(1200):
        peer2 = hello(session=number.to_bytes(16, "big"))
        peer.sock.send(peer2)
    answer = await asyncio.to_thread(peer.sock.recv)
    assert answer[2] == Kind.WELCOME
    peer.close()
