import asyncio
import contextlib
import threading

import pytest

from vmferry.api.transport import Address, Limits
from vmferry_transports.tcp import TcpOptions, TcpTransport


@pytest.fixture(autouse=True)
def no_lane_threads_left():
    yield
    for thread in threading.enumerate():
        if thread.name.startswith(("send tcp:", "receive tcp:")):
            thread.join(5)
            assert not thread.is_alive(), thread.name


@contextlib.asynccontextmanager
async def connection(here=None, there=None, *, lanes=2, limits=None, host="127.0.0.1"):
    """Both ends of a connection: options of the connecting and of the listening end."""
    limits = limits or Limits()
    listener = await TcpTransport(there or TcpOptions()).listen(
        Address.parse(f"tcp://{host}"), limits=limits
    )
    ends = []
    try:
        transport = TcpTransport(here or TcpOptions())
        ends.append(await transport.connect(listener.address, lanes=lanes, limits=limits))
        async with asyncio.timeout(120):
            ends.append(await listener.accept())
        yield ends
    finally:
        for end in ends:
            end.abort()
            await end.close()
        await listener.close()


@pytest.fixture
def connect_pair():
    return connection
