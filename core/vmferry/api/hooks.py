"""Hooks: what a site or a tool adds to a migration without replacing a part of it.

*Observers* are told; one that raises is logged by name and the migration goes on. *Policies*
decide; one that raises stops the job before the switch. Implement any of the functions below in a
class, mark it with ``hookimpl``, and register the class under the entry-point group
``vmferry.hooks``. It is constructed once per process, without arguments.

::

    from vmferry.api import hookimpl

    class Chat:
        @hookimpl
        def vmferry_finished(self, summary): ...

Hooks are called on the event loop and must return quickly; none is called per block. A parameter
that is not wanted may be left out of the signature.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec
import pluggy

from vmferry.api.guest import Guest

__all__ = ["Decision", "HookSpecs", "Phase", "Progress", "RoundReport", "Summary", "hookimpl"]

hookspec = pluggy.HookspecMarker("vmferry")
hookimpl = pluggy.HookimplMarker("vmferry")


class Phase(enum.StrEnum):
    """Where a migration is. Both sides go through all of them in this order."""

    HANDSHAKE = "handshake"
    PUSH_DISK = "push-disk"
    PUSH_MEMORY = "push-memory"
    STOP = "stop"
    PULL = "pull"
    DONE = "done"
    FAILED = "failed"


class Decision(enum.StrEnum):
    """What to do after a round of PUSH."""

    CONTINUE = "continue"
    """Another round."""
    SWITCH = "switch"
    """Enough: go on to memory and STOP."""


class RoundReport(msgspec.Struct, frozen=True, kw_only=True):
    """One finished round of PUSH over all disks.

    Attributes:
        number: 0 is the full copy.
        scanned: bytes the round had to make equal at the destination.
        sent: payload bytes that went over the link, after compression.
        zeroes: bytes sent as zero extents, without payload.
        seconds: how long it took.
        dirty: bytes written by the guest meanwhile: what the next round would send.
        memory: the round ran beside the memory pre-copy.

    """

    number: int
    scanned: int
    sent: int
    zeroes: int
    seconds: float
    dirty: int
    memory: bool = False

    @property
    def send_rate(self) -> float:
        """Bytes made equal per second."""
        return self.scanned / self.seconds if self.seconds > 0 else float("inf")

    @property
    def dirty_rate(self) -> float:
        """Bytes dirtied per second."""
        return self.dirty / self.seconds if self.seconds > 0 else 0.0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """A look at a running migration.

    Attributes:
        phase: where it is.
        what: ``disk0`` and so on, or ``memory``.
        done: bytes done of this phase or round.
        total: bytes to do.
        rate: bytes per second over the last few seconds.
        round: number of the round, -1 outside PUSH.
        note: e.g. ``waiting for the source``.

    """

    phase: Phase
    what: str
    done: int
    total: int
    rate: float
    round: int = -1
    note: str = ""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a migration as one side saw it.

    Attributes:
        job: identifier of the migration.
        role: ``source`` or ``destination``.
        guest: name of the guest.
        outcome: ``done``, ``failed`` or ``interrupted``.
        owner: where the guest is: ``source``, ``destination`` or ``unknown``.
        error: what went wrong, or ``""``.
        phases: seconds spent in each phase.
        downtime: seconds between suspend and running, as this side saw it; ``None`` before.
        guest_downtime: the same as the guest itself saw it, if it can tell.
        rounds: all rounds of PUSH (source only).
        sent: payload bytes sent over the link.
        bitmap_bytes: size of the dirty bitmaps on the wire.
        pending: bytes still dirty at the switch.
        on_demand: blocks fetched because the guest read them.
        counters: further figures by name.

    """

    job: str
    role: str
    guest: str
    outcome: str
    owner: str
    error: str = ""
    phases: dict[str, float] = {}
    downtime: float | None = None
    guest_downtime: float | None = None
    rounds: tuple[RoundReport, ...] = ()
    sent: int = 0
    bitmap_bytes: int = 0
    pending: int = 0
    on_demand: int = 0
    counters: dict[str, int] = {}


class HookSpecs:
    """The hooks. Observers are marked so; the others are policies."""

    @hookspec
    def vmferry_phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Observer: a phase has begun."""

    @hookspec
    def vmferry_round_finished(self, job: str, report: RoundReport) -> None:
        """Observer: a round of PUSH is over."""

    @hookspec
    def vmferry_progress(self, job: str, progress: Progress) -> None:
        """Observer: a few times a second while something moves."""

    @hookspec
    def vmferry_event(self, job: str, name: str, facts: dict[str, Any]) -> None:
        """Observer: something worth a log line: a reconnect, a missing capability, a veto."""

    @hookspec
    def vmferry_finished(self, summary: Summary) -> None:
        """Observer: the migration is over, one way or the other."""

    @hookspec(firstresult=True)
    def vmferry_decide(self, job: str, rounds: tuple[RoundReport, ...]) -> Decision | None:
        """Policy: after each round of PUSH, whether to go on; ``None`` leaves it to the next.

        The built-in policy answers last.
        """

    @hookspec
    def vmferry_before_switch(self, job: str, guest: Guest) -> None:
        """Policy: called before the guest is suspended. Raise ``Veto`` to stop the migration."""
