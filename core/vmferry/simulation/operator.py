"""An operator who knows only the documented commands, and brings a migration to its end."""

from __future__ import annotations

import asyncio

from vmferry.api.hooks import Summary
from vmferry.engine.journal import JobRecord
from vmferry.errors import VmferryError
from vmferry.simulation.process import ProcessDied
from vmferry.simulation.programs import DestinationPrograms, SourcePrograms, Stage
from vmferry.simulation.world import DESTINATION

__all__ = ["Operator"]

_PAUSE = 2.0
"""Seconds until somebody starts a program again that was killed."""
_COMMANDS = 6
"""How often the operator tries."""
_QUIET = 90.0
"""Seconds that the destination has to finish by itself."""


class Operator:
    """Sees exit codes and what ``migrate status`` shows on both hosts.

    Attributes:
        error: of the last command at the source, if it failed.
        summary: its summary, if it did not.

    """

    def __init__(
        self, stage: Stage, source: SourcePrograms, destination: DestinationPrograms
    ) -> None:
        self._stage, self._source, self._destination = stage, source, destination
        self._restarting: asyncio.Task[None] | None = None
        self.error: BaseException | None = None
        self.summary: Summary | None = None

    def agent_died(self) -> None:
        """The destination's agent is killed; somebody starts another one."""
        self._destination.kill()
        if self._restarting is not None and self._restarting.done():
            self._restarting.exception()  # the one that has died now had not come far
        self._restarting = asyncio.create_task(self._destination.restart(_PAUSE))

    async def bring_to_end(self) -> None:
        """Give commands until the job is over on both hosts; else that is a finding."""
        for tried in range(_COMMANDS):
            await self._command_ended()
            if (record := await self._source.unfinished()) is not None:
                await asyncio.sleep(_PAUSE)
                await self._end_at_source(record, tried)
            elif await self._destination_is_done():
                return
            else:
                await self._end_at_destination()
        await self._command_ended()
        self._stage.world.findings.add("no-end", "no command brings the job to its end")

    async def _end_at_source(self, record: JobRecord, tried: int) -> None:
        """``migrate resume`` or ``resolve``; the latter if that did not help, with a new agent."""
        if not tried and not self._stage.scenario.resolves:
            self._source.resume(record)
            return
        if tried > 1:
            await self._start_agent_anew()
        self._source.resolve(record)

    async def _end_at_destination(self) -> None:
        """``migrate resolve --peer-journal``, or a new agent if that cannot help."""
        source = await self._source.record()
        try:
            settled = await self._destination.resolve(source)
        except VmferryError as error:
            self._stage.world.trace.add("engine", DESTINATION, "resolve", {"error": str(error)})
            settled = False
        if not settled:
            await self._start_agent_anew()

    async def clean_up(self) -> None:
        """``migrate cleanup --disks``, again if it fails."""
        for _ in range(_COMMANDS):
            try:
                await self._destination.clean_up()
                return
            except VmferryError:
                await asyncio.sleep(_PAUSE)
            except ProcessDied:
                await self._start_agent_anew()

    async def _command_ended(self) -> None:
        command = self._source.command
        await asyncio.wait([command])
        self.error = self.summary = None
        if command.cancelled():
            self.error = asyncio.CancelledError()
        elif error := command.exception():
            self.error = error
        else:
            self.summary = command.result()

    async def _destination_is_done(self) -> bool:
        """Whether nothing goes on there, after so long that it should not."""
        await self._agent_runs()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _QUIET
        while loop.time() < deadline:
            agent = self._destination.agent
            if not (agent.busy or agent.active) and self._destination.process.alive:
                return True
            await asyncio.sleep(0.1)
            await self._agent_runs()
        return False

    async def _agent_runs(self) -> None:
        while self._restarting is not None and not self._restarting.done():
            await asyncio.wait([self._restarting])
        if self._restarting is not None and self._restarting.exception() is not None:
            self._restarting = asyncio.create_task(self._destination.start())
            await asyncio.wait([self._restarting])

    async def _start_agent_anew(self) -> None:
        await self._agent_runs()
        self._destination.kill()
        await self._destination.restart(_PAUSE)
