"""Who has the guest of a job that was broken off, and what may be done about it.

Pure: facts in, a ruling out. What is not certain is never guessed; what an operator has to make
sure of instead is named.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from vmferry.api.hooks import Phase
from vmferry.engine.journal import JobRecord
from vmferry.wire.messages import Account

__all__ = ["Action", "Known", "Ruling", "may_continue", "rule_at_destination", "rule_at_source"]

_PUSH = (Phase.HANDSHAKE, Phase.PUSH_DISK, Phase.PUSH_MEMORY)


class Action(enum.StrEnum):
    """What is to be done on the host where it was asked."""

    NOTHING = "nothing"
    """The job is over, or goes on by itself."""
    TAKE_BACK = "take-back"
    """The guest is this host's, the source's: make it run here."""
    GO_ON = "go-on"
    """The guest is the destination's: bring the job to its end."""
    CLOSE = "close"
    """Nothing of the guest is left to run: end the job at the source."""
    OWN = "own"
    """The guest is this host's, the destination's: run it here."""
    DROP = "drop"
    """The guest is the source's: never run it here, and remove what is held of it."""
    REFUSE = "refuse"
    """It cannot be known."""


@dataclass(frozen=True)
class Ruling:
    """What follows from what is known.

    Attributes:
        action: what is to be done.
        reason: why, for people.
        ensure: what an operator has to make sure of before it can be decided; empty if it can.

    """

    action: Action
    reason: str
    ensure: str = ""


@dataclass(frozen=True)
class Known:
    """What the source knows of the other side.

    Attributes:
        account: the destination's journal; ``None`` if it could not be had.
        binding: the account is the agent's own, which keeps what it promises; that of a file may
            be out of date.
        fenced: the operator has made sure that the destination's host does not run the guest, and
            will not.
        complaint: why there is no account.

    """

    account: Account | None = None
    binding: bool = False
    fenced: bool = False
    complaint: str = ""


def may_continue(record: JobRecord) -> bool:
    """Whether a job that nobody works on was in PUSH, and its destination may have kept its part.

    That is for ``ContinuedJob``; any other one, or this one if it is given up, for ``ResumedJob``.
    """
    if record.role != "source" or record.outcome or record.committed:
        return False
    agreed = bool(record.token and record.description and record.facts)
    return agreed and record.phase in _PUSH


def _over(record: JobRecord) -> Ruling | None:
    if record.outcome == "done":
        return Ruling(Action.NOTHING, "the job is done; the guest is the destination's")
    if record.role == "source" and record.outcome and not record.committed:
        return Ruling(Action.NOTHING, f"the job is over; the guest is the source's: {record.error}")
    return None


def rule_at_source(record: JobRecord, known: Known) -> Ruling:
    """What the source may do with a job that nobody works on."""
    if over := _over(record):
        return over
    if not record.committed:
        return Ruling(Action.TAKE_BACK, "the guest was not handed over: it is the source's")
    if known.account is not None:
        return _by_account(record, known, known.account)
    if known.fenced:
        return _fenced(record, "the destination cannot be asked, but was fenced")
    return Ruling(
        Action.REFUSE,
        f"the guest was handed over, and the destination cannot be asked: {known.complaint}",
        "start `migrate serve` there again, or give its journal with --peer-journal; "
        "if that host is gone for good, see to it that it cannot run the guest (power it off), "
        "then say --i-have-fenced HOST",
    )


def _by_account(record: JobRecord, known: Known, account: Account) -> Ruling:
    if account.withdrawn:
        return Ruling(Action.TAKE_BACK, "the destination has promised never to run the guest")
    if account.started:
        return Ruling(Action.GO_ON, "the guest has run at the destination: it is there")
    if account.paused:
        return Ruling(Action.GO_ON, "the destination holds the complete guest: it may run it")
    if account.owner:
        return _owned(record, known)
    if known.binding:
        return Ruling(Action.TAKE_BACK, "the destination has lost the guest, which never ran there")
    if known.fenced:
        return _fenced(record, "its journal says that the guest never ran there, and it was fenced")
    return Ruling(
        Action.REFUSE,
        "by its journal the destination has not run the guest; but a journal that is read from a "
        "file does not bind an agent",
        "see to it that no `migrate serve` of that host knows this job any more, then say "
        "--i-have-fenced HOST; or start it, so that it can be asked",
    )


def _owned(record: JobRecord, known: Known) -> Ruling:
    if known.fenced:
        return _fenced(record, "the destination has taken the guest over, but was fenced")
    return Ruling(
        Action.REFUSE,
        "the destination has taken the guest over; whether it ran there is not known",
        "look whether the guest runs there. If it does, start `migrate serve` there again. If it "
        "does not, and cannot any more, say --i-have-fenced HOST: what it may have written there "
        "is lost then",
    )


def _fenced(record: JobRecord, why: str) -> Ruling:
    if record.phase is Phase.PULL:
        return Ruling(
            Action.CLOSE,
            f"{why}. The guest ran there and is no longer held here: what is left of it are the "
            "source's disks as they were at the switch",
        )
    return Ruling(Action.TAKE_BACK, f"{why}; the source still holds the guest as it was suspended")


def rule_at_destination(
    record: JobRecord, source: JobRecord | None, *, fenced: bool, held: bool
) -> Ruling:
    """What the destination may do with a job of its own.

    Args:
        record: the job as the destination's journal has it.
        source: the same as the source's journal has it, or ``None``.
        fenced: the operator has made sure that the source does not run the guest, and will not.
        held: the complete guest is still there, paused.

    """
    if over := _over(record):
        return over
    if record.withdrawn:
        return Ruling(Action.NOTHING, "this host has promised never to run the guest")
    if record.owner:
        return Ruling(Action.OWN, "the guest is this host's")
    if record.phase not in (Phase.STOP, Phase.PULL):
        return Ruling(Action.DROP, "the guest never was complete here: it is the source's")
    if source is not None and not source.committed:
        return Ruling(Action.DROP, "the source's journal says that it was not handed over")
    if source is None and not fenced:
        return Ruling(
            Action.REFUSE,
            "the guest is complete here and has not run; whether it was handed over is known to "
            "the source alone",
            "run `migrate resolve` at the source, or give its journal with --peer-journal; if that "
            "host is gone for good, see to it that it cannot run the guest (power it off), then "
            "say --i-have-fenced HOST",
        )
    if held:
        return Ruling(Action.OWN, "the guest was handed over" if source else "the source is fenced")
    return Ruling(
        Action.REFUSE,
        "the guest was handed over, but is no longer held here",
        "run `migrate resolve` at the source, which still holds it as it was suspended",
    )
