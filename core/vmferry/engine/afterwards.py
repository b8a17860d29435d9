"""What the source does after the commit: say go, serve PULL, come back if the link breaks.

The guest is the destination's. Nothing here ever resumes it at the source, and no failure of a
clean-up fails the migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vmferry.api.hooks import Phase
from vmferry.api.hypervisor import Departure
from vmferry.dirtymap import DirtyMap
from vmferry.engine.attaching import attach, why_not
from vmferry.engine.attempt import attempt
from vmferry.engine.comeback import Comeback
from vmferry.engine.disks import SourceDisk
from vmferry.engine.meter import Gauge, Meter
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.pull import PullSource
from vmferry.engine.sender import Sender
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings
from vmferry.engine.stall import unstalled
from vmferry.engine.stop import collect_map
from vmferry.engine.throttle import Throttle
from vmferry.errors import PeerError, ProtocolError, VmferryError
from vmferry.wire.link import Link
from vmferry.wire.messages import Account, Bye, Go, Local, Running

__all__ = ["Afterwards"]


class Afterwards:
    """The rest of a committed job.

    Attributes:
        running: the destination has said that the guest runs.
        told: set then, for whoever waits for it.
        downtime: seconds from the suspend until that was heard; ``None`` before.
        local: the destination's last word, once everything is there.

    """

    def __init__(
        self,
        services: Services,
        settings: Settings,
        meter: Meter,
        throttle: Throttle,
        disks: Sequence[SourceDisk],
        departure: Departure,
        *,
        job: str,
        token: bytes,
        epoch: int,
        suspended: float,
    ) -> None:
        self.running = False
        self.told = asyncio.Event()
        self.downtime: float | None = None
        self.local: Local | None = None
        self._services, self._settings, self._meter = services, settings, meter
        self._throttle, self._disks, self._departure = throttle, disks, departure
        self._job, self._token, self._epoch = job, token, epoch
        self._suspended = suspended
        self._pull: PullSource | None = None
        self._released = self._attached = False
        self._destroying: asyncio.Task[bool] | None = None

    async def wait_told(self) -> None:
        """Return once the destination has said that the guest runs."""
        await self.told.wait()

    async def go_on(self, link: Link, sender: Sender) -> None:
        """On the connection that carried PUSH."""
        await self._release(link)
        await self._serve(link, sender, [disk.wire_map() for disk in self._disks])

    async def come_back(self, connect: Callable[[], Awaitable[Link]], make: MakeSender) -> None:
        """Over new connections until done.

        Raises:
            LinkTimeout: nothing went over for as long as the settings allow.
            PeerError: the destination does not know the job, or has failed for good.

        """
        left = self._left()
        tries = Comeback(self._settings.reconnect)
        while self.local is None:
            try:
                self._attached = False
                async with await connect() as link:
                    await link.guard(self._again(link, make(link)))
            except (VmferryError, OSError) as error:
                self._complain(error)
                moved, left = self._left() != left, self._left()
                await tries.wait(error, moved=moved)

    def _left(self) -> int:
        return self._pull.left_bytes() if self._pull is not None else -1

    def _complain(self, error: Exception) -> None:
        """Tell observers; raise what coming back cannot mend: the destination turned us away."""
        self._services.hooks.event(self._job, "link-lost", error=str(error))
        if isinstance(error, PeerError) and not self._attached:
            raise error

    async def _again(self, link: Link, sender: Sender) -> None:
        resumed, _ = await attach(link, self._job, self._token, self._epoch)
        if isinstance(resumed, Account):
            # the destination ends the connection behind it, which cancels this
            await uninterrupted(self._take_account(resumed))
            return
        if resumed.pushing:
            raise ProtocolError("Resumed: PUSH is over, and the commit is made")
        self._attached = not resumed.local
        self._services.hooks.event(self._job, "reconnected", running=resumed.running)
        if not resumed.running:
            await self._release(link)
        await self._note_running()
        if resumed.local:
            await self._finish(link, await link.expect(Local))
            return
        maps = [
            await collect_map(
                link, disk.index, disk.disk.size, disk.offered, self._services.workers
            )
            for disk in self._disks
        ]
        await self._serve(link, sender, maps)

    async def _take_account(self, account: Account) -> None:
        """Nobody there goes on with the job: it is over there, or cannot be gone on with."""
        if account.outcome != "done":
            raise PeerError(why_not(account))
        await self._note_running()
        self.local = Local()

    async def _release(self, link: Link) -> None:
        """The guest is let go of here before the destination is told to run it."""
        await self._release_guest()
        await link.send(Go(epoch=self._epoch))
        await link.expect(Running)
        await self._note_running()

    async def _release_guest(self) -> None:
        """The hypervisor's own go: once, and whatever it says, the commit is made."""
        if self._released:
            return
        self._released = True
        complaint = "the hypervisor at the source could not let go of the guest"
        await attempt(complaint, self._departure.release())

    async def _note_running(self) -> None:
        if self.running:
            return
        self.running = True
        self.told.set()
        self.downtime = asyncio.get_running_loop().time() - self._suspended
        self._meter.enter(Phase.PULL)
        self._destroying = asyncio.get_running_loop().create_task(self._destroy())
        await self._note(phase=Phase.PULL)

    async def _destroy(self) -> bool:
        complaint = "the guest left behind at the source could not be removed"
        return await attempt(complaint, self._departure.destroy())

    async def _note(self, **fields: Any) -> None:
        """The commit is made: a journal that fails now is no reason to leave the guest alone."""
        record = self._services.journal.update(self._job, **fields)
        await uninterrupted(attempt("the journal could not be written", record))

    async def leave(self) -> None:
        """To be called before the disks are closed, however it ends.

        Unless the destination has everything, nothing more of the guest is removed: what serves
        its disks, and would end with their last user, has to be there when the job is taken up.
        """
        if self.local is None and self._destroying is not None:
            self._destroying.cancel()
            await asyncio.wait({self._destroying})

    async def settle(self) -> None:
        """Return when nothing of the guest is being removed here any more.

        Only then is the job over here: until it is noted so, it can be taken up to remove the rest.
        """
        if self._destroying is not None:
            await asyncio.wait({self._destroying})
        if self.local is not None and self._removed:
            await self._note(phase=Phase.DONE, outcome="done")

    @property
    def _removed(self) -> bool:
        removing = self._destroying
        return removing is None or (not removing.cancelled() and removing.result())

    async def _serve(self, link: Link, sender: Sender, left: Sequence[DirtyMap]) -> None:
        self._pull = PullSource(
            link,
            [disk.volume for disk in self._disks],
            left,
            sender,
            self._services.workers,
            self._throttle,
            self._settings.pull_piece,
        )
        self._meter.gauge("pull", self._pull.left_bytes(), refresh=self._refresh)
        pull = self._pull
        local = await unstalled(
            pull.serve(),
            link,
            timeout=self._settings.stall_timeout,
            meter=self._meter,
            throttle=self._throttle,
            flushing=lambda: not pull.left_bytes(),
        )
        await self._finish(link, local)

    def _refresh(self, gauge: Gauge) -> None:
        if self._pull is not None:
            gauge.done = gauge.total - self._pull.left_bytes()

    async def _finish(self, link: Link, local: Local) -> None:
        self.local = local
        await link.send(Bye())


MakeSender = Callable[[Link], Sender]
