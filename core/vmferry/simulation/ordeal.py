"""A migration that is dealt blows, and the operator who brings it to its end nevertheless."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from typing import Any

from vmferry.api.hooks import Phase, hookimpl
from vmferry.errors import MigrationError
from vmferry.simulation.blows import Hit, Striker
from vmferry.simulation.connection import FrameEvent
from vmferry.simulation.hypervisor import disk_name
from vmferry.simulation.loop import SimulationStuck, run
from vmferry.simulation.network import Fate
from vmferry.simulation.operator import Operator
from vmferry.simulation.oracle import Violation
from vmferry.simulation.outcome import GUEST, Outcome, judge_durability, judge_leftovers
from vmferry.simulation.programs import DestinationPrograms, SourcePrograms, Stage
from vmferry.simulation.scenario import Fault, Harm, Scenario
from vmferry.simulation.steps import Edge, Step, Steps
from vmferry.simulation.world import DESTINATION, SOURCE, World
from vmferry.wire.codec import name_of
from vmferry.wire.messages import Heartbeat

__all__ = ["endure"]

_LIMIT = 4 * 3600.0
_IN_THE_WAY = f"pool/{GUEST}-{disk_name(GUEST, 0)}.sim"
_LANES = {0: "", 1: "/stream"}


class _Watch:
    """Observer of one host."""

    def __init__(self, ordeal: _Ordeal, host: str) -> None:
        self._ordeal, self._host = ordeal, host

    @hookimpl
    def vmferry_phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Note it; the source's sets off what is due."""
        self._ordeal.world.trace.add("engine", self._host, phase.value)
        if self._host == SOURCE and self._ordeal.source_lives:
            self._ordeal.entered(phase)

    @hookimpl
    def vmferry_event(self, job: str, name: str, facts: dict[str, object]) -> None:
        """Note it."""
        self._ordeal.world.trace.add("engine", self._host, name, facts)


class _Ordeal:
    """One migration."""

    def __init__(self, seed: int, scenario: Scenario, hits: Sequence[Hit], all_dealt: bool) -> None:
        self._due = len(hits) if all_dealt else 0
        self.world = world = World(seed, scenario.world)
        self.outcome = Outcome(seed, scenario, world)
        self.stage = Stage(world, scenario)
        self._random = world.random("ordeal")
        self.striker = Striker(world, self._kill)
        self._hits, self._faults = hits, list(scenario.faults)
        self._source = SourcePrograms(self.stage)
        self._destination = DestinationPrograms(self.stage)
        self._operator = Operator(self.stage, self._source, self._destination)
        for host, hooks in self.stage.hooks.items():
            hooks.register(_Watch(self, host), "watch")
        world.network.tamper, world.network.witness = self._tamper, self._witness
        for hit in hits:
            self.stage.steps.at(hit.moment, functools.partial(self.striker.strike, hit))

    # -- what happens to it

    def _step(self, event: FrameEvent) -> Step:
        name = name_of(event.parcel.head)
        phase = "any" if name == Heartbeat.__name__ else self.stage.phase
        return Step(event.sender, phase, name + _LANES.get(event.lane, "/bulk"))

    def _tamper(self, event: FrameEvent) -> Fate:
        if event.parcel.last:
            return Fate.DELIVER
        event.parcel.label = step = self._step(event)
        self.stage.steps.passes(step, Edge.BEFORE)
        if not self.striker.spoils(event.sender):
            return Fate.DELIVER
        payload = event.parcel.payload and self._random.random() < 0.5
        return Fate.CORRUPT if payload else Fate.GARBLE

    def _witness(self, event: FrameEvent) -> None:
        taker = DESTINATION if event.sender == SOURCE else SOURCE
        self.striker.heard[taker] = event
        if isinstance(event.parcel.label, Step):
            self.stage.steps.passes(event.parcel.label, Edge.AFTER)

    @property
    def source_lives(self) -> bool:
        """Whether what the source says is not the last breath of a program that was killed."""
        return self._source.process.alive

    def entered(self, phase: Phase) -> None:
        """The source has entered ``phase``: what the scenario has for it is due."""
        self.stage.phase = phase.value
        for fault in [one for one in self._faults if one.phase is phase]:
            self._faults.remove(fault)
            asyncio.get_running_loop().call_later(fault.delay, self._fault, fault)

    def _fault(self, fault: Fault) -> None:
        self.world.trace.add("engine", "fault", fault.harm.value)
        if fault.harm is Harm.CUT:
            self.world.network.cut()
        elif fault.harm is Harm.CANCEL:
            self._source.command.cancel()
        elif fault.harm is Harm.KILL:
            self._kill(DESTINATION)
        elif fault.harm is Harm.KILL_SOURCE:
            self._kill(SOURCE)

    def _kill(self, host: str) -> None:
        if host == SOURCE:
            self._source.kill()
        elif self._destination.process.alive:
            self._operator.agent_died()

    async def play(self) -> Outcome:
        """All of it, and the verdict."""
        scenario = self.outcome.scenario
        await self.world.boot(GUEST)
        if scenario.refused:
            disk = self.world.hosts[SOURCE].storage.disks[disk_name(GUEST, 0)]
            self.world.hosts[DESTINATION].storage.add(_IN_THE_WAY, disk.geometry)
        await self._destination.start()
        await asyncio.sleep(scenario.lead)
        self._source.run()
        await self._operator.bring_to_end()
        await asyncio.sleep(scenario.lead)
        await self._operator.clean_up()
        self.outcome.error = self._operator.error
        self.outcome.summary = self._operator.summary
        await self._judge()
        await self._destination.stop()
        self.outcome.seconds = asyncio.get_running_loop().time()
        return self.outcome

    # -- the verdict

    async def _judge(self) -> None:
        world, outcome, owner = self.world, self.outcome, self.outcome.owner
        await world.settle()
        self._check_claim()
        world.check()
        world.hosts[DESTINATION].storage.disks.pop(_IN_THE_WAY, None)
        judge_leftovers(world, owner)
        self._check_arrivals()
        if len(self.striker.dealt) < self._due:
            world.findings.add("not-dealt", "the moment for a blow never came")
        if owner == DESTINATION and not outcome.violations:
            judge_durability(world, GUEST)
        if any(hit.blow.harms_disks for hit in self._hits):
            _forgive(outcome.violations, "io-error")

    def _check_claim(self) -> None:
        error = self.outcome.error
        if isinstance(error, MigrationError) and error.guest not in {"", "unknown"}:
            claimed = SOURCE if error.guest == "source" else DESTINATION
            if claimed != self.outcome.owner:
                text = f"the guest is said to be on {claimed}, it is on {self.outcome.owner}"
                self.world.findings.add("claim", text)

    def _check_arrivals(self) -> None:
        for name, host in self.world.hosts.items():
            for guest in host.waiting:
                self.world.findings.add("leftover", f"{guest} is still held, paused, at {name}")
        if self.outcome.owner == DESTINATION and GUEST in self.world.hosts[SOURCE].guests:
            self.world.findings.add("leftover", f"the old {GUEST} is still at {SOURCE}")


def _forgive(violations: list[Violation], kind: str) -> None:
    violations[:] = [violation for violation in violations if violation.kind != kind]


async def _play(ordeals: list[_Ordeal], *args: Any) -> Outcome:
    ordeal = _Ordeal(*args)
    ordeals.append(ordeal)
    return await ordeal.play()


def endure(
    seed: int, scenario: Scenario, hits: Sequence[Hit] = (), *, all_dealt: bool = True
) -> tuple[Outcome, Steps]:
    """Run a migration with these blows to its end; the same arguments give the same outcome.

    With ``all_dealt`` a moment that never comes is a violation.

    Returns the outcome, with all that must not happen in ``violations``, and the steps that were
    counted.
    """
    ordeals: list[_Ordeal] = []
    try:
        outcome = run(
            _play(ordeals, seed, scenario, hits, all_dealt),
            seed=seed,
            shuffle=scenario.shuffle,
            limit=_LIMIT,
        )
    except SimulationStuck as stuck:
        outcome = ordeals[0].outcome
        outcome.error = stuck
        outcome.violations.append(Violation("stuck", 0.0, str(stuck)))
    return outcome, ordeals[0].stage.steps
