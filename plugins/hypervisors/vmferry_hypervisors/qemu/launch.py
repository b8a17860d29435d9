"""The destination's QEMU, started from the operator's command line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmferry.api.guest import Guest
from vmferry.errors import HypervisorError, InputError, OptionError
from vmferry_hypervisors.qemu.config import decode_config
from vmferry_hypervisors.qemu.remains import Process, remove_memory_socket
from vmferry_support.commands import run
from vmferry_support.qmp import Qmp, awaited_socket

__all__ = ["StartedQemu", "command_line", "fill_command", "start_qemu"]

_PLACEHOLDER = re.compile(r"\{(name|uuid|memory|vcpus|machine|disk:[^{}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UUID = re.compile(r"[0-9a-fA-F-]{0,36}")
_NO_UUID = "00000000-0000-0000-0000-000000000000"
_START = 'exec 3>&1 </dev/null >>"$0" 2>&1; setsid "$@" 3>&- & echo $! >&3'
_LOG_SHOWN = 1000


def _void_nodes(number: int, size: int, *, read_only: bool) -> tuple[str, list[str]]:
    """The node for a disk's device, and arguments that make it: nothing is behind it yet.

    A device may look for a partition table when it is made, and would wait for ever for a disk that
    answers only once its guest runs.
    """
    top, void = f"vmferry-disk{number}", f"vmferry-void{number}"
    nodes = [
        {"driver": "null-co", "node-name": void, "size": size, "read-zeroes": True},
        {"driver": "raw", "node-name": top, "file": void, "read-only": read_only},
    ]
    return top, [word for node in nodes for word in ("-blockdev", json.dumps(node))]


def command_line(command: str, guest: Guest) -> list[str]:
    """The operator's ``command`` for this guest, which is untrusted, with the disks' nodes.

    Raises:
        OptionError: the command cannot be parsed, or names a disk that the guest does not have.
        InputError: the guest's name or identity is not fit for a command line.

    """
    if not _NAME.fullmatch(guest.name) or not _UUID.fullmatch(guest.uuid):
        raise InputError(f"the guest name {guest.name!r} cannot be used in a command line")
    values = {
        "name": guest.name,
        "uuid": guest.uuid or _NO_UUID,
        "memory": str(guest.memory >> 20),
        "vcpus": str(guest.vcpus),
        "machine": decode_config(guest.config).machine,
    }
    arguments = []
    for number, disk in enumerate(guest.disks):
        top, more = _void_nodes(number, disk.size, read_only=disk.read_only)
        values[f"disk:{disk.name}"] = top
        arguments += more
    return [*fill_command(command, values), *arguments, "-S", "-incoming", "defer"]


def fill_command(command: str, values: Mapping[str, str]) -> list[str]:
    """The words of ``command`` with ``{NAME}`` replaced by the values; every disk must be used.

    Raises ``OptionError`` if that cannot be done, or there is no such program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise OptionError(f"command: {error}") from error
    used: set[str] = set()

    def value(match: re.Match[str]) -> str:
        used.add(match[1])
        if match[1] not in values:
            disks = ", ".join(name for name in values if name.startswith("disk:"))
            raise OptionError(f"command: {match[0]} is no disk of the guest, which has {disks}")
        return values[match[1]]

    filled = [_PLACEHOLDER.sub(value, word) for word in words]
    if not filled or shutil.which(filled[0]) is None:
        raise OptionError(f"command: there is no program {filled[0] if filled else ''!r}")
    unused = [name for name in values if name.startswith("disk:") and name not in used]
    if unused:
        raise OptionError(f"command: it has no device for {{{'}, {'.join(unused)}}}")
    return filled


class StartedQemu:
    """A QEMU that was started here and waits for its guest.

    Attributes:
        socket: of its monitor.

    """

    def __init__(self, process: Process, socket: Path, log: Path) -> None:
        self.socket = socket
        self._process, self._log = process, log

    async def connected(self, timeout: float) -> Qmp:
        """Its monitor, once it serves it.

        Raises:
            HypervisorError: it ended instead, and says why, or takes too long.

        """
        connecting = asyncio.ensure_future(
            Qmp.connect(str(self.socket), timeout=timeout, appearing=True)
        )
        ending = asyncio.ensure_future(self._process.wait())
        try:
            await asyncio.wait({connecting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise HypervisorError(f"QEMU ended at once: {self.said()}")
            return connecting.result()
        finally:
            for each in (connecting, ending):
                each.cancel()
            await asyncio.wait({connecting, ending})
            _ = connecting.cancelled() or connecting.exception()

    def said(self) -> str:
        """The end of what it wrote to its log."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace").strip()[-_LOG_SHOWN:]
        return "it said nothing"

    async def kill(self) -> None:
        """End it by force; remove its socket and log. May be called twice.

        Asked to quit it would flush its disks, and wait for an agent that does not answer yet.
        """
        self._process.kill(signal.SIGKILL)
        await self._process.wait()
        self._process.close()
        for path in (self.socket, self._log):
            await asyncio.to_thread(path.unlink, missing_ok=True)
        await asyncio.to_thread(remove_memory_socket, self.socket)

    def forget(self) -> None:
        """It stays, as the guest's. May be called twice."""
        self._process.close()


async def start_qemu(words: Sequence[str], socket: Path) -> StartedQemu:
    """Start a QEMU with a monitor at ``socket``.

    It has a session of its own, is nobody's child and outlives us. What it says goes to a log
    beside the socket. It waits for ``StartedQemu.connected``, or another client.
    """
    log = socket.with_suffix(".log")
    await asyncio.to_thread(socket.parent.mkdir, parents=True, exist_ok=True)
    monitor = f"unix:{awaited_socket(str(socket))}"
    started = asyncio.ensure_future(run("/bin/sh", "-c", _START, str(log), *words, "-qmp", monitor))
    try:
        output = await asyncio.shield(started)
    except asyncio.CancelledError:
        await asyncio.wait({started})
        if not started.exception():
            await StartedQemu(Process(int(started.result())), socket, log).kill()
        raise
    return StartedQemu(Process(int(output)), socket, log)
