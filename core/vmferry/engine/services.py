"""The services one agent's engine works with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from vmferry.engine.context import Exporter, Registry, Workers
from vmferry.engine.journal import Journal
from vmferry.plugins import Hooks

__all__ = ["DestinationServices", "Services"]


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything from outside that the engine uses.

    Attributes:
        registry: plugins by name.
        hooks: observers and policies.
        workers: threads, or none in a simulation.
        journal: what survives a crash.
        beside: the same host's journal in the other role, if it may have one.
        random: source of job identifiers and secrets; unpredictable unless simulated.
        cpu_clock: seconds, to measure what compressing costs; ``None`` counts it as free.

    """

    registry: Registry
    hooks: Hooks
    workers: Workers
    journal: Journal
    random: random.Random = field(default_factory=random.SystemRandom)
    cpu_clock: Callable[[], float] | None = None
    beside: Journal | None = None

    @property
    def journals(self) -> list[Journal]:
        """All that this host knows of."""
        return [self.journal] if self.beside is None else [self.journal, self.beside]


@dataclass(frozen=True, kw_only=True)
class DestinationServices(Services):
    """The same at the destination, which also shows disks to guests.

    Attributes:
        exporter: serves pull disks.

    """

    exporter: Exporter
