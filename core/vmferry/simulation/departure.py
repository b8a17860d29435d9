"""A simulated guest on its way out."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import zstandard

from vmferry.api.guest import Guest
from vmferry.api.hypervisor import ByteStream, Departure, MemoryProgress
from vmferry.errors import HypervisorError, LinkError
from vmferry.simulation.guest import SimGuest
from vmferry.simulation.host import SimHost
from vmferry.simulation.messenger import Message, Messenger
from vmferry.simulation.process import SimProcess
from vmferry.simulation.temper import HypervisorParameters, Lapse

__all__ = ["SimDeparture", "pack_state"]

_CHUNK = 32
_LOOK = 0.01


def pack_state(guest: SimGuest) -> bytes:
    """All of a guest but its pages."""
    encoded = msgspec.msgpack.encode(guest.state.dump())
    return zstandard.ZstdCompressor(level=1).compress(encoded)


class SimDeparture(Departure):
    """Sends pages in rounds while the guest runs, the rest and the state while it stands still."""

    def __init__(
        self,
        host: SimHost,
        process: SimProcess,
        guest: SimGuest | None,
        described: Guest,
        stream: ByteStream | None,
        parameters: HypervisorParameters,
    ) -> None:
        self._host, self._process, self._here = host, process, guest
        self._described, self._parameters = described, parameters
        self._messenger = Messenger(stream) if stream is not None else None
        self._sent = self._rounds = 0
        self._ended = False
        self._suspended_at: float | None = None
        self._early = b""

    @property
    def _guest(self) -> SimGuest:
        if self._here is None:
            raise HypervisorError(f"{self._described.name} is gone")
        return self._here

    @property
    def _peer(self) -> Messenger:
        if self._messenger is None:
            raise HypervisorError("the stream ended with the agent that had it")
        return self._messenger

    def _lapses(self, lapse: Lapse) -> bool:
        return self._parameters.lapse is lapse

    @property
    def progress(self) -> MemoryProgress:
        """Pages by count."""
        memory = self._guest.memory
        return MemoryProgress(
            total=len(memory) * memory.page_size,
            sent=self._sent,
            remaining=int(memory.dirty.sum()) * memory.page_size,
            rounds=self._rounds,
        )

    @property
    def suspended_at(self) -> float | None:
        """The first time it was stopped."""
        return self._suspended_at

    async def precopy(self) -> None:
        """All pages, then in rounds the dirty ones, until few are."""
        self._process.check()
        memory = self._guest.memory
        memory.dirty[:] = True
        self._early = pack_state(self._guest) if self._lapses(Lapse.STALE_STATE) else b""
        while True:
            await self._send(memory.take_dirty())
            self._rounds += 1
            few = int(memory.dirty.sum()) <= self._parameters.few
            if few or self._rounds >= self._parameters.rounds:
                break
        if self._parameters.suspends_itself:
            await self.suspend()

    async def _send(self, pages: list[int]) -> None:
        memory = self._guest.memory
        for begin in range(0, len(pages), _CHUNK):
            chunk = pages[begin : begin + _CHUNK]
            data = memory.get(chunk)
            await self._peer.send(Message("pages", chunk, data))
            self._sent += len(data)

    async def suspend(self) -> None:
        """Stop the guest; its outstanding requests go on."""
        self._process.check()
        await asyncio.sleep(self._host.random.random() * self._parameters.delay)
        self._process.check()
        if not self._lapses(Lapse.RUNS_ON):
            self._guest.suspend()
        if self._suspended_at is None:
            self._suspended_at = asyncio.get_running_loop().time()
        if self._lapses(Lapse.DROPS_OUTSTANDING):
            for backend in self._guest.backends:
                backend.drop()

    async def transfer(self) -> None:
        """The dirty pages and the state."""
        self._process.check()
        if not self._lapses(Lapse.SKIPS_LAST_PAGES):
            await self._send(self._guest.memory.take_dirty())
        state = self._early or pack_state(self._guest)
        await self._peer.send(Message("state", data=state))
        if not self._parameters.own_go:
            await self._peer.stream.write_eof()

    async def release(self) -> None:
        """Say go, if this hypervisor has a word of its own."""
        self._process.check()
        if self._parameters.own_go and self._messenger is not None:
            with contextlib.suppress(LinkError):
                await self._messenger.send(Message("go"))
                await self._messenger.stream.write_eof()

    async def resume(self) -> None:
        """Run on."""
        self._process.check()
        if not self._ended:
            self._ended = True
            await asyncio.sleep(self._host.random.random() * self._parameters.delay)
            self._process.check()
            self._guest.run()

    async def destroy(self) -> None:
        """Remove the guest and let go of its disks."""
        self._process.check()
        if self._parameters.serves:
            await self._unread()
        if not self._ended:
            self._ended = True
            if self._here is not None:
                self._here.destroy()
                self._host.guests.pop(self._here.name, None)
            for disk in self._described.disks:
                await self._host.detach(disk.name)

    async def _unread(self) -> None:
        """Return once only the guest itself has its disks open; they are out of reach then."""
        volumes = self._host.volumes
        disks = [volumes[one.name].disk for one in self._described.disks if one.name in volumes]
        while any(disk.openers > 1 for disk in disks):
            await asyncio.sleep(_LOOK)
            self._process.check()
        for disk in disks:
            disk.served = False
