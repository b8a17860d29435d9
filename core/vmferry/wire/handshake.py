"""The first two messages of a connection: which versions and codecs both sides speak."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from vmferry import __version__
from vmferry.errors import LinkTimeout, ProtocolError
from vmferry.wire.compress import Codec
from vmferry.wire.link import Link
from vmferry.wire.messages import PROTOCOL_NEWEST, PROTOCOL_OLDEST, Hello, Message, Welcome

__all__ = ["AGENT", "answer", "common_version", "greet"]

AGENT = f"vmferry {__version__}"
_PATIENCE = 20.0
M = TypeVar("M", bound=Message)


def common_version(hello: Hello) -> int:
    """The newest version both speak; raises ``ProtocolError`` naming both ranges if there is none.

    >>> common_version(Hello(oldest=1, newest=9, agent="x", job="a1b2c3d4"))
    1
    """
    newest = min(hello.newest, PROTOCOL_NEWEST)
    if newest < max(hello.oldest, PROTOCOL_OLDEST):
        raise ProtocolError(
            f"no common protocol version: {hello.agent} speaks {hello.oldest} to {hello.newest}, "
            f"{AGENT} speaks {PROTOCOL_OLDEST} to {PROTOCOL_NEWEST}; "
            "update the older of the two agents"
        )
    return newest


def _codecs(names: tuple[str, ...]) -> tuple[str, ...]:
    known = {codec.name.lower() for codec in Codec}
    return tuple(name for name in names if name in known)


async def greet(link: Link, job: str, token: bytes = b"", codecs: tuple[str, ...] = ()) -> Welcome:
    """Say hello as the source; return the destination's answer.

    Raises:
        PeerError: the destination speaks none of our versions, or refused.
        LinkTimeout: no answer came.

    """
    hello = Hello(
        oldest=PROTOCOL_OLDEST,
        newest=PROTOCOL_NEWEST,
        agent=AGENT,
        job=job,
        token=token,
        codecs=codecs,
        channels=link.channels,
    )
    await link.send(hello)
    welcome = await _in_time(link, Welcome)
    if not PROTOCOL_OLDEST <= welcome.version <= PROTOCOL_NEWEST:
        raise ProtocolError(f"Welcome: version {welcome.version} was not offered")
    if welcome.channels != link.channels:
        raise ProtocolError(
            f"{welcome.agent} at {link.peer.address} knows of no channels for memory: "
            "leave --memory-channels out, or update it"
        )
    link.bind(welcome.salt)
    return welcome


async def answer(link: Link, salt: int = 0) -> tuple[Hello, Welcome]:
    """Take a hello as the destination and answer it, with 32 random bits for this connection."""
    hello = await _in_time(link, Hello)
    try:
        version = common_version(hello)
        link.spread(hello.channels)
    except ProtocolError as error:
        await link.fail(error)
        raise
    welcome = Welcome(
        version=version,
        agent=AGENT,
        codecs=_codecs(hello.codecs),
        channels=hello.channels,
        salt=salt,
    )
    link.bind(salt)
    await link.send(welcome)
    return hello, welcome


async def _in_time(link: Link, kind: type[M]) -> M:
    try:
        async with asyncio.timeout(_PATIENCE):
            return await link.expect(kind)
    except TimeoutError:
        raise LinkTimeout(
            f"{link.peer.address} sent no {kind.__name__} within {_PATIENCE:g} seconds; "
            "is a vmferry agent listening there?"
        ) from None
