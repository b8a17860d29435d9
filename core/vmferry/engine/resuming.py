"""A migration whose agent at the source ended before it was over: brought to its end.

The journal says whether the commit was made. If it was, the guest is the destination's: it is told
so again if need be, and gets what is pending. If it was not, the guest is this host's: it is made
to run here, and the destination is told to drop what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase, Summary
from vmferry.api.hypervisor import Departure
from vmferry.engine.accounts import ask_for_account
from vmferry.engine.afterwards import Afterwards
from vmferry.engine.attempt import attempt
from vmferry.engine.choosing import codec_names, make_sender
from vmferry.engine.disks import SourceDisk
from vmferry.engine.epochs import last_change
from vmferry.engine.journal import JobRecord, unpacked
from vmferry.engine.meter import Meter
from vmferry.engine.opening import open_disks
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.sender import Sender
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings
from vmferry.engine.throttle import Throttle
from vmferry.errors import InputError, MigrationError, VmferryError, VolumeMissing
from vmferry.wire.link import Link
from vmferry.wire.tasks import until

__all__ = ["ResumedJob"]

Connect = Callable[[int], Awaitable[Link]]


class ResumedJob:
    """A job of this host, as the source, that is to be brought to its end.

    Args:
        services: what the engine works with.
        record: the job as the journal has it.
        connect: opens a link with that many lanes to the destination.

    Attributes:
        job: identifier of the migration.
        throttle: the bandwidth limit; may be changed while running.

    Raises:
        InputError: the job is none that can be resumed here.

    """

    def __init__(self, services: Services, record: JobRecord, connect: Connect) -> None:
        _check(record)
        self.job = record.job
        self._services, self._record, self._connect = services, record, connect
        self._guest = unpacked(record, "description", Guest)
        self._settings = unpacked(record, "facts", Settings)
        self.throttle = Throttle(self._settings.bandwidth)
        self._hypervisor = services.registry.hypervisor(self._guest.hypervisor)
        self._meter = Meter(record.job, "source", services.hooks)
        self._codecs = codec_names(self._settings.compression)

    @property
    def committed(self) -> bool:
        """Whether the guest belongs to the destination."""
        return self._record.committed

    @property
    def owner(self) -> str:
        """Where the guest is."""
        return "destination" if self.committed else "source"

    def switch_now(self) -> None:
        """Nothing: no round of PUSH is under way."""

    async def run(self) -> Summary:
        """Bring the job to its end.

        Raises:
            MigrationError: it could not be; it can be tried again.

        """
        try:
            if self.committed and await self._has_changed_since():
                return await self._leave_alone()
            departure = await self._hypervisor.recover(self._guest)
            if not self.committed:
                await self._take_back(departure)
                return self._finished("failed", "the migration was given up; the guest runs here")
            after = await self._end(departure)
        except (VmferryError, OSError) as error:
            self._finished("interrupted", str(error))
            raise MigrationError(str(error), phase=self._meter.phase, guest=self.owner) from error
        return self._finished("done", "", after)

    # -- after the commit

    async def _has_changed_since(self) -> bool:
        """Whether the guest has come here again, or left again, by a later agreement."""
        name, epoch = self._guest.name, self._record.epoch
        return await last_change(self._services, name, above=epoch) is not None

    async def _leave_alone(self) -> Summary:
        """What is here of a guest of that name is not this job's any more."""
        await self._note_done()
        return self._finished("done", "")

    async def _note_done(self) -> None:
        await self._services.journal.update(self.job, phase=Phase.DONE, outcome="done")

    async def _end(self, departure: Departure) -> Afterwards | None:
        """Go on, or note that it is over there if the disks have gone with the guest already."""
        try:
            return await self._go_on(departure)
        except VolumeMissing as error:
            try:
                account = await ask_for_account(self._open_link, self._record)
            except (VmferryError, OSError):
                raise error from None
            if account.outcome != "done":
                raise
        await departure.destroy()
        await self._note_done()
        return None

    async def _go_on(self, departure: Departure) -> Afterwards:
        after: Afterwards | None = None
        try:
            async with AsyncExitStack() as stack:
                registry = self._services.registry
                disks = await open_disks(self._guest, self._settings, registry, stack)
                after = self._afterwards(disks, departure)
                coming = after.come_back(self._open_link, lambda link: self._sender(link, disks))
                try:
                    await until(coming, self._meter.run())
                finally:
                    await uninterrupted(after.leave())
        finally:
            # after the volumes: a hypervisor that serves them ends only once they are closed
            if after is not None:
                await uninterrupted(after.settle())
        return after

    def _afterwards(self, disks: list[SourceDisk], departure: Departure) -> Afterwards:
        return Afterwards(
            self._services,
            self._settings,
            self._meter,
            self.throttle,
            disks,
            departure,
            job=self.job,
            token=self._record.token,
            epoch=self._record.epoch,
            suspended=asyncio.get_running_loop().time(),
        )

    async def _open_link(self) -> Link:
        return await self._connect(self._settings.lanes + 2)

    def _sender(self, link: Link, disks: list[SourceDisk]) -> Sender:
        return make_sender(link, disks, self._services, self._settings, self.throttle, self._codecs)

    # -- before the commit

    async def _take_back(self, departure: Departure) -> None:
        await departure.resume()
        if self._record.token:
            reason = "the source was started anew and runs the guest itself"
            asking = ask_for_account(self._open_link, self._record, withdraw=reason)
            await attempt("the destination could not be told", asking)
        await self._services.journal.update(
            self.job, phase=Phase.FAILED, outcome="failed", error="given up by the operator"
        )

    def _finished(self, outcome: str, error: str, after: Afterwards | None = None) -> Summary:
        self._meter.enter(Phase.DONE if outcome == "done" else Phase.FAILED)
        local = after.local if after is not None else None
        summary = Summary(
            job=self.job,
            role="source",
            guest=self._guest.name,
            outcome=outcome,
            owner=self.owner,
            error=error,
            phases=self._meter.seconds,
            sent=self.throttle.sent,
            on_demand=local.on_demand if local is not None else 0,
        )
        self._services.hooks.finished(summary)
        return summary


def _check(record: JobRecord) -> None:
    if record.role != "source":
        raise InputError(
            f"job {record.job} arrived here: `migrate serve` goes on with it by itself"
        )
    if record.outcome == "done" or (record.outcome and not record.committed):
        raise InputError(f"job {record.job} is over ({record.outcome}): nothing is to be resumed")
    if not record.description:
        raise InputError(f"job {record.job} was begun by a release that kept too little to resume")
