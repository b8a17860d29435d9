"""A departure whose agent ended in the middle of it."""

from __future__ import annotations

from vmferry.api.hypervisor import Departure
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.qemu.departure import QemuDeparture

__all__ = ["RecoveredDeparture"]


class RecoveredDeparture(Departure):
    """Only its end; ``departure`` is ``None`` if the guest's QEMU is gone."""

    def __init__(self, name: str, departure: QemuDeparture | None) -> None:
        self._name, self._departure = name, departure

    def _late(self) -> HypervisorError:
        return HypervisorError(f"guest {self._name}: its departure was cut short")

    async def precopy(self) -> None:
        """Too late."""
        raise self._late()

    async def suspend(self) -> None:
        """Too late."""
        raise self._late()

    async def transfer(self) -> None:
        """Too late."""
        raise self._late()

    async def release(self) -> None:
        """Nothing."""

    async def resume(self) -> None:
        """End what QEMU was doing, let the guest run."""
        if self._departure is None:
            raise GuestStopped(f"guest {self._name}: its QEMU has ended")
        await self._departure.resume()

    async def destroy(self) -> None:
        """End QEMU, if it is there.

        Raises:
            HypervisorError: the guest runs here, though it was given away.

        """
        if self._departure is None:
            return
        if await self._departure.runs():
            raise HypervisorError(
                f"guest {self._name} runs here, though it was given away: look where it is to run"
            )
        await self._departure.destroy()
