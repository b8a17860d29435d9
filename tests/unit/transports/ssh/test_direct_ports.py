"""The ports that an agent opens for direct connections."""

import contextlib
import socket

import pytest

from vmferry.api.transport import Address, Limits
from vmferry.errors import InputError
from vmferry_transports.ssh import SshOptions, SshTransport
from vmferry_transports.ssh.certificates import OneTime
from vmferry_transports.ssh.exchange import Ask

ASK = Ask(session="0f" * 16, certificate=OneTime().pem)


@contextlib.asynccontextmanager
async def agent(folder, **options):
    address = Address.parse(f"ssh://{folder}/agent")
    listener = await SshTransport(SshOptions(**options)).listen(address, limits=Limits())
    try:
        yield listener
    finally:
        await listener.close()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_port_is_open_until_all_lanes_are_there(tmp_path):
    async with agent(tmp_path) as listener:
        answer = await listener._answer(ASK, user="root")
        assert listens(answer.port)
        assert "BEGIN CERTIFICATE" in answer.certificate
        listener._shut_direct(bytes.fromhex(ASK.session))
        assert not listens(answer.port)
        again = await listener._answer(ASK, user="root")
    assert not listens(again.port)


async def test_one_of_the_named_ports_is_taken(tmp_path):
    with socket.socket() as reserved:  # nobody else gets it; who also reuses it may listen
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        async with agent(tmp_path, direct_ports=str(port)) as listener:
            assert (await listener._answer(ASK, user="root")).port == port
            other = Ask(session="aa" * 16, certificate=ASK.certificate)
            refused = await listener._answer(other, user="root")
            assert not refused.port
            assert refused.refused.startswith("direct_ports: ")


async def test_a_wish_without_a_certificate_is_refused(tmp_path):
    async with agent(tmp_path) as listener:
        answer = await listener._answer(Ask(session="0f" * 16, certificate="x"), user="root")
        assert not answer.port
        assert answer.refused


async def test_an_agent_that_wants_none(tmp_path):
    async with agent(tmp_path, bulk="ssh") as listener:
        assert "bulk=ssh" in (await listener._answer(ASK, user="root")).refused


async def test_only_so_many_are_open_at_a_time(tmp_path):
    async with agent(tmp_path) as listener:
        for number in range(16):
            ask = Ask(session=f"{number:032x}", certificate=ASK.certificate)
            assert (await listener._answer(ask, user="root")).port
        assert "too many" in (await listener._answer(ASK, user="root")).refused


@pytest.mark.parametrize("ports", ["2-1", "70000", "1-99999"])
async def test_ports_that_cannot_be_right(tmp_path, ports):
    with pytest.raises(InputError, match="write two ports, the lower first"):
        async with agent(tmp_path, direct_ports=ports):
            pass
