"""A guest in QEMU to be moved between two folders that play hosts; what it is, is a subclass's.

::

    FOLDER/source/NAME.qmp         monitor of the QEMU where the guest starts, for the plugin
                  NAME.control     and another for the trial
           destination/...         the same for the QEMU that it is to go to
           disk0.raw               its disk at the source; disk1 if there are two
           serial.sock, record     what the guest says, and the record of it
"""

from __future__ import annotations

import asyncio
import json
import shlex
import uuid
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar

from msgspec import Meta

from vmferry.api.load import Moved, MoveLink
from vmferry.api.plugin import Options
from vmferry.api.trial import Trial
from vmferry_hypervisors.qemu.launch import StartedQemu, fill_command, start_qemu
from vmferry_hypervisors.qemu.mirror import MIRROR, move_by_mirror
from vmferry_hypervisors.qemu.remains import end_qemu
from vmferry_hypervisors.qemu.workload.recording import Recording

__all__ = ["ROLES", "GuestOptions", "TwoHosts"]

ROLES = ("source", "destination")


class GuestOptions(Options, frozen=True, kw_only=True):
    """The guest's QEMU, whatever runs in it."""

    guest: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="name of the guest")
    ] = "demo"
    qemu: Annotated[str, Meta(min_length=1, description="QEMU's program")] = "qemu-system-x86_64"
    accel: Annotated[
        str, Meta(pattern=r"^[a-z0-9,=-]+$", description="accelerator, as QEMU's -accel takes it")
    ] = "tcg"
    machine: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]+$", description="machine type")] = "pc"
    device: Annotated[Literal["virtio", "ide"], Meta(description="kind of the guest's disks")] = (
        "virtio"
    )
    format: Annotated[
        Literal["raw", "qcow2"], Meta(description="format of the disks at the source")
    ] = "raw"
    memory: Annotated[
        int,
        Meta(
            ge=16 << 20,
            le=2 << 30,
            multiple_of=1 << 20,
            description="memory of the guest",
            extra={"unit": "bytes"},
        ),
    ] = 64 << 20
    timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=3600,
            description="how long QEMU may take to obey",
            extra={"unit": "seconds"},
        ),
    ] = 60.0
    downtime_limit: Annotated[
        float,
        Meta(
            ge=0.001,
            le=2000,
            description="of the memory that is left for the stop, whichever way the guest is moved",
            extra={"unit": "seconds"},
        ),
    ] = 0.3


GuestOptionsT = TypeVar("GuestOptionsT", bound=GuestOptions)


class TwoHosts(Trial[GuestOptionsT]):
    """The guest's QEMUs, its disks, and the recorder of its serial line."""

    api_version = 1
    tells_switch: ClassVar[bool] = True
    methods: ClassVar[Mapping[str, str]] = {
        MIRROR: "QEMU's blockdev-mirror until both disks agree, then its memory migration"
    }

    def __init__(self, options: GuestOptionsT | None = None) -> None:
        super().__init__(options)
        self._folder: Path | None = None
        self._recording: Recording | None = None
        self._source: StartedQemu | None = None

    @property
    @abstractmethod
    def sizes(self) -> Mapping[str, int]:
        """Bytes of the guest's disks, by the names it knows them by."""

    def more_words(self) -> list[str]:
        """What QEMU's command line has besides, on both hosts."""
        return []

    @abstractmethod
    async def _make_disks(self) -> None:
        """Make the files of ``disks``."""

    @abstractmethod
    async def _first_word(self) -> None:
        """Wait until the guest does what it is for; raises ``HypervisorError`` if it does not."""

    async def move(self, method: str, link: MoveLink) -> Moved:
        """Move it by QEMU's own storage migration; see ``mirror``."""
        if method != MIRROR:
            return await super().move(method, link)
        return await move_by_mirror(self, link)

    # -- start

    async def boot(self, folder: Path) -> str:
        """Make the disks below an absolute ``folder`` and start QEMU; returns the guest's name."""
        self._folder = folder
        try:
            for role in ROLES:
                await asyncio.to_thread((folder / role).mkdir, parents=True, exist_ok=True)
            await self._make_disks()
            self._recording = await Recording.start(folder / "serial.sock", folder / "record")
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
        return {name: self.folder / f"{name}.{self.options.format}" for name in self.sizes}

    def socket(self, role: str) -> Path:
        """The monitor that is for the plugin."""
        return self.folder / role / f"{self.options.guest}.qmp"

    def control(self, role: str) -> Path:
        """The monitor that is for the trial."""
        return self.folder / role / f"{self.options.guest}.control"

    def command(self, role: str) -> str:
        """QEMU's command line on a host, as the plugin's option ``command`` takes it."""
        options = self.options
        words = [options.qemu, "-name", "{name}", "-uuid", "{uuid}", "-machine", "{machine}"]
        words += ["-accel", options.accel, "-m", "{memory}", "-smp", "{vcpus}"]
        words += ["-nodefaults", "-no-user-config", "-display", "none"]
        words += ["-chardev", f"socket,id=serial,path={self.folder / 'serial.sock'}"]
        words += ["-serial", "chardev:serial"]
        words += ["-qmp", f"unix:{self.control(role)},server=on,wait=off"]
        for number, name in enumerate(self.disks):  # bootindex 0 is that of -kernel
            device = "virtio-blk-pci" if options.device == "virtio" else f"ide-hd,bus=ide.{number}"
            words += ["-device", f"{device},id={name},bootindex={number + 1},drive={{disk:{name}}}"]
        return shlex.join([*words, *self.more_words()])

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

    def host_options(self, role: str) -> Mapping[str, str]:
        """The folder that plays the host, how QEMU is started there, and how it is moved."""
        if role not in ROLES:
            raise ValueError(f"a trial has no host {role!r}")
        return {
            "sockets": str(self.folder / role),
            "command": self.command(role),
            "downtime_limit": str(self.options.downtime_limit),
        }

    @property
    def recording(self) -> Recording:
        """The recorder of its serial line; ``ValueError`` before ``boot``."""
        if self._recording is None:
            raise ValueError("the trial was not started")
        return self._recording

    # -- the end

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
