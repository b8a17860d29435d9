"""The departure of a guest whose agent was ended in the middle of it.

What such an agent leaves: ``xl migrate`` with its relay, if the relay was told to hold; otherwise
xl has resumed the guest by itself already. xl and relay are found by what they were called with.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from vmferry.api.hypervisor import Departure
from vmferry.errors import HypervisorError
from vmferry_hypervisors.xen import relay
from vmferry_hypervisors.xen.config import DomainConfig
from vmferry_hypervisors.xen.leaving import make_run, remove_domain
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.suspension import state_of

__all__ = ["RecoveredDeparture"]

_POLL = 0.2


class RecoveredDeparture(Departure):
    """A departure that is to be decided.

    Args:
        domid: of the guest that stayed; ``None`` if there is none any more.
        config: its configuration.
        options: the plugin's.
        devices: device-mapper devices of an earlier arrival that go with the guest.

    """

    def __init__(
        self,
        domid: int | None,
        config: DomainConfig,
        options: XenOptions,
        devices: Sequence[str] = (),
    ) -> None:
        self._domid, self._config, self._options = domid, config, options
        self._devices = devices

    async def precopy(self) -> None:
        """Not possible any more."""
        raise HypervisorError(f"guest {self._config.name}: what was sent of it is lost")

    async def suspend(self) -> None:
        """Not possible any more."""
        await self.precopy()

    async def transfer(self) -> None:
        """Not possible any more."""
        await self.precopy()

    async def release(self) -> None:
        """Kill xl before its relay, so that it cannot resume the guest.

        Raises:
            HypervisorError: the guest runs here, though it was given away.

        """
        for pid in await asyncio.to_thread(_programs, self._domid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        state = await state_of(self._domid) if self._domid is not None else None
        if state is not None and not state.shutdown:
            raise HypervisorError(
                f"guest {self._config.name} runs here as domain {self._domid}, though it was given "
                "away: see that it does not run at the destination as well"
            )

    async def resume(self) -> None:
        """End the relay, upon which xl resumes the guest, and see to it that it does run."""
        programs = await asyncio.to_thread(_programs, self._domid)
        for pid in programs[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if programs:
            await self._wait_for_end(programs[0])
        if self._domid is None:
            raise HypervisorError(f"there is no domain of guest {self._config.name} here")
        await make_run(self._domid, self._config.name, self._options.xenstore)

    async def _wait_for_end(self, pid: int) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._options.timeout
        while _is_there(pid) and loop.time() < until:  # noqa: ASYNC110 - not a child of ours
            await asyncio.sleep(_POLL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    async def destroy(self) -> None:
        """End what is left of xl and of the guest."""
        await self.release()
        if self._domid is not None:
            await remove_domain(self._domid, self._config, self._devices)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _programs(domid: int | None, proc: Path = Path("/proc")) -> list[int]:
    """``xl migrate`` of that domain with our relay, then the relay; empty if there is neither."""
    name = Path(relay.__file__).name.encode()
    senders, relays = [], []
    for folder in proc.glob("[0-9]*"):
        words: list[bytes] = []
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
        called = words[words.index(b"migrate") :] if b"migrate" in words else []
        if called[3:4] == [str(domid).encode()] and any(name in word for word in called[4:]):
            senders.append(int(folder.name))
        elif any(word.endswith(b"xen/" + name) for word in words):
            relays.append(folder)
    return senders + [int(each.name) for each in relays if _parent(each) in senders]


def _parent(folder: Path) -> int:
    """The parent of a process, of ``/proc/PID/stat``."""
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
