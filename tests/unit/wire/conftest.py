from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from vmferry.api import Address, Connection
from vmferry.wire.link import LIMITS
from vmferry_transports.memory import MemoryTransport


@pytest.fixture
async def connections(
    request: pytest.FixtureRequest,
) -> AsyncIterator[tuple[Connection, Connection]]:
    transport = MemoryTransport()
    address = Address.parse("memory://link-test")
    listener = await transport.listen(address, limits=LIMITS)
    both = await asyncio.gather(
        transport.connect(address, lanes=getattr(request, "param", 4), limits=LIMITS),
        listener.accept(),
    )
    yield both[0], both[1]
    for connection in both:
        connection.abort()
    await listener.close()
