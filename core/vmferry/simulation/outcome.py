"""How a simulated migration ended, and whether it may end like that."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from vmferry.api.hooks import Summary
from vmferry.errors import MigrationError, VmferryError
from vmferry.simulation.hypervisor import disk_name
from vmferry.simulation.oracle import Violation
from vmferry.simulation.scenario import Scenario
from vmferry.simulation.world import DESTINATION, SOURCE, World

__all__ = ["GUEST", "Outcome", "judge_claims", "judge_durability", "judge_leftovers"]

GUEST = "guest"
"""Name of the guest that is moved."""


@dataclass
class Outcome:
    """How a simulated migration ended.

    Attributes:
        seed: to have it again.
        scenario: what it was put through.
        world: what is left of it, trace and all.
        summary: the source's, if it succeeded.
        error: why it did not.
        arrivals: the destination's summaries; ``None`` for a job that has not ended.
        seconds: virtual time it took, the guest's settling included.
        abandoned: the source was interrupted after the commit, so that the guest waits for blocks
            that nobody sends.
        warnings: what vmferry logged as warning or worse.
        replay: the command that has it again.

    """

    seed: int
    scenario: Scenario
    world: World
    summary: Summary | None = None
    error: BaseException | None = None
    arrivals: list[Summary | None] = field(default_factory=list)
    seconds: float = 0.0
    abandoned: bool = False
    warnings: list[str] = field(default_factory=list)
    replay: str = ""

    @property
    def violations(self) -> list[Violation]:
        """All that must not happen and did."""
        return self.world.findings.violations

    @property
    def owner(self) -> str:
        """Name of the host that runs the guest; empty if none does."""
        running = self.world.oracles[GUEST].running
        return running[0] if running else ""

    def story(self) -> str:
        """What happened, and how to have it again."""
        ending = f"scenario {self.scenario.name}: {self.summary or repr(self.error)}"
        said = "".join(f"\n  {warning}" for warning in self.warnings)
        test = f"pytest tests/simulation/test_migrations.py -k '[{self.scenario.name}]'"
        again = self.replay or f"SEED={self.seed} {test}"
        told = [f"replay: {again}", ending, f"arrivals: {self.arrivals}", f"logged:{said}"]
        return "\n".join([*told, self.world.story()])


def judge_claims(outcome: Outcome, committed: bool) -> None:
    """What the source says of the ending must be true, and allowed by the scenario."""
    error, owner, add = outcome.error, outcome.owner, outcome.world.findings.add
    if error and outcome.scenario.must_arrive:
        add("failed", f"the migration failed: {error!r}")
    if error and not isinstance(error, VmferryError | asyncio.CancelledError):
        add("failed", f"the migration ended with {error!r}")
    claimed = DESTINATION if committed else SOURCE
    if isinstance(error, MigrationError):
        claimed = {"source": SOURCE, "destination": DESTINATION}.get(error.guest, "")
    if claimed != owner:
        add("claim", f"the guest is said to be on {claimed}, it is on {owner or 'no host'}")


def judge_leftovers(world: World, owner: str) -> None:
    """Nothing of the migration is left but the guest's disks and, sealed, its old ones."""
    for url in world.exports.urls():
        world.findings.add("leftover", f"{url} is still exported")
    for name in world.hosts:
        _judge_host(world, name)
    far = world.hosts[DESTINATION]
    if owner == SOURCE:
        for name in [*far.storage.disks, *far.backends]:
            world.findings.add("leftover", f"{name} is still at {far.name}")


def _judge_host(world: World, name: str) -> None:
    host, add = world.hosts[name], world.findings.add
    used = [volume.disk for volume in host.volumes.values()]
    for disk, backend in host.backends.items():
        if backend.observers:
            add("leftover", f"a tracker is still on {disk} at {name}")
    for place in host.storage.disks.values():
        if place.openers > used.count(place):
            add("leftover", f"{place.name} at {name} is still open")


def judge_durability(world: World, guest: str) -> None:
    """Pull the plug of the destination, and see what the guest's flushes were worth."""
    far, oracle = world.hosts[DESTINATION], world.oracles[guest]
    numbers = range(len(oracle.record.disks))
    disks = [far.volumes[disk_name(guest, number)].disk for number in numbers]
    far.storage.lose_power()
    for number, disk in zip(numbers, disks, strict=True):
        world.check_disk(oracle, number, disk, crashed=True)
