"""Room for an arriving guest: how much Xen has free, and who can be ballooned down for it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from vmferry.errors import HypervisorError
from vmferry.units import MIB
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.xl import DomainRow, HostInfo, list_domains, parse_info, xl

__all__ = ["Balloon", "MemoryPlan", "MemoryReservation", "plan_memory"]

_POLL = 0.5


class Balloon(NamedTuple):
    """A domain whose memory goes ``before`` -> ``after``, MiB."""

    domid: int
    name: str
    before: int
    after: int


class MemoryPlan(NamedTuple):
    """How a guest is made room for.

    Attributes:
        needed: bytes, what is to stay free included.
        free: bytes that are free as it is.
        balloons: who gives memory; none if enough is free.
        short: bytes that would be missing even so.

    """

    needed: int
    free: int
    balloons: tuple[Balloon, ...] = ()
    short: int = 0

    @property
    def text(self) -> str:
        """The plan in words, in MiB throughout: the difference is what counts."""
        given = ", ".join(
            f"{each.name} from {each.before} to {each.after} MiB" for each in self.balloons
        )
        ballooning = f"; ballooning {given}" if given else ""
        short = f"; {self.short // MIB} MiB short" if self.short else ""
        return (
            f"{-(-self.needed // MIB)} MiB needed, what is to stay free included, "
            f"{self.free // MIB} MiB free{ballooning}{short}"
        )


def plan_memory(
    needed: int, host: HostInfo, domains: Sequence[DomainRow], options: XenOptions
) -> MemoryPlan:
    """Who gives how much, within the limits of the options: dom0 first, then the largest guests."""
    total = needed + options.spare_memory
    missing = -(-(total - host.free) // MIB)
    balloons = []
    ordered = sorted(domains, key=lambda row: (row.domid != 0, -row.memory))
    for row in ordered:
        least = options.min_guest_memory if row.domid else options.min_dom0_memory
        give = min(missing, row.memory - -(-least // MIB))
        if least and give > 0:
            balloons.append(Balloon(row.domid, row.name, row.memory, row.memory - give))
            missing -= give
    return MemoryPlan(total, host.free, tuple(balloons), max(0, missing) * MIB)


class MemoryReservation:
    """Memory freed for one guest; ``undo`` gives it back."""

    def __init__(self, options: XenOptions) -> None:
        self._options = options
        self._done: list[Balloon] = []

    async def make(self, needed: int) -> None:
        """Free what is missing, and wait for it.

        Raises:
            HypervisorError: not enough can be freed, or the balloons do not shrink in time; then
                everybody has been given back what was taken.

        """
        host = parse_info(await xl("info"))
        plan = plan_memory(needed, host, await list_domains(), self._options)
        if plan.short:
            raise HypervisorError(f"not enough memory for the guest: {plan.text}")
        try:
            for balloon in plan.balloons:
                self._done.append(balloon)
                await xl("mem-set", str(balloon.domid), f"{balloon.after}m")
            if plan.balloons:
                await self._wait(plan)
        except BaseException:
            await self.undo()
            raise

    async def _wait(self, plan: MemoryPlan) -> None:
        loop = asyncio.get_running_loop()
        free, moved = plan.free, loop.time()
        while free < plan.needed:
            await asyncio.sleep(_POLL)
            now = parse_info(await xl("info")).free
            if now > free:
                free, moved = now, loop.time()
            elif loop.time() - moved > self._options.timeout:
                raise HypervisorError(f"memory is not being freed: {plan.text}; has it a balloon?")

    async def undo(self) -> None:
        """Give everybody back what was taken. May be called twice."""
        while self._done:
            balloon = self._done.pop()
            await xl("mem-set", str(balloon.domid), f"{balloon.before}m")
