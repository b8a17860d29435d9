"""Contract of a hypervisor plugin: how a guest is described, sent, received and switched.

The engine moves the disks; the plugin moves memory and processor state through a ``ByteStream``
that the engine provides, and attaches the guest's disks. The two sides of one migration::

    source: Departure                          destination: Arrival
    -----------------                          --------------------
    describe, check_departure                  check_arrival
    depart                                     arrive     (memory reserved, guest half built)
    precopy   ------ memory --------------->   receive    (runs meanwhile)
    suspend   (guest stopped, backend drained)
    transfer  ------ last memory, CPU ----->   receive returns: complete and paused
                                             show_pending   (per disk: the bitmap is here)
    [bitmap delivered, commit durable at the source]
    release   ------ plugin's own go ------>   activate   (guest runs)
    destroy                                    pivot      (per disk, at the end of PULL)
                                               finish
    resume    (any failure before the commit)  abort

``transfer`` and the delivery of the bitmap happen at the same time. The destination's guest never
runs before ``activate``; the source's never again after the commit.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar, Generic, Protocol

import msgspec

from vmferry.api.findings import Finding
from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.plugin import Capabilities, Grade, OptionsT, Plugin
from vmferry.dirtymap import DirtyMap
from vmferry.errors import HypervisorError

__all__ = [
    "Arrival",
    "ByteStream",
    "Departure",
    "Hypervisor",
    "HypervisorCapabilities",
    "MemoryProgress",
    "Remains",
]


class HypervisorCapabilities(Capabilities, frozen=True, kw_only=True):
    """What a hypervisor can do beyond the required core.

    Attributes:
        precopy: memory is sent while the guest runs; without it all of it is sent while stopped.
        pivot: the disk under a running guest can be changed, so that PULL leaves nothing behind.
        guest_downtime: the guest itself can tell how long it stood still.
        memory_channels: memory can be sent by several streams.
        free_memory: a destination that is short of memory can free some.
        reattach: an agent that was started anew can take up a guest that runs here during PULL.
        recover: one that was started anew can take up a departure, to resume or to destroy.

    """

    precopy: Grade = Grade.NATIVE
    pivot: Grade = Grade.NATIVE
    guest_downtime: Grade = Grade.NONE
    memory_channels: Grade = Grade.NONE
    free_memory: Grade = Grade.NONE
    reattach: Grade = Grade.NONE
    recover: Grade = Grade.NONE


class Remains(enum.StrEnum):
    """What is left at the destination of a guest whose agent ended before it was known to run."""

    NOTHING = "nothing"
    """Nothing that could ever run."""
    WAITING = "waiting"
    """Paused or half built: it has never run here."""
    RAN = "ran"
    """It runs here, or has run here."""
    UNKNOWN = "unknown"
    """This hypervisor cannot tell."""


class ByteStream(Protocol):
    """A bidirectional byte stream to the plugin at the other side, ordered, with back-pressure."""

    async def write(self, data: bytes | memoryview) -> None:
        """Send all of ``data``; returns when the link has taken it. Raises ``LinkError``."""

    async def read(self, limit: int = 1 << 20) -> bytes | memoryview:
        """Return some bytes, at most ``limit``; empty once the peer has called ``write_eof``."""

    async def write_eof(self) -> None:
        """Tell the peer that nothing follows. May be called twice."""

    @property
    def channels(self) -> Sequence[ByteStream]:
        """Further streams, which wait neither for this one nor for each other.

        The same number, in the same order, at both ends; none unless the user asked for some
        (``--memory-channels``), and then only for a hypervisor whose capabilities have them.
        """


class MemoryProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the memory pre-copy is.

    Attributes:
        total: bytes of guest memory.
        sent: bytes handed to the stream so far, repeats included.
        remaining: bytes known to be still to send.
        rounds: pre-copy rounds finished.

    """

    total: int = 0
    sent: int = 0
    remaining: int = 0
    rounds: int = 0


class Departure(ABC):
    """A guest on its way out. Exactly one of ``destroy`` and ``resume`` ends it."""

    @property
    def progress(self) -> MemoryProgress:
        """How far the memory is; cheap, called often."""
        return MemoryProgress()

    @property
    def suspended_at(self) -> float | None:
        """The event loop's time at which the guest stopped, or shortly before, once it has.

        Downtime counts from here. For a hypervisor that suspends by itself, at the end of
        ``precopy``, or that takes a while to do so when asked. ``None``, the default: the guest
        stops when ``suspend`` is called.
        """
        return None

    @abstractmethod
    async def precopy(self) -> None:
        """Send memory while the guest runs; return when so little is left that it may be suspended.

        A hypervisor that decides by itself when to suspend returns when it is about to, or has.

        Raises:
            GuestStopped: the guest shut down, crashed or is being rebooted.

        """

    @abstractmethod
    async def suspend(self) -> None:
        """On return no instruction of the guest runs, and none will until ``resume``.

        Requests it has in flight may still be under way in the backend: the tracker drains them.
        """

    @abstractmethod
    async def transfer(self) -> None:
        """Send the remaining memory and the processor state, all of it; the guest is suspended."""

    @abstractmethod
    async def release(self) -> None:
        """The guest belongs to the destination, durably: let the other plugin's ``activate`` go on.

        Sends the hypervisor's own go, if its stream has one. Does not fail for lack of a peer.
        Called once, before the destination is told to activate: from here on the guest is never
        resumed here, whatever becomes of this process or of what it has started.
        """

    @abstractmethod
    async def resume(self) -> None:
        """Let the guest run on here, as if nothing had been; ends the departure.

        Legal at any time before the commit, in any state, also if it was never suspended. Cleans up
        all that ``depart`` made. May be called twice.
        """

    @abstractmethod
    async def destroy(self) -> None:
        """Remove the guest that stays behind; ends the departure. Its disks are left untouched.

        May be called twice.
        """


class Arrival(ABC):
    """A guest on its way in. Ends with ``finish`` or ``abort``."""

    @abstractmethod
    async def receive(self) -> None:
        """Take memory and state from the stream until complete.

        On return the guest is whole, paused, and has not run. A disk may be connected, not read.
        """

    async def show_pending(  # noqa: B027 - nothing to do is the common case
        self, disk: ArrivingDisk, pending: DirtyMap
    ) -> None:
        """Attach ``disk`` so that blocks in ``pending`` are read and written through its export.

        Called once per disk while the guest is suspended, before ``activate``, possibly while
        ``receive`` still runs. Blocks that are not in ``pending`` are in the local volume,
        durably, and may be used there directly. A hypervisor that attaches the whole disk to the
        export has nothing to do. The map is not changed afterwards and must not be.
        """

    @abstractmethod
    async def activate(self) -> None:
        """Let the guest run. On return it does. Called once, after ownership is durable here."""

    @asynccontextmanager
    async def pivoting(self, disk: ArrivingDisk) -> AsyncIterator[None]:
        """What is around the flush and unlock of the local volume and ``pivot``, whatever they do.

        A local volume of a format that bears one writer only, as an image with metadata of its
        own, cannot be written through the export once it is unlocked: for such a one the guest's
        requests are held from here on. In most cases there is nothing to do.
        """
        yield

    @abstractmethod
    async def pivot(self, disk: ArrivingDisk) -> None:
        """Put the running guest's disk on its plain local volume instead of the export.

        Called when nothing is pending and the volume was flushed and unlocked. On return every
        later request of the guest goes to the local volume and none is in flight on the export.
        """

    async def guest_downtime(self) -> float | None:
        """Seconds the guest itself saw no time pass, or ``None`` if it cannot tell."""
        return None

    @abstractmethod
    async def finish(self) -> None:
        """All disks are local: forget the migration; the guest runs on. May be called twice."""

    @abstractmethod
    async def abort(self) -> None:
        """Destroy the half-built guest, free what was reserved. Legal before ``activate`` only.

        May be called twice.
        """


class Hypervisor(Plugin[OptionsT], ABC, Generic[OptionsT]):
    """Drives the guests of one host. One instance per job."""

    capabilities: ClassVar[HypervisorCapabilities] = HypervisorCapabilities()

    @abstractmethod
    async def guests(self) -> Sequence[str]:
        """Names of the guests that run here."""

    @abstractmethod
    async def describe(self, name: str) -> Guest:
        """Describe a running guest with all its local disks; changes nothing.

        Raises:
            GuestNotFound: lists those there are.

        """

    async def check_departure(self, guest: Guest) -> Sequence[Finding]:
        """Reasons why the guest cannot leave; changes nothing."""
        return ()

    async def check_arrival(self, guest: Guest) -> Sequence[Finding]:
        """Reasons why the guest cannot come here: memory, name, versions; changes nothing.

        ``guest`` comes from the network and is untrusted beyond its types.
        """
        return ()

    @abstractmethod
    async def depart(self, guest: Guest, stream: ByteStream) -> Departure:
        """Begin to send; the guest runs on. On failure nothing is left behind."""

    @abstractmethod
    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> Arrival:
        """Reserve memory (free some if short and able) and prepare to receive.

        On failure nothing is left behind.
        """

    async def reattach(self, guest: Guest, disks: Sequence[ArrivingDisk]) -> Arrival:
        """Take up a guest that was activated here by an agent that has ended since, during PULL.

        The exports are served again, under the same URLs, when this is called; what is pending is
        for the export to know. Of the arrival only ``pivot``, ``guest_downtime`` and ``finish``
        will be used. The guest may have shut down meanwhile: its disks are pulled nevertheless, and
        ``pivot`` and ``finish`` then have nothing to do.

        If ``remains`` says ``WAITING``, ``abort`` may be used, too, and if the guest was complete,
        ``activate``.

        Raises:
            HypervisorError: it cannot be taken up; the default.

        """
        raise HypervisorError(f"{self.name} cannot take up a guest after its agent has ended")

    async def remains(self, guest: Guest) -> Remains:
        """What an agent that has ended left of a guest that was arriving here; changes nothing.

        Only one that can be taken up by ``reattach`` may be called ``WAITING``.
        """
        return Remains.UNKNOWN

    async def recover(self, guest: Guest) -> Departure:
        """Take up the departure of a guest whose agent ended in the middle of it.

        Of what is returned only ``release`` and ``destroy`` will be used if the commit was made,
        and only ``resume`` if it was not, or was taken back since: the destination has promised
        never to run the guest, and the old agent may have released it. Whatever the old agent
        left (a suspended guest, a transport, half a stream), ``resume`` leaves the guest running
        here and ``destroy`` leaves nothing of it; neither minds if that is so already.

        Raises:
            HypervisorError: it cannot be taken up; the default.

        """
        raise HypervisorError(f"{self.name} cannot take up a departure after its agent has ended")

    async def cleanup(self, *, dry_run: bool = False) -> Sequence[str]:
        """Remove what migrations that were cut short have left on this host.

        Returns each thing in words. Only what nobody uses is removed, and never a disk; with
        ``dry_run`` nothing is. Not to be called while a guest arrives.
        """
        return ()
