"""Where the ``zeromq`` transport listens and connects."""

import asyncio
import re

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError, LinkError, LinkTimeout
from vmferry_transports.zeromq import ZeromqOptions, ZeromqTransport

LOCAL = Address.parse("zeromq://127.0.0.1")


class TestAddresses:
    @pytest.mark.parametrize(
        "url", ["zeromq://127.0.0.1", "zeromq://:7420", "tcp://h:1", "zeromq://h:1/x"]
    )
    async def test_where_one_cannot_connect(self, url):
        with pytest.raises(InputError, match=re.escape(url)):
            await ZeromqTransport().connect(Address.parse(url), lanes=2, limits=Limits())

    @pytest.mark.parametrize("lanes", [0, 1, 65])
    async def test_number_of_lanes(self, lanes):
        url = "zeromq://127.0.0.1:1"
        with pytest.raises(InputError, match="2 to 64"):
            await ZeromqTransport().connect(Address.parse(url), lanes=lanes, limits=Limits())

    @pytest.mark.parametrize("host", ["", "0.0.0.0", "[::]"])
    async def test_listening_to_others_needs_curve(self, host):
        with pytest.raises(InputError, match=r"without CURVE .* insecure=true"):
            await ZeromqTransport().listen(Address.parse(f"zeromq://{host}"), limits=Limits())

    async def test_or_accepting_the_risk(self):
        transport = ZeromqTransport(ZeromqOptions(insecure=True))
        listener = await transport.listen(Address.parse("zeromq://0.0.0.0"), limits=Limits())
        await listener.close()

    async def test_a_port_that_is_taken(self):
        listener = await ZeromqTransport().listen(LOCAL, limits=Limits())
        with pytest.raises(InputError, match=r"cannot listen at .* in use"):
            await ZeromqTransport().listen(listener.address, limits=Limits())
        await listener.close()

    async def test_an_unknown_host(self):
        address = Address.parse("zeromq://no-such-host.invalid:7420")
        with pytest.raises(LinkError, match="no address found"):
            await ZeromqTransport().connect(address, lanes=2, limits=Limits())

    async def test_more_lanes_than_the_listener_takes(self):
        listener = await ZeromqTransport().listen(LOCAL, limits=Limits(lanes=3))
        with pytest.raises(LinkError, match="does not take that many lanes"):
            await ZeromqTransport().connect(listener.address, lanes=4, limits=Limits())
        await listener.close()

    async def test_something_else_listens(self):
        async def hang_up(_, writer):
            writer.close()

        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            url = f"zeromq://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(LinkError, match="ended the handshake"):
                await ZeromqTransport().connect(Address.parse(url), lanes=2, limits=Limits())

    async def test_a_listener_that_says_nothing(self):
        ended = asyncio.Event()

        async def wait(_, writer):
            await ended.wait()
            writer.close()

        async with await asyncio.start_server(wait, "127.0.0.1", 0) as server:
            url = f"zeromq://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            transport = ZeromqTransport(ZeromqOptions(connect_timeout=0.5))
            with pytest.raises((LinkTimeout, LinkError), match=r"did not answer|ended the hand"):
                await transport.connect(Address.parse(url), lanes=2, limits=Limits())
            ended.set()
