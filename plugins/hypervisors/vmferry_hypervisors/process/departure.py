"""Sending a guest: pre-copy by its dirty bytes, suspend, the rest and the registers."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import msgspec
import numpy as np

from vmferry.api.hypervisor import ByteStream, Departure, MemoryProgress
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.process.control import Command, call
from vmferry_hypervisors.process.folder import GuestFolder
from vmferry_hypervisors.process.framing import (
    PIECE_PAGES,
    FinalState,
    FrameType,
    Hello,
    Numbers,
    pack,
    pack_numbers,
)
from vmferry_hypervisors.process.layout import PAGE, Registers
from vmferry_hypervisors.process.memory import SEGMENT, GuestMemory
from vmferry_hypervisors.process.options import ProcessOptions

__all__ = ["ProcessDeparture"]

_SHRINKS = 0.9
_POLL = 0.001


class ProcessDeparture(Departure):
    """A process guest on its way out.

    Suspending is cooperative and then forced: the guest stores its registers at a safe point and
    stops stepping; ``SIGSTOP`` makes sure that nothing of it runs. Its requests under way stay on
    record in its memory. Resumed here it takes the replies that came meanwhile from its connection,
    which was not touched; at the destination it issues the requests again.
    """

    def __init__(self, folder: GuestFolder, stream: ByteStream, options: ProcessOptions) -> None:
        self._folder, self._stream, self._options = folder, stream, options
        self._memory: GuestMemory | None = GuestMemory(folder.path)
        self._progress = MemoryProgress(total=self._memory.size, remaining=self._memory.size)
        self._begun = False
        self._suspended = False

    @property
    def progress(self) -> MemoryProgress:
        """How far the memory is; ``sent`` counts pages only, not their numbers."""
        return self._progress

    @property
    def _mapped(self) -> GuestMemory:
        if self._memory is None:
            raise HypervisorError(f"guest {self._folder.name}: its departure has ended")
        return self._memory

    async def precopy(self) -> None:
        """Send every page, then in rounds those dirtied meanwhile.

        Ends when little is left, when a round leaves no less than the one before, or after
        ``max_rounds``.
        """
        pages = await self._begin()
        while True:
            await self._send(pages)
            before, left = len(pages), self._mapped.count_dirty()
            rounds = self._progress.rounds + 1
            self._note(rounds=rounds, remaining=left * PAGE)
            little = left * PAGE <= self._options.stop_below
            stuck = rounds > 1 and left >= before * _SHRINKS
            if little or stuck or rounds >= self._options.max_rounds:
                return
            pages = self._mapped.harvest()

    async def _begin(self) -> Numbers:
        """Say hello; returns the pages of round 0, all but holes, and unmarks all."""
        self._begun = True
        hello = msgspec.json.encode(Hello(self._mapped.size, PAGE))
        await self._stream.write(pack(FrameType.HELLO, 0, hello))
        self._mapped.harvest()
        segments = np.array(self._mapped.data_segments(), dtype=np.int64)
        pages = segments[:, None] * (SEGMENT // PAGE) + np.arange(SEGMENT // PAGE)
        return pages[pages < self._mapped.size // PAGE]

    async def _send(self, pages: Numbers) -> None:
        for start in range(0, len(pages), PIECE_PAGES):
            self._check_alive()
            await self._send_piece(pages[start : start + PIECE_PAGES])
            await asyncio.sleep(0)
            left = len(pages) - start - PIECE_PAGES
            self._note(remaining=max(0, left) * PAGE)

    async def _send_piece(self, pages: Numbers) -> None:
        """Send pages as they are at this moment; zero pages as their numbers alone."""
        contents = self._mapped.pages[pages]
        full = contents.any(axis=1)
        zeroes = pages[~full] if self._progress.rounds else pages[:0]
        if len(zeroes):
            await self._stream.write(pack(FrameType.ZEROES, len(zeroes), pack_numbers(zeroes)))
        count = int(np.count_nonzero(full))
        if count:
            body = contents if count == len(pages) else contents[full]
            frame = pack(FrameType.PAGES, count, pack_numbers(pages[full]), body.tobytes())
            await self._stream.write(frame)
        self._note(sent=self._progress.sent + count * PAGE)

    def _note(self, **changes: int) -> None:
        self._progress = msgspec.structs.replace(self._progress, **changes)

    def _check_alive(self) -> None:
        if self._folder.pid() is None:
            raise GuestStopped(f"guest {self._folder.name} ended while its memory was sent")

    async def suspend(self) -> None:
        """Stop the guest at a safe point, then its process."""
        self._check_alive()
        await call(self._folder.path, Command("suspend"), self._options.timeout)
        self._folder.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(self._options.timeout):
                while not self._folder.stopped():
                    self._check_alive()
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise HypervisorError(f"guest {self._folder.name} does not stop") from None
        self._suspended = True

    async def transfer(self) -> None:
        """Send the pages still dirty, the registers and the digest of all memory."""
        if not self._suspended:
            raise HypervisorError(f"guest {self._folder.name} was not suspended")
        if not self._begun:
            await self._send(await self._begin())
            self._note(rounds=1)
        await self._send(self._mapped.harvest())
        self._check_alive()
        digest = b""
        if self._options.digest:
            digest = await asyncio.to_thread(self._mapped.digest)
        state = FinalState(bytes(self._mapped.view[: Registers.SIZE]), digest)
        await self._stream.write(pack(FrameType.STATE, 0, msgspec.json.encode(state)))
        await self._stream.write_eof()
        self._note(remaining=0)

    async def release(self) -> None:
        """Nothing: this hypervisor's stream has no go of its own."""

    async def resume(self) -> None:
        """Let the process go on, and the guest in it."""
        if self._memory is None:
            return
        self._check_alive()
        self._folder.signal(signal.SIGCONT)
        await call(self._folder.path, Command("resume"), self._options.timeout)
        self._end()

    async def destroy(self) -> None:
        """Kill the process, remove its files but the console."""
        await asyncio.to_thread(self._folder.kill)
        await asyncio.to_thread(self._folder.remove)
        self._end()

    def _end(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            with contextlib.suppress(BufferError):
                memory.close()
