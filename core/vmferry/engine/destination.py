"""One migration at the destination, from the offer until it holds the complete, paused guest.

What follows (commit, PULL, pivot) is in ``stay``: from there on the job outlives its connection
whatever becomes of it. Before, it does so for as long as the source has said that it will try to
come back: the disks and what has come to them are kept, the half-made guest is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

import msgspec

from vmferry.api.findings import Finding, Severity
from vmferry.api.hooks import Phase, Summary
from vmferry.api.hypervisor import Arrival, Hypervisor
from vmferry.dirtymap import DirtyMap
from vmferry.engine.arrivals import DestinationDisk, disk_records, prepare_disks, undo
from vmferry.engine.attaching import is_loss
from vmferry.engine.attempt import attempt
from vmferry.engine.checking import check_channels
from vmferry.engine.comparing import Answerer
from vmferry.engine.epochs import known_epoch
from vmferry.engine.journal import JobRecord
from vmferry.engine.meter import Meter
from vmferry.engine.outlast import uninterrupted
from vmferry.engine.pool import Pool
from vmferry.engine.receiver import Receiver
from vmferry.engine.recovering import KeptFacts, KeptPush
from vmferry.engine.services import DestinationServices
from vmferry.engine.stay import Stay
from vmferry.engine.stop import take_over
from vmferry.errors import InputError, ProtocolError
from vmferry.wire.link import Link
from vmferry.wire.messages import Accepted, Extent, Offer, Refused, Resumed
from vmferry.wire.stream import LinkStream
from vmferry.wire.tasks import together, until

__all__ = ["DestinationJob"]


async def _unlimited(_: int) -> None:
    """The destination's half of the stream is not limited."""


class DestinationJob:
    """One arriving guest until the switch.

    Args:
        job: its identifier.
        services: what the engine works with.
        pool: where its disks are kept.
        over: called once, when the job ends here without a guest.

    Attributes:
        job: its identifier.
        ended: nothing more is done: it was refused or undone, or has become a ``Stay``.

    """

    def __init__(
        self, job: str, services: DestinationServices, pool: Pool, over: Callable[[], None]
    ) -> None:
        self.job = job
        self.ended = asyncio.Event()
        self._over = over
        self._link: Link | None = None
        self._serving = asyncio.Lock()
        self._expiring: asyncio.Task[None] | None = None
        self._services, self._pool = services, pool
        self._token = services.random.randbytes(16)
        self._meter = Meter(job, "destination", services.hooks)
        self._disks: Sequence[DestinationDisk] = ()
        self._arrival: Arrival | None = None
        self._hypervisor: Hypervisor[Any] | None = None
        self._pending = self._epoch = 0
        self._offer: Offer | None = None
        self._unwanted = self._has_data = self._stored = self._unsure = False

    @property
    def tasks(self) -> Sequence[asyncio.Task[None]]:
        """What goes on without any connection."""
        return [] if self._expiring is None else [self._expiring]

    @property
    def waiting(self) -> bool:
        """Whether its source is waited for."""
        return self._expiring is not None

    async def run(self, link: Link) -> Stay | None:
        """Serve the job's first connection until ``Ready`` is due.

        Returns what goes on from there, or ``None`` if the offer was refused or only checked. On
        failure nothing is left behind, but if the connection is lost what has come is kept until
        ``attach``, ``give_up``, or for as long as the source has asked for.
        """
        self._meter.enter(Phase.HANDSHAKE)
        async with self._serving:
            self._link = link
            try:
                offer = await link.expect(Offer)
                if (findings := await self._asked(link, offer)) is None:
                    self._end()
                    return None
                known = await known_epoch(self._services, offer.guest.name)
                self._epoch = max(known, offer.epoch) + 1
                await self._services.journal.open_job(self._record(link, offer))
                self._offer = offer
            except BaseException:
                self._end()
                raise
            return await self._serve(link, offer, self._take(link, offer, findings))

    async def attach(self, link: Link) -> Stay | None:
        """As ``run``, for a further connection; ``None`` if the job has ended meanwhile.

        One that was there before is ended.
        """
        if self._link is not None:
            self._link.abort()
        async with self._serving:
            if self.ended.is_set() or self._offer is None:
                return None
            for task in self.tasks:
                task.cancel()
            self._expiring, self._link = None, link
            return await self._serve(link, self._offer, self._go_on(link, self._offer))

    async def take_up(self, kept: KeptPush) -> None:
        """Wait for the source of a job that an earlier agent had in PUSH, in place of ``run``."""
        self._token, self._epoch = kept.record.token, kept.record.epoch
        self._offer, self._disks = kept.offer, kept.disks
        self._has_data = self._unsure = True
        await self._wait(kept.offer, "the destination's agent was started anew")

    async def give_up(self, reason: str) -> None:
        """The source, or an operator, does not want the guest to come any more."""
        self._unwanted = True
        if self._link is not None:
            self._link.abort()
        async with self._serving:
            for task in self.tasks:
                task.cancel()
            await uninterrupted(self._drop(reason))

    async def _serve(self, link: Link, offer: Offer, work: Coroutine[Any, Any, Stay]) -> Stay:
        try:
            stay = await work
        except BaseException as error:
            await uninterrupted(self._broken_off(link, offer, error))
            raise
        else:
            self.ended.set()
            return stay
        finally:
            self._link = None

    async def _broken_off(self, link: Link, offer: Offer, error: BaseException) -> None:
        """Wait for the source, which comes back only if it has not suspended the guest; or undo."""
        wanted = offer.reconnect > 0 and self._has_data and not self._stored
        reason = str(error) or type(error).__name__
        if not (wanted and await is_loss(link, error) and await self._wait(offer, reason)):
            await self._drop(reason)

    async def _wait(self, offer: Offer, reason: str) -> bool:
        """Keep the disks, not the guest; whether that can be."""
        if self._arrival is not None:
            aborting = self._arrival.abort()
            if not await attempt("the half-made guest could not be removed", aborting):
                return False
            self._arrival = None
        if self._unwanted:
            return False
        self._services.hooks.event(self.job, "waiting", seconds=offer.reconnect, error=reason)
        self._expiring = asyncio.get_running_loop().create_task(self._expire(offer.reconnect))
        return True

    async def _expire(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with self._serving:
            await uninterrupted(self._drop(f"the source did not come back within {seconds:g} s"))

    async def _drop(self, reason: str) -> None:
        """Undo it all, unless that has been done."""
        if self._offer is not None and not self.ended.is_set():
            await self._undo(self._offer, reason)
            self._end()

    def _end(self) -> None:
        self.ended.set()
        self._expiring = None
        self._over()

    async def _asked(self, link: Link, offer: Offer) -> Sequence[Finding] | None:
        """What is to be told of the offer; ``None`` if nothing more is wanted than that."""
        findings = await self._check(offer, link.channels)
        if any(finding.severity is Severity.ERROR for finding in findings):
            await link.send(Refused(findings=tuple(findings)))
            return None
        if offer.check_only:
            await link.send(Accepted(findings=tuple(findings)))
            return None
        return findings

    async def _check(self, offer: Offer, channels: int) -> list[Finding]:
        if len(offer.block_sizes) != len(offer.guest.disks):
            raise ProtocolError("Offer: block_sizes and the guest's disks differ in number")
        findings = await self._pool.check(offer.guest, self._services.registry)
        try:
            hypervisor = self._hypervisor_of(offer)
            findings += await hypervisor.check_arrival(offer.guest)
            findings += check_channels(hypervisor, channels)
        except InputError as error:
            findings.append(Finding.error("hypervisor", str(error)))
        return findings

    def _record(self, link: Link, offer: Offer) -> JobRecord:
        return JobRecord(
            job=self.job,
            role="destination",
            guest=offer.guest.name,
            description=msgspec.msgpack.encode(offer.guest),
            token=self._token,
            peer=link.peer.address,
            epoch=self._epoch,
            facts=msgspec.msgpack.encode(KeptFacts(reconnect=offer.reconnect)),
            disks=disk_records(self._pool, offer),
        )

    async def _take(self, link: Link, offer: Offer, findings: Sequence[Finding]) -> Stay:
        self._disks = await prepare_disks(self._services, self._pool, self.job, offer)
        # from here on what is in their places was made by this job
        await self._services.journal.update(self.job, phase=Phase.PUSH_DISK)
        arrival = await self._arrive(link, offer)
        await link.send(self._accepted(findings))
        return await self._receive(link, offer, arrival)

    async def _go_on(self, link: Link, offer: Offer) -> Stay:
        arrival = await self._arrive(link, offer)
        where = {"running": False, "pushing": True, "unsure": self._unsure}
        await link.send(Resumed(epoch=self._epoch, **where))
        self._services.hooks.event(self.job, "reconnected", pushing=True)
        return await self._receive(link, offer, arrival)

    async def _arrive(self, link: Link, offer: Offer) -> Arrival:
        arriving = [disk.arriving for disk in self._disks]
        stream = LinkStream(link, _unlimited)
        self._arrival = await self._hypervisor_of(offer).arrive(offer.guest, arriving, stream)
        return self._arrival

    def _hypervisor_of(self, offer: Offer) -> Hypervisor[Any]:
        """The same for the whole job: making one takes milliseconds, in STOP of the downtime."""
        if self._hypervisor is None:
            self._hypervisor = self._services.registry.hypervisor(offer.guest.hypervisor)
        return self._hypervisor

    async def _receive(self, link: Link, offer: Offer, arrival: Arrival) -> Stay:
        began = await self._push_and_stop(link, offer, arrival)
        await self._services.journal.update(self.job, phase=Phase.STOP)
        return Stay(
            job=self.job,
            token=self._token,
            epoch=self._epoch,
            guest=offer.guest,
            services=self._services,
            meter=self._meter,
            disks=self._disks,
            hypervisor=self._hypervisor_of(offer),
            arrival=arrival,
            suspended=began,
            pending=self._pending,
        )

    def _accepted(self, findings: Sequence[Finding]) -> Accepted:
        return Accepted(
            token=self._token,
            epoch=self._epoch,
            disks=tuple(disk.accepted for disk in self._disks),
            findings=tuple(findings),
        )

    async def _push_and_stop(self, link: Link, offer: Offer, arrival: Arrival) -> float:
        self._meter.enter(Phase.PUSH_DISK)
        shapes = [
            (disk.size, block_size)
            for disk, block_size in zip(offer.guest.disks, offer.block_sizes, strict=True)
        ]
        geometries = [disk.volume.geometry for disk in self._disks]
        workers = self._services.workers
        receiver = Receiver(link, geometries, workers, self._write, self._flush)
        volumes = [disk.volume for disk in self._disks]
        answerer = Answerer(link, volumes, workers, self._was_heard)
        store = partial(self._store, arrival)
        taking = take_over(link, arrival, shapes, store, workers)
        return await until(taking, receiver.run(), answerer.run())

    def _was_heard(self) -> None:
        """The source goes on after ``Resumed``, and knows by itself what it is unsure of."""
        self._unsure = False

    async def _write(self, extent: Extent, data: memoryview | None) -> None:
        self._has_data = True
        self._was_heard()
        volume = self._disks[extent.disk].volume
        if data is None:
            await volume.write_zeroes(extent.offset, extent.length)
        else:
            await volume.write(extent.offset, data)

    async def _flush(self) -> None:
        await together(*(disk.volume.flush() for disk in self._disks))

    async def _store(self, arrival: Arrival, maps: Sequence[DirtyMap]) -> None:
        """Data first, then the maps: on return both are durable, and the disks show them."""
        self._stored = True
        self._meter.enter(Phase.STOP)
        await self._flush()
        self._pending = sum(pending.dirty_bytes() for pending in maps)
        for disk, pending in zip(self._disks, maps, strict=True):
            await disk.pull.ready(pending)
            await arrival.show_pending(disk.arriving, pending)

    async def _undo(self, offer: Offer, text: str) -> None:
        promise = self._services.journal.decide(self.job, "withdrawn")
        await attempt("the journal could not be written", promise)
        # between two agents somebody may have put another disk in the place of one that was kept
        heard = not self._unsure
        await undo(self.job, self._arrival, self._disks, self._services, text, remove=heard)
        self._meter.enter(Phase.FAILED)
        self._services.hooks.finished(
            Summary(
                job=self.job,
                role="destination",
                guest=offer.guest.name,
                outcome="failed",
                owner="source",
                error=text,
                phases=self._meter.seconds,
            )
        )
