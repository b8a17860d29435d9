"""Going on with a known job over a new connection: the source's first words, and the answer."""

from __future__ import annotations

import asyncio

from vmferry.errors import HypervisorError, LinkError, LinkTimeout, PeerError, ProtocolError
from vmferry.wire.handshake import greet
from vmferry.wire.link import Link
from vmferry.wire.messages import Accepted, Account, Attach, Resumed

__all__ = ["attach", "attach_to_push", "is_loss", "why_not"]

_NOTICE = 0.5
"""Seconds by which a hypervisor may notice sooner than the link that its stream has ended."""

_ANSWER = 60.0
"""Seconds that the destination has to end a half-made guest and to wait for another."""


async def attach(
    link: Link, job: str, token: bytes, epoch: int, codecs: tuple[str, ...] = ()
) -> tuple[Resumed | Account, tuple[str, ...]]:
    """Ask to go on with a job; returns the answer and the codecs that the destination reads."""
    welcome = await greet(link, job, token, codecs)
    await link.send(Attach(epoch=epoch))
    reply, _ = await link.receive(Resumed, Account)
    assert isinstance(reply, Resumed | Account)
    if reply.epoch != epoch:
        raise ProtocolError(f"{type(reply).__name__}: epoch {reply.epoch} where {epoch} was agreed")
    return reply, welcome.codecs


async def attach_to_push(
    link: Link, job: str, accepted: Accepted, codecs: tuple[str, ...]
) -> tuple[Resumed, tuple[str, ...]]:
    """Go on with a PUSH; returns the answer and the codecs that the destination reads.

    Raises:
        PeerError: the destination has kept nothing.
        LinkTimeout: it does not answer.

    """
    try:
        async with asyncio.timeout(_ANSWER):
            reply, agreed = await attach(link, job, accepted.token, accepted.epoch, codecs)
    except TimeoutError:
        raise LinkTimeout(
            f"{link.peer.address} did not go on with the job within {_ANSWER:g} seconds"
        ) from None
    if isinstance(reply, Account):
        raise PeerError(why_not(reply))
    if not reply.pushing:
        raise ProtocolError("Resumed: the destination has the guest before it was sent")
    return reply, agreed


async def is_loss(link: Link, error: BaseException) -> bool:
    """Whether ``error`` came of the loss of the connection, which another one may make good."""
    if isinstance(error, HypervisorError):
        return await link.ends(_NOTICE)
    return link.lost or isinstance(error, LinkError)


def why_not(account: Account) -> str:
    """What a destination says that has nothing left of the job to go on with."""
    said = f": {account.error}" if account.error else ""
    if account.withdrawn:
        text = "the destination has given the guest up without ever running it"
    elif account.owner:
        text = "the destination has the guest, but its agent could not take it up again"
    else:
        text = "the destination's agent was started anew and has not taken the guest up"
    return f"{text}{said}"
