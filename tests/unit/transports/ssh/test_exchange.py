"""What is said before the greeting, and what a peer may say instead."""

import asyncio
import contextlib
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vmferry.errors import LinkError
from vmferry_transports.ssh.exchange import HEADER, MAGIC, Answer, Ask, Banner, Intro, pack, unpack
from vmferry_transports.ssh.opening import AgentOpening, CallerOpening
from vmferry_transports.tcp.greeting import Greeting


@contextlib.contextmanager
def pair():
    ends = socket.socketpair()
    with ends[0] as here, ends[1] as there:
        here.setblocking(False)
        there.setblocking(False)
        yield here, there


async def handshake(sent):
    with pair() as (here, there):
        opening = CallerOpening(here)
        there.send(sent)
        async with asyncio.timeout(120):
            await opening.handshake()
        return opening.banner


@given(st.binary(max_size=200))
def test_any_line_is_a_banner_or_none(line):
    assert isinstance(Banner.decode(line), Banner | None)


@given(st.binary(max_size=200))
@example(b'{"client":"\xff"}')
def test_any_body_is_a_message_or_an_error(body):
    for kind in (Ask, Answer, Intro):
        with contextlib.suppress(LinkError):
            assert isinstance(unpack(body, kind), kind)


@pytest.mark.parametrize("server", ["", "10.0.0.2", "fe80::1%eth0"])
def test_a_banner_is_read_as_written(server):
    banner = Banner(version=1, release="0.1.0", server=server)
    assert Banner.decode(banner.encode()) == banner


async def test_what_a_shell_prints_is_passed_over():
    banner = await handshake(b"Welcome\r\n\nvmferry-ssh is here\nvmferry-ssh 1 2.0 10.0.0.2\n")
    assert banner.server == "10.0.0.2"


async def test_a_shell_that_prints_for_ever():
    with pytest.raises(LinkError, match=r"no greeting of an agent; see its shell's profile"):
        await handshake(b"noise\n" * 12_000)


async def test_a_line_without_an_end():
    with pytest.raises(LinkError, match="a line that is too long"):
        await handshake(b"x" * 70_000)


async def test_another_version():
    with pytest.raises(LinkError, match=r"version 2 .*vmferry 9\.0.* update the older of the two"):
        await handshake(b"vmferry-ssh 2 9.0\n")


async def answered(sent, ask_answer=None):
    """The greeting that the agent's end makes of ``sent``, and what it sent itself."""

    async def answer(ask):
        return ask_answer

    with pair() as (here, there):
        opening = AgentOpening(here, "0.1.0", "root", answer)
        there.send(sent)
        async with asyncio.timeout(120):
            await opening.handshake()
            greeting = await opening.receive_greeting()
        return greeting, there.recv(65536), opening.intro


GREETING = Greeting(session=bytes(range(16)), lane=0, lanes=3)


async def test_the_agent_introduces_itself():
    greeting, said, intro = await answered(b'{"client":"a","server":"b"}\n' + GREETING.encode())
    assert greeting == GREETING
    assert said == b"vmferry-ssh 1 0.1.0 b\n"
    assert intro.client == "a"


async def test_a_wish_is_answered_before_the_greeting():
    ask = Ask(session="0f" * 16, certificate="PEM")
    sent = b"{}\n" + pack(ask) + GREETING.encode()
    greeting, said, _ = await answered(sent, Answer(port=7, certificate="PEM"))
    assert greeting == GREETING
    assert unpack(said.partition(b"\n")[2][HEADER.size :], Answer).port == 7


@pytest.mark.parametrize(
    ("sent", "text"),
    [
        (b"[]\n", "Intro: "),
        (b"x" * 2000, "a line that is too long"),
        (b"{}\n" + b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n", "no vmferry greeting"),
        (b"{}\n" + HEADER.pack(MAGIC, 1 << 30), "no message of the ssh transport"),
        (b"{}\n" + HEADER.pack(MAGIC, 2) + b"{}", "Ask: "),
        (b'{"client":"\xff"}\n', "Intro: "),
        (b"{}\n" + pack(Ask(session="x", certificate="")), "Ask: "),
    ],
    ids=["intro", "long", "http", "size", "empty", "letters", "session"],
)
async def test_what_a_caller_must_not_say(sent, text):
    with pytest.raises(LinkError, match=text):
        await answered(sent)
