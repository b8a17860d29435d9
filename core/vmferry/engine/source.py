"""One migration at the source: it sequences the phases and answers for the guest.

Until the commit, any failure, and Ctrl-C, ends with the guest running here. From then on it is
never resumed here again; the job goes on, over new connections if need be, until the destination
has everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from vmferry.api.findings import Finding, Severity
from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase, Summary
from vmferry.api.hypervisor import Hypervisor
from vmferry.api.transport import Connection
from vmferry.engine.attempt import attempt
from vmferry.engine.checking import check_source, make_offer, offer_guest
from vmferry.engine.comeback import Comeback
from vmferry.engine.disks import SourceDisk
from vmferry.engine.epochs import check_not_handed_over
from vmferry.engine.journal import JobRecord
from vmferry.engine.leaving import Leaving
from vmferry.engine.meter import Meter
from vmferry.engine.opening import open_disks
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.policy import ConvergencePolicy, DefaultPolicy, PolicyOptions
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings, with_policy
from vmferry.engine.throttle import Throttle
from vmferry.errors import CheckFailed, MigrationError, VmferryError
from vmferry.wire.handshake import greet
from vmferry.wire.link import Link
from vmferry.wire.tasks import until

__all__ = ["Connect", "SourceJob"]

_log = logging.getLogger(__name__)
Connect = Callable[[int], Awaitable[Connection]]
"""Opens a connection with that many lanes."""


class SourceJob:
    """One guest that leaves.

    Args:
        services: what the engine works with.
        settings: the user's choices.
        connect: opens connections to the destination.
        guest: name of the guest.
        hypervisor: name of its hypervisor plugin.
        peer: the destination's address, for the record.
        policy: decides when PUSH has done enough.
        job: identifier of the migration, if it has one already.

    Attributes:
        job: identifier of the migration.
        throttle: the bandwidth limit; may be changed while running.

    """

    def __init__(
        self,
        services: Services,
        settings: Settings,
        connect: Connect,
        *,
        guest: str,
        hypervisor: str,
        peer: str = "",
        policy: ConvergencePolicy | None = None,
        job: str = "",
    ) -> None:
        self.job = job or services.random.randbytes(6).hex()
        self.throttle = Throttle(settings.bandwidth)
        self._services, self._settings, self._connect = services, settings, connect
        self._name, self._peer = guest, peer
        self._hypervisor: Hypervisor[Any] = services.registry.hypervisor(hypervisor)
        self._policy = policy or DefaultPolicy()
        self._meter = Meter(self.job, "source", services.hooks)
        self._leaving: Leaving | None = None
        self._phase = Phase.HANDSHAKE
        self._interrupted = False
        self._summary: Summary | None = None

    # -- what the operator may ask and do

    @property
    def committed(self) -> bool:
        """Whether the guest belongs to the destination."""
        return self._leaving is not None and self._leaving.after is not None

    @property
    def owner(self) -> str:
        """Where the guest is: ``source``, ``destination`` or ``unknown``."""
        if self._leaving is None or self.committed:
            return "destination" if self.committed else "source"
        return self._leaving.owner

    @property
    def locations(self) -> tuple[str, ...]:
        """Where the destination keeps the disks, in their order; empty before it accepted."""
        disks = self._leaving.accepted.disks if self._leaving is not None else ()
        return tuple(disk.location for disk in disks)

    def switch_now(self) -> None:
        """End PUSH's rounds as soon as may be."""
        self._policy.force()
        if self._leaving is not None:
            self._leaving.switch_now()

    async def check(self) -> list[Finding]:
        """Everything that could refuse the migration, from both sides; changes nothing.

        Raises:
            GuestNotFound: there is no such guest.
            LinkError: the destination cannot be reached.

        """
        guest = await self._hypervisor.describe(self._name)
        findings = await self._check(guest)
        async with await self._open_link() as link:
            return findings + await link.guard(self._ask(link, guest))

    async def _check(self, guest: Guest) -> list[Finding]:
        registry = self._services.registry
        findings = await check_source(guest, self._hypervisor, self._settings, registry)
        return findings + await check_not_handed_over(self._services, guest)

    async def _ask(self, link: Link, guest: Guest) -> list[Finding]:
        await greet(link, self.job)
        reply = await offer_guest(link, make_offer(guest, self._settings, check_only=True))
        return list(reply.findings)

    # -- the migration

    async def run(self) -> Summary:
        """Move the guest; returns once the destination has everything and nothing is left here.

        Raises:
            GuestNotFound, CheckFailed: nothing was changed.
            MigrationError: says where the guest is.

        """
        self._meter.enter(Phase.HANDSHAKE)
        guest = await self._hypervisor.describe(self._name)
        findings = await self._check(guest)
        if errors := [one for one in findings if one.severity is Severity.ERROR]:
            raise CheckFailed(errors)
        leaving = self._leave(guest)
        leaving.show(findings)
        return await self._carry_out(guest, leaving)

    def _leave(self, guest: Guest) -> Leaving:
        self._leaving = Leaving(
            self.job,
            guest,
            self._hypervisor,
            self._services,
            self._settings,
            self._policy,
            self._meter,
            self.throttle,
        )
        return self._leaving

    async def _carry_out(self, guest: Guest, leaving: Leaving) -> Summary:
        try:
            await self._run(guest, leaving)
        except BaseException as error:
            summary = await uninterrupted(self._failed(leaving, error))
            if not isinstance(error, Exception) or self._nothing_was_changed(leaving, error):
                raise
            if summary.outcome == "done":
                _log.warning("%s: cleaning up failed: %s", self.job, error)
                return summary
            raise MigrationError(
                summary.error or repr(error), phase=self._phase, guest=summary.owner
            ) from error
        return self._finished(leaving, "done", "destination")

    async def _run(self, guest: Guest, leaving: Leaving) -> None:
        try:
            async with AsyncExitStack() as stack:
                await self._write_down(guest)
                disks = await open_disks(guest, self._settings, self._services.registry, stack)
                await until(self._move(leaving, disks), self._meter.run())
        finally:
            # after the volumes: a hypervisor that serves them ends only once they are closed
            if leaving.after is not None:
                await uninterrupted(leaving.after.settle())

    async def _write_down(self, guest: Guest) -> None:
        """Begin the job in the journal, with what whoever goes on with it has to know."""
        options = getattr(self._policy, "options", None)
        facts = with_policy(self._settings, options if isinstance(options, PolicyOptions) else None)
        record = JobRecord(
            job=self.job,
            role="source",
            guest=guest.name,
            peer=self._peer,
            description=msgspec.msgpack.encode(guest),
            facts=msgspec.msgpack.encode(facts),
        )
        await self._services.journal.open_job(record)

    async def _open_link(self) -> Link:
        settings = self._settings
        connection = await self._connect(2 + settings.memory_channels + settings.lanes)
        return Link(connection, patience=settings.patience, channels=settings.memory_channels)

    async def _move(self, leaving: Leaving, disks: list[SourceDisk]) -> None:
        try:
            async with AsyncExitStack() as stack:
                link = await self._up_to_commit(leaving, disks, stack)
                assert leaving.after is not None
                work = leaving.after.go_on(link, leaving.sender(link))
                await self._keep_on(leaving, link.guard(work))
        except (VmferryError, OSError) as error:
            if leaving.after is None:
                raise
            if leaving.after.local is None:
                self._services.hooks.event(self.job, "link-lost", error=str(error))
                again = leaving.after.come_back(self._open_link, leaving.sender)
                await self._keep_on(leaving, again)
        finally:
            if leaving.after is not None:
                await uninterrupted(leaving.after.leave())

    async def _up_to_commit(
        self, leaving: Leaving, disks: list[SourceDisk], stack: AsyncExitStack
    ) -> Link:
        """Over as many connections as it takes; returns the last one, which ``stack`` closes."""
        try:
            tries, left = Comeback(self._settings.reconnect), -1
            while True:
                try:
                    return await self._try(leaving, disks, stack)
                except (VmferryError, OSError) as error:
                    if not (leaving.paused and leaving.pushing):
                        raise
                    moved = not 0 <= left <= leaving.left
                    left = leaving.left if moved else left
                    await tries.wait(error, moved=moved)
        except BaseException as error:
            if leaving.paused:
                await uninterrupted(leaving.give_up(error, self._open_link))
            raise

    async def _try(self, leaving: Leaving, disks: list[SourceDisk], stack: AsyncExitStack) -> Link:
        async with AsyncExitStack() as one:
            link = await one.enter_async_context(await self._open_link())
            try:
                await link.guard(leaving.go(link, disks))
            except BaseException as error:
                await self._not_committed(leaving, link, error)
            stack.push_async_exit(one.pop_all().__aexit__)
            return link

    async def _not_committed(self, leaving: Leaving, link: Link, error: BaseException) -> None:
        """Unless it is: then an interruption waits."""
        if leaving.after is None:
            await uninterrupted(self._broken_off(leaving, link, error))
            raise error
        if not isinstance(error, asyncio.CancelledError):
            raise error
        self._interrupted = True

    async def _broken_off(self, leaving: Leaving, link: Link, error: BaseException) -> None:
        lost = isinstance(error, Exception)
        if not (lost and await leaving.pause(link, error)):
            await leaving.roll_back(link, error, self._open_link)

    async def _keep_on(self, leaving: Leaving, work: Coroutine[Any, Any, None]) -> None:
        """After the commit: an interruption waits until the guest is known to run."""
        assert leaving.after is not None
        loop = asyncio.get_running_loop()
        task, told = loop.create_task(work), loop.create_task(leaving.after.wait_told())
        while not task.done() and not (self._interrupted and told.done()):
            try:
                awaited = {task} if told.done() else {task, told}
                await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self._interrupted = True
        told.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        task.result()

    # -- how it ended

    def _nothing_was_changed(self, leaving: Leaving, error: Exception) -> bool:
        """Whether an error of ours came before the guest or the destination was touched."""
        return isinstance(error, VmferryError) and not leaving.accepted.token

    async def _failed(self, leaving: Leaving, error: BaseException) -> Summary:
        self._phase = self._meter.phase
        after = leaving.after
        if after is not None and after.local is not None:
            return self._finished(leaving, "done", "destination")
        owner = leaving.owner if after is None else "destination"
        outcome = "failed" if isinstance(error, Exception) else "interrupted"
        text = self._words(error)
        if after is not None and not after.running:
            text += "; the destination has not said that the guest runs: look there"
        record = self._services.journal.update(
            self.job, phase=Phase.FAILED, outcome=outcome, error=text
        )
        await attempt("the journal could not be written", record)
        return self._finished(leaving, outcome, owner, text)

    def _words(self, error: BaseException) -> str:
        return str(error) or type(error).__name__

    def _finished(self, leaving: Leaving, outcome: str, owner: str, error: str = "") -> Summary:
        self._meter.enter(Phase.FAILED if error else Phase.DONE)
        after = leaving.after
        local = after.local if after is not None else None
        gap = local.guest_downtime if local is not None else -1.0
        summary = self._summary = Summary(
            job=self.job,
            role="source",
            guest=self._name,
            outcome=outcome,
            owner=owner,
            error=error,
            phases=self._meter.seconds,
            downtime=after.downtime if after is not None else None,
            guest_downtime=gap if gap >= 0 else None,
            rounds=leaving.rounds,
            sent=self.throttle.sent,
            bitmap_bytes=leaving.bitmap_bytes,
            pending=leaving.pending,
            on_demand=local.on_demand if local is not None else 0,
        )
        self._services.hooks.finished(summary)
        return summary
