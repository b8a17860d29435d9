"""The destination agent: accepts connections and leads each to its job."""

from __future__ import annotations

import asyncio
import functools
import hmac
import logging

from vmferry.api.transport import Connection, Listener
from vmferry.engine.accounts import account_of, withdraw_record
from vmferry.engine.destination import DestinationJob
from vmferry.engine.journal import JobRecord
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.pool import Pool
from vmferry.engine.recovering import recover
from vmferry.engine.services import DestinationServices
from vmferry.engine.stay import Stay
from vmferry.engine.tidying import tidy_up
from vmferry.errors import ConnectionLost, InputError, ProtocolError, VmferryError
from vmferry.wire.handshake import answer
from vmferry.wire.link import Link
from vmferry.wire.messages import Account, Attach, Hello, Inquire, Withdraw

__all__ = ["Agent"]

_log = logging.getLogger(__name__)
_MOST_JOBS = 256
_LOOK = 0.1
_LINGER = 30.0
"""Seconds that a source whose connection broke at the very end has to come back for the end."""


class Agent:
    """Serves any number of jobs over one listener.

    Args:
        services: what the engine works with.
        pool: where arriving disks are kept.
        patience: seconds of silence after which a source counts as gone.
        most: connections served at a time; further ones are refused.

    """

    def __init__(
        self,
        services: DestinationServices,
        pool: Pool,
        *,
        patience: float = 30.0,
        most: int = 64,
    ) -> None:
        self._services, self._pool, self._patience = services, pool, patience
        self._most = self._slots = most
        self._stays: dict[str, Stay] = {}
        self._arriving: dict[str, DestinationJob] = {}

    @property
    def busy(self) -> bool:
        """Whether a guest still needs us: pulling, waiting for the source's word, not pivoted."""
        return any(not stay.finished.is_set() or stay.exported for stay in self._stays.values())

    @property
    def active(self) -> bool:
        """Whether a connection is being served, or cleaned up after, or waited for."""
        return self._slots < self._most or any(job.waiting for job in self._arriving.values())

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """What goes on without any connection."""
        arriving = [task for job in self._arriving.values() for task in job.tasks]
        return arriving + [task for stay in self._stays.values() for task in stay.tasks]

    def stays(self) -> list[Stay]:
        """Guests that have arrived, in order of arrival."""
        return list(self._stays.values())

    async def recover(self) -> None:
        """Take up what an earlier agent of this host left unfinished; before ``serve``."""
        for one in await recover(self._services):
            if isinstance(one, Stay):
                self._stays[one.job] = one
            else:
                await self._new_job(one.record.job).take_up(one)

    async def serve(self, listener: Listener, *, once: bool = False) -> None:
        """Accept until cancelled, or with ``once`` until one guest has arrived whole.

        Guests whose source is waited for in PUSH are given up at the end.
        """
        try:
            async with asyncio.TaskGroup() as group:
                accepting = group.create_task(self._accept(listener, group))
                if once:
                    await self._one_has_arrived()
                    accepting.cancel()
        finally:
            for job in list(self._arriving.values()):
                await uninterrupted(job.give_up("the destination's agent has ended"))

    async def _one_has_arrived(self) -> None:
        """A guest is here whole, nobody needs this agent, and the sources know or had time to."""
        while self.busy or not any(stay.owner for stay in self._stays.values()):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK)
        deadline = asyncio.get_running_loop().time() + _LINGER
        while any(stay.owner and not stay.left for stay in self._stays.values()):
            if asyncio.get_running_loop().time() > deadline:
                return
            await asyncio.sleep(_LOOK)

    async def _accept(self, listener: Listener, group: asyncio.TaskGroup) -> None:
        while True:
            try:
                connection = await listener.accept()
            except (OSError, RuntimeError) as error:  # no descriptors, no threads: others go on
                _log.warning("a connection could not be taken: %s", error)
                await asyncio.sleep(_LOOK)
            else:
                group.create_task(self._handle(connection))

    async def _handle(self, connection: Connection) -> None:
        """One connection; whatever goes wrong with it concerns nobody else."""
        if not self._slots:
            _log.warning("%s was refused: too many connections", connection.peer.address)
            connection.abort()
            return
        self._slots -= 1
        try:
            async with self._link(connection) as link:
                await link.guard(self._talk(link))
        except (VmferryError, OSError) as error:
            _log.warning("%s: %s", connection.peer.address, error)
        except Exception:
            _log.exception("%s: unexpected failure", connection.peer.address)
        finally:
            self._slots += 1

    def _link(self, connection: Connection) -> Link:
        try:
            return Link(connection, patience=self._patience)
        except BaseException:
            connection.abort()
            raise

    async def _talk(self, link: Link) -> None:
        hello, _ = await answer(link, self._services.random.getrandbits(32))
        try:
            if hello.token:
                await self._go_on(link, hello)
            else:
                await self._begin(link, hello)
        except ConnectionLost:
            raise
        except (VmferryError, OSError, ValueError) as error:
            await link.fail(error)
            raise

    async def _begin(self, link: Link, hello: Hello) -> None:
        if hello.job in self._arriving or hello.job in self._stays:
            raise ProtocolError(f"Hello: job {hello.job} is here already")
        if len(self._stays) + len(self._arriving) >= _MOST_JOBS:
            self._forget()
        job = self._new_job(hello.job)
        await self._stay(link, job, await job.run(link))

    def _new_job(self, name: str) -> DestinationJob:
        over = functools.partial(self._arriving.__delitem__, name)
        job = self._arriving[name] = DestinationJob(name, self._services, self._pool, over)
        return job

    async def _stay(self, link: Link, job: DestinationJob, stay: Stay | None) -> None:
        if stay is not None:
            self._stays[job.job] = stay
            del self._arriving[job.job]
            await stay.attach(link, first=True)

    # -- jobs that are known

    async def _go_on(self, link: Link, hello: Hello) -> None:
        record = await self._verify(hello)
        request, _ = await link.receive(Attach, Inquire, Withdraw)
        if isinstance(request, Attach) and request.epoch != record.epoch:
            raise ProtocolError(f"Attach: epoch {request.epoch} where {record.epoch} was agreed")
        if isinstance(request, Withdraw):
            await self.withdraw(hello.job, request.reason, request.epoch)
        arriving = self._arriving.get(hello.job) if isinstance(request, Attach) else None
        if arriving is not None and (stay := await arriving.attach(link)) is not None:
            await self._stay(link, arriving, stay)
        elif isinstance(request, Attach) and hello.job in self._stays:
            await self._stays[hello.job].attach(link)
        else:
            await link.send(await self.account(hello.job))

    async def _verify(self, hello: Hello) -> JobRecord:
        record = await self._record(hello.job)
        if not hmac.compare_digest(hello.token, record.token):
            raise ProtocolError(f"Hello: no job {hello.job} with this token is here")
        return record

    async def _record(self, job: str) -> JobRecord:
        try:
            return await self._services.journal.load(job)
        except InputError:
            raise ProtocolError(f"no job {job} is in the journal of this host") from None

    async def account(self, job: str) -> Account:
        """What is known here of a job. Raises ``ProtocolError`` if nothing is."""
        stay = self._stays.get(job)
        runs = stay is not None and stay.owner
        held = stay is not None and not stay.finished.is_set() and not runs
        return account_of(await self._record(job), paused=held, runs=runs)

    async def own(self, job: str) -> None:
        """Run the guest of a job that is held here, because an operator says it is this host's.

        Raises:
            ProtocolError: it is not held here, or was withdrawn.

        """
        stay = self._stays.get(job)
        if stay is None or stay.finished.is_set():
            raise ProtocolError(f"job {job}: no guest is held here")
        await stay.own()

    async def withdraw(self, job: str, reason: str, epoch: int | None = None) -> JobRecord:
        """Promise durably never to run the guest of a job, unless it is owned here already.

        On return nothing of the guest is held here if so; returns the job as the journal has it.

        Raises:
            ProtocolError: there is no such job, or it is of another epoch.

        """
        record = await self._record(job)
        if epoch not in (None, record.epoch):
            raise ProtocolError(f"Withdraw: epoch {epoch} where {record.epoch} was agreed")
        here = job in self._arriving or job in self._stays
        if job in self._arriving:
            await self._arriving[job].give_up(reason)
        if job in self._stays:
            await self._stays[job].withdraw(reason)
        record = await withdraw_record(self._services.journal, job, reason)
        if record.withdrawn and not record.tidy:
            await tidy_up(self._services.registry, self._services.journal, record, disks=here)
        return record

    def _forget(self) -> None:
        """Drop the oldest finished job, or refuse."""
        for job, stay in self._stays.items():
            if stay.finished.is_set():
                del self._stays[job]
                return
        raise ProtocolError(f"{_MOST_JOBS} guests are arriving here already")
