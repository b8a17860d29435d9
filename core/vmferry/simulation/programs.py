"""The commands of vmferry on two simulated hosts: processes that can be killed at any moment."""

from __future__ import annotations

import asyncio
from typing import Any

from vmferry.api.hooks import Summary
from vmferry.api.transport import Address, Connection
from vmferry.engine.agent import Agent
from vmferry.engine.context import InlineWorkers
from vmferry.engine.continuing import ContinuedJob
from vmferry.engine.deciding import AtDestination, AtSource
from vmferry.engine.journal import JobRecord, MemoryJournal
from vmferry.engine.policy import DefaultPolicy
from vmferry.engine.pool import Pool
from vmferry.engine.resolving import Action, may_continue
from vmferry.engine.resuming import ResumedJob
from vmferry.engine.services import DestinationServices, Services
from vmferry.engine.source import SourceJob
from vmferry.engine.tidying import tidy_up, untidy
from vmferry.errors import InputError
from vmferry.plugins import Hooks
from vmferry.simulation.journal import SimJournal
from vmferry.simulation.outcome import GUEST
from vmferry.simulation.scenario import Scenario
from vmferry.simulation.steps import Steps
from vmferry.simulation.world import DESTINATION, SOURCE, World
from vmferry.wire.link import LIMITS, Link

__all__ = ["DestinationPrograms", "SourcePrograms", "Stage"]

_ADDRESS = Address.parse(f"sim://{DESTINATION}:7420")


def _now() -> float:
    return asyncio.get_running_loop().time()


class Stage:
    """What the programs of both hosts work in.

    Attributes:
        steps: counts what they do.
        phase: what the source is doing.
        hooks: observers, by host.

    """

    def __init__(self, world: World, scenario: Scenario) -> None:
        self.world, self.scenario = world, scenario
        self.steps = Steps()
        self.phase = "handshake"
        self.hooks = {SOURCE: Hooks(), DESTINATION: Hooks()}


class _Programs:
    """Those of one host; of what one did the next finds only what its journal has.

    Attributes:
        store: the journal.
        process: the one that runs, or ran last.

    """

    def __init__(self, stage: Stage, host: str) -> None:
        self.stage, self.host = stage, host
        self.store = MemoryJournal(_now)
        self.process = stage.world.process(host)

    def _services(self) -> dict[str, Any]:
        world, host = self.stage.world, self.host
        journal = SimJournal(
            self.store,
            self.process,
            world.random(f"{host}/journal/{_now()}"),
            self.stage.steps,
            lambda: self.stage.phase,
        )
        return {
            "registry": world.registry(self.process),
            "hooks": self.stage.hooks[host],
            "workers": InlineWorkers(),
            "journal": journal,
            "random": world.random(f"{host}/{_now()}"),
        }

    def kill(self) -> list[asyncio.Task[Any]]:
        """End the process as SIGKILL does; returns its tasks, which are ending."""
        self.process.kill()
        self.store = self.store.crash()
        tasks = self._tasks()
        for task in tasks:
            task.cancel()
        return tasks

    def _tasks(self) -> list[asyncio.Task[Any]]:
        raise NotImplementedError


class SourcePrograms(_Programs):
    """``migrate run`` and ``migrate resume``.

    Attributes:
        job: what the command works on.
        command: the command that runs, or ran last.

    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, SOURCE)
        self.job: SourceJob | ResumedJob
        self.command: asyncio.Task[Summary | None]

    def run(self) -> None:
        """``migrate run``."""
        scenario = self.stage.scenario
        self.job = SourceJob(
            Services(**self._services()),
            scenario.settings,
            self._connect,
            guest=GUEST,
            hypervisor="sim",
            peer=str(_ADDRESS),
            policy=DefaultPolicy(scenario.policy),
        )
        self._start(self.job)

    async def unfinished(self) -> JobRecord | None:
        """The job that the journal has, unless it is over."""
        for known in await self.store.jobs():
            record = await self.store.load(known.job)
            try:
                self._resumed(record)
            except InputError:
                continue
            return record
        return None

    def resume(self, record: JobRecord) -> None:
        """``migrate resume JOB``."""
        self.process = self.stage.world.process(SOURCE)
        if may_continue(record):
            self.job = ContinuedJob(Services(**self._services()), record, self._connect)
        else:
            self.job = self._resumed(record)
        self._start(self.job)

    async def record(self) -> JobRecord | None:
        """The job as this host's journal has it; ``None`` if it was not begun."""
        for known in await self.store.jobs():
            return await self.store.load(known.job)
        return None

    def resolve(self, record: JobRecord) -> None:
        """``migrate resolve JOB``."""
        self.process = self.stage.world.process(SOURCE)
        self.command = asyncio.create_task(self._resolve(record), name="source")

    async def _resolve(self, record: JobRecord) -> Summary | None:
        case = AtSource(self._services()["journal"], record, self._link)
        settled = await case.settle(await case.rule())
        if settled is None:
            return None
        self.job = self._resumed(settled)
        return await self.job.run()

    def _resumed(self, record: JobRecord) -> ResumedJob:
        return ResumedJob(Services(**self._services()), record, self._link)

    def _start(self, job: SourceJob | ResumedJob) -> None:
        self.command = asyncio.create_task(job.run(), name="source")

    async def _connect(self, lanes: int) -> Connection:
        transport = self.stage.world.network.transport(self.process)
        return await transport.connect(_ADDRESS, lanes=lanes, limits=LIMITS)

    async def _link(self, lanes: int) -> Link:
        return Link(await self._connect(lanes), patience=self.stage.scenario.settings.patience)

    def _tasks(self) -> list[asyncio.Task[Any]]:
        return [self.command]


class DestinationPrograms(_Programs):
    """``migrate serve``, again and again.

    Attributes:
        agent: the one that runs, or ran last.

    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage, DESTINATION)
        self.agent: Agent
        self._serving: asyncio.Task[None]

    async def start(self) -> None:
        """``migrate serve``: take up what is there, then listen."""
        self.process = self.stage.world.process(DESTINATION)
        exporter = self.stage.world.exporter(self.process)
        services = DestinationServices(**self._services(), exporter=exporter)
        agent = Agent(services, Pool("pool", "sim"), patience=self.stage.scenario.patience)
        transport = self.stage.world.network.transport(self.process)
        self._listener = await transport.listen(_ADDRESS, limits=LIMITS)
        await agent.recover()
        self.agent = agent
        self._serving = asyncio.create_task(agent.serve(self._listener), name="agent")

    async def restart(self, pause: float) -> None:
        """After ``kill``: another agent ``pause`` seconds later."""
        await asyncio.sleep(pause)
        tasks = self._tasks()
        for task in tasks:  # some were made in the last breath
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.start()

    async def resolve(self, source: JobRecord | None) -> bool:
        """``migrate resolve JOB --peer-journal`` of what is not over; whether there was any.

        Args:
            source: the job as the source's journal has it.

        Raises:
            VmferryError: it could not be done.

        """
        services = self._services()
        settled = False
        for known in await self.store.jobs():
            record = await self.store.load(known.job)
            registry, journal = services["registry"], services["journal"]
            case = AtDestination(registry, journal, record, self.agent, peer=source)
            ruling = await case.rule()
            await case.settle(ruling)
            settled |= ruling.action in (Action.DROP, Action.OWN)
        return settled

    async def clean_up(self) -> None:
        """``migrate cleanup --disks``."""
        services = self._services()
        for record in untidy(await self.store.jobs()):
            await tidy_up(services["registry"], services["journal"], record)

    async def stop(self) -> None:
        """End the agent as Ctrl-C does."""
        self._serving.cancel()
        await asyncio.wait([self._serving])
        await self._listener.close()

    def _tasks(self) -> list[asyncio.Task[Any]]:
        return [self._serving, *self.agent.tasks]
