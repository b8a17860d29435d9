"""Contract of a trial: a guest made to be migrated and checked, for demos, tests and experiments.

A trial's guest writes blocks that identify themselves (position, sequence, checksum) and keeps a
record of what it was told has completed. After the migration the trial compares the disk with the
record. Found under the entry-point group ``vmferry.trials``, by the name of its hypervisor.

``plan``, ``methods`` and ``move`` are for trials that take part in experiments; see
``vmferry.api.load``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Generic

import msgspec

from vmferry.api.load import Moved, MoveLink, TrialPlan, TrialWish
from vmferry.api.plugin import OptionsT, Plugin
from vmferry.errors import InputError

__all__ = ["Trial", "TrialStatus", "Verdict"]


class TrialStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the guest is doing, as it says itself.

    Attributes:
        writes: disk writes acknowledged to the guest so far.
        reads: disk reads it has checked.
        bad_reads: reads that did not return what was last written.
        errors: I/O errors it was given.
        longest_gap: longest time in seconds the guest saw no time pass.
        busy: seconds that all completed requests took together, flushes left out; 0 if it does not
            know. Divided by ``writes`` and ``reads`` it is the mean latency.
        switch_gap: seconds between the last that the guest did at the source and the first at the
            destination; ``None`` before that, or if it does not know.

    """

    writes: int = 0
    reads: int = 0
    bad_reads: int = 0
    errors: int = 0
    longest_gap: float = 0.0
    busy: float = 0.0
    switch_gap: float | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of comparing the final disk and memory with the guest's record.

    Attributes:
        acknowledged: writes the guest was told have completed.
        checked: blocks compared, those never written included.
        lost: blocks older than the record says.
        wrong: blocks that are no write of the guest's at all (torn, misplaced, foreign).
        bad_reads: reads that went wrong while the guest ran.
        bad_memory: pages of memory that do not hold what the guest wrote.
        examples: a few findings in words, for the log.

    """

    acknowledged: int
    checked: int
    lost: int = 0
    wrong: int = 0
    bad_reads: int = 0
    bad_memory: int = 0
    examples: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        """Whether nothing at all is amiss, and there was something to lose."""
        amiss = self.lost + self.wrong + self.bad_reads + self.bad_memory
        return amiss == 0 and self.acknowledged > 0


class Trial(Plugin[OptionsT], ABC, Generic[OptionsT]):
    """One guest on one machine that plays both hosts.

    Life: ``start``, migration by the engine or by ``move``, ``status`` at will, ``verdict``,
    ``close``.

    Attributes:
        methods: ways other than vmferry's to move its guest, by name, each with one line on what
            it does.
        tells_switch: whether ``status`` has ``switch_gap`` soon after the guest has gone on at the
            destination. Experiments wait for it then, and a guest that does not go on has failed;
            with other trials nobody can tell.

    """

    methods: ClassVar[Mapping[str, str]] = {}
    tells_switch: ClassVar[bool] = False

    @classmethod
    def plan(cls, wish: TrialWish) -> TrialPlan:
        """The options with which this trial is what an experiment wishes for.

        Looks at nothing but the wish. Raises ``InputError`` with the reason if it cannot be that.
        """
        raise InputError(f"trial {cls.name} takes no part in experiments: it has no plan()")

    @abstractmethod
    async def start(self, folder: Path, disk_size: int) -> str:
        """Make a disk of ``disk_size`` bytes under ``folder``, start the guest, return its name.

        On return the guest is running and writing. Everything is made below ``folder``.
        """

    @abstractmethod
    def host_options(self, role: str) -> Mapping[str, str]:
        """Options of the hypervisor plugin for the host ``"source"`` or ``"destination"``."""

    @abstractmethod
    async def status(self) -> TrialStatus:
        """Ask the guest, wherever it runs; raises ``HypervisorError`` if it runs nowhere."""

    @abstractmethod
    async def verdict(self, location: str) -> Verdict:
        """Stop the guest for good and compare the plain disk at ``location`` with its record.

        The comparison reads the disk itself, not through anything of the migration.
        """

    @abstractmethod
    async def close(self) -> None:
        """End every process of the trial. Files below the folder stay. May be called twice."""

    async def move(self, method: str, link: MoveLink) -> Moved:
        """Move the guest to the destination by one of ``methods``; ``verdict`` follows.

        Raises ``HypervisorError`` if that failed, ``InputError`` for a method it does not have.
        """
        raise InputError(f"trial {self.name} has no method {method!r}")
