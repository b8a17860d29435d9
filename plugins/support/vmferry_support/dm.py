"""Device-mapper devices, by dmsetup(8): tables as data, devices made, changed and removed.

Everything here is in sectors of 512 bytes, as the kernel's tables are, whatever the sector size of
the devices (Documentation/admin-guide/device-mapper). A device has a live table and, between
``load`` and ``resume``, an inactive one; ``suspend`` waits for the requests under way, and later
ones wait until ``resume``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vmferry.errors import VmferryError
from vmferry_support.commands import CommandFailed, run
from vmferry_support.outlast import finished

__all__ = [
    "SECTOR",
    "DmDevice",
    "DmError",
    "DmInfo",
    "DmMissing",
    "Segment",
    "format_table",
    "linear",
    "list_devices",
    "parse_table",
]

SECTOR = 512
"""Bytes of a sector in tables, status and messages."""

_TIMEOUT = 120.0
_FIELDS = "name,uuid,major,minor,open,attr"
_NO_SUCH = ("does not exist", "No such device or address")


class DmError(VmferryError):
    """Device-mapper refused or failed; the message names the device and what was tried."""


class DmMissing(DmError):
    """There is no device-mapper device of that name."""


class Segment(NamedTuple):
    """One line of a table: ``length`` sectors from ``start`` on are mapped by ``target``.

    In a status line ``arguments`` is what the target says of itself.
    """

    start: int
    length: int
    target: str
    arguments: str = ""

    def __str__(self) -> str:
        return f"{self.start} {self.length} {self.target} {self.arguments}".rstrip()


class DmInfo(NamedTuple):
    """A device as the kernel has it.

    Attributes:
        name: as in ``/dev/mapper/NAME``.
        uuid: device-mapper's own, ``""`` if it was given none.
        devno: ``major:minor``, decimal.
        opened: how many have it open, devices stacked upon it included.
        live: it has a table that is in force.
        loaded: it has a table that the next ``resume`` puts in force.
        suspended: requests wait.

    """

    name: str
    uuid: str
    devno: str
    opened: int
    live: bool
    loaded: bool
    suspended: bool


def linear(start: int, length: int, device: str, offset: int) -> Segment:
    """A segment that maps straight to ``device`` (a path or ``major:minor``) from ``offset``."""
    return Segment(start, length, "linear", f"{device} {offset}")


def format_table(segments: Iterable[Segment]) -> str:
    """The table as ``dmsetup`` reads it, a line for each segment."""
    return "".join(f"{segment}\n" for segment in segments)


def parse_table(text: str) -> tuple[Segment, ...]:
    """The segments of what ``dmsetup table`` or ``dmsetup status`` prints for one device.

    Raises:
        DmError: a line is not a segment.

    """
    return tuple(_parse_line(line) for line in text.splitlines() if line.strip())


def _parse_line(line: str) -> Segment:
    words = line.split(None, 3)
    try:
        start, length, target = int(words[0]), int(words[1]), words[2]
    except (IndexError, ValueError):
        raise DmError(f"device-mapper: {line!r} is not a line of a table") from None
    return Segment(start, length, target, words[3].strip() if len(words) > 3 else "")


class DmDevice:
    """A device-mapper device by its name, whether it exists or not.

    Every method raises ``DmMissing`` if the device is not there, ``DmError`` if the kernel refuses,
    and ``CommandMissing`` if dmsetup(8) is not installed.

    Attributes:
        name: as in ``/dev/mapper/NAME``.

    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def path(self) -> str:
        """The device node, while the device exists."""
        return f"/dev/mapper/{self.name}"

    async def create(
        self, table: Iterable[Segment], *, uuid: str = "", read_only: bool = False
    ) -> None:
        """Make the device with ``table`` in force; on return ``path`` can be opened."""
        options = ["--readonly"] if read_only else []
        if uuid:
            options += ["--uuid", uuid]
        await self._dmsetup("create", *options, stdin=format_table(table))

    async def load(self, table: Iterable[Segment], *, read_only: bool = False) -> None:
        """Prepare ``table``; it replaces the one in force at the next ``resume``.

        The devices it names are opened now. One loaded earlier and not resumed is forgotten.
        """
        options = ["--readonly"] if read_only else []
        await self._dmsetup("load", *options, stdin=format_table(table))

    async def clear(self) -> None:
        """Forget the table that was loaded and not resumed; none is no error."""
        await self._dmsetup("clear")

    async def suspend(self, *, flush: bool = True, freeze: bool = True) -> None:
        """Return when no request is under way below the device; later ones wait.

        Args:
            flush: without it, requests under way may be put back in the queue where the target can.
            freeze: freeze a file system of this host that is mounted on it first.

        """
        options = [] if flush else ["--noflush"]
        await self._dmsetup("suspend", *options, *([] if freeze else ["--nolockfs"]))

    async def resume(self) -> None:
        """Put the loaded table in force, if there is one, and let requests go on.

        Does not wait for udev: the node is there and stays.
        """
        await self._dmsetup("resume", "--noudevsync")

    async def barrier(self) -> None:
        """Suspend and resume: on return every request made before has ended.

        Both are done by one process that heeds no signal from a terminal and goes on when this
        one is killed, so that the device does not stay suspended. A file system is not frozen.
        """
        try:
            await finished(run("sh", "-c", _BARRIER, "sh", self.name, timeout=_TIMEOUT))
        except CommandFailed as error:
            raise _explain(self.name, "barrier", error) from error

    async def message(self, text: str, *, sector: int = 0) -> None:
        """Send a message to the target at ``sector``."""
        await self._dmsetup("message", str(sector), *text.split())

    async def remove(self, *, missing_ok: bool = True, force: bool = False) -> None:
        """Remove the device; one that is open is an error.

        With ``force`` its table is first replaced by one that fails every request, so that a
        request that hangs below it comes back.
        """
        options = ["--force"] if force else []
        try:
            await self._dmsetup("remove", "--retry", *options)
        except DmMissing:
            if not missing_ok:
                raise

    async def table(self, *, loaded: bool = False) -> tuple[Segment, ...]:
        """The table in force, or the one that is loaded; devices in it are ``major:minor``."""
        return parse_table(await self._dmsetup("table", *(["--inactive"] if loaded else [])))

    async def status(self, *, flush: bool = True) -> tuple[Segment, ...]:
        """What each target says of itself; without ``flush`` a thin pool does not commit first."""
        return parse_table(await self._dmsetup("status", *([] if flush else ["--noflush"])))

    async def info(self) -> DmInfo:
        """Number, users and state of the device."""
        return _parse_info(await self._dmsetup("info", *_COLUMNS))

    async def exists(self) -> bool:
        """Whether there is a device of that name."""
        try:
            await self.info()
        except DmMissing:
            return False
        return True

    async def _dmsetup(self, verb: str, *arguments: str, stdin: str = "") -> str:
        """Run ``dmsetup VERB NAME ...``; options may follow the name (getopt_long permutes)."""
        try:
            return await run("dmsetup", verb, self.name, *arguments, stdin=stdin, timeout=_TIMEOUT)
        except CommandFailed as error:
            raise _explain(self.name, verb, error) from error


_BARRIER = """trap '' HUP INT TERM
dmsetup suspend --nolockfs "$1" || exit
dmsetup resume --noudevsync "$1" || dmsetup resume --noudevsync "$1"
"""
_COLUMNS = ("--columns", "--noheadings", "--separator", "|", "-o", _FIELDS)


def _explain(name: str, verb: str, error: CommandFailed) -> DmError:
    said = (error.complaint.strip() or error.output.strip()) or str(error)
    if any(words in said for words in _NO_SUCH) and verb != "create":
        return DmMissing(f"device-mapper device {name}: {verb}: {said}")
    return DmError(f"device-mapper device {name}: {verb}: {said}")


def _parse_info(line: str) -> DmInfo:
    try:
        name, uuid, major, minor, opened, attributes = line.strip().split("|")
        return DmInfo(
            name=name,
            uuid=uuid,
            devno=f"{int(major)}:{int(minor)}",
            opened=int(opened),
            live=attributes[0] == "L",
            loaded=attributes[1] == "I",
            suspended=attributes[2] == "s",
        )
    except (ValueError, IndexError):
        raise DmError(f"device-mapper: {line!r} does not describe a device") from None


async def list_devices(prefix: str = "") -> Sequence[DmInfo]:
    """All device-mapper devices whose name begins with ``prefix``.

    Raises:
        DmError: the kernel has no device-mapper, or the caller no rights.
        CommandMissing: dmsetup(8) is not installed.

    """
    try:
        output = await run("dmsetup", "info", *_COLUMNS, timeout=_TIMEOUT)
    except CommandFailed as error:
        raise DmError(f"device-mapper: {error}") from error
    found = [_parse_info(line) for line in output.splitlines() if "|" in line]
    return [device for device in found if device.name.startswith(prefix)]
