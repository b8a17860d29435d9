"""Receiving a guest: ``xl migrate-receive``, fed from the stream, on devices made beforehand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from vmferry.api.guest import ArrivingDisk
from vmferry.api.hypervisor import Arrival, ByteStream
from vmferry.dirtymap import DirtyMap
from vmferry.errors import ConnectionLost, HypervisorError, ProtocolError
from vmferry_hypervisors.xen.config import Attachment, DomainConfig, parse_bridges
from vmferry_hypervisors.xen.incoming import destroy_incoming
from vmferry_hypervisors.xen.memory import MemoryReservation
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.pipes import Pipe
from vmferry_hypervisors.xen.program import Program
from vmferry_hypervisors.xen.pulldevice import PullDevice
from vmferry_hypervisors.xen.stream import BANNER, GO, READY, REPORT, read_header

__all__ = ["XenArrival"]


class XenArrival(Arrival):
    """A Xen guest on its way in.

    Args:
        offered: the configuration that was agreed on.
        name: of the guest here.
        disks: what to attach.
        stream: from the source.
        options: the plugin's.
        script: hotplug script for the disks; empty for Xen's own.

    """

    def __init__(
        self,
        offered: DomainConfig,
        name: str,
        disks: Sequence[ArrivingDisk],
        stream: ByteStream,
        options: XenOptions,
        script: str = "",
    ) -> None:
        self._offered, self._name, self._stream = offered, name, stream
        self._options, self._script = options, script
        self._devices = {each.disk.name: PullDevice(each, options.max_segments) for each in disks}
        self._memory = MemoryReservation(options)
        self._xl = Program(["xl", "migrate-receive"])
        self._feed: Pipe
        self._words: Pipe
        self._feeding: asyncio.Task[None] | None = None
        self._complete = self._active = self._closed = False

    async def start(self) -> None:
        """Free memory, make the devices, start xl; on failure nothing is left behind."""
        try:
            await self._memory.make(self._offered.needed_memory)
            for device in self._devices.values():
                await device.make()
            await self._start_xl()
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self.abort()))
            raise

    async def take_up(self) -> None:
        """The guest was activated by an agent that has ended: take up what is left to do."""
        self._active = self._complete = True
        for device in self._devices.values():
            await device.adopt()

    async def _start_xl(self) -> None:
        (theirs, feed), (words, ours) = os.pipe(), os.pipe()
        self._feed, self._words = (
            Pipe(feed, "the stream to xl"),
            Pipe(words, "the answers of xl"),
        )
        try:
            await self._xl.start(stdin=theirs, stdout=ours)
        finally:
            os.close(theirs)
            os.close(ours)
        await self._expect(BANNER)

    async def _expect(self, word: bytes) -> None:
        """What xl says next; any other thing, or its end, is an error that tells its complaint."""
        try:
            said = await self._words.read_exactly(len(word), self._options.timeout)
        except HypervisorError as error:
            await self._xl.ended(2)
            raise self._xl.failure(str(error)) from error
        if said != word:
            raise self._xl.failure(f"xl said {said!r} instead of {word!r}")

    async def receive(self) -> None:
        """Feed xl until it says that the guest is complete; then tell the source so."""
        if self._closed or self._complete:
            raise HypervisorError(f"guest {self._name}: its arrival has ended")
        header = await read_header(self._read_exactly)
        header.config = self._localized(DomainConfig.parse(header.config))
        await self._feed.write(header.encode(), self._options.timeout)
        loop = asyncio.get_running_loop()
        self._feeding = loop.create_task(self._feed_all())
        ready = loop.create_task(self._words.read_exactly(len(READY), 1e9))
        try:
            await self._wait_for(ready)
        finally:
            if not ready.done():
                ready.cancel()
                await asyncio.wait({ready})
        if ready.result() != READY:
            raise self._xl.failure("xl said something else than that it is ready")
        await self._stream.write(READY)
        self._complete = True

    def _localized(self, sent: DomainConfig) -> bytes:
        """The configuration in the stream, held against what was agreed on, for this host."""
        agreed = self._offered
        if (sent.uuid, sent.type) != (agreed.uuid, agreed.type):
            raise ProtocolError(f"another guest comes than {agreed.name}, which was agreed on")
        if sent.needed_memory > agreed.needed_memory:
            raise ProtocolError(f"guest {agreed.name} needs more memory than was agreed on")
        if found := sent.findings():
            raise ProtocolError(found[0].text)
        return sent.localized(self._name, self._attachments(), parse_bridges(self._options.bridges))

    def _attachments(self) -> Mapping[str, Attachment]:
        return {
            name: Attachment(device.path, self._script) for name, device in self._devices.items()
        }

    async def _feed_all(self) -> None:
        """Until the source's end of the stream, which comes after xl has said that it is ready."""
        while piece := await self._read():
            await self._feed.write(piece, self._options.timeout)

    async def _read(self, limit: int = 1 << 20) -> memoryview:
        return memoryview(await self._stream.read(limit))

    async def _read_exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = await self._read(length - len(data))
            if not piece:
                raise ConnectionLost("the memory stream ended before its header")
            data += piece
        return data

    async def _wait_for(self, ready: asyncio.Task[bytes]) -> None:
        """Until xl speaks, as long as it lives and the stream does.

        How long that takes is the source's affair, which may hold its memory back: it looks after
        progress, and the engine after the link. That xl takes what it is given, ``_feed`` sees to.
        """
        assert self._feeding is not None
        ended = asyncio.get_running_loop().create_task(self._xl.ended())
        try:
            await asyncio.wait({ready, ended, self._feeding}, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ready.exception():
                return
            if not ready.done() and self._feeding.done():
                raise self._fed_no_more(self._feeding)
        finally:
            ended.cancel()
            await asyncio.wait({ended})
        await self._xl.ended(2)
        raise self._xl.failure(f"guest {self._name} could not be received")

    @staticmethod
    def _fed_no_more(feeding: asyncio.Task[None]) -> Exception:
        error = feeding.exception()
        if isinstance(error, Exception):
            return error
        return ConnectionLost("the memory stream ended before xl had the whole guest")

    async def show_pending(self, disk: ArrivingDisk, pending: DirtyMap) -> None:
        """Swap the table of the disk's device: pending ranges go through the export."""
        await self._devices[disk.disk.name].show(pending)

    async def activate(self) -> None:
        """Tell xl to go; return when it reports that the guest runs."""
        if not self._complete or self._closed:
            raise HypervisorError(f"guest {self._name} is not complete")
        await self._stop_feeding()
        await self._feed.write(GO, self._options.timeout)
        self._active = True
        await self._expect(REPORT)
        code = await self._words.read_exactly(1, self._options.timeout)
        if code != b"\0":
            raise self._xl.failure(f"guest {self._name} could not be started: code {code[0]}")

    async def pivot(self, disk: ArrivingDisk) -> None:
        """Put the disk's device on the local volume alone."""
        await self._devices[disk.disk.name].pivot()

    async def finish(self) -> None:
        """Close what belonged to the migration; the guest keeps its device-mapper devices."""
        await self._close()

    async def abort(self) -> None:
        """End xl, which destroys its half of the guest; make sure of it; remove all devices."""
        if self._active:
            raise HypervisorError(f"guest {self._name} runs here and cannot be aborted")
        await self._close()
        await destroy_incoming(self._name, self._offered.uuid, self._options.xenstore)
        for device in self._devices.values():
            await device.remove()
        await self._memory.undo()

    def _close_pipes(self) -> None:
        for pipe in (getattr(self, "_feed", None), getattr(self, "_words", None)):
            if pipe is not None:
                pipe.close()

    async def _stop_feeding(self) -> None:
        task, self._feeding = self._feeding, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
            if not task.cancelled():
                task.exception()  # a link that broke is known to the engine

    async def _close(self) -> None:
        self._closed = True
        await self._stop_feeding()
        self._close_pipes()
        if not await self._xl.ended(self._options.timeout):
            await self._xl.kill()
        self._xl.close()
