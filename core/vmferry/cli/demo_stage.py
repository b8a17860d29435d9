"""The demo's two hosts on one machine: a trial guest, an agent process and the source's job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from vmferry.api import Trial, Verdict
from vmferry.cli.agent_process import AgentProcess
from vmferry.cli.assembly import assemble
from vmferry.cli.display import Display
from vmferry.cli.exits import ExitCode
from vmferry.cli.run import make_job, migrate_guest
from vmferry.plugins import ANY_PLUGIN, load

__all__ = ["Stage"]

Settings = dict[str, dict[str, dict[str, Any]]]


def _with(settings: Settings, kind: str, options: Mapping[str, str]) -> Settings:
    """``settings`` with options for any plugin of a kind, where they do not say otherwise."""
    table = {name: dict(plugins) for name, plugins in settings.items()}
    plugins = table.setdefault(kind, {})
    plugins[ANY_PLUGIN] = {**options, **plugins.get(ANY_PLUGIN, {})}
    return table


def _flat(settings: Settings, kind: str) -> list[str]:
    """The options of a kind as ``--KIND-opt`` takes them."""
    return [
        f"{'' if plugin == ANY_PLUGIN else plugin + '.'}{key}={value}"
        for plugin, options in settings.get(kind, {}).items()
        for key, value in options.items()
    ]


@dataclass(frozen=True)
class Stage:
    """Where a demo plays.

    Attributes:
        folder: holds everything that is made.
        hypervisor: name of the trial and of its hypervisor.
        transport: scheme of the connection.
        settings: options of plugins.
        display: shows the source's side.
        before: seconds the guest runs before it is migrated.
        after: seconds it runs at the destination before it is checked.

    """

    folder: Path
    hypervisor: str
    transport: str
    settings: Settings
    display: Display
    before: float
    after: float

    async def play(self, disk_size: int, choices: dict[str, Any]) -> Verdict | ExitCode:
        """Run the whole demo; an exit code if the migration did not come to its end."""
        plugins = self.settings.get("trial", {})
        options = {**plugins.get(ANY_PLUGIN, {}), **plugins.get(self.hypervisor, {})}
        trial = cast("Trial[Any]", load("trial", self.hypervisor, options))
        try:
            guest = await trial.start(self.folder, disk_size)
            self.display.event("", "guest-started", {"guest": guest, "folder": str(self.folder)})
            await asyncio.sleep(self.before)
            return await self._migrate(trial, guest, choices)
        finally:
            await trial.close()

    async def _migrate(
        self, trial: Trial[Any], guest: str, choices: dict[str, Any]
    ) -> Verdict | ExitCode:
        async with AgentProcess(self.folder, self._url(), self._agent_options(trial)) as agent:
            source = _with(self.settings, "hypervisor", trial.host_options("source"))
            source.pop("trial", None)
            state = self.folder / "source-agent"
            async with assemble(source, self.display, state, "source") as assembly:
                job = make_job(assembly, guest, self.hypervisor, agent.address, choices)
                code = await migrate_guest(job, state)
                if code is not ExitCode.OK:
                    return code
        await asyncio.sleep(self.after)
        return await trial.verdict(job.locations[0])

    def _url(self) -> str:
        return f"{self.transport}://127.0.0.1:0"

    def _agent_options(self, trial: Trial[Any]) -> dict[str, list[str]]:
        there = _with(self.settings, "hypervisor", trial.host_options("destination"))
        return {kind: _flat(there, kind) for kind in ("hypervisor", "transport", "volume")}
