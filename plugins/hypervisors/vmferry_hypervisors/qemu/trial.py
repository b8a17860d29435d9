"""A QEMU guest that is made to be migrated and checked; see ``vmferry.api.trial``.

::

    FOLDER/source/NAME.qmp         monitor of the QEMU where the guest starts, for the plugin
                  NAME.control     and another for the trial
           destination/...         the same for the QEMU that it is to go to
           disk0.raw               its disk at the source; disk1 if there are two
           serial.sock, record     what the guest says, and the record of it
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from vmferry.api.load import Moved, MoveLink, TrialPlan, TrialWish
from vmferry.api.trial import Trial, TrialStatus, Verdict
from vmferry.errors import HypervisorError
from vmferry_hypervisors.qemu.launch import StartedQemu, fill_command, start_qemu
from vmferry_hypervisors.qemu.mirror import MIRROR, move_by_mirror
from vmferry_hypervisors.qemu.remains import end_qemu
from vmferry_hypervisors.qemu.wish import make_plan
from vmferry_hypervisors.qemu.workload.checker import Memory, check_guest
from vmferry_hypervisors.qemu.workload.image import make_disk
from vmferry_hypervisors.qemu.workload.program import STATE, Program, State
from vmferry_hypervisors.qemu.workload.record import Record
from vmferry_hypervisors.qemu.workload.recording import Recording
from vmferry_hypervisors.qemu.workload.trial_options import QemuTrialOptions, make_program
from vmferry_support.commands import run
from vmferry_support.qmp import Qmp, QmpError

__all__ = ["ROLES", "QemuTrial"]

ROLES = ("source", "destination")
_POLL = 0.02


class QemuTrial(Trial[QemuTrialOptions]):
    """One guest without an operating system, and two folders that play the hosts."""

    api_version = 1
    name = "qemu"
    summary = "a guest in QEMU that needs no operating system, on two folders that play hosts"
    options_type = QemuTrialOptions
    methods: ClassVar[Mapping[str, str]] = {
        MIRROR: "QEMU's blockdev-mirror until both disks agree, then its memory migration"
    }

    @classmethod
    def plan(cls, wish: TrialWish) -> TrialPlan:
        """Every load of random requests of 4 KiB; others become that, and are noted."""
        return make_plan(wish)

    async def move(self, method: str, link: MoveLink) -> Moved:
        """Move it by QEMU's own storage migration; see ``mirror``."""
        if method != MIRROR:
            return await super().move(method, link)
        return await move_by_mirror(self, link)

    def __init__(self, options: QemuTrialOptions | None = None) -> None:
        super().__init__(options)
        self.program: Program
        self.record: Record
        self._folder: Path | None = None
        self._recording: Recording | None = None
        self._source: StartedQemu | None = None

    # -- start

    async def start(self, folder: Path, disk_size: int) -> str:
        """Make the disks, start QEMU; returns once the guest has written."""
        self.program = make_program(self.options, disk_size)
        self._folder = folder = await asyncio.to_thread(folder.absolute)
        try:
            for role in ROLES:
                await asyncio.to_thread((folder / role).mkdir, parents=True, exist_ok=True)
            await self._make_disks()
            self._recording = await Recording.start(folder / "serial.sock", folder / "record")
            self.record = Record(folder / "record")
            self._source = await start_qemu(self._source_words(), self.socket("source"))
            await (await self._source.connected(self.options.timeout)).close()
            await self._first_word()
        except BaseException:
            await self.close()
            raise
        return self.options.guest

    @property
    def folder(self) -> Path:
        """Where everything is; ``ValueError`` before ``start``."""
        if self._folder is None:
            raise ValueError("the trial was not started")
        return self._folder

    @property
    def disks(self) -> dict[str, Path]:
        """The guest's disks at the source, by the names it knows them by."""
        names = [f"disk{number}" for number in range(self.options.disks)]
        return {name: self.folder / f"{name}.{self.options.format}" for name in names}

    def socket(self, role: str) -> Path:
        """The monitor that is for the plugin."""
        return self.folder / role / f"{self.options.guest}.qmp"

    def control(self, role: str) -> Path:
        """The monitor that is for the trial."""
        return self.folder / role / f"{self.options.guest}.control"

    async def _make_disks(self) -> None:
        for number, path in enumerate(self.disks.values()):
            raw = path.with_suffix(".raw")
            await asyncio.to_thread(make_disk, raw, number, self.program)
            if path != raw:
                await run("qemu-img", "convert", "-O", "qcow2", str(raw), str(path), timeout=600)
                await asyncio.to_thread(raw.unlink)

    def command(self, role: str) -> str:
        """QEMU's command line on a host, as the plugin's option ``command`` takes it."""
        options = self.options
        words = [options.qemu, "-name", "{name}", "-uuid", "{uuid}", "-machine", "{machine}"]
        words += ["-accel", options.accel, "-m", "{memory}", "-smp", "{vcpus}"]
        words += ["-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-chardev", f"socket,id=serial,path={self.folder / 'serial.sock'}"]
        words += ["-serial", "chardev:serial"]
        words += ["-qmp", f"unix:{self.control(role)},server=on,wait=off"]
        for number, name in enumerate(self.disks):
            device = "virtio-blk-pci" if options.device == "virtio" else f"ide-hd,bus=ide.{number}"
            words += ["-device", f"{device},id={name},bootindex={number},drive={{disk:{name}}}"]
        return shlex.join(words)

    def _source_words(self) -> list[str]:
        values = {
            "name": self.options.guest,
            "uuid": str(uuid.uuid4()),
            "memory": str(self.options.memory >> 20),
            "vcpus": "1",
            "machine": self.options.machine,
        }
        nodes: list[str] = []
        for name, path in self.disks.items():
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node = {"driver": self.options.format, "node-name": f"{name}-node", "file": file}
            nodes += ["-blockdev", json.dumps({**node, "discard": "unmap"})]
            values[f"disk:{name}"] = f"{name}-node"
        return fill_command(self.command("source"), values) + nodes

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

    def host_options(self, role: str) -> Mapping[str, str]:
        """The folder that plays the host, and how QEMU is started there."""
        if role not in ROLES:
            raise ValueError(f"a trial has no host {role!r}")
        return {"sockets": str(self.folder / role), "command": self.command(role)}

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
        self._recorder().reboot()

    async def power_off(self) -> None:
        """Let the guest power itself off."""
        self._recorder().power_off()

    def _recorder(self) -> Recording:
        if self._recording is None:
            raise ValueError("the trial was not started")
        return self._recording

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

    async def _end_all(self) -> None:
        for role in ROLES:
            for path in (self.control(role), self.socket(role)):
                if await asyncio.to_thread(path.exists):
                    await end_qemu(str(path), 0)
                    break
        source, self._source = self._source, None
        if source is not None:
            source.forget()

    async def close(self) -> None:
        """End both QEMUs and the recorder."""
        if self._folder is not None:
            await self._end_all()
        recording, self._recording = self._recording, None
        if recording is not None:
            await recording.stop()
