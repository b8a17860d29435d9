"""What is done to a migration at one moment."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from dataclasses import dataclass

from vmferry.simulation.connection import FrameEvent
from vmferry.simulation.steps import Edge, Moment
from vmferry.simulation.world import World

__all__ = ["Blow", "Hit", "Striker"]

STALL = 6.0
"""Seconds that nothing gets through: more than either side's patience."""
FULL = 3.0
"""Seconds until somebody makes room on a full disk."""


class Blow(enum.StrEnum):
    """What happens, at one of the two hosts."""

    CRASH_BEFORE = "crash-before"
    """The host's program is killed; the step never happens."""
    CRASH_AFTER = "crash-after"
    """The host's program is killed; the step has happened, and nobody has acted on it."""
    LOST = "lost"
    """Every connection is lost, what is under way with it; the host learns at once."""
    STALLED = "stalled"
    """Nothing of what the host sends arrives, for longer than anybody is patient."""
    DUPLICATED = "duplicated"
    """The connection is lost behind the step, and what it brought arrives again on the next."""
    DISK_FULL = "disk-full"
    """The host's disks and its journal take nothing, until somebody makes room."""
    IO_ERROR = "io-error"
    """The next request to a disk of the host fails; of a step of its journal the write itself."""
    CORRUPTED = "corrupted"
    """A byte of the next frame that the host sends is changed under way."""

    @property
    def edge(self) -> Edge:
        """The side of a step at which it strikes."""
        late = self in {Blow.CRASH_AFTER, Blow.DUPLICATED}
        return Edge.AFTER if late else Edge.BEFORE

    @property
    def harms_disks(self) -> bool:
        """Whether a guest may be given an I/O error."""
        return self in {Blow.DISK_FULL, Blow.IO_ERROR}


@dataclass(frozen=True, slots=True)
class Hit:
    """A blow at a moment, which is named or the so-manieth of all."""

    blow: Blow
    host: str
    moment: Moment | int

    def __str__(self) -> str:
        return f"{self.blow}@{self.host}"


class Striker:
    """Deals blows.

    Args:
        world: whose network and disks are harmed.
        kill: kills the program of a host.

    Attributes:
        dealt: the blows so far, and when.
        heard: the frame that each host took last.

    """

    def __init__(self, world: World, kill: Callable[[str], None]) -> None:
        self.dealt: list[tuple[Hit, Moment]] = []
        self.heard: dict[str, FrameEvent] = {}
        self._world, self._kill = world, kill
        self._spoil: set[str] = set()

    def spoils(self, sender: str) -> bool:
        """Whether this frame of a host is to be changed; asked once for each."""
        due = sender in self._spoil
        self._spoil.discard(sender)
        return due

    def strike(self, hit: Hit, moment: Moment) -> None:
        """Do it."""
        self.dealt.append((hit, moment))
        self._world.trace.add("engine", "blow", hit, moment.step, moment.number)
        network, host, blow = self._world.network, hit.host, hit.blow
        if blow in {Blow.CRASH_BEFORE, Blow.CRASH_AFTER}:
            self._kill(host)
        elif blow is Blow.LOST:
            network.cut(host)
        elif blow is Blow.STALLED:
            network.stall(STALL, host)
        elif blow is Blow.DUPLICATED:
            self._duplicate(host, moment)
        elif blow is Blow.CORRUPTED:
            self._spoil.add(host)
        else:
            self._harm_disks(hit, moment)

    def _duplicate(self, host: str, moment: Moment) -> None:
        network = self._world.network
        taker = host
        if not moment.step.what.startswith("journal."):
            taker = next(name for name in self._world.hosts if name != moment.step.host)
        network.cut(host)
        if taker in self.heard:
            network.replay(self.heard[taker])

    def _harm_disks(self, hit: Hit, moment: Moment) -> None:
        trouble = self._world.hosts[hit.host].trouble
        if hit.blow is Blow.DISK_FULL:
            trouble.full = True
            asyncio.get_running_loop().call_later(FULL, setattr, trouble, "full", False)
        elif moment.step.host == hit.host and moment.step.what.startswith("journal."):
            trouble.failing_writes += 1
        else:
            trouble.failing += 1
