"""A guest on its way out, up to the commit: handshake, PUSH, STOP, and the way back.

``go`` ends with the commit durable in the journal; until then ``roll_back`` leaves the guest
running here, whatever has happened. A connection that is lost in PUSH is no failure yet: ``pause``
keeps what goes on without one, and ``go`` goes on over another. So it does if the command has ended
in PUSH: ``take_up`` is for the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vmferry.api.findings import Finding
from vmferry.api.guest import Guest
from vmferry.api.hooks import Phase, RoundReport
from vmferry.api.hypervisor import Departure, Hypervisor
from vmferry.engine.accounts import ask_for_account
from vmferry.engine.afterwards import Afterwards
from vmferry.engine.attaching import attach_to_push, is_loss
from vmferry.engine.attempt import attempt
from vmferry.engine.checking import make_offer, offer_guest
from vmferry.engine.choosing import codec_names, make_sender, make_stream
from vmferry.engine.comparing import Comparer
from vmferry.engine.disks import SourceDisk, dirty_bytes
from vmferry.engine.epochs import known_epoch
from vmferry.engine.journal import JobRecord
from vmferry.engine.meter import Gauge, Meter
from vmferry.engine.policy import ConvergencePolicy
from vmferry.engine.push import Push
from vmferry.engine.sender import Sender
from vmferry.engine.services import Services
from vmferry.engine.settings import Settings
from vmferry.engine.stall import unstalled
from vmferry.engine.stop import hand_over
from vmferry.engine.throttle import Throttle
from vmferry.errors import CheckFailed, GuestStopped, PeerError, ProtocolError, VmferryError
from vmferry.wire.handshake import greet
from vmferry.wire.link import Link
from vmferry.wire.messages import Accepted, Refused
from vmferry.wire.stream import LinkStream

__all__ = ["Leaving"]

_log = logging.getLogger(__name__)
_TELL = 10.0
OpenLink = Callable[[], Awaitable[Link]]


class Leaving:
    """One guest and its disks until they are committed.

    Attributes:
        accepted: the destination's answer; without a token as long as it has not accepted.
        after: what goes on after the commit; ``None`` before it.
        owner: where the guest is while nothing is committed: ``source``, or ``unknown`` if it could
            not be resumed.
        paused: the connection was lost in PUSH, which can go on over another.
        left: bytes that were to be sent when it was.
        bitmap_bytes: size of the dirty bitmaps on the wire.
        pending: bytes dirty at the switch.

    """

    def __init__(
        self,
        job: str,
        guest: Guest,
        hypervisor: Hypervisor[Any],
        services: Services,
        settings: Settings,
        policy: ConvergencePolicy,
        meter: Meter,
        throttle: Throttle,
    ) -> None:
        self.accepted = Accepted()
        self.after: Afterwards | None = None
        self.owner = "source"
        self.paused = self._stopping = False
        self.bitmap_bytes = self.pending = self.left = 0
        self._job, self._guest, self._hypervisor = job, guest, hypervisor
        self._services, self._settings, self._policy = services, settings, policy
        self._meter, self._throttle = meter, throttle
        self._disks: Sequence[SourceDisk] = ()
        self._codecs: tuple[str, ...] = ()
        self._departure: Departure | None = None
        self._push: Push | None = None
        self._suspended = 0.0
        self._committing = False

    @property
    def pushing(self) -> bool:
        """Whether PUSH was come to, on any connection of this process."""
        return self._push is not None

    @property
    def rounds(self) -> tuple[RoundReport, ...]:
        """Reports of the rounds of PUSH so far."""
        return tuple(self._push.rounds) if self._push is not None else ()

    def switch_now(self) -> None:
        """End PUSH's rounds as soon as may be."""
        if self._push is not None:
            self._push.force()

    def sender(self, link: Link) -> Sender:
        """What sends this guest's disks over ``link``."""
        return make_sender(
            link, self._disks, self._services, self._settings, self._throttle, self._codecs
        )

    def _stream(self, link: Link) -> LinkStream:
        return make_stream(link, self._services, self._settings, self._throttle, self._codecs)

    def show(self, findings: Sequence[Finding]) -> None:
        """Tell observers of findings that do not refuse the migration."""
        for one in findings:
            self._services.hooks.event(
                self._job, "finding", severity=one.severity.value, code=one.code, text=one.text
            )

    def take_up(self, accepted: Accepted) -> None:
        """Go on with the PUSH of an earlier process, to which the destination had agreed so."""
        self.accepted, self.paused = accepted, True

    async def go(self, link: Link, disks: Sequence[SourceDisk]) -> None:
        """Everything up to the commit, from the beginning or after ``pause`` or ``take_up``.

        On return the commit is durable.
        """
        self._disks = disks
        push = await (self._go_on(link) if self.paused else self._begin(link))
        self._departure = departure = await self._hypervisor.depart(self._guest, self._stream(link))
        self._meter.enter(Phase.PUSH_DISK)
        for disk in disks:
            await disk.start_tracking()
        await unstalled(
            self._move(link, departure, push),
            link,
            timeout=self._settings.stall_timeout,
            meter=self._meter,
            throttle=self._throttle,
            further=lambda: departure.progress,
            flushing=lambda: push.sender.flushing,
        )

    async def _begin(self, link: Link) -> Push:
        await self._handshake(link)
        return self._make_push(link)

    def _make_push(self, link: Link) -> Push:
        push = self._push = Push(
            self._disks,
            self.sender(link),
            self._meter,
            self._services.hooks,
            self._policy,
            self._settings,
        )
        return push

    async def _go_on(self, link: Link) -> Push:
        """The destination has kept the disks: it is sent what it does not have."""
        names = codec_names(self._settings.compression)
        resumed, self._codecs = await attach_to_push(link, self._job, self.accepted, names)
        self.paused = False
        if (push := self._push) is None:
            push = self._make_push(link)
            push.take_up()
        elif resumed.unsure:
            push.doubt()
        push.sender, push.comparer = self.sender(link), Comparer(link, self._services.workers)
        self._services.hooks.event(self._job, "reconnected", pushing=True, left=push.left())
        return push

    async def pause(self, link: Link, error: BaseException) -> bool:
        """As ``_pause``; a failure of it is told, and is none that PUSH outlasts."""
        try:
            return await self._pause(link, error)
        except Exception:
            _log.exception("%s: PUSH cannot go on over another connection", self._job)
            return False

    async def _pause(self, link: Link, error: BaseException) -> bool:
        """Whether the loss of the connection is one that PUSH outlasts.

        If so the guest runs here as if nothing had been, its writes are tracked, and what may not
        have arrived is to be sent again. Otherwise ``roll_back`` is due.
        """
        if not await is_loss(link, error):
            return False
        if self.paused or not self._may_pause():
            return self.paused
        assert self._push is not None
        if self._departure is not None:
            self.owner = "unknown"
            await self._resume(self._departure)
            if self.owner != "source":
                return False
            self._departure = None
        async with asyncio.timeout(self._settings.patience):
            for disk in self._disks:
                await disk.settle()
        self.left = self._push.put_back()
        self.paused = True
        self._services.hooks.event(self._job, "link-lost", error=str(error))
        return True

    def _may_pause(self) -> bool:
        tracked = all(disk.tracked for disk in self._disks)
        wanted = self._settings.reconnect > 0 and not self._stopping
        return wanted and tracked and self._push is not None

    async def _move(self, link: Link, departure: Departure, push: Push) -> None:
        await push.converge()
        self._meter.enter(Phase.PUSH_MEMORY)
        self._meter.gauge("memory", self._guest.memory, refresh=self._refresh_memory)
        await push.beside(departure.precopy())
        self._services.hooks.before_switch(self._job, self._guest)
        await self._stop_and_commit(link, departure, push)

    def _refresh_memory(self, gauge: Gauge) -> None:
        if self._departure is not None:
            progress = self._departure.progress
            gauge.done, gauge.number = progress.total - progress.remaining, progress.rounds

    async def _handshake(self, link: Link) -> None:
        names = codec_names(self._settings.compression)
        welcome = await greet(link, self._job, codecs=names)
        self._codecs = welcome.codecs
        known = await known_epoch(self._services, self._guest.name)
        offer = make_offer(self._guest, self._settings, epoch=known)
        reply = await offer_guest(link, offer)
        if isinstance(reply, Refused):
            raise CheckFailed(reply.findings)
        if len(reply.disks) != len(self._disks) or not reply.token:
            raise ProtocolError("Accepted: disks or token do not answer the offer")
        if reply.epoch <= offer.epoch:
            raise ProtocolError(f"Accepted: epoch {reply.epoch} is not above {offer.epoch}")
        self.show(reply.findings)
        self.accepted = reply
        for disk, taken, size in zip(self._disks, reply.disks, offer.block_sizes, strict=True):
            disk.blank, disk.offered = taken.blank, size
        journal = self._services.journal
        await journal.update(self._job, token=reply.token, epoch=reply.epoch)

    async def _stop_and_commit(self, link: Link, departure: Departure, push: Push) -> None:
        services = self._services
        self._stopping = True
        self._meter.enter(Phase.STOP)
        await services.journal.update(self._job, phase=Phase.STOP)
        self._suspended = asyncio.get_running_loop().time()
        self.bitmap_bytes = await hand_over(
            link, departure, self._disks, services.workers, push.finish
        )
        self._committing = True
        await services.journal.update(self._job, committed=True)
        self.after = Afterwards(
            services,
            self._settings,
            self._meter,
            self._throttle,
            self._disks,
            departure,
            job=self._job,
            token=self.accepted.token,
            epoch=self.accepted.epoch,
            suspended=self._stopped_at(departure),
        )
        self.pending = dirty_bytes(self._disks)

    def _stopped_at(self, departure: Departure) -> float:
        """When the guest stopped, by its hypervisor if it can tell, or when that was asked to."""
        told = departure.suspended_at
        return self._suspended if told is None else told

    async def roll_back(self, link: Link, error: BaseException, open_link: OpenLink) -> None:
        """``Go`` was not sent, so the guest is this host's: it first, then the peer, then the rest.

        A commit that may have been written is taken back, durably, before the guest runs: the
        journal alone decides after a crash. If it cannot be, the destination has to promise first.
        """
        told = self.paused = False
        uncommitted = not self._committing or await self._uncommit()
        if not uncommitted:
            told = await self._withdraw(error, open_link)
        if self._departure is not None:
            self.owner = "unknown"
            if uncommitted or told:
                await self._resume(self._departure)
        heard = await link.dismiss(error)
        if not told and self._is_kept(error, heard=heard):
            await self._withdraw(error, open_link)

    def _is_kept(self, error: BaseException, *, heard: bool) -> bool:
        """Whether the destination may hold something of the guest, and wait for us."""
        if isinstance(error, PeerError):
            return bool(self._suspended)
        waits = bool(self._suspended) or self._settings.reconnect > 0
        return bool(self.accepted.token) and waits and not heard

    async def give_up(self, error: BaseException, open_link: OpenLink) -> None:
        """After ``pause``: PUSH is not gone on with. The guest runs here."""
        self.paused = False
        await self._withdraw(error, open_link)

    async def _resume(self, departure: Departure) -> None:
        """A guest that has ended by its own doing is the source's, too: its disks are here."""
        try:
            await departure.resume()
        except GuestStopped as stopped:
            self._services.hooks.event(self._job, "guest-stopped", reason=str(stopped))
        except Exception:
            _log.exception("the guest could not be resumed")
            return
        self.owner = "source"

    async def _uncommit(self) -> bool:
        record = self._services.journal.update(self._job, committed=False)
        return await attempt("the journal could not be written", record)

    async def _withdraw(self, error: BaseException, open_link: OpenLink) -> bool:
        """Whether the destination, which may hold a paused guest, promised never to run it."""
        record = JobRecord(
            job=self._job, role="source", token=self.accepted.token, epoch=self.accepted.epoch
        )
        reason = str(error) or type(error).__name__
        try:
            async with asyncio.timeout(_TELL):
                return (await ask_for_account(open_link, record, withdraw=reason)).withdrawn
        except (VmferryError, OSError, TimeoutError) as failure:
            self._services.hooks.event(self._job, "peer-not-told", error=str(failure))
            return False
