"""What one host finds out and does to decide who has the guest of a broken-off job.

The rules are in ``resolving``. Here the two journals are asked, and what was ruled is carried out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase
from vmferry.api.hypervisor import Remains
from vmferry.engine.accounts import account_of, ask_for_account, withdraw_record
from vmferry.engine.attempt import attempt
from vmferry.engine.context import Registry
from vmferry.engine.journal import JobRecord, Journal, unpacked
from vmferry.engine.resolving import Action, Known, Ruling, rule_at_destination, rule_at_source
from vmferry.engine.tidying import tidy_up
from vmferry.errors import MigrationError, VmferryError
from vmferry.wire.link import Link
from vmferry.wire.messages import Account

__all__ = ["AtDestination", "AtSource", "Desk"]

_LANES = 3


class Desk(Protocol):
    """The agent of this host, as it is spoken to by an operator."""

    async def account(self, job: str) -> Account | None:
        """What it knows of a job; ``None`` if no agent runs."""

    async def withdraw(self, job: str, reason: str) -> object:
        """Promise never to run the guest, and remove what is held of it."""

    async def own(self, job: str) -> object:
        """Run the guest."""


class AtSource:
    """A job of this host, as the source, that nobody works on.

    Args:
        journal: of this host.
        record: the job as the journal has it.
        connect: opens a link with that many lanes to the destination.
        peer: the job as a file says that the destination's journal has it.
        fenced: the destination's host cannot run the guest, and will not.

    Attributes:
        known: what the last ``rule`` found out of the other side.

    """

    def __init__(
        self,
        journal: Journal,
        record: JobRecord,
        connect: Callable[[int], Awaitable[Link]],
        *,
        peer: JobRecord | None = None,
        fenced: bool = False,
    ) -> None:
        self._journal, self._record, self._connect = journal, record, connect
        self._peer, self._fenced = peer, fenced
        self.known = Known()

    async def rule(self) -> Ruling:
        """Ask the other side if it matters, and rule."""
        if self._record.committed and self._record.outcome != "done":
            self.known = await self._ask()
        return rule_at_source(self._record, self.known)

    async def _ask(self) -> Known:
        try:
            account = await ask_for_account(self._open_link, self._record)
            return Known(account, binding=True, fenced=self._fenced)
        except (VmferryError, OSError, TimeoutError) as error:
            complaint = str(error) or type(error).__name__
        account_read = account_of(self._peer) if self._peer is not None else None
        return Known(account_read, fenced=self._fenced, complaint=complaint)

    async def _open_link(self) -> Link:
        return await self._connect(_LANES)

    async def settle(self, ruling: Ruling) -> JobRecord | None:
        """Write down what was ruled.

        Returns the job as it is then, to be brought to its end (``ResumedJob``); ``None`` if
        nothing is left to be done.

        Raises:
            LinkError: the destination does not promise what has to be promised; it can be tried
                again, as after any other error.
            MigrationError: the destination has taken the guest over meanwhile.

        """
        if ruling.action is Action.GO_ON:
            return self._record
        if ruling.action is Action.TAKE_BACK:
            return await self._taken_back()
        if ruling.action is Action.CLOSE:
            await self._journal.update(
                self._record.job, phase=Phase.FAILED, outcome="failed", error=ruling.reason
            )
        return None

    async def _taken_back(self) -> JobRecord:
        """Once the destination cannot run the guest any more, the commit is undone."""
        record = self._record
        if record.committed:
            await self._have_promised()
            # open again, also if its command gave up: over it is when the guest runs here
            await self._journal.update(record.job, committed=False, outcome="", error="")
        return await self._journal.load(record.job)

    async def _have_promised(self) -> None:
        account = self.known.account
        if not self.known.binding or (account is not None and account.withdrawn):
            return
        reason = "the source takes the guest back"
        account = await ask_for_account(self._open_link, self._record, withdraw=reason)
        if not account.withdrawn:
            raise MigrationError(
                "the destination has taken the guest over meanwhile; resolve the job again",
                phase=self._record.phase.value,
                guest="destination",
            )


class AtDestination:
    """A job of this host, as the destination.

    Args:
        registry: plugins by name.
        journal: of this host.
        record: the job as the journal has it.
        desk: this host's agent.
        peer: the job as the source's journal has it.
        fenced: the source's host does not run the guest, and will not.

    Attributes:
        needs_agent: none runs; one has to be started for the guest to run or be pulled.

    """

    def __init__(
        self,
        registry: Registry,
        journal: Journal,
        record: JobRecord,
        desk: Desk,
        *,
        peer: JobRecord | None = None,
        fenced: bool = False,
    ) -> None:
        self._registry, self._journal, self._record = registry, journal, record
        self._desk, self._peer, self._fenced = desk, peer, fenced
        self.needs_agent = True

    async def rule(self) -> Ruling:
        """Ask this host's agent, look at the guest, and rule."""
        account = await self._desk.account(self._record.job)
        self.needs_agent = account is None
        held = account.paused if account is not None else await self._held()
        return rule_at_destination(self._record, self._peer, fenced=self._fenced, held=held)

    async def _held(self) -> bool:
        guest = unpacked(self._record, "description", Guest)
        hypervisor: Any = self._registry.hypervisor(guest.hypervisor)
        return await hypervisor.remains(guest) is Remains.WAITING

    async def settle(self, ruling: Ruling) -> None:
        """Do what was ruled, through this host's agent if it runs.

        Raises:
            VmferryError: it could not be done.

        """
        job = self._record.job
        if ruling.action is Action.DROP:
            await self._drop("given up at the destination")
        elif ruling.action is Action.OWN and self.needs_agent:
            await self._journal.decide(job, "owner")
        elif ruling.action is Action.OWN and not self._record.started:
            await self._desk.own(job)

    async def _drop(self, reason: str) -> None:
        if not self.needs_agent:
            await self._desk.withdraw(self._record.job, reason)
            return
        record = await withdraw_record(self._journal, self._record.job, reason)
        if record.withdrawn:
            tidying = tidy_up(self._registry, self._journal, record)
            await attempt("what the job left here could not be removed", tidying)
