"""A QEMU guest that runs fio, to be moved and checked: that of ``qemuguest``, with two disks.

fio has the first and the writer the other. What both say on the serial line is kept, on whichever
host they say it; what the writer must find on its disk is in the guest's memory.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from vmferry.api.load import TrialPlan, TrialWish
from vmferry.api.trial import TrialStatus, Verdict
from vmferry.errors import HypervisorError, InputError
from vmferry.units import MIB, format_size
from vmferry_hypervisors.qemu.two_hosts import GuestOptions, TwoHosts
from vmferry_hypervisors.qemu.wish import check_plugins
from vmferry_hypervisors.qemu.workload.heard import Heard
from vmferry_hypervisors.qemu.workload.recorder import Said
from vmferry_lab.guest import (
    BESIDE_FIO,
    WRITER_DISK,
    FioReport,
    Report,
    decoded,
    fio_report,
    writer_words,
)
from vmferry_lab.guest import Verdict as WriterVerdict
from vmferry_lab.guestfio import job_initrd
from vmferry_lab.qemuguest import QemuGuest
from vmferry_support.commands import run

__all__ = ["LEAST_MEMORY", "Console", "FioTrial", "FioTrialOptions", "Line"]

LEAST_MEMORY = 96 * MIB
"""Bytes of memory with which the guest boots; a job with large or many requests needs more."""

_TICK = 10
"""Milliseconds between two words of the guest, and so about how exact its downtime is."""
_POLL = 0.05
_SHOWN = 5


class FioTrialOptions(GuestOptions, frozen=True, kw_only=True):
    """What is started; what the guest does is in the job."""

    device: Annotated[Literal["virtio"], Meta(description="kind of the guest's disks")] = "virtio"
    memory: Annotated[
        int,
        Meta(
            ge=LEAST_MEMORY,
            le=64 << 30,
            multiple_of=MIB,
            description="memory of the guest",
            extra={"unit": "bytes"},
        ),
    ] = 128 * MIB
    timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="how long QEMU may take to obey, and the guest to boot",
            extra={"unit": "seconds"},
        ),
    ] = 300.0


class Line(NamedTuple):
    """A line of the guest's console: when it ended by CLOCK_MONOTONIC, over which connection."""

    time: float
    connection: int
    text: str


class Console(Heard):
    """The recorder's file as a guest with an operating system speaks; ticks are left out.

    Attributes:
        lines: said so far, also one that was begun on a host and ended on another.

    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.lines: list[Line] = []
        self._rest = b""

    def _hear(self, said: Said) -> None:
        *ended, self._rest = (self._rest + said.data).split(b"\n")
        for raw in ended:
            text = raw.decode(errors="replace").strip("\r")
            if text != ".":
                self.lines.append(Line(said.time, said.connection, text))


class FioTrial(TwoHosts[FioTrialOptions]):
    """One guest and its job."""

    name = "qemu"
    summary = "a Linux guest in QEMU that runs fio, on two folders that play hosts"
    options_type: ClassVar[type[FioTrialOptions]] = FioTrialOptions

    def __init__(
        self, options: FioTrialOptions | None, files: QemuGuest, job: str, seed: int
    ) -> None:
        """Start nothing yet.

        Args:
            options: of QEMU.
            files: what the guest boots from.
            job: text of the job file, which fio does over and over.
            seed: start of its random numbers and the writer's.

        """
        super().__init__(options)
        self.console: Console
        self._files, self._job, self._seed = files, job, seed
        self._size = 0

    @classmethod
    def plan(cls, wish: TrialWish) -> TrialPlan:
        """Refuse a disk that is none, and memory in which the guest would not boot."""
        check_plugins(wish)
        if wish.disk_size % MIB:
            raise InputError(f"disk_size {wish.disk_size}: use whole MiB")
        if wish.memory < LEAST_MEMORY:
            raise InputError(
                f"memory {format_size(wish.memory)}: a QEMU guest that runs fio does not boot with "
                f'less than {format_size(LEAST_MEMORY)}; memory = "128MiB" will do'
            )
        return TrialPlan(options={"memory": wish.memory})

    # -- start

    async def start(self, folder: Path, disk_size: int) -> str:
        """Make the disks, start QEMU; returns once the writer has its disk and fio is at work."""
        self._size = disk_size
        folder = await asyncio.to_thread(folder.absolute)
        self.console = Console(folder / "record")
        return await self.boot(folder)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Fio's disk, and the writer's."""
        return {"disk0": self._size, "disk1": WRITER_DISK}

    def more_words(self) -> list[str]:
        """Where the guest boots from; QEMU ends with it."""
        options = {**BESIDE_FIO, "seed": self._seed, "tick": _TICK}
        kernel = ["console=ttyS0", "quiet", "panic=1", *writer_words(["vdb"], options)]
        return [
            *("-kernel", str(self._files.kernel), "-initrd", str(self.folder / "initrd")),
            *("-append", " ".join(kernel), "-no-reboot"),
        ]

    async def _make_disks(self) -> None:
        for name, path in self.disks.items():
            size = str(self.sizes[name])
            await run("qemu-img", "create", "-q", "-f", self.options.format, str(path), size)
        await asyncio.to_thread(self._make_initrd)

    def _make_initrd(self) -> None:
        job = job_initrd(self._job, "/dev/vda", self._seed)
        (self.folder / "initrd").write_bytes(self._files.initrd.read_bytes() + job)

    async def _first_word(self) -> None:
        first = await self._await(_starting, "that its writer has begun", self.options.timeout)
        if first.text.startswith("FATAL"):
            raise HypervisorError(f"the guest cannot use its disks: {first.text}")
        await self._await(_of_fio, "what its fio does", self.options.timeout)
        if any(report.code or report.error for report in await self.fio()):
            raise HypervisorError(f"the guest's fio does not do its job: {self.fio_said()}")

    # -- what it does

    async def status(self) -> TrialStatus:
        """As the writer has said; what fio does is said by ``fio``."""
        await self._update()
        said = [line.text for line in self.console.lines if line.text.startswith("REPORT {")]
        report = decoded(said[-1], Report) if said else None
        return TrialStatus(
            writes=report.writes if report else 0,
            reads=report.reads if report else 0,
            bad_reads=report.bad if report else 0,
            errors=report.errors if report else 0,
            longest_gap=self.console.longest_gap,
            switch_gap=self.console.switches[-1] if self.console.switches else None,
        )

    async def fio(self) -> list[FioReport]:
        """All that fio has reported so far.

        ``uptime`` is since the guest's first word by this machine's clock: the guest's own stands
        still while the guest does.
        """
        await asyncio.to_thread(self.console.update)
        lines = self.console.lines
        found = [(line, report) for line in lines if (report := fio_report(line.text))]
        return [
            msgspec.structs.replace(report, uptime=line.time - lines[0].time)
            for line, report in found
        ]

    def fio_said(self) -> str:
        """What fio has complained of until it reported last, in lines."""
        word = "FIO-SAID "
        said = [line.text for line in self.console.lines if line.text.startswith(word)]
        return "\n".join(text.removeprefix(word) for text in said)

    @property
    def booted(self) -> float:
        """When the guest's first word was, in seconds since 1970; 0 if it said none."""
        lines = self.console.lines
        return time.time() - time.monotonic() + lines[0].time if lines else 0.0

    async def fio_pass(self, timeout: float) -> None:
        """Wait until the pass has ended that was under way when the guest was moved.

        Raises:
            HypervisorError: it does not within ``timeout`` seconds, or the guest is gone.

        """
        await self._await(_ends_there, "that its fio has ended a pass", timeout)

    # -- the end

    async def verdict(self, location: str) -> Verdict:
        """Have the writer, wherever its disk is by now, compare all it wrote; end the guest."""
        number = secrets.token_hex(6)
        self.recording.say(f"check {number}\n".encode())
        start = f'VERDICT {{"id": "{number}"'
        line = await self._await(
            lambda line: line.text.startswith(start), "its verdict", self.options.timeout
        )
        await self._end_all()
        found = decoded(line.text, WriterVerdict)
        if found.errors:
            raise HypervisorError(f"{found.errors} of the requests of the guest's writer failed")
        return Verdict(
            acknowledged=found.writes,
            checked=found.sectors,
            lost=found.bad_now,
            bad_reads=found.bad,
        )

    async def _await(self, is_it: Callable[[Line], bool], what: str, timeout: float) -> Line:
        """The first line that is it."""
        seen = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._update()
                    lines = self.console.lines
                    if (found := next(filter(is_it, lines[seen:]), None)) is not None:
                        return found
                    seen = len(lines)
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            raise HypervisorError(
                f"guest {self.options.guest} does not say {what} within {timeout:g} s{self._last()}"
            ) from None

    async def _update(self) -> None:
        await asyncio.to_thread(self.console.update)
        if self.console.lines and not self.console.open:
            raise HypervisorError(f"guest {self.options.guest} runs nowhere{self._last()}")

    def _last(self) -> str:
        said = [line.text for line in self.console.lines[-_SHOWN:]]
        return "; it said last: " + " / ".join(said) if said else ""


def _starting(line: Line) -> bool:
    return line.text.startswith(("START ", "FATAL "))


def _of_fio(line: Line) -> bool:
    return fio_report(line.text) is not None


def _ends_there(line: Line) -> bool:
    report = fio_report(line.text)
    ended = report is not None and (report.code is not None or report.error != 0)
    return ended and line.connection > 0
