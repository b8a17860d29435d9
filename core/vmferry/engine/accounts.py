"""Who may run the guest of a job: what the destination's journal says, and how the source asks.

The destination's journal holds two marks that exclude each other, ``owner`` and ``withdrawn``;
whichever is set first stays. So a source that is told ``withdrawn`` knows that the guest has not
run there under this epoch, and never will, whatever ``Go`` may still be under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from vmferry.api.hooks import Phase
from vmferry.engine.journal import JobRecord, Journal
from vmferry.wire.handshake import greet
from vmferry.wire.link import Link
from vmferry.wire.messages import Account, Inquire, Withdraw

__all__ = ["account_of", "ask_for_account", "withdraw_record"]

_ANSWER = 30.0
"""Seconds that the destination has to answer: it may have to remove a half-made guest first."""
_REASON = 4096
_READY = (Phase.STOP, Phase.PULL, Phase.DONE)


def account_of(record: JobRecord, *, paused: bool = False, runs: bool = False) -> Account:
    """A destination's record as it is told to the source.

    Args:
        record: of the destination's journal.
        paused: the complete guest is held there.
        runs: it has run there, whether the journal says so already or not.

    """
    return Account(
        epoch=max(1, record.epoch),
        phase=record.phase.value,
        ready=record.phase in _READY or record.owner,
        paused=paused,
        owner=record.owner,
        started=record.started or runs,
        withdrawn=record.withdrawn,
        outcome=record.outcome,
        error=record.error[:_REASON],
    )


async def withdraw_record(journal: Journal, job: str, reason: str) -> JobRecord:
    """Mark a job ``withdrawn`` in a destination's journal, unless the guest is owned there.

    Returns the job as the journal has it then.
    """
    record = await journal.decide(job, "withdrawn")
    if record.withdrawn and not record.outcome:
        await journal.update(job, phase=Phase.FAILED, outcome="failed", error=reason)
    return record


async def ask_for_account(
    open_link: Callable[[], Awaitable[Link]],
    record: JobRecord,
    *,
    withdraw: str = "",
) -> Account:
    """The destination's account of a job of this host, over a new connection.

    Args:
        open_link: opens a link to the destination.
        record: the job as the source's journal has it.
        withdraw: why the guest is wanted back; without it the destination is only asked.

    Raises:
        LinkError: it cannot be reached, or does not answer.
        PeerError: it does not know the job.

    """
    async with asyncio.timeout(_ANSWER), await open_link() as link:
        return await link.guard(_ask(link, record, withdraw))


async def _ask(link: Link, record: JobRecord, withdraw: str) -> Account:
    await greet(link, record.job, record.token)
    if withdraw:
        await link.send(Withdraw(epoch=record.epoch, reason=withdraw[:_REASON]))
    else:
        await link.send(Inquire())
    return await link.expect(Account)
