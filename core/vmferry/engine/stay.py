"""One migration at the destination from ``Ready`` on: commit, PULL, pivot.

The destination now holds a complete guest, and only the source knows whether the commit was made.
So the job outlives its connection: it waits, the guest paused or running, until the source attaches
again. ``attach`` serves one connection; what must go on without any is in the job's own tasks.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase, Summary
from vmferry.api.hypervisor import Arrival, Hypervisor
from vmferry.api.plugin import Grade
from vmferry.engine.arrivals import DestinationDisk, undo
from vmferry.engine.attempt import attempt
from vmferry.engine.meter import Gauge, Meter
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.pull import PullDestination
from vmferry.engine.receiver import Receiver
from vmferry.engine.services import DestinationServices
from vmferry.engine.stop import send_map
from vmferry.errors import HypervisorError, ProtocolError, VmferryError
from vmferry.wire.link import Link, Payload
from vmferry.wire.messages import (
    Bye,
    Extent,
    Go,
    Local,
    Message,
    Pushed,
    Ready,
    Resumed,
    Running,
)

__all__ = ["Stay"]

_CHECKPOINT = 1.0
_PIVOT_TRIES = 3


def _ignore(message: Message, payload: Payload) -> None:
    """What the source sent before it could know that everything is local."""


@dataclass
class Stay:
    """A guest that has arrived.

    Attributes:
        job: identifier of the migration.
        token: secret that lets the source attach again.
        epoch: the ownership number agreed on.
        suspended: the loop's time at which the guest was suspended.
        pending: bytes pending at the switch.
        finished: set when nothing is left to do here.
        summary: the outcome, once finished.
        left: the source has noted the end.
        exported: the running guest still uses a disk that this agent serves.

    """

    job: str
    token: bytes
    epoch: int
    guest: Guest
    services: DestinationServices
    meter: Meter
    disks: Sequence[DestinationDisk]
    hypervisor: Hypervisor[Any]
    arrival: Arrival
    suspended: float
    pending: int
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    summary: Summary | None = None
    left: bool = False
    exported: bool = False
    _running: bool = False
    _downtime: float | None = None
    _guest_downtime: float | None = None
    _link: Link | None = None
    _serving: asyncio.Lock = field(default_factory=asyncio.Lock)
    _owning: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._pull = PullDestination([disk.pull for disk in self.disks], self.services.workers)

    @property
    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """What goes on without any connection."""
        return self._tasks

    @property
    def owner(self) -> bool:
        """Whether the guest runs here."""
        return self._running

    def verify(self, token: bytes) -> bool:
        """Whether a connection that shows ``token`` may attach."""
        return hmac.compare_digest(token, self.token)

    async def attach(self, link: Link, *, first: bool = False) -> None:
        """Serve one connection; raises ``LinkError`` when it breaks.

        One that was there before is ended: the source opens another only when it has given up the
        old.
        """
        if self._link is not None:
            self._link.abort()
        try:
            async with self._serving:
                self._link = link
                try:
                    await self._serve(link, first)
                finally:
                    self._link = None
        except BaseException:
            # the link's guard raises what the peer said by itself, and cancels this
            if link.gave_up is not None:
                await uninterrupted(self.withdraw(str(link.gave_up)))
            raise

    async def _serve(self, link: Link, first: bool) -> None:
        if self._running and not self._pull.pending_bytes():
            await self.finished.wait()  # some disks may be the guest's own already
        local = self.finished.is_set()
        if first:
            await link.send(Ready(epoch=self.epoch))
        else:
            resumed = Resumed(epoch=self.epoch, running=self._running, local=local)
            await link.send(resumed)
        if not self._running:
            await self._take_ownership(link)
        if not first and not local:
            await self._send_maps(link)
        if not local:
            await self._pull.serve(link, self._receiver(link))
            for late in (Extent, Pushed):
                link.on(late, _ignore)
        await self.finished.wait()
        await self._take_leave(link)

    def _receiver(self, link: Link) -> Receiver:
        geometries = [disk.volume.geometry for disk in self.disks]
        return Receiver(
            link, geometries, self.services.workers, self._pull.take_pushed, self._flush
        )

    async def _flush(self) -> None:
        for disk in self.disks:
            await disk.pull.checkpoint()

    async def _send_maps(self, link: Link) -> None:
        for index, disk in enumerate(self.disks):
            await send_map(link, index, disk.pull.pending(), self.services.workers)

    async def _take_leave(self, link: Link) -> None:
        assert self.summary is not None
        if self.summary.error:
            await link.fail(VmferryError(self.summary.error))
            return
        downtime = -1.0 if self._guest_downtime is None else self._guest_downtime
        await link.send(Local(on_demand=self._on_demand(), guest_downtime=downtime))
        await link.expect(Bye)
        self.left = True

    # -- the commit

    async def _take_ownership(self, link: Link) -> None:
        go = await link.expect(Go)
        if go.epoch != self.epoch:
            raise ProtocolError(f"Go: epoch {go.epoch} where {self.epoch} was agreed")
        loop = asyncio.get_running_loop()
        began = loop.time()
        await uninterrupted(self._own())
        await link.send(Running(epoch=self.epoch, seconds=loop.time() - began))

    async def _own(self) -> None:
        """The guest is ours, durably; then it runs. Happens once, whatever the connection does."""
        journal = self.services.journal
        async with self._owning:
            if self._running:
                return
            if (await journal.decide(self.job, "owner")).withdrawn:
                raise ProtocolError("Go: the guest was withdrawn before")
            await self.arrival.activate()
            self._running = self.exported = True
            # it runs, and the journal says whose it is: a complaint is enough
            record = journal.update(self.job, phase=Phase.PULL, started=True)
            await attempt("the journal could not be written", record)
        self._downtime = asyncio.get_running_loop().time() - self.suspended
        self._begin_pull()

    def go_on(self) -> None:
        """The guest runs here already, from before this agent was started."""
        self._running = self.exported = True
        self._begin_pull()

    async def own(self) -> None:
        """Run the guest, whose owner this host is already, or is told to be by an operator.

        Raises:
            ProtocolError: the guest was withdrawn before.

        """
        await uninterrupted(self._own())

    def _begin_pull(self) -> None:
        loop = asyncio.get_running_loop()
        self.meter.enter(Phase.PULL)
        self.meter.gauge("pull", self.pending, refresh=self._refresh)
        self._tasks = [
            loop.create_task(work) for work in (self._finish(), self._checkpoints(), self._report())
        ]

    async def withdraw(self, reason: str) -> None:
        """Never run the guest, unless it is ours already; then nothing of it is left here."""
        async with self._owning:
            if self.finished.is_set():
                return
            if (await self.services.journal.decide(self.job, "withdrawn")).owner:
                self.services.hooks.event(self.job, "source-failed", error=reason)
                return
            await undo(self.job, self.arrival, self.disks, self.services, reason)
            self._end("failed", "source", reason)

    # -- PULL

    async def _checkpoints(self) -> None:
        while True:
            await asyncio.sleep(_CHECKPOINT)
            try:
                await self._flush()
            except (VmferryError, OSError) as error:
                self.services.hooks.event(self.job, "checkpoint-failed", error=str(error))
                return

    async def _report(self) -> None:
        await self.meter.run()

    def _refresh(self, gauge: Gauge) -> None:
        gauge.done = self.pending - self._pull.pending_bytes()
        gauge.note = "" if self._link is not None else "waiting for the source"

    def _on_demand(self) -> int:
        return sum(disk.pull.stats.fetched_blocks for disk in self.disks)

    async def _finish(self) -> None:
        """Once everything is local: make it durable, put the guest on the plain disk, tidy up."""
        try:
            await self._pull.wait_local()
            await self._flush()
            self._guest_downtime = await self.arrival.guest_downtime()
            await self._pivot()
            await self.services.journal.update(self.job, phase=Phase.DONE, outcome="done")
        except Exception as error:
            self._end("failed", "destination", str(error) or type(error).__name__)
        else:
            self._end("done", "destination")

    async def _pivot(self) -> None:
        if self.hypervisor.capabilities.pivot is Grade.NONE:
            text = f"{self.hypervisor.name} cannot pivot: the guest stays on the agent's export"
            self.services.hooks.event(self.job, "no-pivot", reason=text)
            return
        for disk in self.disks:
            async with self.arrival.pivoting(disk.arriving):
                await disk.volume.flush()
                await disk.volume.unlock()
                await self._pivot_disk(disk)
            await disk.close(self.services)
        self.exported = False
        await self.arrival.finish()

    async def _pivot_disk(self, disk: DestinationDisk) -> None:
        for left in reversed(range(_PIVOT_TRIES)):
            try:
                await self.arrival.pivot(disk.arriving)
                return
            except HypervisorError as error:
                if not left:
                    raise
                self.services.hooks.event(self.job, "pivot-again", error=str(error))
                await asyncio.sleep(1)

    def _end(self, outcome: str, owner: str, error: str = "") -> None:
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        self.meter.enter(Phase.FAILED if error else Phase.DONE)
        self.summary = Summary(
            job=self.job,
            role="destination",
            guest=self.guest.name,
            outcome=outcome,
            owner=owner,
            error=error,
            phases=self.meter.seconds,
            downtime=self._downtime,
            guest_downtime=self._guest_downtime,
            pending=self.pending,
            on_demand=self._on_demand(),
            counters=self._counters(),
        )
        self.services.hooks.finished(self.summary)
        self.finished.set()

    def _counters(self) -> dict[str, int]:
        stats = [disk.pull.stats for disk in self.disks]
        return {
            "on_demand_requests": sum(one.on_demand for one in stats),
            "fetched_bytes": sum(one.fetched for one in stats),
            "arrived_bytes": sum(one.arrived for one in stats),
            "late_bytes": sum(one.late for one in stats),
            "overwritten_blocks": sum(one.overwritten for one in stats),
            "longest_wait_us": round(1e6 * max((one.longest for one in stats), default=0.0)),
        }
