"""Messages are taken whatever was called in between."""

import asyncio
import time

import pytest
import zmq

from vmferry.errors import ConnectionLost
from vmferry_transports.zeromq.options import ZeromqOptions
from vmferry_transports.zeromq.port import Station


@pytest.fixture
async def station():
    station = Station(ZeromqOptions())
    yield station
    station.end(0)
    await station.ended()


@pytest.mark.parametrize("large", [False, True])
async def test_a_message_is_taken_although_a_call_that_failed_has_seen_its_edge(station, large):
    """Any call looks into the socket's mailbox, and the descriptor tells of nothing twice."""
    came = asyncio.Event()
    sock = station.socket(zmq.ROUTER, 1 << 20)
    sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
    port = sock.bind_to_random_port("tcp://127.0.0.1")
    router = station.add(sock, lambda parts: came.set())
    peer = station.socket(zmq.DEALER, 1 << 20)
    peer.connect(f"tcp://127.0.0.1:{port}")
    peer.send(b"hello")
    time.sleep(0.5)  # noqa: ASYNC251  the loop must not see it before the call below

    with pytest.raises(ConnectionLost, match="the peer is gone"):
        if large:
            router.send_large([b"nobody"], memoryview(bytes(1 << 20)))
        else:
            router.send([b"nobody", b"reset"])

    async with asyncio.timeout(20):
        await came.wait()
