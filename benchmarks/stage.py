"""What the engine's benchmarks share: an agent process and a job over a guest that does nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from nothing import NAME, Nothing, nothing_installed

from vmferry.api import Disk
from vmferry.cli import main as migrate
from vmferry.cli.agent_process import AgentProcess
from vmferry.cli.assembly import assemble
from vmferry.cli.display import QuietDisplay
from vmferry.cli.run import make_job
from vmferry.engine.source import SourceJob

__all__ = ["BenchAgent", "be_agent_if_asked", "staged"]


class BenchAgent(AgentProcess):
    """``migrate serve`` in a process that knows the plugins of the benchmarks."""

    def _command(self) -> list[str]:
        return [sys.executable, os.fspath(Path(sys.argv[0])), "--agent", *super()._command()[3:]]

    @property
    def pid(self) -> int:
        return self._process.pid


def be_agent_if_asked() -> None:
    """Be the agent that ``BenchAgent`` starts from the same script."""
    if sys.argv[1:2] == ["--agent"]:
        with nothing_installed():
            sys.exit(migrate(sys.argv[2:]))


@asynccontextmanager
async def staged(
    disk: Path, folder: Path, choices: dict[str, Any]
) -> AsyncIterator[tuple[SourceJob, BenchAgent]]:
    """A job that moves ``disk`` to an agent whose pool is below ``folder``."""
    Nothing.disk = Disk(name="disk0", size=disk.stat().st_size, location=str(disk), tracker=NAME)
    async with (
        BenchAgent(folder, "tcp://127.0.0.1:0", {}) as agent,
        assemble({}, QuietDisplay(), folder / "state", "source") as assembly,
    ):
        yield make_job(assembly, NAME, NAME, agent.address, choices), agent
