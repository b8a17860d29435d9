"""Messages and greetings of the ``rdma`` transport, of every shape."""

import asyncio
import contextlib
import os
import random
import socket

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, LinkError, ProtocolError
from vmferry_transports.rdma import RdmaOptions, RdmaTransport
from vmferry_transports.rdma.frames import INLINE, Kind, Message
from vmferry_transports.rdma.greeting import Endpoint, Greeting
from vmferry_transports.rdma.providers.base import Completion, Opcode
from vmferry_transports.rdma.providers.shared_memory import SharedMemory

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""

LOCAL = Address.parse("rdma://127.0.0.1")
LIMITS = Limits(head=4096, payload=64 << 10, lanes=8)
U32 = st.integers(0, (1 << 32) - 1)


@given(st.binary(max_size=100))
def test_a_message_is_understood_or_refused(data):
    try:
        found = Message.decode(memoryview(data), LIMITS)
    except ProtocolError:
        return
    assert found.encode() == data[: Message.SIZE]


@given(st.sampled_from(Kind), st.integers(0, 5000), st.integers(0, 70_000), U32, U32)
def test_messages_come_back_as_they_were(kind, head, payload, receives, slots):
    message = Message(kind, head, payload, receives, slots)
    data = message.encode() + bytes(message.inline)
    assert message.inline in (0, head, head + payload)
    assert message.inline <= INLINE
    try:
        found = Message.decode(memoryview(data), LIMITS)
    except ProtocolError:
        assert head > LIMITS.head or payload > LIMITS.payload or kind is not Kind.DATA
        return
    assert found == message


@given(st.binary(min_size=36, max_size=36))
def test_a_greeting_is_understood_or_refused(data):
    with contextlib.suppress(LinkError):
        found = Greeting.decode(data)
        assert found.lanes <= 64
        assert found.refusal or found.slot * found.slots <= 256 << 20


@given(st.binary(min_size=20, max_size=20), st.lists(st.tuples(st.integers(0, 47), U32)))
def test_a_damaged_greeting_allocates_little(private, changes):
    endpoint = Endpoint(0, 1, 16384, private)
    greeting = Greeting(provider="x", slot=4096, slots=4, lanes=2, endpoints=[endpoint] * 2)
    data = bytearray(greeting.encode())
    for place, value in changes:
        data[place] = value & 0xFF
    with contextlib.suppress(LinkError):
        found = Greeting.decode(bytes(data[: Greeting.START]))
        rest = bytes(data[Greeting.START :])
        assert found.rest <= 64 * 64
        if found.rest == len(rest):
            found.with_endpoints(rest)


@pytest.mark.parametrize("seed", range(10 * EFFORT))
async def test_a_listener_outlives_every_greeting(seed):
    rng = random.Random(seed)
    listener = await RdmaTransport().listen(LOCAL, limits=LIMITS)
    before = psutil.Process().num_fds()
    greeting = Greeting(provider="shared_memory", slot=4096, slots=4, lanes=2)
    for _ in range(10):
        data = bytearray(greeting.encode() + bytes(rng.randrange(200)))
        for _ in range(rng.randrange(3)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        sock = await SharedMemory().connect(listener.address)
        socket.send_fds(sock, [bytes(data)], [0] * rng.randrange(6))
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(120):
                while await asyncio.get_running_loop().sock_recv(sock, 4096):
                    pass
        sock.close()
    near = await RdmaTransport().connect(listener.address, lanes=2, limits=LIMITS)
    far = await listener.accept()
    await near.lanes[1].send(b"hello")
    assert bytes((await far.lanes[1].receive()).head) == b"hello"
    for end in (near, far):
        end.abort()
        await end.close()
    assert psutil.Process().num_fds() <= before
    await listener.close()


@pytest.mark.parametrize("seed", range(20 * EFFORT))
async def test_a_lane_outlives_no_nonsense(seed):
    """Random wire messages: frames that make sense are given, then the connection is lost."""
    rng = random.Random(seed)
    options = RdmaOptions(slot=4096, slots=4)
    listener = await RdmaTransport(options).listen(LOCAL, limits=LIMITS)
    near = await RdmaTransport(options).connect(listener.address, lanes=2, limits=LIMITS)
    far = await listener.accept()
    queue, done = near.lanes[1]._queue, Completion(Opcode.WRITE)
    for _ in range(rng.randrange(1, 20)):
        message = Message(Kind.DATA, rng.randrange(9), rng.choice([0, 9, 9000])).encode()
        data = b"\x01\0\0\0" + bytes(4) + len(message).to_bytes(4, "big") + message
        if rng.random() < 0.5:
            data = b"\x02\0\0\0" + bytes([0, 0, 0, rng.randrange(5)]) + bytes([0, 0, 16, 0])
        if rng.random() < 0.3:
            place = rng.randrange(len(data))
            data = data[:place] + rng.randbytes(1) + data[place + 1 :]
        queue._put(data, done)
    queue._put(b"\0", done)
    with pytest.raises((ConnectionLost, ProtocolError)):
        async with asyncio.timeout(120):
            while await far.lanes[1].receive() is not None:
                pass
    for end in (near, far):
        end.abort()
        await end.close()
    await listener.close()
