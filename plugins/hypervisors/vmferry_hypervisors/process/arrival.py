"""Receiving a guest: its process waits, its memory is filled, its registers come last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import msgspec
import numpy as np

from vmferry.api.guest import ArrivingDisk, Disk
from vmferry.api.hypervisor import Arrival, ByteStream
from vmferry.errors import DigestMismatch, GuestStopped, HypervisorError, ProtocolError
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.folder import AttachedDisk, GuestFolder
from vmferry_hypervisors.process.framing import (
    FinalState,
    FrameType,
    Hello,
    decode,
    read_frame,
    unpack_numbers,
)
from vmferry_hypervisors.process.layout import PAGE, Registers, State
from vmferry_hypervisors.process.memory import GuestMemory
from vmferry_hypervisors.process.options import ProcessOptions

__all__ = ["ProcessArrival", "attach", "local_disk"]

_POLL = 0.0005


class ProcessArrival(Arrival):
    """A process guest on its way in. Its process runs from the start and waits, blank.

    ``fresh`` says that this host has no console of an earlier stay, so that ``abort`` leaves none.
    Without a ``stream`` its memory is here already, and it runs if it is ``active``.
    """

    def __init__(
        self,
        folder: GuestFolder,
        stream: ByteStream | None,
        options: ProcessOptions,
        *,
        fresh: bool,
        active: bool = False,
    ) -> None:
        self._folder, self._stream, self._options = folder, stream, options
        self._fresh = fresh
        self._complete, self._active = stream is None, active
        self._memory = None if stream is None else GuestMemory(folder.path)

    async def receive(self) -> None:
        """Fill the memory, then compare the registers and the digest; see ``framing``.

        Raises:
            ConnectionLost: the stream ended too early.
            ProtocolError: the peer sent what it must not.
            DigestMismatch: the memory is not what the source says it sent.

        """
        memory, stream = self._memory, self._stream
        if memory is None or stream is None:
            raise HypervisorError(f"guest {self._folder.name}: its arrival has ended")
        await self._hello(memory, stream)
        while True:
            kind, count, body = await read_frame(stream)
            if kind == FrameType.STATE:
                break
            self._store(memory, kind, count, body)
        await self._verify(memory, decode(body, FinalState))
        self._complete = True

    async def _hello(self, memory: GuestMemory, stream: ByteStream) -> None:
        kind, _, body = await read_frame(stream)
        if kind != FrameType.HELLO:
            raise ProtocolError(f"the memory stream begins with {kind.name}")
        hello = decode(body, Hello)
        if (hello.memory, hello.page) != (memory.size, PAGE):
            raise ProtocolError(
                f"memory of {hello.memory} bytes in pages of {hello.page} was announced; "
                f"{memory.size} bytes in pages of {PAGE} were agreed"
            )

    @staticmethod
    def _store(memory: GuestMemory, kind: FrameType, count: int, body: memoryview) -> None:
        if kind == FrameType.HELLO:
            raise ProtocolError("a second HELLO in the memory stream")
        numbers = unpack_numbers(body, count, memory.size // PAGE)
        if kind == FrameType.ZEROES:
            memory.pages[numbers] = 0
        else:
            contents = np.frombuffer(body, dtype="<u8", offset=count * 4)
            memory.pages[numbers] = contents.reshape(count, PAGE // 8)

    async def _verify(self, memory: GuestMemory, state: FinalState) -> None:
        if bytes(memory.view[: Registers.SIZE]) != state.registers:
            raise DigestMismatch(f"guest {self._folder.name}: registers and memory do not agree")
        if state.digest and await asyncio.to_thread(memory.digest) != state.digest:
            raise DigestMismatch(f"guest {self._folder.name}: its memory is not what was sent")

    async def activate(self) -> None:
        """Let the blank process load the registers and go on; returns after its first step."""
        if not self._complete:
            raise HypervisorError(f"guest {self._folder.name} is not complete")
        self._active = True
        self._folder.welcome()
        await call(self._folder.path, Command("resume"), self._options.timeout)
        async with asyncio.timeout(self._options.timeout):
            while self._folder.registers().state != State.RUNNING:
                if self._folder.pid() is None:
                    raise GuestStopped(f"guest {self._folder.name} ended as soon as it was resumed")
                await asyncio.sleep(_POLL)

    async def pivot(self, disk: ArrivingDisk) -> None:
        """Let the guest finish what is under way on the export, then open the local file.

        A guest that has ended is told at its next start, by its definition.
        """
        command = Command("pivot", disk=disk.disk.name, url=f"file:{disk.location}")
        if self._folder.pid() is not None:
            await call(self._folder.path, command, self._options.timeout)
        definition = self._folder.definition()
        moved = AttachedDisk(local_disk(disk), command.url)
        disks = tuple(
            moved if each.disk.name == disk.disk.name else each for each in definition.disks
        )
        self._folder.redefine(msgspec.structs.replace(definition, disks=disks))

    async def guest_downtime(self) -> float | None:
        """Seconds between the last step at the source and the first here."""
        return self._folder.registers().switch_gap

    async def finish(self) -> None:
        """Unmap the memory; nothing else is left of the migration."""
        self._unmap()

    async def abort(self) -> None:
        """Kill the waiting process and remove what ``arrive`` made."""
        if self._active:
            raise HypervisorError(f"guest {self._folder.name} runs here and cannot be aborted")
        self._unmap()
        await asyncio.to_thread(self._folder.kill)
        await asyncio.to_thread(self._folder.remove, console=self._fresh)

    def _unmap(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            with contextlib.suppress(BufferError):
                memory.close()


def local_disk(arriving: ArrivingDisk) -> Disk:
    """A disk as the destination describes it once it is there."""
    return msgspec.structs.replace(
        arriving.disk, volume=arriving.volume, location=arriving.location, facts={}
    )


def attach(disks: Sequence[ArrivingDisk]) -> tuple[AttachedDisk, ...]:
    """The disks of an arriving guest, each on its export."""
    return tuple(AttachedDisk(local_disk(each), each.export) for each in disks)
