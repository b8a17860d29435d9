"""Sending a QEMU guest.

QEMU decides by itself when to stop the guest. It is held back from that until ``suspend``, so that
what the engine has to do before the stop happens before the stop: from 8.1 on by ``ReturnPath``;
before that only by a downtime limit of a millisecond. A guest that is idle gets below even that,
and is then stopped (``pre-switchover``) when ``precopy`` returns.

From ``pre-switchover`` on the way back is ``migrate_cancel``; once QEMU says ``completed`` it is
``cont``, which is right as long as the destination's guest has not run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec

from vmferry.api.hypervisor import ByteStream, Departure, MemoryProgress
from vmferry.errors import GuestStopped, HypervisorError
from vmferry_hypervisors.qemu.connections import outgoing
from vmferry_hypervisors.qemu.migration import FAILED, Migration, raced
from vmferry_hypervisors.qemu.options import QemuOptions
from vmferry_hypervisors.qemu.remains import await_exports, quit_qemu
from vmferry_hypervisors.qemu.returnpath import ReturnPath
from vmferry_support.qmp import Qmp, QmpError, QmpLost, QmpRefused, QmpTimeout

__all__ = ["QemuDeparture"]

_ACK = "switchover-ack"
_POLL, _SOON, _SELDOM = 0.02, 0.005, 0.2
"""Seconds between two looks at the memory at least, when so little is left that it may be the last,
and at most."""
_SHARE = 0.25
"""Of the time that the rest of a round takes, until the next look."""
_LOOKS = 3
_SHRINKS, _NO_BETTER = 0.9, 3
_HOLD = 1
"""Downtime limit in milliseconds that QEMU is held back with."""
_QUICK = 0.002
_LATE = 2.0
_DEFAULTS = {
    "downtime-limit": 300,
    "max-bandwidth": 128 << 20,
    "multifd-channels": 2,
    "multifd-compression": "none",
}
"""QEMU's own parameters."""
_ENDED = (*FAILED, "completed", "none")
_STOPPED = ("pre-switchover", "device", "completed")


class QemuDeparture(Departure):
    """A QEMU guest on its way out; ``depart`` makes it.

    Args:
        qmp: the guest's monitor, which becomes the departure's.
        name: of the guest.
        memory: bytes of its memory.
        files: what holds its disks, as far as they are local files.
        stream: to the other side.
        options: the plugin's.

    """

    def __init__(
        self,
        qmp: Qmp,
        name: str,
        memory: int,
        files: Sequence[str],
        stream: ByteStream,
        options: QemuOptions,
    ) -> None:
        self._qmp, self._name, self._files, self._options = qmp, name, files, options
        self._progress = MemoryProgress(total=memory, remaining=memory)
        self._migration = Migration(qmp, name, options.timeout)
        self._return = ReturnPath(stream)
        self._carried = outgoing(qmp, self._return)
        self._began = self._over = self._fits = self._asks = False
        self._seconds = 0.0
        self._last: list[int] = []
        self._rounds: list[int] = []

    async def prepare(self) -> None:
        """Set up QEMU; the guest is not touched."""
        wanted = {"events": True, "return-path": True, "pause-before-switchover": True}
        if self._options.auto_converge:
            wanted["auto-converge"] = True
        self._asks = _ACK in await self._migration.known()
        if self._asks:
            wanted[_ACK] = True
        limits = {"downtime-limit": _HOLD, "max-bandwidth": self._options.max_bandwidth}
        await self._migration.set(wanted, limits, len(self._return.channels))
        await self._carried.prepare()

    def take_up(self) -> None:
        """Instead of ``prepare``, when another process began: QEMU's defaults are put back.

        But for ``events``, which libvirt turns on when it starts a guest, and relies on.
        """
        self._began = True
        off = dict.fromkeys(("return-path", "pause-before-switchover", "multifd", _ACK), False)
        self._migration.remember(off, _DEFAULTS)

    @property
    def progress(self) -> MemoryProgress:
        """How far the memory is, as ``query-migrate`` said last."""
        return self._progress

    @property
    def suspended_at(self) -> float | None:
        """When QEMU stopped the guest."""
        return self._migration.stopped_at

    # -- memory

    async def precopy(self) -> None:
        """Let QEMU send until what is left fits into the downtime limit, or gets no less.

        It gets no less when three rounds did not make it smaller, or after ``max_rounds``. A QEMU
        before 8.1 stops a guest that hardly writes to its memory before this returns.
        """
        await self._begin()
        while True:
            if self._near(await self._look()):
                return
            with contextlib.suppress(QmpTimeout):
                await raced(self._migration.reach(_STOPPED, self._pause), self._carried)
                return

    @property
    def _pause(self) -> float:
        """Seconds to the next look: questions cost QEMU and us what the memory could have."""
        if self._fits:
            return _SOON
        return min(max(_POLL, _SHARE * self._seconds), _SELDOM)

    async def _begin(self) -> None:
        if self._over:
            raise HypervisorError(f"guest {self._name}: its departure has ended")
        if self._began:
            return
        self._began = True
        await asyncio.to_thread(self._sync)
        try:
            await self._qmp.execute("migrate", uri=self._carried.uri)
        except QmpLost as error:
            raise GuestStopped(f"guest {self._name}: its QEMU has ended") from error
        self._carried.start()

    async def _look(self) -> Mapping[str, Any]:
        info = await self._migration.query()  # first: a QEMU that has ended breaks the relay, too
        if failure := self._carried.failure:
            raise failure
        if ram := info.get("ram"):
            total = self._progress.total
            self._progress = MemoryProgress(
                total=total,
                sent=int(ram["transferred"]),
                remaining=min(total, int(ram["remaining"])),
                rounds=max(0, int(ram["dirty-sync-count"]) - 1),
            )
        return info

    def _near(self, info: Mapping[str, Any]) -> bool:
        """Whether so little was left, whenever it was looked at of late, that the guest may stop.

        What is left goes to nothing in each round, so that one look says little.
        """
        ram = info.get("ram")
        if info.get("status") != "active" or not ram:
            return False
        if self._progress.rounds >= self._options.max_rounds or self._stuck(int(ram["remaining"])):
            return True
        self._last = [*self._last[1 - _LOOKS :], int(ram["remaining"])]
        rate = float(ram["mbps"]) * 1e6 / 8
        self._seconds = self._last[-1] / rate if rate else 0.0
        limit = rate * self._options.downtime_limit
        self._fits = self._progress.rounds > 0 and max(self._last) <= limit
        return self._fits and len(self._last) == _LOOKS

    def _stuck(self, remaining: int) -> bool:
        """Whether the guest writes to its memory as fast as it is sent: rounds do not shrink."""
        while len(self._rounds) <= self._progress.rounds:
            self._rounds.append(remaining)
        self._rounds[-1] = max(self._rounds[-1], remaining)
        before = self._rounds[-1 - _NO_BETTER : -1]
        return len(self._rounds) > 1 + _NO_BETTER and self._rounds[-1] >= _SHRINKS * min(before)

    async def suspend(self) -> None:
        """Let QEMU stop the guest, which it does once what is left fits into the downtime limit.

        If that has not happened after ten times the limit and a second, the guest is paused, so
        that nothing more is added to what is left.
        """
        await self._begin()
        if self._migration.status not in _STOPPED:
            await asyncio.to_thread(self._sync)
            limit = self._options.downtime_limit
            await self._migration.adjust({"downtime-limit": max(1, round(1000 * limit))})
            if self._asks:  # an older QEMU breaks off at a word that it does not know
                self._return.allow()
            await self._stop(1 + 10 * limit)

    async def _stop(self, patience: float) -> None:
        try:
            await raced(self._migration.reach(_STOPPED, patience), self._carried)
        except QmpTimeout:
            await self._qmp.execute("stop")
            await raced(self._migration.reach(_STOPPED), self._carried)

    def _sync(self) -> None:
        """Write the disks' files out while the guest runs; QEMU does so again when it stops it."""
        for file in self._files:
            with contextlib.suppress(OSError):
                descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fdatasync(descriptor)
                finally:
                    os.close(descriptor)

    async def transfer(self) -> None:
        """Let QEMU send the rest; on return the destination's QEMU has said that it has all."""
        if not self._began:
            raise HypervisorError(f"guest {self._name} was not suspended")
        await self._qmp.execute("migrate-continue", state="pre-switchover")
        await raced(self._migration.reach(("completed",)), self._carried)
        await self._carried.sent_all()
        self._progress = msgspec.structs.replace(self._progress, remaining=0)

    # -- the end

    async def release(self) -> None:
        """Nothing: the destination's QEMU runs the guest when it is told to there."""

    async def resume(self) -> None:
        """Cancel what QEMU does, let the guest run, put the settings back."""
        if self._over:
            return
        try:
            await self._take_back()
            await self._migration.restore()
        except QmpLost as error:
            raise GuestStopped(f"guest {self._name}: its QEMU has ended") from error
        finally:
            await self._carried.close()
        await self._end()

    async def _take_back(self) -> None:
        if self._began:
            await self._cancel()
        else:
            await self._carried.withdraw()
        await self._run_on()

    async def _cancel(self) -> None:
        """End QEMU's migration, whatever state it is in.

        It fails by itself once its connection is closed, but for the state in which it waits for
        us. ``migrate_cancel`` while QEMU is about to enter that state can make it wait for ever
        (``migration_maybe_pause``, QEMU 7.2), so that is done only in that state, or late.
        """
        await self._carried.close()
        loop = asyncio.get_running_loop()
        late, cancelled = loop.time() + _LATE, False
        async with self._patience("does not give up its migration"):
            while (status := await self._status()) not in _ENDED:
                if not cancelled and (status == "pre-switchover" or loop.time() > late):
                    cancelled = True
                    await self._qmp.execute("migrate_cancel")
                await asyncio.sleep(_QUICK)

    async def _status(self) -> str:
        return str((await self._qmp.execute("query-migrate")).get("status", "none"))

    async def _run_on(self) -> None:
        """QEMU may do so by itself, a little after its migration has failed, and not let us."""
        async with self._patience("does not let the guest run"):
            while not (await self._qmp.execute("query-status"))["running"]:
                with contextlib.suppress(QmpRefused):
                    await self._qmp.execute("cont")
                await asyncio.sleep(_QUICK)

    @contextlib.asynccontextmanager
    async def _patience(self, what: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._options.timeout):
                yield
        except TimeoutError:
            raise HypervisorError(f"guest {self._name}: its QEMU {what}") from None

    async def runs(self) -> bool:
        """Whether the guest runs in this QEMU; it does not in one that has ended."""
        with contextlib.suppress(QmpLost):
            return bool((await self._qmp.execute("query-status"))["running"])
        return False

    async def destroy(self) -> None:
        """End QEMU, once nobody reads the disks through it any more.

        Exports of the migration's are waited for: what is pending is read through them until PULL
        has ended.
        """
        if self._over:
            return
        self._migration.deafen()
        await self._carried.close()
        try:
            await await_exports(self._qmp)
            await quit_qemu(self._qmp, self._options.timeout)
        except QmpLost:
            pass
        await self._end()

    async def _end(self) -> None:
        self._over = True
        self._migration.deafen()
        with contextlib.suppress(QmpError):
            await self._qmp.close()

    async def discard(self) -> None:
        """Take back what ``prepare`` did, if it failed."""
        with contextlib.suppress(QmpError):
            await self._migration.restore()
        await self._carried.close()
        await self._end()
