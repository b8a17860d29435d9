"""Beginning and end of listeners and connections of the ``zeromq`` transport."""

import asyncio
import gc
import os
import threading

import psutil
import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import LinkError
from vmferry_transports.zeromq import ZeromqTransport

LOCAL = Address.parse("zeromq://127.0.0.1")
MIB = 1 << 20


class TestLife:
    async def test_a_closed_listener_greets_nobody(self, connect_pair):
        listener = await ZeromqTransport().listen(LOCAL, limits=Limits())
        near = await ZeromqTransport().connect(listener.address, lanes=2, limits=Limits())
        far = await listener.accept()
        await listener.close()
        with pytest.raises(LinkError, match="takes no more connections"):
            await ZeromqTransport().connect(listener.address, lanes=2, limits=Limits())
        await asyncio.gather(near.close(), far.close())
        with pytest.raises(LinkError, match="nobody listens there"):
            await ZeromqTransport().connect(listener.address, lanes=2, limits=Limits())

    async def test_connections_nobody_accepted_are_aborted(self, lost):
        listener = await ZeromqTransport().listen(LOCAL, limits=Limits())
        near = await ZeromqTransport().connect(listener.address, lanes=2, limits=Limits())
        await listener.close()
        await lost(near.lanes[0].receive())
        await near.close()

    async def test_a_second_receive_at_a_time_is_an_error(self, connect_pair):
        async with connect_pair() as (near, _):
            waiting = asyncio.ensure_future(near.lanes[0].receive())
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="while another call waits"):
                await near.lanes[0].receive()
            waiting.cancel()

    async def test_nothing_is_left_behind(self, connect_pair):
        async with connect_pair() as (near, far):  # the first brings pyzmq's own thread
            await near.lanes[1].send(b"", bytes(MIB))
            await far.lanes[1].receive()
        before = counts()
        for _ in range(5):
            async with connect_pair(lanes=4) as (near, far):
                await near.lanes[1].send(b"", bytes(MIB))
                await far.lanes[1].receive()
        assert await settles(lambda: counts() <= before), (counts(), before)

    def test_a_loop_that_ends_after_an_abort_leaves_nothing(self):
        async def abandon():
            listener = await ZeromqTransport().listen(LOCAL, limits=Limits())
            near = await ZeromqTransport().connect(listener.address, lanes=2, limits=Limits())
            far = await listener.accept()
            near.abort()
            far.abort()
            await listener.close()

        asyncio.run(abandon())
        gc.collect()

    async def test_a_connect_that_is_cancelled_leaves_nothing(self):
        listener = await ZeromqTransport().listen(LOCAL, limits=Limits())
        for turns in range(12):
            transport = ZeromqTransport()
            connecting = asyncio.ensure_future(
                transport.connect(listener.address, lanes=3, limits=Limits())
            )
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            connecting.cancel()
            await asyncio.wait([connecting])
            if not connecting.cancelled():
                connecting.result().abort()
        near = await ZeromqTransport().connect(listener.address, lanes=2, limits=Limits())
        near.abort()
        await near.close()
        await listener.close()
        gc.collect()


async def settles(true):
    """Wait for something that other threads bring about."""
    for _ in range(200):
        if true():
            return True
        await asyncio.sleep(0.05)
    return False


def counts():
    process = psutil.Process(os.getpid())
    pool = [thread for thread in threading.enumerate() if thread.name.startswith("asyncio_")]
    return process.num_fds(), process.num_threads() - len(pool)
