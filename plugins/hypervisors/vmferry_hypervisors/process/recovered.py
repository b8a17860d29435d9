"""A departure that was cut off by the end of its agent."""

from __future__ import annotations

import asyncio
import signal

from vmferry.api.hypervisor import Departure
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.folder import GuestFolder
from vmferry_hypervisors.process.options import ProcessOptions

__all__ = ["RecoveredDeparture"]


class RecoveredDeparture(Departure):
    """A guest that may have been suspended by an agent that is gone."""

    def __init__(self, folder: GuestFolder, options: ProcessOptions) -> None:
        self._folder, self._options = folder, options

    async def precopy(self) -> None:
        """Not possible any more."""
        raise HypervisorError(f"guest {self._folder.name}: its departure was cut off")

    async def suspend(self) -> None:
        """Not possible any more."""
        raise HypervisorError(f"guest {self._folder.name}: its departure was cut off")

    async def transfer(self) -> None:
        """Not possible any more."""
        raise HypervisorError(f"guest {self._folder.name}: its departure was cut off")

    async def release(self) -> None:
        """Nothing: this hypervisor's stream has no go of its own."""

    async def resume(self) -> None:
        """Let the process go on, and the guest in it; both may never have stopped."""
        if self._folder.pid() is None:
            raise GuestStopped(f"guest {self._folder.name} does not run here any more")
        self._folder.signal(signal.SIGCONT)
        await call(self._folder.path, Command("resume"), self._options.timeout)

    async def destroy(self) -> None:
        """Kill the process, remove its files but the console."""
        await asyncio.to_thread(self._folder.kill)
        await asyncio.to_thread(self._folder.remove)
