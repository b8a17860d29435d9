"""The cases that ``migrate resolve`` and ``cancel`` decide, with all that is real."""

from __future__ import annotations

from pathlib import Path

from vmferry.cli.agent_control import Order, ask_agents
from vmferry.cli.assembly import Assembly
from vmferry.cli.exits import ExitCode
from vmferry.cli.peers import connector, read_record
from vmferry.cli.run import migrate_guest
from vmferry.engine.deciding import AtDestination, AtSource
from vmferry.engine.journal import JobRecord
from vmferry.engine.resolving import Ruling
from vmferry.engine.resuming import ResumedJob
from vmferry.wire.messages import Account

__all__ = ["AgentDesk", "act", "open_case"]

_OTHER = {"source": "destination", "destination": "source"}


class AgentDesk:
    """The agent of this host, over its control socket."""

    def __init__(self, state: Path) -> None:
        self._state = state

    async def account(self, job: str) -> Account | None:
        """What it knows of a job; ``None`` if no agent runs."""
        return await ask_agents(self._state, Order(job))

    async def withdraw(self, job: str, reason: str) -> Account | None:
        """Promise never to run the guest, and remove what is held of it."""
        return await ask_agents(self._state, Order(job, "withdraw", reason))

    async def own(self, job: str) -> Account | None:
        """Run the guest."""
        return await ask_agents(self._state, Order(job, "own"))


async def open_case(
    assembly: Assembly, record: JobRecord, journal: Path | None = None, *, fenced: bool = False
) -> AtSource | AtDestination:
    """The case of a job on this host.

    Args:
        assembly: with this host's journal of the job's role.
        record: the job.
        journal: of the other host, or its state folder.
        fenced: the other host cannot run the guest, and will not.

    Raises:
        InputError: the other host's journal cannot be read, or has no such job.

    """
    peer = None
    if journal is not None:
        peer = await read_record(journal, record.job, _OTHER[record.role])
    if record.role == "source":
        connect = connector(assembly, record)
        return AtSource(assembly.journal, record, connect, peer=peer, fenced=fenced)
    return AtDestination(
        assembly.registry,
        assembly.journal,
        record,
        AgentDesk(assembly.state),
        peer=peer,
        fenced=fenced,
    )


async def act(assembly: Assembly, case: AtSource | AtDestination, ruling: Ruling) -> ExitCode:
    """Do what was ruled, to its end; raises what ``settle`` raises."""
    record = await case.settle(ruling)
    if record is None:
        return ExitCode.OK
    job = ResumedJob(assembly.services(), record, connector(assembly, record))
    return await migrate_guest(job, assembly.state)
