"""When a domain that xl migrates stops: seen by watches of xenstore, made sure of by libxl.

libxl asks the guest by ``control/shutdown = suspend``; the guest takes the word away and stops, and
xenstored fires ``@releaseDomain``, as it does for any domain that ends.
"""

from __future__ import annotations

import asyncio
import contextlib

from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.xen.libxl import DomainState, LibraryMissing, domain_state
from vmferry_hypervisors.xen.xenstore import XenStore
from vmferry_hypervisors.xen.xl import list_domains

__all__ = ["SuspendWatch", "state_of"]

_LOOK = 1.0
"""Seconds after which the state is looked at even if no watch fired."""


async def state_of(domid: int) -> DomainState | None:
    """What a domain does; ``None`` if there is none."""
    try:
        return await asyncio.to_thread(domain_state, domid)
    except LibraryMissing:
        rows = [row for row in await list_domains() if row.domid == domid]
    return _state_by_letters(rows[0].state) if rows else None


def _state_by_letters(letters: str) -> DomainState:
    """Of ``xl list``: running, blocked, paused, shutdown, its reason, dying; ``-`` where not."""
    reasons = {"-": 0, "r": 1, "s": 2, "c": 3, "w": 4}
    padded = letters.ljust(6, "-")
    return DomainState(
        shutdown=padded[3] == "s",
        reason=reasons.get(padded[4], -1),
        dying=padded[5] == "d",
        paused=padded[2] == "p",
    )


class SuspendWatch:
    """Watches one domain from ``start`` until ``close``.

    Attributes:
        asked: set when the guest has been asked to suspend, or has stopped for whatever reason.
        stopped: set when it has stopped, or is gone; ``state`` says which.
        at: the loop's time of the event by which it was found stopped; ``None`` before.

    """

    def __init__(self, domid: int, name: str, socket: str) -> None:
        self.asked, self.stopped = asyncio.Event(), asyncio.Event()
        self.state: DomainState | None = None
        self.at: float | None = None
        self._domid, self._name = domid, name
        self._store = XenStore(socket)
        self._task: asyncio.Task[None] | None = None
        self._error: Exception | None = None

    async def start(self) -> None:
        """Begin to watch."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._watch()
        except Exception as error:
            self._error = error
        finally:
            self.asked.set()
            self.stopped.set()

    async def _watch(self) -> None:
        path = f"/local/domain/{self._domid}/control/shutdown"
        async with XenStore(self._store.socket) as values, self._store as events:
            for watched in (path, "@releaseDomain"):
                await events.watch(watched)
            while True:
                fired = ""
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK):
                        fired = await events.event()
                if fired == path and await values.get(path) == "suspend":
                    self.asked.set()
                    continue
                now = asyncio.get_running_loop().time()  # asking for the state takes a while
                self.state = await state_of(self._domid)
                if self.state is None or self.state.shutdown or self.state.dying:
                    self.at = now
                    return

    async def suspended(self, timeout: float) -> None:
        """Return when the guest stands still to be migrated.

        Raises:
            GuestStopped: it stopped for another reason, or is gone.
            HypervisorError: it does not stop, or nobody can tell.

        """
        try:
            async with asyncio.timeout(timeout):
                await self.stopped.wait()
        except TimeoutError:
            raise HypervisorError(
                f"guest {self._name} does not suspend within {timeout:g} seconds"
            ) from None
        if self._error is not None:
            raise HypervisorError(f"guest {self._name}: {self._error}") from self._error
        if self.state is None or not self.state.suspended:
            raise GuestStopped(f"guest {self._name} shut down, crashed or was destroyed")

    async def close(self) -> None:
        """Stop watching. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
