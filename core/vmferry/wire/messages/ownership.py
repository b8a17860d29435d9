"""Who owns the guest: the commit, and what is asked and promised after a crash."""

from __future__ import annotations

from typing import Annotated

import msgspec

from vmferry.wire.messages.fields import Epoch, Long, Message, Short

__all__ = ["Account", "Attach", "Go", "Inquire", "Ready", "Resumed", "Running", "Withdraw"]


class Ready(Message, frozen=True, kw_only=True):
    """All pending maps are durable here and the guest is complete and paused: it may be ours."""

    epoch: Epoch


class Go(Message, frozen=True, kw_only=True):
    """The commit is durable at the source: the guest is the destination's under this epoch."""

    epoch: Epoch


class Running(Message, frozen=True, kw_only=True):
    """The guest runs at the destination.

    Attributes:
        seconds: from the reception of ``Go`` until it ran.

    """

    epoch: Epoch
    seconds: Annotated[float, msgspec.Meta(ge=0)] = 0.0


class Attach(Message, frozen=True, kw_only=True):
    """Go on with the job on this connection; ends any other connection of the job.

    Attributes:
        epoch: the one agreed on.

    """

    epoch: Epoch


class Resumed(Message, frozen=True, kw_only=True):
    """Answer to ``Attach``: where the job is at the destination.

    Attributes:
        running: ownership is durable there. Otherwise it waits for ``Go``.
        local: everything is local there; nothing is left but ``Local`` and ``Bye``. Otherwise the
            pending maps follow, after ``Running`` if that is still due.
        pushing: PUSH goes on: everything that was answered with ``Reached`` is here; a guest is
            waited for anew, and nothing of the above is so.
        unsure: with ``pushing``: what was answered with ``Reached`` may not be here after all.

    """

    epoch: Epoch
    running: bool
    local: bool = False
    pushing: bool = False
    unsure: bool = False


class Inquire(Message, frozen=True, kw_only=True):
    """Say what your journal has of the job. Changes nothing, and ends no connection."""


class Withdraw(Message, frozen=True, kw_only=True):
    """The source wants its guest back: promise never to run it under this epoch.

    Whichever comes first at the destination, ownership or the promise, excludes the other; both
    are durable before they are told to anybody.

    Attributes:
        epoch: the one agreed on.
        reason: for people.

    """

    epoch: Epoch
    reason: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class Account(Message, frozen=True, kw_only=True):
    """What the destination's journal has of the job: the answer to ``Inquire`` and ``Withdraw``.

    Attributes:
        epoch: the one agreed on.
        phase: the last phase that was begun there, or ``done`` or ``failed``.
        ready: everything was durable there and the guest complete: ``Ready`` may have been sent.
        paused: the complete guest, which has never run there, is held and can be run.
        owner: ownership is durable there.
        started: the guest has run there.
        withdrawn: it was promised, durably, never to run the guest under this epoch.
        outcome: how the job ended there; empty while it goes on.
        error: what went wrong there, for people.

    """

    epoch: Epoch
    phase: Short = ""
    ready: bool = False
    paused: bool = False
    owner: bool = False
    started: bool = False
    withdrawn: bool = False
    outcome: Short = ""
    error: Long = ""
