"""Hostile peers of a TCP listener: they get nowhere, cost little, and hold up nobody."""

import asyncio
import contextlib
import os
import random
import struct
import threading

import msgspec
import psutil
import pytest
import trustme

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost, ProtocolError
from vmferry_transports.tcp import TcpOptions, TcpTransport
from vmferry_transports.tcp.frames import END, data_header
from vmferry_transports.tcp.greeting import GREETING_SIZE, Greeting

EFFORT = int(os.environ.get("VMFERRY_EFFORT", "1"))
"""How many times the usual number of examples."""

LOCAL = Address.parse("tcp://127.0.0.1")
PAYLOAD = 64 << 10


class Meter:
    """Gives payload buffers and notes the largest."""

    largest = 0

    def __call__(self, size):
        self.largest = max(self.largest, size)
        return memoryview(bytearray(size))


class Target:
    """A listener whose owner accepts and reads whatever comes."""

    def __init__(self, options):
        self.options, self.meter, self.frames = options, Meter(), 0
        self.limits = Limits(head=4096, payload=PAYLOAD, lanes=8, allocate=self.meter)

    async def __aenter__(self):
        self.listener = await TcpTransport(self.options).listen(LOCAL, limits=self.limits)
        self.port = self.listener.address.port
        self.accepting = asyncio.create_task(self.accept())
        return self

    async def __aexit__(self, *_):
        await self.listener.close()
        await asyncio.wait([self.accepting])

    async def accept(self):
        async with asyncio.TaskGroup() as group:
            with contextlib.suppress(ConnectionLost):
                while True:
                    group.create_task(self.read(await self.listener.accept()))

    async def read(self, connection):
        for lane in connection.lanes:
            with contextlib.suppress(ConnectionLost, ProtocolError, TimeoutError):
                async with asyncio.timeout(5):
                    while await lane.receive() is not None:
                        self.frames += 1
        connection.abort()
        await connection.close()

    async def still_works(self):
        patient = msgspec.structs.replace(self.options, handshake_timeout=60)
        near = await TcpTransport(patient).connect(self.listener.address, lanes=2, limits=Limits())
        before = self.frames
        for lane in near.lanes:
            await lane.send(b"fine", bytes(1000))
        await near.close()
        await until(lambda: self.frames >= before + 2)


async def until(holds):
    for _ in range(6000):
        if holds():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not come about within 60 s")


async def attack(port, data, *, piece=None):
    """Send ``data``, in pieces if asked for, read what comes back, hang up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(OSError):
        for start in range(0, len(data), piece or len(data) or 1):
            writer.write(data[start : start + (piece or len(data))])
            await writer.drain()
            if piece:
                await asyncio.sleep(0)
        writer.write_eof()
        async with asyncio.timeout(30):
            await reader.read()
    await hang_up(writer)


async def hang_up(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def sessions(chance):
    """Both lanes of a session, with frames of which some are damaged."""
    session = chance.randbytes(16)
    return [
        Greeting(session=session, lane=lane, lanes=2).encode() + frames(chance) for lane in (0, 1)
    ]


def frames(chance):
    data = b""
    for _ in range(chance.randrange(6)):
        head, payload = chance.randrange(200), chance.choice([0, 1, 5000, PAYLOAD])
        data += data_header(head, payload) + chance.randbytes(head + payload)
    damage = chance.randrange(7)
    if damage == 0:
        data += chance.randbytes(chance.randrange(100))
    elif damage == 1:
        data += data_header(chance.choice([4097, 1 << 31]), 0)
    elif damage == 2:
        data += data_header(0, chance.choice([PAYLOAD + 1, 0xFFFFFFFF]))
    elif damage == 3:
        data = data[: chance.randrange(len(data) + 1)]
    elif damage == 4 and data:
        at = chance.randrange(min(len(data), 40))
        data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
    elif damage == 5:
        data += END + chance.randbytes(50)
    else:
        data += END
    return data


@pytest.fixture
def nothing_left():
    process = psutil.Process()
    descriptors = process.num_fds()
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("send tcp:", "receive tcp:")):
            thread.join(5)
            assert not thread.is_alive(), thread.name
    assert process.num_fds() <= descriptors + 3


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", range(8 * EFFORT))
async def test_sessions_with_damaged_frames(seed):
    chance = random.Random(seed)
    async with Target(TcpOptions(handshake_timeout=2)) as target:
        for _ in range(10):
            lanes = [data for _ in range(3) for data in sessions(chance)]
            piece = chance.choice([None, None, 1000])
            await asyncio.gather(*(attack(target.port, data, piece=piece) for data in lanes))
        await target.still_works()
        assert 0 < target.meter.largest <= PAYLOAD


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("seed", range(4 * EFFORT))
async def test_greetings_that_are_random_damaged_or_cut(seed):
    chance = random.Random(seed)
    good = Greeting(session=bytes(16), lane=0, lanes=2).encode()
    async with Target(TcpOptions(handshake_timeout=2)) as target:
        for _ in range(5):
            at = chance.randrange(GREETING_SIZE)
            await asyncio.gather(
                attack(target.port, chance.randbytes(chance.randrange(200))),
                attack(target.port, good[:at]),
                attack(target.port, good[:at] + chance.randbytes(1) + good[at + 1 :]),
                attack(target.port, b"\x16\x03\x01" + chance.randbytes(300)),
                attack(target.port, good[:26] + struct.pack("!HHH", 0, 0, 0xFFFF)),
            )
        await target.still_works()
        assert target.meter.largest <= 1000


@pytest.mark.usefixtures("nothing_left")
async def test_noise_at_a_tls_listener(tmp_path):
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    leaf.private_key_and_cert_chain_pem.write_to_path(tmp_path / "leaf.pem")
    file = str(tmp_path / "leaf.pem")
    options = TcpOptions(
        tls_cert=file, tls_key=file, tls_ca=str(tmp_path / "ca.pem"), handshake_timeout=2
    )
    chance = random.Random(1)
    async with Target(options) as target:
        for _ in range(10):
            record = b"\x16\x03\x01" + struct.pack("!H", chance.randrange(1 << 14))
            await asyncio.gather(
                attack(target.port, chance.randbytes(500)),
                attack(target.port, record + chance.randbytes(2000)),
                attack(target.port, b"vmferry\0" + bytes(24)),
            )
        await target.still_works()


@pytest.mark.usefixtures("nothing_left")
async def test_drip_feeders_are_dropped_and_hold_up_nobody():
    """300 peers, each sending a byte of its greeting now and then."""
    good = Greeting(session=os.urandom(16), lane=0, lanes=2).encode()
    done = asyncio.Event()

    async def drip(port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            for byte in good:
                writer.write(bytes([byte]))
                await writer.drain()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await done.wait()
                        break
        await hang_up(writer)

    async with Target(TcpOptions(handshake_timeout=4)) as target:
        drips = [asyncio.create_task(drip(target.port)) for _ in range(300)]
        await asyncio.sleep(0.3)
        async with asyncio.timeout(60):
            await target.still_works()
        await until(lambda: not target.listener._greeting)
        done.set()
        await asyncio.gather(*drips)


@pytest.mark.usefixtures("nothing_left")
async def test_a_flood_that_nobody_reads_costs_bounded_memory():
    """A peer sends 64 MiB in small and large frames to an owner that does not receive."""
    limits = Limits(head=4096, payload=PAYLOAD, lanes=2)
    listener = await TcpTransport(TcpOptions(receive_buffer=1 << 20)).listen(LOCAL, limits=limits)
    streams = []
    for lane in (0, 1):
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.address.port)
        writer.write(Greeting(session=bytes(16), lane=lane, lanes=2).encode())
        await reader.readexactly(GREETING_SIZE)
        streams.append(writer)
    connection = await listener.accept()
    memory = psutil.Process().memory_info().rss
    small, large = data_header(10, 0) + bytes(10), data_header(0, PAYLOAD) + bytes(PAYLOAD)
    for writer, block in zip(streams, (small * 50_000, large * 16), strict=True):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                for _ in range(32):
                    writer.write(block)
                    await writer.drain()
                pytest.fail("32 MiB were taken although nobody received")
    grown = psutil.Process().memory_info().rss - memory
    assert grown < 24 << 20
    connection.abort()
    await connection.close()
    for writer in streams:
        writer.transport.abort()
        await hang_up(writer)
    await listener.close()
