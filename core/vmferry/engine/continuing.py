"""A migration whose command at the source ended in PUSH: PUSH goes on, in another process.

What its trackers had marked is lost with the old process. So the guest's writes are tracked anew,
and then the disks are compared with what the destination has (``comparing``). Until the commit it
is as in any migration: the guest is this host's, and runs here.
"""

from __future__ import annotations

from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase, Summary
from vmferry.engine.journal import JobRecord, unpacked
from vmferry.engine.leaving import Leaving
from vmferry.engine.policy import DefaultPolicy
from vmferry.engine.resolving import may_continue
from vmferry.engine.services import Services
from vmferry.engine.settings import KeptSettings
from vmferry.engine.source import Connect, SourceJob
from vmferry.errors import MigrationError, VmferryError
from vmferry.wire.messages import Accepted

__all__ = ["ContinuedJob"]


class ContinuedJob(SourceJob):
    """A job of this host, as the source, whose PUSH is to be gone on with.

    Args:
        services: what the engine works with.
        record: the job as the journal has it.
        connect: opens connections to the destination.

    """

    def __init__(self, services: Services, record: JobRecord, connect: Connect) -> None:
        assert may_continue(record)
        self._record = record
        self._guest = unpacked(record, "description", Guest)
        settings = unpacked(record, "facts", KeptSettings)
        super().__init__(
            services,
            settings,
            connect,
            guest=self._guest.name,
            hypervisor=self._guest.hypervisor,
            peer=record.peer,
            policy=DefaultPolicy(settings.policy),
            job=record.job,
        )

    async def run(self) -> Summary:
        """Go on, to the end.

        If the destination has kept nothing or cannot be reached, the migration is given up: the
        summary says so, and why. The guest runs here then.

        Raises:
            MigrationError: says where the guest is. If it could not be made to run here, this can
                be tried again.

        """
        self._meter.enter(Phase.HANDSHAKE)
        leaving = self._leave(self._guest)
        await self._take_back(leaving)
        leaving.take_up(Accepted(token=self._record.token, epoch=self._record.epoch))
        try:
            return await self._carry_out(self._guest, leaving)
        except MigrationError:
            if leaving.pushing or self._summary is None:
                raise
            return self._summary

    async def _take_back(self, leaving: Leaving) -> None:
        """The guest runs on as if nothing had been, whatever the old process has left of it."""
        try:
            departure = await self._hypervisor.recover(self._guest)
            await departure.resume()
        except (VmferryError, OSError) as error:
            self._finished(leaving, "interrupted", "source", str(error))
            raise MigrationError(str(error), phase=Phase.HANDSHAKE, guest="source") from error

    async def _write_down(self, guest: Guest) -> None:
        """The journal has the job already."""

    def _words(self, error: BaseException) -> str:
        text = super()._words(error)
        if self._leaving is not None and self._leaving.pushing:
            return text
        return f"the migration was given up: {text}; the guest runs here: migrate it again"
