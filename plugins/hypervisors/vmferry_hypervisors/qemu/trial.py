"""A QEMU guest that is made to be migrated and checked; see ``vmferry.api.trial``.

Its folder is as ``two_hosts`` has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vmferry.api.load import TrialPlan, TrialWish
from vmferry.api.trial import TrialStatus, Verdict
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.remains import end_qemu
from vmferry_hypervisors.qemu.two_hosts import ROLES, TwoHosts
from vmferry_hypervisors.qemu.wish import make_plan
from vmferry_hypervisors.qemu.workload.checker import Memory, check_guest
from vmferry_hypervisors.qemu.workload.image import SECTOR, make_disk
from vmferry_hypervisors.qemu.workload.program import STATE, Program, State
from vmferry_hypervisors.qemu.workload.record import Record
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions, make_program
from vmferry_support.commands import run
from vmferry_support.qmp import Qmp, QmpError

__all__ = ["ROLES", "QemuTrial"]

_POLL = 0.02


class QemuTrial(TwoHosts[QemuTrialOptions]):
    """One guest without an operating system, and two folders that play the hosts."""

    name = "qemu"
    summary = "a guest in QEMU that needs no operating system, on two folders that play hosts"
    options_type = QemuTrialOptions

    @classmethod
    def plan(cls, wish: TrialWish) -> TrialPlan:
        """Every load of random requests of 4 KiB; others become that, and are noted."""
        return make_plan(wish)

    def __init__(self, options: QemuTrialOptions | None = None) -> None:
        super().__init__(options)
        self.program: Program
        self.record: Record

    # -- start

    async def start(self, folder: Path, disk_size: int) -> str:
        """Make the disks, start QEMU; returns once the guest has written."""
        self.program = make_program(self.options, disk_size)
        folder = await asyncio.to_thread(folder.absolute)
        self.record = Record(folder / "record")
        return await self.boot(folder)

    @property
    def sizes(self) -> Mapping[str, int]:
        """All of one size."""
        size = self.program.sectors * SECTOR
        return {f"disk{number}": size for number in range(self.options.disks)}

    async def _make_disks(self) -> None:
        for number, path in enumerate(self.disks.values()):
            raw = path.with_suffix(".raw")
            await asyncio.to_thread(make_disk, raw, number, self.program)
            if path != raw:
                await run("qemu-img", "convert", "-O", "qcow2", str(raw), str(path), timeout=600)
                await asyncio.to_thread(raw.unlink)

    async def _first_word(self) -> None:
        """Wait for a write, since a guest that cannot write is no trial."""
        try:
            async with asyncio.timeout(self.options.timeout):
                while True:
                    await asyncio.sleep(_POLL)
                    await asyncio.to_thread(self.record.update)
                    if self.record.boots if self.options.idle else self.record.writes:
                        return
        except TimeoutError:
            raise HypervisorError(
                f"guest {self.options.guest} does not write; see {self.folder}/source"
            ) from None

    # -- what it does

    async def status(self) -> TrialStatus:
        """As the guest has said on its serial line."""
        await asyncio.to_thread(self.record.update)
        if not self.record.open:
            raise HypervisorError(f"guest {self.options.guest} runs nowhere")
        return TrialStatus(
            writes=self.record.writes,
            reads=self.record.reads,
            bad_reads=self.record.bad_reads,
            errors=self.record.errors,
            longest_gap=self.record.longest_gap,
            switch_gap=self.record.switches[-1] if self.record.switches else None,
        )

    async def reboot(self) -> None:
        """Let the guest reboot itself."""
        self.recording.say(b"R")

    async def power_off(self) -> None:
        """Let the guest power itself off."""
        self.recording.say(b"P")

    # -- the end

    async def verdict(self, location: str) -> Verdict:
        """Stop the guest, save its memory, end QEMU, compare; see ``checker``.

        If there are two disks the second is looked for beside the first.
        """
        first = Path(location)
        others = [
            first.with_name(first.name.replace("disk0", name)) for name in list(self.disks)[1:]
        ]
        return await self.judge([first, *others])

    async def judge(self, disks: Sequence[Path]) -> Verdict:
        """As ``verdict``, for disks wherever they are."""
        memory = await self._stop()
        await self._silence()
        raw = [await self._raw(number, path) for number, path in enumerate(disks)]
        return await asyncio.to_thread(check_guest, self.program, self.record, raw, memory)

    async def _stop(self) -> Memory | None:
        """End the guest wherever it is; its memory, if it was still there."""
        for role in reversed(ROLES):
            with contextlib.suppress(QmpError):
                async with await Qmp.connect(str(self.control(role)), timeout=5) as qmp:
                    status = await qmp.execute("query-status")
                    if status["status"] in ("postmigrate", "inmigrate", "shutdown"):
                        continue
                    await qmp.execute("stop")
                    memory = await self._memory(qmp)
                    await end_qemu(str(self.control(role)), self.options.timeout)
                    return memory
        return None

    async def _memory(self, qmp: Qmp) -> Memory:
        program = self.program
        words = np.dtype("<u4")
        table = await self._save(qmp, program.table, 4 * program.sectors * program.disks)
        touched = await self._save(qmp, program.touch[0], program.touch[1] - program.touch[0])
        noise = await self._save(qmp, program.touch[1], program.noise - program.touch[1])
        return Memory(
            state=State.read(await self._save(qmp, *STATE)),
            table=np.frombuffer(table, words),
            touched=np.frombuffer(touched, words)[::1024],
            noise=np.frombuffer(noise, words),
        )

    async def _save(self, qmp: Qmp, address: int, size: int) -> bytes:
        if not size:
            return b""
        path = self.folder / "memory"
        await qmp.execute("pmemsave", val=address, size=size, filename=str(path), timeout=120)
        data = await asyncio.to_thread(path.read_bytes)
        await asyncio.to_thread(path.unlink)
        return data

    async def _silence(self) -> None:
        """Wait until the recorder has taken the last word."""
        await self._end_all()
        async with asyncio.timeout(self.options.timeout):
            while True:
                await asyncio.to_thread(self.record.update)
                if not self.record.open:
                    return
                await asyncio.sleep(_POLL)

    async def _raw(self, number: int, path: Path) -> Path:
        """The disk as a plain file; an image of another format is checked and converted."""
        said = await run("qemu-img", "info", "--output=json", str(path))
        kind = json.loads(said)["format"]
        if kind == "raw":
            return path
        await run("qemu-img", "check", "-f", kind, str(path), timeout=600)
        plain = self.folder / f"checked{number}.raw"
        await run("qemu-img", "convert", "-O", "raw", str(path), str(plain), timeout=600)
        return plain
