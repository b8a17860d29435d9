"""What a simulated migration is put through."""

from __future__ import annotations

import enum
from random import Random
from typing import Annotated

import msgspec

from vmferry.api.hooks import Phase
from vmferry.engine.policy import PolicyOptions
from vmferry.engine.settings import Settings
from vmferry.simulation.connection import FrameEvent
from vmferry.simulation.network import Fate, Tamper
from vmferry.simulation.world import WorldParameters

__all__ = ["Fault", "Harm", "Scenario", "make_tamper"]

Chance = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Harm(enum.StrEnum):
    """What happens."""

    CUT = "cut"
    """Every connection is lost."""
    STALL = "stall"
    """Nothing gets through for some seconds; nothing is lost."""
    CANCEL = "cancel"
    """The operator interrupts the source."""
    SWITCH = "switch"
    """The operator asks for the switch."""
    KILL = "kill"
    """The destination's agent is killed, and started anew after some seconds."""
    KILL_SOURCE = "kill-source"
    """The source's command is killed."""
    POWER = "power"
    """As ``KILL``, of the whole host, if the guest is not to run there yet."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happens ``delay`` seconds after the source has entered a phase.

    Attributes:
        harm: what happens.
        phase: the source's phase.
        delay: seconds after it began.
        seconds: how long a stall lasts, how long after a cut nobody can connect, or until an agent
            that was killed is started anew, or a command resumed.

    """

    harm: Harm
    phase: Phase
    delay: float = 0.0
    seconds: float = 0.0


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One migration and all that happens to it.

    Attributes:
        name: for people.
        world: what it happens in.
        settings: the user's choices.
        policy: when PUSH is over.
        faults: what goes wrong at which moment.
        cut: chance of each frame that the connection is lost while it is under way.
        corrupt: chance of each frame that a byte of its payload is changed.
        must_arrive: anything but success is a violation.
        shuffle: callbacks that are ready together run in random order.
        lead: seconds the guest runs before.
        patience: the destination's, in seconds.
        refused: there is a disk at the destination where the guest's is to be.
        resolves: an operator's first command is ``migrate resolve`` instead of ``resume``.

    """

    name: str
    world: WorldParameters = WorldParameters()
    settings: Settings = Settings()
    policy: PolicyOptions = PolicyOptions()
    faults: tuple[Fault, ...] = ()
    cut: Chance = 0.0
    corrupt: Chance = 0.0
    must_arrive: bool = True
    shuffle: bool = False
    lead: float = 0.02
    patience: float = 5.0
    refused: bool = False
    resolves: bool = False


def make_tamper(scenario: Scenario, random: Random) -> Tamper:
    """What decides the fate of each frame."""

    def tamper(event: FrameEvent) -> Fate:
        if random.random() < scenario.cut:
            return Fate.CUT
        spared = not event.parcel.payload
        return Fate.CORRUPT if not spared and random.random() < scenario.corrupt else Fate.DELIVER

    return tamper
