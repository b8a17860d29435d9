"""A simulated guest on its way in."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import zstandard

from vmferry.api.guest import ArrivingDisk, Guest
from vmferry.api.hypervisor import Arrival, ByteStream
from vmferry.api.volume import Geometry
from vmferry.errors import HypervisorError, LinkError, VolumeError
from vmferry.simulation.backend import SimBackend
from vmferry.simulation.exports import ExportClient, SimExports
from vmferry.simulation.guest import GuestState, SimGuest
from vmferry.simulation.host import SimHost
from vmferry.simulation.memory import GuestMemory
from vmferry.simulation.messenger import Messenger
from vmferry.simulation.oracle import Oracle
from vmferry.simulation.process import SimProcess
from vmferry.simulation.temper import HypervisorParameters, Lapse

__all__ = ["SimArrival"]

_LARGEST_STATE = 1 << 30


class SimArrival(Arrival):
    """Takes pages and state, and makes a guest of them."""

    def __init__(
        self,
        host: SimHost,
        process: SimProcess,
        oracle: Oracle,
        described: Guest,
        stream: ByteStream | None,
        parameters: HypervisorParameters,
    ) -> None:
        self._host, self._process, self._oracle = host, process, oracle
        self._described, self._parameters = described, parameters
        self._messenger = Messenger(stream) if stream is not None else None
        pages = len(oracle.versions)
        self._memory = GuestMemory(pages, described.memory // pages)
        self._guest: SimGuest | None = None
        self._gap: float | None = None
        self._backends: list[SimBackend] = []
        self._aborted = False

    def connect(self, disks: Sequence[ArrivingDisk], exports: SimExports) -> None:
        """Attach the guest's disks to their exports."""
        for arriving in disks:
            disk = arriving.disk
            geometry = Geometry(disk.size, disk.sector_size)
            client = ExportClient(exports, arriving.export, geometry)
            backend = SimBackend(geometry, client, self._host.random)
            self._backends.append(backend)
            self._host.backends[disk.name] = backend
        self._process.at_death(self._die)

    def _die(self) -> None:
        """What is not a whole guest yet ends with the process that makes it."""
        name = self._described.name
        if self._aborted or name in self._host.guests or name in self._host.waiting:
            return
        for arriving in self._described.disks:
            backend = self._host.backends.pop(arriving.name, None)
            if backend:
                backend.drop()

    def take_up(self, guest: SimGuest | None) -> None:
        """Go on with a guest that an earlier agent had received, and may have run."""
        self._guest = guest

    async def receive(self) -> None:
        """Messages until the state is there."""
        assert self._messenger is not None
        while True:
            self._process.check()
            message = await self._messenger.receive()
            if message.kind == "pages":
                self._memory.put(message.pages, message.data)
            elif message.kind == "state":
                self._build(message.data)
                return
            else:
                raise HypervisorError(f"a message {message.kind!r} where memory was expected")

    def _build(self, packed: bytes) -> None:
        encoded = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_LARGEST_STATE)
        state = GuestState.load(msgspec.msgpack.decode(encoded))
        self._memory.versions[:] = state.versions
        state.versions = self._memory.versions
        backends, host = self._backends, self._host.name
        self._guest = SimGuest(state, self._memory, backends, self._oracle, host)
        if self._parameters.outlives:
            self._host.waiting[self._guest.name] = self._guest

    async def activate(self) -> None:
        """Run the guest."""
        self._process.check()
        if not self._guest:
            raise HypervisorError("the guest is not complete")
        await self._wait_for_go()
        await asyncio.sleep(self._host.random.random() * self._parameters.delay)
        self._process.check()
        self._gap = asyncio.get_running_loop().time() - self._guest.state.stopped_at
        self._inspect(self._guest)
        self._host.waiting.pop(self._guest.name, None)
        self._host.guests[self._guest.name] = self._guest
        if not self._parameters.reissues or self._parameters.lapse is Lapse.DROPS_OUTSTANDING:
            self._guest.finish_writes()
        self._guest.run()

    async def _wait_for_go(self) -> None:
        if not self._parameters.own_go or self._messenger is None:
            return
        try:
            await self._messenger.receive()
        except (LinkError, HypervisorError):
            return

    def _inspect(self, guest: SimGuest) -> None:
        for page in guest.memory.wrong_pages():
            self._oracle.findings.add("memory", f"page {page} of {guest.name} arrived wrong")
        self._oracle.compare(guest.state.record, guest.memory.versions)

    async def pivot(self, disk: ArrivingDisk) -> None:
        """Open the plain disk and send later requests there."""
        self._process.check()
        try:
            volume = await self._host.attach(disk.disk.name, disk.location)
        except VolumeError as error:
            raise HypervisorError(f"cannot pivot {disk.disk.name}: {error}") from error
        await self._host.backends[disk.disk.name].switch(volume)

    async def guest_downtime(self) -> float | None:
        """As the guest's clock has it."""
        return self._gap

    async def finish(self) -> None:
        """Nothing is left to forget."""
        self._process.check()

    async def abort(self) -> None:
        """Forget the half-built guest."""
        self._process.check()
        if not self._aborted:
            self._aborted = True
            self._host.waiting.pop(self._described.name, None)
            for arriving in self._described.disks:
                await self._host.detach(arriving.name)
