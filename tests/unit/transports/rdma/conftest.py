import asyncio
import contextlib

import pytest

from vmferry.api.transport import Address, Limits
from vmferry_transports.rdma import RdmaOptions, RdmaTransport

LOCAL = Address.parse("rdma://127.0.0.1")


@contextlib.asynccontextmanager
async def connection(here=None, there=None, *, lanes=2, limits=None):
    """Both ends of a connection."""
    limits = limits or Limits()
    listener = await RdmaTransport(there or RdmaOptions()).listen(LOCAL, limits=limits)
    ends = []
    try:
        transport = RdmaTransport(here or RdmaOptions())
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
