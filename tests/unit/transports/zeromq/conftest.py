import asyncio
import contextlib
import threading

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import ConnectionLost
from vmferry_transports.zeromq import ZeromqOptions, ZeromqTransport, keys

LOCAL = Address.parse("zeromq://127.0.0.1")


@pytest.fixture(autouse=True)
def no_threads_left():
    yield
    for thread in threading.enumerate():
        if thread.name == "zeromq end":
            thread.join(10)
            assert not thread.is_alive()


@contextlib.asynccontextmanager
async def connection(here=None, there=None, *, lanes=2, limits=None, through=None):
    """Both ends of a connection; ``through`` changes the address on the way."""
    limits = limits or Limits()
    listener = await ZeromqTransport(there or ZeromqOptions()).listen(LOCAL, limits=limits)
    ends = []
    try:
        address = listener.address if through is None else await through(listener.address)
        transport = ZeromqTransport(here or ZeromqOptions())
        ends.append(await transport.connect(address, lanes=lanes, limits=limits))
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


@pytest.fixture
def lost():
    return _lost


async def _lost(call):
    async with asyncio.timeout(120):
        with pytest.raises(ConnectionLost) as caught:
            await call
    return str(caught.value)


class Keys:
    """Key pairs of a listener and of hosts that it knows, or not."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "allowed").mkdir()
        self.public, self.secret = keys.make(folder, "listener")

    def listener(self, **more):
        allow = str(self.folder / "allowed")
        return ZeromqOptions(curve_key=str(self.secret), curve_allow=allow, **more)

    def host(self, name, *, allowed=True, server=None, **more):
        """Options of a connecting host."""
        where = self.folder / "allowed" if allowed else self.folder
        _, secret = keys.make(where, name)
        server = str(server or self.public)
        return ZeromqOptions(curve_key=str(secret), curve_server_key=server, **more)


@pytest.fixture
def curve(tmp_path):
    return Keys(tmp_path)
