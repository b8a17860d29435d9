"""A hypervisor plugin over machines that live in this process.

Hosts are names, so that two of them can be played in one process. Put calls to your hypervisor
where this uses a ``Machine``; keep the order of what is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from vmferry.api import (
    Arrival,
    ArrivingDisk,
    ByteStream,
    Departure,
    Disk,
    Finding,
    Guest,
    Hypervisor,
    HypervisorCapabilities,
    MemoryProgress,
    Options,
)
from vmferry.cli.scaffold.samples.machine import (
    PAGE,
    SECTOR,
    FileDisk,
    Machine,
    NbdDisk,
    State,
)
from vmferry.errors import GuestNotFound, GuestStopped, HypervisorError

_HOSTS: dict[str, dict[str, Machine]] = {}
_FEW, _LONGEST = 8, 1 << 20


class PuppetOptions(Options, frozen=True, kw_only=True):
    """Options of the ``puppet`` hypervisor plugin."""

    host: Annotated[str, msgspec.Meta(description="name of the host to drive")] = "here"


class Config(msgspec.Struct, frozen=True):
    """What the destination must know to build the machine. It comes from the network."""

    pages: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]


class Page(msgspec.Struct, tag="page", frozen=True):
    """A message: one page of memory."""

    number: int
    data: bytes


class Last(msgspec.Struct, tag="last", frozen=True):
    """A message: the rest of the machine. Nothing follows."""

    state: State


_messages = msgspec.msgpack.Decoder(Page | Last)


def machines(host: str) -> dict[str, Machine]:
    """The machines of a host by name, half-built ones too."""
    return _HOSTS.setdefault(host, {})


class PuppetDeparture(Departure):
    """Sends pages in rounds while the machine runs, the rest while it stands still."""

    def __init__(self, host: dict[str, Machine], machine: Machine, stream: ByteStream) -> None:
        self._host, self._machine, self._stream = host, machine, stream
        self._sent = self._rounds = 0
        self._ended = False

    @property
    def progress(self) -> MemoryProgress:
        """In bytes."""
        machine = self._machine
        left = len(machine.dirty) * PAGE
        return MemoryProgress(
            total=len(machine.memory), sent=self._sent, remaining=left, rounds=self._rounds
        )

    async def precopy(self) -> None:
        """All pages, then those written meanwhile, until few are left."""
        self._machine.dirty.update(range(len(self._machine.state.pages)))
        while len(self._machine.dirty) > _FEW and self._rounds < 30:
            await self._send_dirty()
            self._rounds += 1

    async def _send_dirty(self) -> None:
        """Forget a page's mark before it is read: a write in between marks it again."""
        pages, self._machine.dirty = self._machine.dirty, set()
        for number in sorted(pages):
            self._check_alive()
            await self._send(Page(number, self._machine.get(number)))
            self._sent += PAGE

    async def _send(self, message: Page | Last) -> None:
        body = msgspec.msgpack.encode(message)
        await self._stream.write(len(body).to_bytes(4) + body)

    def _check_alive(self) -> None:
        if self._machine.crashed:
            raise GuestStopped(f"{self._machine.name} crashed; start it again")

    async def suspend(self) -> None:
        """Stop it at the end of a step."""
        self._check_alive()
        await self._machine.suspend()

    async def transfer(self) -> None:
        """The pages that are left, and the state."""
        await self._send_dirty()
        await self._send(Last(self._machine.state))
        await self._stream.write_eof()

    async def release(self) -> None:
        """Nothing to send: a stream may have a word of its own for it, this one has not."""

    async def resume(self) -> None:
        """Let it run on, unless it was destroyed."""
        if not self._ended and not self._machine.crashed:
            self._machine.run()

    async def destroy(self) -> None:
        """Remove it; its disk stays."""
        if not self._ended:
            self._ended = True
            await self._machine.end()
            self._host.pop(self._machine.name, None)


class PuppetArrival(Arrival):
    """Fills a machine that does not run yet."""

    def __init__(self, host: dict[str, Machine], machine: Machine, stream: ByteStream) -> None:
        self._host, self._machine, self._stream = host, machine, stream
        self._buffer = bytearray()

    async def receive(self) -> None:
        """Messages until the last one."""
        while not isinstance(message := await self._message(), Last):
            self._machine.put(message.number, message.data)
        if len(message.state.pages) != len(self._machine.state.pages):
            raise HypervisorError("the state that came is that of another machine")
        self._machine.state = message.state

    async def _message(self) -> Page | Last:
        length = int.from_bytes(await self._exactly(4))
        if length > _LONGEST:
            raise HypervisorError(f"a message of {length} bytes; at most {_LONGEST} are taken")
        try:
            message: Page | Last = _messages.decode(await self._exactly(length))
        except ValueError as error:
            raise HypervisorError(f"what came is no memory: {error}") from error
        return message

    async def _exactly(self, length: int) -> bytes:
        while len(self._buffer) < length:
            data = await self._stream.read()
            if not data:
                raise HypervisorError("the memory stream ended too early")
            self._buffer += data
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken

    async def activate(self) -> None:
        """Run it."""
        self._machine.run()

    async def pivot(self, disk: ArrivingDisk) -> None:
        """Put it on the plain file."""
        await self._machine.attach(FileDisk(disk.location))

    async def finish(self) -> None:
        """Nothing is left to forget."""

    async def abort(self) -> None:
        """Remove what there is of it."""
        if self._host.get(self._machine.name) is self._machine:
            del self._host[self._machine.name]
        await self._machine.end()


class PuppetHypervisor(Hypervisor[PuppetOptions]):
    """Drives the machines of one host."""

    api_version = 1
    name = "puppet"
    summary = "machines that live in this process"
    options_type = PuppetOptions
    capabilities = HypervisorCapabilities()

    @property
    def _host(self) -> dict[str, Machine]:
        return machines(self.options.host)

    async def guests(self) -> Sequence[str]:
        """Those that run."""
        return sorted(name for name, machine in self._host.items() if machine.running)

    async def describe(self, name: str) -> Guest:
        """A machine with its one disk. Name the tracker that sees what your guests write."""
        running = await self.guests()
        if name not in running:
            raise GuestNotFound(name, running)
        machine = self._host[name]
        size = machine.sectors * SECTOR
        disk = Disk(name="disk0", size=size, location=machine.location, tracker="scan")
        return Guest(
            name=name,
            hypervisor=self.name,
            memory=len(machine.memory),
            disks=(disk,),
            config=msgspec.msgpack.encode(Config(len(machine.state.pages))),
        )

    async def check_arrival(self, guest: Guest) -> Sequence[Finding]:
        """Find whether the name is free and the machine can be built."""
        try:
            self._plan(guest)
        except HypervisorError as error:
            return [Finding.error("cannot-come", str(error))]
        return []

    def _plan(self, guest: Guest) -> Config:
        if guest.name in self._host:
            raise HypervisorError(f"there is a machine {guest.name} here; remove or rename it")
        if len(guest.disks) != 1:
            raise HypervisorError(f"{guest.name} has {len(guest.disks)} disks, not one")
        try:
            return msgspec.msgpack.decode(guest.config, type=Config)
        except ValueError as error:
            raise HypervisorError(f"{guest.name}: its configuration is none: {error}") from error

    async def depart(self, guest: Guest, stream: ByteStream) -> Departure:
        """Nothing is changed yet."""
        if guest.name not in self._host:
            raise HypervisorError(f"{guest.name} is gone")
        return PuppetDeparture(self._host, self._host[guest.name], stream)

    async def arrive(
        self, guest: Guest, disks: Sequence[ArrivingDisk], stream: ByteStream
    ) -> Arrival:
        """Build a machine that does not run, on the export of its disk."""
        config = self._plan(guest)
        disk, sectors = disks[0], guest.disks[0].size // SECTOR
        export = NbdDisk(disk.export)
        machine = Machine(guest.name, config.pages, sectors, export, disk.location)
        self._host[guest.name] = machine
        return PuppetArrival(self._host, machine, stream)
