"""Runs a whole migration, both its ends, in one world on one virtual event loop."""

from __future__ import annotations

import asyncio
import logging

from vmferry.api.hooks import Phase, hookimpl
from vmferry.simulation.loop import SimulationStuck, run
from vmferry.simulation.oracle import Violation
from vmferry.simulation.outcome import (
    GUEST,
    Outcome,
    judge_claims,
    judge_durability,
    judge_leftovers,
)
from vmferry.simulation.programs import DestinationPrograms, SourcePrograms, Stage
from vmferry.simulation.scenario import Fault, Harm, Scenario, make_tamper
from vmferry.simulation.world import DESTINATION, SOURCE, World

__all__ = ["simulate"]

_LIMIT = 4 * 3600.0
_PUSH = {Phase.PUSH_DISK.value, Phase.PUSH_MEMORY.value}
_GRACE = 60.0
"""Virtual seconds that the destination has to finish once the source has succeeded."""


class _Watch:
    """Observer of one host: sets off faults, and notes what the engine says."""

    def __init__(self, drama: _Drama, role: str) -> None:
        self._drama, self._role = drama, role

    @hookimpl
    def vmferry_phase_changed(self, job: str, role: str, phase: Phase) -> None:
        """Set off what is due."""
        self._drama.world.trace.add("engine", self._role, phase.value)
        if self._role == SOURCE:
            self._drama.stage.phase = phase.value
            self._drama.entered(phase)

    @hookimpl
    def vmferry_event(self, job: str, name: str, facts: dict[str, object]) -> None:
        """Note it."""
        self._drama.world.trace.add("engine", self._role, name, facts)


class _Drama:
    """One migration, with all parts cast."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        self.scenario, self._faults = scenario, list(scenario.faults)
        self.world = world = World(seed, scenario.world)
        self.outcome = Outcome(seed, scenario, world)
        self.stage = Stage(world, scenario)
        for role, hooks in self.stage.hooks.items():
            hooks.register(_Watch(self, role), "watch")
        self.source = SourcePrograms(self.stage)
        self.destination = DestinationPrograms(self.stage)
        world.network.tamper = make_tamper(scenario, world.random("tamper"))
        self._restarting: asyncio.Task[None] | None = None
        self._resumes: float | None = None

    # -- faults

    def entered(self, phase: Phase) -> None:
        """The source has entered ``phase``: what the scenario has for it is due, once."""
        for fault in [one for one in self._faults if one.phase is phase]:
            self._faults.remove(fault)
            asyncio.get_running_loop().call_later(fault.delay, self._strike, fault)

    def _strike(self, fault: Fault) -> None:
        network = self.world.network
        self.world.trace.add("engine", "fault", fault.harm.value, fault.seconds)
        if fault.harm is Harm.CUT:
            network.cut()
            network.refuse(fault.seconds)
        elif fault.harm is Harm.STALL:
            network.stall(fault.seconds)
        elif fault.harm is Harm.SWITCH:
            self.source.job.switch_now()
        elif fault.harm is Harm.KILL:
            self._kill_destination(fault.seconds)
        elif fault.harm is Harm.POWER:
            if self.stage.phase in _PUSH:
                self._kill_destination(fault.seconds)
                self.world.hosts[DESTINATION].lose_power()
        elif fault.harm is Harm.KILL_SOURCE:
            self._resumes = fault.seconds
            self.source.kill()
        else:
            self.source.command.cancel()

    def _kill_destination(self, seconds: float) -> None:
        self.destination.kill()
        self._restarting = asyncio.create_task(self.destination.restart(seconds))

    # -- the play

    async def play(self) -> Outcome:
        """All of it, and the verdict."""
        await self.world.boot(GUEST)
        await self.destination.start()
        await asyncio.sleep(self.scenario.lead)
        await self._move()
        if self._restarting is not None:
            await self._restarting
        await self._wait_for_arrivals()
        if self._restarting is not None:  # what was there before a new agent is the operator's
            await self.destination.clean_up()
        await asyncio.sleep(self.scenario.lead)
        await self._judge()
        await self.destination.stop()
        self.outcome.seconds = asyncio.get_running_loop().time()
        return self.outcome

    async def _move(self) -> None:
        self.source.run()
        await asyncio.wait([self.source.command])
        if self._resumes is not None:
            await self._resume(self._resumes)
        command = self.source.command
        if command.cancelled():
            self.outcome.error = asyncio.CancelledError()
        elif error := command.exception():
            self.outcome.error = error
        else:
            self.outcome.summary = command.result()

    async def _resume(self, pause: float) -> None:
        """The source's command was killed: somebody calls ``migrate resume``."""
        command = self.source.command
        if not command.cancelled():
            command.exception()  # what became of it nobody hears
        await asyncio.sleep(pause)
        if (record := await self.source.unfinished()) is not None:
            self.source.resume(record)
            await asyncio.wait([self.source.command])

    async def _wait_for_arrivals(self) -> None:
        """Until the destination has noticed what the source knows, or for long enough."""
        agent, error = self.destination.agent, self.outcome.error
        if error:
            await asyncio.sleep(3 * self.scenario.patience)
        try:
            async with asyncio.timeout(_GRACE + self.scenario.settings.reconnect):
                while agent.active if error else agent.busy:  # noqa: ASYNC110
                    await asyncio.sleep(1 if error else 0.01)
        except TimeoutError:
            self.world.findings.add("stuck", "the destination does not finish")
        self.outcome.arrivals = [stay.summary for stay in self.destination.agent.stays()]

    async def _judge(self) -> None:
        outcome, committed = self.outcome, self.source.job.committed
        interrupted = isinstance(outcome.error, asyncio.CancelledError)
        outcome.abandoned = interrupted and committed
        judge_claims(outcome, committed)
        if outcome.abandoned:
            return
        await self.world.settle()
        self.world.check()
        if not self.destination.agent.busy:
            judge_leftovers(self.world, outcome.owner)
        done = outcome.summary is not None and outcome.summary.outcome == "done"
        if done and not outcome.violations:
            judge_durability(self.world, GUEST)


class _Collector(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.messages.append(record.getMessage())


async def _play(seed: int, scenario: Scenario, dramas: list[_Drama]) -> Outcome:
    drama = _Drama(seed, scenario)
    dramas.append(drama)
    collector = _Collector()
    drama.outcome.warnings = collector.messages
    logger = logging.getLogger("vmferry")
    logger.addHandler(collector)
    try:
        return await drama.play()
    finally:
        logger.removeHandler(collector)


def simulate(seed: int, scenario: Scenario) -> Outcome:
    """Run a migration from beginning to end; the same seed and scenario give the same outcome.

    What went wrong is in ``Outcome.violations``. A simulation in which nothing happens any more
    is a violation too.
    """
    dramas: list[_Drama] = []
    try:
        return run(_play(seed, scenario, dramas), seed=seed, shuffle=scenario.shuffle, limit=_LIMIT)
    except SimulationStuck as stuck:
        outcome = dramas[0].outcome
        outcome.error = stuck
        outcome.violations.append(Violation("stuck", 0.0, str(stuck)))
        return outcome
