import asyncio
import contextlib

import pytest

from vmferry.api.transport import Address, Limits
from vmferry_transports.tcp import TcpOptions, TcpTransport
from vmferry_transports.tcp.greeting import GREETING_SIZE, Greeting


async def listen(seconds):
    """A listener that waits so long for the rest of a group."""
    return await TcpTransport(TcpOptions(handshake_timeout=seconds)).listen(
        Address.parse("tcp://127.0.0.1"), limits=Limits(payload=1 << 20, lanes=4)
    )


@pytest.fixture
async def listener():
    made = await listen(2)
    yield made
    await made.close()


@pytest.fixture
async def patient_listener():
    made = await listen(600)
    yield made
    await made.close()


async def greet(listener, lane=0, lanes=2, session=bytes(16), **more):
    """Greet by hand; return the streams and the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.address.port)
    writer.write(Greeting(session=session, lane=lane, lanes=lanes, **more).encode())
    return reader, writer, Greeting.decode(await reader.readexactly(GREETING_SIZE))


@pytest.fixture
def raw():
    return greet


async def close_all(*writers):
    for writer in writers:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
def hang_up():
    return close_all


async def connect_to(url, lanes=2, **options):
    transport = TcpTransport(TcpOptions(**options))
    return await transport.connect(Address.parse(url), lanes=lanes, limits=Limits())


@pytest.fixture
def connect():
    return connect_to


async def accept_by_hand(listener, session=bytes(16)):
    """A connection whose other end is two raw sockets."""
    streams = [await greet(listener, lane=lane, session=session) for lane in (0, 1)]
    return await listener.accept(), streams


@pytest.fixture
def accepted():
    return accept_by_hand


async def see_reset(stream):
    """The peer neither reads nor takes anything any more."""
    reader, writer, _ = stream
    with pytest.raises(ConnectionError):
        assert await reader.read() == b""
        for _ in range(3):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.fixture
def expect_reset():
    return see_reset
