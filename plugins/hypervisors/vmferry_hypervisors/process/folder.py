"""The files of a guest, and of a host.

::

    STATE/NAME/guest.json    definition: what the guest is made of
               memory        its memory, mapped shared
               dirty         one byte per page of it, mapped shared
               control.sock  where it is told to suspend, resume, pivot
               pid           locked by the guest for as long as it lives
               guest.log     what it says on its standard error
               incoming      there until an arriving guest may run
               console.log   acknowledged writes; outlives the guest

A guest lives if its ``pid`` file is locked (``fcntl`` record lock), and the kernel says by whom: no
process number is trusted that could be somebody else's by now.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from vmferry.api.guest import Disk
from vmferry.errors import HypervisorError, InputError
from vmferry_hypervisors.process.layout import PAGE, Registers
from vmferry_hypervisors.process.workload import Workload

__all__ = [
    "VERSION",
    "AttachedDisk",
    "Definition",
    "GuestFolder",
    "list_guests",
    "total_memory",
]

VERSION = 1
"""Version of ``guest.json`` and of what travels in ``Guest.config``."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FLOCK = struct.Struct("hhqqi4x")
_KEPT = "console.log"


class AttachedDisk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk, and the URL the guest does its I/O on."""

    disk: Disk
    url: str


class Definition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a guest is made of."""

    version: int = VERSION
    name: Annotated[str, Meta(pattern=f"^{_NAME.pattern}$")]
    uuid: Annotated[str, Meta(max_length=64)] = ""
    memory: Annotated[int, Meta(ge=16 * PAGE, le=1 << 42, multiple_of=PAGE)] = 64 << 20
    disks: Annotated[tuple[AttachedDisk, ...], Meta(max_length=16)] = ()
    workload: Workload = Workload()


class GuestFolder:
    """The folder of one guest on one host."""

    def __init__(self, state: Path, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise InputError(f"guest name {name!r}: use letters, digits, '.', '_' and '-'")
        self.name = name
        self.path = state / name

    @property
    def console(self) -> Path:
        """The record of acknowledged writes on this host."""
        return self.path / _KEPT

    @property
    def defined(self) -> bool:
        """Whether a guest, or one half arrived, has this name here."""
        return (self.path / "guest.json").exists()

    def define(self, definition: Definition, *, incoming: bool = False) -> None:
        """Store the definition of a guest whose name is free; ``FileExistsError`` if it is not."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "guest.json").open("xb") as file:
            if incoming:
                (self.path / "incoming").touch()
            file.write(msgspec.json.encode(definition))

    @property
    def incoming(self) -> bool:
        """Whether the guest is still arriving and has not run."""
        return (self.path / "incoming").exists()

    def welcome(self) -> None:
        """An arriving guest has arrived."""
        (self.path / "incoming").unlink(missing_ok=True)

    def redefine(self, definition: Definition) -> None:
        """Replace the definition, atomically."""
        temporary = self.path / "guest.json.part"
        temporary.write_bytes(msgspec.json.encode(definition))
        temporary.replace(self.path / "guest.json")

    def definition(self) -> Definition:
        """The definition; raises ``HypervisorError`` if there is none that can be read."""
        try:
            return msgspec.json.decode((self.path / "guest.json").read_bytes(), type=Definition)
        except (OSError, ValueError) as error:
            raise HypervisorError(f"{self.path / 'guest.json'}: {error}") from error

    def pid(self) -> int | None:
        """Number of the process that plays the guest, ``None`` if none does."""
        try:
            descriptor = os.open(self.path / "pid", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, query))
        finally:
            os.close(descriptor)
        return None if kind == fcntl.F_UNLCK else pid

    def registers(self) -> Registers:
        """The guest's registers as last stored, read without its help."""
        try:
            with (self.path / "memory").open("rb") as memory:
                return Registers.load(memory.read(Registers.SIZE))
        except (OSError, struct.error) as error:
            raise HypervisorError(
                f"guest {self.name}: its memory cannot be read: {error}"
            ) from error

    def stopped(self) -> bool:
        """Whether the kernel has stopped the guest's process (``SIGSTOP``)."""
        pid = self.pid()
        if pid is None:
            return False
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text()
            return stat.rpartition(")")[2].split()[0] in ("T", "t")
        return False

    def signal(self, number: signal.Signals) -> None:
        """Signal the guest's process, if there is one."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self, patience: float = 10.0) -> None:
        """End the guest's process; on return it is gone. Nothing to end is no error."""
        until = time.monotonic() + patience
        while self.pid() is not None:
            self.signal(signal.SIGKILL)
            if time.monotonic() > until:
                raise HypervisorError(f"guest {self.name}: process {self.pid()} cannot be killed")
            time.sleep(0.002)

    def remove(self, *, console: bool = False) -> None:
        """Remove everything but the console, or that too. Twice is no error.

        The definition goes first, so that a removal cut short leaves no guest behind.
        """
        (self.path / "guest.json").unlink(missing_ok=True)
        if not self.path.is_dir():
            return
        if console or not self.console.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            return
        for path in self.path.iterdir():
            if path.name != _KEPT:
                path.unlink(missing_ok=True)


def list_guests(state: Path) -> Iterator[GuestFolder]:
    """The guests of a host that are defined, in order of their names."""
    paths = sorted(state.iterdir()) if state.is_dir() else []
    for path in paths:
        if _NAME.fullmatch(path.name) and (path / "guest.json").exists():
            yield GuestFolder(state, path.name)


def total_memory(state: Path) -> int:
    """Bytes of memory that the guests of a host were given."""
    return sum(folder.definition().memory for folder in list_guests(state))
