"""A simulated host: its disks, its guests, and what serves their disks."""

from __future__ import annotations

from random import Random

from vmferry.api.volume import Access
from vmferry.simulation.backend import SimBackend
from vmferry.simulation.guest import SimGuest
from vmferry.simulation.process import SimProcess
from vmferry.simulation.trouble import HostTrouble
from vmferry.simulation.volume import SimDriver, SimStorage, SimVolume

__all__ = ["SimHost"]


class SimHost:
    """One machine.

    Attributes:
        name: of the host, and its address.
        storage: its disks.
        guests: those that are here, running or not, by name.
        backends: what serves the guests' disks, by the disk's name.
        volumes: the plain disks that backends have open, by the disk's name.
        waiting: guests that have arrived complete and have not run here yet, by name.
        trouble: errors that vmferry's programs meet here.

    """

    def __init__(self, name: str, storage: SimStorage, random: Random) -> None:
        self.name, self.storage, self.random = name, storage, random
        self.guests: dict[str, SimGuest] = {}
        self.backends: dict[str, SimBackend] = {}
        self.volumes: dict[str, SimVolume] = {}
        self.waiting: dict[str, SimGuest] = {}
        self.trouble = HostTrouble()
        self._power = SimProcess(name)

    async def attach(self, disk: str, location: str) -> SimVolume:
        """Open a plain disk for a guest, as its backend does."""
        volume = await SimDriver(self.storage, self._power).open(location, Access.WRITE)
        assert isinstance(volume, SimVolume)
        self.volumes[disk] = volume
        return volume

    async def detach(self, disk: str) -> None:
        """Let go of a guest's disk, whatever it is attached to."""
        backend = self.backends.pop(disk, None)
        if backend:
            backend.drop()
        volume = self.volumes.pop(disk, None)
        if volume:
            await volume.close()

    def lose_power(self) -> None:
        """Everything that runs here is gone, and what was not durable may be."""
        self._power.kill()
        self._power = SimProcess(self.name)
        for guest in self.guests.values():
            guest.destroy()
        for backend in self.backends.values():
            backend.drop()
        self.guests.clear()
        self.waiting.clear()
        self.backends.clear()
        self.volumes.clear()
        self.storage.lose_power()
