"""PUSH: the whole disk, then rounds of what was written meanwhile, while the guest runs.

The source decides and sends; the destination only takes what comes (``receiver``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

from vmferry.api.hooks import Decision, RoundReport
from vmferry.engine.comparing import Comparer, unsure_pieces
from vmferry.engine.disks import (
    SourceDisk,
    dirty_bytes,
    dirty_pieces,
    harvest_all,
    rest_pieces,
    whole_disk,
)
from vmferry.engine.ledger import Ledger
from vmferry.engine.meter import Gauge, Meter
from vmferry.engine.policy import ConvergencePolicy, Ruling
from vmferry.engine.sender import Piece, Sender, Sent
from vmferry.engine.settings import Settings
from vmferry.plugins import Hooks
from vmferry.units import KIB
from vmferry.wire.tasks import together

__all__ = ["Push", "piece_size"]

_PIECE_SECONDS = 0.1
_LEAST_PIECE = 64 * KIB
Pieces = Callable[[Sequence[SourceDisk], int, Callable[[], bool]], AsyncGenerator[Piece, None]]


def piece_size(limit: int, most: int, block_size: int) -> int:
    """Bytes per extent, a power of two: ``most``, or so few that ten a second keep to ``limit``.

    A dozen are on their way when a round is to end early, and are waited for. Not less than a block
    or 64 KiB.
    """
    if not limit:
        return most
    fitting = 1 << max(0, int(limit * _PIECE_SECONDS).bit_length() - 1)
    return min(most, max(_LEAST_PIECE, block_size, fitting))


def _look_at(task: asyncio.Task[None]) -> None:
    """Its failure counts as looked at, if it is not what is raised, whenever it comes."""
    _ = task.cancelled() or task.exception()


class Push:
    """The source's side of PUSH.

    Attributes:
        rounds: reports of the finished rounds.
        sender, comparer: of the connection in use; others may be given when that is lost.
        settings: may be exchanged while running.

    """

    def __init__(
        self,
        disks: Sequence[SourceDisk],
        sender: Sender,
        meter: Meter,
        hooks: Hooks,
        policy: ConvergencePolicy,
        settings: Settings,
    ) -> None:
        self.rounds: list[RoundReport] = []
        self.sender = sender
        self.comparer: Comparer | None = None
        self._disks, self._meter = disks, meter
        self._hooks, self._policy, self._settings = hooks, policy, settings
        self._enough = self._begun = False
        self._whole = set(disks)
        self._ledger = Ledger()
        self._equal = 0

    def put_back(self) -> int:
        """The connection is lost: what may have been lost with it is to be sent again.

        Returns the bytes that are to be sent by now. No harvest may be under way.
        """
        if self._begun:
            self._ledger.put_back(self._disks)
            for disk in self._whole:
                disk.todo.mark_all()
            self._whole.clear()
        return self.left()

    def left(self) -> int:
        """Bytes that are to be sent or compared by now."""
        return sum(disk.left() if self._begun else disk.disk.size for disk in self._disks)

    def take_up(self) -> None:
        """An earlier process has begun: what the destination has of the disks is not known."""
        self._begun = True
        self._whole.clear()
        self.doubt()

    def doubt(self) -> None:
        """What was answered for may not be at the destination: it is to be compared."""
        if self._begun:
            for disk in self._disks:
                disk.unsure.mark_all()

    def force(self) -> None:
        """The operator wants the switch now: the round under way ends early, even the full copy.

        What it had not sent is pulled.
        """
        self._enough = True
        self._policy.force()

    async def converge(self) -> None:
        """Copy everything, then rounds until the policy says enough. Trackers have started.

        After a lost connection the rest is copied instead of everything, and what is unsure
        compared.
        """
        if self._begun:
            await harvest_all(self._disks)
            await self._dirty_round(self._rest, memory=False)
        else:
            await self._full_round()
        while self._ruling().decision is Decision.CONTINUE:
            await self._dirty_round(dirty_pieces, memory=False)

    async def beside(self, memory: Coroutine[Any, Any, None]) -> None:
        """Run the memory pre-copy to its end, with disk rounds beside it.

        Few blocks are left for PULL that way. On return nothing is on its way any more and what
        was pushed is durable at the destination. Most of it is before the memory is begun, since a
        hypervisor may stop the guest by itself at the end of that.
        """
        try:
            await self.sender.barrier(durable=True)
        except BaseException:
            memory.close()
            raise
        durable = self.sender.total.covered
        task = asyncio.get_running_loop().create_task(memory)
        task.add_done_callback(_look_at)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=self._settings.round_pause)
                if task.done():  # the guest may stand still; the last harvest is yet to come
                    break
                await harvest_all(self._disks)
                if not task.done() and dirty_bytes(self._disks):
                    await self._dirty_round(dirty_pieces, memory=True, until=task)
        finally:
            if not task.done():
                task.cancel()
            await asyncio.wait({task})
        task.result()
        if self.sender.total.covered != durable:
            await self.sender.barrier(durable=True)

    async def finish(self) -> None:
        """The guest stands still, all is harvested: send what is more than may be pulled.

        On return that is durable at the destination.
        """
        limit = self._settings.pull_limit
        if 0 <= limit < (dirty := dirty_bytes(self._disks)):
            self._hooks.event(self._meter.job, "finishing", dirty=dirty, limit=limit)
            await self.sender.send(dirty_pieces(self._disks, self._settings.piece))
            await self.sender.barrier(durable=True)

    def _ruling(self) -> Ruling:
        rounds = tuple(self.rounds)
        decision = self._hooks.decide(self._meter.job, rounds)
        if decision is None:
            ruling = self._policy.decide(rounds)
        else:
            ruling = Ruling(decision, "a policy plugin decided so")
        self._hooks.event(
            self._meter.job, "ruling", decision=str(ruling.decision), reason=ruling.reason
        )
        return ruling

    async def _full_round(self) -> None:
        gauges = [self._meter.gauge(disk.disk.name, disk.disk.size, 0) for disk in self._disks]
        await self._round(0, self._everything(gauges), gauges, memory=False)

    async def _everything(self, gauges: Sequence[Gauge]) -> AsyncGenerator[Piece, None]:
        self._begun = True
        for disk, gauge in zip(self._disks, gauges, strict=True):
            self._whole.discard(disk)
            async with aclosing(whole_disk(disk, self._piece, gauge.add)) as pieces:
                async for piece in pieces:
                    if self._enough:
                        disk.todo.mark(piece.offset, piece.length)
                    else:
                        yield piece

    async def _rest(
        self, disks: Sequence[SourceDisk], piece: int, stop: Callable[[], bool]
    ) -> AsyncGenerator[Piece, None]:
        if any(disk.unsure for disk in disks):
            assert self.comparer is not None
            unsure = unsure_pieces(disks, self.comparer, piece, stop, self._found_equal)
            async with aclosing(unsure) as pieces:
                async for one in pieces:
                    yield one
        async with aclosing(rest_pieces(disks, piece, stop)) as pieces:
            async for one in pieces:
                yield one

    @property
    def _piece(self) -> int:
        """Bytes per extent of a round that begins now."""
        least = max(disk.block_size for disk in self._disks)
        return piece_size(self.sender.limit, self._settings.piece, least)

    def _found_equal(self, disk: SourceDisk, count: int) -> None:
        self._equal += count
        self._meter.add(disk.disk.name, count)

    async def _dirty_round(
        self, pieces: Pieces, *, memory: bool, until: asyncio.Task[None] | None = None
    ) -> None:
        number = len(self.rounds)
        gauges = [self._meter.gauge(disk.disk.name, disk.left(), number) for disk in self._disks]

        def stop() -> bool:
            return self._enough or (until is not None and until.done())

        work = pieces(self._disks, self._piece, stop)
        await self._round(number, work, gauges, memory=memory)

    async def _round(
        self,
        number: int,
        work: AsyncGenerator[Piece, None],
        gauges: Sequence[Gauge],
        *,
        memory: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._equal = 0
        sent = await self._send(work, lambda piece: gauges[piece.disk].add(piece.length))
        await self.sender.barrier()
        self._ledger.settle()
        seconds = loop.time() - began
        await harvest_all(self._disks)
        report = RoundReport(
            number=number,
            scanned=sent.covered + self._equal,
            sent=sent.payload,
            zeroes=sent.zeroes,
            seconds=seconds,
            dirty=dirty_bytes(self._disks),
            memory=memory,
        )
        self.rounds.append(report)
        self._hooks.round_finished(self._meter.job, report)

    async def _send(self, work: AsyncGenerator[Piece, None], done: Callable[[Piece], None]) -> Sent:
        """Send, and have the destination say now and then how far it is."""

        def gone(piece: Piece) -> None:
            self._ledger.gone(piece)
            done(piece)

        ended = asyncio.Event()

        async def send() -> Sent:
            try:
                return await self.sender.send(self._ledger.handing(work), gone)
            finally:
                ended.set()

        sent, _ = await together(send(), self._ask_until(ended))
        assert isinstance(sent, Sent)
        return sent

    async def _ask_until(self, ended: asyncio.Event) -> None:
        """Barriers within a round, one at a time; ends behind its last one, which is answered."""
        while not ended.is_set():
            try:
                async with asyncio.timeout(self._settings.mark_pause):
                    await ended.wait()
            except TimeoutError:
                self._ledger.mark()
                await self.sender.barrier()
                self._ledger.reached()
