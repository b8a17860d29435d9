"""Sending a guest: ``xl migrate`` with this process as its transport.

What xl is told and when is the whole of it: the receiver's banner at once; the receiver's "ready"
not before the commit, since that is where xl stops being able to resume the guest; the result when
the guest is known to run at the destination, upon which xl destroys the one that stayed behind.
"""

from __future__ import annotations

import asyncio
import logging

from vmferry.api.hypervisor import ByteStream, Departure, MemoryProgress
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.xen.config import DomainConfig
from vmferry_hypervisors.xen.leaving import make_run, remove_domain
from vmferry_hypervisors.xen.options import XenOptions
from vmferry_hypervisors.xen.stream import BANNER, GO, READY, REPORT
from vmferry_hypervisors.xen.suspension import SuspendWatch, state_of
from vmferry_hypervisors.xen.transport import Sender

__all__ = ["XenDeparture"]

_log = logging.getLogger(__name__)


class XenDeparture(Departure):
    """A Xen guest on its way out.

    Args:
        domid: its domain.
        config: its configuration.
        stream: to the destination.
        options: the plugin's.
        devices: device-mapper devices of an earlier arrival that go with the guest.

    """

    def __init__(
        self,
        domid: int,
        config: DomainConfig,
        stream: ByteStream,
        options: XenOptions,
        devices: tuple[str, ...] = (),
    ) -> None:
        self._domid, self._config, self._stream = domid, config, stream
        self._options, self._devices = options, devices
        self._sender = Sender(domid, options.timeout)
        self._watch = SuspendWatch(domid, config.name, options.xenstore)
        self._pump: asyncio.Task[None] | None = None
        self._sent = 0
        self._released = self._ended = False

    async def start(self) -> None:
        """Start xl, which waits for the receiver's banner; on failure nothing is left behind."""
        await self._watch.start()
        try:
            await self._sender.start()
        except BaseException:
            await self._watch.close()
            await self._sender.close()
            raise

    async def _begin(self) -> None:
        """Let xl send, if it does not yet: from here on it suspends the guest when it sees fit."""
        if self._pump is None:
            await self._sender.words.write(BANNER, self._options.timeout)
            self._pump = asyncio.get_running_loop().create_task(self._carry())

    @property
    def progress(self) -> MemoryProgress:
        """Bytes of xl's stream; how many rounds it takes is xl's own affair."""
        total = self._config.memory
        left = 0 if self._watch.stopped.is_set() else max(0, total - self._sent)
        return MemoryProgress(total=total, sent=self._sent, remaining=left)

    @property
    def suspended_at(self) -> float | None:
        """When xenstore told that the guest stands still: xl suspends it by itself."""
        return self._watch.at

    async def _carry(self) -> None:
        """Carry all that xl sends, in pieces as large as the pipe gives."""
        while piece := await self._sender.data.read():
            await self._stream.write(piece)
            self._sent += len(piece)

    async def precopy(self) -> None:
        """Return when xl has asked the guest to suspend; it decides by itself when."""
        await self._begin()
        await self._until(self._watch.asked, "the memory could not be sent")
        if self._watch.stopped.is_set():
            await self._watch.suspended(0.1)

    async def suspend(self) -> None:
        """Return when the domain is shut down for its suspend."""
        await self._begin()
        await self._until(self._watch.stopped, "the guest could not be suspended", stalls=False)
        await self._watch.suspended(self._options.timeout)

    async def transfer(self) -> None:
        """Return when the destination's xl says that it has everything."""
        assert self._pump is not None
        loop = asyncio.get_running_loop()
        ready, complete = loop.create_task(self._ready()), asyncio.Event()
        ready.add_done_callback(lambda _: complete.set())
        try:
            await self._until(complete, "the guest's last state could not be sent")
            ready.result()
        finally:
            if not ready.done():
                ready.cancel()
                await asyncio.wait({ready})
        await self._sender.hold()

    async def _ready(self) -> None:
        """The destination's word, which its xl has said there."""
        said = b""
        while len(said) < len(READY):
            piece = bytes(await self._stream.read(len(READY) - len(said)))
            if not piece:
                raise HypervisorError("the destination ended its stream before it was ready")
            said += piece
        if said != READY:
            raise HypervisorError("the destination's xl said something else than that it is ready")

    async def _until(self, event: asyncio.Event, what: str, *, stalls: bool = True) -> None:
        """Wait for ``event`` as long as xl, the relay and the stream are well and bytes flow."""
        assert self._pump is not None
        loop = asyncio.get_running_loop()
        waits = {
            "event": loop.create_task(event.wait()),
            "xl": loop.create_task(self._sender.xl.ended()),
            "relay": loop.create_task(self._sender.relay_gone.wait()),
        }
        sent, moved = self._sent, loop.time()
        try:
            while not event.is_set():
                await asyncio.wait(
                    {*waits.values(), self._pump}, timeout=1, return_when=asyncio.FIRST_COMPLETED
                )
                if event.is_set():
                    break
                if self._pump.done() and not self._pump.cancelled():
                    self._pump.result()
                if waits["xl"].done() or waits["relay"].done() or self._pump.done():
                    await self._explain(what)
                if self._sent != sent or not stalls:
                    sent, moved = self._sent, loop.time()
                if loop.time() - moved > self._options.timeout:
                    text = f"{what}: no progress for {self._options.timeout:g} seconds"
                    raise HypervisorError(f"{text}: {self._sender.xl.complaint()}".rstrip(": "))
        finally:
            for task in waits.values():
                task.cancel()
            await asyncio.wait(waits.values())

    async def _explain(self, what: str) -> None:
        """Say why xl or its transport ended."""
        state = await state_of(self._domid)
        if state is None or (state.shutdown and not state.suspended):
            raise GuestStopped(f"guest {self._config.name} shut down, crashed or was destroyed")
        await self._sender.xl.ended(2)
        raise self._sender.xl.failure(what)

    async def release(self) -> None:
        """Tell xl that the receiver is ready; it renames the domain and gives its go.

        From here on nothing resumes the guest here. If xl does not answer it is killed, which
        leaves the guest suspended.
        """
        timeout = self._options.timeout
        await self._stop_carrying()
        try:
            await self._sender.words.write(READY, timeout)
            if await self._sender.data.read_exactly(len(GO), timeout) != GO:
                raise HypervisorError("xl said something else than go")
            self._released = True
        except HypervisorError as error:
            await self._sender.xl.kill()
            raise self._sender.xl.failure(str(error)) from error

    async def _stop_carrying(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait({self._pump})

    async def resume(self) -> None:
        """End xl's stream, which makes xl resume the guest, and see to it that it does run."""
        if self._ended:
            return
        await self._stop_carrying()
        await self._sender.quit()
        if not await self._sender.xl.ended(self._options.timeout):
            await self._sender.xl.kill()
        try:
            await make_run(self._domid, self._config.name, self._options.xenstore)
            self._ended = True
        finally:
            await self._close()

    async def destroy(self) -> None:
        """Tell xl that the guest runs at the destination: it destroys the domain. See to it."""
        if self._ended:
            return
        await self._stop_carrying()
        if self._released and self._sender.xl.running:
            try:
                await self._sender.words.write(REPORT + b"\0", self._options.timeout)
                await self._sender.xl.ended(self._options.timeout)
            except HypervisorError as error:
                _log.warning("xl does not take the result: %s", error)
        if self._sender.xl.running:
            await self._sender.xl.kill()
        try:
            await remove_domain(self._domid, self._config, self._devices)
            self._ended = True
        finally:
            await self._close()

    async def _close(self) -> None:
        await self._stop_carrying()
        await self._watch.close()
        await self._sender.close()
