"""Putting the real services together: plugins, threads, journal, hooks."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from vmferry.api.transport import Address, Connection
from vmferry.cli.display import Display
from vmferry.cli.state import private_folder, state_option
from vmferry.engine.context import ThreadWorkers
from vmferry.engine.journal import Journal
from vmferry.engine.journal_sqlite import SqliteJournal
from vmferry.engine.services import Services
from vmferry.plugins import Hooks, OptionTable, Registry
from vmferry.wire.link import LIMITS

__all__ = ["Assembly", "assemble", "private_folder", "state_option"]

_OTHER = {"source": "destination", "destination": "source"}
_SWITCH = 0.0005
"""Seconds after which a thread that computes lets the event loop have Python's lock. The default
of 5 ms would be added to each request of a guest that meets a busy thread."""


@dataclass(frozen=True)
class Assembly:
    """What a command works with while it runs.

    Attributes:
        registry: plugins with the user's options.
        hooks: the display and all installed hook plugins.
        workers: threads for digests and compression.
        journal: this host's, in its role.
        beside: its journal in the other role.
        state: folder of the journal and the job sockets.

    """

    registry: Registry
    hooks: Hooks
    workers: ThreadWorkers
    journal: Journal
    beside: Journal
    state: Path

    def services(self) -> Services:
        """What a source's engine is given."""
        return Services(
            registry=self.registry,
            hooks=self.hooks,
            workers=self.workers,
            journal=self.journal,
            beside=self.beside,
            cpu_clock=time.perf_counter,
        )

    async def connect(self, address: Address, lanes: int) -> Connection:
        """Connect by the transport that the URL's scheme names."""
        transport = self.registry.transport(address.scheme)
        return await transport.connect(address, lanes=lanes, limits=LIMITS)


@asynccontextmanager
async def assemble(
    settings: OptionTable, display: Display, state: Path, role: str
) -> AsyncIterator[Assembly]:
    """Everything real, and given back at the end.

    Raises:
        InputError: a plugin's options, or the state folder, cannot be used.

    """
    sys.setswitchinterval(_SWITCH)
    registry = Registry(settings)
    registry.check()
    hooks = Hooks()
    hooks.register(display, "display")
    hooks.load()
    folder = private_folder(state)
    workers = ThreadWorkers()
    journal = await SqliteJournal(folder / f"{role}.sqlite").open()
    beside = SqliteJournal(folder / f"{_OTHER[role]}.sqlite")
    try:
        yield Assembly(registry, hooks, workers, journal, beside, folder)
    finally:
        await beside.close()
        await journal.close()
        await asyncio.get_running_loop().run_in_executor(None, workers.close)
