"""Connecting and listening: what can be wrong, and what is said about it."""

import asyncio
import socket

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError, LinkError, LinkTimeout
from vmferry_transports.tcp import TcpOptions, TcpTransport

LOCAL = Address.parse("tcp://127.0.0.1")


async def test_refused(connect):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(LinkError, match="connection refused"):
            await connect(f"tcp://127.0.0.1:{taken.getsockname()[1]}")


async def test_name_not_found(connect):
    with pytest.raises(LinkError, match=r"no address found for 'nowhere\.invalid'"):
        await connect("tcp://nowhere.invalid:7420")


async def test_no_answer_to_the_greeting(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(LinkTimeout, match="handshake_timeout"):
            await connect(url, handshake_timeout=0.05)


async def test_something_else_answers(hang_up, connect):
    async def http(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nServer: something\r\n\r\n")
        await hang_up(writer)

    async with await asyncio.start_server(http, "127.0.0.1", 0) as server:
        with pytest.raises(LinkError, match="no vmferry greeting; is the port right"):
            await connect(f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}")


@pytest.mark.parametrize("url", ["tcp://host", "tcp://:7420", "tcp://host:1/x", "tcp://host:1?a=b"])
async def test_addresses_that_cannot_be_right(url, connect):
    with pytest.raises(InputError, match="tcp://host"):
        await connect(url)


@pytest.mark.parametrize("lanes", [1, 65])
async def test_lane_counts_that_cannot_be_right(lanes, connect):
    with pytest.raises(InputError, match="2 to 64"):
        await connect("tcp://127.0.0.1:7420", lanes=lanes)


@pytest.mark.parametrize("url", ["tcp://0.0.0.0", "tcp://", "tcp://[::]"])
async def test_listening_to_others_without_tls_is_refused(url):
    with pytest.raises(InputError, match="insecure=true"):
        await TcpTransport().listen(Address.parse(url), limits=Limits())


async def test_listening_to_others_when_insisted_on(connect):
    transport = TcpTransport(TcpOptions(insecure=True))
    listener = await transport.listen(Address.parse("tcp://"), limits=Limits())
    near = await connect(f"tcp://127.0.0.1:{listener.address.port}")
    far = await listener.accept()
    await asyncio.gather(near.close(), far.close())
    await listener.close()


async def test_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{url}: Address already in use"):
            await TcpTransport().listen(Address.parse(url), limits=Limits())


async def test_more_lanes_than_the_listener_takes(listener, caplog, connect):
    with pytest.raises(LinkError, match="does not take that many lanes"):
        await connect(str(listener.address), lanes=5)
    await asyncio.sleep(0.05)
    assert "refused: lanes" in caplog.text
